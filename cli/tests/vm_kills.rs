//! Whatever is killed, whenever: the next command tells the truth, and nothing is left.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/fake.rs"]
mod fake;
#[path = "support/vms.rs"]
mod vms;

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use vms::Vms;

/// Changes of names in some directories while something happens there.
struct Watch {
    inotify: Inotify,
    seen: Vec<String>,
}

impl Watch {
    fn on(directories: &[PathBuf]) -> Self {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        for directory in directories {
            inotify.add_watch(directory, flags).unwrap();
        }
        let seen = Vec::new();
        Self { inotify, seen }
    }

    /// Returns when `count` changes were seen, or the process has closed its output;
    /// whether it was the changes.
    fn wait(&mut self, count: usize, process: &Child) -> bool {
        let output = process.stdout.as_ref().unwrap();
        loop {
            let mut fds = [
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(output.as_fd(), PollFlags::empty()),
            ];
            poll(&mut fds, PollTimeout::NONE).unwrap();
            let ended = fds[1].any().unwrap();
            let events = self.inotify.read_events().unwrap_or_default();
            let names = events.into_iter().filter_map(|event| event.name);
            self.seen
                .extend(names.map(|name| name.into_string().unwrap()));
            if self.seen.len() >= count {
                return true;
            }
            if ended {
                return false;
            }
        }
    }
}

/// Kills a command after its first change, in the next round after its second, and so
/// on until it ends before that; `check` looks after each.
fn at_each_step(
    vms: &Vms,
    prepare: impl Fn() -> (Command, Vec<PathBuf>),
    check: impl Fn(&str),
) -> usize {
    let mut count = 0;
    loop {
        count += 1;
        let (mut command, directories) = prepare();
        let mut watch = Watch::on(&directories);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let before_the_end = watch.wait(count, &child);
        if before_the_end {
            child.kill().unwrap();
        }
        child.wait().unwrap();
        check(&format!("after {:?}", watch.seen));
        if !before_the_end {
            vms.ok(&["prune"]);
            return count;
        }
    }
}

fn places(vms: &Vms) -> Vec<PathBuf> {
    ["vms", "names"].map(|name| vms.state().join(name)).to_vec()
}

/// Everything is removed by the commands that users have.
fn clean(vms: &Vms, when: &str) {
    let ids = vms.ok(&["ls", "-q"]);
    for id in ids.lines() {
        let output = vms.output(&["rm", "-f", id]);
        assert!(output.status.success(), "{when}: {output:?}");
    }
    vms.ok(&["prune"]);
    assert!(vms.left().is_empty(), "{when}: {:?}", vms.left());
}

#[test]
fn a_create_that_is_killed_has_made_a_vm_or_nothing() {
    let vms = Vms::new("normal");
    vms.create(&[], &["both"]);
    clean(&vms, "before");
    let rounds = at_each_step(
        &vms,
        || {
            let options = ["--name", "web", "--disk-size", "16M"];
            (vms.making(&["create"], &options, &["both"]), places(&vms))
        },
        |when| {
            let listed = vms.ok(&["ls", "--format", "{{.Name}} {{.Status}}"]);
            assert!(
                ["", "web created\n"].contains(&listed.as_str()),
                "{when}: {listed}"
            );
            if listed.is_empty() {
                // The name is free, whatever was left of it.
                vms.create(&["--name", "web"], &["both"]);
            }
            vms.ok(&["start", "web"]);
            assert_eq!(vms.ok(&["exec", "web", "both"]), "out", "{when}");
            clean(&vms, when);
        },
    );
    // The directory, the name, the renaming.
    assert!(rounds > 3, "{rounds}");
}

#[test]
fn a_rename_that_is_killed_has_given_one_name() {
    let vms = Vms::new("normal");
    let id = vms.create(&["--name", "one"], &["both"]);
    let current = || vms.ok(&["inspect", "--format", "{{.Name}}", &id]);
    let rounds = at_each_step(
        &vms,
        || {
            if current() != "one\n" {
                vms.ok(&["rename", &id, "one"]);
            }
            let mut watched = places(&vms);
            watched.push(vms.state().join("vms").join(&id));
            (vms.0.flashpan(&["rename", &id, "two"]), watched)
        },
        |when| {
            let name = current();
            let (has, other) = match name.as_str() {
                "one\n" => ("one", "two"),
                "two\n" => ("two", "one"),
                name => panic!("{when}: {name}"),
            };
            assert_eq!(vms.inspect(has)["id"], id.as_str(), "{when}");
            vms.refused(&["inspect", other]);
            // It is free for others.
            vms.create(&["--name", other], &["both"]);
            vms.ok(&["rm", other]);
        },
    );
    assert!(rounds > 3, "{rounds}");
}

