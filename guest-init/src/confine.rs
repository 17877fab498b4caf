//! What makes a program a confined one: what the child does between the fork and
//! `execve`, besides all that every program needs.
//!
//! `unsafe`: the child runs in a copy of this process in which nothing may be
//! allocated and no lock taken, so it makes bare system calls.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::RawFd;

use flashpan_protocol::privilege::{Capabilities, Confinement, Scope};
use nix::errno::Errno;

use crate::syscall_filter::{self, Instruction};

/// Settings of the kernel and of devices, which programs may read.
const READ_ONLY: [&CStr; 5] = [
    c"/proc/bus",
    c"/proc/fs",
    c"/proc/irq",
    c"/proc/sys",
    c"/proc/sysrq-trigger",
];

/// Files that tell of the kernel's memory, of keys, and of other programs'
/// doings: they are empty.
const MASKED_FILES: [&CStr; 6] = [
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/proc/sched_debug",
];

/// Directories of hardware: they are empty.
const MASKED_DIRECTORIES: [&CStr; 3] = [c"/proc/acpi", c"/proc/asound", c"/proc/scsi"];

/// The highest number a capability can have.
const LAST_CAPABILITY: u32 = 63;

/// A program's confinement, made ready for the child.
#[derive(Debug)]
pub(crate) struct Ready {
    confinement: Confinement,
    filter: Vec<Instruction>,
}

/// A failed system call, with what it was for.
pub(crate) type Failed = (&'static CStr, Errno);

impl Ready {
    /// Prepares `confinement`.
    pub(crate) fn new(confinement: Confinement) -> Self {
        let filter = match confinement.system_call_filter {
            true => syscall_filter::build(confinement.capabilities),
            false => Vec::new(),
        };
        Self {
            confinement,
            filter,
        }
    }

    /// Whether the program has processes of its own.
    pub(crate) fn private_processes(&self) -> bool {
        self.confinement.processes == Scope::Private
    }

    /// Whether the program has mounts of its own.
    pub(crate) fn private_mounts(&self) -> bool {
        self.private_processes() || self.confinement.mounts == Scope::Private
    }

    /// Whether the program has a `/dev` of its own.
    pub(crate) fn own_devices(&self) -> bool {
        self.confinement.system_paths && self.private_mounts()
    }

    /// Enters the mount namespace of `reaper`, if the program has one, and makes it
    /// what the program is to see. `devices` is the `/dev` to mount.
    pub(crate) fn surroundings(&self, reaper: RawFd, devices: RawFd) -> Result<(), Failed> {
        if !self.private_mounts() {
            return Ok(());
        }
        let entered = match self.private_processes() {
            // SAFETY: setns takes numbers; it concerns this process only, which
            // shares nothing that the call changes with another.
            true => unsafe { libc::setns(reaper, libc::CLONE_NEWNS) },
            // SAFETY: as above.
            false => unsafe { libc::unshare(libc::CLONE_NEWNS) },
        };
        check(c"its own mounts", i64::from(entered))?;
        // What it mounts is seen nowhere else, whatever was done to the mounts that
        // these are copies of.
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        mount(c"its own mounts", None, c"/", None, flags)?;
        if self.private_processes() {
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            mount(c"/proc", Some(c"proc"), c"/proc", Some(c"proc"), flags)?;
        }
        if self.confinement.system_paths {
            system_paths(devices)?;
        }
        Ok(())
    }

    /// Installs the filter of system calls, and `no_new_privs`. Everything that
    /// follows is allowed by the filter.
    pub(crate) fn filter(&self) -> Result<(), Failed> {
        if self.confinement.no_new_privileges {
            // SAFETY: prctl with PR_SET_NO_NEW_PRIVS takes numbers.
            let set = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            check(c"no_new_privs", i64::from(set))?;
        }
        if self.filter.is_empty() {
            return Ok(());
        }
        install(&self.filter).map_err(|errno| (c"the filter of system calls", errno))
    }

    /// Lowers the bounding set; before the user changes.
    pub(crate) fn bound(&self) -> Result<(), Failed> {
        let kept = self.confinement.capabilities.0;
        for capability in 0..=LAST_CAPABILITY {
            if kept >> capability & 1 == 1 {
                continue;
            }
            // SAFETY: prctl with PR_CAPBSET_DROP takes numbers.
            let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
            match check(c"its capabilities", i64::from(dropped)) {
                // The kernel knows no such capability.
                Err((_, Errno::EINVAL)) => break,
                result => result?,
            }
        }
        if !self.ambient().is_empty() {
            // SAFETY: prctl with PR_SET_KEEPCAPS takes numbers; execve takes it back.
            let kept = unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) };
            check(c"its capabilities", i64::from(kept))?;
        }
        Ok(())
    }

    /// Sets the other sets, after the user has changed.
    pub(crate) fn take_capabilities(&self, root: bool) -> Result<(), Failed> {
        // What the kernel knows and this process has.
        let mut sets = Sets::get()?;
        let (permitted, inheritable) = match root {
            // execve gives root what is in the bounding set.
            true => (self.confinement.capabilities, Capabilities::NONE),
            false => (self.ambient(), self.ambient()),
        };
        sets.set(permitted, inheritable)?;
        if root {
            return Ok(());
        }
        let ambient = self.ambient().0 & sets.permitted();
        for capability in 0..=LAST_CAPABILITY {
            if ambient >> capability & 1 == 0 {
                continue;
            }
            const RAISE: libc::c_ulong = 2;
            // SAFETY: prctl with PR_CAP_AMBIENT takes numbers.
            let raised = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, RAISE, capability, 0, 0) };
            check(c"its capabilities", i64::from(raised))?;
        }
        Ok(())
    }

    fn ambient(&self) -> Capabilities {
        let Confinement {
            capabilities,
            ambient,
            ..
        } = self.confinement;
        Capabilities(ambient.0 & capabilities.0)
    }
}

