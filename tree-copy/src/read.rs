//! A tree, taken apart.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use flashpan_protocol::agent::Bytes;
use flashpan_protocol::file::{
    Entry, FileFailureKind, FileStat, MAX_TREE_DEPTH, MAX_TREE_ENTRIES, TreeEntry,
};
use nix::dir::{Dir, OwningIter};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::sys::statfs::fstatfs;

use crate::failure::Failure;
use crate::place::{Open, kind};

/// Flags to list a directory, and to read a file: waiting for nobody, whatever
/// has come into its place.
const LIST: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);
const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// File systems that are the kernel's own books, by their magic numbers in
/// linux/magic.h: cgroup, cgroup2, configfs, debugfs, devpts, mqueue, proc,
/// securityfs, sysfs, tracefs, bpf.
const BOOKS: [i64; 11] = [
    0x0027_e0eb,
    0x6367_7270,
    0x6265_6570,
    0x6462_6720,
    0x1cd1,
    0x1980_0202,
    0x9fa0,
    0x7363_6673,
    0x6265_6572,
    0x7472_6163,
    0xcafe_4a11,
];

/// The magic number of FUSE, whose files may be made as they are read.
const FUSE: i64 = 0x6573_5546;

/// Reads a tree, one step at a time.
#[derive(Debug)]
pub struct Reader {
    /// Until it was told.
    root: Option<(TreeEntry, Option<OwnedFd>)>,
    levels: Vec<Level>,
    file: Option<File>,
    entries: u64,
}

/// The next of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// This begins.
    Entry(TreeEntry),
    /// So many bytes of the file that was begun last are in the buffer.
    Data(usize),
    /// What was begun last ends.
    Close,
    /// This is neither file, directory nor symbolic link, and left out.
    Skipped(Entry),
}

#[derive(Debug)]
struct Level {
    name: Vec<u8>,
    directory: OwnedFd,
    listing: OwningIter,
    device: u64,
}

#[derive(Debug)]
struct File {
    name: Vec<u8>,
    fd: OwnedFd,
    /// Of a file that grows, what is there at its beginning. Those of the kernel's books and
    /// of FUSE may have a size of 0 and are read to their end.
    left: u64,
}

impl Reader {
    /// A reader of what is at `path`, of a symbolic link there if not `follow`
    /// the link itself. The root's name in the stream is `name`.
    ///
    /// # Errors
    /// If there is nothing, or nothing that can be copied.
    pub fn new(open: Open<'_>, path: &[u8], follow: bool, name: &[u8]) -> Result<Self, Failure> {
        let link_itself = match follow {
            true => OFlag::empty(),
            false => OFlag::O_NOFOLLOW,
        };
        // Looked at before it is opened: opening alone makes some devices act.
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | link_itself;
        let there = open(path, flags).map_err(Failure::opening)?;
        let mut stat = fstat(&there).map_err(Failure::system("look at it"))?;
        let mut target = Vec::new();
        let mut fd = None;
        match kind(stat.st_mode) {
            SFlag::S_IFLNK => {
                let read = readlinkat(&there, "").map_err(Failure::system("read the link"))?;
                target = read.into_vec();
            }
            SFlag::S_IFDIR => {
                let directory = openat(&there, ".", LIST, Mode::empty());
                fd = Some(directory.map_err(Failure::system("open the directory"))?);
            }
            SFlag::S_IFREG => {
                let flags = READ.difference(OFlag::O_NOFOLLOW) | link_itself;
                let file = open(path, flags).map_err(Failure::opening)?;
                stat = fstat(&file).map_err(Failure::system("look at it"))?;
                if kind(stat.st_mode) != SFlag::S_IFREG {
                    return Err(not_copied());
                }
                fd = Some(file);
            }
            _ => return Err(not_copied()),
        }
        Ok(Self {
            root: Some((entry(name, &stat, target), fd)),
            levels: Vec::new(),
            file: None,
            entries: 0,
        })
    }