#[test]
fn a_removal_that_is_killed_has_removed_the_vm_or_not() {
    let vms = Vms::new("normal");
    let rounds = at_each_step(
        &vms,
        || {
            if vms.ok(&["ls", "-q"]).is_empty() {
                vms.create(&["--name", "web"], &["both"]);
            }
            (vms.0.flashpan(&["rm", "web"]), places(&vms))
        },
        |when| {
            let listed = vms.ok(&["ls", "--format", "{{.Name}} {{.Status}}"]);
            assert!(
                ["", "web created\n"].contains(&listed.as_str()),
                "{when}: {listed}"
            );
            let mut words = vms.ok(&["__complete"]);
            words.retain(|c| c == '\n');
            assert_eq!(words.len(), 2 * listed.lines().count(), "{when}");
        },
    );
    assert!(rounds > 2, "{rounds}");
    vms.ok(&["prune"]);
    clean(&vms, "at the end");
    vms.assert_nothing_left();
}

#[test]
fn a_supervisor_that_is_killed_takes_its_vm_along_and_is_said_to_have_crashed() {
    let vms = Vms::new("normal");
    let id = vms.run(&["--name", "web"], &["sleep"]);
    let mut follow = vms.0.flashpan(&["logs", "-f", "web"]).spawn().unwrap();
    let exec = vms
        .0
        .flashpan(&["exec", "web", "announce-and-sleep"])
        .spawn();
    let mut exec = exec.unwrap();
    fake::wait_until_ready(&mut exec);
    vms.kill(vms.supervisor(&id));
    assert_eq!(vms.status(&id), "crashed");
    vms.vmm_is_gone();
    // Who was attached hears of it.
    assert_eq!(exec.wait().unwrap().code(), Some(125));
    assert!(follow.wait().unwrap().success());
    for (command, says) in [
        (&["exec", "web", "both"][..], "is crashed; start it"),
        (&["ps", "web"], "is crashed; start it"),
        (&["pause", "web"], "does not run: it is crashed"),
    ] {
        let refused = vms.refused(command);
        assert!(refused.contains(says), "{refused}");
    }
    assert_eq!(vms.ok(&["wait", "web"]), "125\n");
    vms.ok(&["start", "web"]);
    assert_eq!(vms.ok(&["exec", "web", "both"]), "out");
    vms.kill(vms.supervisor(&id));
    assert_eq!(vms.ok(&["prune"]), format!("{id}\nPruned 1 VM\n"));
    vms.assert_nothing_left();
}

#[test]
fn a_supervisor_that_is_stuck_with_no_room_for_another_client_is_ended_with_its_vm() {
    let vms = Vms::new("normal");
    let id = vms.run(&[], &["sleep"]);
    let supervisor = vms.supervisor(&id);
    nix::sys::signal::kill(supervisor, nix::sys::signal::Signal::SIGSTOP).unwrap();
    // Connections wait for it although who made them is gone, until it has no room.
    let address = UnixAddr::new(&vms.state().join("vms").join(&id).join("control.sock")).unwrap();
    let full = std::iter::repeat_with(|| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        connect(client.as_raw_fd(), &address)
    });
    let refused = full.take(1 << 20).find_map(Result::err);
    assert_eq!(refused, Some(Errno::EAGAIN));
    assert_eq!(vms.ok(&["kill", &id]), format!("{id}\n"));
    assert_eq!(vms.status(&id), "crashed");
    vms.ok(&["rm", &id]);
    vms.assert_nothing_left();
}

#[test]
fn a_supervisor_that_is_stuck_and_takes_no_connections_is_ended_with_its_vm() {
    let vms = Vms::new("normal");
    let id = vms.run(&[], &["sleep"]);
    let supervisor = vms.supervisor(&id);
    nix::sys::signal::kill(supervisor, nix::sys::signal::Signal::SIGSTOP).unwrap();
    // As at its end, when it writes down how that was.
    fs::remove_file(vms.state().join("vms").join(&id).join("control.sock")).unwrap();
    assert_eq!(vms.ok(&["kill", &id]), format!("{id}\n"));
    assert_eq!(vms.status(&id), "crashed");
    vms.ok(&["rm", &id]);
    vms.assert_nothing_left();
}

/// The children of a process.
fn children(pid: Pid) -> Vec<Pid> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let pids = text.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.map(Pid::from_raw).collect()
}

