//! Directories in the upper layer of an overlay. They hide those of the image, so
//! they have to look like them.

use std::fs::{File, FileTimes, Metadata, create_dir, set_permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

/// A directory in the upper layer.
#[derive(Debug)]
pub(crate) struct Twin {
    path: PathBuf,
    /// What its times were before anything was put into it.
    times: Option<FileTimes>,
}

impl Twin {
    /// Makes the directory `path`, unless it is there from an earlier run, with
    /// the owner and mode of `model`, if that is there.
    pub(crate) fn make(path: PathBuf, model: &Path) -> io::Result<Self> {
        let model = existing_directory(model)?;
        let existing = match create_dir(&path) {
            Ok(()) => None,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Not necessarily a directory: a program had its way with it.
                Some(path.symlink_metadata()?)
                    .filter(Metadata::is_dir)
                    .map_or(Err(error), |meta| Ok(Some(meta)))?
            }
            Err(error) => return Err(error),
        };
        if let (None, Some(model)) = (&existing, &model) {
            chown(&path, Some(model.uid()), Some(model.gid()))?;
            set_permissions(&path, model.permissions())?;
        }
        let times = existing.or(model).map(|meta| times(&meta)).transpose()?;
        Ok(Self { path, times })
    }

    /// Sets the times back, when all is in it that should not show.
    pub(crate) fn settle(&self) -> io::Result<()> {
        match self.times {
            Some(times) => File::open(&self.path)?.set_times(times),
            None => Ok(()),
        }
    }
}

fn existing_directory(path: &Path) -> io::Result<Option<Metadata>> {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => Ok(Some(meta)),
        Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn times(meta: &Metadata) -> io::Result<FileTimes> {
    Ok(FileTimes::new()
        .set_accessed(meta.accessed()?)
        .set_modified(meta.modified()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::testing::unique;

    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("{name}-{}", unique()));
        create_dir(&place).unwrap();
        place
    }

    #[test]
    fn it_looks_like_the_model_whatever_is_put_into_it() {
        let place = place("twin");
        let (model, twin) = (place.join("model"), place.join("twin"));
        create_dir(&model).unwrap();
        set_permissions(&model, PermissionsExt::from_mode(0o1751)).unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5_000);
        let old = FileTimes::new().set_accessed(then).set_modified(then);
        File::open(&model).unwrap().set_times(old).unwrap();
        // Made the first time, found the second.
        for file in ["a", "b"] {
            let made = Twin::make(twin.clone(), &model).unwrap();
            File::create(twin.join(file)).unwrap();
            assert_ne!(twin.metadata().unwrap().modified().unwrap(), then);
            made.settle().unwrap();
            let meta = twin.metadata().unwrap();
            assert_eq!(meta.modified().unwrap(), then);
            assert_eq!(meta.permissions().mode() & 0o7777, 0o1751);
        }
        std::fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn a_model_may_be_missing_and_nothing_but_a_directory_is_one() {
        let place = place("twin-none");
        let twin = place.join("twin");
        Twin::make(twin.clone(), &place.join("none"))
            .unwrap()
            .settle()
            .unwrap();
        assert!(twin.is_dir());
        let file = place.join("file");
        File::create(&file).unwrap();
        Twin::make(place.join("other"), &file).unwrap_err();
        assert!(!place.join("other").exists());
        Twin::make(file, &place).unwrap_err();
        std::fs::remove_dir_all(place).unwrap();
    }
}
