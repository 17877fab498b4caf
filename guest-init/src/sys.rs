//! The system calls that have no safe interface elsewhere.
//!
//! `unsafe`: each function wraps one call and is safe for any argument of its
//! types.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};

use flashpan_protocol::agent::{ExitStatus, TerminalSize};
use nix::errno::Errno;

/// Flags of clone3(2) that the libc crate has in a type too small for them.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_PIDFD: u64 = 0x1000;

/// `FIFREEZE` of linux/fs.h: `_IOWR('X', 119, int)`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;

/// Arguments of clone3(2), `struct clone_args`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A child as its parent sees it.
#[derive(Debug)]
pub(crate) struct Forked {
    pub(crate) pid: i32,
    /// Readable once the child has ended.
    pub(crate) pidfd: OwnedFd,
}

/// Forks into `cgroup` (a directory of cgroup v2) and into new `namespaces` (flags
/// of clone(2)) with all signal handlers reset. The child runs `child(data)` and
/// nothing else.
///
/// The child is a copy of this process at this moment: other threads' locks
/// stay locked in it. So `child` must make only async-signal-safe calls: no
/// allocation, no formatting, no destructors that matter.
pub(crate) fn fork_into<T>(
    cgroup: Option<BorrowedFd<'_>>,
    namespaces: u64,
    child: fn(&T) -> !,
    data: &T,
) -> nix::Result<Forked> {
    /// The signal by which the parent learns of the child's end.
    const EXIT_SIGNAL: u64 = 17; // SIGCHLD
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: CLONE_CLEAR_SIGHAND | CLONE_PIDFD | namespaces,
        pidfd: std::ptr::from_mut(&mut pidfd).expose_provenance() as u64,
        exit_signal: EXIT_SIGNAL,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: the arguments are a valid clone_args of the size given, `pidfd`
    // outlives the call, and without CLONE_VM the child gets its own copy of
    // memory and stack, so it cannot disturb the parent.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match i32::try_from(Errno::result(result)?) {
        Ok(0) => child(data),
        Ok(pid) => Ok(Forked {
            pid,
            // SAFETY: clone3 succeeded with CLONE_PIDFD, so it stored a new
            // descriptor (close-on-exec) that nobody else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
        Err(_) => Err(Errno::EOVERFLOW),
    }
}

/// A descriptor of this process.
pub(crate) fn own_pidfd() -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes numbers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Children that are made from here on are in the process namespace of the
/// process of `pidfd`, which is this process's or below it.
pub(crate) fn children_join(pidfd: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: setns takes numbers; this process itself changes no namespace.
    Errno::result(unsafe { libc::setns(pidfd.as_raw_fd(), libc::CLONE_NEWPID) }).map(drop)
}

/// Sends a signal to the process of `pidfd`.
pub(crate) fn signal_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means that of kill(2).
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            none,
            0,
        )
    };
    Errno::result(sent).map(drop)
}

/// A copy of the mount at `directory`, with those below it, that is nowhere yet.
pub(crate) fn copy_mounts(directory: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_int = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    let empty = c"".as_ptr();
    // SAFETY: the path is a valid C string; a new descriptor or -1 is returned.
    let fd = Errno::result(unsafe {
        libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), empty, flags)
    })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the mount at `directory` read-only, but not those below it.
pub(crate) fn make_read_only(directory: BorrowedFd<'_>) -> nix::Result<()> {
    // `struct mount_attr`: the attributes to set (MOUNT_ATTR_RDONLY), those to take
    // away, propagation, a user namespace.
    let attributes = [1_u64, 0, 0, 0];
    // SAFETY: the path is a valid C string, and the kernel reads as many bytes as it
    // is told.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    Errno::result(set).map(drop)
}

/// Starts a thread with a table of descriptors of its own: in it are copies of
/// `fds`, which `work` gets together with `flag`, those of 0 to 2 and of the number
/// `also`, and what `work` opens. Returns once that is so: then neither has anything that the other
/// opens or closes, and children of this process have nothing of the thread's.
pub(crate) fn thread_apart<const N: usize>(
    thread: std::thread::Builder,
    fds: [BorrowedFd<'_>; N],
    also: RawFd,
    flag: Arc<AtomicBool>,
    work: fn([OwnedFd; N], &AtomicBool),
) -> nix::Result<()> {
    let fds = fds.map(|fd| fd.as_raw_fd());
    let (sender, is_apart) = mpsc::sync_channel(1);
    let main = move || {
        let apart = keep_only(&fds, also);
        let failed = apart.is_err();
        // The other side waits for it.
        let _ = sender.send(apart);
        if !failed {
            // SAFETY: the numbers are of this thread's own table, where nobody
            // owns them: `work` can have nothing that means the other table.
            work(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }), &flag);
        }
    };
    let started = thread.spawn(main);
    started.map_err(|error| error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))?;
    is_apart.recv().unwrap_or(Err(Errno::EAGAIN))
}

/// Gives this thread a table of descriptors of its own, without all but these and 0
/// to 2.
fn keep_only(fds: &[RawFd], also: RawFd) -> nix::Result<()> {
    let close = |first: u32, last: u32| {
        let flags = libc::CLOSE_RANGE_UNSHARE;
        // SAFETY: close_range takes numbers. What it closes is in a table that only
        // this thread has, and in which no object owns anything yet.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
    };
    let kept = fds.iter().chain([&also]);
    let mut kept: Vec<u32> = kept.filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if first < fd {
            close(first, fd - 1)?;
        }
        first = first.max(fd.saturating_add(1));
    }
    close(first, u32::MAX)
}

