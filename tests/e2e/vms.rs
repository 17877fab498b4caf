//! VMs that outlive the commands that made them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use flashpan_tests::{Finished, Flashpan, Home, Terminal, fixtures};

/// A VM that runs until it is removed.
struct Vm<'a> {
    home: &'a Home,
    id: String,
}

impl<'a> Vm<'a> {
    fn run(home: &'a Home, options: &[&str], script: &str) -> Self {
        Self::made(home, &["run", "-d"], options, script)
    }

    fn made(home: &'a Home, by: &[&str], options: &[&str], script: &str) -> Self {
        let mut words = by.to_vec();
        words.extend(options);
        if !script.is_empty() {
            words.extend(["--", "sh", "-c", script]);
        }
        let run = Flashpan::new(home, words).finish();
        run.expect_status(0);
        let id = run.text().trim().to_owned();
        assert!(id.starts_with("vm-"), "{run}");
        Self { home, id }
    }

    fn flashpan(&self, words: &[&str]) -> Finished {
        let words = words.iter().map(|word| word.replace("VM", &self.id));
        Flashpan::new(self.home, words).finish()
    }

    fn script(&self, script: &str) -> Finished {
        self.flashpan(&["exec", "VM", "sh", "-c", script])
    }

    fn status(&self) -> String {
        let inspected = self.flashpan(&["inspect", "--format", "{{.Status}}", "VM"]);
        inspected.expect_status(0);
        inspected.text().trim().to_owned()
    }

    fn remove(self) {
        self.flashpan(&["rm", "-f", "VM"]).expect_status(0);
        self.home.assert_nothing_left();
    }
}

#[test]
fn what_a_vm_wrote_is_there_when_it_is_started_again() {
    let home = Home::new();
    let vm = Vm::made(&home, &["create"], &[], "");
    assert_eq!(vm.status(), "created");
    vm.flashpan(&["start", "VM"]).expect_status(0);
    vm.script("echo kept > /root/file; mkdir /srv/new")
        .expect_status(0);
    vm.flashpan(&["stop", "VM"]).expect_status(0);
    assert_eq!(vm.status(), "stopped");
    vm.flashpan(&["start", "VM"]).expect_status(0);
    vm.script("cat /root/file; ls -d /srv/new")
        .expect_status(0)
        .expect_stdout("kept\n/srv/new\n");
    // Also after it was killed, as far as it was synced.
    vm.script("echo synced > /root/other; sync")
        .expect_status(0);
    vm.flashpan(&["kill", "VM"]).expect_status(0);
    vm.flashpan(&["start", "VM"]).expect_status(0);
    vm.script("cat /root/file /root/other")
        .expect_stdout("kept\nsynced\n");
    vm.remove();
}

#[test]
fn a_stop_while_the_disk_is_busy_leaves_it_clean_and_everything_synced_on_it() {
    let home = Home::new();
    let vm = Vm::run(&home, &["--disk-size", "512M"], "");
    // Each number is written after the one before it is on the disk.
    let busy = "n=0; while :; do n=$((n+1)); dd if=/dev/urandom of=/data.$((n % 20)) bs=256k count=4 2>/dev/null
                echo $n > /count.new; sync; mv /count.new /count; sync; echo $n > /dev/shm/synced; done";
    vm.flashpan(&["exec", "-d", "VM", "sh", "-c", busy])
        .expect_status(0);
    let script = "while ! [ -s /dev/shm/synced ] || [ $(cat /dev/shm/synced) -lt 5 ]; do :; done; cat /dev/shm/synced";
    let synced = vm.script(script);
    synced.expect_status(0);
    let synced: u64 = synced.text().trim().parse().unwrap();
    vm.flashpan(&["stop", "--time", "0", "VM"]).expect_status(0);
    let state = &home.environment()[0].1;
    let disk = state.join("flashpan/vms").join(&vm.id).join("upper.ext4");
    let fsck = std::process::Command::new("/usr/sbin/e2fsck")
        .arg("-fn")
        .arg(&disk)
        .output()
        .unwrap();
    assert!(fsck.status.success(), "{fsck:?}");
    vm.flashpan(&["start", "VM"]).expect_status(0);
    let count: u64 = vm.script("cat /count").text().trim().parse().unwrap();
    assert!(count >= synced, "{count} after {synced}");
    vm.remove();
}

