//! Where a path leads.
//!
//! Paths are looked up as root of the guest, in its root. What programs do to
//! directories and links in the meantime decides which of the guest's files is
//! meant, and nothing more: there is nothing else to reach from here. The links
//! of /proc that are no paths but open files of a process, PID 1 above all, are
//! not followed.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use flashpan_protocol::file::{FileFailureKind, FileStat, MAX_PATH};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, mkdirat};

use super::link::{Stop, failed, refused};

/// How often a look-up is tried again that was disturbed by a renaming.
const TRIES: usize = 16;

/// Permissions of directories that are made on the way.
const PARENT_MODE: Mode = Mode::from_bits_truncate(0o755);

/// Flags to look at a directory, or to do something in it.
pub(super) const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

/// A directory and a name in it.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) directory: OwnedFd,
    /// Neither empty nor `.` nor `..`, and without a slash.
    pub(super) name: &'a OsStr,
}

/// Opens what is at `path`.
pub(super) fn open(root: &OwnedFd, path: &[u8], flags: OFlag) -> Result<OwnedFd, Stop> {
    check(path)?;
    lookup(root, path, flags).map_err(failed("open it"))
}

/// The place that `path` names, with or without something there. With
/// `parents`, directories that are missing above it are made.
pub(super) fn place<'a>(root: &OwnedFd, path: &'a [u8], parents: bool) -> Result<Place<'a>, Stop> {
    check(path)?;
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
    let path = path.get(..end).unwrap_or_default();
    let slash = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    let (above, name) = path.split_at_checked(slash).unwrap_or_default();
    let name = name.strip_prefix(b"/").unwrap_or(name);
    if matches!(name, b"" | b"." | b"..") {
        let message = "the path does not end in a name";
        return Err(refused(FileFailureKind::BadRequest, message));
    }
    let directory = match lookup(root, above, DIRECTORY) {
        Err(Errno::ENOENT) if parents => make_all(root, above),
        result => result,
    };
    Ok(Place {
        directory: directory.map_err(failed("open the directory above it"))?,
        name: OsStr::from_bytes(name),
    })
}

/// Opens the directory `path`, making what is missing of it.
fn make_all(root: &OwnedFd, path: &[u8]) -> nix::Result<OwnedFd> {
    let mut directory = lookup(root, b"", DIRECTORY)?;
    let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/');
    let ends = ends.map(|(at, _)| at).skip(1).chain([path.len()]);
    let mut start = 1;
    for end in ends {
        let name = path.get(start..end).unwrap_or_default();
        start = end.saturating_add(1);
        if name.is_empty() {
            continue;
        }
        // From the root each time: a link on the way may lead anywhere.
        let so_far = path.get(..end).unwrap_or_default();
        directory = match lookup(root, so_far, DIRECTORY) {
            Err(Errno::ENOENT) => {
                match mkdirat(&directory, OsStr::from_bytes(name), PARENT_MODE) {
                    // By somebody else, or a link that leads nowhere.
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno),
                }
                lookup(root, so_far, DIRECTORY)?
            }
            result => result?,
        };
    }
    Ok(directory)
}

pub(super) fn check(path: &[u8]) -> Result<(), Stop> {
    let message = match path {
        _ if path.len() > MAX_PATH => "the path is too long",
        _ if path.contains(&0) => "the path has a NUL byte",
        [b'/', ..] => return Ok(()),
        _ => "the path is not absolute",
    };
    Err(refused(FileFailureKind::BadRequest, message))
}

pub(super) fn lookup(root: &OwnedFd, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(resolve);
    let path: &[u8] = if path.is_empty() { b"/" } else { path };
    let mut result = Err(Errno::EAGAIN);
    for _ in 0..TRIES {
        result = openat2(root.as_fd(), OsStr::from_bytes(path), how);
        if !matches!(result, Err(Errno::EAGAIN)) {
            break;
        }
    }
    result
}

/// What the protocol has of `stat`.
pub(super) fn describe(stat: &nix::sys::stat::FileStat) -> FileStat {
    FileStat {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: stat.st_mtime,
        modified_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

/// [`Stop`] unless what `stat` describes is a regular file.
pub(super) fn regular(stat: &nix::sys::stat::FileStat) -> Result<(), Stop> {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Ok(()),
        SFlag::S_IFDIR => Err(refused(
            FileFailureKind::IsADirectory,
            "it is a directory and not a file",
        )),
        _ => Err(refused(
            FileFailureKind::NotRegular,
            "it is not a regular file; devices, FIFOs and sockets are left to programs",
        )),
    }
}
