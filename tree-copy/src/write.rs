//! A tree, put together.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use flashpan_protocol::file::{
    FileFailureKind, FileStat, MAX_NAME, MAX_PATH, MAX_TREE_DEPTH, MAX_TREE_ENTRIES, TreeEntry,
};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, futimens,
    mkdirat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, unlinkat};

use crate::failure::Failure;
use crate::place::{DIRECTORY, Landing, Open, kind, land};
use crate::temporary::{Temporary, rename_from};

/// Permissions of a directory while it is filled.
const FILLING: Mode = Mode::S_IRWXU;

/// Who owns what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever writes it.
    Writer,
    /// This user and group.
    Of(u32, u32),
    /// As the tree says.
    AsSent,
}

/// How a tree is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Who owns it.
    pub owner: Owner,
    /// Whether the bits of a mode are kept that make a program run with the
    /// rights of its owner or group, and the sticky bit.
    pub special_bits: bool,
    /// Whether a symbolic link that the place itself is stands for what it
    /// points to. Not if the tree comes from one who is not trusted with all
    /// files that can be written here: an earlier tree of theirs may have made
    /// the link. Files and links then replace it, and a directory is refused;
    /// but where the path of the place ends in `/` or `/.`, it is followed to a
    /// directory that is there.
    pub follow_place: bool,
    /// Whether a directory that came with this tree may be begun again, and then has
    /// what was said of it last. It takes memory for each directory: not if the tree comes
    /// from one who is not trusted with it. One that is begun again is then as any
    /// that was there before.
    pub again: bool,
    /// Most entries, if fewer than [`MAX_TREE_ENTRIES`]. A directory that is begun again
    /// with nothing said of it ([`Writer::enter`]) is none.
    pub entries: u64,
    /// Most levels of directories, if fewer than [`MAX_TREE_DEPTH`]: each takes a
    /// descriptor while it is open.
    pub depth: usize,
}

/// Writes a tree, one frame at a time.
///
/// A file has a name that begins with `.flashpan-` until it is complete, and
/// is removed if the writer is dropped before that; directories stay, as they
/// were sent. What is there already is
/// replaced by files and links, and kept where it is a directory in both, with
/// the owner, permissions and times that it has;
/// a directory takes the place of nothing else, and nothing else that of a
/// directory ([`Options::again`] says what becomes of one that is begun again).
#[derive(Debug)]
pub struct Writer {
    /// Where the root goes, until it has begun.
    landing: Option<Landing>,
    levels: Vec<Level>,
    file: Option<File>,
    /// Where the innermost thing is that is not in a level.
    base: Option<OwnedFd>,
    /// The directories that came with this tree, and what was said of them last.
    made: HashMap<Identity, FileStat>,
    options: Options,
    entries: u64,
    /// Levels that are none of the tree's: the place, where it is the root.
    unnamed: usize,
    finished: bool,
}

#[derive(Debug)]
struct Level {
    name: Vec<u8>,
    directory: OwnedFd,
    /// What it is to be; `None` if it was there and is only filled.
    stat: Option<FileStat>,
}

/// Device and inode: the same under whatever name.
type Identity = (u64, u64);

#[derive(Debug)]
struct File {
    name: OsString,
    temporary: Temporary<OwnedFd>,
    stat: FileStat,
}

impl Writer {
    /// A writer of a tree whose root is `root`, to where `docker cp` would put
    /// it ([`flashpan_protocol::file::TreeInRequest`]). The root keeps the name
    /// `own` if it keeps one, whatever `root` says.
    ///
    /// # Errors
    /// If there is no such place.
    pub fn new(
        open: Open<'_>,
        path: &[u8],
        contents: bool,
        root: &TreeEntry,
        own: &[u8],
        options: Options,
    ) -> Result<Self, Failure> {
        check_name(own)?;
        let (is_directory, follow) = (root.stat.is_dir(), options.follow_place);
        let landing = land(open, path, is_directory, own, contents, follow)?;
        let mut writer = Self {
            landing: Some(landing),
            levels: Vec::new(),
            file: None,
            base: None,
            made: HashMap::new(),
            options,
            entries: 0,
            unnamed: 0,
            finished: false,
        };
        writer.entry(root)?;
        Ok(writer)
    }

