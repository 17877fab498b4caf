//! Copies a directory into a VM, has a program work on it, and takes the result out.
//!
//! ```text
//! FLASHPAN_KERNEL=vmlinux cargo run -p flashpan --example files -- root.erofs DIRECTORY
//! ```
//!
//! The root image needs `/bin/sh`, `find` and `tr`; `flashpan-vmm` and `flashpan-guest-init` are found as
//! [`flashpan::vmm_program`] says.
#![allow(unreachable_pub)] // The module that all examples have.

mod common;

use std::error::Error;
use std::time::Duration;

use flashpan::{CopyOptions, ExecOptions, ReadOptions, WriteOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let builder = common::builder()?;
    let Some(directory) = std::env::args_os().nth(2) else {
        return Err("there is no directory; give one as the second argument".into());
    };
    let sandbox = builder.boot().await?;

    // It is there as a whole, with the directory above it, or not at all.
    let private = WriteOptions::new().mode(0o600);
    let content = "hello from the host\n";
    sandbox.write_file("/work/input", content, private).await?;
    let copied = sandbox
        .copy_in(&directory, "/work/tree", CopyOptions::new())
        .await?;
    println!(
        "{} files and directories went in, {} bytes",
        copied.entries, copied.bytes
    );

    let script = "cd /work && tr a-z A-Z < input > output && find tree -type f > list";
    let program = sandbox.exec(ExecOptions::shell(script)).await?;
    let ended = program.collect(4096).await?;
    println!("the program ended with {:?}", ended.status);

    for file in sandbox.list_files("/work").await? {
        println!("{:>8} {}", file.size, file.name);
    }
    // A result of any length: what is not read yet stays in the guest.
    let all = ReadOptions::new();
    let mut output = sandbox.open_file("/work/output", all).await?;
    while let Some(chunk) = output.next_chunk().await? {
        print!("{}", String::from_utf8_lossy(&chunk));
    }
    let out = std::env::temp_dir().join(format!("flashpan-example-{}", std::process::id()));
    sandbox.copy_out("/work", &out, CopyOptions::new()).await?;
    println!("a copy of all of it is in {}", out.display());
    sandbox.shutdown(Duration::from_secs(2)).await;
    Ok(())
}
