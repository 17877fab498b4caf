//! The value of a secret, read from where it comes from. No copy of it stays in memory that
//! nobody has any more.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use zeroize::Zeroizing;

use crate::api::SecretValue;
use crate::launch::SecretSource;

/// The longest value, in bytes, and room for a line break and whatever else may be too much.
const MAX_VALUE: usize = 64 * 1024;
const ROOM: usize = MAX_VALUE + 3;

/// How long a command may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(30);

impl SecretSource {
    /// The value, as it is there now. It takes as long as the file takes; a command has 30
    /// seconds, and is ended then.
    ///
    /// # Errors
    /// It cannot be read, is empty, is longer than 64 KiB or is not UTF-8.
    pub fn read(&self) -> io::Result<SecretValue> {
        match self {
            Self::Env(variable) => match std::env::var(variable) {
                Ok(value) if !value.is_empty() => Ok(SecretValue::new(value)),
                Ok(_) | Err(std::env::VarError::NotPresent) => Err(io::Error::other(format!(
                    "environment variable ${variable} is not set"
                ))),
                Err(std::env::VarError::NotUnicode(value)) => {
                    drop(Zeroizing::new(value.into_vec()));
                    Err(io::Error::other(format!(
                        "environment variable ${variable} does not hold UTF-8"
                    )))
                }
            },
            Self::File(path) => Self::read_from(File::open(path)?),
            Self::Command(command) => of_command(command, COMMAND_WITHIN),
        }
    }

    /// All that can be read, without the line break at its end.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn read_from(mut from: impl Read) -> io::Result<SecretValue> {
        // One that grows leaves what it had where it was.
        let mut room = Zeroizing::new(vec![0; ROOM]);
        let mut len = 0;
        while let Some(rest) = room.get_mut(len..).filter(|rest| !rest.is_empty()) {
            match from.read(rest) {
                Ok(0) => break,
                Ok(more) => len = len.saturating_add(more),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let text = room.get(..len).unwrap_or_default();
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        match text.len() {
            0 => return Err(io::Error::other("there is nothing")),
            1..=MAX_VALUE => {}
            _ => return Err(io::Error::other("it is longer than 64 KiB")),
        }
        let text = std::str::from_utf8(text);
        let text = text.map_err(|_| io::Error::other("it is not UTF-8"))?;
        Ok(SecretValue::new(text.to_owned()))
    }
}

/// What a command prints, if it has ended by then. Otherwise it is ended: without a terminal
/// with all that it has started. At a terminal it stays in our process group, since it may
/// want to ask something there.
fn of_command(command: &str, within: Duration) -> io::Result<SecretValue> {
    let since = Instant::now();
    let mut command = {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]);
        shell
    };
    let is_alone = File::open("/dev/tty").is_err();
    if is_alone {
        command.process_group(0);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take();
    let value = output.map_or_else(
        || Err(io::ErrorKind::BrokenPipe.into()),
        |from| {
            SecretSource::read_from(Within {
                from,
                since,
                within,
            })
        },
    );
    let is_late = matches!(&value, Err(error) if error.kind() == io::ErrorKind::TimedOut);
    let ended = match is_late {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => ended(&child, since, within),
    };
    if let Err(error) = ended {
        let group = Pid::from_child(&child);
        if !is_alone || kill_process_group(group, Signal::KILL).is_err() {
            // It may have ended meanwhile.
            drop(child.kill());
        }
        child.wait()?;
        return Err(match error.kind() {
            io::ErrorKind::TimedOut => {
                let why = format!("it took longer than {within:?} and was ended");
                io::Error::new(io::ErrorKind::TimedOut, why)
            }
            _ => error,
        });
    }
    let status = child.wait()?;
    match status.success() {
        true => value,
        false => Err(io::Error::other(format!("it ended with {status}"))),
    }
}

/// Waits until a program has ended.
fn ended(child: &Child, since: Instant, within: Duration) -> io::Result<()> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        match readable(&process, since, within) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Waits until there is something to be read, or the end of it.
fn readable(from: &impl AsFd, since: Instant, within: Duration) -> io::Result<()> {
    let rest = within.saturating_sub(since.elapsed());
    let rest = Timespec::try_from(rest).map_err(|_| io::ErrorKind::InvalidInput)?;
    match poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&rest))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// What can be read until some time.
struct Within<R> {
    from: R,
    since: Instant,
    within: Duration,
}

impl<R: Read + AsFd> Read for Within<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        readable(&self.from, self.since, self.within)?;
        self.from.read(into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_a_time() {
        let value = of_command("sleep 0.01; printf v", Duration::from_secs(60)).unwrap();
        assert_eq!(value.expose(), "v");
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        for command in [
            // Its output stays open, or not.
            format!("echo $$ > {}; sleep 100; printf v", pid.display()),
            format!("echo $$ > {}; exec >&-; sleep 100", pid.display()),
            format!("echo $$ > {}; yes | exec sleep 100", pid.display()),
        ] {
            let since = Instant::now();
            let error = of_command(&command, Duration::from_millis(300)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!(error.to_string(), "it took longer than 300ms and was ended");
            assert!(since.elapsed() < Duration::from_secs(50), "{command}");
            let pid = std::fs::read_to_string(&pid).unwrap();
            let is_there = std::path::Path::new("/proc").join(pid.trim()).exists();
            assert!(!is_there, "{command}: it runs on");
        }
    }
}
