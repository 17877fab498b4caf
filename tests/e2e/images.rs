//! Container images in VMs: what the guest sees is what the image has, what
//! runs is what the image says, and nothing goes while it is used.

#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "../../cli/tests/support/registry.rs"]
mod registry;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flashpan_tests::{Finished, Flashpan, Home, fixtures};
use nix::sys::signal::Signal;
use registry::{Registry, skopeo, tool};

/// Lists a tree, on the host and in the guest.
const TREE: &str = include_str!("images/tree.py");

/// What the guest sees that is not of the image: kernel file systems, and the
/// two files that have its name.
const NOT_OF_THE_IMAGE: [&str; 5] = ["dev", "proc", "sys", "etc/hostname", "etc/hosts"];

/// A store of its own.
fn cache(home: &Home) -> PathBuf {
    home.file("cache")
}

fn flashpan(home: &Home, words: &[&str]) -> Finished {
    Flashpan::new(home, words)
        .env("XDG_CACHE_HOME", cache(home))
        .finish()
}

/// Standard output of a command that has to succeed.
#[track_caller]
fn ok(home: &Home, words: &[&str]) -> String {
    let run = flashpan(home, words);
    run.expect_status(0);
    run.text()
}

fn layout(tag: &str) -> String {
    format!("oci:{}:{tag}", fixtures::images().join("layout").display())
}

