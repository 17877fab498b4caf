//! Disks of a VM, open and locked.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flashpan_rootfs::cache::Cache;
use flashpan_rootfs::disk;
use flashpan_rootfs::volume::Volumes;

use super::error::LaunchError;
use super::options::UpperSource;
use crate::api;
use crate::disk::{Disk, Upper};

const MIB: u64 = 1024 * 1024;

/// What a host path begins with that is the name of a volume.
const VOLUME: char = '@';

/// A disk of the user's. VMs that have it one after the other have the same open
/// file.
#[derive(Debug)]
pub(super) struct OpenDisk {
    mount: api::DiskMount,
    file: File,
}

impl OpenDisk {
    pub(super) fn open(mount: &api::DiskMount) -> Result<Self, LaunchError> {
        let file = match mount.host_path.strip_prefix(VOLUME) {
            Some(name) => Volumes::user()?.open(name, mount.readonly)?,
            None => disk::open(Path::new(&mount.host_path), mount.readonly)?,
        };
        let mount = mount.clone();
        Ok(Self { mount, file })
    }

    /// For one VM.
    pub(super) fn disk(&self) -> Result<Disk, LaunchError> {
        let file = duplicate(&self.file, Path::new(&self.mount.host_path))?;
        Ok(Disk::new(file, &self.mount.guest_mount).read_only(self.mount.readonly))
    }

    pub(super) fn is_kept(&self) -> bool {
        !self.mount.readonly
    }

    pub(super) fn guest_mount(&self) -> &str {
        &self.mount.guest_mount
    }

    /// Where its file is.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        if self.mount.host_path.starts_with(VOLUME) {
            return Some(Volumes::user().ok()?.directory().to_owned());
        }
        parent(Path::new(&self.mount.host_path))
    }
}

/// What takes the writes to the root, as far as it is open.
#[derive(Debug)]
pub(super) enum OpenUpper {
    Memory,
    ReadOnly,
    Scratch {
        mib: u64,
        /// The disk of the first VM.
        first: Mutex<Option<File>>,
    },
    Disk {
        path: PathBuf,
        file: File,
    },
}

impl OpenUpper {
    /// Whether there can be such a thing.
    pub(super) fn check(source: &UpperSource, mib: u64) -> Result<(), LaunchError> {
        match source {
            UpperSource::Memory | UpperSource::ReadOnly => Ok(()),
            UpperSource::Scratch | UpperSource::Disk(_) => {
                Ok(disk::check_size(mib.saturating_mul(MIB))?)
            }
        }
    }

    pub(super) fn open(source: &UpperSource, mib: u64) -> Result<Self, LaunchError> {
        Ok(match source {
            UpperSource::Memory => Self::Memory,
            UpperSource::ReadOnly => Self::ReadOnly,
            UpperSource::Scratch => Self::Scratch {
                mib,
                first: Mutex::new(Some(scratch(mib)?)),
            },
            UpperSource::Disk(path) => {
                let size = mib.saturating_mul(MIB);
                let file = disk::kept(path, size, &Cache::user()?);
                let file = file.map_err(|source| LaunchError::KeptDisk {
                    path: path.clone(),
                    source,
                })?;
                Self::Disk {
                    path: path.clone(),
                    file,
                }
            }
        })
    }

    /// For one VM.
    pub(super) fn upper(&self) -> Result<Upper, LaunchError> {
        Ok(match self {
            Self::Memory => Upper::Memory,
            Self::ReadOnly => Upper::ReadOnly,
            Self::Scratch { mib, first } => {
                let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
                Upper::Scratch(match first {
                    Some(disk) => disk,
                    None => scratch(*mib)?,
                })
            }
            Self::Disk { path, file } => Upper::Disk(duplicate(file, path)?),
        })
    }

    pub(super) fn is_kept(&self) -> bool {
        matches!(self, Self::Disk { .. })
    }

    /// Where it takes room.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        match self {
            Self::Disk { path, .. } => parent(path),
            _ => Some(Cache::user().ok()?.path().to_owned()),
        }
    }
}

fn scratch(mib: u64) -> Result<File, LaunchError> {
    Ok(disk::scratch(mib.saturating_mul(MIB), &Cache::user()?)?)
}

fn parent(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    Some(path.parent()?.to_owned())
}

fn duplicate(file: &File, path: &Path) -> Result<File, LaunchError> {
    file.try_clone().map_err(|source| LaunchError::Duplicate {
        path: path.to_owned(),
        source,
    })
}
