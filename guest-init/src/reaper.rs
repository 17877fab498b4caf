//! The process that is PID 1 in the process namespace of a program.
//!
//! A program that were PID 1 itself would not be ended by signals that it does not
//! handle, and would have to reap orphans that it knows nothing of. So a process
//! of ours is PID 1 there, and the program is a child of the agent that is put
//! into the same namespace: how it ends, its signals, its terminal are as without
//! a namespace. When the reaper ends the kernel ends all that is in its namespace.
//!
//! It does next to nothing: children that it inherits are reaped by the kernel,
//! since it ignores SIGCHLD. It waits until the agent closes its pipe, then until
//! it has no children, and ends. It has no capabilities, no descriptors but the
//! pipe, and no memory: all is given back but the page with these few
//! instructions, so that no page of the agent is there twice.
//!
//! A program that may trace others (`SYS_PTRACE`) can make it do what it likes, and
//! it is in no control group of that program's: so it has a filter of system calls of
//! its own, which allows what it does and kills it at all else. The program is not
//! executed before that is so.
//!
//! It is in the agent's control group, not in the program's: the limits there are
//! for the program's processes, and that group is empty when they have ended.
//!
//! `unsafe`: it is a copy of the agent in which nothing may be allocated and no
//! lock taken, and which throws its stack away.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::boot;
use crate::confine;
use crate::failure::Failure;
use crate::sys::{self, Forked};
use crate::syscall_filter::{self, Instruction};

/// Its name in lists of processes; at most 15 bytes.
const NAME: &std::ffi::CStr = c"flashpan-reaper";

/// The highest signal of Linux.
const LAST_SIGNAL: i32 = 64;

/// The end of memory of a process on x86-64, with four levels of page tables.
const MEMORY_END: usize = 0x7fff_ffff_f000;

/// `munmap`, `read`, `wait4` and `exit_group`, by their numbers below, and `close`
/// for what tells that this filter is there.
const FILTER: [Instruction; 10] = syscall_filter::only([0, 3, 11, 61, 231]);

/// A running reaper. When this is dropped it ends as soon as its namespace is
/// empty; until then what is in there lives on.
#[derive(Debug)]
pub(crate) struct Reaper {
    pidfd: OwnedFd,
    _leave: OwnedFd,
}

impl Reaper {
    /// Makes a process namespace with its reaper, and a mount namespace like this
    /// process's. The pipe ends when the reaper has given up all that it could be
    /// made to misuse: no program may be executed in the namespace before.
    pub(crate) fn start() -> nix::Result<(Self, OwnedFd)> {
        const NAMESPACES: u64 = 0x2000_0000 | 0x0002_0000; // CLONE_NEWPID, CLONE_NEWNS
        let (pipe, leave) = pipe2(OFlag::O_CLOEXEC)?;
        let (harmless, not_yet) = pipe2(OFlag::O_CLOEXEC)?;
        let pipes = [pipe.as_raw_fd(), not_yet.as_raw_fd()];
        let Forked { pidfd, .. } = sys::fork_into(None, NAMESPACES, reap, &pipes)?;
        let reaper = Self {
            pidfd,
            _leave: leave,
        };
        Ok((reaper, harmless))
    }

    /// Children that are forked until the result is dropped are in the process
    /// namespace.
    pub(crate) fn enter(&self) -> nix::Result<Inside> {
        let own = sys::own_pidfd()?;
        sys::children_join(self.pidfd.as_fd())?;
        Ok(Inside { own })
    }

    /// Ends everything in the namespace.
    pub(crate) fn kill(&self) {
        let _ = sys::signal_pidfd(self.pidfd.as_fd(), libc::SIGKILL);
    }
}

impl AsFd for Reaper {
    /// Its pidfd, to join its mount namespace.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// See [`Reaper::enter`].
#[derive(Debug)]
pub(crate) struct Inside {
    own: OwnedFd,
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(errno) = sys::children_join(self.own.as_fd()) {
            // Whatever is started from here on would end with that program.
            stranded(errno);
        }
    }
}

fn stranded(errno: Errno) {
    let failure = Failure::system("leave a program's process namespace", errno);
    if cfg!(test) {
        // A test must not switch its machine off.
        std::process::abort();
    }
    boot::fatal(failure)
}

/// The life of the reaper. Everything here is async-signal-safe.
fn reap([pipe, not_yet]: &[RawFd; 2]) -> ! {
    // Nothing of the agent's, and nothing that a program with power over other
    // processes could make use of.
    // SAFETY: these take numbers, or constants that are valid for the calls. What
    // fails leaves the reaper with more than it needs, which is not an end.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr(), 0, 0, 0);
        libc::dup2(*pipe, 0);
        libc::dup2(*not_yet, 1);
        libc::syscall(libc::SYS_close_range, 2, libc::c_uint::MAX, 0);
    }
    drop_capabilities();
    ignore_signals();
    let may = leave_rseq();
    match confine::install(&FILTER) {
        // A kernel without filters: then programs have none either.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOSYS) => {}
        // SAFETY: _exit takes a number and runs nothing of the agent's. The
        // namespace ends, and the program in it before it is executed.
        Err(_) => unsafe { libc::_exit(1) },
    }
    // SAFETY: the descriptor is this process's, and used nowhere else.
    unsafe { libc::close(1) };
    wait_for_end(may)
}

