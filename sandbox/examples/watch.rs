//! Tells what a program of a VM does to the files of a directory.
//!
//! ```text
//! FLASHPAN_KERNEL=vmlinux cargo run -p flashpan --example watch -- root.erofs
//! ```
//!
//! The root image needs `/bin/sh`; `flashpan-vmm` and `flashpan-guest-init` are found as
//! [`flashpan::vmm_program`] says.
#![allow(unreachable_pub)] // The module that all examples have.

mod common;

use std::error::Error;

use flashpan::{ChangeKind, ExecOptions, WatchOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let sandbox = common::builder()?.boot().await?;
    sandbox.mkdir("/work", 0o755, true).await?;
    let mut watch = sandbox.watch("/work", WatchOptions::new()).await?;
    let script = "cd /work && mkdir -p src/deep && echo one > src/deep/file && \
                  mv src/deep/file src/moved && chmod 600 src/moved && cd / && rm -r /work";
    let program = sandbox.exec(ExecOptions::shell(script)).await?;
    // The end of the directory is the end of the changes.
    while let Some(change) = watch.next().await? {
        let path = change.path.display();
        match (change.kind, change.to) {
            (ChangeKind::Overflow, _) => println!("some changes were lost"),
            (kind, Some(to)) => println!("{kind:?} {path} to {}", to.display()),
            (kind, None) => println!("{kind:?} {path}"),
        }
    }
    println!(
        "the program ended with {:?}",
        program.collect(4096).await?.status
    );
    sandbox.kill().await;
    Ok(())
}
