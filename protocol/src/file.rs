//! Supervisor to guest agent: one operation on the guest's files per
//! connection (host to guest, [`FILE_PORT`]), in the framing of
//! [`crate::frame`] with bodies of at most [`MAX_FILE_FRAME`] bytes.
//!
//! The supervisor sends [`FileInput::Start`]; what follows depends on the
//! operation.
//!
//! ```text
//! Write          host: Start, Data…, End                guest: Done
//! Read           host: Start                            guest: Info, Data…, Done
//! List           host: Start                            guest: Entries…, Done
//! Stat           host: Start                            guest: Info, Done
//! the others     host: Start                            guest: Done
//! ```
//!
//! [`FileOutput::Failed`] can take the place of any frame of the guest and is
//! the last. Both directions are held back by vsock's own credit. A supervisor
//! that closes the connection before the last frame ends the operation: a
//! write leaves nothing under its final name without [`FileInput::End`].
//!
//! Paths are byte strings, absolute, and looked up in the guest's root as root
//! of the guest.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::agent::{Bytes, MAX_DATA};

/// Port in the guest on which the agent accepts file connections.
pub const FILE_PORT: u32 = 1026;

/// Longest path, in bytes: Linux's own limit without the NUL.
pub const MAX_PATH: usize = 4095;

/// Longest frame body: one of data, or the two paths of a renaming, and some
/// bytes around it.
pub const MAX_FILE_FRAME: usize = MAX_DATA + 4096;

/// Most entries of a directory in one frame; all their names together are at
/// most [`MAX_DATA`] / 2 bytes.
pub const MAX_ENTRIES: usize = 512;

/// To the agent on a file connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileInput {
    /// The first message.
    Start(FileRequest),
    /// The next bytes of the file that is written; 1 to [`MAX_DATA`].
    Data(#[serde(with = "serde_bytes")] Vec<u8>),
    /// That was all of it: it gets its final name.
    End,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRequest {
    /// Write a regular file. It appears, or replaces the one that is there, in
    /// one step and only when it is complete.
    Write(WriteRequest),
    /// Read a regular file.
    Read {
        /// The file; symbolic links are followed.
        path: Bytes,
        /// The first byte that is wanted.
        offset: u64,
        /// Most bytes that are wanted; all if `None`.
        length: Option<u64>,
    },
    /// List a directory, in no order, without `.` and `..`.
    List {
        /// The directory; symbolic links are followed.
        path: Bytes,
    },
    /// Describe a file.
    Stat {
        /// The file.
        path: Bytes,
        /// Whether a symbolic link stands for what it points to.
        follow: bool,
    },
    /// Make a directory.
    MakeDirectory {
        /// The directory.
        path: Bytes,
        /// Its permissions, whatever the umask.
        mode: u32,
        /// Make the missing ones above it too, with mode 755, and be content if
        /// the directory is there already.
        parents: bool,
    },
    /// Remove a file, a symbolic link (not what it points to) or a directory.
    Remove {
        /// What to remove.
        path: Bytes,
        /// Remove everything in a directory first.
        recursive: bool,
    },
    /// Give a file or directory another name, replacing the file or the empty
    /// directory that has it.
    Rename {
        /// The name it has.
        from: Bytes,
        /// The name it gets, on the same file system.
        to: Bytes,
    },
}

/// How to write a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRequest {
    /// The file. A symbolic link there is replaced, not followed.
    pub path: Bytes,
    /// Permissions, whatever the umask; those of the file that is replaced, or
    /// 644, if `None`.
    pub mode: Option<u32>,
    /// Owner; that of the file that is replaced, or root, if `None`.
    pub uid: Option<u32>,
    /// Group; that of the file that is replaced, or root's, if `None`.
    pub gid: Option<u32>,
    /// Make the missing directories above it, with mode 755.
    pub parents: bool,
}

/// From the agent on a file connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileOutput {
    /// What the file is.
    Info(FileStat),
    /// The next bytes of the file that is read; 1 to [`MAX_DATA`].
    Data(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The next entries of the directory; 1 to [`MAX_ENTRIES`].
    Entries(Vec<Entry>),
    /// It is done. The last frame.
    Done,
    /// It could not be done. The last frame.
    Failed(FileFailure),
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// 1 to 255 bytes, none of them `/` or NUL.
    pub name: Bytes,
    /// What has the name; symbolic links are not followed.
    pub stat: FileStat,
}

/// What `stat(2)` says of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// When the content changed last: seconds since 1970…
    pub modified: i64,
    /// … and nanoseconds.
    pub modified_ns: u32,
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFailure {
    /// The class of failure.
    pub kind: FileFailureKind,
    /// The error number in the guest, 0 if there is none.
    pub errno: i32,
    /// One line: what was tried and why it failed. Without the path, which the
    /// supervisor knows.
    pub message: String,
}

/// Classes of [`FileFailure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileFailureKind {
    /// There is no such file, or no directory to put it into.
    NotFound,
    /// There is something of that name already.
    Exists,
    /// Something on the way, or at its end, is no directory.
    NotADirectory,
    /// It is a directory, which cannot be read or replaced as a file.
    IsADirectory,
    /// The directory is not empty.
    NotEmpty,
    /// It is a device, a FIFO or a socket: those are neither read nor written.
    NotRegular,
    /// The guest's kernel allows it to nobody, not even to root.
    Permission,
    /// The file system is read-only.
    ReadOnly,
    /// The file system is full.
    NoSpace,
    /// The request itself is wrong: a path that is not absolute, too long or has
    /// a NUL, or one that names no file.
    BadRequest,
    /// The guest could not: too many operations at a time, out of memory.
    Resources,
    /// Anything else; the error number says what.
    Other,
}

impl fmt::Display for FileFailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::Exists => "exists already",
            Self::NotADirectory => "not a directory",
            Self::IsADirectory => "is a directory",
            Self::NotEmpty => "directory not empty",
            Self::NotRegular => "not a regular file",
            Self::Permission => "not permitted",
            Self::ReadOnly => "read-only",
            Self::NoSpace => "no space left",
            Self::BadRequest => "bad request",
            Self::Resources => "out of resources",
            Self::Other => "failed",
        })
    }
}

impl FileStat {
    /// `S_IFMT` of Linux: the bits of a mode that are the type.
    const TYPE: u32 = 0o170_000;

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.mode & Self::TYPE == 0o040_000
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.mode & Self::TYPE == 0o100_000
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.mode & Self::TYPE == 0o120_000
    }

    /// The permissions: twelve bits.
    #[must_use]
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }
}
