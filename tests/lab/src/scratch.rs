//! The scratch disk: a sparse ext4 image that keeps caches warm between runs.

use std::fs::{File, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::packages;

/// A disk of our own for as long as this lives.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) path: PathBuf,
    /// Held locked: two labs never share a disk.
    _lock: File,
}

/// How many labs may run at a time.
const SLOTS: u32 = 16;

impl Scratch {
    /// The first disk that no other lab uses, formatted when it is new or has
    /// another size. The first is the one that stays warm.
    pub(crate) fn take(cache: &Path, size: u64) -> Result<Self> {
        for slot in 0..SLOTS {
            let path = cache.join(format!("scratch-{slot}.img"));
            let lock = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .with_context(|| format!("cannot open the scratch disk {}", path.display()))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            if lock.metadata()?.len() != size || !is_formatted(&lock) {
                format(&path, &lock, size)?;
            }
            return Ok(Self { path, _lock: lock });
        }
        bail!(
            "{SLOTS} labs run already, by the locks in {}",
            cache.display()
        );
    }
}

/// Whether mke2fs has been through with it: it writes the superblock last, and
/// that has its magic number 0xEF53 at byte 1080.
fn is_formatted(file: &File) -> bool {
    let mut magic = [0; 2];
    file.read_exact_at(&mut magic, 1080).is_ok() && u16::from_le_bytes(magic) == 0xEF53
}

fn format(path: &Path, file: &File, size: u64) -> Result<()> {
    packages::say(&format!("formatting the scratch disk {}", path.display()));
    file.set_len(0)?;
    file.set_len(size)?;
    let mut mke2fs = Command::new("/sbin/mke2fs");
    mke2fs.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-E",
        "lazy_itable_init=1,root_owner=0:0",
    ]);
    packages::run(mke2fs.arg(path))
}
