//! What is told of VMs: the console, timelines, `doctor` and `bench`, against the
//! fake VMM of the library's tests.
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

use std::fs::File;
use std::os::unix::fs::symlink;
use std::process::{Command, Output};

use fake::World;
use nix::fcntl::{Flock, FlockArg};

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
fn a_vmm_that_does_not_end_is_told() {
    let world = World::new("held");
    let hold = File::create(world.path("hold")).unwrap();
    let hold = Flock::lock(hold, FlockArg::LockExclusive).unwrap();
    let output = world.output(&[], &["exit", "3"]);
    // The command's result stands.
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let told = text.lines().filter(|line| line.contains("does not end"));
    let told: Vec<_> = told.collect();
    assert_eq!(told.len(), 1, "{text}");
    assert!(
        told[0].starts_with("flashpan: warning: VMM process "),
        "{text}"
    );
    drop(hold);
}

#[test]
fn a_host_without_room_is_told_at_the_end() {
    let world = World::new("full-disks");
    let made = Command::new(env!("CARGO_BIN_EXE_flashpan"))
        .args(["volume", "create", "work", "--size", "16"])
        .env("XDG_CACHE_HOME", world.path("cache"))
        .env("XDG_STATE_HOME", world.path("state"))
        .status()
        .unwrap();
    assert!(made.success());
    let options = ["--disk-size", "16", "--disk", "@work:/work"];
    let output = world.output(&options, &["exit", "3"]);
    // The command's result stands.
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("full")).collect();
    let begin = "flashpan: warning: the host's disk is full: ";
    let cache = world.path("cache/flashpan").display().to_string();
    let volumes = world.path("state/flashpan/volumes").display().to_string();
    for (line, what, place) in [
        (
            lines[0],
            "3 writes of the guest to its root failed; ",
            cache,
        ),
        (lines[1], "a write of the guest to /work failed; ", volumes),
    ] {
        let rest = line.strip_prefix(begin).unwrap();
        assert!(rest.starts_with(&format!("{what}{place} has ")), "{line}");
        assert!(rest.contains(" free now; `flashpan image gc"), "{line}");
    }
    assert_eq!(lines.len(), 2, "{text}");
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

/// What `doctor --json` found out about something.
fn check(output: &Output, name: &str) -> serde_json::Value {
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = json["checks"].as_array().unwrap();
    let mut named = checks.iter().filter(|check| check["name"] == name);
    named.next().unwrap().clone()
}

#[test]
fn an_empty_variable_names_no_kernel() {
    let world = World::new("normal");
    let output = Command::new(env!("CARGO_BIN_EXE_flashpan"))
        .args(["doctor", "--json"])
        .env("FLASHPAN_KERNEL", "")
        .env("XDG_CACHE_HOME", world.path("cache"))
        .output()
        .unwrap();
    let check = check(&output, "guest kernel");
    assert_eq!(check["detail"], "none is built", "{check}");
}

#[test]
fn doctor_looks_at_the_tools_as_the_commands_that_need_them_do() {
    let world = World::new("normal");
    let programs = world.path("programs");
    std::fs::create_dir(&programs).unwrap();
    for name in ["gcc", "make", "flex", "bison", "bc", "busybox"] {
        symlink("/bin/true", programs.join(name)).unwrap();
    }
    let output = Command::new(env!("CARGO_BIN_EXE_flashpan"))
        .args(["doctor", "--json"])
        .env("PATH", programs)
        .env("XDG_CACHE_HOME", world.path("cache"))
        .output()
        .unwrap();
    let kernel = check(&output, "kernel build tools");
    assert_eq!(kernel["status"], "warning", "{kernel}");
    let fix = kernel["fix"].as_str().unwrap();
    assert!(fix.contains("binutils perl tar"), "{kernel}");
    // Not that of the PATH, which is none.
    let root = check(&output, "built-in root file system");
    assert!(
        root["detail"].as_str().unwrap().ends_with("bin/busybox"),
        "{root}"
    );
    assert!(!root.to_string().contains("programs"), "{root}");
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
        let check = check(&output, "guest kernel");
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
