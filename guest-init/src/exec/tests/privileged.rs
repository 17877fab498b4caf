//! What only root can set up: users, limits, control groups.

use super::*;
use crate::cgroup::Removal;
use crate::testing::{in_own_namespaces, unique};

mod confined;

#[test]
#[ignore = "needs root: changes the user"]
fn programs_run_as_the_user_with_its_groups_and_may_open_their_streams() {
    let mut asked =
        shell("id -u; id -g; id -G; echo $HOME; echo out >/dev/stdout; echo err >/dev/stderr");
    asked.user = Some("nobody".into());
    let outcome = run(asked);
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert_eq!(text, "65534\n65534\n65534\n/nonexistent\nout\n");
    assert_eq!(outcome.stderr, b"err\n");

    let mut asked = shell("id -u; id -g; id -G; stat -c '%U %a' $(tty); echo x >$(tty)");
    asked.user = Some("1234:4321".into());
    asked.terminal = Some(TerminalSize {
        rows: 24,
        columns: 80,
    });
    let text = stdout(asked);
    assert!(
        text.starts_with("1234\r\n4321\r\n4321\r\nUNKNOWN 6"),
        "{text}"
    );
    assert!(text.ends_with("x\r\n"), "{text}");
}

#[test]
#[ignore = "needs root: looks at limits and capabilities that only root can set"]
fn programs_cannot_reboot_and_have_usual_limits() {
    let text = stdout(shell(
        "grep CapBnd /proc/self/status; ulimit -Sn; cat /proc/self/oom_score_adj",
    ));
    let lines: Vec<&str> = text.lines().collect();
    let bounding = u64::from_str_radix(lines[0].split_whitespace().nth(1).unwrap(), 16).unwrap();
    assert_eq!(bounding & (1 << 22), 0, "CAP_SYS_BOOT is there");
    assert_eq!(lines[1..], ["1024", "0"]);
}

/// A group hierarchy of this test, where this machine has cgroup v2.
fn groups(name: &str) -> (Tree, PathBuf) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts
        .lines()
        .find(|line| line.contains(" cgroup2 "))
        .expect("no cgroup v2 here");
    let root = PathBuf::from(mount.split(' ').nth(1).unwrap());
    let own = root.join(format!("guest-init-{}-{name}", unique()));
    std::fs::create_dir(&own).unwrap();
    // That limits cannot be set where the controllers are in v1 does not matter
    // here.
    let (tree, _) = Tree::create(&own).unwrap();
    (tree, own)
}

