//! The system calls that are refused to confined programs, as a seccomp filter.
//!
//! A list of what is refused, not of what is allowed: programs of the next year
//! shall run, and the border that counts is that of the VM. What is in it either
//! reaches around the other means of confinement or is a part of the kernel that
//! ordinary programs do not use and in which mistakes are found every year.
//! `docs/privilege.md` gives the reason of each.
//!
//! The filter is a search tree: the kernel runs it for every number when it is
//! installed, to learn which calls it need not ask about.

use flashpan_protocol::privilege::Capabilities;
use nix::libc::{self, c_long};

/// What the filter says of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    /// `EPERM`.
    Refuse,
    /// `ENOSYS`: the program does something else instead.
    Unknown,
    /// Refused if the first argument has one of these bits.
    RefuseFlags(u32),
    /// Refused if the first argument is this.
    RefuseValue(u32),
}

/// A system call, what is said of it, and the capabilities of which each lifts
/// that.
type Rule = (c_long, Verdict, Capabilities);

const NOTHING: Capabilities = Capabilities::NONE;
const ADMIN: Capabilities = Capabilities::SYS_ADMIN;
const PTRACE: Capabilities = Capabilities::SYS_PTRACE;
const MODULE: Capabilities = Capabilities::SYS_MODULE;
const RAWIO: Capabilities = Capabilities::SYS_RAWIO;
const BOOT: Capabilities = Capabilities::SYS_BOOT;

/// Since Linux 6.15, and not in every version of the libc crate.
const SYS_OPEN_TREE_ATTR: c_long = 467;

/// `CLONE_NEW*`: mounts, control groups, names, IPC, users, processes, network.
const NEW_NAMESPACES: u32 = 0x7e02_0000;
/// `CLONE_NEWTIME`, which is part of a signal's number for clone(2).
const NEW_TIME: u32 = 0x80;

/// `AF_VSOCK`: how the agent speaks to the host.
const VSOCK: u32 = 40;

/// In the order of their numbers.
const RULES: [Rule; 42] = [
    (libc::SYS_socket, Verdict::RefuseValue(VSOCK), NOTHING),
    (libc::SYS_clone, Verdict::RefuseFlags(NEW_NAMESPACES), ADMIN),
    (libc::SYS_ptrace, Verdict::Refuse, PTRACE),
    (libc::SYS_syslog, Verdict::Refuse, Capabilities::SYSLOG),
    (libc::SYS_pivot_root, Verdict::Refuse, ADMIN),
    (libc::SYS_mount, Verdict::Refuse, ADMIN),
    (libc::SYS_umount2, Verdict::Refuse, ADMIN),
    (libc::SYS_swapon, Verdict::Refuse, ADMIN),
    (libc::SYS_swapoff, Verdict::Refuse, ADMIN),
    (libc::SYS_reboot, Verdict::Refuse, BOOT),
    (libc::SYS_iopl, Verdict::Refuse, RAWIO),
    (libc::SYS_ioperm, Verdict::Refuse, RAWIO),
    (libc::SYS_init_module, Verdict::Refuse, MODULE),
    (libc::SYS_delete_module, Verdict::Refuse, MODULE),
    (libc::SYS_kexec_load, Verdict::Refuse, BOOT),
    (libc::SYS_add_key, Verdict::Refuse, NOTHING),
    (libc::SYS_request_key, Verdict::Refuse, NOTHING),
    (libc::SYS_keyctl, Verdict::Refuse, NOTHING),
    (
        libc::SYS_unshare,
        Verdict::RefuseFlags(NEW_NAMESPACES | NEW_TIME),
        ADMIN,
    ),
    (
        libc::SYS_perf_event_open,
        Verdict::Refuse,
        ADMIN.with(Capabilities::PERFMON),
    ),
    (
        libc::SYS_open_by_handle_at,
        Verdict::Refuse,
        Capabilities::DAC_READ_SEARCH,
    ),
    (libc::SYS_setns, Verdict::Refuse, ADMIN),
    (libc::SYS_process_vm_readv, Verdict::Refuse, PTRACE),
    (libc::SYS_process_vm_writev, Verdict::Refuse, PTRACE),
    (libc::SYS_kcmp, Verdict::Refuse, PTRACE),
    (libc::SYS_finit_module, Verdict::Refuse, MODULE),
    (libc::SYS_kexec_file_load, Verdict::Refuse, BOOT),
    (
        libc::SYS_bpf,
        Verdict::Refuse,
        ADMIN.with(Capabilities::BPF),
    ),
    (libc::SYS_userfaultfd, Verdict::Refuse, PTRACE),
    (libc::SYS_io_uring_setup, Verdict::Refuse, NOTHING),
    (libc::SYS_io_uring_enter, Verdict::Refuse, NOTHING),
    (libc::SYS_io_uring_register, Verdict::Refuse, NOTHING),
    (libc::SYS_open_tree, Verdict::Refuse, ADMIN),
    (libc::SYS_move_mount, Verdict::Refuse, ADMIN),
    (libc::SYS_fsopen, Verdict::Refuse, ADMIN),
    (libc::SYS_fsconfig, Verdict::Refuse, ADMIN),
    (libc::SYS_fsmount, Verdict::Refuse, ADMIN),
    (libc::SYS_fspick, Verdict::Refuse, ADMIN),
    // Its flags are in memory, where no filter can read them. C libraries and
    // language runtimes use clone(2) where they find that there is no such call.
    (libc::SYS_clone3, Verdict::Unknown, ADMIN),
    (libc::SYS_pidfd_getfd, Verdict::Refuse, PTRACE),
    (libc::SYS_mount_setattr, Verdict::Refuse, ADMIN),
    (SYS_OPEN_TREE_ATTR, Verdict::Refuse, ADMIN),
];

