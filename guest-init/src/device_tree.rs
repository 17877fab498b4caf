//! The `/dev` of confined programs: devices that are harmless in any hand, and
//! what programs expect besides. The VM's own `/dev` has its disks and its memory.
//!
//! It is made once, where no path leads to it when the root file system is in
//! place, and its mounts are copied for each program. The file system is the same
//! one for all, so the copies are read-only: what one program made or removed there
//! all others would find. Terminals, shared memory and message queues are those of
//! the VM, and can be written.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fchmodat, makedev, mknod};
use nix::unistd::{mkdir, symlinkat};

use crate::mounts;
use crate::sys;

/// Where it is in the initramfs.
pub(crate) const DIRECTORY: &str = "/confined-dev";

/// Name, major and minor number of the devices.
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links besides [`mounts::LINKS`].
const PTMX: (&str, &str) = ("pts/ptmx", "ptmx");

/// Mounts of the VM's `/dev` that are there too.
const SHARED: [&str; 3] = ["pts", "shm", "mqueue"];

/// The `/dev` to copy.
#[derive(Debug)]
pub(crate) struct DeviceTree {
    directory: OwnedFd,
}

impl DeviceTree {
    /// Makes it at `directory`, with the mounts of `/dev`.
    pub(crate) fn make(directory: &str) -> nix::Result<Self> {
        mounts::directory(directory)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let options = Some("mode=755,size=64k");
        mount(Some("dev"), directory, Some("tmpfs"), flags, options)?;
        let directory = Path::new(directory);
        let everyone = Mode::from_bits_truncate(0o666);
        for (name, major, minor) in DEVICES {
            let path = directory.join(name);
            mknod(&path, SFlag::S_IFCHR, everyone, makedev(major, minor))?;
            // Whatever this process's umask is.
            let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
            fchmodat(nix::fcntl::AT_FDCWD, &path, everyone, follow)?;
        }
        let links = mounts::LINKS.iter().filter_map(|(to, link)| {
            let name = link.strip_prefix("/dev/")?;
            Some((*to, name))
        });
        for (to, name) in links.chain([PTMX]) {
            symlinkat(to, nix::fcntl::AT_FDCWD, &directory.join(name))?;
        }
        for name in SHARED {
            let from = Path::new("/dev").join(name);
            let to = directory.join(name);
            mkdir(&to, Mode::from_bits_truncate(0o755))?;
            let none = None::<&str>;
            let bound = mount(Some(&from), &to, none, MsFlags::MS_BIND, none);
            // Programs can do without message queues and shared memory.
            if name == "pts" {
                bound?;
            }
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(directory, flags, Mode::empty())?;
        Ok(Self { directory })
    }

    /// Where it is, though no path leads there: for files of PID 1.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.directory.as_raw_fd()).into()
    }

    /// A copy that is nowhere yet.
    pub(crate) fn copy(&self) -> nix::Result<OwnedFd> {
        let copy = sys::copy_mounts(self.directory.as_fd())?;
        sys::make_read_only(copy.as_fd())?;
        Ok(copy)
    }
}
