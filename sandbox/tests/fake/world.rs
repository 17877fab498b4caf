//! What tests against the fake VMM need.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flashpan::{Error, FsType, Root, Sandbox, SandboxBuilder};
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;
use tokio::time::timeout;

/// Longer than anything here takes on the slowest machine.
pub const LONG: Duration = Duration::from_secs(60);

/// The fake VMM, which Cargo builds as an example beside the tests.
fn fake_vmm() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.ancestors().nth(2).unwrap();
    let program = built.join("examples/fake-vmm");
    let missing = "not built; `cargo build --example fake-vmm` does it";
    assert!(program.exists(), "{} is {missing}", program.display());
    program
}

/// A directory with everything that a VM of `scenario` needs.
pub struct World {
    dir: TempDir,
    scenario: &'static str,
}

impl World {
    pub fn new(scenario: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        symlink(fake_vmm(), dir.path().join("fake-vmm")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/vmm.sh");
        symlink(script, dir.path().join(scenario)).unwrap();
        for (file, contents) in [
            ("vmlinux", "\x7fELF"),
            ("root.erofs", "root"),
            ("init", "init"),
        ] {
            std::fs::write(dir.path().join(file), contents).unwrap();
        }
        Self { dir, scenario }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn builder(&self) -> SandboxBuilder {
        let root = Root::new(self.path("root.erofs"), FsType::Erofs);
        Sandbox::builder(self.path("vmlinux"), root)
            .vmm(self.path(self.scenario))
            .guest_init(self.path("init"))
            .hostname("fake")
    }

    pub async fn boot(&self) -> Sandbox {
        self.builder().boot().await.unwrap()
    }

    pub async fn boot_error(&self) -> Error {
        self.builder().boot().await.unwrap_err()
    }

    /// Returns when no process has the kernel open and locked any more.
    pub async fn vmm_is_gone(&self) {
        let kernel = File::open(self.path("vmlinux")).unwrap();
        let locked = tokio::task::spawn_blocking(move || {
            drop(Flock::lock(kernel, FlockArg::LockExclusive).unwrap());
        });
        timeout(LONG, locked)
            .await
            .expect("the VMM lives on")
            .unwrap();
    }
}
