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
//! TreeIn         host: Start, Tree…, End                guest: Done
//! TreeOut        host: Start                            guest: Tree…, Done
//! Watch          host: Start                            guest: Info, Changes…, Done
//! the others     host: Start                            guest: Done
//! ```
//!
//! **A tree** is sent from its root down: `Tree` stands for one of three frames.
//! `Entry` begins a file, a directory or a symbolic link, in the directory that
//! was begun last and is still open; `Data` has content of the file that was
//! begun last; `Close` ends the file or directory that is open and was begun
//! last. A symbolic link has no `Close`. So there are names in a stream and no
//! paths, and the receiver needs no more than the descriptors of the directories
//! that are open. What is neither of the three kinds, a device, a FIFO or a
//! socket, is left out; the agent says so with `Skipped`. A file and a directory
//! are complete, and have their permissions and times, with their `Close`.
//!
//! A tree that goes in need not be in order, as archives are not. A directory that
//! came with it can be begun again: with `Entry`, and then what was said last is what
//! it gets, or with `Enter`, which says nothing new of it. `HardLink` gives a file of
//! the tree another name.
//!
//! **Changes** are told from `Info` on until the watched directory is removed
//! or moved, which is `Done`, or the supervisor closes the connection.
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
    /// A file, directory or symbolic link of a tree begins.
    Entry(TreeEntry),
    /// The file or directory of a tree that was begun last ends.
    Close,
    /// A directory of a tree begins that nothing is said of: it is made so if there is
    /// none, and otherwise has, or gets with its `Close`, what it had or was to get.
    Enter(TreeEntry),
    /// What is at `path` in the tree, a file or a symbolic link, gets another name in
    /// the directory that is open.
    HardLink {
        /// As [`TreeEntry::name`].
        name: Bytes,
        /// Names of directories, one in another from the root of the tree down, and of
        /// what is in the last; with `/` between them, at most [`MAX_TREE_DEPTH`] + 1.
        path: Bytes,
    },
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
    /// Receive a file, or a directory with all that is in it.
    TreeIn(TreeInRequest),
    /// Send a file, or a directory with all that is in it.
    TreeOut {
        /// What to send.
        path: Bytes,
        /// Whether a symbolic link there stands for what it points to. Those
        /// below it never do.
        follow: bool,
    },
    /// Tell what changes in a directory.
    Watch {
        /// The directory; symbolic links are followed.
        path: Bytes,
        /// Watch the directories in it too, also those that are made later.
        recursive: bool,
        /// Most directories to watch; at most [`MAX_WATCHES`].
        most: u32,
    },
}

/// Where a tree goes and whose it is.
///
/// It goes where `docker cp` puts it: into the directory at `path` under its own
/// name if there is one, and at `path` otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeInRequest {
    /// The place. Symbolic links are followed; a slash at the end says that it
    /// is a directory.
    pub path: Bytes,
    /// Put what is in the directory that is sent into the directory at `path`,
    /// and not the directory itself.
    pub contents: bool,
    /// Who owns all of it, as user and group; as the entries say if `None`.
    pub owner: Option<(u32, u32)>,
}

/// Most levels of directories in a tree: each takes descriptors. The root is the first,
/// but for one that keeps no name: a directory that is there and gets what comes
/// ([`TreeInRequest::contents`]) is none. So an archive has paths of at most so many
/// directories, whether it comes out or goes in.
pub const MAX_TREE_DEPTH: usize = 256;

/// Most entries of a tree.
pub const MAX_TREE_ENTRIES: u64 = 4 * 1024 * 1024;

/// Longest name of a file, in bytes.
pub const MAX_NAME: usize = 255;

/// Most directories that one [`FileRequest::Watch`] watches.
pub const MAX_WATCHES: u32 = 64 * 1024;

/// A file, a directory or a symbolic link of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEntry {
    /// 1 to [`MAX_NAME`] bytes, none of them `/` or NUL, and neither `.` nor
    /// `..`.
    pub name: Bytes,
    /// What it is, whose, and when it changed. Of a file, its size when it was
    /// opened: what follows is shorter if it shrinks, and longer only of those
    /// that have a size of 0, as in /proc.
    pub stat: FileStat,
    /// Of a symbolic link, where it points: 1 to [`MAX_PATH`] bytes without NUL.
    /// Empty otherwise.
    pub target: Bytes,
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
    /// A file, directory or symbolic link of a tree begins.
    Entry(TreeEntry),
    /// The file or directory of a tree that was begun last ends.
    Close,
    /// This is in the directory that is open, and is left out of the tree.
    Skipped(Entry),
    /// The next changes in the watched directory, in the order in which they
    /// happened; 1 to [`MAX_ENTRIES`], all their paths together at most a third
    /// of [`MAX_DATA`].
    Changes(Vec<Change>),
}

/// A change in a watched directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// To what: a path relative to the watched directory, or empty for that
    /// itself.
    pub path: Bytes,
    /// Of [`ChangeKind::Moved`], where it is now; empty otherwise.
    pub to: Bytes,
    /// Whether it is a directory.
    pub directory: bool,
}

/// Kinds of [`Change`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChangeKind {
    /// It was made, or moved here from elsewhere.
    Created,
    /// Its content changed.
    Modified,
    /// It was removed, or moved elsewhere.
    Removed,
    /// It has another name now.
    Moved,
    /// Its owner, permissions, times or other attributes changed.
    Attributes,
    /// There were more changes than were told.
    Overflow,
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
    /// There is more of it than is allowed: directories to watch, levels or
    /// entries of a tree.
    TooMany,
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
            Self::TooMany => "too many",
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
