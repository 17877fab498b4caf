//! A shell in a VM on this terminal.
//!
//! ```text
//! FLASHPAN_KERNEL=vmlinux cargo run -p flashpan --example pty -- root.erofs
//! ```
//!
//! The root image needs `/bin/sh`; `flashpan-vmm` and `flashpan-guest-init` are found as
//! [`flashpan::vmm_program`] says.
#![allow(unreachable_pub)] // The module that all examples have.

mod common;

use std::error::Error;
use std::io::{Read, Write};

use flashpan::{ExecOptions, TerminalSize};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let sandbox = common::builder()?.boot().await?;
    let shell = ExecOptions::argv(["/bin/sh"])
        .stdin(true)
        .env("TERM", "xterm");
    let mut shell = sandbox.exec(shell.terminal(size())).await?;
    let (Some(mut stdin), Some(mut output)) = (shell.stdin.take(), shell.stdout.take()) else {
        return Err("a stream is missing".into());
    };
    let mut resized = signal(SignalKind::window_change())?;
    let mut keys = keys();
    let raw = Raw::enter()?;
    loop {
        tokio::select! {
            Some(bytes) = keys.recv() => stdin.write_all(&bytes).await?,
            Some(()) = resized.recv() => shell.resize(size())?,
            chunk = output.next_chunk() => match chunk {
                Some(chunk) => {
                    std::io::stdout().write_all(&chunk)?;
                    std::io::stdout().flush()?;
                }
                None => break,
            },
        }
    }
    let status = shell.wait().await?;
    drop(raw);
    println!("the shell ended with {status:?}");
    sandbox.kill().await;
    // The thread that waits for keys would hold an ordinary end up.
    std::process::exit(status.shell_code().into())
}

/// What is typed, from a thread that may block.
fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (sender, keys) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = std::io::stdin().read(&mut buffer) {
            let bytes = buffer.get(..n).unwrap_or_default().to_vec();
            if sender.blocking_send(bytes).is_err() {
                return;
            }
        }
    });
    keys
}

fn size() -> TerminalSize {
    // As stty(1) tells it, to keep the example free of `unsafe`.
    let told = std::process::Command::new("stty")
        .arg("size")
        .stdin(std::process::Stdio::inherit())
        .output();
    let told = told.map(|told| String::from_utf8_lossy(&told.stdout).into_owned());
    let told = told.unwrap_or_default();
    let mut numbers = told.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(rows)), Some(Ok(columns))) => TerminalSize { rows, columns },
        _ => TerminalSize {
            rows: 24,
            columns: 80,
        },
    }
}

/// Passes every key on as it is, until it is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> nix::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
