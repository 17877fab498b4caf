//! The files of a running guest.
//!
//! Every operation has a connection of its own to the guest's agent, which does
//! it as root of the guest. Dropping a future, or a [`FileReader`], closes the
//! connection, and that ends the operation in the guest.

use std::io;
use std::path::Path;

use flashpan_protocol::agent::MAX_DATA;
use flashpan_protocol::file::{FileOutput, FileRequest, FileStat, WriteRequest};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::api::FileInfo;
use crate::error::{Error, Result};
use crate::file_entry::{FileEntry, LISTING_MAX};
use crate::file_link::{ANSWER_WITHIN, FileLink, REMOVE_WITHIN, guest_path};
use crate::file_reader::FileReader;
use crate::pump::broken;
use crate::sandbox::Sandbox;

/// How a file is written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "options do nothing until `Sandbox::write_file`"]
pub struct WriteOptions {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    parents: bool,
}

impl Default for WriteOptions {
    /// Mode and owner of the file that is replaced, or 644 and root; missing
    /// directories are made.
    fn default() -> Self {
        Self {
            mode: None,
            uid: None,
            gid: None,
            parents: true,
        }
    }
}

impl WriteOptions {
    /// As [`WriteOptions::default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Permissions (twelve bits), whatever the guest's umask.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Owner, as a number.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Group, as a number.
    pub fn gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// Whether directories that are missing above the file are made, with mode
    /// 755, as they are otherwise.
    pub fn parents(mut self, parents: bool) -> Self {
        self.parents = parents;
        self
    }
}

/// What part of a file is read; all of it by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use = "options do nothing until `Sandbox::open_file`"]
pub struct ReadOptions {
    offset: u64,
    length: Option<u64>,
}

impl ReadOptions {
    /// All of it.
    pub fn new() -> Self {
        Self::default()
    }

    /// From this byte on.
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// At most this many bytes.
    pub fn length(mut self, length: u64) -> Self {
        self.length = Some(length);
        self
    }
}

/// # Files of the guest
///
/// Paths are absolute paths in the guest and need not be UTF-8. They are looked
/// up as root of the guest; nothing outside of it can be reached, whatever links
/// the guest's programs make. Everything here is cancel safe: a future that is
/// dropped ends the operation in the guest.
///
/// All of them fail with [`Error::InvalidConfig`] for a path that is not
/// absolute, longer than 4095 bytes or has a NUL, with [`Error::File`] for what
/// the guest answers, with [`Error::Timeout`] if it does not, and with
/// [`Error::VmEnded`] or [`Error::NotRunning`] if there is no guest. A guest
/// works on at most 32 files at a time.
impl Sandbox {
    /// Writes a file of the guest. It appears under its name, or replaces the
    /// file that is there, in one step and only when it is complete; until
    /// then it is beside it under a name that begins with `.flashpan-`. A
    /// symbolic link there is replaced and not followed. Directories, devices,
    /// FIFOs and sockets are not replaced.
    ///
    /// Dropped at the very end, the file may be there or not, but never half of
    /// it.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest).
    pub async fn write_file(
        &self,
        path: impl AsRef<Path>,
        content: impl AsRef<[u8]>,
        options: WriteOptions,
    ) -> Result<()> {
        let mut content = content.as_ref();
        self.write_file_from(path, &mut content, options).await
    }