#[test]
fn programs_may_do_what_their_vm_was_made_for() {
    let home = Home::new();
    let mount = ["exec", "VM", "mount", "-t", "tmpfs", "none", "/mnt"];
    let vm = Vm::run(&home, &["--privileged"], "");
    vm.flashpan(&mount).expect_status(0);
    vm.remove();
    let vm = Vm::run(&home, &[], "");
    assert_ne!(vm.flashpan(&mount).status, Some(0));
    vm.script("grep -q '^NoNewPrivs:.*1' /proc/self/status")
        .expect_status(0);
    vm.flashpan(&[
        "exec",
        "--privileged",
        "VM",
        "mount",
        "-t",
        "tmpfs",
        "none",
        "/mnt",
    ])
    .expect_status(0);
    vm.remove();
}

#[test]
fn ports_lead_into_a_vm_that_stays() {
    let home = Home::new();
    let server = "import socket; s = socket.create_server(('127.0.0.1', 8000))
while True:
    c, _ = s.accept(); c.sendall(c.recv(100)[::-1]); c.close()";
    let rootfs = fixtures::debian().display().to_string();
    // It was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = format!("{}:8000", free.local_addr().unwrap().port());
    drop(free);
    let run = [
        "run", "-d", "-p", &ports, "--rootfs", &rootfs, "--", "python3", "-c", server,
    ];
    let run = Flashpan::new(&home, run).finish();
    run.expect_status(0);
    let id = run.text().trim().to_owned();
    let vm = Vm { home: &home, id };
    let ports = vm.flashpan(&["ls", "--format", "{{.Ports}}"]).text();
    let address = ports.trim().strip_suffix("->8000/tcp").unwrap().to_owned();
    // Accepted by this machine in any case; whether the server is there shows later.
    let answer = || {
        let mut client = TcpStream::connect(&address).ok()?;
        client.write_all(b"olleh").ok()?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).ok()?;
        (!answer.is_empty()).then_some(answer)
    };
    let deadline = Instant::now() + Duration::from_secs(180);
    let answer = std::iter::repeat_with(answer).find(|answer| {
        assert!(Instant::now() < deadline, "no answer");
        answer.is_some()
    });
    assert_eq!(answer.flatten().as_deref(), Some("hello"));
    vm.remove();
}

#[test]
fn fifty_programs_at_once() {
    let home = Home::new();
    let vm = Vm::run(&home, &["-m", "512M"], "");
    let runs: Vec<_> = (0..50)
        .map(|number| {
            let script = format!("echo {number}; exit {number}");
            let words = ["exec", &vm.id, "sh", "-c", &script];
            (number, Flashpan::new(&home, words).start())
        })
        .collect();
    for (number, run) in runs {
        run.finish()
            .expect_status(number)
            .expect_stdout(&format!("{number}\n"));
    }
    vm.remove();
}

#[test]
fn a_paused_vm_does_nothing_and_goes_on_where_it_was() {
    let home = Home::new();
    let count = "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/n; done";
    let vm = Vm::run(&home, &[], count);
    vm.script("while ! [ -s /dev/shm/n ]; do :; done")
        .expect_status(0);
    vm.flashpan(&["pause", "VM"]).expect_status(0);
    assert_eq!(vm.status(), "paused");
    let begun = Instant::now();
    vm.flashpan(&["exec", "VM", "true"])
        .expect_status(125)
        .expect_complaint(&[&vm.id, "is paused", "flashpan unpause"]);
    // A guest that had been asked would not have answered for a minute.
    assert!(begun.elapsed().as_secs() < 30);
    vm.flashpan(&["unpause", "VM"]).expect_status(0);
    let script =
        "a=$(cat /dev/shm/n); while [ \"$(cat /dev/shm/n)\" = \"$a\" ]; do :; done; echo on";
    vm.script(script).expect_status(0).expect_stdout("on\n");
    vm.remove();
}

