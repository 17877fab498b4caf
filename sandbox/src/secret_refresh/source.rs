//! The value of a secret, read from where it comes from. No copy of it stays in memory that
//! nobody has any more.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

use crate::api::SecretValue;
use crate::launch::SecretSource;

/// The longest value, in bytes, and room for a line break and whatever else may be too much.
const MAX_VALUE: usize = 64 * 1024;
const ROOM: usize = MAX_VALUE + 3;

impl SecretSource {
    /// The value, as it is there now. It takes as long as the file or command takes.
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
            Self::Command(command) => of_command(command),
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

fn of_command(command: &str) -> io::Result<SecretValue> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take();
    let value = output.map_or_else(
        || Err(io::ErrorKind::BrokenPipe.into()),
        SecretSource::read_from,
    );
    let status = child.wait()?;
    match status.success() {
        true => value,
        false => Err(io::Error::other(format!("it ended with {status}"))),
    }
}
