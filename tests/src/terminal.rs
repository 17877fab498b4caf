//! `flashpan` at a terminal, played by the test.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::openpty;

use crate::{Home, fixtures};

/// How long to wait for a text to appear.
const PATIENCE: Duration = Duration::from_secs(90);

/// A program at a terminal of its own.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    /// The program's end, which knows the size.
    line: File,
    screen: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    /// Starts `flashpan` with these arguments at a terminal of 24 by 80.
    ///
    /// # Panics
    /// If that is not possible.
    pub fn start<S: AsRef<OsStr>>(home: &Home, arguments: impl IntoIterator<Item = S>) -> Self {
        let pair = openpty(None, None).expect("no pseudo-terminal");
        let keyboard = File::from(pair.master);
        // Duplicates are close-on-exec, which openpty's descriptors are not.
        let (keyboard, line) = (
            keyboard.try_clone().expect("a duplicate"),
            File::from(pair.slave).try_clone().expect("a duplicate"),
        );
        resize(&line, 24, 80);
        let end = || Stdio::from(line.try_clone().expect("a duplicate"));
        // setsid makes the terminal the controlling one.
        let child = Command::new("setsid")
            .args(["--ctty", "--"])
            .arg(fixtures::flashpan())
            .args(arguments)
            .envs(home.environment())
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("cannot start flashpan at a terminal");
        let (sender, screen) = mpsc::channel();
        let mut output = keyboard.try_clone().expect("a duplicate");
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                if sender.send(bytes).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            keyboard,
            line,
            screen,
            seen: String::new(),
        }
    }

    /// Types this.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typing");
    }

    /// Gives the terminal another size.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        resize(&self.line, rows, columns);
    }

    /// Waits until this text appears after what was waited for before.
    ///
    /// # Panics
    /// If it does not; everything seen since is in the message.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some((_, rest)) = self.seen.split_once(text) {
                self.seen = rest.to_owned();
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("waited for {text:?} and saw {:?}", self.seen),
            }
        }
    }

    /// Waits for its end; its exit status.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn finish(mut self) -> Option<i32> {
        drop(self.line);
        self.child.wait().expect("waiting for flashpan").code()
    }
}

/// `stty` makes the system call, and with it the SIGWINCH, without unsafe code.
fn resize(line: &File, rows: u16, columns: u16) {
    let status = Command::new("stty")
        .args(["rows", &rows.to_string(), "cols", &columns.to_string()])
        .stdin(line.try_clone().expect("a duplicate"))
        .status();
    assert!(status.expect("no stty").success(), "stty failed");
}
