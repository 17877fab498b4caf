//! Starting the supervisor of a VM, and what is said meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use flashpan_protocol::frame::{self, Decoder};
use flashpan_rootfs::child;
use serde::{Deserialize, Serialize};

use crate::api::SecretValue;
use crate::error::Error;
use crate::state::Vms;
use crate::text::one_line;

/// Longest message on the channel, in bytes.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;

/// Longest order: 256 secrets of 64 KiB.
pub(super) const MAX_ORDER: usize = 17 * 1024 * 1024;

/// Longest text in one, in characters.
pub(super) const TEXT_MAX: usize = 1000;

/// Most warnings that are told.
pub(super) const WARNINGS_MAX: usize = 16;

/// The exit status of failures that are nobody else's, as docker has it.
const OWN: u8 = 125;

/// From the starter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    /// Where the VMs are.
    #[serde(with = "serde_bytes")]
    pub(super) base: Vec<u8>,
    pub(super) id: String,
    pub(super) run_command: bool,
    pub(super) remove_unless_ready: bool,
    /// By name.
    pub(super) secrets: BTreeMap<String, SecretValue>,
    pub(super) secrets_given: BTreeSet<String>,
}

/// From the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    Ready { warnings: Vec<String> },
    Failed { code: u8, message: String },
}

/// How a VM is started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StartOptions {
    /// Whether the VM's own command runs.
    pub run_command: bool,
    /// Whether a VM that does not come up is removed.
    pub remove_unless_ready: bool,
    /// Values of secrets, by name. They go to the supervisor, and nowhere else.
    pub secrets: BTreeMap<String, SecretValue>,
    /// Names of those that are not what their sources have
    /// ([`crate::HostOptions::secrets_given`]).
    pub secrets_given: BTreeSet<String>,
}

/// A VM that runs, and its command if it was to.
#[derive(Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Started {
    /// What went wrong in the guest without preventing it from working.
    pub warnings: Vec<String>,
}

/// Why a VM did not come up, or its command did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotStarted {
    /// An exit status by docker's convention: 127 if the command was not found, 126
    /// if it cannot be executed, 125 for all else.
    pub code: u8,
    /// One line.
    pub message: String,
}

impl NotStarted {
    /// A failure with the status 125.
    pub fn new(message: impl fmt::Display) -> Self {
        Self {
            code: OWN,
            message: message.to_string(),
        }
    }
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NotStarted {}

impl From<Error> for NotStarted {
    fn from(error: Error) -> Self {
        use flashpan_protocol::agent::StartFailureKind;
        let code = match &error {
            Error::StartFailed {
                kind: StartFailureKind::NotFound,
                ..
            } => 127,
            Error::StartFailed {
                kind: StartFailureKind::NotExecutable,
                ..
            } => 126,
            _ => OWN,
        };
        Self {
            code,
            message: error.to_string(),
        }
    }
}

impl From<crate::state::StateError> for NotStarted {
    fn from(error: crate::state::StateError) -> Self {
        Self::new(error)
    }
}

/// Starts a VM: runs `supervisor`, a program that calls [`super::Starter::take`] and
/// [`super::supervise`], and waits until the VM is ready. It gets the channel to this
/// process as its standard input, its standard output is closed, its errors go where
/// the caller says until the VM is ready. It has a session of its own and lives on;
/// if this process ends before the VM is ready, so does the VM. Blocks.
///
/// # Errors
/// What the supervisor said, or that it could not be started.
pub fn start(
    mut supervisor: Command,
    vms: &Vms,
    id: &str,
    options: StartOptions,
) -> Result<Started, NotStarted> {
    let failed = |what: &str, error: &dyn fmt::Display| {
        NotStarted::new(format!("cannot {what} the VM's supervisor: {error}"))
    };
    let starting = |error: io::Error| failed("start", &error);
    let (mut ours, theirs) = UnixStream::pair().map_err(starting)?;
    let order = Order {
        base: vms.base().as_os_str().as_bytes().to_vec(),
        id: id.to_owned(),
        run_command: options.run_command,
        remove_unless_ready: options.remove_unless_ready,
        secrets: options.secrets,
        secrets_given: options.secrets_given,
    };
    supervisor
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null());
    let child = child::start(|| supervisor.spawn()).map_err(starting)?;
    // It holds the other end of the channel.
    drop(supervisor);
    // One that is gone already says why by its status.
    let _ = frame::write(&mut ours, &order, MAX_ORDER);
    let report = Decoder::new(MAX_MESSAGE).read_message::<Report>(&mut ours);
    match report {
        Ok(Some(Report::Ready { warnings })) => {
            reap(child);
            let warnings = warnings.iter().take(WARNINGS_MAX);
            Ok(Started {
                warnings: warnings.map(|text| one_line(text, TEXT_MAX)).collect(),
            })
        }
        Ok(Some(Report::Failed { code, message })) => {
            reap(child);
            Err(NotStarted {
                code,
                message: one_line(&message, TEXT_MAX),
            })
        }
        Ok(None) | Err(frame::FrameError::Io(_) | frame::FrameError::Truncated) => {
            Err(NotStarted::new(how_it_ended(child)))
        }
        Err(error) => {
            // It goes when it sees that nobody listens any more.
            reap(child);
            Err(failed("understand", &error))
        }
    }
}

fn how_it_ended(mut child: Child) -> String {
    let how = match child.wait() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    format!("the VM's supervisor ended before the VM was ready: {how}")
}

/// Sees to it that a child that ends is not left as a zombie, however long this
/// process lives.
fn reap(mut child: Child) {
    let waiter = std::thread::Builder::new().name("supervisor".to_owned());
    // Without it the child is reaped when this process ends.
    let _ = waiter.spawn(move || child.wait());
}
