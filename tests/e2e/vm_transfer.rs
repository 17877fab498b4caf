//! What goes into a VM that stays and comes out of it, in bulk.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flashpan_tests::{Flashpan, Home};
use nix::sys::resource::{UsageWho, getrusage};

/// How many mebibytes are copied unless `FLASHPAN_TEST_COPY_MIB` says otherwise: more than
/// anybody may keep in memory.
const SIZE: u64 = 96;

fn size() -> u64 {
    match std::env::var("FLASHPAN_TEST_COPY_MIB") {
        Ok(mib) => mib.parse().unwrap(),
        Err(_) => SIZE,
    }
}

fn ok(home: &Home, words: &[&str]) -> String {
    // A mebibyte a second is slow even for an emulated machine.
    let patience = Duration::from_secs(180 + size());
    let run = Flashpan::new(home, words).patience(patience).finish();
    run.expect_status(0);
    run.text()
}

/// Bytes that nothing on the way can make fewer, and that tell where they belong.
fn write_noise(path: &Path) {
    let mut file = File::create(path).unwrap();
    let mut state = 1_u64;
    let mut block = Vec::with_capacity(1 << 20);
    for _ in 0..size() {
        block.clear();
        while block.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block).unwrap();
    }
}

fn sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}

/// The most memory that a command that has ended had, in KiB.
fn peak_of_commands() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    u64::try_from(usage.max_rss()).unwrap()
}

/// The most memory that a process had, in KiB.
fn peak_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

#[test]
fn a_long_file_goes_in_and_comes_out_unchanged_through_little_memory() {
    let home = Home::new();
    let id = ok(&home, &["run", "-d", "-m", "256M", "--disk-size", "2G"]);
    let id = id.trim();
    let dir = tempfile::tempdir().unwrap();
    let (original, returned) = (dir.path().join("in"), dir.path().join("out"));
    write_noise(&original);
    let in_guest = format!("{id}:/data");
    ok(&home, &["cp", original.to_str().unwrap(), &in_guest]);
    let guests = ok(&home, &["exec", id, "sha256sum", "/data"]);
    assert_eq!(guests.split(' ').next().unwrap(), sum(&original));
    ok(&home, &["cp", &in_guest, returned.to_str().unwrap()]);
    assert_eq!(sum(&returned), sum(&original));
    // The command and the supervisor hold some messages of the file, and no more.
    let peak = peak_of_commands();
    println!("commands: {peak} KiB");
    assert!(peak < 64 * 1024, "{peak} KiB");
    let supervisors = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
            (line.split('\0').nth(1) == Some("supervise")).then_some(pid)
        });
    for supervisor in supervisors {
        let peak = peak_of(supervisor);
        println!("supervisor: {peak} KiB");
        assert!(peak < 64 * 1024, "{peak} KiB");
    }
    ok(&home, &["rm", "-f", id]);
    home.assert_nothing_left();
}
