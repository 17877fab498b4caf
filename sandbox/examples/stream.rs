//! Feeds a program of a VM and takes its output while it runs.
//!
//! ```text
//! FLASHPAN_KERNEL=vmlinux cargo run -p flashpan --example stream -- root.erofs
//! ```
//!
//! The root image needs `/bin/sh`, `sort` and `uniq`; `flashpan-vmm` and `flashpan-guest-init` are found as
//! [`flashpan::vmm_program`] says.
#![allow(unreachable_pub)] // The module that all examples have.

mod common;

use std::error::Error;
use std::io::Write;

use flashpan::ExecOptions;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let sandbox = common::builder()?.boot().await?;
    let script = "echo counting >&2; sort | uniq -c";
    let mut program = sandbox.exec(ExecOptions::shell(script).stdin(true)).await?;
    let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) = (
        program.stdin.take(),
        program.stdout.take(),
        program.stderr.take(),
    ) else {
        return Err("a stream is missing".into());
    };
    // All at once: a program that cannot write does not read either.
    let feed = async {
        for number in 0..100_000_u32 {
            let line = format!("{}\n", number % 7);
            stdin.write_all(line.as_bytes()).await?;
        }
        drop(stdin);
        Ok::<_, std::io::Error>(())
    };
    let show = async {
        while let Some(chunk) = stdout.next_chunk().await {
            std::io::stdout().write_all(&chunk)?;
        }
        Ok::<_, std::io::Error>(())
    };
    let warn = async {
        while let Some(chunk) = stderr.next_chunk().await {
            std::io::stderr().write_all(&chunk)?;
        }
        Ok::<_, std::io::Error>(())
    };
    tokio::try_join!(feed, show, warn)?;
    println!("it ended with {:?}", program.wait().await?);
    sandbox.kill().await;
    Ok(())
}