#[test]
fn a_vmm_that_is_killed_is_reported_by_its_supervisor() {
    let vms = Vms::new("normal");
    let id = vms.run(&[], &["sleep"]);
    let wait = vms.0.flashpan(&["wait", &id]).spawn().unwrap();
    let vmm = children(vms.supervisor(&id));
    assert_eq!(vmm.len(), 1);
    nix::sys::signal::kill(vmm[0], nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(wait.wait_with_output().unwrap().stdout, b"125\n");
    assert_eq!(vms.status(&id), "stopped");
    let exit = vms.inspect(&id)["exit"].clone();
    assert_eq!(exit["reason"]["kind"], "vmm_died");
    assert!(
        exit["message"].as_str().unwrap().contains("signal 9"),
        "{exit}"
    );
    vms.ok(&["rm", &id]);
    vms.assert_nothing_left();
}

#[test]
fn who_is_killed_before_the_vm_is_ready_leaves_nothing() {
    // The guest waits at a gate that nobody opens.
    let vms = Vms::new("gated");
    mkfifo(&vms.0.path("gate"), Mode::S_IRWXU).unwrap();
    let begin = || {
        let child = vms
            .making(&["run", "-d"], &["--name", "web"], &["sleep"])
            .spawn();
        let child = child.unwrap();
        vms.0.wait_for_vmm();
        let id = vms.ok(&["ls", "-q"]).trim().to_owned();
        assert_eq!(vms.status(&id), "starting");
        (child, id)
    };
    // The command.
    let (mut child, id) = begin();
    for words in [
        &["port-forward", &id, "18124:80"][..],
        &["stats", "--no-stream", &id],
    ] {
        let told = vms.refused(words);
        assert!(told.contains("is still starting"), "{told}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    vms.wait_until_nothing_is_left();
    // The supervisor.
    let (child, id) = begin();
    vms.kill(vms.supervisor(&id));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let line = fake::complaint(&output);
    assert!(line.contains("supervisor ended before"), "{line}");
    vms.assert_nothing_left();
    // The VM, by another command.
    let (child, id) = begin();
    vms.ok(&["kill", &id]);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let line = fake::complaint(&output);
    assert!(line.contains("ended while it started"), "{line}");
    vms.assert_nothing_left();
}

#[test]
fn a_start_or_a_stop_that_is_killed_has_happened_or_not() {
    let vms = Vms::new("normal");
    let id = vms.create(&[], &["sleep"]);
    let directory = vms.state().join("vms").join(&id);
    for begin in [&["start", &id][..], &["stop", &id], &["kill", &id]] {
        let rounds = at_each_step(
            &vms,
            || {
                let alive = ["starting", "running", "stopping"].contains(&vms.status(&id).as_str());
                if alive {
                    // One that is about to end may be gone by then.
                    vms.output(&["kill", &id]);
                }
                if begin[0] != "start" {
                    vms.ok(&["start", &id]);
                }
                (vms.0.flashpan(begin), vec![directory.clone()])
            },
            |when| {
                // In one look: it may be about to end.
                let shown = vms.inspect(&id);
                let (status, exit) = (shown["status"].as_str().unwrap(), &shown["exit"]);
                assert!(
                    [
                        "created", "starting", "running", "stopping", "stopped", "crashed"
                    ]
                    .contains(&status),
                    "{when}: {status}"
                );
                assert!(status != "running" || exit.is_null(), "{when}: {exit}");
            },
        );
        assert!(rounds > 1, "{begin:?}: {rounds}");
        // The last round's prune may have removed what has stopped.
        if vms.ok(&["ls", "-q"]).is_empty() {
            return;
        }
    }
}

#[test]
fn a_supervisor_that_is_killed_at_any_step_of_its_life_leaves_what_can_be_told() {
    let vms = Vms::new("normal");
    let id = vms.create(&["--name", "web"], &["both"]);
    let directory = vms.state().join("vms").join(&id);
    let mut count = 0;
    loop {
        count += 1;
        let before = vms.status(&id);
        let mut watch = Watch::on(std::slice::from_ref(&directory));
        let start = vms.0.flashpan(&["start", "web"]).spawn().unwrap();
        let killed = watch.wait(count, &start);
        if killed {
            // It has a socket from the beginning, or has not got as far.
            let socket = directory.join("control.sock");
            if let Ok(stream) = std::os::unix::net::UnixStream::connect(&socket) {
                use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
                let pid = getsockopt(&stream, PeerCredentials).unwrap().pid();
                drop(stream);
                vms.kill(Pid::from_raw(pid));
            }
        }
        let output = start.wait_with_output().unwrap();
        let status = vms.status(&id);
        let when = format!("after {:?}: {output:?}", watch.seen);
        match status.as_str() {
            // Killed, before or after it was ready; or too early for a socket.
            "crashed" => assert!(killed, "{when}"),
            // It listens before it has taken the VM in hand, and then says so.
            status if status == before => {
                let begun = watch.seen.iter().any(|name| name == "run.json");
                assert!(killed && !begun, "{when}");
            }
            "running" => vms
                .output(&["kill", "web"])
                .status
                .success()
                .then_some(())
                .unwrap(),
            status => panic!("{status} {when}"),
        }
        vms.vmm_is_gone();
        if !killed {
            break;
        }
    }
    // run.json twice, room for the end, the socket, two logs.
    assert!(count > 5, "{count}");
    vms.ok(&["rm", "web"]);
    vms.assert_nothing_left();
}
