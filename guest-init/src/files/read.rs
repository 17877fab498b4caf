//! Operations that change nothing.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use flashpan_protocol::agent::{Bytes, MAX_DATA};
use flashpan_protocol::file::{Entry, FileOutput, MAX_ENTRIES};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{fstat, fstatat};
use nix::unistd::{Whence, lseek};

use super::link::{Link, Stop, failed};
use super::place::{describe, open, regular};
use crate::anchors::duplicate;

/// Describes the file at `path`.
pub(super) fn stat(link: &mut Link, root: &OwnedFd, path: &[u8], follow: bool) -> Result<(), Stop> {
    let link_itself = if follow {
        OFlag::empty()
    } else {
        OFlag::O_NOFOLLOW
    };
    let file = open(root, path, OFlag::O_PATH | link_itself)?;
    let stat = fstat(&file).map_err(failed("look at it"))?;
    link.send(&FileOutput::Info(describe(&stat)))
}

/// Sends the file at `path`, from `offset` on, at most `length` bytes.
///
/// It is read to its end, whatever its size: the files of /proc say that they
/// are empty, and others grow.
pub(super) fn read(
    link: &mut Link,
    root: &OwnedFd,
    path: &[u8],
    offset: u64,
    length: Option<u64>,
) -> Result<(), Stop> {
    // Looked at before it is opened: opening alone makes some devices act. In
    // between a program can put another thing there, whose opening and reading
    // still wait for nobody.
    let look = fstat(open(root, path, OFlag::O_PATH)?).map_err(failed("look at it"))?;
    regular(&look)?;
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = open(root, path, flags)?;
    let stat = fstat(&file).map_err(failed("look at it"))?;
    regular(&stat)?;
    link.send(&FileOutput::Info(describe(&stat)))?;
    if offset > 0 {
        let to = i64::try_from(offset).map_err(|_| failed("find the offset")(Errno::EINVAL))?;
        lseek(&file, to, Whence::SeekSet).map_err(failed("find the offset"))?;
    }
    let mut left = length.unwrap_or(u64::MAX);
    while left > 0 {
        let most = usize::try_from(left).map_or(MAX_DATA, |left| left.min(MAX_DATA));
        let mut data = vec![0; most];
        match nix::unistd::read(&file, &mut data) {
            Ok(0) => break,
            Ok(n) => {
                data.truncate(n);
                left = left.saturating_sub(u64::try_from(n).unwrap_or(u64::MAX));
                link.send(&FileOutput::Data(data))?;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed("read it")(errno)),
        }
    }
    Ok(())
}

/// Sends the entries of the directory at `path`.
pub(super) fn list(link: &mut Link, root: &OwnedFd, path: &[u8]) -> Result<(), Stop> {
    let what = "read the directory";
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
    let directory = open(root, path, flags)?;
    let listing = duplicate(&directory).and_then(Dir::from_fd);
    let mut listing = listing.map_err(failed(what))?;
    let (mut entries, mut names) = (Vec::new(), 0_usize);
    for entry in listing.iter() {
        let entry = entry.map_err(failed(what))?;
        let name = entry.file_name();
        let Some(entry) = look_at(&directory, name).map_err(failed(what))? else {
            continue;
        };
        let length = entry.name.len();
        if entries.len() == MAX_ENTRIES || names.saturating_add(length) > MAX_DATA / 2 {
            link.send(&FileOutput::Entries(std::mem::take(&mut entries)))?;
            names = 0;
        }
        names = names.saturating_add(length);
        entries.push(entry);
    }
    if entries.is_empty() {
        return Ok(());
    }
    link.send(&FileOutput::Entries(entries))
}

/// The entry `name` of `directory`; `None` if it is not one or gone already.
fn look_at(directory: impl AsFd, name: &CStr) -> nix::Result<Option<Entry>> {
    if matches!(name.to_bytes(), b"." | b"..") {
        return Ok(None);
    }
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Entry {
            name: Bytes::from(name.to_bytes()),
            stat: describe(&stat),
        })),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}
