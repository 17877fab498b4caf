//! Names for what is not complete yet.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{linkat, symlinkat};

/// How many names are tried: others may have taken some.
const NAMES_TRIED: usize = 64;

/// Something in a directory under a name of its own.
#[derive(Debug)]
pub struct Temporary<T> {
    /// Its name, which begins with `.flashpan-`.
    pub name: OsString,
    /// What it is.
    pub made: T,
}

impl Temporary<OwnedFd> {
    /// Makes a file that only its owner can read, open for writing.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn file(directory: impl AsFd) -> nix::Result<Self> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        // With O_EXCL a link is not followed.
        make(&mut |name| openat(&directory, name, flags, mode))
    }
}

impl Temporary<()> {
    /// Makes a symbolic link to `target`.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(crate) fn link(directory: impl AsFd, target: &OsStr) -> nix::Result<Self> {
        make(&mut |name| symlinkat(target, &directory, name))
    }

    /// Makes another name for `target`, which is in the directory `from`, and is not
    /// followed.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(crate) fn hard_link(
        directory: impl AsFd,
        from: impl AsFd,
        target: &OsStr,
    ) -> nix::Result<Self> {
        make(&mut |name| linkat(&from, target, &directory, name, AtFlags::empty()))
    }
}

fn make<T>(make: &mut dyn FnMut(&OsStr) -> nix::Result<T>) -> nix::Result<Temporary<T>> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..NAMES_TRIED {
        let time = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos());
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = OsString::from(format!(".flashpan-{time:x}-{count:x}"));
        match make(&name) {
            Ok(made) => return Ok(Temporary { name, made }),
            Err(Errno::EEXIST | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EEXIST)
}

/// Gives what has the name `from` its final one in the same directory.
///
/// # Errors
/// If the kernel refuses it.
pub fn rename_from(directory: impl AsFd, from: &OsStr, to: &OsStr) -> nix::Result<()> {
    renameat(&directory, from, &directory, to)
}
