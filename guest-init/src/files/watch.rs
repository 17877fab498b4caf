//! What changes in a directory.
//!
//! The kernel tells of each watched directory by a number, and of what is in it
//! by name; so there is a number per directory here, with the directory above it
//! and its name there. No descriptor of a watched directory is kept: that would
//! keep the kernel from telling its end.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use flashpan_protocol::agent::{Bytes, MAX_DATA};
use flashpan_protocol::file::{
    Change, ChangeKind, FileFailureKind, FileOutput, MAX_ENTRIES, MAX_PATH, MAX_TREE_DEPTH,
    MAX_WATCHES,
};
use flashpan_tree_copy::has_books;
use nix::dir::{Dir, OwningIter, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::fchdir;

use super::link::{Link, Stop, failed, refused};
use super::place::{check, describe, lookup};

/// Most watches of supervisors at a time: they have no end of their own and must
/// not take all places that there are for operations on files.
const WATCHES_AT_ONCE: usize = 16;

/// How long the second half of a move may take, in milliseconds: the kernel
/// tells both in one go, but not in one step.
const MOVE_WITHIN: u16 = 20;

/// Flags to list a directory, and to look names up below one.
const LIST: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// What is told.
const INTEREST: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// The end of the watched directory.
const END: AddWatchFlags = AddWatchFlags::IN_DELETE_SELF
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_UNMOUNT)
    .union(AddWatchFlags::IN_IGNORED);

