//! Root file systems that come from no container image.

use std::path::Path;
use std::sync::Arc;

use flashpan_protocol::agent::FsType;
use flashpan_rootfs::cache::{Cache, Cached};
use flashpan_rootfs::probe::{self, RootImage};
use flashpan_rootfs::{builtin, directory};

use super::error::LaunchError;
use super::progress::{Event, Progress};
use crate::config::Root;

/// The root in a directory or an image file. A directory is made into an image if
/// it is not as it was, which may take minutes.
pub(super) fn from_path(path: &Path, progress: &dyn Progress) -> Result<Root, LaunchError> {
    // Opened once: what is looked at here, and locked, is what the VMM gets.
    let (image, file) = probe::open(path)?;
    let fs_type = match image {
        RootImage::Directory => return from_directory(path, progress),
        RootImage::Erofs { compressed, .. } => {
            if compressed {
                let path = path.display();
                progress.on(Event::Warning(format!(
                    "{path} is compressed, which flashpan's own kernels cannot read; make it without -z"
                )));
            }
            FsType::Erofs
        }
        RootImage::Ext4 {
            needs_recovery: true,
            ..
        } => return Err(LaunchError::RootNeedsRecovery(path.to_owned())),
        RootImage::Ext4 { .. } => FsType::Ext4,
    };
    Ok(Root::opened(path, Arc::new(file), fs_type))
}

fn from_directory(path: &Path, progress: &dyn Progress) -> Result<Root, LaunchError> {
    let what = format!("image of {}", path.display());
    let mut tell = |event| {
        let what = what.clone();
        progress.on(Event::Root { what, event });
    };
    let options = directory::Options::default();
    let cached = directory::image(path, &options, &Cache::user()?, &mut tell)?;
    Ok(of_cache(cached))
}

/// The built-in root.
pub(super) fn built_in(progress: &dyn Progress) -> Result<Root, LaunchError> {
    let mut tell = |event| {
        let what = "built-in root file system".to_owned();
        progress.on(Event::Root { what, event });
    };
    let cached = builtin::image(&Cache::user()?, &mut tell)?;
    Ok(of_cache(cached))
}

fn of_cache(cached: Cached) -> Root {
    Root::opened(cached.path, Arc::new(cached.file), FsType::Erofs)
}
