//! What prevents a VM before it is started.

use std::io;
use std::path::{Path, PathBuf};

use flashpan_kernel::image::ImageError;
use flashpan_rootfs::image_config::ComposeError;
use flashpan_rootfs::{builtin, cache, directory, disk, probe, reference, registry, store, volume};
use thiserror::Error;

use crate::api::ErrorCode;

/// Why something that a VM is made from cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The kernel is missing or none.
    #[error(transparent)]
    Kernel(#[from] ImageError),
    /// No image is named where the root comes from one.
    #[error("image is required (e.g., alpine:latest)")]
    ImageRequired,
    /// A text names no image.
    #[error(transparent)]
    ImageName(#[from] reference::Error),
    /// The image is not there and may not be pulled.
    #[error("{0}; leave --pull never out to pull it")]
    ImageMissing(Box<store::Error>),
    /// The image is there for another platform and may not be pulled.
    #[error("the image {name} is for {is_for} and not for {wanted}")]
    ImageFor {
        /// The image.
        name: String,
        /// What it is for.
        is_for: String,
        /// What was asked for.
        wanted: String,
    },
    /// No guest can run the image's programs.
    #[error(
        "the image {name} is for {is_for}, and guests are linux/{native}; pull it with --platform linux/{native}"
    )]
    ImageForeign {
        /// The image.
        name: String,
        /// What it is for.
        is_for: String,
        /// The architecture of guests.
        native: &'static str,
    },
    /// The store of images failed, or a pull.
    #[error(transparent)]
    Image(Box<store::Error>),
    /// The image was not pulled before it was to be used.
    #[error("the image is not pulled yet")]
    NotPulled,
    /// No client for registries can be made from the options.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// A root image cannot be used.
    #[error(transparent)]
    Root(#[from] probe::Error),
    /// A root image has a journal that would have to be replayed.
    #[error(
        "cannot use {path} as a root file system: it was not unmounted, and a guest mounts it read-only; run `e2fsck -p {path}` first",
        path = .0.display()
    )]
    RootNeedsRecovery(PathBuf),
    /// No image can be made of a directory.
    #[error(transparent)]
    Directory(#[from] directory::Error),
    /// The built-in root cannot be made.
    #[error(transparent)]
    BuiltIn(#[from] builtin::Error),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] disk::OpenError),
    /// A disk cannot be made.
    #[error(transparent)]
    NewDisk(#[from] disk::Error),
    /// The disk for the writes to the root cannot be used or made.
    #[error("{source}")]
    KeptDisk {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: disk::KeptError,
    },
    /// A volume cannot be used.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The cache cannot be found.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// There is no program to run.
    #[error(transparent)]
    Command(#[from] ComposeError),
    /// The image's own command could not be started.
    #[error("start image entrypoint: {0}")]
    Entrypoint(#[source] Box<crate::Error>),
    /// An open file could not be given to the VM.
    #[error("cannot duplicate a descriptor of {}: {source}", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A thread for what takes long could not be had.
    #[error("cannot get the parts of a VM ready: {0}")]
    Thread(String),
}

impl LaunchError {
    /// The stable name of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Kernel(_) => ErrorCode::KernelUnusable,
            Self::ImageRequired => ErrorCode::ImageRequired,
            Self::ImageName(_)
            | Self::ImageMissing(_)
            | Self::ImageFor { .. }
            | Self::ImageForeign { .. }
            | Self::Image(_)
            | Self::NotPulled
            | Self::Registry(_) => ErrorCode::ImageUnusable,
            Self::Root(_) | Self::RootNeedsRecovery(_) | Self::Directory(_) | Self::BuiltIn(_) => {
                ErrorCode::RootUnusable
            }
            Self::Disk(_) | Self::NewDisk(_) | Self::KeptDisk { .. } | Self::Volume(_) => {
                ErrorCode::DiskUnusable
            }
            Self::Command(_) => ErrorCode::CommandMissing,
            Self::Entrypoint(error) => error.code(),
            Self::Cache(_) | Self::Duplicate { .. } | Self::Thread(_) => ErrorCode::Host,
        }
    }

    /// Directories that the work wrote to which failed: where there may be no room.
    #[must_use]
    pub fn places(&self) -> Vec<PathBuf> {
        let store = || store::Store::user().map(|store| store.path().to_owned());
        let cache = || cache::Cache::user().map(|cache| cache.path().to_owned());
        match self {
            Self::Image(_) => store().into_iter().collect(),
            Self::Directory(_) | Self::BuiltIn(_) => cache().into_iter().collect(),
            Self::KeptDisk { path, .. } => {
                let beside = path.parent().map(Path::to_owned);
                beside.into_iter().chain(cache()).collect()
            }
            Self::NewDisk(_) => cache().into_iter().collect(),
            _ => Vec::new(),
        }
    }
}

impl From<store::Error> for LaunchError {
    fn from(error: store::Error) -> Self {
        Self::Image(Box::new(error))
    }
}
