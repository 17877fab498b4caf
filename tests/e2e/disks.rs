//! Where a guest's writes go: memory, a disk that goes with the VM, disks that
//! stay.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use flashpan_tests::{Finished, Flashpan, Home};

/// A volume that is removed with the test.
struct Volume<'a> {
    home: &'a Home,
    name: &'static str,
}

impl<'a> Volume<'a> {
    fn new(home: &'a Home, name: &'static str) -> Self {
        let made = Flashpan::new(home, ["volume", "create", name, "--size", "256"]).finish();
        made.expect_status(0)
            .expect_stdout(&format!("Created volume {name} (256 MB)\n"));
        Self { home, name }
    }

    fn path(&self) -> PathBuf {
        let state = &self.home.environment()[0].1;
        state.join(format!("flashpan/volumes/{}.ext4", self.name))
    }

    /// Bytes that it takes on the host.
    fn used(&self) -> u64 {
        self.path().metadata().unwrap().blocks() * 512
    }

    fn remove(self) {
        let removed = Flashpan::new(self.home, ["volume", "rm", self.name]).finish();
        removed.expect_status(0);
    }
}

fn run(home: &Home, options: &[&str], script: &str) -> Finished {
    Flashpan::run(home, options, ["sh", "-c", script]).finish()
}

#[test]
fn a_disk_takes_more_than_memory_could() {
    let home = Home::new();
    let script = "dd if=/dev/zero of=/big bs=1M count=300 2>/dev/null && sync && ls -l /big | awk '{ print $5 }'
                  df -T / | tail -n 1 | awk '{ print $2 }'";
    let run = run(&home, &["--memory", "128M", "--disk-size", "1G"], script);
    run.expect_status(0).expect_stdout("314572800\noverlay\n");
}

#[test]
fn a_read_only_root_refuses_writes() {
    let home = Home::new();
    let script = "touch /new; echo $?; touch /tmp/new /run/new 2>/dev/null; mount | grep ' / '";
    let run = run(&home, &["--read-only"], script);
    run.expect_status(0);
    assert!(run.text().starts_with("1\n"), "{run}");
    assert!(run.text().contains("ro,"), "{run}");
    assert!(run.stderr.contains("Read-only file system"), "{run}");
}

#[test]
fn what_is_written_to_a_volume_is_there_for_the_next_vm() {
    let home = Home::new();
    let volume = Volume::new(&home, "kept");
    let write = run(
        &home,
        &["--disk", "@kept:/data/deep"],
        // What the command leaves running is ended before the disk is left.
        "echo one > /data/deep/file; setsid sh -c 'while :; do date >> /data/deep/log; done' & sleep 1",
    );
    write.expect_status(0);
    let fsck = Command::new("/usr/sbin/e2fsck")
        .arg("-fn")
        .arg(volume.path())
        .output()
        .unwrap();
    assert!(fsck.status.success(), "{fsck:?}");
    let read = run(
        &home,
        &["--disk", "@kept:/data:ro"],
        "cat /data/file; touch /data/x 2>/dev/null; echo $?",
    );
    read.expect_status(0).expect_stdout("one\n1\n");
    volume.remove();
}

#[test]
fn one_vm_writes_to_a_volume_at_a_time() {
    let home = Home::new();
    let volume = Volume::new(&home, "busy");
    let mut first = Flashpan::run(
        &home,
        ["-i", "--disk", "@busy:/data"],
        ["sh", "-c", "echo up; cat"],
    )
    .hold_input()
    .start();
    first.wait_for_stdout("up\n");
    for options in [["--disk", "@busy:/data"], ["--disk", "@busy:/data:ro"]] {
        let second = run(&home, &options, "true");
        second
            .expect_status(125)
            .expect_complaint(&["busy", "in use"]);
    }
    let removed = Flashpan::new(&home, ["volume", "rm", "busy"]).finish();
    removed
        .expect_status(125)
        .expect_complaint(&["busy", "in use"]);
    first.close_input();
    first.finish().expect_status(0);
    volume.remove();
}