/// A child that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) pid: i32,
    pub(crate) status: ExitStatus,
}

/// Which children [`wait`] looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Children {
    Any,
    One(i32),
}

/// Looks for an ended child without blocking; with `reap` it is also removed.
///
/// `Ok(None)`: there are children, but none has ended. `ECHILD`: none left.
pub(crate) fn wait(children: Children, reap: bool) -> nix::Result<Option<Ended>> {
    let (kind, id) = match children {
        Children::Any => (libc::P_ALL, 0),
        Children::One(pid) => (libc::P_PID, pid.unsigned_abs()),
    };
    let keep = if reap { 0 } else { libc::WNOWAIT };
    // SAFETY: siginfo_t is plain data, for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is valid for writes for the length of the call.
    let result = unsafe {
        libc::waitid(
            kind,
            id,
            &raw mut info,
            libc::WEXITED | libc::WNOHANG | keep,
        )
    };
    Errno::result(result)?;
    // SAFETY: waitid filled the SIGCHLD members of the union, or left zeroes.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let status = if info.si_code == libc::CLD_EXITED {
        ExitStatus::Code(u8::try_from(status & 0xff).unwrap_or(u8::MAX))
    } else {
        ExitStatus::Signal(status)
    };
    Ok(Some(Ended { pid, status }))
}

/// kill(2); nix cannot send real-time signals. `signal` 0 only asks.
pub(crate) fn kill(target: i32, signal: i32) -> nix::Result<()> {
    // SAFETY: kill takes numbers only.
    Errno::result(unsafe { libc::kill(target, signal) }).map(drop)
}

/// Blocks every signal that can be blocked.
pub(crate) fn block_all_signals() {
    // SAFETY: sigset_t is plain data that sigfillset initialises.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for the calls; changing the mask has no other
    // effect on memory.
    unsafe {
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Opens the slave of the pseudo-terminal `master`, by the master itself: no
/// path is involved that a program could have replaced.
pub(crate) fn open_slave(master: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a descriptor.
    let fd = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the size of a terminal; its foreground process group gets SIGWINCH.
pub(crate) fn set_terminal_size(terminal: BorrowedFd<'_>, size: TerminalSize) -> nix::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
        .map(drop)
}

/// Freezes the file system that `directory` is on: everything is written, its
/// journal is empty, and nothing can write any more, whoever still has files
/// open.
pub(crate) fn freeze(directory: impl AsFd) -> nix::Result<()> {
    // SAFETY: FIFREEZE ignores its argument.
    Errno::result(unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), FIFREEZE, 0) }).map(drop)
}

/// Raises the network interface `name` (at most 15 bytes).
pub(crate) fn interface_up(socket: impl AsFd, name: &str) -> nix::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = 1; // IFF_UP
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    Errno::result(unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )
    })
    .map(drop)
}

/// The number of the network interface `name` (at most 15 bytes).
pub(crate) fn interface_index(socket: impl AsFd, name: &str) -> nix::Result<u32> {
    let mut request = interface_request(name)?;
    // SAFETY: SIOCGIFINDEX reads and writes one ifreq.
    Errno::result(unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCGIFINDEX,
            &raw mut request,
        )
    })?;
    // SAFETY: the call has set this one of the union.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    u32::try_from(index).map_err(|_| Errno::ENODEV)
}

/// A request about the network interface `name`.
fn interface_request(name: &str) -> nix::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Bytes of memory that the kernel manages.
pub(crate) fn total_memory() -> u64 {
    // SAFETY: sysinfo is plain data, for which all zeroes is a valid value.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is valid for writes.
    unsafe { libc::sysinfo(&raw mut info) };
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// Stops this process for ever; for when even power-off does not work.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: pause takes nothing; all signals are blocked or ignored.
        unsafe { libc::pause() };
    }
}

/// Accepts a connection of a vsock listener, non-blocking and close-on-exec,
/// with the context identifier of its peer.
pub(crate) fn accept_vsock(listener: impl AsFd) -> nix::Result<(OwnedFd, u32)> {
    // SAFETY: sockaddr_vm is plain data, for which all zeroes is a valid value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: `address` is valid for writes of `length` bytes.
    let fd = Errno::result(unsafe {
        libc::accept4(
            listener.as_fd().as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    })?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address.svm_cid))
}

/// Sets how long a vsock connect may take.
pub(crate) fn set_connect_timeout(socket: impl AsFd, seconds: i64) -> nix::Result<()> {
    /// `SO_VM_SOCKETS_CONNECT_TIMEOUT` of linux/vm_sockets.h, 64-bit form.
    const CONNECT_TIMEOUT: libc::c_int = 6;
    let time = libc::timeval {
        tv_sec: seconds,
        tv_usec: 0,
    };
    let length = libc::socklen_t::try_from(size_of_val(&time)).unwrap_or(0);
    // SAFETY: the option reads one timeval, of the length given.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            (&raw const time).cast(),
            length,
        )
    })
    .map(drop)
}

/// Waits until `socket` (a raw number: the caller may be a panic hook that owns
/// nothing) has been closed by its peer, giving up when nothing has
/// arrived for `milliseconds`.
pub(crate) fn wait_until_closed(socket: i32, milliseconds: i32) {
    let mut buffer = [0_u8; 256];
    loop {
        let mut poll = libc::pollfd {
            fd: socket,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `poll` is one pollfd, valid for the length of the call.
        if unsafe { libc::poll(&raw mut poll, 1, milliseconds) } <= 0 {
            return;
        }
        // SAFETY: the buffer is valid for writes of its length.
        let received = unsafe {
            libc::recv(
                socket,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        if received <= 0 {
            return;
        }
    }
}