    /// Whether the root is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.root
            .as_ref()
            .is_some_and(|(root, _)| root.stat.is_dir())
    }

    /// The next step; `None` after the last. Content is put into `buffer`.
    ///
    /// What vanishes meanwhile is left out.
    ///
    /// # Errors
    /// If something cannot be read, or there is too much of it. Nothing follows.
    pub fn next(&mut self, buffer: &mut [u8]) -> Result<Option<Step>, Failure> {
        if let Some((root, fd)) = self.root.take() {
            return self.begin(root, fd).map(Some);
        }
        if self.file.is_some() {
            return self.content(buffer).map(Some);
        }
        loop {
            let Some(level) = self.levels.last_mut() else {
                return Ok(None);
            };
            let Some(found) = level.listing.next() else {
                self.levels.pop();
                return Ok(Some(Step::Close));
            };
            let name = match found {
                Ok(found) => CString::from(found.file_name()).into_bytes(),
                Err(errno) => return Err(self.failed(&[], "read the directory")(errno)),
            };
            if matches!(name.as_slice(), b"." | b"..") {
                continue;
            }
            if let Some(step) = self.look(&name)? {
                return Ok(Some(step));
            }
        }
    }

    /// Looks at the entry `name` of the innermost directory; `None` if it is
    /// gone.
    fn look(&mut self, name: &[u8]) -> Result<Option<Step>, Failure> {
        let os_name = OsStr::from_bytes(name);
        let Some(level) = self.levels.last() else {
            return Ok(None);
        };
        let directory = &level.directory;
        let (mut stat, device) = match fstatat(directory, os_name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => (stat, level.device),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(self.failed(name, "look at it")(errno)),
        };
        let mut target = Vec::new();
        let mut fd = None;
        let flags = match kind(stat.st_mode) {
            SFlag::S_IFLNK => match readlinkat(directory, os_name) {
                Ok(read) => {
                    target = read.into_vec();
                    None
                }
                Err(Errno::ENOENT | Errno::EINVAL) => return Ok(None),
                Err(errno) => return Err(self.failed(name, "read the link")(errno)),
            },
            SFlag::S_IFDIR => Some(LIST),
            SFlag::S_IFREG => Some(READ),
            _ => return Ok(Some(skipped(name, &stat))),
        };
        if let Some(flags) = flags {
            let opened = match openat(directory, os_name, flags, Mode::empty()) {
                Ok(opened) => opened,
                // Replaced by something else meanwhile.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => {
                    return Ok(None);
                }
                Err(errno) => return Err(self.failed(name, "open it")(errno)),
            };
            let was = kind(stat.st_mode);
            stat = fstat(&opened).map_err(self.failed(name, "look at it"))?;
            if kind(stat.st_mode) != was || (stat.st_dev != device && has_books(&opened)) {
                return Ok(Some(skipped(name, &stat)));
            }
            fd = Some(opened);
        }
        self.begin(entry(name, &stat, target), fd).map(Some)
    }

    fn begin(&mut self, entry: TreeEntry, fd: Option<OwnedFd>) -> Result<Step, Failure> {
        self.entries = self.entries.saturating_add(1);
        let depth = self.levels.len();
        if self.entries > MAX_TREE_ENTRIES || (entry.stat.is_dir() && depth >= MAX_TREE_DEPTH) {
            let why = match depth >= MAX_TREE_DEPTH {
                true => "its directories are nested too deep: 256 levels are the most",
                false => "there are more than 4194304 files and directories",
            };
            let failure = Failure::refused(FileFailureKind::TooMany, why);
            return Err(failure.at(self.names(&entry.name)));
        }
        // The root has no name in a path below it.
        let name = match depth {
            0 => Vec::new(),
            _ => entry.name.to_vec(),
        };
        if let Some(fd) = fd {
            if entry.stat.is_dir() {
                let failed = |errno| self.failed(&name, "read the directory")(errno);
                let device = fstat(&fd).map_err(failed)?.st_dev;
                let listing = openat(&fd, ".", LIST, Mode::empty()).and_then(Dir::from_fd);
                let listing = listing.map_err(failed)?.into_iter();
                self.levels.push(Level {
                    name,
                    directory: fd,
                    listing,
                    device,
                });
            } else {
                let left = match entry.stat.size {
                    0 if tells_no_sizes(&fd) => u64::MAX,
                    size => size,
                };
                self.file = Some(File { name, fd, left });
            }
        }
        Ok(Step::Entry(entry))
    }

    fn content(&mut self, buffer: &mut [u8]) -> Result<Step, Failure> {
        let Some(file) = &mut self.file else {
            return Ok(Step::Close);
        };
        let most = usize::try_from(file.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        let read = loop {
            match nix::unistd::read(&file.fd, buffer) {
                Err(Errno::EINTR) => {}
                read => break read,
            }
        };
        match read {
            Ok(0) => {
                self.file = None;
                Ok(Step::Close)
            }
            Ok(n) => {
                file.left = file
                    .left
                    .saturating_sub(u64::try_from(n).unwrap_or(u64::MAX));
                Ok(Step::Data(n))
            }
            Err(errno) => {
                let name = std::mem::take(&mut file.name);
                Err(self.failed(&name, "read it")(errno))
            }
        }
    }

    /// The names on the way to `name` in the innermost directory.
    fn names<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let above = self.levels.iter().map(|level| level.name.as_slice());
        above.chain([name]).filter(|name| !name.is_empty())
    }

    fn failed(&self, name: &[u8], what: &'static str) -> impl FnOnce(Errno) -> Failure {
        let path = Failure::system(what)(Errno::UnknownErrno)
            .at(self.names(name))
            .path;
        move |errno| Failure {
            path,
            ..Failure::system(what)(errno)
        }
    }
}

fn not_copied() -> Failure {
    let why = "it is neither a file nor a directory nor a symbolic link";
    Failure::refused(FileFailureKind::NotRegular, why)
}

/// Whether a directory is of a file system that is the kernel's own books, as
/// /proc and /sys are.
pub fn has_books(directory: impl AsFd) -> bool {
    fstatfs(directory).is_ok_and(|fs| BOOKS.contains(&fs.filesystem_type().0))
}

/// Whether a file that is not empty may have a size of 0.
fn tells_no_sizes(file: impl AsFd) -> bool {
    fstatfs(file).is_ok_and(|fs| {
        let kind = fs.filesystem_type().0;
        kind == FUSE || BOOKS.contains(&kind)
    })
}

fn skipped(name: &[u8], stat: &nix::sys::stat::FileStat) -> Step {
    Step::Skipped(Entry {
        name: Bytes::from(name),
        stat: describe(stat),
    })
}

fn entry(name: &[u8], stat: &nix::sys::stat::FileStat, target: Vec<u8>) -> TreeEntry {
    TreeEntry {
        name: Bytes::from(name),
        stat: describe(stat),
        target: Bytes::from(target),
    }
}

fn describe(stat: &nix::sys::stat::FileStat) -> FileStat {
    FileStat {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: stat.st_mtime,
        modified_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}
