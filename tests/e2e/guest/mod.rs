//! A guest with Debian in it, by the library.

use std::path::PathBuf;
use std::time::Duration;

use flashpan::{ExecOptions, ExitStatus, FsType, Privilege, Root, Sandbox, SandboxBuilder};
use flashpan_tests::fixtures;

/// How long anything may take, even emulated.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A program of ours, beside the one that is tested.
fn program(name: &str) -> PathBuf {
    fixtures::flashpan().with_file_name(name)
}

pub fn builder() -> SandboxBuilder {
    let root = Root::new(fixtures::debian(), FsType::Erofs);
    Sandbox::builder(fixtures::kernel(), root)
        .vmm(program("flashpan-vmm"))
        .guest_init(program("flashpan-guest-init"))
        .boot_timeout(PATIENCE)
}

/// What a script in the guest prints, which may do what it likes there; it has to
/// succeed.
pub async fn script(sandbox: &Sandbox, script: &str) -> String {
    let program = sandbox
        .exec(ExecOptions::shell(script).privilege(Privilege::privileged()))
        .await
        .unwrap();
    let ended = program.collect(1 << 20).await.unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status, ExitStatus::Code(0), "{script}: {errors}");
    String::from_utf8(ended.stdout).unwrap()
}
