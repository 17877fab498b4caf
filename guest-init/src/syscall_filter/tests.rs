//! What the filter says of calls, by running it as the kernel does.

use super::*;

/// `struct seccomp_data`, as far as the filter looks at it.
#[derive(Clone, Copy)]
struct Call {
    architecture: u32,
    number: u32,
    argument: u32,
}

/// Runs `program` as the kernel would; panics where the kernel would refuse it.
fn verdict(program: &[Instruction], call: Call) -> u32 {
    let mut word = 0;
    let mut at = 0;
    loop {
        let Instruction {
            code,
            jump_true,
            jump_false,
            k,
        } = program[at];
        at += 1;
        let taken = match code {
            LOAD => {
                word = match k {
                    NUMBER => call.number,
                    ARCHITECTURE => call.architecture,
                    ARGUMENT => call.argument,
                    other => panic!("loads from {other}"),
                };
                continue;
            }
            RETURN => return k,
            JUMP_EQUAL => word == k,
            JUMP_AT_LEAST => word >= k,
            JUMP_ANY_BIT => word & k != 0,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if taken { jump_true } else { jump_false });
    }
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).unwrap()
}

fn call(number: u32, argument: u32) -> Call {
    Call {
        architecture: X86_64,
        number,
        argument,
    }
}

const REFUSED: u32 = RET_ERRNO | EPERM;
const UNKNOWN: u32 = RET_ERRNO | ENOSYS;

#[test]
fn every_call_is_told_as_the_rules_have_it() {
    assert!(RULES.is_sorted_by(|a, b| a.0 < b.0));
    let program = build(Capabilities::CONFINED);
    for n in (0..1000).chain([X32 - 1]) {
        let rule = RULES.iter().find(|(call, ..)| number(*call) == n);
        let expected = match rule.map_or(Verdict::Allow, |(_, verdict, _)| *verdict) {
            Verdict::Refuse => REFUSED,
            Verdict::Unknown => UNKNOWN,
            _ => RET_ALLOW,
        };
        assert_eq!(verdict(&program, call(n, 0)), expected, "call {n}");
    }
}

#[test]
fn namespaces_are_told_from_threads_and_the_host_from_other_sockets() {
    let program = build(Capabilities::CONFINED);
    let says = |which: c_long, argument: i32| {
        verdict(&program, call(number(which), argument.cast_unsigned()))
    };
    let thread = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_THREAD;
    for flags in [libc::SIGCHLD, thread, libc::CLONE_VFORK | 0xff] {
        assert_eq!(says(libc::SYS_clone, flags), RET_ALLOW, "{flags:#x}");
    }
    assert_eq!(says(libc::SYS_unshare, libc::CLONE_FILES), RET_ALLOW);
    for flag in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        assert_eq!(says(libc::SYS_clone, flag | libc::SIGCHLD), REFUSED);
        assert_eq!(says(libc::SYS_unshare, flag), REFUSED);
    }
    assert_eq!(says(libc::SYS_unshare, 0x80), REFUSED);
    for family in [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ] {
        assert_eq!(says(libc::SYS_socket, family), RET_ALLOW);
    }
    assert_eq!(says(libc::SYS_socket, libc::AF_VSOCK), REFUSED);
}

#[test]
fn other_architectures_and_x32_have_no_calls() {
    let program = build(Capabilities::ALL);
    // i386, AArch64.
    for architecture in [0x4000_0003, 0xc000_00b7] {
        let other = Call {
            architecture,
            ..call(0, 0)
        };
        assert_eq!(verdict(&program, other), UNKNOWN);
    }
    for n in [X32, X32 + 1, X32 + 101, u32::MAX] {
        assert_eq!(verdict(&program, call(n, 0)), UNKNOWN);
    }
}

#[test]
fn a_capability_lifts_what_it_is_for_and_nothing_else() {
    for (of, lifted) in [
        (Capabilities::SYS_PTRACE, libc::SYS_ptrace),
        (Capabilities::SYS_ADMIN, libc::SYS_mount),
        (Capabilities::SYS_ADMIN, libc::SYS_clone3),
        (Capabilities::BPF, libc::SYS_bpf),
        (Capabilities::SYS_MODULE, libc::SYS_finit_module),
        (Capabilities::DAC_READ_SEARCH, libc::SYS_open_by_handle_at),
    ] {
        let with = build(Capabilities::CONFINED.with(of));
        let without = build(Capabilities::CONFINED);
        assert_eq!(verdict(&with, call(number(lifted), 0)), RET_ALLOW);
        assert_ne!(verdict(&without, call(number(lifted), 0)), RET_ALLOW);
        for (n, _, lifted_by) in RULES {
            let same =
                verdict(&with, call(number(n), 40)) == verdict(&without, call(number(n), 40));
            assert!(same || of.intersects(lifted_by), "call {n}");
        }
    }
    // Whoever may all still may not go around the filter.
    let all = build(Capabilities::ALL);
    assert_eq!(
        verdict(&all, call(number(libc::SYS_io_uring_setup), 0)),
        REFUSED
    );
}

#[test]
fn jumps_stay_within_the_program_and_are_few() {
    let program = build(Capabilities::NONE);
    for (at, instruction) in program.iter().enumerate() {
        for skipped in [instruction.jump_true, instruction.jump_false] {
            assert!(at + usize::from(skipped) < program.len());
        }
    }
    // A jump that did not fit would be 0, and a search that goes to its left.
    let searches = program.iter().filter(|i| i.code == JUMP_AT_LEAST);
    assert!(searches.clone().all(|search| search.jump_true > 0));
    assert!(program.len() < 200, "{}", program.len());
}

#[test]
fn a_filter_of_five_calls_kills_at_all_others() {
    let allowed = [0, 3, 11, 61, 231];
    let program = only(allowed);
    for n in (0..1000).chain([X32, X32 + 3, u32::MAX]) {
        let expected = match allowed.contains(&n) {
            true => RET_ALLOW,
            false => RET_KILL_PROCESS,
        };
        assert_eq!(verdict(&program, call(n, 0)), expected, "call {n}");
        let other = Call {
            architecture: 0x4000_0003,
            ..call(n, 0)
        };
        assert_eq!(verdict(&program, other), RET_KILL_PROCESS, "call {n}");
    }
}
