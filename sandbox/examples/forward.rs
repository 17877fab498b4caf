//! Makes a web server in a VM reachable from this machine.
//!
//! ```text
//! FLASHPAN_KERNEL=vmlinux cargo run -p flashpan --example forward -- root.erofs
//! ```
//!
//! The root image needs `python3`; `flashpan-vmm` and `flashpan-guest-init` are found as
//! [`flashpan::vmm_program`] says.
#![allow(unreachable_pub)] // The module that all examples have.

mod common;

use std::error::Error;

use flashpan::api::PortForward;
use flashpan::{ExecOptions, Forward, ForwardOptions};
use tokio::io::AsyncReadExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let sandbox = common::builder()?.boot().await?;
    let server = [
        "python3",
        "-u",
        "-m",
        "http.server",
        "8000",
        "--directory",
        "/etc",
    ];
    let mut server = sandbox.exec(ExecOptions::argv(server)).await?;
    // Any free port of this machine, which only this machine can reach.
    let ports = PortForward {
        local_port: 0,
        remote_port: 8000,
    };
    let forwards = [Forward::tcp(ports)];
    let forwarding = sandbox
        .port_forward(&forwards, ForwardOptions::new())
        .await?;
    for binding in forwarding.bindings() {
        println!(
            "http://{}/ leads to the guest; Enter ends it",
            binding.address
        );
    }
    let enter = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    let mut enter = std::pin::pin!(enter);
    let (mut log, mut chunk) = (server.stderr.take(), [0; 4096]);
    while let Some(stderr) = &mut log {
        tokio::select! {
            _ = &mut enter => break,
            read = stderr.read(&mut chunk) => match read? {
                0 => log = None,
                n => print!("{}", String::from_utf8_lossy(chunk.get(..n).unwrap_or_default())),
            },
        }
    }
    for error in forwarding.take_errors() {
        println!("{error}");
    }
    println!("{:?}", forwarding.counts());
    sandbox.kill().await;
    Ok(())
}