    /// Begins a file, a directory or a symbolic link in the directory that is
    /// open.
    ///
    /// # Errors
    /// If it cannot be made, or should not. The writer is of no more use then,
    /// as after every error.
    pub fn entry(&mut self, entry: &TreeEntry) -> Result<(), Failure> {
        let name = match &self.landing {
            Some(_) => Vec::new(),
            None => entry.name.to_vec(),
        };
        self.begin(entry, true)
            .map_err(|failure| self.located(failure, &name))
    }

    /// Begins a directory of which nothing is said: it is made as `entry` if there is
    /// none, and one that is there stays, or becomes, what it is or was to be.
    ///
    /// # Errors
    /// As of [`Self::entry`].
    pub fn enter(&mut self, entry: &TreeEntry) -> Result<(), Failure> {
        let entered = match entry.stat.is_dir() {
            true => self.begin(entry, false),
            false => Err(Failure::protocol("what is no directory to go into")),
        };
        entered.map_err(|failure| self.located(failure, &entry.name))
    }

    /// Gives the file or symbolic link at `path`, which counts from the root, another
    /// name in the directory that is open. No symbolic link is followed to it.
    ///
    /// # Errors
    /// If there is no such file, or it cannot have the name.
    pub fn hard_link(&mut self, name: &[u8], path: &[u8]) -> Result<(), Failure> {
        self.other_name(name, path)
            .map_err(|failure| self.located(failure, name))
    }

    /// One more entry, if there may be one.
    fn count(&mut self) -> Result<(), Failure> {
        self.entries = self.entries.saturating_add(1);
        if self.entries > self.options.entries.min(MAX_TREE_ENTRIES) {
            let why = match self.options.entries {
                MAX_TREE_ENTRIES.. => "there are more than 4194304 files and directories",
                _ => "there are more files and directories than are taken",
            };
            return Err(Failure::refused(FileFailureKind::TooMany, why));
        }
        self.place()
    }

    /// `Ok` if something may begin here.
    fn place(&self) -> Result<(), Failure> {
        match self.finished || self.file.is_some() {
            true => Err(Failure::protocol("an entry where none can be")),
            false => Ok(()),
        }
    }

    /// Makes a directory if there is none, and goes into it; with what it is to be.
    fn open_directory(
        &mut self,
        name: &OsStr,
        entry: &TreeEntry,
        is_said: bool,
    ) -> Result<(OwnedFd, Option<FileStat>), Failure> {
        let Some(above) = self.innermost() else {
            return Err(Failure::protocol("an entry where none can be"));
        };
        let (directory, made) = make_directory(above, name)?;
        if made && !is_said {
            self.count()?;
        }
        if !self.options.again {
            return Ok((directory, made.then_some(entry.stat)));
        }
        let there = fstat(&directory).map_err(Failure::system("look at the directory"))?;
        let identity = (there.st_dev, there.st_ino);
        let stat = match self.made.get(&identity) {
            // What had this number before is gone.
            _ if made => entry.stat,
            None => return Ok((directory, None)),
            Some(was_said) => {
                // It was complete, and may not let itself be filled.
                let mode = Mode::from_bits_truncate(there.st_mode);
                if !mode.contains(FILLING) {
                    let follow = FchmodatFlags::FollowSymlink;
                    fchmodat(&directory, ".", mode | FILLING, follow)
                        .map_err(Failure::system("open the directory again"))?;
                }
                match is_said {
                    true => entry.stat,
                    false => *was_said,
                }
            }
        };
        self.made.insert(identity, stat);
        Ok((directory, Some(stat)))
    }

