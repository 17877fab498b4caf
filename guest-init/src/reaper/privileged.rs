//! The reaper of this machine's kernel.

use std::path::PathBuf;

use super::*;
use crate::sys::Children;
use crate::testing::in_own_namespaces;

fn proc_path(reaper: &Reaper, file: &str) -> PathBuf {
    let info = format!("/proc/self/fdinfo/{}", reaper.pidfd.as_raw_fd());
    let info = std::fs::read_to_string(info).unwrap();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    PathBuf::from("/proc").join(pid.unwrap().trim()).join(file)
}

fn proc_of(reaper: &Reaper, file: &str) -> String {
    std::fs::read_to_string(proc_path(reaper, file)).unwrap()
}

fn ended(reaper: &Reaper) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(reaper.pidfd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap(), 1);
}

/// Waits until it has nothing but what it needs: then it waits itself, in read(2).
fn settled(reaper: &Reaper) {
    while !proc_of(reaper, "syscall").starts_with("0 ") {
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "needs root: makes a process namespace"]
fn it_keeps_no_memory_no_power_and_no_descriptor_of_the_agent() {
    in_own_namespaces(
        "reaper::privileged::it_keeps_no_memory_no_power_and_no_descriptor_of_the_agent",
        || {
            let (reaper, _) = Reaper::start().unwrap();
            settled(&reaper);
            let maps = proc_of(&reaper, "maps");
            let ours: Vec<&str> = maps.lines().filter(|line| !line.contains("[v")).collect();
            assert_eq!(ours.len(), 1, "{maps}");
            assert!(ours[0].contains(" r-xp "), "{maps}");
            let status = proc_of(&reaper, "status");
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap().trim().to_owned()
            };
            assert_eq!(field("Name:"), "flashpan-reaper");
            assert_eq!(field("NSpid:").split_whitespace().next_back(), Some("1"));
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(field(set), "0000000000000000", "{set}");
            }
            assert_eq!(field("NoNewPrivs:"), "1");
            assert_eq!(field("Seccomp:"), "2");
            assert_eq!(field("SigBlk:"), "0000000000000000");
            let descriptors = std::fs::read_dir(proc_path(&reaper, "fd")).unwrap();
            assert_eq!(descriptors.count(), 1);
            // No page of the agent but that of its code.
            let resident = field("VmRSS:");
            let kilobytes: u64 = resident.split_whitespace().next().unwrap().parse().unwrap();
            assert!(kilobytes <= 64, "{resident}");
            reaper.kill();
            ended(&reaper);
        },
    );
}

#[test]
#[ignore = "needs root: makes a process namespace"]
fn it_ends_when_it_is_alone_and_not_before() {
    in_own_namespaces(
        "reaper::privileged::it_ends_when_it_is_alone_and_not_before",
        || {
            let (reaper, _) = Reaper::start().unwrap();
            let pidfd = reaper.pidfd.try_clone().unwrap();
            // A child of ours in its namespace, which leaves it an orphan.
            let inside = reaper.enter().unwrap();
            let (gate, open) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let mut leader = std::process::Command::new("sh")
                .args(["-c", "exec 3<&0; cat <&3 & exit 0"])
                .stdin(gate)
                .spawn()
                .unwrap();
            drop(inside);
            leader.wait().unwrap();
            settled(&reaper);
            drop(reaper);
            let over = || {
                use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
                let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(200_u16)).unwrap() == 1
            };
            assert!(!over(), "it ended before its child");
            drop(open);
            while !over() {}
            // Nobody is left of it.
            assert!(matches!(sys::wait(Children::Any, true), Ok(Some(_))));
            assert_eq!(sys::wait(Children::Any, true), Err(Errno::ECHILD));
        },
    );
}

#[test]
#[ignore = "needs root: makes a process namespace"]
fn a_tracer_cannot_make_it_do_anything_else() {
    in_own_namespaces(
        "reaper::privileged::a_tracer_cannot_make_it_do_anything_else",
        || {
            for call in [libc::SYS_socket, libc::SYS_clone, libc::SYS_mmap] {
                let (reaper, harmless) = Reaper::start().unwrap();
                let end = nix::unistd::read(&harmless, &mut [0]);
                assert_eq!(end, Ok(0));
                assert!(proc_of(&reaper, "status").contains("\nSeccomp:\t2\n"));
                settled(&reaper);
                let pid: i32 = proc_path(&reaper, "")
                    .file_name()
                    .and_then(|pid| pid.to_str()?.parse().ok())
                    .unwrap();
                let status = made_to_call(pid, call);
                assert!(libc::WIFSIGNALED(status), "{call}: {status:#x}");
                assert_eq!(libc::WTERMSIG(status), libc::SIGSYS, "{call}");
            }
        },
    );
}

/// Seizes the process, which waits in a system call, and makes it do `call`; returns
/// what is seen next of it.
fn made_to_call(pid: i32, call: libc::c_long) -> i32 {
    let mut status = 0;
    // SAFETY: the requests take numbers, or a pointer to registers that are valid for
    // the call; waitpid writes the status.
    unsafe {
        assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0), 0);
        assert_eq!(libc::waitpid(pid, &raw mut status, libc::__WALL), pid);
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        let read = libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &raw mut registers);
        assert_eq!(read, 0);
        // Stopped in a system call: back to its instruction, with another number.
        registers.rip -= 2;
        registers.rax = call.cast_unsigned();
        registers.orig_rax = u64::MAX;
        let set = libc::ptrace(libc::PTRACE_SETREGS, pid, 0, &raw const registers);
        assert_eq!(set, 0);
        assert_eq!(libc::ptrace(libc::PTRACE_CONT, pid, 0, 0), 0);
        assert_eq!(libc::waitpid(pid, &raw mut status, libc::__WALL), pid);
    }
    status
}

#[test]
#[ignore = "needs root: makes a process namespace"]
fn children_are_in_its_namespace_only_as_long_as_that_is_wanted() {
    in_own_namespaces(
        "reaper::privileged::children_are_in_its_namespace_only_as_long_as_that_is_wanted",
        || {
            let (reaper, _) = Reaper::start().unwrap();
            let namespace = || {
                let output = std::process::Command::new("readlink")
                    .arg("/proc/self/ns/pid")
                    .output()
                    .unwrap();
                String::from_utf8(output.stdout).unwrap()
            };
            let before = namespace();
            let inside = reaper.enter().unwrap();
            let there = namespace();
            drop(inside);
            assert_ne!(there, before);
            assert_eq!(namespace(), before);
            reaper.kill();
            ended(&reaper);
        },
    );
}
