//! Boots several VMs at once and runs a program in each.
//!
//! ```text
//! FLASHPAN_KERNEL=vmlinux cargo run -p flashpan --example many_vms -- root.erofs [NUMBER]
//! ```
//!
//! The root image needs `/bin/sh`; `flashpan-vmm` and `flashpan-guest-init` are found as
//! [`flashpan::vmm_program`] says.
#![allow(unreachable_pub)] // The module that all examples have.

mod common;

use std::error::Error;
use std::time::Instant;

use flashpan::{ExecOptions, SandboxBuilder};
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let number: u32 = match std::env::args().nth(2) {
        Some(number) => number.parse()?,
        None => 4,
    };
    let started = Instant::now();
    let mut all = JoinSet::new();
    for index in 0..number {
        let builder = common::builder()?
            .hostname(format!("vm-{index}"))
            .memory_mib(128);
        all.spawn(async move { run(builder).await.map_err(|error| error.to_string()) });
    }
    while let Some(said) = all.join_next().await {
        println!(
            "{:>7.3} s  {}",
            started.elapsed().as_secs_f64(),
            said??.trim_end()
        );
    }
    Ok(())
}

/// A whole life of a VM; what its program said.
async fn run(builder: SandboxBuilder) -> Result<String, flashpan::Error> {
    let sandbox = builder.boot().await?;
    let script = "echo \"I am $(cat /proc/sys/kernel/hostname)\"";
    let program = sandbox.exec(ExecOptions::shell(script)).await?;
    let ended = program.collect(4096).await?;
    sandbox.kill().await;
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}
