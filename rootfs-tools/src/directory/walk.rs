//! Walks a host directory without ever following a symbolic link.
//!
//! Every step is relative to a descriptor of the directory that was entered,
//! so that nobody who changes the tree meanwhile can lead the walk elsewhere.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, StatxFlags};

use super::Error;

/// Entering a directory, and nothing but a directory.
const ENTER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// One thing that the walk came across.
pub(super) struct Found<'a> {
    /// The directory that it is in.
    pub(super) directory: BorrowedFd<'a>,
    /// Its name there; `.` for the root of the walk.
    pub(super) name: &'a CStr,
    /// Its path on the host.
    pub(super) path: &'a Path,
    /// What `fstatat` says of it.
    pub(super) stat: &'a Stat,
    /// Where it leads, if it is a symbolic link.
    pub(super) target: Option<&'a [u8]>,
}

impl Found<'_> {
    /// Type of the file.
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

/// What the walk tells, in order: the root, then the entries of each directory
/// in the order of their bytes, those of a subdirectory right after it.
pub(super) enum Step<'a> {
    /// Something; if it is a directory, its entries and a [`Step::Leave`] follow.
    Found(Found<'a>),
    /// The directory found last has another file system mounted on it, and is
    /// told as an empty one. Its path on the host.
    LeftOut(&'a Path),
    /// The end of the directory found last and not left yet.
    Leave,
}

/// A directory that the walk is in.
struct Frame {
    fd: OwnedFd,
    /// Names that are still to come, the next last.
    names: Vec<CString>,
}

/// Walks the tree below `root`, which may itself be a symbolic link to a
/// directory. A directory on which another file system is mounted is told as
/// an empty one unless `cross`.
pub(super) fn walk(
    root: &Path,
    cross: bool,
    visit: &mut dyn FnMut(Step<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let flags = ENTER.difference(OFlags::NOFOLLOW);
    let fd = rustix::fs::open(root, flags, Mode::empty()).map_err(Error::reading(root))?;
    let stat = rustix::fs::fstat(&fd).map_err(Error::reading(root))?;
    let device = stat.st_dev;
    let mount = mount_id(fd.as_fd(), c"");
    let directory = fd.as_fd();
    visit(Step::Found(Found {
        directory,
        name: c".",
        path: root,
        stat: &stat,
        target: None,
    }))?;

    let mut path = root.to_owned();
    let mut frames = vec![Frame::read(fd, &path)?];
    while let Some(frame) = frames.last_mut() {
        let Some(name) = frame.names.pop() else {
            frames.pop();
            path.pop();
            visit(Step::Leave)?;
            continue;
        };
        path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let stat = rustix::fs::statat(&frame.fd, &name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(Error::reading(&path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let target = match kind {
            FileType::Symlink => Some(
                rustix::fs::readlinkat(&frame.fd, &name, Vec::new())
                    .map_err(Error::reading(&path))?,
            ),
            _ => None,
        };
        visit(Step::Found(Found {
            directory: frame.fd.as_fd(),
            name: &name,
            path: &path,
            stat: &stat,
            target: target.as_deref().map(CStr::to_bytes),
        }))?;
        // A btrfs subvolume has a device number of its own, but is a directory
        // like any other.
        let enter = kind == FileType::Directory
            && (cross || stat.st_dev == device || {
                is_same_mount(mount, mount_id(frame.fd.as_fd(), &name))
            });
        if enter {
            let fd = rustix::fs::openat(&frame.fd, &name, ENTER, Mode::empty())
                .map_err(Error::reading(&path))?;
            frames.push(Frame::read(fd, &path)?);
        } else {
            if kind == FileType::Directory {
                visit(Step::LeftOut(&path))?;
                visit(Step::Leave)?;
            }
            path.pop();
        }
    }
    Ok(())
}

/// The number of the mount that `name` in `directory` belongs to (of
/// `directory` itself if `name` is empty); `None` before Linux 5.8.
fn mount_id(directory: BorrowedFd<'_>, name: &CStr) -> Option<u64> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let stat = rustix::fs::statx(directory, name, flags, StatxFlags::MNT_ID).ok()?;
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
    known.then_some(stat.stx_mnt_id)
}

/// Whether two things with different device numbers are in one mount all the
/// same. Where nobody knows, another device is another file system.
fn is_same_mount(one: Option<u64>, other: Option<u64>) -> bool {
    one.is_some() && one == other
}

impl Frame {
    /// Reads the names in the directory `fd`, whose path is `path`.
    fn read(fd: OwnedFd, path: &Path) -> Result<Self, Error> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd).map_err(Error::reading(path))? {
            let entry = entry.map_err(Error::reading(path))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable_by(|one, other| other.cmp(one));
        Ok(Self { fd, names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_have_numbers_and_directories_those_of_their_mount() {
        let dev = rustix::fs::open("/dev", ENTER, Mode::empty()).unwrap();
        let root = rustix::fs::open("/", ENTER, Mode::empty()).unwrap();
        let id = |fd: &OwnedFd, name| mount_id(fd.as_fd(), name);
        assert!(is_same_mount(id(&dev, c""), id(&dev, c"null")));
        assert!(is_same_mount(id(&root, c""), id(&root, c"usr")));
        assert!(!is_same_mount(id(&dev, c""), id(&dev, c"pts")));
        assert!(!is_same_mount(None, None), "nobody knows");
    }
}