fn remove_groups(own: &Path) {
    std::fs::remove_dir(own.join("exec")).unwrap();
    std::fs::remove_dir(own).unwrap();
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn processes_that_left_the_process_group_die_with_the_program() {
    let (tree, own) = groups("escape");
    // A daemon in a session of its own, out of reach of its group's signals,
    // and a group within the group.
    let line = format!(
        "export me=$$; trap 'exit 6' USR1; mkdir {0}/exec/0/inner; setsid sh -c 'echo $$ >{0}/exec/0/inner/cgroup.procs; echo $$; kill -USR1 $me; exec sleep 1000' & wait",
        own.display()
    );
    let outcome = Session::start_in(Some(tree), shell(&line)).finish();
    assert_eq!(outcome.status, Some(ExitStatus::Code(6)), "{outcome:?}");
    let pid: u32 = String::from_utf8(outcome.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(!lives(pid));
    remove_groups(&own);
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_program_that_its_child_traces_ends_as_it_does() {
    let (tree, own) = groups("traced");
    // PTRACE_SEIZE of the parent, which then ends and is nobody else's to reap.
    let script = "pipe R, W or die;
        if (!fork) { syscall(101, 0x4206, getppid, 0, 0) == 0 or exit; syswrite W, 1; sleep }
        close W; sysread R, $_, 1 or die; exit 5";
    let outcome = Session::start_in(Some(tree), argv(&["perl", "-e", script])).finish();
    assert_eq!(outcome.status, Some(ExitStatus::Code(5)), "{outcome:?}");
    remove_groups(&own);
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn after_cancel_what_the_leader_leaves_behind_has_the_grace_period_too() {
    let (tree, own) = groups("grace");
    let child =
        "trap \"sleep 0.3; echo child done; exit\" TERM; echo ready; while :; do sleep 0.01; done";
    let mut session = Session::start_in(Some(tree), shell(&format!("sh -c '{child}' & wait")));
    session.until("ready");
    session.send(&ExecInput::Cancel { grace_ms: 60_000 });
    let outcome = session.finish();
    assert_eq!(outcome.status, Some(ExitStatus::Signal(15)));
    assert_eq!(outcome.stdout, b"child done\n");
    remove_groups(&own);
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn every_program_has_a_group_and_it_is_gone_with_it() {
    let (tree, own) = groups("gone");
    let outcome = Session::start_in(Some(tree), argv(&["cat", "/proc/self/cgroup"])).finish();
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert!(
        text.lines()
            .any(|line| line.starts_with("0::") && line.ends_with("/exec/0")),
        "{text}"
    );
    remove_groups(&own);
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_mount_over_the_groups_hides_no_process_from_pid_1() {
    // Mounts of a program stay within this test.
    in_own_namespaces(
        "exec::tests::privileged::a_mount_over_the_groups_hides_no_process_from_pid_1",
        || {
            let (tree, own) = groups("mounted");
            let mount = own.parent().unwrap().to_path_buf();
            let line = format!(
                "export me=$$; trap 'exit 6' USR1; mount -t tmpfs none {0} && setsid sh -c 'echo $$; kill -USR1 $me; exec sleep 1000' & wait",
                mount.display()
            );
            let outcome = Session::start_in(Some(tree), shell(&line)).finish();
            assert_eq!(outcome.status, Some(ExitStatus::Code(6)), "{outcome:?}");
            let text = String::from_utf8(outcome.stdout).unwrap();
            assert!(!lives(text.trim().parse().unwrap()));
            nix::mount::umount(&mount).unwrap();
            remove_groups(&own);
        },
    );
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_process_that_left_its_group_goes_with_the_last_program() {
    in_own_namespaces(
        "exec::tests::privileged::a_process_that_left_its_group_goes_with_the_last_program",
        || {
            let (tree, own) = groups("left");
            let line = format!(
                "export me=$$; trap 'exit 6' USR1; setsid sh -c 'echo $$ >{0}/cgroup.procs; echo $$; kill -USR1 $me; exec sleep 1000' & wait",
                own.display()
            );
            let outcome = Session::start_in(Some(tree), shell(&line)).finish();
            assert_eq!(outcome.status, Some(ExitStatus::Code(6)), "{outcome:?}");
            let text = String::from_utf8(outcome.stdout).unwrap();
            assert!(!lives(text.trim().parse().unwrap()));
            remove_groups(&own);
        },
    );
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn a_process_that_left_its_group_may_stay_if_its_program_may_linger() {
    in_own_namespaces(
        "exec::tests::privileged::a_process_that_left_its_group_may_stay_if_its_program_may_linger",
        || {
            let (tree, own) = groups("stays");
            let line = format!(
                "export me=$$; trap 'exit 0' USR1; setsid sh -c 'echo $$ >{0}/cgroup.procs; echo $$; kill -USR1 $me; exec sleep 1000 >/dev/null 2>&1' & wait",
                own.display()
            );
            let mut asked = shell(&line);
            asked.linger = true;
            let outcome = Session::start_in(Some(tree), asked).finish();
            let text = String::from_utf8(outcome.stdout).unwrap();
            let pid = text.trim().parse().unwrap();
            assert!(lives(pid));
            std::fs::write(own.join("cgroup.kill"), "1").unwrap();
            assert!(!lives(pid));
            std::fs::remove_dir(own.join("exec/0")).unwrap();
            remove_groups(&own);
        },
    );
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn groups_in_groups_are_removed_however_deep() {
    let (tree, own) = groups("deep");
    let line = format!(
        "cd {0}/exec/0; for n in $(seq 200); do mkdir a b; cd a; done; exit 3",
        own.display()
    );
    let outcome = Session::start_in(Some(tree), shell(&line)).finish();
    assert_eq!(outcome.status, Some(ExitStatus::Code(3)), "{outcome:?}");
    // A group that could not be removed in time would be left.
    assert!(!own.join("exec/0").exists(), "it was given up");
    remove_groups(&own);
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn groups_that_programs_made_where_ours_are_made_are_left_alone() {
    let (mut tree, own) = groups("taken");
    std::fs::create_dir(own.join("exec/0")).unwrap();
    drop(tree.new_run().unwrap());
    assert!(own.join("exec/1").exists());
    std::fs::remove_dir(own.join("exec/0")).unwrap();
    std::fs::remove_dir(own.join("exec/1")).unwrap();
    remove_groups(&own);
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn the_event_of_a_group_is_over_once_it_was_looked_at() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;

    let (mut tree, own) = groups("events");
    let group = tree.new_run().unwrap();
    let enter = || {
        let child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        std::fs::write(own.join("exec/0/cgroup.procs"), child.id().to_string()).unwrap();
        child
    };
    let events = group.watch_empty().unwrap();
    let happened = |timeout| {
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        poll(&mut fds, timeout).unwrap() == 1
    };
    let mut first = enter();
    assert_eq!(group.remove(), Removal::Busy);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(happened(PollTimeout::MAX));
    // Somebody is in it again: PID 1 must not be woken for what it knows.
    let mut second = enter();
    assert_eq!(group.remove(), Removal::Busy);
    assert!(!happened(PollTimeout::ZERO));
    group.kill().unwrap();
    second.wait().unwrap();
    assert!(happened(PollTimeout::MAX));
    assert_eq!(group.remove(), Removal::Removed);
    remove_groups(&own);
}
