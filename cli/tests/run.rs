//! `flashpan run` as its user sees it, against the fake VMM of the library's
//! tests: what reaches standard output, what the exit status is, what one line
//! says when it went wrong. No KVM is needed.
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

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use fake::{World, complaint, signal, wait_until_ready};
use nix::sys::signal::Signal;

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
        &["--disk", "/nowhere/disk.ext4:/data"],
        &["--disk", "@none:/data"],
        &["--disk-size", "1M"],
        &["--disk-bps", "0"],
        &["--disk-iops", "0"],
        &["--workdir", "relative"],
    ] {
        let output = world.output(options, &["true"]);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(!world.path("cache").exists(), "{options:?}: {output:?}");
    }
}

/// An ext4 image of the user's.
fn ext4(path: &Path) {
    File::create(path).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("/usr/sbin/mkfs.ext4")
        .args(["-q", "-F"])
        .arg(path)
        .status()
        .expect("mkfs.ext4 is needed by this test: apt-get install e2fsprogs");
    assert!(made.success());
}

#[test]
fn the_image_of_a_vm_that_runs_is_locked_whatever_its_path_becomes() {
    let world = World::new("normal");
    let image = world.path("image");
    ext4(&image);
    let writer = File::options().write(true).open(&image).unwrap();
    let run = |command: &[&str]| world.run_from(&image, &[], command);
    writer.try_lock().unwrap();
    let output = run(&["exit", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(complaint(&output).contains("image is in use"), "{output:?}");
    writer.unlock().unwrap();

    let mut child = run(&["announce-and-sleep"]).spawn().unwrap();
    wait_until_ready(&mut child);
    ext4(&world.path("other"));
    std::fs::rename(world.path("other"), &image).unwrap();
    assert!(matches!(writer.try_lock(), Err(TryLockError::WouldBlock)));
    writer.try_lock_shared().unwrap();
    writer.unlock().unwrap();
    let other = File::options().write(true).open(&image).unwrap();
    other.try_lock().unwrap();
    signal(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    writer.try_lock().unwrap();
}

/// The superblock of an EROFS image that has something compressed in it.
fn compressed_erofs() -> Vec<u8> {
    let mut image = vec![0; 8192];
    for (offset, bytes) in [
        (0, 0xe0f5_e1e2_u32.to_le_bytes()), // magic
        (12, 12_u32.to_le_bytes()),         // blkszbits
        (36, 2_u32.to_le_bytes()),          // blocks
        (80, 1_u32.to_le_bytes()),          // feature_incompat
    ] {
        image[1024 + offset..][..4].copy_from_slice(&bytes);
    }
    image
}

#[test]
fn the_image_that_was_looked_at_is_the_one_that_boots() {
    let world = World::new("normal");
    // A warning that names it does not fit the pipe at once, so the run stands
    // still after it looked at the image, and before the VMM gets it.
    let mut directory = world.dir.path().to_owned();
    while directory.as_os_str().len() < 3600 {
        directory.push("x".repeat(200));
    }
    std::fs::create_dir_all(&directory).unwrap();
    let rest = 4090 - directory.as_os_str().len();
    let names = [rest / 2, rest - rest / 2].map(|length| "y".repeat(length - 1));
    directory.push(&names[0]);
    std::fs::create_dir(&directory).unwrap();
    let image = directory.join(&names[1]);
    std::fs::write(&image, compressed_erofs()).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let size = nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096);
    assert_eq!(nix::fcntl::fcntl(&reader, size).unwrap(), 4096);

    let mut run = world.run_from(&image, &[], &["exit", "7"]);
    let mut child = run.stderr(writer).spawn().unwrap();
    drop(run);
    reader.read_exact(&mut [0]).unwrap();
    std::fs::remove_file(&image).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7), "{text}");
    assert!(text.contains(" is compressed"), "{text}");
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

/// The kernel would send SIGXFSZ.
#[test]
fn a_limit_of_file_sizes_is_an_error_that_names_it() {
    let world = World::new("normal");
    std::fs::write(world.path("init"), vec![1; 1 << 20]).unwrap();
    let limited = || {
        let run = world.run(&[], &["exit", "0"]);
        let mut limited = Command::new("sh");
        let envs = run
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?)));
        limited
            .envs(envs)
            .args(["-c", "ulimit -f 1; exec \"$@\"", "sh"])
            .arg(run.get_program())
            .args(run.get_args());
        limited.output().unwrap()
    };
    // The root image is a file like any other.
    let output = limited();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let text = complaint(&output);
    assert!(text.contains("File too large"), "{text}");
    let output = world.output(&[], &["exit", "0"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // With the image in the cache it is the guest's init that counts.
    let output = limited();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let text = complaint(&output);
    assert!(text.contains("(ulimit -f)"), "{text}");
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
