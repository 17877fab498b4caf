//! Starting a program: the fork, and what the child does before `execve`.
//!
//! `unsafe`: the child runs in a copy of this process in which nothing may be
//! allocated and no lock taken, so it makes bare system calls.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use flashpan_protocol::agent::{StartFailure, StartFailureKind};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::confine::Failed;
use crate::plan::{Plan, bad_request, text};
use crate::reaper::Reaper;
use crate::sys::{self, Forked};

/// Soft limit of open files that programs start with: more would break those
/// that use select(2). They may raise it to the hard limit, PID 1's.
const OPEN_FILES: u64 = 1024;

/// Exit status of a child that could not become the program; never reported,
/// because the failure itself is.
const FAILED: i32 = 127;

/// The descriptor on which the child keeps its end of the status pipe.
const STATUS_FD: RawFd = 3;

/// The descriptors on which it keeps those of [`Surroundings`].
const REAPER_FD: RawFd = 4;
const HARMLESS_FD: RawFd = 5;
const DEVICES_FD: RawFd = 6;

/// The highest signal of Linux.
const LAST_SIGNAL: i32 = 64;

/// Bytes of a report: step, error number, and what the step was for.
pub(crate) const REPORT: usize = 64;

/// Whether children get the identity and limits of their plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privileges {
    /// As PID 1 does it; needs root.
    Set,
    /// As they are: for tests that run without privileges.
    #[cfg(test)]
    Keep,
}

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Step {
    Session,
    Terminal,
    Descriptors,
    Surroundings,
    Limits,
    Filter,
    Capabilities,
    Identity,
    Directory,
    /// `execve` itself.
    Execute,
    /// `execve` of a directory.
    ExecuteDirectory,
    /// `execve` of a file that is there: what it needs to run is not.
    Interpreter,
}

const STEPS: [Step; 12] = [
    Step::Session,
    Step::Terminal,
    Step::Descriptors,
    Step::Surroundings,
    Step::Limits,
    Step::Filter,
    Step::Capabilities,
    Step::Identity,
    Step::Directory,
    Step::Execute,
    Step::ExecuteDirectory,
    Step::Interpreter,
];

/// The descriptors that become the program's 0, 1 and 2.
#[derive(Debug)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// A child that is becoming the program.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) child: Forked,
    /// Non-blocking. Ends when `execve` has succeeded; carries a report, for
    /// [`explain`], when something has failed.
    pub(crate) status: OwnedFd,
}

/// What a confined program has to itself.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// PID 1 of its process namespace.
    pub(crate) reaper: Option<Reaper>,
    /// What that is waited for by before the program is executed.
    pub(crate) harmless: Option<OwnedFd>,
    /// Its `/dev`.
    pub(crate) devices: Option<OwnedFd>,
}

/// Forks a child that becomes the program of `plan`, in `cgroup` and in the
/// namespaces of `surroundings`.
pub(crate) fn spawn(
    plan: &Plan,
    stdio: &ChildStdio,
    cgroup: Option<BorrowedFd<'_>>,
    surroundings: &Surroundings,
    privileges: Privileges,
) -> nix::Result<Spawned> {
    // Close-on-exec: a successful execve closes the child's end. Writing the
    // few bytes of a report never blocks.
    let (status, report) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let arguments = pointers(&plan.arguments);
    let environment = pointers(&plan.environment);
    let task = Child {
        plan,
        arguments: &arguments,
        environment: &environment,
        stdio: [
            stdio.stdin.as_raw_fd(),
            stdio.stdout.as_raw_fd(),
            stdio.stderr.as_raw_fd(),
        ],
        report: report.as_raw_fd(),
        // What there is not is not used either: any descriptor will do.
        reaper: (surroundings.reaper.as_ref())
            .map_or(report.as_raw_fd(), |reaper| reaper.as_fd().as_raw_fd()),
        harmless: (surroundings.harmless.as_ref()).map_or(report.as_raw_fd(), AsRawFd::as_raw_fd),
        devices: (surroundings.devices.as_ref()).map_or(report.as_raw_fd(), AsRawFd::as_raw_fd),
        privileges,
    };
    let inside = surroundings
        .reaper
        .as_ref()
        .map(Reaper::enter)
        .transpose()?;
    let child = sys::fork_into(cgroup, 0, Child::run, &task);
    drop(inside);
    Ok(Spawned {
        child: child?,
        status,
    })
}

/// A null-terminated array of pointers into `strings`.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let end = std::iter::once(std::ptr::null());
    strings.iter().map(|s| s.as_ptr()).chain(end).collect()
}