/// An instruction, `struct sock_filter` of `linux/filter.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

/// `BPF_LD | BPF_W | BPF_ABS`: load a word of `struct seccomp_data`.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JEQ | BPF_K` and its like.
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The lower half of the first argument.
const ARGUMENT: u32 = 16;

/// `SECCOMP_RET_*` of `linux/seccomp.h`.
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// `AUDIT_ARCH_X86_64`.
const X86_64: u32 = 0xc000_003e;
/// The first number of the x32 ABI.
const X32: u32 = 0x4000_0000;

const fn plain(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jump_true: 0,
        jump_false: 0,
        k,
    }
}

/// A jump over one instruction, if not, or if.
const fn branch(code: u16, k: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        k,
    }
}

/// The filter for programs with these capabilities.
pub(crate) fn build(capabilities: Capabilities) -> Vec<Instruction> {
    let mut segments = vec![(0_u32, Verdict::Allow)];
    for (number, verdict, lifted_by) in RULES {
        let Ok(number) = u32::try_from(number) else {
            continue;
        };
        if capabilities.intersects(lifted_by) {
            continue;
        }
        // What is allowed between two calls that are next to each other is nothing.
        if segments.last().is_some_and(|(first, _)| *first == number) {
            segments.pop();
        }
        segments.push((number, verdict));
        segments.push((number.saturating_add(1), Verdict::Allow));
    }
    // Calls of other architectures and of x32 have other numbers.
    segments.push((X32, Verdict::Unknown));
    let mut program = vec![
        plain(LOAD, ARCHITECTURE),
        branch(JUMP_EQUAL, X86_64, 1, 0),
        plain(RETURN, RET_ERRNO | ENOSYS),
        plain(LOAD, NUMBER),
    ];
    search(&segments, &mut program);
    program
}

/// A filter under which a process can make the five `calls`, whatever their
/// arguments, and is killed at any other.
pub(crate) const fn only(calls: [u32; 5]) -> [Instruction; 10] {
    let [a, b, c, d, e] = calls;
    [
        plain(LOAD, ARCHITECTURE),
        branch(JUMP_EQUAL, X86_64, 0, 6),
        plain(LOAD, NUMBER),
        branch(JUMP_EQUAL, a, 5, 0),
        branch(JUMP_EQUAL, b, 4, 0),
        branch(JUMP_EQUAL, c, 3, 0),
        branch(JUMP_EQUAL, d, 2, 0),
        branch(JUMP_EQUAL, e, 1, 0),
        plain(RETURN, RET_KILL_PROCESS),
        plain(RETURN, RET_ALLOW),
    ]
}

/// Code that finds the segment of the number that was loaded, and what it does.
fn search(segments: &[(u32, Verdict)], program: &mut Vec<Instruction>) {
    let (low, high) = segments.split_at(segments.len() / 2);
    let (Some(_), Some((first, _))) = (low.first(), high.first()) else {
        let only = segments.first();
        return leaf(
            only.map_or(Verdict::Allow, |(_, verdict)| *verdict),
            program,
        );
    };
    let at = program.len();
    program.push(branch(JUMP_AT_LEAST, *first, 0, 0));
    search(low, program);
    let skipped = program.len().saturating_sub(at).saturating_sub(1);
    // A test makes sure that no jump is too long.
    if let (Some(jump), Ok(skipped)) = (program.get_mut(at), u8::try_from(skipped)) {
        jump.jump_true = skipped;
    }
    search(high, program);
}

fn leaf(verdict: Verdict, program: &mut Vec<Instruction>) {
    let refuse = plain(RETURN, RET_ERRNO | EPERM);
    let allow = plain(RETURN, RET_ALLOW);
    match verdict {
        Verdict::Allow => program.push(allow),
        Verdict::Refuse => program.push(refuse),
        Verdict::Unknown => program.push(plain(RETURN, RET_ERRNO | ENOSYS)),
        Verdict::RefuseFlags(mask) => {
            let test = branch(JUMP_ANY_BIT, mask, 0, 1);
            program.extend([plain(LOAD, ARGUMENT), test, refuse, allow]);
        }
        Verdict::RefuseValue(value) => {
            let test = branch(JUMP_EQUAL, value, 0, 1);
            program.extend([plain(LOAD, ARGUMENT), test, refuse, allow]);
        }
    }
}

#[cfg(test)]
mod tests;
