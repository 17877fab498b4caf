//! Runs against the fake VMM of the library's tests. No KVM is needed.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The fake VMM, which Cargo builds as an example beside the tests.
pub fn fake_vmm() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap();
    let program = built.join("examples/cli-fake-vmm");
    let missing = "not built; `cargo build --example cli-fake-vmm` does it";
    assert!(program.exists(), "{} is {missing}", program.display());
    program
}

/// A place with everything that a run needs.
pub struct World {
    pub dir: TempDir,
    pub scenario: &'static str,
}

impl World {
    pub fn new(scenario: &'static str) -> Self {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `flashpan` with these arguments, in this place.
    pub fn flashpan(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flashpan"));
        command
            .env("FLASHPAN_VMM", self.path(self.scenario))
            .env("FLASHPAN_GUEST_INIT", self.path("init"))
            .env("FLASHPAN_KERNEL", self.path("vmlinux"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("XDG_STATE_HOME", self.path("state"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `flashpan run OPTIONS -- COMMAND`.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Command {
        self.run_from(&self.path("root"), options, command)
    }

    /// The same with another root file system than a directory.
    pub fn run_from(&self, root: &Path, options: &[&str], command: &[&str]) -> Command {
        let mut run = self.flashpan(&["run", "--hostname", "fake", "--rootfs"]);
        run.arg(root).args(options).arg("--").args(command);
        run
    }

    pub fn output(&self, options: &[&str], command: &[&str]) -> Output {
        self.run(options, command).output().unwrap()
    }

    /// Returns when the VMM has got as far as it will.
    pub fn wait_for_vmm(&self) {
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
    pub fn assert_nothing_left(&self) {
        let kernel = File::open(self.path("vmlinux")).unwrap();
        let lock = Flock::lock(kernel, FlockArg::LockExclusiveNonblock);
        assert!(lock.is_ok(), "the VMM lives on");
    }
}

pub fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

pub fn complaint(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    let errors: Vec<_> = stderr
        .lines()
        .filter(|line| line.contains("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    errors[0].to_owned()
}

/// Where the command of the run is when it says so.
pub fn wait_until_ready(child: &mut Child) {
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut [0; 5]).unwrap();
}
