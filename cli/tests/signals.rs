//! Signals and terminals of `flashpan run`, against the fake VMM of the library's
//! tests.
#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/fake.rs"]
mod fake;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use fake::{World, complaint, signal, wait_until_ready};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

#[test]
fn signals_go_to_the_command() {
    let world = World::new("normal");
    for (name, code) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGINT, 130),
        (Signal::SIGUSR1, 138),
    ] {
        // `cat` proves by its echo that it runs.
        let mut child = world.run(&[], &["announce-and-sleep"]).spawn().unwrap();
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut [0; 5])
            .unwrap();
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}: {output:?}");
    }
    world.assert_nothing_left();
}

#[test]
fn a_third_interrupt_ends_a_command_that_ignores_them() {
    let world = World::new("normal");
    let mut child = world.run(&[], &["announce-and-ignore"]).spawn().unwrap();
    let mut heard = [0; 5];
    // It says so whenever it has ignored one.
    for _ in 0..3 {
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut heard)
            .unwrap();
        signal(&child, Signal::SIGINT);
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    world.assert_nothing_left();
}

#[test]
fn an_interrupt_during_boot_ends_it_without_a_word() {
    let world = World::new("silent");
    let child = world.run(&[], &["true"]).spawn().unwrap();
    world.wait_for_vmm();
    signal(&child, Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    world.assert_nothing_left();
}

#[test]
fn a_supervisor_that_is_killed_takes_its_vmm_along() {
    let world = World::new("silent");
    let mut child = world.run(&[], &["true"]).spawn().unwrap();
    world.wait_for_vmm();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    let kernel = File::open(world.path("vmlinux")).unwrap();
    // Returns when the VMM has noticed and ended.
    drop(Flock::lock(kernel, FlockArg::LockExclusive).unwrap());
}

#[test]
fn signals_that_can_be_caught_go_to_the_command() {
    let world = World::new("normal");
    let real_time = nix::libc::SIGRTMIN() + 1;
    for number in [
        nix::libc::SIGALRM,
        nix::libc::SIGTSTP,
        nix::libc::SIGPWR,
        real_time,
    ] {
        let mut child = world.run(&[], &["announce-and-sleep"]).spawn().unwrap();
        wait_until_ready(&mut child);
        // SAFETY: the child is not reaped yet, so the number is its own.
        unsafe { nix::libc::kill(child.id().cast_signed(), number) };
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + number), "{output:?}");
    }
}