    fn begin(&mut self, entry: &TreeEntry, is_said: bool) -> Result<(), Failure> {
        match is_said {
            true => self.count()?,
            // It is one more only if it has to be made.
            false => self.place()?,
        }
        let name = match self.landing.take() {
            Some(Landing::Into(directory)) => {
                self.levels.push(Level {
                    name: Vec::new(),
                    directory,
                    stat: None,
                });
                self.unnamed = 1;
                return Ok(());
            }
            Some(Landing::As(directory, name)) => {
                self.base = Some(directory);
                name
            }
            None => {
                check_name(&entry.name)?;
                entry.name.to_vec()
            }
        };
        let os_name = OsStr::from_bytes(&name);
        let Some(above) = self.innermost() else {
            return Err(Failure::protocol("an entry where none can be"));
        };
        match kind(entry.stat.mode) {
            SFlag::S_IFDIR => {
                let depth = self.levels.len().saturating_sub(self.unnamed);
                if depth >= self.options.depth.min(MAX_TREE_DEPTH) {
                    let why = "its directories are nested too deep: 256 levels are the \
                               most, and 128 out of a guest";
                    return Err(Failure::refused(FileFailureKind::TooMany, why));
                }
                let (directory, stat) = self.open_directory(os_name, entry, is_said)?;
                self.levels.push(Level {
                    // The root has no name in a path below it.
                    name: match self.levels.is_empty() {
                        true => Vec::new(),
                        false => name,
                    },
                    directory,
                    stat,
                });
            }
            SFlag::S_IFREG => {
                check_replaced(above, os_name)?;
                let temporary =
                    Temporary::file(above).map_err(Failure::system("make a file beside it"))?;
                self.file = Some(File {
                    name: os_name.to_owned(),
                    temporary,
                    stat: entry.stat,
                });
            }
            SFlag::S_IFLNK => {
                check_replaced(above, os_name)?;
                self.link(above, os_name, entry)?;
                self.finished = self.levels.is_empty();
            }
            _ => return Err(Failure::protocol("an entry of a kind that is not copied")),
        }
        Ok(())
    }

