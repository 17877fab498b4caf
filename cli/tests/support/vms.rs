//! VMs that outlive the commands of a test, by the commands that users have.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

use crate::fake::{World, complaint};

/// Longer than anything here takes on the slowest machine.
pub const LONG: Duration = Duration::from_secs(60);

/// A world whose VMs are gone when it is.
pub struct Vms(pub World);

impl Drop for Vms {
    fn drop(&mut self) {
        // Also of a test that failed.
        let _ = self.0.flashpan(&["kill", "--all"]).output();
    }
}

impl Vms {
    pub fn new(scenario: &'static str) -> Self {
        Self(World::new(scenario))
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.0.flashpan(arguments).output().unwrap()
    }

    /// What a command that has to succeed prints.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that has to fail with 125 complains of.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {output:?}");
        complaint(&output)
    }

    /// `flashpan create` or `run -d`, with what a VM here needs.
    pub fn making(&self, verb: &[&str], options: &[&str], command: &[&str]) -> Command {
        let root = self.0.path("root");
        let mut make = self.0.flashpan(verb);
        make.args(["--hostname", "fake", "--rootfs"])
            .arg(root)
            .args(options)
            .arg("--")
            .args(command);
        make
    }

    #[track_caller]
    fn made(&self, mut make: Command) -> String {
        let output = make.output().unwrap();
        assert!(output.status.success(), "{make:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The id of a new VM that runs.
    #[track_caller]
    pub fn run(&self, options: &[&str], command: &[&str]) -> String {
        self.made(self.making(&["run", "-d"], options, command))
    }

    /// The id of a new VM that does not.
    #[track_caller]
    pub fn create(&self, options: &[&str], command: &[&str]) -> String {
        self.made(self.making(&["create"], options, command))
    }

    /// What `ls` says of a VM.
    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        let listed = self.ok(&["ls", "--format", "{{.ID}} {{.Status}}"]);
        let line = listed.lines().find_map(|line| line.strip_prefix(id));
        line.unwrap_or_else(|| panic!("{id} is not in {listed:?}"))
            .trim()
            .to_owned()
    }

    #[track_caller]
    pub fn inspect(&self, id: &str) -> serde_json::Value {
        let text = self.ok(&["inspect", id]);
        let all: serde_json::Value = serde_json::from_str(&text).unwrap();
        all[0].clone()
    }

    pub fn state(&self) -> PathBuf {
        self.0.path("state/flashpan")
    }

    /// The process that supervises a VM: it listens on its socket.
    #[track_caller]
    pub fn supervisor(&self, id: &str) -> Pid {
        let socket = self.state().join("vms").join(id).join("control.sock");
        let stream = UnixStream::connect(socket).unwrap();
        Pid::from_raw(getsockopt(&stream, PeerCredentials).unwrap().pid())
    }

    /// Kills a process that is not ours, and returns when its files are closed.
    pub fn kill(&self, pid: Pid) {
        kill(pid, Signal::SIGKILL).unwrap();
        let deadline = Instant::now() + LONG;
        while kill(pid, None).is_ok() && !is_zombie(pid) {
            assert!(Instant::now() < deadline, "{pid} does not end");
            std::thread::yield_now();
        }
    }

    /// Returns when no VMM has the kernel any more.
    pub fn vmm_is_gone(&self) {
        let kernel = File::open(self.0.path("vmlinux")).unwrap();
        drop(Flock::lock(kernel, FlockArg::LockExclusive).unwrap());
    }

    /// No VM, no file and no process is left.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.ok(&["ls", "-q"]), "");
        let left = self.left();
        assert!(left.is_empty(), "{left:?}");
        self.vmm_is_gone();
    }

    /// Everything in the directories of VMs and names.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for directory in ["vms", "names"] {
            for entry in fs::read_dir(self.state().join(directory))
                .into_iter()
                .flatten()
            {
                left.push(entry.unwrap().file_name().into_string().unwrap());
            }
        }
        left
    }

    /// Returns when nothing is left, without anybody's doing.
    #[track_caller]
    pub fn wait_until_nothing_is_left(&self) {
        let deadline = Instant::now() + LONG;
        while !self.left().is_empty() {
            assert!(Instant::now() < deadline, "{:?}", self.left());
            std::thread::yield_now();
        }
        self.assert_nothing_left();
    }
}

/// Who has ended with all its threads, and was not waited for by its parent.
fn is_zombie(pid: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    if threads > 1 {
        return false;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}