#[test]
fn what_a_guest_deletes_is_given_back() {
    let home = Home::new();
    let volume = Volume::new(&home, "trim");
    let empty = volume.used();
    let fill = "dd if=/dev/urandom of=/data/big bs=1M count=100 2>/dev/null";
    run(&home, &["--disk", "@trim:/data"], fill).expect_status(0);
    assert!(volume.used() > empty + (90 << 20), "{}", volume.used());
    run(&home, &["--disk", "@trim:/data"], "rm /data/big; sync").expect_status(0);
    assert!(volume.used() < empty + (10 << 20), "{}", volume.used());
    volume.remove();
}

#[test]
fn a_limited_disk_takes_its_time_and_loses_nothing() {
    let home = Home::new();
    let volume = Volume::new(&home, "slow");
    // 16 MiB, of which the burst is 4 and one request of Linux at most 4, at 4 a
    // second: 2 seconds if all goes as fast as it may, and more otherwise.
    let script = "dd if=/dev/zero bs=1M count=16 2>/dev/null | tr '\\0' x > /tmp/x
                  read from rest < /proc/uptime
                  dd if=/tmp/x of=/data/x bs=1M conv=fsync 2>/dev/null || exit 1
                  read to rest < /proc/uptime
                  cmp /tmp/x /data/x && echo $from $to";
    let options = ["--disk", "@slow:/data", "--disk-bps", "4M/s"];
    let run = run(&home, &options, script);
    run.expect_status(0);
    let times: Vec<f64> = (run.text().split_whitespace())
        .map(|word| word.parse().unwrap())
        .collect();
    assert!(times[1] - times[0] >= 1.5, "{times:?}");
    volume.remove();
}

#[test]
fn a_limit_that_nothing_could_work_with_is_refused() {
    let home = Home::new();
    for (options, words) in [
        (
            ["--disk-bps", "1K"],
            ["--disk-bps", "1024 is not from 4096"],
        ),
        (["--disk-iops", "0"], ["--disk-iops", "0 is not from 1"]),
    ] {
        let refused = run(&home, &options, "true");
        refused.expect_status(125).expect_complaint(&words);
    }
}

#[test]
fn a_host_without_room_is_told_and_ends_nothing() {
    let home = Home::new();
    let place = home.file("small");
    std::fs::create_dir(&place).unwrap();
    // A file system of 48 MiB that only this run sees, with a disk of 1 GiB in it.
    let script = format!(
        "set -e; mount -t tmpfs -o size=48m none {0}; PATH=$PATH:/sbin:/usr/sbin
         truncate -s 1G {0}/disk; mkfs.ext4 -q {0}/disk
         exec {1} run --disk {0}/disk:/data -- sh -c \
           'dd if=/dev/zero of=/data/x bs=1M count=100 conv=fsync 2>&1 | grep -o \"I/O error\"; echo still here'",
        place.display(),
        flashpan_tests::fixtures::flashpan().display(),
    );
    let unshare = ["--user", "--map-root-user", "--mount", "sh", "-c", &script];
    let run = Flashpan::program(&home, "unshare", unshare).finish();
    assert!(run.text().contains("still here"), "{run}");
    assert!(run.stderr.contains("the host's disk is full"), "{run}");
    assert!(run.stderr.contains("/data"), "{run}");
}

#[test]
fn what_cannot_be_a_disk_is_refused_before_anything_starts() {
    let home = Home::new();
    let garbage = home.file("garbage");
    std::fs::write(&garbage, vec![1; 1 << 20]).unwrap();
    let garbage = garbage.display().to_string();
    for (spec, words) in [
        (
            format!("{garbage}:/data"),
            vec![garbage.as_str(), "not a file system image"],
        ),
        (
            "/no/such:/data".to_owned(),
            vec!["/no/such", "No such file"],
        ),
        (
            "@none:/data".to_owned(),
            vec!["named volume not found: none"],
        ),
        ("@none:data".to_owned(), vec!["absolute path"]),
        ("/tmp:/data".to_owned(), vec!["/tmp"]),
    ] {
        let refused = run(&home, &["--disk", &spec], "true");
        refused.expect_status(125).expect_complaint(&words);
    }
    let refused = run(&home, &["--read-only", "--disk-size", "1G"], "true");
    refused.expect_status(125);
    // The root has no such directory and cannot get one.
    let volume = Volume::new(&home, "here");
    let refused = run(
        &home,
        &["--read-only", "--disk", "@here:/no/such/place"],
        "true",
    );
    refused
        .expect_status(125)
        .expect_complaint(&["/no/such/place"]);
    volume.remove();
}
