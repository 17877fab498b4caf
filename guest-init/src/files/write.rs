//! Writing a file: under a name of its own beside the final one, which it gets
//! when it is complete.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};

use flashpan_protocol::file::{FileFailureKind, FileInput, WriteRequest};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use super::link::{Link, Stop, failed, refused};
use super::place::{Place, place, regular};

/// Permissions of a new file if nothing else is said.
const MODE: u32 = 0o644;

/// Receives the file that `request` describes.
pub(super) fn write(link: &mut Link, root: &OwnedFd, request: &WriteRequest) -> Result<(), Stop> {
    // To fchown(2) it means that nothing is changed, so the file would be root's.
    if [request.uid, request.gid].contains(&Some(u32::MAX)) {
        let message = "4294967295 is no user and no group";
        return Err(refused(FileFailureKind::BadRequest, message));
    }
    let Place { directory, name } = place(root, &request.path, request.parents)?;
    let old = replaced(&directory, name)?;
    let mut temporary = Temporary::create(&directory).map_err(failed("make a file beside it"))?;
    loop {
        match link.receive()? {
            FileInput::Data(bytes) => {
                write_all(&temporary.file, &bytes).map_err(failed("write it"))?;
            }
            FileInput::End => break,
            FileInput::Start(_)
            | FileInput::Entry(_)
            | FileInput::Close
            | FileInput::Enter(_)
            | FileInput::HardLink { .. } => {
                return Err(Stop::Gone);
            }
        }
    }
    let old = |of: fn(&FileStat) -> u32, none| old.as_ref().map_or(none, of);
    let uid = request.uid.unwrap_or_else(|| old(|old| old.st_uid, 0));
    let gid = request.gid.unwrap_or_else(|| old(|old| old.st_gid, 0));
    let mode = request.mode.unwrap_or_else(|| old(|old| old.st_mode, MODE));
    // In this order: a new owner takes away the set-user-id bit.
    fchown(
        &temporary.file,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
    )
    .map_err(failed("set its owner"))?;
    fchmod(&temporary.file, Mode::from_bits_truncate(mode & 0o7777))
        .map_err(failed("set its permissions"))?;
    temporary
        .rename(name)
        .map_err(failed("give it its final name"))
}

/// The regular file that is there now, if any. Something else is not replaced,
/// but for a symbolic link.
fn replaced(directory: &OwnedFd, name: &OsStr) -> Result<Option<FileStat>, Stop> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits() => Ok(None),
        Ok(stat) => regular(&stat).map(|()| Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(failed("look at what is there")(errno)),
    }
}

/// A file that is removed when it is dropped.
#[derive(Debug)]
struct Temporary<'a> {
    directory: &'a OwnedFd,
    name: OsString,
    file: OwnedFd,
    /// Whether it has its final name.
    renamed: bool,
}

impl<'a> Temporary<'a> {
    /// Makes one that only root can read.
    fn create(directory: &'a OwnedFd) -> nix::Result<Self> {
        let temporary = flashpan_tree_copy::Temporary::file(directory)?;
        Ok(Self {
            directory,
            name: temporary.name,
            file: temporary.made,
            renamed: false,
        })
    }

    fn rename(&mut self, to: &OsStr) -> nix::Result<()> {
        let directory = self.directory;
        renameat(directory, self.name.as_os_str(), directory, to)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.renamed {
            let flags = UnlinkatFlags::NoRemoveDir;
            let _ = unlinkat(self.directory, self.name.as_os_str(), flags);
        }
    }
}

fn write_all(file: impl AsFd, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(&file, bytes) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
