//! `flashpan kernel` as its user sees it: what one line says when something is
//! wrong, and what is left when it ended. Nothing is compiled.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use tempfile::TempDir;

/// The tarball that is pinned.
const TARBALL: &str = "linux-6.12.64.tar.xz";

/// A cache of its own, and files to point at.
struct World(TempDir);

impl World {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, contents: &str) -> String {
        fs::write(self.path(name), contents).unwrap();
        self.path(name).display().to_string()
    }

    fn kernel(&self, arguments: &[&str]) -> Command {
        let mut kernel = Command::new(env!("CARGO_BIN_EXE_flashpan"));
        kernel
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env_remove("FLASHPAN_KERNEL_MIRROR")
            .arg("kernel")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        kernel
    }

    /// What is in the cache's directory `name`, but for locks and logs.
    fn cached(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path("cache/flashpan").join(name));
        let names = entries.into_iter().flatten().map(|entry| {
            let name = entry.unwrap().file_name();
            name.into_string().unwrap()
        });
        names.filter(|name| !name.starts_with('.')).collect()
    }
}

/// How long a command may take that has nothing to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// The output of a command that has to end soon.
fn wait(child: Child) -> Output {
    let id = Pid::from_raw(child.id().cast_signed());
    let (tell, ended) = mpsc::channel();
    let waiting = thread::spawn(move || {
        let output = child.wait_with_output();
        let _ = tell.send(());
        output
    });
    let in_time = ended.recv_timeout(PATIENCE).is_ok();
    if !in_time {
        // Not reaped yet, or the thread would have told.
        let _ = kill(id, Signal::SIGKILL);
    }
    let output = waiting.join().unwrap().unwrap();
    assert!(in_time, "it did not end: {output:?}");
    output
}

/// The complaint of a command that failed for flashpan's own reasons.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(output.stdout.is_empty());
    assert!(text.contains("flashpan: error: "), "{text}");
    text
}

#[test]
fn wrong_input_is_named_before_anything_is_built() {
    let world = World::new();
    let syntax = world.file("wrong.config", "CONFIG_SMP=y\nSMP=y\n");
    let twice = world.file("twice.config", "CONFIG_SMP=y\nCONFIG_SMP=n\n");
    let text = world.file("linux.txt", "a kernel");
    let cases: [(&[&str], &[&str]); 8] = [
        (
            &["build", "--fragment", "netfliter"],
            &["`netfliter`", "netfilter,"],
        ),
        (
            &["build", "--fragment", "./none.config"],
            &["./none.config", "no file"],
        ),
        (
            &["build", "--fragment", &syntax],
            &["wrong, line 2", "`SMP=y`"],
        ),
        (
            &["build", "--fragment", &twice],
            &["lines 1 and 2", "CONFIG_SMP"],
        ),
        (
            &["build", "--source", "/none/linux"],
            &["/none/linux", "No such file"],
        ),
        (
            &["build", "--source", &text],
            &["linux.txt", "no kernel source"],
        ),
        (&["build", "--jobs", "0"], &["--jobs", "1..=1024"]),
        (&["show", "base"], &["no kernel `base`", "there is none"]),
    ];
    for (arguments, parts) in cases {
        let complaint = complaint(&world.kernel(arguments).output().unwrap());
        for part in parts {
            assert!(complaint.contains(part), "{part}: {complaint}");
        }
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
    }
    assert!(world.cached("kernels").is_empty());
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let world = World::new();
    let fifo = world.path("fifo.tar").display().to_string();
    mkfifo(fifo.as_str(), Mode::S_IRWXU).unwrap();
    for (option, path) in [
        ("--source", fifo.as_str()),
        ("--fragment", &fifo),
        ("--fragment", "/dev/zero"),
    ] {
        let mut build = world.kernel(&["build", "--check", option, path]);
        let complaint = complaint(&wait(build.spawn().unwrap()));
        assert!(
            complaint.contains(path) && complaint.contains("not a regular file"),
            "{complaint}"
        );
    }
}

#[test]
fn a_signal_ends_a_build_that_still_looks_at_its_source() {
    let world = World::new();
    let source = world.path("huge.tar");
    // Too much to read.
    File::create(&source).unwrap().set_len(1 << 40).unwrap();
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let reads = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        reads.add_watch(&source, AddWatchFlags::IN_ACCESS).unwrap();
        let source = source.to_str().unwrap();
        let mut build = world.kernel(&["build", "--check", "--source", source]);
        let build = build.spawn().unwrap();
        let limit = PollTimeout::try_from(PATIENCE).unwrap();
        let mut reading = [PollFd::new(reads.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut reading, limit), Ok(1), "it does not read");
        kill(Pid::from_raw(build.id().cast_signed()), signal).unwrap();
        let output = wait(build);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    assert!(!world.path("cache/flashpan/kernels/.scratch").exists());
}

#[test]
fn without_a_source_and_a_network_one_is_told_what_to_install() {
    let world = World::new();
    let output = world
        .kernel(&["build", "--source", "upstream", "--offline"])
        .output()
        .unwrap();
    let complaint = complaint(&output);
    assert!(
        complaint.contains("apt-get install linux-source-6.12"),
        "{complaint}"
    );
    assert!(!complaint.contains("note:"), "{complaint}");
}

#[test]
fn a_download_is_announced_and_what_is_not_the_kernel_is_refused() {
    let world = World::new();
    world.file(TARBALL, "not Linux");
    let mirror = format!("file://{}", world.0.path().display());
    let output = world
        .kernel(&["build", "--source", "upstream", "--check"])
        .env("FLASHPAN_KERNEL_MIRROR", &mirror)
        .output()
        .unwrap();
    let complaint = complaint(&output);
    for part in [
        &format!("note: downloading {mirror}/{TARBALL}"),
        "--offline",
        "is not what it should be",
    ] {
        assert!(complaint.contains(part), "{part}: {complaint}");
    }
    assert!(world.cached("sources").is_empty());
    assert!(world.cached("kernels").is_empty());
}

#[test]
fn a_password_for_a_mirror_is_not_shown() {
    let world = World::new();
    let output = world
        .kernel(&["build"])
        .env("FLASHPAN_KERNEL_MIRROR", "https://me:secret@mirror.example")
        .output()
        .unwrap();
    let complaint = complaint(&output);
    assert!(
        complaint.contains(".netrc") && !complaint.contains("secret"),
        "{complaint}"
    );
}

#[test]
fn each_kernel_that_cannot_be_removed_is_named() {
    let world = World::new();
    let output = world.kernel(&["rm", "nil", "none"]).output().unwrap();
    let text = complaint(&output);
    assert_eq!(text.matches("flashpan: error: ").count(), 2, "{text}");
    assert!(text.contains("nil") && text.contains("none"), "{text}");
}

#[test]
fn an_interrupted_download_ends_at_once_and_keeps_what_came() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let child = world
        .kernel(&["build", "--source", "upstream"])
        .env(
            "FLASHPAN_KERNEL_MIRROR",
            format!("http://{}", listener.local_addr().unwrap()),
        )
        .spawn()
        .unwrap();
    let (mut client, _) = listener.accept().unwrap();
    client
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nthe beginning")
        .unwrap();
    // It has been asked for, so the build is under way, and would wait for long.
    let mut request = [0; 16];
    client.read_exact(&mut request).unwrap();
    kill(
        Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    // curl is gone: nothing else has this connection.
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert_eq!(world.cached("sources"), [format!("{TARBALL}.part")]);
    assert!(world.cached("kernels").is_empty());
}
