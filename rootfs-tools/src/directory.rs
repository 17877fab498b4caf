//! A host directory as a root file system.
//!
//! The directory is copied into an EROFS image once. The image is kept in the
//! cache under a fingerprint of the directory's metadata, so that using an
//! unchanged directory again costs a walk and copies nothing. The guest never
//! sees the directory itself.
//!
//! Names, types, modes, owners, mtimes, hard links and extended attributes are
//! kept as they are. Symbolic links are never followed. Other file systems
//! mounted below the directory show as empty directories unless asked for; that
//! is told ([`Event::LeftOut`]).

mod scan;
mod source;
mod walk;

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::cache::{self, Cache, Cached};
use crate::{erofs, tree};

pub use scan::Scan;
pub(crate) use scan::hex;

/// Why a directory could not be made an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something in it cannot be read.
    #[error("cannot read {path}: {source}{}", hint(source))]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something in it cannot be stored in a tree.
    #[error("cannot store {path}: {source}")]
    Unfit {
        /// What.
        path: PathBuf,
        /// Why.
        source: tree::Error,
    },
    /// The image could not be written.
    #[error("cannot make an image of {root}: {source}")]
    Image {
        /// The directory.
        root: PathBuf,
        /// Why.
        source: erofs::Error,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] cache::Error),
}

impl Error {
    fn reading(path: &Path) -> impl FnOnce(Errno) -> Self + '_ {
        move |error| Self::Read {
            path: path.to_owned(),
            source: error.into(),
        }
    }
}

/// What to do about an error, where that is not obvious.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => " (all of a root directory has to be readable)",
        _ => "",
    }
}

/// Choices of a walk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Go into other file systems that are mounted below the directory.
    pub cross_file_systems: bool,
}

/// What happens while an image is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This directory has another file system mounted on it and is empty in the
    /// image; told also when the image is there already.
    LeftOut(PathBuf),
    /// Another process makes an image of the same directory; waiting for it.
    Waiting,
    /// Bytes of content copied so far.
    Copied(erofs::Progress),
}

/// The image of the directory `root` from `cache`, made now if the directory
/// is not as it was when it was made last.
///
/// # Errors
///
/// Something in the directory cannot be read or changes meanwhile, or the
/// cache cannot be written. The cache is then as it was.
pub fn image(
    root: &Path,
    options: &Options,
    cache: &Cache,
    event: &mut dyn FnMut(Event),
) -> Result<Cached, Error> {
    let reading = |source| Error::Read {
        path: root.to_owned(),
        source,
    };
    let canonical = fs::canonicalize(root).map_err(reading)?;
    let group = hex(&Sha256::digest(canonical.as_os_str().as_bytes()));
    let group = cache.group("roots", group.get(..16).unwrap_or_default(), "erofs")?;

    let left_out = &mut |path: &Path| event(Event::LeftOut(path.to_owned()));
    let fingerprint = scan::Fingerprint::of(root, options, left_out)?;
    if let Some(cached) = group.find(&fingerprint)? {
        return Ok(cached);
    }
    let build = group.lock(&mut || event(Event::Waiting))?;
    // The state that is copied is the one that this second walk sees; whoever
    // had the lock may have copied it already.
    let scan = Scan::new(root, options)?;
    if let Some(cached) = group.find(&scan.fingerprint)? {
        return Ok(cached);
    }
    let copied = &mut |progress| event(Event::Copied(progress));
    erofs::write(&scan.tree, &erofs::Options::default(), &build.file, copied).map_err(
        |source| Error::Image {
            root: root.to_owned(),
            source,
        },
    )?;
    Ok(build.publish(&scan.fingerprint)?)
}

#[cfg(test)]
mod tests;
