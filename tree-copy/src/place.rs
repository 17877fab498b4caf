//! Where a tree lands, by the rules of `docker cp`.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use flashpan_protocol::file::FileFailureKind;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{SFlag, fstat, fstatat};

use crate::failure::Failure;

/// Opens a path of the side that a tree is read from or written to, following
/// symbolic links unless the flags say otherwise.
pub type Open<'a> = &'a dyn Fn(&[u8], OFlag) -> nix::Result<OwnedFd>;

/// Flags to do something in a directory.
pub(crate) const DIRECTORY: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// Most symbolic links on the way to a place, as Linux has it.
const LINKS_MAX: usize = 40;

/// Where the root of a tree goes.
#[derive(Debug)]
pub(crate) enum Landing {
    /// Into this directory, under this name.
    As(OwnedFd, Vec<u8>),
    /// It is this directory, which is there.
    Into(OwnedFd),
}

/// Where a root goes that is a directory or is not, and that has the name `own`
/// if it keeps it. With `contents`, what is in it goes to `path`. A symbolic link
/// that `path` ends in stands for what it points to only with `follow`, or if
/// `path` says so itself.
pub(crate) fn land(
    open: Open<'_>,
    path: &[u8],
    is_directory: bool,
    own: &[u8],
    contents: bool,
    follow: bool,
) -> Result<Landing, Failure> {
    if contents && !is_directory {
        let why = "only a directory has contents to copy";
        return Err(Failure::refused(FileFailureKind::NotADirectory, why));
    }
    // A slash after the name of a link follows it whatever the flags are.
    let itself = match follow {
        true => OFlag::empty(),
        false => OFlag::O_NOFOLLOW,
    };
    match open(path, OFlag::O_PATH | OFlag::O_CLOEXEC | itself) {
        Ok(there) => {
            let stat = fstat(&there).map_err(Failure::system("look at what is there"))?;
            if kind(stat.st_mode) == SFlag::S_IFDIR {
                return Ok(match contents {
                    true => Landing::Into(there),
                    false => Landing::As(there, own.to_vec()),
                });
            }
            if is_directory && kind(stat.st_mode) == SFlag::S_IFLNK {
                return Err(link_in_the_way());
            }
            if is_directory {
                let why = "a directory does not replace a file";
                return Err(Failure::refused(FileFailureKind::Exists, why));
            }
        }
        Err(Errno::ENOENT) if is_directory || !names_directory(path) => {}
        Err(Errno::ENOENT) => return Err(Failure::no_directory()),
        Err(errno) => return Err(Failure::system("open it")(errno)),
    }
    final_place(open, path, is_directory, follow)
}

/// Whether `path` cannot be that of a file.
fn names_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || path.ends_with(b"/.")
}

fn link_in_the_way() -> Failure {
    let why = "it is a symbolic link; name what it points to, or remove it";
    Failure::refused(FileFailureKind::Exists, why)
}

/// The directory and name that `path` stands for, where that is no directory.
/// With `follow` it is no symbolic link either, after this; without, it is
/// none if a directory is to be there.
fn final_place(
    open: Open<'_>,
    path: &[u8],
    is_directory: bool,
    follow: bool,
) -> Result<Landing, Failure> {
    let mut path = path.to_vec();
    for _ in 0..LINKS_MAX {
        let (above, name) = split(&path)?;
        let directory = open(above, DIRECTORY).map_err(|errno| match errno {
            Errno::ENOENT => Failure::no_directory(),
            errno => Failure::system("open the directory above it")(errno),
        })?;
        let target = match fstatat(
            &directory,
            OsStr::from_bytes(name),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        ) {
            Ok(stat) if kind(stat.st_mode) == SFlag::S_IFLNK && !follow => {
                return match is_directory {
                    // With a slash at its end, and to nowhere.
                    true => Err(link_in_the_way()),
                    false => Ok(Landing::As(directory, name.to_vec())),
                };
            }
            Ok(stat) if kind(stat.st_mode) == SFlag::S_IFLNK => {
                readlinkat(&directory, OsStr::from_bytes(name))
                    .map_err(Failure::system("read the link"))?
                    .into_vec()
            }
            Ok(_) | Err(Errno::ENOENT) => return Ok(Landing::As(directory, name.to_vec())),
            Err(errno) => return Err(Failure::system("look at what is there")(errno)),
        };
        path = match target.first() {
            Some(b'/') => target,
            _ => [above, b"/", &target].concat(),
        };
    }
    Err(Failure::system("follow the link")(Errno::ELOOP))
}

/// The directory and the name in it that `path` ends in.
fn split(path: &[u8]) -> Result<(&[u8], &[u8]), Failure> {
    let mut path = path;
    while let Some(rest) = path.strip_suffix(b"/").or(path.strip_suffix(b"/.")) {
        path = rest;
    }
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let (above, name) = match slash {
        // With the slash: it may be that of the root.
        Some(slash) => path
            .split_at_checked(slash.saturating_add(1))
            .unwrap_or_default(),
        None => (&b"."[..], path),
    };
    if matches!(name, b"" | b"." | b"..") {
        let why = "the path does not end in a name";
        return Err(Failure::refused(FileFailureKind::BadRequest, why));
    }
    Ok((above, name))
}

/// The type in a mode.
pub(crate) fn kind(mode: u32) -> SFlag {
    SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits())
}
