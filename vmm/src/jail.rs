//! What the VMM process may still ask of its host.
//!
//! From its first stage on the process can use what it has open and nothing
//! else: it cannot open a file, connect a socket, start a program or signal
//! another process. From the second stage on, when the guest runs, it cannot
//! start threads or make memory files either, and of KVM it may only ask to run
//! and to read what it has. A call outside the lists ends the process at once;
//! filters cannot be taken back.

#![allow(unsafe_code)] // mallopt(3) has no safe wrapper.

mod ioctls;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};
use thiserror::Error;

/// Why the process could not be jailed.
#[derive(Debug, Error)]
#[error("could not jail the VMM: {0}; the host's kernel needs CONFIG_SECCOMP_FILTER")]
pub struct JailError(#[from] seccompiler::Error);

/// How far the process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It reads its orders and builds the machine.
    Building,
    /// The guest runs.
    Running,
}

/// Calls that only [`Stage::Building`] needs.
const BUILDING: &[libc::c_long] = &[
    // Guest memory.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    // The event loop and the vCPU threads.
    libc::SYS_epoll_create1,
    libc::SYS_clone3,
    libc::SYS_clone,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_rt_sigaction,
    libc::SYS_prctl,
    libc::SYS_sched_getaffinity,
    // Sizes of the files that were handed in.
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_getsockopt,
    // What wakes the event loop.
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    // The next stage's filter.
    libc::SYS_seccomp,
];

/// Calls without conditions, with the reason for each group.
const ALLOWED: &[libc::c_long] = &[
    // Disks, streams, events, the console.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_close,
    // The event loop and its timers.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_timerfd_settime,
    // Control packets, and vsock streams once they are connected.
    // `sendmsg` may name an address, which a filter cannot see; only a
    // datagram socket would heed it, and none can be had.
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    // Memory of the process itself.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads that exist already.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Entropy for the guest, time for the timeline.
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
];

/// The bits of a socket's type that are not flags (`SOCK_TYPE_MASK`).
const SOCKET_TYPE: u64 = 0xf;

/// Jails the process, all its threads included.
///
/// # Errors
/// If the kernel refuses the filter.
pub fn enter(stage: Stage) -> Result<(), JailError> {
    share_one_heap();
    apply_filter_all_threads(&program(stage)?)?;
    Ok(())
}

/// Has all threads allocate from one heap. The C library would else give each
/// thread one of its own, and after the first eight look up how many processors
/// there are, for which it opens a file. Threads of a VMM hardly allocate while
/// its guest runs.
fn share_one_heap() {
    // SAFETY: integer arguments only; it takes the allocator's own lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// The filter of a stage as BPF.
fn program(stage: Stage) -> Result<BpfProgram, JailError> {
    let more = if stage == Stage::Building {
        BUILDING
    } else {
        &[]
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED
        .iter()
        .chain(more)
        .map(|call| (*call, Vec::new()))
        .collect();
    // What is asked of KVM, the most frequent first, and making a stream
    // non-blocking.
    let building = stage == Stage::Building;
    let more: &[u64] = if building { ioctls::BUILDING } else { &[] };
    let mut requests = Vec::new();
    for request in ioctls::RUNNING.iter().chain(more).chain(&[libc::FIONBIO]) {
        requests.push(when(1, SeccompCmpOp::Eq, *request)?);
    }
    rules.insert(libc::SYS_ioctl, requests);
    // Both ends of a connection that the guest asked for; one goes to the
    // supervisor. A datagram socket could send to any other by name.
    let pair = |kind| {
        let local = condition(0, SeccompCmpOp::Eq, as_u64(libc::AF_UNIX))?;
        let kind = condition(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE), as_u64(kind))?;
        all(vec![local, kind])
    };
    let pairs = vec![pair(libc::SOCK_STREAM)?, pair(libc::SOCK_SEQPACKET)?];
    rules.insert(libc::SYS_socketpair, pairs);
    // Along a connection only, to no address.
    let nowhere = SeccompCondition::new(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
        .map_err(seccompiler::Error::from)?;
    rules.insert(libc::SYS_sendto, vec![all(vec![nowhere])?]);
    // Flags of a descriptor, and copies of it; guest memory that other
    // processes are given can neither grow nor shrink.
    let flags = [libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_SETFD];
    let more = [libc::F_DUPFD_CLOEXEC, libc::F_ADD_SEALS];
    let more = more.into_iter().filter(|_| building);
    let mut commands = Vec::new();
    for command in flags.into_iter().chain(more) {
        commands.push(when(1, SeccompCmpOp::Eq, as_u64(command))?);
    }
    rules.insert(libc::SYS_fcntl, commands);
    // How many descriptors there may be is looked up, not changed.
    if building {
        let unchanged = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
            .map_err(seccompiler::Error::from)?;
        rules.insert(libc::SYS_prlimit64, vec![all(vec![unchanged])?]);
    }
    // No memory becomes executable.
    let not_executable = || when(2, SeccompCmpOp::MaskedEq(as_u64(libc::PROT_EXEC)), 0);
    rules.insert(libc::SYS_mmap, vec![not_executable()?]);
    rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
    // A vCPU thread may be kicked, another process may not.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![when(0, SeccompCmpOp::Eq, own)?]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )
    .map_err(seccompiler::Error::from)?;
    Ok(BpfProgram::try_from(filter).map_err(seccompiler::Error::from)?)
}

/// A rule that holds when argument `index` compares to `value`.
fn when(index: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompRule, JailError> {
    all(vec![condition(index, op, value)?])
}

/// Whether the lower half of argument `index` compares to `value`.
fn condition(index: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, JailError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value)
        .map_err(seccompiler::Error::from)?;
    Ok(condition)
}

/// A rule that holds when all of `conditions` do.
fn all(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, JailError> {
    let rule = SeccompRule::new(conditions).map_err(seccompiler::Error::from)?;
    Ok(rule)
}

/// A constant of libc as the kernel sees it in a register.
fn as_u64(value: libc::c_int) -> u64 {
    u64::from(value.unsigned_abs())
}
