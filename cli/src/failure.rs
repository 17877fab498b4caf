//! How a command fails: a line for the user, and an exit code.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;

pub(crate) use flashpan::text::plain;
use flashpan::{Error, StartFailureKind};

use crate::stdio::Patient;

/// Exit code for failures of flashpan's own, as docker has it.
const OWN: u8 = 125;

/// Exit code when the time is up, as `timeout(1)` has it.
const TIMED_OUT: u8 = 124;

/// Exit code of something that a signal ended: this plus the signal.
const SIGNALLED: u8 = 128;

/// A command's failure.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    /// What to tell the user; nothing if they know already.
    message: Option<String>,
    /// Whether the user wants the end now, whatever is lost.
    at_once: bool,
}

impl Failure {
    /// A failure of flashpan's own.
    pub(crate) fn new(message: impl Display) -> Self {
        Self {
            code: OWN,
            message: Some(message.to_string()),
            at_once: false,
        }
    }

    /// A failure with an exit code of its own.
    pub(crate) fn with_code(code: u8, message: impl Display) -> Self {
        Self {
            code,
            ..Self::new(message)
        }
    }

    /// A failure that was told already, part by part.
    pub(crate) fn told() -> Self {
        Self {
            code: OWN,
            message: None,
            at_once: false,
        }
    }

    /// Ended by a signal that the user sent.
    pub(crate) fn signalled(signal: i32) -> Self {
        let signal = u8::try_from(signal).unwrap_or(0);
        Self {
            code: SIGNALLED.saturating_add(signal),
            message: None,
            at_once: false,
        }
    }

    /// The user has sent this signal once too often to wait for anything.
    pub(crate) fn given_up(signal: i32) -> Self {
        Self {
            at_once: true,
            ..Self::signalled(signal)
        }
    }

    /// The user has left the guest's terminal by the keys that end the VM, or what
    /// else it is that is attended.
    pub(crate) fn escaped(what: &str) -> Self {
        Self {
            message: Some(format!("{what} was ended by Ctrl-] three times")),
            ..Self::given_up(nix::libc::SIGINT)
        }
    }

    /// The time that the user allowed is up.
    pub(crate) fn timed_out(message: impl Display) -> Self {
        Self {
            code: TIMED_OUT,
            message: Some(message.to_string()),
            at_once: false,
        }
    }

    /// Whether the user ended it with a signal.
    pub(crate) fn is_from_a_signal(&self) -> bool {
        self.code > SIGNALLED
    }

    /// Whether the user wants the end now.
    pub(crate) fn is_at_once(&self) -> bool {
        self.at_once
    }

    /// What is said of it.
    pub(crate) fn message(&self) -> &str {
        self.message.as_deref().unwrap_or_default()
    }

    /// Says it on standard error, on one line (a kernel build may need more).
    pub(crate) fn report(&self) {
        if let Some(message) = &self.message {
            say("error", message);
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::StartFailed {
                kind: StartFailureKind::NotFound,
                ..
            } => 127,
            Error::StartFailed {
                kind: StartFailureKind::NotExecutable,
                ..
            } => 126,
            Error::ProgramTimeout { .. } | Error::VmTimeout { .. } => TIMED_OUT,
            _ => OWN,
        };
        Self {
            code,
            message: Some(error.to_string()),
            at_once: false,
        }
    }
}

/// Tells the user something on standard error.
pub(crate) fn say(kind: &str, message: &str) {
    // One write, so that it stays together among the output of others.
    let line = format!("flashpan: {kind}: {message}\n");
    // With standard error gone there is nobody to tell.
    let _ =
        Patient::new(io::stderr().as_fd()).and_then(|mut stderr| stderr.write_all(line.as_bytes()));
}

/// Writes the result of a command to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => Ok(()),
        // `flashpan kernel ls | head -1` is no failure worth a word.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
            Err(Failure::signalled(nix::libc::SIGPIPE))
        }
        Err(e) => Err(Failure::new(format!(
            "cannot write to standard output: {e}"
        ))),
    }
}

/// Does something with each of several things, whatever becomes of the others:
/// each failure is told, and the whole has failed if one has.
pub(crate) fn each<T>(
    things: &[T],
    mut act: impl FnMut(&T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut result = Ok(());
    for thing in things {
        match act(thing) {
            Ok(()) => {}
            // Not the thing's failure: standard output is gone.
            Err(failure) if failure.is_from_a_signal() => return Err(failure),
            Err(failure) => {
                failure.report();
                result = Err(Failure::told());
            }
        }
    }
    result
}

/// Writes a value as JSON to standard output, on one line.
pub(crate) fn print_json_line(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string(value)
        .map_err(|e| Failure::new(format!("cannot write JSON: {e}")))?;
    text.push('\n');
    print(&text)
}

/// Writes a value as JSON to standard output.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(format!("cannot write JSON: {e}")))?;
    text.push('\n');
    print(&text)
}
