//! Files of a host directory as contents of a tree.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::tree::{Source, SourceError};

/// The directory that was walked.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    /// The directory of the file opened last: the next is often next to it.
    last: Mutex<Option<(PathBuf, Arc<OwnedFd>)>>,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Arc<Self>, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Arc::new(Self {
            fd,
            last: Mutex::new(None),
        }))
    }

    /// Opens the directory `path` below the root, following no link.
    fn directory(&self, path: &Path) -> Result<Arc<OwnedFd>, Errno> {
        // What a panicking thread left is a whole value all the same.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, fd)) = last.as_ref().filter(|(known, _)| known == path) {
            return Ok(Arc::clone(fd));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut fd = rustix::fs::openat(&self.fd, c".", flags, Mode::empty())?;
        for part in path.components() {
            let Component::Normal(name) = part else {
                return Err(Errno::INVAL);
            };
            fd = rustix::fs::openat(&fd, name, flags, Mode::empty())?;
        }
        let fd = Arc::new(fd);
        *last = Some((path.to_owned(), Arc::clone(&fd)));
        Ok(fd)
    }
}

/// What tells that a file was not written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl From<&Stat> for Identity {
    fn from(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// A regular file below a [`Root`].
#[derive(Debug)]
pub(super) struct HostFile {
    root: Arc<Root>,
    path: PathBuf,
    identity: Identity,
}

impl HostFile {
    /// The file at `path` below `root` that has this `stat`.
    pub(super) fn new(root: &Arc<Root>, path: PathBuf, stat: &Stat) -> Self {
        Self {
            root: Arc::clone(root),
            path,
            identity: stat.into(),
        }
    }
}

impl Source for HostFile {
    fn size(&self) -> u64 {
        u64::try_from(self.identity.size).unwrap_or(0)
    }

    fn open(&self) -> Result<File, SourceError> {
        let parent = self.path.parent().unwrap_or(Path::new(""));
        let name = self.path.file_name().unwrap_or_default();
        let opened = self.root.directory(parent).and_then(|directory| {
            // Should it have become a FIFO, opening must not wait.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            rustix::fs::openat(directory, name, flags, Mode::empty())
        });
        match opened {
            Ok(fd) => {
                let file = File::from(fd);
                self.verify(&file)?;
                Ok(file)
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(SourceError::Changed),
            Err(error) => Err(SourceError::Io(error.into())),
        }
    }

    fn verify(&self, file: &File) -> Result<(), SourceError> {
        let stat = rustix::fs::fstat(file).map_err(io::Error::from)?;
        if Identity::from(&stat) == self.identity {
            Ok(())
        } else {
            Err(SourceError::Changed)
        }
    }
}