/// One of [`WATCHES_AT_ONCE`].
struct Place;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Place {
    fn take() -> Option<Self> {
        let more = |taken: usize| (taken < WATCHES_AT_ONCE).then_some(taken.wrapping_add(1));
        let taken = TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        // Only then: one that is dropped gives its place back.
        taken.is_ok().then(|| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A directory that is watched.
#[derive(Debug)]
struct Node {
    wd: WatchDescriptor,
    /// Of the watched directory itself there is none.
    above: Option<WatchDescriptor>,
    name: Vec<u8>,
    /// When it was seen last.
    round: u32,
}

/// Half of a move.
#[derive(Debug)]
struct Moving {
    cookie: u32,
    path: Vec<u8>,
    above: WatchDescriptor,
    name: Vec<u8>,
    directory: bool,
}

struct Watcher<'a> {
    link: &'a mut Link,
    root: &'a OwnedFd,
    path: &'a [u8],
    /// Device and number of the watched directory.
    identity: (u64, u64),
    recursive: bool,
    most: usize,
    inotify: Inotify,
    /// In the order of their numbers.
    nodes: Vec<Node>,
    top: Option<WatchDescriptor>,
    round: u32,
    moving: Option<Moving>,
    changes: Vec<Change>,
    /// Bytes of their paths.
    bytes: usize,
    ended: bool,
}

/// Tells what changes in the directory at `path` until it ends.
pub(super) fn watch(
    link: &mut Link,
    root: &OwnedFd,
    path: &[u8],
    recursive: bool,
    most: u32,
) -> Result<(), Stop> {
    check(path)?;
    let Some(_place) = Place::take() else {
        let message = "16 directories are watched already; end one of them first";
        return Err(refused(FileFailureKind::Resources, message));
    };
    // Directories are named by changing into them, which is for this thread alone.
    unshare(CloneFlags::CLONE_FS).map_err(failed("have a working directory of its own"))?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
    let directory = lookup(root, path, LIST).map_err(failed("open it"))?;
    let stat = fstat(&directory).map_err(failed("look at it"))?;
    let mut watcher = Watcher {
        link,
        root,
        path,
        identity: (stat.st_dev, stat.st_ino),
        recursive,
        most: usize::try_from(most.min(MAX_WATCHES)).unwrap_or(0),
        inotify: inotify.map_err(failed("watch it"))?,
        nodes: Vec::new(),
        top: None,
        round: 0,
        moving: None,
        changes: Vec::new(),
        bytes: 0,
        ended: false,
    };
    watcher.add(directory, None, Vec::new(), false)?;
    watcher.link.send(&FileOutput::Info(describe(&stat)))?;
    while !watcher.ended {
        let events = watcher.wait()?;
        for event in events {
            watcher.take(&event)?;
        }
        if watcher.moving.is_none() {
            watcher.flush()?;
        }
    }
    watcher.flush()
}

impl Watcher<'_> {
    /// Waits for changes; returns none if the second half of a move does not
    /// come.
    fn wait(&mut self) -> Result<Vec<InotifyEvent>, Stop> {
        let timeout = match self.moving {
            Some(_) => PollTimeout::from(MOVE_WITHIN),
            None => PollTimeout::NONE,
        };
        loop {
            let mut both = [
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.link.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut both, timeout) {
                Ok(0) => {
                    self.settle_move()?;
                    return Ok(Vec::new());
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed("wait for changes")(errno)),
            }
            let [_, link] = &both;
            if link.any() == Some(true) {
                // It has nothing to say.
                return Err(Stop::Gone);
            }
            match self.inotify.read_events() {
                Ok(events) => return Ok(events),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(failed("read the changes")(errno)),
            }
        }
    }

    fn take(&mut self, event: &InotifyEvent) -> Result<(), Stop> {
        let has = |flag| event.mask.contains(flag);
        let is_second_half = has(AddWatchFlags::IN_MOVED_TO)
            && self
                .moving
                .as_ref()
                .is_some_and(|moving| moving.cookie == event.cookie);
        if !is_second_half {
            self.settle_move()?;
        }
        if has(AddWatchFlags::IN_Q_OVERFLOW) {
            self.tell(ChangeKind::Overflow, Vec::new(), Vec::new(), false)?;
            return self.look_again();
        }
        let Ok(at) = self.find(event.wd) else {
            // Not watched any more.
            return Ok(());
        };
        if event.mask.intersects(END) {
            if Some(event.wd) == self.top {
                self.ended = true;
                return self.tell(ChangeKind::Removed, Vec::new(), Vec::new(), true);
            }
            if has(AddWatchFlags::IN_IGNORED) {
                self.nodes.remove(at);
            }
            return Ok(());
        }
        let directory = has(AddWatchFlags::IN_ISDIR);
        let Some(name) = event.name.as_ref().map(|name| name.as_bytes().to_vec()) else {
            // Of one below, the directory above it tells the same.
            return match Some(event.wd) == self.top && has(AddWatchFlags::IN_ATTRIB) {
                true => self.tell(ChangeKind::Attributes, Vec::new(), Vec::new(), true),
                false => Ok(()),
            };
        };
        let path = self.path_of(event.wd, &name);
        if has(AddWatchFlags::IN_MOVED_FROM) {
            self.moving = Some(Moving {
                cookie: event.cookie,
                path,
                above: event.wd,
                name,
                directory,
            });
            return Ok(());
        }
        if let (true, Some(moving)) = (is_second_half, self.moving.take()) {
            let moved =
                |node: &&mut Node| node.above == Some(moving.above) && node.name == moving.name;
            if let Some(node) = self.nodes.iter_mut().find(moved) {
                node.above = Some(event.wd);
                node.name = name;
            }
            return self.tell(ChangeKind::Moved, moving.path, path, directory);
        }
        let kind = match () {
            () if has(AddWatchFlags::IN_CREATE) => ChangeKind::Created,
            () if has(AddWatchFlags::IN_MOVED_TO) => ChangeKind::Created,
            () if has(AddWatchFlags::IN_DELETE) => ChangeKind::Removed,
            () if has(AddWatchFlags::IN_MODIFY) => ChangeKind::Modified,
            () => ChangeKind::Attributes,
        };
        self.tell(kind, path.clone(), Vec::new(), directory)?;
        if directory && kind == ChangeKind::Created {
            self.add_at(&path, event.wd, name)?;
        }
        Ok(())
    }

    /// What was moved, and has not come back under another name, is elsewhere
    /// now.
    fn settle_move(&mut self) -> Result<(), Stop> {
        let Some(moving) = self.moving.take() else {
            return Ok(());
        };
        if moving.directory {
            let gone = self
                .nodes
                .iter()
                .find(|node| node.above == Some(moving.above) && node.name == moving.name);
            if let Some(wd) = gone.map(|node| node.wd) {
                self.forget(|watcher, node| watcher.is_below(node, wd));
            }
        }
        self.tell(
            ChangeKind::Removed,
            moving.path,
            Vec::new(),
            moving.directory,
        )
    }

    /// Watches the directory that has come to `path`, and tells what is in it
    /// already.
    fn add_at(&mut self, path: &[u8], above: WatchDescriptor, name: Vec<u8>) -> Result<(), Stop> {
        if !self.recursive {
            return Ok(());
        }
        let directory = self.open_top().and_then(|top| {
            let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
            let how = OpenHow::new().flags(LIST).resolve(resolve);
            openat2(&top, OsStr::from_bytes(path), how)
        });
        match directory {
            Ok(directory) => self.add(directory, Some(above), name, true),
            Err(errno) if is_gone(errno) => Ok(()),
            Err(errno) => Err(failed("open a directory in it")(errno)),
        }
    }

    /// After changes were lost: watches what is there now, and nothing else.
    fn look_again(&mut self) -> Result<(), Stop> {
        self.round = self.round.wrapping_add(1);
        match self.open_top() {
            Ok(top) => self.add(top, None, Vec::new(), false)?,
            // News of its end is on its way.
            Err(errno) if is_gone(errno) => return Ok(()),
            Err(errno) => return Err(failed("open it again")(errno)),
        }
        let round = self.round;
        self.forget(|_, node| node.round != round);
        Ok(())
    }

    /// The watched directory, if it is still where it was.
    fn open_top(&self) -> nix::Result<OwnedFd> {
        let top = lookup(self.root, self.path, LIST)?;
        let stat = fstat(&top)?;
        match (stat.st_dev, stat.st_ino) == self.identity {
            true => Ok(top),
            false => Err(Errno::ENOENT),
        }
    }

    /// Watches a directory, and those in it; with `tell`, tells what is there.
    fn add(
        &mut self,
        directory: OwnedFd,
        above: Option<WatchDescriptor>,
        name: Vec<u8>,
        tell: bool,
    ) -> Result<(), Stop> {
        let mut levels: Vec<(WatchDescriptor, OwnedFd, OwningIter)> = Vec::new();
        let mut next = Some((directory, above, name));
        let result = loop {
            if let Some((directory, above, name)) = next.take() {
                // Before it is listed, so that nothing is made between the two.
                let Some(wd) = self.add_one(&directory, above, name)? else {
                    continue;
                };
                if !self.recursive {
                    break Ok(());
                }
                if levels.len() >= MAX_TREE_DEPTH {
                    let message = "its directories are nested too deep to be watched";
                    break Err(refused(FileFailureKind::TooMany, message));
                }
                let listing = directory
                    .try_clone()
                    .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))
                    .and_then(Dir::from_fd)
                    .map_err(failed("read a directory in it"))?;
                levels.push((wd, directory, listing.into_iter()));
            }
            let Some((wd, directory, listing)) = levels.last_mut() else {
                break Ok(());
            };
            let Some(found) = listing.next() else {
                levels.pop();
                continue;
            };
            let found = found.map_err(failed("read a directory in it"))?;
            let name = found.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let is_directory = match found.file_type() {
                Some(kind) => kind == Type::Directory,
                None => fstatat(&*directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()),
            };
            let (wd, name) = (*wd, name.to_bytes().to_vec());
            let opened = match is_directory {
                true => openat(
                    &*directory,
                    OsStr::from_bytes(&name),
                    LIST | OFlag::O_NOFOLLOW,
                    Mode::empty(),
                )
                .map(Some),
                false => Ok(None),
            };
            if tell {
                let path = self.path_of(wd, &name);
                self.tell(ChangeKind::Created, path, Vec::new(), is_directory)?;
            }
            match opened {
                Ok(Some(inner)) if !has_books(&inner) => next = Some((inner, Some(wd), name)),
                Ok(_) => {}
                Err(errno) if is_gone(errno) => {}
                Err(errno) => break Err(failed("open a directory in it")(errno)),
            }
        };
        // Whoever stays in a directory keeps the kernel from telling its end.
        fchdir(self.root).map_err(failed("leave the directory"))?;
        result
    }

    /// Watches one directory; `None` if it was watched already, and what is in
    /// it.
    fn add_one(
        &mut self,
        directory: &OwnedFd,
        above: Option<WatchDescriptor>,
        name: Vec<u8>,
    ) -> Result<Option<WatchDescriptor>, Stop> {
        self.link.still_wanted()?;
        let wd = match fchdir(directory).and_then(|()| self.inotify.add_watch(".", INTEREST)) {
            Ok(wd) => wd,
            Err(Errno::ENOSPC) => return Err(too_many()),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(failed("watch a directory")(errno)),
        };
        if above.is_none() {
            self.top = Some(wd);
        }
        let node = Node {
            wd,
            above,
            name,
            round: self.round,
        };
        match self.find(wd) {
            Ok(at) => {
                let Some(known) = self.nodes.get_mut(at) else {
                    return Ok(None);
                };
                let seen = known.round == self.round;
                *known = node;
                Ok((!seen).then_some(wd))
            }
            Err(_) if self.nodes.len() >= self.most => Err(too_many()),
            Err(at) => {
                self.nodes.insert(at, node);
                Ok(Some(wd))
            }
        }
    }

    fn find(&self, wd: WatchDescriptor) -> Result<usize, usize> {
        self.nodes.binary_search_by_key(&wd, |node| node.wd)
    }

    /// Stops to watch some directories.
    fn forget(&mut self, which: impl Fn(&Self, &Node) -> bool) {
        let all = self.nodes.iter();
        let gone: Vec<WatchDescriptor> = all
            .filter(|node| which(self, node))
            .map(|node| node.wd)
            .collect();
        for wd in &gone {
            let _ = self.inotify.rm_watch(*wd);
        }
        self.nodes
            .retain(|node| gone.binary_search(&node.wd).is_err());
    }

    /// Whether a directory is `wd` or in it.
    fn is_below(&self, node: &Node, wd: WatchDescriptor) -> bool {
        self.way(Some(node.wd)).any(|above| above.wd == wd)
    }

    /// A directory and those above it.
    fn way(&self, wd: Option<WatchDescriptor>) -> impl Iterator<Item = &Node> {
        let node = |wd: Option<WatchDescriptor>| self.nodes.get(self.find(wd?).ok()?);
        // However confused the moves were that were told, it has an end.
        std::iter::successors(node(wd), move |below| node(below.above)).take(2 * MAX_TREE_DEPTH)
    }

    fn path_of(&self, above: WatchDescriptor, name: &[u8]) -> Vec<u8> {
        let mut names: Vec<&[u8]> = vec![name];
        names.extend(self.way(Some(above)).map(|node| node.name.as_slice()));
        names.reverse();
        names.retain(|name| !name.is_empty());
        names.join(&b'/')
    }

    fn tell(
        &mut self,
        mut kind: ChangeKind,
        mut path: Vec<u8>,
        mut to: Vec<u8>,
        directory: bool,
    ) -> Result<(), Stop> {
        if path.len() > MAX_PATH || to.len() > MAX_PATH {
            // Too long for the supervisor as for anybody.
            (kind, path, to) = (ChangeKind::Overflow, Vec::new(), Vec::new());
        }
        let bytes = path.len().saturating_add(to.len());
        let change = Change {
            kind,
            path: Bytes::from(path),
            to: Bytes::from(to),
            directory,
        };
        if self.changes.last() == Some(&change) {
            return Ok(());
        }
        if self.changes.len() >= MAX_ENTRIES || self.bytes.saturating_add(bytes) > MAX_DATA / 3 {
            self.flush()?;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.changes.push(change);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        self.bytes = 0;
        match std::mem::take(&mut self.changes) {
            none if none.is_empty() => Ok(()),
            changes => self.link.send(&FileOutput::Changes(changes)),
        }
    }
}

fn too_many() -> Stop {
    let message = "there are more directories than may be watched; watch a part, or allow more";
    refused(FileFailureKind::TooMany, message)
}

/// Whether something was replaced or removed before it could be opened, or is a
/// file system that lets nobody in.
fn is_gone(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EACCES | Errno::EXDEV
    )
}
