//! Runs a program in a VM and shows what it says.
//!
//! ```text
//! FLASHPAN_KERNEL=vmlinux cargo run -p flashpan --example hello -- root.erofs
//! ```
//!
//! The root image needs `uname`; `flashpan-vmm` and `flashpan-guest-init` are found as
//! [`flashpan::vmm_program`] says.
#![allow(unreachable_pub)] // The module that all examples have.

mod common;

use std::error::Error;
use std::time::Duration;

use flashpan::ExecOptions;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let sandbox = common::builder()?.boot().await?;
    let program = sandbox.exec(ExecOptions::argv(["uname", "-a"])).await?;
    let ended = program.collect(64 * 1024).await?;
    print!("{}", String::from_utf8_lossy(&ended.stdout));
    println!("it ended with {:?}", ended.status);
    sandbox.shutdown(Duration::from_secs(2)).await;
    Ok(())
}