    /// The next content of the file that is open.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn data(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        let Some(file) = &self.file else {
            return Err(Failure::protocol("content without a file"));
        };
        while !bytes.is_empty() {
            let errno = match nix::unistd::write(&file.temporary.made, bytes) {
                Ok(n @ 1..) => {
                    bytes = bytes.get(n..).unwrap_or_default();
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Ok(_) => Errno::EIO,
                Err(errno) => errno,
            };
            let name = file.name.as_bytes().to_vec();
            return Err(self.located(Failure::system("write it")(errno), &name));
        }
        Ok(())
    }

    /// Ends the file or directory that is open and was begun last.
    ///
    /// # Errors
    /// If it cannot be given its owner, permissions, times or name.
    pub fn close(&mut self) -> Result<(), Failure> {
        if let Some(file) = &self.file {
            self.settle(file).map_err(|failure| {
                let name = file.name.as_bytes().to_vec();
                self.located(failure, &name)
            })?;
            // It has its name and is not removed any more.
            self.file = None;
        } else {
            let Some(level) = self.levels.last() else {
                return Err(Failure::protocol("an end where nothing is open"));
            };
            if let Some(stat) = &level.stat {
                self.settle_directory(&level.directory, stat)
                    .map_err(|failure| self.located(failure, &[]))?;
            }
            self.levels.pop();
        }
        self.finished = self.levels.is_empty();
        Ok(())
    }

    /// Whether the root has ended: all is there.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The path of `name` in the directory that is open, relative to the root.
    #[must_use]
    pub fn path_of(&self, name: &[u8]) -> Vec<u8> {
        self.located(Failure::protocol(""), name).path
    }

    fn innermost(&self) -> Option<&OwnedFd> {
        let level = self.levels.last().map(|level| &level.directory);
        level.or(self.base.as_ref())
    }

    fn located(&self, failure: Failure, name: &[u8]) -> Failure {
        // What the root was named by is known to who asked for it.
        let name = match self.levels.is_empty() {
            true => &[],
            false => name,
        };
        let levels = self.levels.iter().map(|level| level.name.as_slice());
        failure.at(levels.chain([name]).filter(|name| !name.is_empty()))
    }

    fn mode(&self, stat: &FileStat) -> Mode {
        let kept = match self.options.special_bits {
            true => 0o7777,
            false => 0o777,
        };
        Mode::from_bits_truncate(stat.mode & kept)
    }

    fn owner(&self, stat: &FileStat) -> Option<(Option<Uid>, Option<Gid>)> {
        let (uid, gid) = match self.options.owner {
            Owner::Writer => return None,
            Owner::Of(uid, gid) => (uid, gid),
            Owner::AsSent => (stat.uid, stat.gid),
        };
        // All ones would be nobody in particular.
        let of = |id: u32| (id != u32::MAX).then_some(id);
        Some((of(uid).map(Uid::from_raw), of(gid).map(Gid::from_raw)))
    }

    /// Makes a link that replaces what is there but for directories.
    fn link(&self, above: &OwnedFd, name: &OsStr, entry: &TreeEntry) -> Result<(), Failure> {
        let target = entry.target.as_slice();
        if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
            return Err(Failure::protocol("a link to nowhere"));
        }
        let link = Temporary::link(above, OsStr::from_bytes(target))
            .map_err(Failure::system("make a link beside it"))?;
        let itself = AtFlags::AT_SYMLINK_NOFOLLOW;
        let settled = || {
            if let Some((uid, gid)) = self.owner(&entry.stat) {
                fchownat(above, link.name.as_os_str(), uid, gid, itself)?;
            }
            let [accessed, modified] = times(&entry.stat);
            let itself = UtimensatFlags::NoFollowSymlink;
            utimensat(above, link.name.as_os_str(), &accessed, &modified, itself)?;
            rename_from(above, &link.name, name)
        };
        settled().map_err(|errno| {
            remove(above, &link.name);
            Failure::system("make the link")(errno)
        })
    }

    /// Gives a file everything that it is to have, its name last.
    fn settle(&self, file: &File) -> Result<(), Failure> {
        let fd = &file.temporary.made;
        // In this order: a new owner takes away the set-user-id bit.
        if let Some((uid, gid)) = self.owner(&file.stat) {
            fchown(fd, uid, gid).map_err(Failure::system("set its owner"))?;
        }
        fchmod(fd, self.mode(&file.stat)).map_err(Failure::system("set its permissions"))?;
        let [accessed, modified] = times(&file.stat);
        futimens(fd, &accessed, &modified).map_err(Failure::system("set its times"))?;
        let Some(above) = self.innermost() else {
            return Err(Failure::protocol("a file nowhere"));
        };
        rename_from(above, &file.temporary.name, &file.name)
            .map_err(Failure::system("give it its final name"))
    }

    fn other_name(&mut self, name: &[u8], path: &[u8]) -> Result<(), Failure> {
        self.count()?;
        check_name(name)?;
        let (Some(root), Some(above)) = (self.levels.first(), self.innermost()) else {
            return Err(Failure::protocol("a hard link where none can be"));
        };
        let mut directories: Vec<_> = path.split(|byte| *byte == b'/').collect();
        let target = directories.pop().unwrap_or_default();
        check_name(target)?;
        if directories.len() > MAX_TREE_DEPTH {
            return Err(Failure::protocol("a path with too many directories"));
        }
        let missing = |errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => {
                let why = "it is a hard link, and the file is not there that it is another name of";
                Failure::refused(FileFailureKind::NotFound, why)
            }
            errno => Failure::system("look for what it is a hard link to")(errno),
        };
        let mut inner: Option<OwnedFd> = None;
        for directory in directories {
            check_name(directory)?;
            let from = inner.as_ref().unwrap_or(&root.directory);
            let flags = DIRECTORY | OFlag::O_NOFOLLOW;
            let opened = openat(from, OsStr::from_bytes(directory), flags, Mode::empty());
            inner = Some(opened.map_err(missing)?);
        }
        let from = inner.as_ref().unwrap_or(&root.directory);
        let (name, target) = (OsStr::from_bytes(name), OsStr::from_bytes(target));
        let there = fstatat(from, target, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(missing)?;
        if !matches!(kind(there.st_mode), SFlag::S_IFREG | SFlag::S_IFLNK) {
            let why = "it is a hard link to what is neither a file nor a symbolic link";
            return Err(Failure::refused(FileFailureKind::NotRegular, why));
        }
        check_replaced(above, name)?;
        let failed = Failure::system("make the hard link");
        let link = Temporary::hard_link(above, from, target).map_err(failed)?;
        let named = rename_from(above, &link.name, name);
        // It is still there also if the name was one of the same file.
        remove(above, &link.name);
        named.map_err(Failure::system("give the hard link its final name"))
    }

    fn settle_directory(&self, directory: &OwnedFd, stat: &FileStat) -> Result<(), Failure> {
        // The descriptor is good for looking names up and nothing else.
        if let Some((uid, gid)) = self.owner(stat) {
            fchownat(directory, ".", uid, gid, AtFlags::empty())
                .map_err(Failure::system("set its owner"))?;
        }
        // The times first: permissions may not let them be set.
        let [accessed, modified] = times(stat);
        let follow = UtimensatFlags::FollowSymlink;
        utimensat(directory, ".", &accessed, &modified, follow)
            .map_err(Failure::system("set its times"))?;
        fchmodat(
            directory,
            ".",
            self.mode(stat),
            FchmodatFlags::FollowSymlink,
        )
        .map_err(Failure::system("set its permissions"))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let (Some(file), Some(above)) = (&self.file, self.innermost()) {
            remove(above, &file.temporary.name);
        }
        // The next attempt finds them there and leaves them as they are.
        for level in self.levels.iter().rev() {
            if let Some(stat) = &level.stat {
                let _ = self.settle_directory(&level.directory, stat);
            }
        }
    }
}

