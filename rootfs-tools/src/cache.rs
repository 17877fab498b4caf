//! The cache of images: whole files or nothing, one builder at a time.
//!
//! A group is what one source (a host directory, a busybox) was turned
//! into; it keeps one file, the newest, named after the source's state:
//! `<group>-<key>.<extension>`. Who builds holds the lock of the group, writes
//! a new `<group>.partial`, syncs it and renames it. A builder that is killed
//! leaves a partial file, which goes with the next build of any group. So does what
//! nobody has used for [`UNUSED`]. A file that is replaced or dropped is only
//! unlinked, so that a VM that has it open keeps it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::child;

/// After this long without use a file is dropped: what it was made of may be
/// gone.
pub const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);

/// Use is noted, as the time of modification, no more often than this.
const NOTED: Duration = Duration::from_secs(24 * 3600);

/// Ending of what is being made.
const PARTIAL: &str = "partial";

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing says where the user's cache is.
    #[error("cannot find the cache directory: neither XDG_CACHE_HOME nor HOME is an absolute path")]
    NoHome,
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried: a verb and what comes between it and the path.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Makes the error of an operation on a path.
fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// A cache directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's: `$XDG_CACHE_HOME/flashpan`, or `~/.cache/flashpan`.
    /// It need not exist.
    ///
    /// # Errors
    ///
    /// [`Error::NoHome`].
    pub fn user() -> Result<Self, Error> {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .ok_or(Error::NoHome)?;
        Ok(Self::at(base.join("flashpan")))
    }

    /// The cache in `root`, which need not exist.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The group `name` of files `*.extension` in `folder` of the cache.
    pub(crate) fn group(
        &self,
        folder: &str,
        name: &str,
        extension: &'static str,
    ) -> Result<Group, Error> {
        let directory = self.root.join(folder);
        // Images can hold what only their owner may read, such as /etc/shadow.
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&directory);
        made.map_err(failed("make the cache directory", &directory))?;
        Ok(Group {
            directory,
            name: name.to_owned(),
            extension,
        })
    }
}

/// A finished file of the cache, open for reading.
#[derive(Debug)]
pub struct Cached {
    /// The file. It stays readable when the cache replaces it.
    pub file: File,
    /// Where it is, for messages and programs that want a path.
    pub path: PathBuf,
    /// Was it made now, or found?
    pub made: bool,
}

/// What one source was turned into; see the module.
#[derive(Debug)]
pub(crate) struct Group {
    directory: PathBuf,
    name: String,
    extension: &'static str,
}

impl Group {
    fn path(&self, key: &str) -> PathBuf {
        self.directory
            .join(format!("{}-{key}.{}", self.name, self.extension))
    }

    /// The finished file for a state of the source, if there is one.
    pub(crate) fn find(&self, key: &str) -> Result<Option<Cached>, Error> {
        let path = self.path(key);
        match File::open(&path) {
            Ok(file) => {
                if age(&file).is_some_and(|age| age > NOTED) {
                    // Somebody else's cache cannot be noted in.
                    let _ = file.set_modified(SystemTime::now());
                }
                Ok(Some(Cached {
                    file,
                    path,
                    made: false,
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("open the cached image", &path)(error)),
        }
    }

    /// Waits until no one else builds in this group; `waiting` is called once
    /// if that is not at once. The wait has no deadline of its own: a builder
    /// that dies lets go of the lock, and one that lives makes what is wanted.
    pub(crate) fn lock(&self, waiting: &mut dyn FnMut()) -> Result<Build<'_>, Error> {
        let path = self.directory.join(format!("{}.lock", self.name));
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open the lock", &path))?;
        match child::try_lock(&lock, false) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                lock.lock().map_err(failed("take the lock", &path))?;
            }
            Err(TryLockError::Error(error)) => return Err(failed("take the lock", &path)(error)),
        }
        let partial = self.directory.join(format!("{}.{PARTIAL}", self.name));
        // Never what a killed builder left: a program that it started may still
        // be writing there.
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &partial)(error));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&partial)
            .map_err(failed("make", &partial))?;
        Ok(Build {
            group: self,
            file,
            partial,
            published: false,
            _lock: lock,
        })
    }
}

/// The right to build the file of a group. Dropped before [`Build::publish`],
/// it leaves nothing.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    group: &'a Group,
    /// Empty at first.
    pub(crate) file: File,
    /// Where `file` is until it is published.
    pub(crate) partial: PathBuf,
    published: bool,
    _lock: File,
}

impl Build<'_> {
    /// Makes what was written the group's file for state `key` of its source
    /// and removes those for other states.
    pub(crate) fn publish(mut self, key: &str) -> Result<Cached, Error> {
        let path = self.group.path(key);
        self.file
            .sync_all()
            .map_err(failed("write", &self.partial))?;
        let file = File::open(&self.partial).map_err(failed("open", &self.partial))?;
        fs::rename(&self.partial, &path).map_err(failed("put the image in place at", &path))?;
        self.published = true;
        let directory = &self.group.directory;
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("write", directory))?;
        self.remove_others(&path);
        Ok(Cached {
            file,
            path,
            made: true,
        })
    }

    /// Best effort: what cannot be removed costs room, not correctness.
    fn remove_others(&self, keep: &Path) {
        let prefix = format!("{}-", self.group.name);
        let Ok(entries) = fs::read_dir(&self.group.directory) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let ours = path
                .extension()
                .is_some_and(|found| found == self.group.extension)
                && path
                    .file_name()
                    .and_then(|name| name.to_str())
                    .is_some_and(|name| name.starts_with(&prefix));
            if (ours && path != keep) || self.is_unused(&path) {
                let _ = fs::remove_file(&path);
            } else if path.extension().is_some_and(|found| found == PARTIAL) {
                remove_abandoned(&path);
            }
        }
    }

    fn is_unused(&self, path: &Path) -> bool {
        path.extension()
            .is_some_and(|found| found == self.group.extension)
            && File::open(path)
                .ok()
                .and_then(|file| age(&file))
                .is_some_and(|age| age > UNUSED)
    }
}