    /// As [`Sandbox::write_file`], with all that `content` gives. Nothing is
    /// read ahead of what the guest takes, but for some 100 KiB.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest); and [`Error::Host`] if `content`
    /// cannot be read: nothing is written then.
    pub async fn write_file_from(
        &self,
        path: impl AsRef<Path>,
        content: &mut (impl AsyncRead + Unpin + ?Sized),
        options: WriteOptions,
    ) -> Result<()> {
        let path = path.as_ref();
        let request = FileRequest::Write(WriteRequest {
            path: guest_path(path)?,
            mode: options.mode,
            uid: options.uid,
            gid: options.gid,
            parents: options.parents,
        });
        let FileLink {
            mut input,
            mut output,
        } = FileLink::start(self, path, request).await?;
        let sending = async {
            let mut buffer = vec![0; MAX_DATA];
            loop {
                let read = content.read(&mut buffer).await;
                match read.map_err(Error::host("read the content to write"))? {
                    0 => return input.end().await,
                    n => input.data(buffer.get(..n).unwrap_or_default()).await?,
                }
            }
        };
        // An answer before the end is a failure.
        let answer = tokio::select! {
            biased;
            early = output.next() => return Err(output.unexpected(&early?)),
            sent = sending => {
                sent?;
                output.next_within(ANSWER_WITHIN).await?
            }
        };
        output.done(&answer)
    }

    /// Reads a whole file of at most `limit` bytes.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest); and [`Error::FileTooLong`].
    pub async fn read_file(&self, path: impl AsRef<Path>, limit: usize) -> Result<Vec<u8>> {
        let path = path.as_ref();
        // One more, to know that there is more.
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        let mut file = self
            .open_file(path, ReadOptions::new().length(most))
            .await?;
        let mut content = Vec::new();
        while let Some(chunk) = file.next_chunk().await? {
            if chunk.len() > limit.saturating_sub(content.len()) {
                let path = path.to_owned();
                return Err(Error::FileTooLong { path, limit });
            }
            content.extend_from_slice(&chunk);
        }
        Ok(content)
    }

    /// Opens a file to read it as a stream. What the caller does not read stays
    /// in the guest.
    ///
    /// Regular files only: a device, a FIFO or a socket is refused. Files that
    /// grow, and those of `/proc`, which have a size of 0, are read to their
    /// end.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest).
    pub async fn open_file(
        &self,
        path: impl AsRef<Path>,
        options: ReadOptions,
    ) -> Result<FileReader> {
        let path = path.as_ref();
        let request = FileRequest::Read {
            path: guest_path(path)?,
            offset: options.offset,
            length: options.length,
        };
        let mut link = FileLink::start(self, path, request).await?;
        match link.output.next_within(ANSWER_WITHIN).await? {
            FileOutput::Info(stat) => Ok(FileReader::new(link, stat, options.length)),
            other => Err(link.output.unexpected(&other)),
        }
    }

    /// Lists a directory, sorted by name, without `.` and `..`. Symbolic links
    /// in it are not followed.
    ///
    /// This is `list_files` of the interface ([`crate::api`]): as many fields,
    /// text for names. In a name that is not UTF-8 the offending bytes are
    /// replaced; [`Sandbox::read_directory`] has them, and the owners.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest); and [`Error::ListingTooLong`] for more
    /// than 262,144 entries.
    pub async fn list_files(&self, path: impl AsRef<Path>) -> Result<Vec<FileInfo>> {
        let entries = self.read_directory(path).await?;
        Ok(entries.iter().map(FileEntry::info).collect())
    }

