//! Full disks: which directory has no room, how much there is, what gives more.

use std::error::Error;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use flashpan_rootfs::cache::Cache;
use nix::sys::statvfs::statvfs;

use crate::failure::Failure;
use crate::image::size;

/// A failure of work that writes to `directories`. If there was no room for it,
/// the message goes on with the place, and `needed` bytes if that is known.
pub(crate) fn failure(
    error: &(dyn Error + 'static),
    directories: &[&Path],
    needed: Option<u64>,
) -> Failure {
    if !is_full(error) {
        return Failure::new(error);
    }
    // Of several places the one with the least room is the one that matters.
    let places = directories.iter().filter_map(|path| Place::of(path));
    match places.min_by_key(|place| place.free) {
        Some(place) => Failure::new(format!("{error}; {}", place.advice(needed))),
        None => Failure::new(error),
    }
}

/// What to say of a directory that had no room for a guest's writes.
pub(crate) fn advice(directory: &Path) -> String {
    let advice = Place::of(directory).map(|place| place.advice(None));
    advice.unwrap_or_else(|| directory.display().to_string())
}

/// Is it, at the bottom, that a file system or a quota is used up?
fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        cause = error.source();
    }
    // Of a program such as mkfs there are only words.
    error.to_string().contains("No space left on device")
}

struct Place<'a> {
    directory: &'a Path,
    /// Bytes that this user may still write.
    free: u64,
    /// The store of images is in the same file system.
    has_images: bool,
}

impl<'a> Place<'a> {
    fn of(path: &'a Path) -> Option<Self> {
        // Of what was to be made there may be only the beginning.
        let directory = path.ancestors().find(|path| path.is_dir())?;
        let system = statvfs(directory).ok()?;
        let device = |path: &Path| std::fs::metadata(path).map(|of| of.dev()).ok();
        let cache = Cache::user().ok();
        let images = cache.and_then(|cache| device(cache.path()));
        Some(Self {
            directory,
            free: system
                .blocks_available()
                .saturating_mul(system.fragment_size()),
            has_images: images.is_some() && images == device(directory),
        })
    }

    fn advice(&self, needed: Option<u64>) -> String {
        let directory = self.directory.display();
        let free = size(self.free);
        let needed = match needed {
            Some(bytes) => format!(", and more than {} is needed", size(bytes)),
            None => String::new(),
        };
        let remedy = match self.has_images {
            true => "`flashpan image gc --layers` or `flashpan volume rm` makes room",
            false => "remove what is not needed there, e.g. with `flashpan volume rm`",
        };
        format!("{directory} has {free} free now{needed}; {remedy}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Wrapped(io::Error);

    impl std::fmt::Display for Wrapped {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("cannot write it")
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_full_disk_is_told_with_its_place_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("not/made/yet");
        let of = |kind: io::ErrorKind| {
            let error = Wrapped(kind.into());
            failure(&error, &[&missing], Some(3 << 20))
                .message()
                .to_owned()
        };
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let text = of(kind);
            let begin = format!("cannot write it; {} has ", dir.path().display());
            assert!(text.starts_with(&begin), "{text}");
            assert!(text.contains(" free now, and more than 3.0 MB is needed; "));
            assert!(text.contains("`flashpan "), "{text}");
        }
        assert_eq!(of(io::ErrorKind::NotFound), "cannot write it");
        let words = io::Error::other("mkfs.ext4: No space left on device");
        let text = failure(&words, &[dir.path()], None).message().to_owned();
        assert!(text.contains(" free now; "), "{text}");
    }
}