#[test]
fn the_log_of_a_command_is_followed_to_its_end() {
    let home = Home::new();
    // Goes on when it is told to.
    let script = "echo one; until [ -e /go ]; do sleep 0.1; done; echo two >&2; exit 3";
    let vm = Vm::run(&home, &[], script);
    let mut follow = Flashpan::new(&home, ["logs", "-f", &vm.id]).start();
    follow.wait_for_stdout("one\n");
    vm.script("touch /go").expect_status(0);
    follow.wait_for_stdout("one\ntwo\n");
    vm.flashpan(&["wait", "VM"]).expect_stdout("3\n");
    vm.flashpan(&["stop", "VM"]).expect_status(0);
    follow.finish().expect_status(0).expect_stdout("one\ntwo\n");
    vm.flashpan(&["logs", "--tail", "1", "VM"])
        .expect_stdout("two\n");
    vm.remove();
}

#[test]
fn programs_and_what_they_use_are_listed() {
    let home = Home::new();
    let vm = Vm::run(&home, &["--name", "busy"], "exec sleep 1000");
    let programs = vm.flashpan(&["ps", "--format", "{{.PID}} {{.UID}} {{.Command}}", "busy"]);
    programs.expect_status(0);
    let sleeps = |line: &&str| line.ends_with(" 0 sleep 1000");
    assert_eq!(
        programs.text().lines().filter(sleeps).count(),
        1,
        "{programs}"
    );
    let stats = vm.flashpan(&["stats", "--no-stream", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&stats.text()).unwrap();
    assert_eq!(stats[0]["name"], "busy");
    assert!(stats[0]["cpu_ns"].as_u64().unwrap() > 0, "{stats}");
    assert!(
        stats[0]["resident_bytes"].as_u64().unwrap() > 8 << 20,
        "{stats}"
    );
    vm.remove();
}

#[test]
fn a_shell_in_a_vm_has_a_terminal() {
    let home = Home::new();
    let vm = Vm::run(&home, &[], "");
    let mut shell = Terminal::start(&home, ["exec", "-it", &vm.id, "sh"]);
    shell.press("tty && echo $((6*7))\n");
    shell.wait_for("42");
    shell.press("exit 5\n");
    assert_eq!(shell.finish(), Some(5));
    // The VM goes on.
    assert_eq!(vm.status(), "running");
    vm.remove();
}

#[test]
fn a_session_at_a_terminal_is_like_any_other() {
    let home = Home::new();
    let vm = Vm::run(&home, &[], "");
    let mut shell = Terminal::start(&home, ["exec", "-it", &vm.id, "sh"]);
    // Ctrl-Z stops a program, which goes on in the foreground; Ctrl-D is its end of input.
    shell.wait_for("# ");
    shell.press("sh -c 'while read x; do echo \"<$x>\"; done'\n");
    shell.press("one\n");
    shell.wait_for("<one>");
    shell.press("\x1a");
    shell.wait_for("Stopped");
    shell.wait_for("# ");
    shell.press("fg\n");
    shell.press("two\n");
    shell.wait_for("<two>");
    shell.press("\x04");
    shell.wait_for("# ");
    // A program of the whole screen, which asks for single keys.
    shell.press("top\n");
    shell.wait_for("Mem:");
    shell.wait_for("COMMAND");
    shell.press("q");
    shell.wait_for("# ");
    // Ctrl-C ends a program and not the shell.
    shell.press("sh -c 'echo sl\"\"eeps; exec sleep 1000'\n");
    shell.wait_for("sleeps");
    shell.press("\x03");
    shell.wait_for("# ");
    shell.press("echo $((6*7)) of $?\n");
    shell.wait_for("42 of 130");
    shell.resize(50, 132);
    shell.press("until [ \"$(stty size)\" = '50 132' ]; do :; done; echo larg'er'\n");
    shell.wait_for("larger\r\n");
    shell.wait_for("# ");
    shell.press("\x04");
    assert_eq!(shell.finish(), Some(0));
    vm.remove();
}

#[test]
fn a_vm_that_ends_by_itself_says_how() {
    let home = Home::new();
    let vm = Vm::run(&home, &[], "");
    let wait = Flashpan::new(&home, ["wait", &vm.id]).start();
    // The program ends with its guest.
    let _ = vm.flashpan(&[
        "exec",
        "--privileged",
        "VM",
        "sh",
        "-c",
        "poweroff; sleep 1000",
    ]);
    wait.finish().expect_status(0);
    let inspected = vm.flashpan(&["inspect", "VM"]).text();
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected[0]["exit"]["orderly"], true, "{inspected}");
    vm.remove();
}
