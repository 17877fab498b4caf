//! A disk in a file of a given name, made the first time that it is wanted.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{Error, OpenError, create, lock, open};
use crate::cache::Cache;

/// Why such a disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It is there and cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its file system cannot be made.
    #[error(transparent)]
    Make(#[from] Error),
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// The disk in the file `path`, opened and locked for writing as by [`open`]. If
/// there is no such file it is made, with an empty file system of `size` bytes, in
/// a directory that there is. It is never there by half: it is made beside its
/// place as `.NAME.new`, and what a killed process left of that is overwritten.
///
/// # Errors
///
/// It is in use or no such disk; or it cannot be made.
pub fn kept(path: &Path, size: u64, cache: &Cache) -> Result<File, KeptError> {
    match open(path, false) {
        Err(OpenError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        opened => return Ok(opened?),
    }
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let partial = path.with_file_name(name);
    let failed = |what, path: &Path, source| KeptError::Io {
        what,
        path: path.to_owned(),
        source,
    };
    let file = begin(&partial, failed)?;
    let made = create(&file, size, cache).map_err(KeptError::from);
    let made = made.and_then(|()| {
        let synced = file.sync_all();
        synced.map_err(|e| failed("write", &partial, e))
    });
    if let Err(error) = made {
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    match renameat_with(CWD, &partial, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // Another one was faster; what it made is as good.
        Err(rustix::io::Errno::EXIST) => {
            let _ = fs::remove_file(&partial);
        }
        // A file system that cannot do it in one step. Who gets here has the lock of
        // the file that is named.
        Err(rustix::io::Errno::INVAL) => {
            fs::rename(&partial, path).map_err(|e| failed("name", path, e))?;
        }
        Err(error) => return Err(failed("name", path, error.into())),
    }
    // The lock goes with the file; it is taken again like anybody else's.
    drop(file);
    Ok(open(path, false)?)
}

/// The file in which a disk is made, locked and empty.
fn begin(
    path: &Path,
    failed: impl Fn(&'static str, &Path, io::Error) -> KeptError,
) -> Result<File, KeptError> {
    loop {
        let making = |source| failed("make", path, source);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(making)?;
        lock(&file, path, false)?;
        // Whoever had the lock before may have given the file its name.
        let ours = file.metadata().map_err(making)?.ino();
        if fs::metadata(path).is_ok_and(|there| there.ino() == ours) {
            let private = fs::Permissions::from_mode(0o600);
            file.set_permissions(private).map_err(making)?;
            return Ok(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SIZE_MIN;
    use super::*;

    #[test]
    fn a_disk_is_made_once_and_is_the_same_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        let path = dir.path().join("upper.ext4");
        // What somebody left who was killed while making it.
        fs::write(dir.path().join(".upper.ext4.new"), "half").unwrap();
        let disk = kept(&path, SIZE_MIN, &cache).unwrap();
        let ino = disk.metadata().unwrap().ino();
        assert_eq!(disk.metadata().unwrap().len(), SIZE_MIN);
        assert_eq!(disk.metadata().unwrap().mode() & 0o777, 0o600);
        assert!(!dir.path().join(".upper.ext4.new").exists());
        let refused = kept(&path, SIZE_MIN, &cache).unwrap_err();
        assert!(
            matches!(refused, KeptError::Open(OpenError::InUse { .. })),
            "{refused}"
        );
        drop(disk);
        // Another size is for the next disk, not for this one.
        let again = kept(&path, SIZE_MIN * 2, &cache).unwrap();
        assert_eq!(again.metadata().unwrap().ino(), ino);
        assert_eq!(again.metadata().unwrap().len(), SIZE_MIN);
    }

    #[test]
    fn what_cannot_be_made_leaves_nothing_that_passes_for_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        let path = dir.path().join("upper.ext4");
        assert!(matches!(
            kept(&path, 1, &cache),
            Err(KeptError::Make(Error::Size(1)))
        ));
        let names = fs::read_dir(dir.path()).unwrap();
        assert_eq!(names.count(), 0);
        fs::write(&path, "no disk").unwrap();
        assert!(matches!(
            kept(&path, SIZE_MIN, &cache),
            Err(KeptError::Open(OpenError::Content(_)))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"no disk");
        let nowhere = dir.path().join("none/upper.ext4");
        assert!(matches!(
            kept(&nowhere, SIZE_MIN, &cache),
            Err(KeptError::Io { .. })
        ));
    }
}