/// Installs `filter` for this process and those that it makes. Async-signal-safe.
pub(crate) fn install(filter: &[Instruction]) -> nix::Result<()> {
    let program = Program {
        length: u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?,
        instructions: filter.as_ptr(),
    };
    // Without this flag, kernels before 5.16 make every program slower.
    const SPEC_ALLOW: libc::c_ulong = 4;
    // SAFETY: the kernel reads a `struct sock_fprog` and the instructions that it
    // points to, as many as it says; both outlive the call.
    let set = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            SPEC_ALLOW,
            &raw const program,
        )
    };
    Errno::result(set).map(drop)
}

/// `struct sock_fprog` of `linux/filter.h`.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// `struct __user_cap_data_struct`, twice: the lower half of each set, then the
/// upper.
#[repr(C)]
#[derive(Default)]
struct Sets([[u32; 3]; 2]);

/// `struct __user_cap_header_struct`, version 3, this process.
const HEADER: [u32; 2] = [0x2008_0522, 0];

impl Sets {
    fn get() -> Result<Self, Failed> {
        let mut sets = Self::default();
        let mut header = HEADER;
        // SAFETY: the kernel reads and writes the header, and writes two structures.
        let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, &raw mut sets) };
        check(c"its capabilities", got)?;
        Ok(sets)
    }

    fn permitted(&self) -> u64 {
        let [[_, low, _], [_, high, _]] = self.0;
        u64::from(low) | u64::from(high) << 32
    }

    /// Makes them the permitted and effective, and the inheritable, set, as far as
    /// they are permitted now.
    fn set(&mut self, permitted: Capabilities, inheritable: Capabilities) -> Result<(), Failed> {
        let before = self.permitted();
        let halves = |set: u64| {
            let [a, b, c, d, e, f, g, h] = (set & before).to_le_bytes();
            [
                u32::from_le_bytes([a, b, c, d]),
                u32::from_le_bytes([e, f, g, h]),
            ]
        };
        let [low, high] = halves(permitted.0);
        let [low_inheritable, high_inheritable] = halves(inheritable.0);
        self.0 = [[low, low, low_inheritable], [high, high, high_inheritable]];
        let mut header = HEADER;
        // SAFETY: the kernel reads the header, which it may write to, and two
        // structures.
        let set = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, &raw const *self) };
        check(c"its capabilities", set)
    }
}

/// Makes `/sys` and parts of `/proc` read-only or empty, and mounts `devices` on
/// `/dev`.
fn system_paths(devices: RawFd) -> Result<(), Failed> {
    for path in READ_ONLY {
        match mount(path, Some(path), path, None, libc::MS_BIND | libc::MS_REC) {
            Err((_, Errno::ENOENT)) => {}
            bound => {
                bound?;
                read_only(path)?;
            }
        }
    }
    for path in MASKED_FILES {
        let masked = mount(path, Some(c"/dev/null"), path, None, libc::MS_BIND);
        // Or its mode could be changed, which is that of the VM's `/dev/null`.
        if_there(masked.and_then(|()| read_only(path)))?;
    }
    let empty = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    for path in MASKED_DIRECTORIES {
        let masked = mount(path, Some(c"tmpfs"), path, Some(c"tmpfs"), empty);
        if_there(masked)?;
    }
    read_only(c"/sys")?;
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    // SAFETY: both paths are valid C strings.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            devices,
            c"".as_ptr(),
            libc::AT_FDCWD,
            c"/dev".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check(c"/dev", moved)
}

/// Not every kernel has every file.
fn if_there(done: Result<(), Failed>) -> Result<(), Failed> {
    match done {
        Err((_, Errno::ENOENT)) => Ok(()),
        done => done,
    }
}

/// Makes the mount at `path` read-only, and those below it.
fn read_only(path: &'static CStr) -> Result<(), Failed> {
    // `struct mount_attr`: the attributes to set (MOUNT_ATTR_RDONLY), those to take
    // away, propagation, a user namespace.
    let attributes = [1_u64, 0, 0, 0];
    // SAFETY: the path is a valid C string, and the kernel reads as many bytes as it
    // is told.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    check(path, set)
}

fn mount(
    what: &'static CStr,
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
) -> Result<(), Failed> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the strings are valid C strings or null, which the kernel takes where
    // the flags want no such thing; there are no options.
    let mounted = unsafe {
        libc::mount(
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            std::ptr::null(),
        )
    };
    check(what, i64::from(mounted))
}

fn check(what: &'static CStr, result: i64) -> Result<(), Failed> {
    if result < 0 {
        Err((what, Errno::last()))
    } else {
        Ok(())
    }
}