/// The bytes that a status pipe held, as a failure; `None` if they are none:
/// the program runs.
pub(crate) fn explain(report: &[u8], plan: &Plan) -> Option<StartFailure> {
    let (step, rest) = report.split_first_chunk::<4>()?;
    let step = usize::try_from(u32::from_le_bytes(*step)).ok();
    let step = step.and_then(|index| STEPS.get(index))?;
    let errno = Errno::from_raw(
        rest.first_chunk::<4>()
            .copied()
            .map_or(0, i32::from_le_bytes),
    );
    let what = rest.get(4..).unwrap_or_default();
    let what = what.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(describe(*step, errno, &String::from_utf8_lossy(what), plan))
}

fn describe(step: Step, errno: Errno, what: &str, plan: &Plan) -> StartFailure {
    let program = plan.program();
    let reason = errno.desc();
    let kind = match (step, errno) {
        (_, Errno::ENOMEM | Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE) => {
            StartFailureKind::Resources
        }
        (Step::Directory, _) | (Step::Execute, Errno::E2BIG) => StartFailureKind::BadRequest,
        (Step::Execute, Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG)
        | (Step::Interpreter, _) => StartFailureKind::NotFound,
        (Step::Execute | Step::ExecuteDirectory, _) => StartFailureKind::NotExecutable,
        _ => StartFailureKind::Resources,
    };
    let message = match (step, errno) {
        (Step::Directory, _) => format!("working directory {:?}: {reason}", text(&plan.directory)),
        (Step::Execute, Errno::ENOENT | Errno::ENOTDIR) if program.contains('/') => {
            format!("{program:?} not found in the guest")
        }
        (Step::Execute, Errno::ENOENT | Errno::ENOTDIR) => {
            format!("{program:?} not found in the guest's PATH")
        }
        (Step::Execute, Errno::ENOEXEC) => format!(
            "{program:?}: exec format error: it is for another architecture, or a script without a #! line"
        ),
        (Step::Execute, Errno::E2BIG) => {
            format!("{program:?}: arguments and environment are too long together")
        }
        (Step::ExecuteDirectory, _) => format!("{program:?} is a directory"),
        (Step::Interpreter, _) => format!(
            "{program:?} is there, but the interpreter or loader that it names is not in the guest"
        ),
        (Step::Execute, _) => format!("execute {program:?}: {reason}"),
        (Step::Identity, _) => format!(
            "become user {} and group {} for {program:?}: {reason}",
            plan.identity.uid, plan.identity.gid
        ),
        (Step::Session, _) => format!("make a session for {program:?}: {reason}"),
        (Step::Terminal, _) => format!("make the terminal of {program:?} its own: {reason}"),
        (Step::Descriptors, _) => format!("set up input and output of {program:?}: {reason}"),
        (Step::Limits, _) => format!("set the limits of {program:?}: {reason}"),
        (Step::Capabilities, _) => format!("set the capabilities of {program:?}: {reason}"),
        (Step::Surroundings, _) => format!(
            "give {program:?} what it is confined to: {what}: {reason}; confined programs need \
             Linux 5.12 or later in the guest"
        ),
        (Step::Filter, Errno::EINVAL | Errno::ENOSYS) => format!(
            "confine {program:?}: {what}: the guest's kernel has none (CONFIG_SECCOMP_FILTER); \
             use a kernel that has, or run it without"
        ),
        (Step::Filter, _) => format!("confine {program:?}: {what}: {reason}"),
    };
    StartFailure { kind, message }
}

/// A request that could not be served for want of something.
pub(crate) fn no_resources(what: &str, errno: Errno) -> StartFailure {
    if errno == Errno::E2BIG {
        return bad_request(format!("{what}: {}", errno.desc()));
    }
    StartFailure {
        kind: StartFailureKind::Resources,
        message: format!("the guest could not {what}: {}", errno.desc()),
    }
}

/// What the child needs, prepared by the parent.
struct Child<'a> {
    plan: &'a Plan,
    arguments: &'a [*const libc::c_char],
    environment: &'a [*const libc::c_char],
    stdio: [RawFd; 3],
    report: RawFd,
    reaper: RawFd,
    harmless: RawFd,
    devices: RawFd,
    privileges: Privileges,
}

