//! What goes into a VM that stays and comes out of it, in bulk.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use flashpan_tests::{Flashpan, Home};

/// A gibibyte, in mebibytes.
const SIZE: u64 = 1024;

fn ok(home: &Home, words: &[&str]) -> String {
    let run = Flashpan::new(home, words).finish();
    run.expect_status(0);
    run.text()
}

/// Bytes that nothing on the way can make fewer, and that tell where they belong.
fn write_noise(path: &Path) {
    let mut file = File::create(path).unwrap();
    let mut state = 1_u64;
    let mut block = Vec::with_capacity(1 << 20);
    for _ in 0..SIZE {
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

fn are_equal(a: &Path, b: &Path) -> bool {
    let (mut a, mut b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = a.read(&mut left).unwrap();
        if n == 0 {
            return b.read(&mut right).unwrap() == 0;
        }
        if b.read_exact(&mut right[..n]).is_err() || left[..n] != right[..n] {
            return false;
        }
    }
}

/// `flashpan cp`, and the most memory that it had, in KiB.
fn copy(home: &Home, from: &str, to: &str) -> u64 {
    let program = flashpan_tests::fixtures::flashpan();
    let mut child = Command::new(program)
        .args(["cp", "-q", from, to])
        .env_clear()
        .envs(home.environment())
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // Not reaped yet, its memory at most is still told.
    let flags = nix::sys::wait::WaitPidFlag::WNOWAIT | nix::sys::wait::WaitPidFlag::WEXITED;
    nix::sys::wait::waitid(
        nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(pid)),
        flags,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    u64::try_from(usage.unwrap().max_rss()).unwrap()
}

/// The most memory that a process had, in KiB.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

#[test]
fn a_gibibyte_goes_in_and_comes_out_unchanged_through_little_memory() {
    let home = Home::new();
    let id = ok(&home, &["run", "-d", "-m", "256M", "--disk-size", "2G"]);
    let id = id.trim();
    let dir = tempfile::tempdir_in(".").unwrap();
    let (original, returned) = (dir.path().join("in"), dir.path().join("out"));
    write_noise(&original);
    let in_guest = format!("{id}:/data");
    let into = copy(&home, original.to_str().unwrap(), &in_guest);
    let guests = ok(&home, &["exec", id, "sha256sum", "/data"]);
    assert_eq!(guests.split(' ').next().unwrap(), sum(&original));
    let out = copy(&home, &in_guest, returned.to_str().unwrap());
    assert!(are_equal(&original, &returned));
    // The command and the supervisor hold some messages of the file, and no more.
    println!("flashpan cp: {into} KiB into the VM, {out} KiB out of it");
    assert!(into.max(out) < 64 * 1024, "{into} and {out} KiB");
    let supervisors = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
            (line.split('\0').nth(1) == Some("supervise")).then_some(pid)
        });
    for supervisor in supervisors {
        let peak = peak(supervisor);
        println!("supervisor: {peak} KiB");
        assert!(peak < 64 * 1024, "{peak} KiB");
    }
    ok(&home, &["rm", "-f", id]);
    home.assert_nothing_left();
}
