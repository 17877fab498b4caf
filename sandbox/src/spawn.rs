//! Starting a child with nothing but what it needs, and reaping it for certain.
//!
//! A process that was killed ends when the kernel lets it: one that waits for a
//! disk or a network file system that does not answer stays until that does. It is
//! waited for as long as [`KILLED_WITHIN`], and reaped when the next child is
//! started after its end.
//!
//! `std::process` cannot place a descriptor at a number of our choice without
//! `pre_exec`, which makes it fork; `posix_spawn` does both the placing and
//! the closing and never copies page tables, so the cost of a start does not
//! grow with the embedder's memory.
#![allow(unsafe_code)] // posix_spawn(3) and pidfd_open(2) have no safe wrapper that does this.

use std::ffi::{CStr, CString, c_char, c_int, c_short};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use flashpan_rootfs::child;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// Descriptors are moved at least this high before they are placed, so that no
/// placement overwrites one that is still to be placed.
const OUT_OF_THE_WAY: c_int = 64;

/// How long a child that was killed may take to end.
pub(crate) const KILLED_WITHIN: Duration = Duration::from_secs(10);

/// Children that were still there when nobody waited for them any more.
static LEFT: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildStatus {
    Exited(i32),
    Signaled(i32),
    /// It has not: it was waited for in vain.
    StillThere,
    /// Somebody else reaps it, or SIGCHLD is ignored in this process.
    Unknown,
}

impl fmt::Display for ChildStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with status {code}"),
            Self::Signaled(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "was killed by signal {number} ({signal})"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
            Self::StillThere => write!(f, "does not end"),
            Self::Unknown => write!(f, "ended, and its status was lost"),
        }
    }
}

/// A child process. Dropping it kills it, and waits for it as long as
/// [`KILLED_WITHIN`] if that was not done before.
#[derive(Debug)]
pub(crate) struct Child {
    pid: c_int,
    pidfd: AsyncFd<OwnedFd>,
    killed: bool,
    status: Option<ChildStatus>,
}

impl Child {
    /// Starts `program` with these arguments and no environment. It gets
    /// `/dev/null` as standard input and output, `stderr` as standard error and
    /// `control` as descriptor `control_fd`; every other descriptor is closed.
    /// It leads a session of its own, so a terminal's signals do not reach it.
    ///
    /// # Errors
    /// If the program cannot be executed or there are too many processes.
    pub(crate) fn spawn(
        program: &Path,
        arguments: &[&CStr],
        stderr: BorrowedFd<'_>,
        control: BorrowedFd<'_>,
        control_fd: c_int,
    ) -> io::Result<Self> {
        reap_left();
        let path = CString::new(program.as_os_str().as_bytes())?;
        let stderr = out_of_the_way(stderr)?;
        let control = out_of_the_way(control)?;

        let mut actions = Actions::new()?;
        actions.open_null(0)?;
        actions.place(0, 1)?;
        actions.place(stderr.as_raw_fd(), 2)?;
        actions.place(control.as_raw_fd(), control_fd)?;
        actions.close_from(control_fd.saturating_add(1))?;
        let attributes = Attributes::new()?;

        let arguments: Vec<*const c_char> = std::iter::once(path.as_ptr())
            .chain(arguments.iter().map(|argument| argument.as_ptr()))
            .chain([std::ptr::null()])
            .collect();
        let environment: [*const c_char; 1] = [std::ptr::null()];
        let mut pid = 0;
        // SAFETY: the strings and both null-terminated arrays live until the call
        // returns; actions and attributes are initialised. posix_spawn does not
        // write through the argument pointers (POSIX declares them so for
        // historical reasons only).
        let result = child::start(|| unsafe {
            libc::posix_spawn(
                &raw mut pid,
                path.as_ptr(),
                actions.as_ptr(),
                attributes.as_ptr(),
                arguments.as_ptr().cast(),
                environment.as_ptr().cast(),
            )
        });
        check(result)?;
        // SAFETY: pidfd_open takes a pid and flags and returns a new descriptor
        // or -1. The pid is our child that nobody has waited for, so it cannot
        // have been reused.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let watched = watch(pidfd);
        if watched.is_err() {
            // It cannot be supervised, so it must not live on. This waits for
            // nothing that posix_spawn did not wait for just as long.
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(pid, None);
        }
        Ok(Self {
            pid,
            pidfd: watched?,
            killed: false,
            status: None,
        })
    }