#[test]
fn a_signal_while_booting_is_not_for_the_command() {
    let world = World::new("gated");
    let gate = world.path("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut child = world.run(&[], &["announce-and-sleep"]).spawn().unwrap();
    world.wait_for_vmm();
    signal(&child, Signal::SIGUSR1);
    std::fs::write(gate, "").unwrap();
    wait_until_ready(&mut child);
    signal(&child, Signal::SIGTERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{output:?}");
}

/// Makes `terminal` the child's own: its session's, and its standard input.
fn on_terminal(run: &mut Command, terminal: &OwnedFd) {
    use std::os::unix::process::CommandExt;
    run.stdin(terminal.try_clone().unwrap());
    // SAFETY: setsid and ioctl are async-signal-safe; 0 is the terminal.
    unsafe {
        run.pre_exec(|| {
            nix::unistd::setsid()?;
            nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
}

#[test]
fn a_terminal_without_input_leaves_the_keys_to_the_user() {
    let world = World::new("normal");
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut run = world.run(&["-t"], &["announce-and-sleep"]);
    on_terminal(&mut run, &pty.slave);
    let mut child = run.spawn().unwrap();
    wait_until_ready(&mut child);
    // Ctrl-C: in raw mode it would be a byte that nobody reads.
    nix::unistd::write(&pty.master, b"\x03").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
}

#[test]
fn only_input_needs_a_terminal() {
    let world = World::new("normal");
    let output = world.output(&["-t"], &["size"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"Some(\"24x80\")");
    let output = world.output(&["-it"], &["size"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(complaint(&output).contains("leave -t out"), "{output:?}");
}

#[test]
fn a_terminal_that_changes_while_the_guest_boots_has_the_new_size() {
    let world = World::new("gated");
    let gate = world.path("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let size = |rows, columns| nix::pty::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = nix::pty::openpty(&size(30, 90), None).unwrap();
    let mut run = world.run(&["-it"], &["size"]);
    on_terminal(&mut run, &pty.slave);
    let child = run.spawn().unwrap();
    world.wait_for_vmm();
    // SAFETY: TIOCSWINSZ reads one winsize.
    let set = unsafe {
        nix::libc::ioctl(
            pty.master.as_raw_fd(),
            nix::libc::TIOCSWINSZ,
            &size(50, 132),
        )
    };
    assert_eq!(set, 0);
    std::fs::write(gate, "").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"Some(\"50x132\")", "{output:?}");
}

fn press(terminal: &OwnedFd, mut keys: &[u8]) {
    while !keys.is_empty() {
        let written = nix::unistd::write(terminal, keys).unwrap();
        keys = &keys[written..];
    }
}

#[test]
fn the_escape_ends_a_vm_whose_guest_takes_no_keys() {
    let world = World::new("normal");
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut run = world.run(&["-it"], &["announce-and-ignore"]);
    on_terminal(&mut run, &pty.slave);
    let mut child = run.spawn().unwrap();
    // From here on the keys are the command's.
    wait_until_ready(&mut child);
    // Interrupts are keys like any other, and more than any buffer on the way
    // holds are pressed before.
    press(&pty.master, b"\x03\x03\x03");
    press(&pty.master, &vec![b'x'; 2 << 20]);
    press(&pty.master, b"\x1d\x1d\x1d");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let text = complaint(&output);
    assert!(
        text.ends_with("the VM was ended by Ctrl-] three times"),
        "{text}"
    );
    world.assert_nothing_left();
}

#[test]
fn keys_that_are_not_the_whole_escape_are_the_guests() {
    let world = World::new("normal");
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut run = world.run(&["-it"], &["cat"]);
    on_terminal(&mut run, &pty.slave);
    let mut child = run.spawn().unwrap();
    let keys = b"\x1d\x1dx\x1dy\x1d\x1d";
    let mut echo = vec![0; keys.len()];
    let stdout = child.stdout.as_mut().unwrap();
    // Whatever mode this line finds, when it has come back it is the raw one.
    press(&pty.master, b"a\n");
    stdout.read_exact(&mut echo[..2]).unwrap();
    press(&pty.master, keys);
    stdout.read_exact(&mut echo).unwrap();
    assert_eq!(echo, keys);
    // The last two and one more, without another in between.
    press(&pty.master, b"\x1d\x1d\x1d");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
}

/// Options by which a run has a disk to keep.
const KEEPS: [&str; 2] = ["--disk", "@kept:/data"];

fn with_volume(scenario: &'static str) -> World {
    let world = World::new(scenario);
    let made = Command::new(env!("CARGO_BIN_EXE_flashpan"))
        .args(["volume", "create", "kept", "--size", "16M"])
        .env("XDG_CACHE_HOME", world.path("cache"))
        .env("XDG_STATE_HOME", world.path("state"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    world
}

#[test]
fn a_guest_that_writes_its_disks_can_be_interrupted() {
    let world = with_volume("stubborn");
    let mut child = world.run(&KEEPS, &["exit", "0"]).spawn().unwrap();
    let mut said = [0; 60];
    // After a while it says what it waits for.
    child
        .stderr
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("waiting for the guest to write"), "{said}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        signal(&child, Signal::SIGINT);
        assert!(Instant::now() < deadline, "interrupts are not heard");
        std::thread::yield_now();
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let rest = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        rest.contains("warning") && rest.contains("may be lost"),
        "{rest}"
    );
    world.assert_nothing_left();
}

#[test]
fn time_that_is_up_ends_a_guest_that_writes_its_disks() {
    let world = with_volume("stubborn");
    let options = [&KEEPS[..], &["--timeout", "2s"]].concat();
    let output = world.output(&options, &["exit", "0"]);
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    let text = complaint(&output);
    assert!(text.contains("while writing its disks"), "{text}");
    // Not if it was up before that.
    let output = world.output(&options, &["sleep"]);
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("while running the command"), "{text}");
    assert!(text.contains("may be lost"), "{text}");
    world.assert_nothing_left();
}

#[test]
fn a_guest_that_ends_before_its_disks_are_written_is_a_failure() {
    let world = with_volume("clumsy");
    let output = world.output(&KEEPS, &["exit", "0"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let text = complaint(&output);
    assert!(text.contains("may be lost"), "{text}");
    // The command's own failure goes before.
    let output = world.output(&KEEPS, &["missing"]);
    assert_eq!(output.status.code(), Some(127), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("may be lost"), "{text}");
    // Without a disk that is kept nothing is asked of the guest.
    let output = world.output(&[], &["exit", "3"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("may be lost"), "{text}");
    world.assert_nothing_left();
}

/// `flashpan run --disk … | head` is no reason to lose what was written.
#[test]
fn disks_are_written_for_whoever_has_had_enough_of_the_output() {
    let world = with_volume("clumsy");
    let note = world.path("note").display().to_string();
    let mut child = world.run(&KEEPS, &["flood", &note]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("did not shut down in order"), "{text}");
    world.assert_nothing_left();
}
