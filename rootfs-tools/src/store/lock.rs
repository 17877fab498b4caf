//! Locks that cannot be stale, on the files themselves.
//!
//! Whoever uses a finished file holds a shared lock (flock(2)) on it, for as
//! long as its descriptor is open; whoever removes one takes the exclusive lock
//! first and lets it be if that is not to be had. Whoever makes a file holds the
//! exclusive lock on a work file until it is renamed to its place. The kernel
//! lets go of all of them when a process ends, however it ends. So a work file
//! that nobody has locked is what a killed process left.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::archive::Piece;
use crate::child;

/// A finished file in use: nobody removes it while this lives.
#[derive(Debug)]
pub struct Held {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

impl Held {
    /// Opens `path` for reading; `None` if there is no such file.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            // At most as long as it takes to unlink a file.
            file.lock_shared()?;
            // It may have been removed before the lock was there.
            if file.metadata()?.nlink() > 0 {
                let path = path.to_owned();
                return Ok(Some(Self { file, path }));
            }
        }
    }

    /// The file, open for reading.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has it this digest?
    pub(crate) fn verify(&self, digest: &str) -> io::Result<bool> {
        let file = Arc::new(self.file.try_clone()?);
        let length = self.size()?;
        let piece = Piece {
            file,
            offset: 0,
            length,
        };
        Ok(piece.digest(&mut |_| {})? == digest)
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

/// A file that is being made. Dropped, it is removed, unless it was published
/// or kept.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    leave: bool,
}

impl Work {
    /// Takes the right to make the file `path`, which may have in it what an
    /// earlier maker left; `waiting` is called once if another process has it.
    ///
    /// There is no deadline: who has it makes progress or ends.
    pub(crate) fn take(path: &Path, waiting: &mut dyn FnMut()) -> io::Result<Self> {
        let mut waiting = Some(waiting);
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(path)?;
            match child::try_lock(&file, false) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    // Until its maker is done. Not for the exclusive lock: the
                    // file may be in its place by then, and used for long.
                    file.lock_shared()?;
                    continue;
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Published or removed before the lock was ours?
            match fs::metadata(path) {
                Ok(there) if is_same(&there, &file.metadata()?) => {
                    let path = path.to_owned();
                    return Ok(Self {
                        file,
                        path,
                        leave: false,
                    });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts the file in its place, on disk for good, and keeps it in use.
    /// Nobody may be removing files meanwhile.
    pub(crate) fn publish(mut self, to: &Path) -> io::Result<Held> {
        self.file.sync_all()?;
        fs::rename(&self.path, to)?;
        self.leave = true;
        sync_parent(to)?;
        let file = self.file.try_clone()?;
        file.lock_shared()?;
        Ok(Held {
            file,
            path: to.to_owned(),
        })
    }

    /// Whether what there is is left, when this is dropped, for whoever goes on
    /// with it.
    pub(crate) fn keep_partial(&mut self, keep: bool) {
        self.leave = keep;
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.leave {
            // The lock is still ours. What cannot be removed, `gc` finds.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// What became of a file that was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    /// This many bytes of disk are free again.
    Yes(u64),
    /// Somebody uses it.
    InUse,
}

/// Removes a file unless somebody has it locked; `pretend` only looks.
pub(crate) fn remove(path: &Path, pretend: bool) -> io::Result<Removed> {
    loop {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Removed::Yes(0)),
            Err(error) => return Err(error),
        };
        match child::try_lock(&file, false) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Removed::InUse),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Another file by now, that somebody else has?
        let ours = file.metadata()?;
        match fs::metadata(path) {
            Ok(there) if is_same(&there, &ours) => {}
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        if !pretend {
            fs::remove_file(path)?;
        }
        return Ok(Removed::Yes(ours.blocks().saturating_mul(512)));
    }
}

/// Does somebody use the file?
pub(crate) fn in_use(path: &Path) -> io::Result<bool> {
    remove(path, true).map(|removed| removed == Removed::InUse)
}

/// Makes names in the directory of `path` as lasting as the files.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_is_held_is_not_removed_and_goes_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "x").unwrap();
        let held = Held::open(&path).unwrap().unwrap();
        let second = Held::open(&path).unwrap().unwrap();
        assert_eq!(remove(&path, false).unwrap(), Removed::InUse);
        drop(held);
        assert_eq!(remove(&path, false).unwrap(), Removed::InUse);
        drop(second);
        assert!(matches!(remove(&path, true).unwrap(), Removed::Yes(_)));
        assert!(path.exists());
        assert!(matches!(remove(&path, false).unwrap(), Removed::Yes(_)));
        assert!(Held::open(&path).unwrap().is_none());
    }

    #[test]
    fn who_waits_for_a_maker_gets_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (work, done) = (dir.path().join("work"), dir.path().join("done"));
        let mut first = Work::take(&work, &mut || panic!("nobody else")).unwrap();
        first.file.write_all(b"first").unwrap();
        let (tell, told) = mpsc::channel();
        let path = work.clone();
        let second = std::thread::spawn(move || {
            Work::take(&path, &mut || tell.send(()).unwrap())
                .unwrap()
                .keep_partial(true);
        });
        told.recv().unwrap();
        let held = first.publish(&done).unwrap();
        second.join().unwrap();
        assert_eq!(fs::read(&done).unwrap(), b"first");
        assert_eq!(fs::read(&work).unwrap(), b"");
        assert_eq!(remove(&done, false).unwrap(), Removed::InUse);
        drop(held);
    }

    #[test]
    fn what_a_maker_keeps_is_found_and_what_it_drops_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("work");
        let mut work = Work::take(&path, &mut || {}).unwrap();
        work.file.write_all(b"half").unwrap();
        work.keep_partial(true);
        drop(work);
        let work = Work::take(&path, &mut || panic!("nobody else")).unwrap();
        assert_eq!(work.file.metadata().unwrap().len(), 4);
        drop(work);
        assert!(!path.exists());
    }
}