/// The tree of an image by umoci.
fn unpacked(home: &Home, tag: &str) -> String {
    let bundle = home.file("bundle").display().to_string();
    let image = layout(tag);
    tool(
        "umoci",
        &["unpack", "--image", &image["oci:".len()..], &bundle],
    );
    let output = Command::new("python3")
        .args(["-c", TREE, &format!("{bundle}/rootfs")])
        .args(NOT_OF_THE_IMAGE)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn assert_same_lines(guest: &str, host: &str) {
    let (guest, host): (Vec<&str>, Vec<&str>) = (guest.lines().collect(), host.lines().collect());
    let only = |a: &[&str], b: &[&str]| {
        let lines = a.iter().filter(|line| !b.contains(line)).take(10);
        lines
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n  ")
    };
    let (seen, expected) = (only(&guest, &host), only(&host, &guest));
    assert!(
        seen.is_empty() && expected.is_empty() && guest.len() == host.len(),
        "{} paths in the guest, {} by umoci\nonly in the guest:\n  {seen}\nonly by umoci:\n  {expected}",
        guest.len(),
        host.len()
    );
    assert!(
        guest.len() > 500,
        "{} paths are too few to be Debian",
        guest.len()
    );
}

#[test]
fn the_guest_sees_what_umoci_unpacks() {
    let home = Home::new();
    let directory = home.file("registry");
    fs::create_dir(&directory).unwrap();
    let registry = Registry::start(&directory);
    // Zstandard in the registry, gzip for umoci: the same content.
    let python = registry.image("python");
    let zstd = [
        "--dest-compress-format",
        "zstd",
        "--dest-compress-level",
        "1",
    ];
    skopeo(&zstd, &layout("python"), &format!("docker://{python}"));
    let all = ["--all"];
    let multi = registry.image("multi");
    skopeo(&all, &layout("multi"), &format!("docker://{multi}"));

    let mut words = vec![
        "run",
        "--image",
        &python,
        "--insecure-registry",
        "127.0.0.1",
        // With one there is a resolv.conf that is not the image's.
        "--network",
        "none",
        "--",
    ];
    words.extend(["python3", "-B", "-S", "-c", TREE, "/"]);
    words.extend(NOT_OF_THE_IMAGE);
    let guest = ok(&home, &words);
    // The image for this machine of two.
    let insecure = ["--insecure-registry", "127.0.0.1"];
    let mut words = vec!["run", "--image", &multi];
    words.extend(insecure);
    let run = flashpan(&home, &words);
    run.expect_status(0).expect_stdout("for amd64\n");
    let mut words = vec!["run", "--image", &multi, "--platform", "linux/arm64"];
    words.extend(insecure);
    let run = flashpan(&home, &words);
    run.expect_status(125);
    assert!(run.stderr.contains("linux/arm64"), "{run}");
    drop(registry);
    let unpacked = unpacked(&home, "python");
    assert_same_lines(&guest, &unpacked);
}

/// What a program says that anybody may be, and those that the image favours.
const PRIVILEGES: &str = r#"
for python in /usr/bin/python3 /srv/setuid /srv/capable; do
    $python -B -S -c '
import os, socket
try:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw = "raw"
except PermissionError:
    raw = "refused"
print(os.getresuid(), os.getresgid(), raw)'
done"#;

#[test]
fn python_of_an_image_works_as_in_a_container() {
    let home = Home::new();
    let place = fixtures::images().join("layout").display().to_string();
    ok(&home, &["image", "import", "python", &place]);
    let run = |options: &[&str], script: &str| {
        let mut words = vec!["run", "--image", "python"];
        words.extend(options);
        words.extend(["--", "busybox", "sh", "-ec", script]);
        ok(&home, &words)
    };
    let text = run(
        &["--memory", "512M"],
        "python3 -m venv /opt/venv && /opt/venv/bin/pip --version && /opt/venv/bin/python -c '
import sys
print(sys.prefix != sys.base_prefix)'",
    );
    assert!(text.starts_with("pip 2"), "{text}");
    assert!(text.contains("from /opt/venv/"), "{text}");
    assert!(text.ends_with("\nTrue\n"), "{text}");
    // More than the guest's memory takes.
    let text = run(
        &["--memory", "160M", "--disk-size", "1G"],
        "python3 -S -c '
import hashlib, os
written = hashlib.md5()
with open(\"/var/big\", \"wb\") as file:
    for number in range(200):
        block = bytes([number]) * (1 << 20)
        written.update(block)
        file.write(block)
    os.fsync(file.fileno())
print(os.stat(\"/var/big\").st_size)
read = hashlib.file_digest(open(\"/var/big\", \"rb\"), \"md5\")
print(read.digest() == written.digest())'",
    );
    assert_eq!(text, "209715200\nTrue\n");
    let options = ["--user", "1000:1001", "--allow-new-privileges"];
    let text = run(&options, PRIVILEGES);
    assert_eq!(
        text,
        "(1000, 1000, 1000) (1001, 1001, 1001) refused\n\
         (1000, 0, 0) (1001, 0, 0) raw\n\
         (1000, 1000, 1000) (1001, 1001, 1001) raw\n"
    );
}

fn import(home: &Home, name: &str) {
    let place = fixtures::images().join(format!("{name}.tar"));
    ok(
        home,
        &["image", "import", name, &place.display().to_string()],
    );
}

#[test]
fn what_runs_is_what_the_image_says_and_the_user_wants() {
    let home = Home::new();
    import(&home, "box");
    // Entrypoint `/bin/sh -c`, a script as the command, user app, a directory
    // that the image has not.
    let run = flashpan(&home, &["run", "--image", "box"]);
    run.expect_status(3).expect_stdout(
        "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)\n/made/here\nA=image\nB=image\n/home/app\n",
    );
    let words = [
        "-e",
        "A=user",
        "-u",
        "0:5",
        "-w",
        "/tmp/x",
        "--hostname",
        "boxed",
    ];
    let mut all = vec!["run", "--image", "box"];
    all.extend(words);
    all.extend([
        "--",
        "id -u; id -g; pwd; echo $A $B $HOSTNAME; ls -ld /tmp/x | cut -c1-10",
    ]);
    let run = flashpan(&home, &all);
    run.expect_status(0)
        .expect_stdout("0\n5\n/tmp/x\nuser image boxed\ndrwxr-xr-x\n");
    let words = [
        "run",
        "--image",
        "box",
        "--entrypoint",
        "/bin/echo",
        "--",
        "a",
        "b",
    ];
    flashpan(&home, &words)
        .expect_status(0)
        .expect_stdout("a b\n");
    let run = flashpan(&home, &["run", "--image", "box", "--entrypoint", ""]);
    run.expect_status(125)
        .expect_complaint(&["--entrypoint", "command"]);
}

#[test]
fn an_image_in_use_is_not_removed() {
    let home = Home::new();
    import(&home, "box");
    let words = ["run", "--image", "box", "-u", "0", "--"];
    let script = "trap 'sha256sum /bin/busybox | wc -l; exit 0' USR1; echo up; sleep 1000 & wait";
    let mut running = Flashpan::new(&home, words.iter().chain([&script]))
        .env("XDG_CACHE_HOME", cache(&home))
        .start();
    running.wait_for_stdout("up\n");
    let run = flashpan(&home, &["image", "rm", "box"]);
    run.expect_status(125)
        .expect_complaint(&["running VM", "-f"]);
    ok(&home, &["image", "rm", "-f", "box"]);
    let text = ok(&home, &["image", "gc"]);
    assert!(
        text.starts_with("Removed 0 ") && text.contains("1 more are in use"),
        "{text}"
    );
    running.signal(Signal::SIGUSR1);
    running.finish().expect_status(0).expect_stdout("up\n1\n");
    assert!(ok(&home, &["image", "gc"]).starts_with("Removed 1 "));
    let roots = cache(&home).join("flashpan/images/roots");
    assert_eq!(fs::read_dir(roots).unwrap().count(), 0);
}

/// Bad input of `run --image`: before there is a VM.
#[test]
fn images_that_are_not_there() {
    let home = Home::new();
    let fails = |words: &[&str], complaint: &[&str]| {
        let mut all = vec!["run"];
        all.extend(words);
        flashpan(&home, &all)
            .expect_status(125)
            .expect_complaint(complaint);
    };
    fails(
        &["--image", "no-such", "--pull", "never"],
        &["image not found", "no-such"],
    );
    fails(&["--image", "UPPER", "--", "x"], &["UPPER", "lower case"]);
    fails(
        &["--image", "a", "--rootfs", "/", "--", "x"],
        &["--image", "--rootfs"],
    );
    fails(&["--entrypoint", "x"], &["--image"]);
    assert!(Path::new(&cache(&home)).exists());
}
