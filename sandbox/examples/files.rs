//! Gives a program in a VM a file to work on and takes the result out again.
//!
//! ```text
//! cargo run --example files -- vmlinux root.erofs
//! ```
//!
//! The root image needs `/bin/sh` and `tr`; `flashpan-vmm` and
//! `flashpan-guest-init` are found as [`flashpan::vmm_program`] says.

use std::error::Error;
use std::time::Duration;

use flashpan::{ExecOptions, FsType, ReadOptions, Root, Sandbox, WriteOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(kernel), Some(root)) = (arguments.next(), arguments.next()) else {
        return Err("give a kernel and an EROFS root image".into());
    };
    let root = Root::new(root, FsType::Erofs);
    let sandbox = Sandbox::builder(kernel, root).boot().await?;

    // It is there as a whole, with the directory above it, or not at all.
    let private = WriteOptions::new().mode(0o600);
    let content = "hello from the host\n";
    sandbox.write_file("/work/input", content, private).await?;

    let script = "tr a-z A-Z < /work/input > /work/output";
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
    sandbox.remove("/work", true).await?;
    sandbox.shutdown(Duration::from_secs(2)).await;
    Ok(())
}