/// What the child was doing when it failed, what for, and why.
type Stopped = (Step, &'static CStr, Errno);

/// A step that says no more than that.
fn stopped((step, errno): (Step, Errno)) -> Stopped {
    (step, c"", errno)
}

/// A step of [`crate::confine`].
fn confining(step: Step) -> impl Fn(Failed) -> Stopped {
    move |(what, errno)| (step, what, errno)
}

impl Child<'_> {
    /// The life of the child. Everything from here on is async-signal-safe.
    fn run(&self) -> ! {
        let mut report_fd = self.report;
        let (step, what, errno) = match self.become_program(&mut report_fd) {
            Err(failed) => failed,
            Ok(never) => match never {},
        };
        let mut report = [0_u8; REPORT];
        let [a, b, c, d] = (step as u32).to_le_bytes();
        let [e, f, g, h] = (errno as i32).to_le_bytes();
        // What does not fit is left out, but not the end.
        let what = what.to_bytes().iter().chain([&0]);
        let all = [a, b, c, d, e, f, g, h];
        for (to, from) in report.iter_mut().zip(all.iter().chain(what)) {
            *to = *from;
        }
        // SAFETY: the buffer is valid for REPORT bytes; _exit takes a number
        // and runs none of the parent's destructors.
        unsafe {
            libc::write(report_fd, report.as_ptr().cast(), REPORT);
            libc::_exit(FAILED)
        }
    }

    fn become_program(&self, report_fd: &mut RawFd) -> Result<Infallible, Stopped> {
        // Until execve this is a copy of the agent: nobody may look into it.
        // SAFETY: prctl with PR_SET_DUMPABLE takes numbers; execve takes it back.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
        // A session and process group of its own, so that signals reach all of
        // it and nothing else.
        // SAFETY: setsid takes nothing.
        call(Step::Session, i64::from(unsafe { libc::setsid() })).map_err(stopped)?;
        self.descriptors(report_fd).map_err(stopped)?;
        if self.plan.terminal.is_some() {
            // SAFETY: TIOCSCTTY takes a number; 0 is the terminal by now.
            let controlled = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
            call(Step::Terminal, i64::from(controlled)).map_err(stopped)?;
        }
        let privileged = self.privileges == Privileges::Set;
        let confinement = &self.plan.confinement;
        if privileged {
            let surroundings = confinement.surroundings(REAPER_FD, DEVICES_FD);
            surroundings.map_err(confining(Step::Surroundings))?;
        }
        self.directories();
        if privileged {
            self.limits().map_err(stopped)?;
            // While this process may: without no_new_privs it takes a capability.
            confinement.filter().map_err(confining(Step::Filter))?;
            confinement.bound().map_err(confining(Step::Capabilities))?;
            self.identity().map_err(stopped)?;
            let root = self.plan.identity.uid == 0;
            let taken = confinement.take_capabilities(root);
            taken.map_err(confining(Step::Capabilities))?;
        }
        // As the user: a directory that only root may enter is refused.
        // SAFETY: the path is a valid C string.
        let entered = unsafe { libc::chdir(self.plan.directory.as_ptr()) };
        call(Step::Directory, i64::from(entered)).map_err(stopped)?;
        // SAFETY: sigset_t is plain data that sigemptyset initialises.
        let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
        // clone3 has reset what had a handler; what is ignored (SIGPIPE by the
        // Rust runtime, others by whoever started this process) would stay so.
        // Not by the C library, which keeps two signals to itself.
        let default = [0_u64; 4];
        for signal in 1..=LAST_SIGNAL {
            // SAFETY: the kernel reads a `struct sigaction` of 32 bytes, all
            // zero: no flags, SIG_DFL. A number that cannot be changed is
            // refused.
            unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, 0, 8) };
        }
        // SAFETY: `none` is valid for the calls.
        unsafe {
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        }
        if privileged && confinement.private_processes() {
            wait_for_end_of(HARMLESS_FD);
        }
        Err(stopped(self.execute()))
    }

    /// 0, 1, 2, the status pipe on 3, and three for what comes before execve;
    /// everything else is closed here and not by execve, which may take long to come: another program's input
    /// must not stay open that long.
    fn descriptors(&self, report_fd: &mut RawFd) -> Result<(), (Step, Errno)> {
        // One that is where another has to go is moved out of the way first.
        let [stdin, stdout, stderr] = self.stdio;
        let mut sources = [
            stdin,
            stdout,
            stderr,
            self.report,
            self.reaper,
            self.harmless,
            self.devices,
        ];
        for source in &mut sources {
            if *source <= DEVICES_FD {
                // SAFETY: fcntl with F_DUPFD takes numbers.
                let moved = unsafe { libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, DEVICES_FD + 1) };
                call(Step::Descriptors, i64::from(moved))?;
                *source = moved;
            }
        }
        for (target, source) in (0..).zip(sources) {
            let flags = if target >= STATUS_FD {
                libc::O_CLOEXEC
            } else {
                0
            };
            // SAFETY: dup3 takes numbers; source and target differ.
            let placed = unsafe { libc::dup3(source, target, flags) };
            call(Step::Descriptors, i64::from(placed))?;
        }
        *report_fd = STATUS_FD;
        let first = DEVICES_FD.unsigned_abs() + 1;
        // SAFETY: only descriptors of this process are closed, and none of
        // those above DEVICES_FD is used again.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
        call(Step::Descriptors, closed)
    }

    /// Makes the working directory, as root. What cannot be made shows when it
    /// is entered.
    fn directories(&self) {
        for directory in &self.plan.directories {
            // SAFETY: mkdir takes a valid C string and a number.
            unsafe { libc::mkdir(directory.as_ptr(), 0o755) };
        }
    }

    fn limits(&self) -> Result<(), (Step, Errno)> {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: `limit` is valid for writes, then for reads.
        let result = unsafe {
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
            limit.rlim_cur = OPEN_FILES.min(limit.rlim_max);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
        };
        call(Step::Limits, i64::from(result))?;
        // PID 1 is exempt from the out-of-memory killer; programs are not. It
        // is no reason to fail if /proc is not what it was.
        // SAFETY: path and buffer are valid; the descriptor is closed.
        unsafe {
            let path = c"/proc/self/oom_score_adj".as_ptr();
            let fd = libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC);
            if fd >= 0 {
                libc::write(fd, c"0".as_ptr().cast(), 1);
                libc::close(fd);
            }
        }
        Ok(())
    }

    fn identity(&self) -> Result<(), (Step, Errno)> {
        let identity = &self.plan.identity;
        let (uid, gid) = (identity.uid, identity.gid);
        // Bare system calls: the C library's functions would make the other
        // threads do the same, for which it takes locks.
        // SAFETY: the groups are valid for reads of their number; the others
        // take numbers.
        unsafe {
            let groups = &identity.groups;
            call(
                Step::Identity,
                libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
            )?;
            call(
                Step::Identity,
                libc::syscall(libc::SYS_setresgid, gid, gid, gid),
            )?;
            call(
                Step::Identity,
                libc::syscall(libc::SYS_setresuid, uid, uid, uid),
            )
        }
    }

    /// Tries the candidates as execvp(3) does; returns why none became the
    /// program.
    fn execute(&self) -> (Step, Errno) {
        let mut failure = (Step::Execute, Errno::ENOENT);
        for candidate in &self.plan.candidates {
            // SAFETY: the path is a C string, the arrays are null-terminated
            // arrays of C strings, and all outlive the call.
            unsafe {
                libc::execve(
                    candidate.as_ptr(),
                    self.arguments.as_ptr(),
                    self.environment.as_ptr(),
                );
            }
            match Errno::last() {
                Errno::ENOENT if exists(candidate) => return (Step::Interpreter, Errno::ENOENT),
                Errno::ENOENT | Errno::ENOTDIR => {}
                // Not this one, but perhaps one further on. If none, this is
                // what the user wants to hear.
                Errno::EACCES if is_directory(candidate) => {
                    failure = (Step::ExecuteDirectory, Errno::EACCES);
                }
                Errno::EACCES => failure = (Step::Execute, Errno::EACCES),
                errno => return (Step::Execute, errno),
            }
        }
        failure
    }
}

fn exists(path: &CStr) -> bool {
    // SAFETY: the path is a valid C string.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
}

fn is_directory(path: &CStr) -> bool {
    // SAFETY: stat is plain data, for which all zeroes is a valid value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a valid C string and `stat` is valid for writes.
    let found = unsafe { libc::stat(path.as_ptr(), &raw mut stat) } == 0;
    found && stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// Waits until nobody holds the other end of the pipe `fd`.
fn wait_for_end_of(fd: RawFd) {
    let mut none = 0_u8;
    // SAFETY: the buffer is valid for writes of one byte; nobody writes any.
    while unsafe { libc::read(fd, (&raw mut none).cast(), 1) } < 0 && Errno::last() == Errno::EINTR
    {
    }
}

/// The error of a system call that returned `result`.
fn call(step: Step, result: i64) -> Result<(), (Step, Errno)> {
    if result < 0 {
        Err((step, Errno::last()))
    } else {
        Ok(())
    }
}
