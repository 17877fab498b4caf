//! Tells every program that starts and ends in a VM, whoever starts it.
//!
//! ```text
//! FLASHPAN_KERNEL=vmlinux cargo run -p flashpan --example events -- root.erofs
//! ```
//!
//! The root image needs `/bin/sh`; `flashpan-vmm` and `flashpan-guest-init` are found as
//! [`flashpan::vmm_program`] says.
#![allow(unreachable_pub)] // The module that all examples have.

mod common;

use std::error::Error;

use flashpan::{ExecOptions, VmEventKind};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let sandbox = common::builder()?.boot().await?;
    let mut events = sandbox.events()?;
    let telling = tokio::spawn(async move {
        // The stream ends with the VM.
        while let Some(event) = events.next().await {
            match event.kind {
                VmEventKind::ExecStarted(program) => {
                    println!("{} started {}", event.at, program.command());
                }
                VmEventKind::ExecEnded(ended) => {
                    println!(
                        "{} program {} ended with {:?} after {:?}",
                        event.at, ended.id, ended.status, ended.duration
                    );
                }
                VmEventKind::Lost(count) => println!("at least {count} events are missing"),
                _ => {}
            }
        }
    });
    for script in ["true", "exit 3", "kill -9 $$"] {
        let program = sandbox.exec(ExecOptions::shell(script)).await?;
        program.collect(4096).await?;
    }
    sandbox.kill().await;
    telling.await?;
    Ok(())
}