/// Removes what a killed builder left: nobody has the lock of its group.
fn remove_abandoned(partial: &Path) {
    let lock = OpenOptions::new()
        .write(true)
        .open(partial.with_extension("lock"));
    if let Ok(lock) = lock
        && child::try_lock(&lock, false).is_ok()
    {
        // Held until the file is gone.
        let _ = fs::remove_file(partial);
    }
}

/// Time since a file was modified; nothing if that is in the future.
fn age(file: &File) -> Option<Duration> {
    file.metadata().ok()?.modified().ok()?.elapsed().ok()
}

impl Drop for Build<'_> {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::mpsc;

    use super::*;

    fn group(cache: &Path) -> Group {
        Cache::at(cache).group("roots", "name", "erofs").unwrap()
    }

    fn names(cache: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(cache.join("roots"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_published_is_found_and_replaces_what_was() {
        let cache = tempfile::tempdir().unwrap();
        let group = group(cache.path());
        assert!(group.find("1").unwrap().is_none());
        for key in ["1", "2"] {
            let mut build = group.lock(&mut || panic!("nobody else builds")).unwrap();
            build.file.write_all(key.as_bytes()).unwrap();
            assert!(build.publish(key).unwrap().made);
        }
        assert!(group.find("1").unwrap().is_none());
        let mut found = group.find("2").unwrap().unwrap();
        assert!(!found.made);
        let mut text = String::new();
        found.file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "2");
        assert_eq!(names(cache.path()), ["name-2.erofs", "name.lock"]);
    }

    #[test]
    fn what_a_killed_builder_started_writes_nowhere() {
        let cache = tempfile::tempdir().unwrap();
        let group = group(cache.path());
        let killed = group.lock(&mut || {}).unwrap();
        let mut orphan = killed.file.try_clone().unwrap();
        // As a kill does: nothing is cleaned up, the lock is free.
        killed._lock.unlock().unwrap();
        std::mem::forget(killed);
        let mut build = group.lock(&mut || panic!("nobody else builds")).unwrap();
        build.file.write_all(b"whole").unwrap();
        orphan.write_all(b"garbage").unwrap();
        let published = build.publish("1").unwrap();
        assert_eq!(fs::read(published.path).unwrap(), b"whole");
    }

    #[test]
    fn a_build_that_is_given_up_leaves_nothing_visible() {
        let cache = tempfile::tempdir().unwrap();
        let group = group(cache.path());
        let mut build = group.lock(&mut || {}).unwrap();
        build.file.write_all(b"half").unwrap();
        assert!(group.find("1").unwrap().is_none());
        drop(build);
        assert_eq!(names(cache.path()), ["name.lock"]);
    }

    #[test]
    fn a_build_takes_out_what_is_abandoned_or_unused() {
        let cache = tempfile::tempdir().unwrap();
        let group = |name| {
            Cache::at(cache.path())
                .group("roots", name, "erofs")
                .unwrap()
        };
        for (name, age) in [("old", UNUSED * 2), ("recent", NOTED * 2)] {
            let group = group(name);
            let made = group.lock(&mut || {}).unwrap().publish("1").unwrap();
            let file = OpenOptions::new().write(true).open(&made.path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        // Killed while it built, and still building.
        drop(group("killed").lock(&mut || {}).unwrap());
        fs::write(cache.path().join("roots/killed.partial"), "half").unwrap();
        let busy = group("busy");
        let _building = busy.lock(&mut || {}).unwrap();

        assert!(group("recent").find("1").unwrap().is_some());
        group("new").lock(&mut || {}).unwrap().publish("1").unwrap();
        let left: Vec<_> = names(cache.path())
            .into_iter()
            .filter(|name| !name.ends_with(".lock"))
            .collect();
        assert_eq!(left, ["busy.partial", "new-1.erofs", "recent-1.erofs"]);
        // Its use was noted.
        let recent = File::open(cache.path().join("roots/recent-1.erofs")).unwrap();
        assert!(age(&recent).unwrap() < NOTED);
    }

    #[test]
    fn the_second_builder_waits_for_the_first() {
        let cache = tempfile::tempdir().unwrap();
        let path = cache.path().to_owned();
        let first = group(&path);
        let build = first.lock(&mut || {}).unwrap();
        let (tell, told) = mpsc::channel();
        let second = std::thread::spawn(move || {
            let group = group(&path);
            let _build = group.lock(&mut || tell.send(()).unwrap()).unwrap();
            group.find("1").unwrap().is_some()
        });
        told.recv().unwrap();
        build.publish("1").unwrap();
        assert!(
            second.join().unwrap(),
            "the second sees what the first has made"
        );
    }
}
