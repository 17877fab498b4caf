//! Disks that exist already, opened for a VM and locked.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::loops;
use crate::child;
use crate::probe::{self, RootImage, probe_file};

/// Why a file cannot be a VM's disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened.
    #[error("cannot open the disk {path}: {source}")]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a pipe or the like.
    #[error("cannot use {path} as a disk: it is neither a file nor a block device")]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// Another VM has it.
    #[error(
        "the disk {path} is in use: one VM may write to a disk, or several may read it (`:ro`), \
         and the host must not have it mounted; wait until the other has ended"
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The host has it as a loop device.
    #[error(
        "the disk {path} is the host's {device}; unmount it there first, or `losetup -d {device}`"
    )]
    Loop {
        /// The path.
        path: PathBuf,
        /// The device.
        device: String,
    },
    /// It has no file system that a guest mounts.
    #[error(transparent)]
    Content(#[from] probe::Error),
    /// It has a file system, but not ext4.
    #[error(
        "cannot use {path} as a disk: it has {found}, and guests mount ext4 ones; \
         `mkfs.ext4` makes one"
    )]
    NotExt4 {
        /// The path.
        path: PathBuf,
        /// What it has.
        found: &'static str,
    },
    /// It would have to be written to before it can be read.
    #[error(
        "cannot mount {path} read-only: it was not unmounted and its journal has to be replayed; \
         run `e2fsck -p {path}` first"
    )]
    NeedsRecovery {
        /// The path.
        path: PathBuf,
    },
}

/// Opens an ext4 image for a VM. The lock is that of the open file, so it lasts
/// until the last descriptor of it is closed, wherever that was passed on to:
/// shared for `read_only`, exclusive otherwise. It is never waited for. A block
/// device that is written to is claimed, so that nobody mounts it meanwhile.
///
/// # Errors
///
/// It cannot be opened, somebody else has it, or it has no ext4 file system that
/// can be mounted so.
pub fn open(path: &Path, read_only: bool) -> Result<File, OpenError> {
    let failed = |source| OpenError::Open {
        path: path.to_owned(),
        source,
    };
    // A FIFO must not be waited for, a terminal not become ours.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(OpenError::Kind {
            path: path.to_owned(),
        });
    }
    let file = if kind.is_block_device() && !read_only {
        claim(&file, path)?
    } else {
        file
    };
    lock(&file, path, read_only)?;
    if let Some(found) = loops::of(Path::new(loops::BLOCK_DEVICES), &metadata)
        && !(read_only && found.read_only)
    {
        return Err(OpenError::Loop {
            path: path.to_owned(),
            device: found.device,
        });
    }
    // After the lock: nobody changes it now.
    let found = match probe_file(path, &file)? {
        RootImage::Ext4 {
            needs_recovery: true,
            ..
        } if read_only => {
            return Err(OpenError::NeedsRecovery {
                path: path.to_owned(),
            });
        }
        RootImage::Ext4 { .. } => return Ok(file),
        RootImage::Erofs { .. } => "an EROFS file system",
        RootImage::Directory => "a directory",
    };
    Err(OpenError::NotExt4 {
        path: path.to_owned(),
        found,
    })
}

/// A block device that nobody has mounted or otherwise claimed, for us alone
/// (open(2), `O_EXCL`).
fn claim(device: &File, path: &Path) -> Result<File, OpenError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::EXCL.bits().cast_signed())
        .open(format!("/proc/self/fd/{}", device.as_raw_fd()));
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => OpenError::InUse {
            path: path.to_owned(),
        },
        _ => OpenError::Open {
            path: path.to_owned(),
            source,
        },
    })
}

/// Takes the lock of a disk without waiting.
pub(crate) fn lock(file: &File, path: &Path, shared: bool) -> Result<(), OpenError> {
    match child::try_lock(file, shared) {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(OpenError::Open {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::disk::create;

    fn disk(directory: &Path) -> PathBuf {
        let path = directory.join("disk.ext4");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        create(&file, 16 << 20, &Cache::at(directory.join("cache"))).unwrap();
        path
    }

    #[test]
    fn one_writes_or_several_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = disk(dir.path());
        let writer = open(&path, false).unwrap();
        for read_only in [true, false] {
            let refused = open(&path, read_only).unwrap_err();
            assert!(refused.to_string().contains("is in use"), "{refused}");
        }
        // The lock goes with the descriptor, not with who took it.
        let passed_on = writer.try_clone().unwrap();
        drop(writer);
        assert!(matches!(open(&path, true), Err(OpenError::InUse { .. })));
        drop(passed_on);
        let _readers = [open(&path, true).unwrap(), open(&path, true).unwrap()];
        assert!(matches!(open(&path, false), Err(OpenError::InUse { .. })));
    }

    #[test]
    fn what_is_no_ext4_disk_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let garbage = dir.path().join("garbage");
        std::fs::write(&garbage, vec![7; 4096]).unwrap();
        let missing = dir.path().join("missing");
        for (path, reason) in [
            (dir.path(), "cannot open the disk"),
            (missing.as_path(), "No such file"),
            (garbage.as_path(), "is not a file system image"),
            (Path::new("/dev/null"), "neither a file nor a block device"),
        ] {
            let refused = open(path, false).unwrap_err().to_string();
            assert!(refused.contains(reason), "{refused}");
            assert!(refused.contains(path.to_str().unwrap()), "{refused}");
        }
        let refused = open(dir.path(), true).unwrap_err().to_string();
        assert!(refused.contains("neither a file"), "{refused}");
    }

    #[test]
    fn a_disk_that_was_not_unmounted_is_not_mounted_read_only() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let path = disk(dir.path());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        // `s_feature_incompat`, bit `RECOVER`.
        let mut incompat = [0; 4];
        file.read_exact_at(&mut incompat, 1024 + 96).unwrap();
        incompat[0] |= 4;
        file.write_all_at(&incompat, 1024 + 96).unwrap();
        let refused = open(&path, true).unwrap_err().to_string();
        assert!(refused.contains("e2fsck -p"), "{refused}");
        open(&path, false).unwrap();
    }
}
