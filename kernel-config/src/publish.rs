//! A kernel appears in the cache whole or not at all: written beside its place,
//! synced, renamed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Directory of a kernel that is being put together. Its name begins with a dot:
/// nothing that lists the cache sees it. Removed when dropped before
/// [`Staging::publish`].
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Staging {
    /// An empty directory beside `target`; an abandoned one of that name goes. The
    /// caller holds the lock of this kernel.
    pub(crate) fn new(target: &Path) -> Result<Self, Error> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = target.with_file_name(format!(".new-{name}"));
        remove_tree(&path)?;
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        Ok(Self {
            path,
            target: target.to_owned(),
            published: false,
        })
    }

    /// Where a file of the kernel is to be written.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, contents: &[u8]) -> Result<(), Error> {
        let path = self.file(name);
        fs::write(&path, contents).map_err(Error::io("write", &path))
    }

    /// Makes all files durable, then visible.
    pub(crate) fn publish(mut self) -> Result<(), Error> {
        let sync = |path: &Path| -> io::Result<()> { File::open(path)?.sync_all() };
        for entry in fs::read_dir(&self.path).map_err(Error::io("list", &self.path))? {
            let path = entry.map_err(Error::io("list", &self.path))?.path();
            sync(&path).map_err(Error::io("sync", &path))?;
        }
        sync(&self.path).map_err(Error::io("sync", &self.path))?;
        // A broken kernel of this name (no meta.json, another format) makes room.
        remove_tree(&self.target)?;
        fs::rename(&self.path, &self.target).map_err(Error::io("publish", &self.target))?;
        self.published = true;
        match self.target.parent() {
            Some(parent) => sync(parent).map_err(Error::io("sync", parent)),
            None => Ok(()),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes a directory with all below; one that is not there is removed already.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_visible_before_it_is_published() {
        let cache = tempfile::tempdir().unwrap();
        let target = cache.path().join("abc");
        let staging = Staging::new(&target).unwrap();
        staging.write("vmlinux", b"kernel").unwrap();
        assert!(!target.exists());
        staging.publish().unwrap();
        assert_eq!(fs::read(target.join("vmlinux")).unwrap(), b"kernel");
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_abandoned_is_gone_and_what_was_killed_is_replaced() {
        let cache = tempfile::tempdir().unwrap();
        let target = cache.path().join("abc");
        drop(Staging::new(&target).unwrap());
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);

        let killed = Staging::new(&target).unwrap();
        killed.write("old", b"").unwrap();
        std::mem::forget(killed);
        let next = Staging::new(&target).unwrap();
        next.write("new", b"").unwrap();
        next.publish().unwrap();
        assert!(target.join("new").exists() && !target.join("old").exists());
    }
}
