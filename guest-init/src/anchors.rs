//! Descriptors from before the first program ran, by which PID 1 reaches what
//! it needs while programs run.
//!
//! A program that is root can mount whatever it likes wherever it likes, a FUSE
//! file system without a server above all: whoever looks up a path in that
//! waits for ever. So PID 1 looks up nothing by an absolute path any more, and
//! where it has to open files it crosses no mount.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// What programs cannot take away.
#[derive(Debug)]
pub(crate) struct Anchors {
    root: OwnedFd,
    null: OwnedFd,
    terminals: OwnedFd,
}

impl Anchors {
    /// Opens them; no program may run yet, and the root must be the guest's.
    pub(crate) fn take() -> nix::Result<Self> {
        let at = |path, flags| open(path, flags | OFlag::O_CLOEXEC, Mode::empty());
        Ok(Self {
            root: at("/", OFlag::O_PATH | OFlag::O_DIRECTORY)?,
            null: at("/dev/null", OFlag::O_RDONLY)?,
            terminals: at("/dev/pts", OFlag::O_PATH | OFlag::O_DIRECTORY)?,
        })
    }

    /// Opens a file of the root file system for reading, never what is mounted
    /// over it or on the way to it. Symbolic links stay within the root.
    pub(crate) fn root_file(&self, path: &Path) -> nix::Result<OwnedFd> {
        // The image decides what the path is: do not wait for a FIFO.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let resolve = ResolveFlag::RESOLVE_NO_XDEV
            | ResolveFlag::RESOLVE_IN_ROOT
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        open_beside(&self.root, path, flags, resolve)
    }

    /// A descriptor of the null device.
    pub(crate) fn null(&self) -> nix::Result<OwnedFd> {
        duplicate(&self.null)
    }

    /// A descriptor of the root directory, to look paths up in. Whoever does
    /// that must be ready to wait for ever: not PID 1's loop.
    pub(crate) fn root(&self) -> nix::Result<OwnedFd> {
        duplicate(&self.root)
    }

    /// The master of a new pseudo-terminal, non-blocking.
    pub(crate) fn new_terminal(&self) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
        match open_at(&self.terminals, "ptmx", flags) {
            // Elsewhere than in a guest only root may use this one.
            Err(Errno::EACCES) => open("/dev/ptmx", flags | OFlag::O_CLOEXEC, Mode::empty()),
            result => result,
        }
    }
}

/// Another descriptor of the same open file.
pub(crate) fn duplicate(fd: &OwnedFd) -> nix::Result<OwnedFd> {
    fd.try_clone()
        .map_err(|error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw))
}

/// Opens `name` in `directory`, unless something is mounted there.
pub(crate) fn open_at(
    directory: impl AsFd,
    name: impl AsRef<Path>,
    flags: OFlag,
) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS;
    open_beside(directory, name.as_ref(), flags, resolve)
}

fn open_beside(
    directory: impl AsFd,
    path: &Path,
    flags: OFlag,
    resolve: ResolveFlag,
) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(resolve);
    openat2(directory, path, how)
}

#[cfg(test)]
mod privileged {
    use std::fs;

    use super::Anchors;
    use crate::testing::{in_own_namespaces, unique};
    use crate::users::Accounts;

    #[test]
    #[ignore = "needs root: mounts"]
    fn what_programs_mount_is_not_looked_into() {
        in_own_namespaces(
            "anchors::privileged::what_programs_mount_is_not_looked_into",
            || {
                let anchors = Anchors::take().unwrap();
                let before = Accounts::load(&anchors).passwd;
                assert_eq!(before, fs::read("/etc/passwd").unwrap());

                bind("/dev/null", "/etc/passwd");
                assert_eq!(Accounts::load(&anchors).passwd, b"");
                nix::mount::umount("/etc/passwd").unwrap();
                assert_eq!(Accounts::load(&anchors).passwd, before);
                let fake = std::env::temp_dir().join(format!("etc-{}", unique()));
                fs::create_dir(&fake).unwrap();
                fs::write(fake.join("passwd"), "alice:x:0:0::/:\n").unwrap();
                bind(fake.to_str().unwrap(), "/etc");
                fs::remove_dir_all(fake).unwrap();
                assert_eq!(Accounts::load(&anchors).passwd, b"");

                bind("/usr", "/dev");
                anchors.null().unwrap();
                anchors.new_terminal().unwrap();
            },
        );
    }

    fn bind(from: &str, to: &str) {
        let none = None::<&str>;
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(from), to, none, flags, none).unwrap();
    }
}