    /// Lists a directory, sorted by the bytes of the names, with everything that
    /// is known of each entry.
    ///
    /// # Errors
    /// As [`Sandbox::list_files`].
    pub async fn read_directory(&self, path: impl AsRef<Path>) -> Result<Vec<FileEntry>> {
        let path = path.as_ref();
        let request = FileRequest::List {
            path: guest_path(path)?,
        };
        let mut link = FileLink::start(self, path, request).await?;
        let mut all = Vec::new();
        loop {
            match link.output.next_within(ANSWER_WITHIN).await? {
                FileOutput::Entries(entries) if entries.is_empty() => {
                    // Any number of those would never be too many.
                    return Err(broken("it listed no files in a message".to_owned()));
                }
                FileOutput::Entries(entries) => {
                    if entries.len() > LISTING_MAX.saturating_sub(all.len()) {
                        let (path, limit) = (path.to_owned(), LISTING_MAX);
                        return Err(Error::ListingTooLong { path, limit });
                    }
                    for entry in entries {
                        all.push(FileEntry::from_guest(entry)?);
                    }
                }
                FileOutput::Done => break,
                other => return Err(link.output.unexpected(&other)),
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// Describes a file; of a symbolic link, what it points to.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest).
    pub async fn stat(&self, path: impl AsRef<Path>) -> Result<FileStat> {
        self.describe(path.as_ref(), true).await
    }

    /// Describes a file; of a symbolic link, the link.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest).
    pub async fn stat_link(&self, path: impl AsRef<Path>) -> Result<FileStat> {
        self.describe(path.as_ref(), false).await
    }

    async fn describe(&self, path: &Path, follow: bool) -> Result<FileStat> {
        let request = FileRequest::Stat {
            path: guest_path(path)?,
            follow,
        };
        let mut link = FileLink::start(self, path, request).await?;
        match link.output.next_within(ANSWER_WITHIN).await? {
            FileOutput::Info(stat) => Ok(stat),
            other => Err(link.output.unexpected(&other)),
        }
    }

    /// Makes a directory with these permissions (twelve bits), whatever the
    /// guest's umask. With `parents`, also those that are missing above it,
    /// with mode 755; and it is no error then if there is one already, which
    /// keeps its permissions.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest).
    pub async fn mkdir(&self, path: impl AsRef<Path>, mode: u32, parents: bool) -> Result<()> {
        let path = path.as_ref();
        let request = FileRequest::MakeDirectory {
            path: guest_path(path)?,
            mode,
            parents,
        };
        self.complete(path, request).await
    }

    /// Removes a file, a symbolic link (not what it points to) or an empty
    /// directory; with `recursive` a directory with everything in it. What is
    /// mounted in it stays, and fails the removal. What was removed before a
    /// failure, or before the future was dropped, is gone.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest).
    pub async fn remove(&self, path: impl AsRef<Path>, recursive: bool) -> Result<()> {
        let path = path.as_ref();
        let request = FileRequest::Remove {
            path: guest_path(path)?,
            recursive,
        };
        let mut link = FileLink::start(self, path, request).await?;
        // A tree of millions of files takes its time.
        let within = if recursive {
            REMOVE_WITHIN
        } else {
            ANSWER_WITHIN
        };
        let answer = link.output.next_within(within).await?;
        link.output.done(&answer)
    }

    /// Gives a file or a directory another name on the same file system,
    /// replacing the file, or the empty directory, that has it.
    ///
    /// # Errors
    /// See [above](#files-of-the-guest); the path in the error is `from`.
    pub async fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let from = from.as_ref();
        let request = FileRequest::Rename {
            from: guest_path(from)?,
            to: guest_path(to.as_ref())?,
        };
        self.complete(from, request).await
    }

    /// An operation with no answer but that it is done.
    async fn complete(&self, path: &Path, request: FileRequest) -> Result<()> {
        let mut link = FileLink::start(self, path, request).await?;
        let answer = link.output.next_within(ANSWER_WITHIN).await?;
        link.output.done(&answer)
    }
}

/// The kind of I/O error that a class of failure is.
pub(crate) fn io_error(error: Error) -> io::Error {
    use flashpan_protocol::file::FileFailureKind as Kind;
    let kind = match &error {
        Error::File { kind, .. } => match kind {
            Kind::NotFound => io::ErrorKind::NotFound,
            Kind::Exists => io::ErrorKind::AlreadyExists,
            Kind::NotADirectory => io::ErrorKind::NotADirectory,
            Kind::IsADirectory => io::ErrorKind::IsADirectory,
            Kind::NotEmpty => io::ErrorKind::DirectoryNotEmpty,
            Kind::Permission => io::ErrorKind::PermissionDenied,
            Kind::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
            Kind::NoSpace => io::ErrorKind::StorageFull,
            Kind::NotRegular | Kind::BadRequest => io::ErrorKind::InvalidInput,
            Kind::Resources | Kind::Other | Kind::TooMany => io::ErrorKind::Other,
        },
        Error::Timeout { .. } => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