/// As root without capabilities: with `no_new_privs` no program that it might be
/// made to execute gets them back.
fn drop_capabilities() {
    // `struct __user_cap_header_struct` of version 3, and two
    // `struct __user_cap_data_struct`.
    let header = [0x2008_0522_u32, 0];
    let none = [0_u32; 6];
    // SAFETY: both are valid for reads of what the kernel takes them for.
    unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
}

/// Ignored, not blocked: blocked ones would be kept.
fn ignore_signals() {
    // `struct sigaction`: the handler SIG_IGN, no flags, no restorer, an empty mask.
    let ignore = [1_u64, 0, 0, 0];
    let none = 0_u64;
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the kernel reads 32 bytes; it refuses numbers that cannot be
        // ignored.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, ignore.as_ptr(), 0, 8) };
    }
    // SAFETY: the kernel reads a mask of 8 bytes.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            0,
            8,
        )
    };
}

/// Takes back that the kernel writes to memory of the C library's, by which that
/// learns on which processor it runs: the kernel kills who gives the memory back.
/// Returns whether there is no such thing any more.
#[cfg(target_env = "gnu")]
fn leave_rseq() -> bool {
    unsafe extern "C" {
        static __rseq_offset: libc::ptrdiff_t;
        static __rseq_size: libc::c_uint;
    }
    const UNREGISTER: libc::c_int = 1;
    const SIGNATURE: u32 = 0x5305_3053;
    // SAFETY: constants of the C library once it has started.
    let (offset, size) = unsafe { (__rseq_offset, __rseq_size) };
    if size == 0 {
        return true;
    }
    let thread: usize;
    // SAFETY: the first word of what FS points to is its own address (System V ABI
    // for x86-64, thread-local storage).
    unsafe {
        std::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, readonly, preserves_flags));
    }
    let area = thread.wrapping_add_signed(offset);
    // It has to be the size with which it was registered: 32 bytes unless the kernel
    // knows more than those.
    [32, size].into_iter().any(|size| {
        // SAFETY: rseq takes numbers: it compares the address.
        unsafe { libc::syscall(libc::SYS_rseq, area, size, UNREGISTER, SIGNATURE) == 0 }
    })
}

/// Other C libraries do not use it.
#[cfg(not(target_env = "gnu"))]
fn leave_rseq() -> bool {
    true
}

/// Gives all memory back, if it `may`, but the page, or the two, of the instructions below; then
/// waits for the end of the pipe, for the last child, and ends.
fn wait_for_end(may: bool) -> ! {
    // SAFETY: after the first call there is no stack and no data, and nothing here
    // uses any: numbers in registers, and system calls that are given no memory.
    // Descriptor 0 is the pipe. The code never returns. What cannot be unmapped (a
    // kernel may seal its own pages) stays.
    unsafe {
        std::arch::asm!(
            // r12 and r13: the pages from 2 to 9.
            "lea r12, [rip + 2f]",
            "and r12, -4096",
            "lea r13, [rip + 9f + 4095]",
            "and r13, -4096",
            // r14: the page of the stack, or r13 if the stack is below the code.
            "mov r14, rsp",
            "and r14, -4096",
            "cmp r14, r13",
            "cmovb r14, r13",
            "2:",
            "test r8d, r8d",
            "jz 3f",
            // munmap(0, r12)
            "mov eax, 11",
            "xor edi, edi",
            "mov rsi, r12",
            "syscall",
            // munmap(r13, r14 - r13): what is between code and stack. Not together with
            // what is above, where the kernel has pages that may be sealed.
            "mov eax, 11",
            "mov rdi, r13",
            "mov rsi, r14",
            "sub rsi, r13",
            "syscall",
            // munmap(r14, r15 - r14): the stack, and what is above it.
            "mov eax, 11",
            "mov rdi, r14",
            "mov rsi, r15",
            "sub rsi, r14",
            "syscall",
            // read(0, NULL, 1) until it is not interrupted: 0 is the end. There is
            // nothing to read, and no place for it.
            "3:",
            "xor eax, eax",
            "xor edi, edi",
            "xor esi, esi",
            "mov edx, 1",
            "syscall",
            "cmp rax, -4",
            "je 3b",
            // wait4(-1, NULL, 0, NULL): since SIGCHLD is ignored it returns when
            // there are no children, with -ECHILD.
            "4:",
            "mov eax, 61",
            "mov rdi, -1",
            "xor esi, esi",
            "xor edx, edx",
            "xor r10d, r10d",
            "syscall",
            "cmp rax, -10",
            "jne 4b",
            // exit_group(0)
            "mov eax, 231",
            "xor edi, edi",
            "syscall",
            "ud2",
            "9:",
            in("r15") MEMORY_END,
            in("r8") u64::from(may),
            options(noreturn),
        )
    }
}

#[cfg(test)]
mod privileged;
