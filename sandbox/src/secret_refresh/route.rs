//! Which way leads to a file, through directories and links, and what changes of it mean.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::inotify::{ReadFlags, WatchFlags};

use crate::state::{Change, Watches};

/// Most links on a way, as the kernel has it.
const MAX_LINKS: usize = 40;

/// Most directories on a way.
const MAX_STEPS: usize = 1024;

/// How often a way is gone again that is changed meanwhile.
const MAX_TRIES: usize = 16;

/// That a directory is another now.
const OF_DIRECTORY: WatchFlags = WatchFlags::MOVE_SELF
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ONLYDIR);

/// That a name in a directory leads elsewhere now.
const OF_NAME: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE);

/// That a file in a directory has been written, or may be read now.
const OF_FILE: WatchFlags = WatchFlags::CLOSE_WRITE.union(WatchFlags::ATTRIB);

/// A way to a file, as it was when it was gone. Everything on it is watched.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Route {
    /// All directories.
    directories: BTreeSet<i32>,
    /// Names on the way that are links, and the directories that they are in.
    links: BTreeSet<(i32, OsString)>,
    /// The file, or the first name that is not there.
    last: Option<(i32, OsString)>,
    /// What the file is: device and number. `None` if it is not there.
    file: Option<(u64, u64)>,
    /// Whether it has other names.
    is_linked: bool,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// Nothing.
    Same,
    /// It is another, or there is none: it has to be found again.
    Begun,
    /// It may be read now, if it could not be.
    Attributes,
    /// It is whole, or what leads to it is.
    Whole,
}

impl Route {
    /// Goes the way to a file. What is looked at is watched before: nothing that changes
    /// after it is missed.
    pub(super) fn to(path: &Path, watches: &mut Watches) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let mut tries = 0;
        loop {
            tries += 1;
            match Self::once(&path, watches) {
                // A directory is gone that was there just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < MAX_TRIES => {}
                gone => return gone,
            }
        }
    }

    fn once(path: &Path, watches: &mut Watches) -> io::Result<Self> {
        let mut route = Self::default();
        let mut at = PathBuf::from("/");
        let mut rest = parts(path);
        let (mut links, mut steps) = (0, 0);
        let mut watch = watches.add(&at, OF_DIRECTORY).ok();
        route.directories.extend(watch);
        while let Some(name) = rest.pop_front() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(io::Error::other("it is in too many directories"));
            }
            if name == ".." {
                at.pop();
                watch = watches.add(&at, OF_DIRECTORY).ok();
                route.directories.extend(watch);
                continue;
            }
            let next = at.join(&name);
            let is_last = rest.is_empty();
            let seen = || match std::fs::symlink_metadata(&next) {
                Ok(seen) => Ok(Some(seen)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            };
            // Whatever is no directory to go through may become another by its name.
            if is_last || seen()?.is_none_or(|seen| !seen.is_dir()) {
                let named = watches.add(&at, OF_NAME | OF_FILE | OF_DIRECTORY)?;
                (watch, route.last) = (Some(named), Some((named, name.clone())));
                route.directories.insert(named);
            }
            let Some(seen) = seen()? else {
                return Ok(route);
            };
            if seen.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::other("it is behind too many links"));
                }
                route.links.extend(watch.map(|watch| (watch, name)));
                let target = std::fs::read_link(&next)?;
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                for part in parts(&target).into_iter().rev() {
                    rest.push_front(part);
                }
            } else if is_last {
                route.file = Some((seen.dev(), seen.ino()));
                route.is_linked = seen.nlink() > 1;
            } else if !seen.is_dir() {
                return Ok(route);
            } else {
                at = next;
                // One that may be gone through but not looked into is not followed itself.
                watch = watches.add(&at, OF_DIRECTORY).ok();
                route.directories.extend(watch);
            }
        }
        Ok(route)
    }

    /// The numbers of all that is watched.
    pub(super) fn watches(&self) -> &BTreeSet<i32> {
        &self.directories
    }

    pub(super) fn is_there(&self) -> bool {
        self.file.is_some()
    }

    /// Whether a file that has only just been made is whole: one that leads elsewhere than
    /// before, or that had another name before.
    pub(super) fn is_whole_after(&self, before: &Self) -> bool {
        self.is_linked || self.last != before.last
    }

    /// What a change means to the file.
    pub(super) fn fate(&self, change: &Change) -> Fate {
        let of_self =
            ReadFlags::MOVE_SELF | ReadFlags::DELETE_SELF | ReadFlags::IGNORED | ReadFlags::UNMOUNT;
        if !self.directories.contains(&change.watch) {
            return Fate::Same;
        }
        let Some(name) = &change.name else {
            return match change.what.intersects(of_self) {
                true => Fate::Whole,
                false => Fate::Same,
            };
        };
        let is_it = |of: &(i32, OsString)| of.0 == change.watch && of.1 == *name;
        let of_name =
            ReadFlags::CREATE | ReadFlags::MOVED_TO | ReadFlags::MOVED_FROM | ReadFlags::DELETE;
        if self.links.iter().any(is_it) {
            return match change.what.intersects(of_name) {
                true => Fate::Whole,
                false => Fate::Same,
            };
        }
        if !self.last.as_ref().is_some_and(is_it) {
            return Fate::Same;
        }
        if change
            .what
            .intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO)
        {
            Fate::Whole
        } else if change.what.intersects(of_name) {
            Fate::Begun
        } else if change.what.intersects(ReadFlags::ATTRIB) {
            Fate::Attributes
        } else {
            Fate::Same
        }
    }
}

/// What a path goes through, without what leads nowhere else.
fn parts(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.collect()
}
