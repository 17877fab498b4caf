//! Operations on names: directories, removals, renamings.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use flashpan_protocol::file::FileFailureKind;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::link::{Link, Stop, failed, refused};
use super::place::{Place, place};
use crate::anchors::open_at;

/// Most levels of directories that a removal goes down: each takes a
/// descriptor.
const DEPTH_MAX: usize = 4096;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);

/// Makes the directory at `path`.
pub(super) fn make_directory(
    root: &OwnedFd,
    path: &[u8],
    mode: u32,
    parents: bool,
) -> Result<(), Stop> {
    let Place { directory, name } = place(root, path, parents)?;
    match mkdirat(&directory, name, Mode::from_bits_truncate(0o700)) {
        Ok(()) => {}
        Err(Errno::EEXIST) if parents => {
            // A link to a directory is one, as `mkdir -p` has it.
            return super::place::open(root, path, super::place::DIRECTORY).map(drop);
        }
        Err(errno) => return Err(failed("make it")(errno)),
    }
    let made = open_at(&directory, name, DIRECTORY).map_err(failed("set its permissions"))?;
    fchmod(made, Mode::from_bits_truncate(mode & 0o7777)).map_err(failed("set its permissions"))
}

/// Gives what is at `from` the name `to`.
pub(super) fn rename(root: &OwnedFd, from: &[u8], to: &[u8]) -> Result<(), Stop> {
    let (from, to) = (place(root, from, false)?, place(root, to, false)?);
    renameat(&from.directory, from.name, &to.directory, to.name).map_err(failed("rename it"))
}

/// Removes what is at `path`.
///
/// What is mounted below it stays, and fails the removal. It goes on for as
/// long as programs put new files there, until the supervisor has enough.
pub(super) fn remove(
    link: &mut Link,
    root: &OwnedFd,
    path: &[u8],
    recursive: bool,
) -> Result<(), Stop> {
    let Place { directory, name } = place(root, path, false)?;
    match unlink(&directory, name) {
        Err(Errno::ENOTEMPTY) if recursive => {}
        result => return result.map_err(failed("remove it")),
    }
    // The directories that are being emptied, each in the one before.
    let mut levels: Vec<(OwnedFd, OsString)> = Vec::new();
    let mut next = Some(name.to_owned());
    loop {
        let innermost = levels.last().map_or(&directory, |(level, _)| level);
        if let Some(name) = next.take() {
            match open_at(innermost, &name, DIRECTORY) {
                Ok(_) if levels.len() == DEPTH_MAX => {
                    let message = "its directories are nested too deep";
                    return Err(refused(FileFailureKind::Other, message));
                }
                Ok(inner) => levels.push((inner, name)),
                // Replaced by something else meanwhile: as for a new one.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) if !levels.is_empty() => {}
                Err(errno) => return Err(failed("open a directory in it")(errno)),
            }
        }
        let Some((level, _)) = levels.last() else {
            return Ok(());
        };
        next = full_child(link, level)?;
        if next.is_none()
            && let Some((_, name)) = levels.pop()
        {
            let above = levels.last().map_or(&directory, |(level, _)| level);
            match unlink(above, &name) {
                Ok(()) | Err(Errno::ENOENT) => {}
                // Somebody was faster; the directory above still has it.
                Err(Errno::ENOTEMPTY) if !levels.is_empty() => {}
                Err(errno) => return Err(failed("remove a directory")(errno)),
            }
        }
    }
}

/// Removes what is in `directory`, up to the first directory that is not empty.
fn full_child(link: &mut Link, directory: &OwnedFd) -> Result<Option<OsString>, Stop> {
    let what = "remove a file in it";
    // A descriptor of its own: it begins at the beginning.
    let listing = open_at(directory, ".", DIRECTORY).and_then(Dir::from_fd);
    for entry in listing.map_err(failed(what))?.iter() {
        let entry = entry.map_err(failed(what))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        link.still_wanted()?;
        match unlink(directory, name) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::ENOTEMPTY) => return Ok(Some(name.to_owned())),
            Err(errno) => return Err(failed(what)(errno)),
        }
    }
    Ok(None)
}

/// Removes a file or an empty directory.
fn unlink(directory: impl AsFd, name: &OsStr) -> nix::Result<()> {
    match unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => unlinkat(&directory, name, UnlinkatFlags::RemoveDir),
        result => result,
    }
}
