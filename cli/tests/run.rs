//! `flashpan run` as its user sees it, against the fake VMM of the library's
//! tests: what reaches standard output, what the exit status is, what one line
//! says when it went wrong. No KVM is needed.
#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The fake VMM, which Cargo builds as an example beside the tests.
fn fake_vmm() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap();
    let program = built.join("examples/cli-fake-vmm");
    let missing = "not built; `cargo build --example cli-fake-vmm` does it";
    assert!(program.exists(), "{} is {missing}", program.display());
    program
}

/// A place with everything that a run needs.
struct World {
    dir: TempDir,
    scenario: &'static str,
}

impl World {
    fn new(scenario: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        symlink(fake_vmm(), dir.path().join("fake-vmm")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sandbox/tests/fake/vmm.sh");
        symlink(script, dir.path().join(scenario)).unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        // The fake VMM boots nothing, but what is no kernel does not reach it.
        for (file, contents) in [("vmlinux", "\x7fELF"), ("init", "init")] {
            std::fs::write(dir.path().join(file), contents).unwrap();
        }
        Self { dir, scenario }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `flashpan run OPTIONS -- COMMAND`.
    fn run(&self, options: &[&str], command: &[&str]) -> Command {
        let mut run = Command::new(env!("CARGO_BIN_EXE_flashpan"));
        run.env("FLASHPAN_VMM", self.path(self.scenario))
            .env("FLASHPAN_GUEST_INIT", self.path("init"))
            .env("FLASHPAN_KERNEL", self.path("vmlinux"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .args(["run", "--hostname", "fake", "--rootfs"])
            .arg(self.path("root"))
            .args(options)
            .arg("--")
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        run
    }

    fn output(&self, options: &[&str], command: &[&str]) -> Output {
        self.run(options, command).output().unwrap()
    }

    /// Returns when the VMM has got as far as it will.
    fn wait_for_vmm(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let kernel = File::open(self.path("vmlinux")).unwrap();
            if Flock::lock(kernel, FlockArg::LockExclusiveNonblock).is_err() {
                return;
            }
            assert!(Instant::now() < deadline, "the VMM did not start");
            std::thread::yield_now();
        }
    }

    /// No VMM may live on.
    fn assert_nothing_left(&self) {
        let kernel = File::open(self.path("vmlinux")).unwrap();
        let lock = Flock::lock(kernel, FlockArg::LockExclusiveNonblock);
        assert!(lock.is_ok(), "the VMM lives on");
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn complaint(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let errors: Vec<_> = stderr
        .lines()
        .filter(|line| line.contains("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    errors[0].to_owned()
}

#[test]
fn exit_codes_and_streams_are_those_of_the_command() {
    let world = World::new("normal");
    for code in [0, 1, 42, 137, 255] {
        let output = world.output(&[], &["exit", &code.to_string()]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(output.stdout.is_empty());
    }
    let output = world.output(&[], &["both"]);
    assert_eq!(output.stdout, b"out");
    assert!(output.stderr.starts_with(b"err"), "{output:?}");
    world.assert_nothing_left();
}

#[test]
fn warnings_of_the_guest_reach_the_user() {
    let world = World::new("normal");
    let output = world.output(&[], &["exit", "0"]);
    assert_eq!(output.stderr, b"flashpan: warning: guest: no entropy yet\n");
}

#[test]
fn input_goes_in_and_comes_out_unchanged() {
    let world = World::new("normal");
    let mut child = world
        .run(&["-i"], &["cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let data: Vec<u8> = (0..6_000_000_u32)
        .map(|n| n.to_le_bytes()[(n % 3) as usize])
        .collect();
    let mut stdin = child.stdin.take().unwrap();
    let sent = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(
        output.stdout == data,
        "{} bytes came back",
        output.stdout.len()
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_command_that_cannot_start_is_127() {
    let world = World::new("normal");
    let output = world.output(&[], &["missing"]);
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(
        complaint(&output),
        "flashpan: error: missing: not found in PATH"
    );
    world.assert_nothing_left();
}

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

/// Where the command of the run is when it says so.
fn wait_until_ready(child: &mut Child) {
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut [0; 5]).unwrap();
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

fn nonblocking(fd: impl std::os::fd::AsFd) {
    nix::fcntl::fcntl(
        fd,
        nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
    )
    .unwrap();
}

#[test]
fn streams_that_do_not_block_lose_nothing() {
    let world = World::new("normal");
    let (stdin, mut input) = std::io::pipe().unwrap();
    let (mut output, stdout) = std::io::pipe().unwrap();
    nonblocking(&stdin);
    nonblocking(&stdout);
    let mut run = world.run(&["-i"], &["cat"]);
    let mut child = run.stdin(stdin).stdout(stdout).spawn().unwrap();
    drop(run);
    // Little at a time, so that there often is nothing to read…
    for round in 0..50_u8 {
        input.write_all(&[round]).unwrap();
        let mut echo = [0];
        output.read_exact(&mut echo).unwrap();
        assert_eq!(echo, [round]);
    }
    // … and much at a time, so that there often is no room to write.
    let data = vec![b'x'; 3_000_000];
    let writer = std::thread::spawn(move || input.write_all(&data).unwrap());
    let mut echo = Vec::new();
    output.read_to_end(&mut echo).unwrap();
    writer.join().unwrap();
    assert_eq!(echo.len(), 3_000_000);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn input_that_cannot_be_read_fails_the_run() {
    let world = World::new("normal");
    let mut run = world.run(&["-i"], &["cat"]);
    let output = run
        .stdin(File::open(world.path("root")).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(
        complaint(&output).contains("cannot read standard input: Is a directory"),
        "{output:?}"
    );
}

#[test]
fn what_is_wrong_is_said_before_a_root_image_is_made() {
    let world = World::new("normal");
    std::fs::write(world.path("text"), "no kernel").unwrap();
    let text = world.path("text");
    for options in [
        &["--cpus", "0"][..],
        &["--memory", "1M"],
        &["--kernel", text.to_str().unwrap()],
        &["--kernel", "/nowhere/vmlinux"],
        &["--timeline", "/nowhere/timeline.json"],
    ] {
        let output = world.output(options, &["true"]);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(!world.path("cache").exists(), "{options:?}: {output:?}");
    }
}

#[test]
fn the_time_limit_is_124_and_one_line() {
    let world = World::new("normal");
    let output = world.output(&["--timeout", "500ms"], &["sleep"]);
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert!(
        complaint(&output).contains("time is up: 500ms"),
        "{output:?}"
    );
    world.assert_nothing_left();
}

#[test]
fn closed_output_ends_the_run_quietly() {
    let world = World::new("normal");
    let note = world.path("note");
    let mut child = world
        .run(&[], &["flood", note.to_str().unwrap()])
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 100_000]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert!(!String::from_utf8(output.stderr).unwrap().contains("error"));
    world.assert_nothing_left();
}

#[test]
fn an_end_of_the_vm_is_a_reason() {
    for (scenario, command, expected) in [
        ("boot-failed", "true", "/vmlinux: not a kernel"),
        (
            "crash",
            "true",
            "error: VMM process exited with status 3; it said: last words",
        ),
        ("panic", "true", "error: guest kernel panic: VFS: no root"),
        (
            "setup-failed",
            "true",
            "error: guest could not mount the root image",
        ),
        (
            "normal",
            "crash-the-vmm",
            "error: VMM process exited with status 9",
        ),
        (
            "normal",
            "power-off",
            "error: guest powered off before the command ended",
        ),
        (
            "normal",
            "ask-for-power-off",
            "error: a program in the guest powered it off before the command ended",
        ),
    ] {
        let world = World::new(scenario);
        let output = world.output(&[], &[command]);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(
            complaint(&output).contains(expected),
            "{scenario}: {}",
            complaint(&output)
        );
        world.assert_nothing_left();
    }
}

#[test]
fn the_console_is_shown_when_asked_for() {
    let world = World::new("panic");
    let shown = world.output(&["--console"], &["true"]);
    let text = String::from_utf8(shown.stderr).unwrap();
    assert!(
        text.starts_with("[ 1.0] Kernel panic - not syncing: VFS: no root\n"),
        "{text}"
    );
    let hidden = world.output(&[], &["true"]);
    assert!(
        hidden
            .stderr
            .starts_with(b"flashpan: error: guest kernel panic")
    );
}

#[test]
fn the_timeline_is_written_as_json() {
    let world = World::new("normal");
    let file = world.path("timeline.json");
    let output = world.output(&["--timeline", file.to_str().unwrap()], &["both"]);
    assert_eq!(output.status.code(), Some(0));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let phases: Vec<_> = json["stamps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["phase"].as_str().unwrap())
        .collect();
    for phase in [
        "process_start",
        "agent_connected",
        "command_started",
        "first_byte",
        "exit",
    ] {
        assert!(phases.contains(&phase), "{phase} is not in {phases:?}");
    }
}

#[test]
fn a_timeline_never_changes_the_result_and_is_there_when_the_boot_failed() {
    let world = World::new("normal");
    let output = world.output(&["--timeline", "/dev/full"], &["exit", "7"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("warning: cannot write the timeline to /dev/full: No space left"),
        "{text}"
    );

    let world = World::new("setup-failed");
    let file = world.path("timeline.json");
    let output = world.output(&["--timeline", file.to_str().unwrap()], &["true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("warning: guest: the disk is old"), "{text}");
    let json = std::fs::read_to_string(file).unwrap();
    assert!(json.contains("agent_connected") && !json.contains("init_ready"));
}

#[test]
fn doctor_looks_at_the_kernel_that_run_would_boot() {
    let world = World::new("normal");
    std::fs::write(world.path("text"), "no kernel").unwrap();
    for (kernel, status) in [("vmlinux", "ok"), ("text", "failed"), ("none", "failed")] {
        let output = Command::new(env!("CARGO_BIN_EXE_flashpan"))
            .args(["doctor", "--json"])
            .env("FLASHPAN_KERNEL", world.path(kernel))
            .env("XDG_CACHE_HOME", world.path("cache"))
            .output()
            .unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = json["checks"].as_array().unwrap();
        let check = checks
            .iter()
            .find(|check| check["name"] == "guest kernel")
            .unwrap();
        assert_eq!(check["status"], status, "{check}");
        assert_eq!(check["fix"].is_null(), status == "ok", "{check}");
        let named = world.path(kernel).display().to_string();
        assert!(
            check["detail"].as_str().unwrap().contains(&named),
            "{check}"
        );
    }
}

#[test]
fn bench_boot_counts_its_boots() {
    let world = World::new("normal");
    let run = world.run(&[], &["exit", "0"]);
    let mut bench = Command::new(env!("CARGO_BIN_EXE_flashpan"));
    bench.envs(
        run.get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    bench.args([
        "bench",
        "boot",
        "-n",
        "3",
        "--warmup",
        "0",
        "--json",
        "--hostname",
        "fake",
    ]);
    bench
        .arg("--rootfs")
        .arg(world.path("root"))
        .args(["exit", "0"]);
    let output = bench.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["boots"], 3);
    let phases = json["phases"].as_array().unwrap();
    let ready = phases.iter().find(|p| p["phase"] == "init_ready").unwrap();
    let times = &ready["since_start_ns"];
    assert!(times["min"].as_u64().unwrap() > 0);
    assert!(times["min"].as_u64() <= times["median"].as_u64());
    assert!(times["p90"].as_u64() <= times["max"].as_u64());
    world.assert_nothing_left();
}