    /// Its number, which means something until it is reaped.
    pub(crate) fn pid(&self) -> c_int {
        self.pid
    }

    /// Waits until it has ended. Cancel safe.
    pub(crate) async fn wait(&mut self) -> ChildStatus {
        if let Some(status) = self.status {
            return status;
        }
        // A pidfd is readable when its process has ended. It cannot be waited for
        // so where the runtime is about to end.
        let ended = self.pidfd.readable().await.is_ok() || self.block();
        self.collect(ended)
    }

    /// Waits until it has ended, and gives it up after this time.
    pub(crate) async fn wait_at_most(&mut self, within: Duration) -> ChildStatus {
        match timeout(within, self.wait()).await {
            Ok(status) => status,
            Err(_) => self.collect(false),
        }
    }

    /// SIGKILL. Nothing happens the second time.
    pub(crate) fn kill(&mut self) {
        if self.status.is_none() && !std::mem::replace(&mut self.killed, true) {
            // SAFETY: the pidfd is open; a null siginfo is allowed and means
            // that of kill(2). An error means that the process has ended.
            unsafe {
                libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    self.pidfd.as_raw_fd(),
                    libc::SIGKILL,
                    std::ptr::null::<libc::siginfo_t>(),
                    0,
                )
            };
        }
    }

    /// Waits for its end on this thread, as long as [`KILLED_WITHIN`]; whether it
    /// has ended.
    fn block(&self) -> bool {
        let until = Instant::now() + KILLED_WITHIN;
        let mut ended = [PollFd::new(self.pidfd.get_ref().as_fd(), PollFlags::POLLIN)];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            match poll(&mut ended, left) {
                Err(Errno::EINTR) => {}
                ready => return ready.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Collects the status, and leaves what cannot be reaped yet to the next start:
    /// a child that is still there, or one that has `ended` in the hands of a
    /// debugger.
    fn collect(&mut self, ended: bool) -> ChildStatus {
        if let Some(status) = self.status {
            return status;
        }
        let pidfd = self.pidfd.get_ref();
        let status = look(pidfd).unwrap_or_else(|| {
            if let Ok(pidfd) = pidfd.try_clone() {
                let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
                left.push(pidfd);
            }
            match ended {
                true => ChildStatus::Unknown,
                false => ChildStatus::StillThere,
            }
        });
        self.status = Some(status);
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        if self.status.is_none() {
            let ended = self.block();
            self.collect(ended);
        }
    }
}

/// How a child has ended, which is then reaped; `None` if it is not to be had.
fn look(pidfd: &OwnedFd) -> Option<ChildStatus> {
    loop {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        return Some(match waitid(Id::PIDFd(pidfd.as_fd()), flags) {
            Ok(WaitStatus::Exited(_, code)) => ChildStatus::Exited(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => ChildStatus::Signaled(signal as c_int),
            Ok(WaitStatus::StillAlive) => return None,
            Err(Errno::EINTR) => continue,
            Ok(_) | Err(_) => ChildStatus::Unknown,
        });
    }
}

/// Reaps those that have ended since they were left.
fn reap_left() {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.retain(|pidfd| look(pidfd).is_none());
}

/// Takes the result of `pidfd_open` under the runtime's watch.
fn watch(pidfd: libc::c_long) -> io::Result<AsyncFd<OwnedFd>> {
    let pidfd = c_int::try_from(pidfd)
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor is new and nobody else's.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: an OwnedFd keeps the same descriptor open for its whole life.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

fn out_of_the_way(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(OUT_OF_THE_WAY))?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// posix_spawn and its helpers return the error number.
fn check(result: c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}

/// `posix_spawn_file_actions_t` with an owner.
struct Actions(MaybeUninit<libc::posix_spawn_file_actions_t>);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: init takes uninitialised memory and initialises it.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(Self(actions))
    }

    fn as_ptr(&self) -> *const libc::posix_spawn_file_actions_t {
        self.0.as_ptr()
    }

    fn open_null(&mut self, fd: c_int) -> io::Result<()> {
        // SAFETY: initialised in `new`; the path is a constant.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(
                self.0.as_mut_ptr(),
                fd,
                c"/dev/null".as_ptr(),
                libc::O_RDWR,
                0,
            )
        })
    }

    fn place(&mut self, from: c_int, to: c_int) -> io::Result<()> {
        // SAFETY: initialised in `new`; the numbers are only recorded.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), from, to) })
    }

    /// Closes what the embedder left open without `O_CLOEXEC`.
    #[cfg(target_env = "gnu")]
    fn close_from(&mut self, first: c_int) -> io::Result<()> {
        // SAFETY: initialised in `new`; the number is only recorded.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(self.0.as_mut_ptr(), first) })
    }

    /// Other C libraries lack the action; the VMM closes strays itself as well.
    #[cfg(not(target_env = "gnu"))]
    fn close_from(&mut self, _first: c_int) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new` and destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

/// `posix_spawnattr_t` with an owner: a new session, no signal blocked, all
/// signals at their defaults (Rust programs ignore SIGPIPE, for one).
struct Attributes(MaybeUninit<libc::posix_spawnattr_t>);

impl Attributes {
    fn new() -> io::Result<Self> {
        const FLAGS: c_int = libc::POSIX_SPAWN_SETSIGMASK
            | libc::POSIX_SPAWN_SETSIGDEF
            | libc::POSIX_SPAWN_SETSID as c_int;
        let flags = c_short::try_from(FLAGS).unwrap_or(0);
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: init takes uninitialised memory and initialises it.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut attributes = Self(attributes);
        let pointer = attributes.0.as_mut_ptr();
        let none = nix::sys::signal::SigSet::empty();
        let all = nix::sys::signal::SigSet::all();
        // SAFETY: initialised above; the sets are copied.
        unsafe {
            check(libc::posix_spawnattr_setsigmask(pointer, none.as_ref()))?;
            check(libc::posix_spawnattr_setsigdefault(pointer, all.as_ref()))?;
            check(libc::posix_spawnattr_setflags(pointer, flags))?;
        }
        Ok(attributes)
    }

    fn as_ptr(&self) -> *const libc::posix_spawnattr_t {
        self.0.as_ptr()
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new` and destroyed once.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child that stays until it is killed.
    fn sleeper() -> Child {
        let nothing = std::fs::File::open("/dev/null").unwrap();
        let path = Path::new("/bin/sleep");
        Child::spawn(path, &[c"1000"], nothing.as_fd(), nothing.as_fd(), 3).unwrap()
    }

    #[tokio::test]
    async fn a_child_that_does_not_end_is_given_up_and_reaped_by_a_later_start() {
        let mut child = sleeper();
        let pid = child.pid();
        let pidfd = child.pidfd.get_ref().try_clone().unwrap();
        let still_there = child.wait_at_most(Duration::from_millis(1)).await;
        assert_eq!(still_there, ChildStatus::StillThere);
        // Nor does anything wait for it later.
        assert_eq!(child.wait().await, ChildStatus::StillThere);
        drop(child);
        let process = format!("/proc/{pid}");
        assert!(Path::new(&process).exists());
        // What kept it is over.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        poll(
            &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
            PollTimeout::NONE,
        )
        .unwrap();
        drop(sleeper());
        assert!(!Path::new(&process).exists());
    }
}