/// A name is one, and leads nowhere else.
fn check_name(name: &[u8]) -> Result<(), Failure> {
    let fits = (1..=MAX_NAME).contains(&name.len())
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
        && name != b"."
        && name != b"..";
    match fits {
        true => Ok(()),
        false => Err(Failure::protocol("what is no name of a file")),
    }
}

/// Refuses to put something that is no directory in the place of one.
fn check_replaced(above: &OwnedFd, name: &OsStr) -> Result<(), Failure> {
    match fstatat(above, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if kind(stat.st_mode) == SFlag::S_IFDIR => {
            let why = "there is a directory of that name, which is not replaced";
            Err(Failure::refused(FileFailureKind::IsADirectory, why))
        }
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Failure::system("look at what is there")(errno)),
    }
}

/// The directory `name`, which is made if there is none, and whether it was.
fn make_directory(above: &OwnedFd, name: &OsStr) -> Result<(OwnedFd, bool), Failure> {
    let made = match mkdirat(above, name, FILLING) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(errno) => return Err(Failure::system("make the directory")(errno)),
    };
    match openat(above, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()) {
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            let why = "there is something of that name, which a directory does not replace";
            Err(Failure::refused(FileFailureKind::Exists, why))
        }
        opened => opened
            .map(|directory| (directory, made))
            .map_err(Failure::system("open the directory")),
    }
}

fn remove(above: impl AsFd, name: &OsStr) {
    let _ = unlinkat(above, name, UnlinkatFlags::NoRemoveDir);
}

/// When it was accessed, which is left as it is, and when it was modified.
fn times(stat: &FileStat) -> [TimeSpec; 2] {
    // Some numbers of nanoseconds that are none have a meaning.
    let nanoseconds = match stat.modified_ns {
        valid @ 0..=999_999_999 => i64::from(valid),
        _ => 0,
    };
    [
        TimeSpec::UTIME_OMIT,
        TimeSpec::new(stat.modified, nanoseconds),
    ]
}
