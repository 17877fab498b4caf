//! Errors of this library.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flashpan_protocol::agent::StartFailureKind;
use flashpan_protocol::file::FileFailureKind;
use flashpan_protocol::forward::{ForwardFailureKind, Transport};
use flashpan_protocol::frame::FrameError;
use flashpan_protocol::phase::Phase;
use thiserror::Error;

use crate::api::{ErrorCode, ParseError, RequestError, ValidationErrors};
use crate::exit::ExitReason;
use crate::launch::{LaunchError, Unsupported};
use crate::state::StateError;
use crate::text::shown_path;
use crate::timeline::phase_name;

/// Why something could not be done. Every message is one line: what was tried,
/// on what, why it failed and, where that is known, what to do. Text that comes
/// from a guest is free of control characters.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range or contradicts another.
    #[error("{field}: {why}")]
    InvalidConfig {
        /// The setting, e.g. `cpus`.
        field: &'static str,
        /// What is wrong and what is allowed.
        why: String,
    },
    /// A configuration cannot be read.
    #[error(transparent)]
    ConfigSyntax(#[from] ParseError),
    /// A configuration contradicts itself or has values out of range.
    #[error(transparent)]
    ConfigInvalid(#[from] ValidationErrors),
    /// A configuration asks for what this version does not have.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Something that a VM is made from cannot be had.
    #[error(transparent)]
    Launch(#[from] Box<LaunchError>),
    /// There is no VM of this id or name.
    #[error("{}", StateError::NotFound(id.clone()))]
    NotFound {
        /// The id or name.
        id: String,
    },
    /// The network's rules do not allow a request
    /// ([`crate::api::NetworkEvent::refusal`]).
    #[error("request blocked by policy: {host}")]
    Blocked {
        /// Where it was to go.
        host: String,
    },
    /// A host is not among those that the guest may reach
    /// ([`crate::api::NetworkEvent::refusal`]).
    #[error("host not in allowlist: {host}")]
    HostNotAllowed {
        /// The host.
        host: String,
    },
    /// The placeholder of a secret was on its way to a host that may not have the
    /// secret ([`crate::api::NetworkEvent::refusal`]).
    #[error("secret placeholder sent to unauthorized host: {host}")]
    SecretLeak {
        /// The host.
        host: String,
    },
    /// A program of flashpan is not where it should be.
    #[error(
        "cannot find the program {name}: {why}; build it with `cargo build --release`, or set {variable} to its path"
    )]
    ProgramNotFound {
        /// File name of the program.
        name: &'static str,
        /// The environment variable that names it.
        variable: &'static str,
        /// Where it was looked for.
        why: String,
    },
    /// A file of the caller cannot be opened.
    #[error("cannot open the {what} {}: {source}{}", path.display(), open_hint(what, source))]
    Open {
        /// What the file is for: `kernel`, `root image`, ….
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The VMM process could not be started.
    #[error("cannot start {}: {source}", path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The host refused something that should always work.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The VM could not be built.
    #[error("cannot build the VM: {message}")]
    BootFailed {
        /// What the VMM reported.
        message: String,
    },
    /// The guest was not ready in time.
    #[error("guest was not ready within {after:?} ({}){}; allow it more time if this host is busy", reached_text(*reached), quoted(console.as_deref()))]
    BootTimeout {
        /// The deadline.
        after: Duration,
        /// The last phase that was reached.
        reached: Option<Phase>,
        /// The last line on the guest's console.
        console: Option<String>,
    },
    /// The guest's init could not set the guest up.
    #[error("guest could not {what}: {why}")]
    GuestSetup {
        /// What it was doing.
        what: String,
        /// Why it failed.
        why: String,
        /// The error number in the guest, 0 if there is none.
        errno: i32,
    },
    /// The guest ended in order before it was ready, so its init could not even
    /// say why on its connection.
    #[error("guest gave up before it was ready{}{}", gave_up(message.as_deref(), console.as_deref()), kernel_hint(*connected))]
    GaveUp {
        /// What its init wrote to the console.
        message: Option<String>,
        /// The last line on its console.
        console: Option<String>,
        /// Whether its init had reached the supervisor.
        connected: bool,
    },
    /// The VM ended before the operation was complete.
    #[error("{0}")]
    VmEnded(ExitReason),
    /// The VM has been shut down or killed, or its driver is gone.
    #[error("the VM is not running any more; boot another")]
    NotRunning,
    /// The VM stands still.
    #[error("the VM is paused; let it go on first (`flashpan unpause`)")]
    Paused,
    /// The VM does not stand still.
    #[error("the VM is not paused")]
    NotPaused,
    /// The VM boots still.
    #[error("the VM is still starting; wait a moment")]
    Starting,
    /// The supervisor of a VM did not do what it was asked for.
    #[error("the VM's supervisor: {message}")]
    Supervisor {
        /// What it said, or what it did.
        message: String,
    },
    /// A VM on disk does not allow it, or could not be read. One that is not there is
    /// [`Error::NotFound`].
    #[error(transparent)]
    State(StateError),
    /// A program of another version of flashpan answered.
    #[error(
        "{peer} speaks protocol version {theirs}, this program speaks {ours}; install both from one build"
    )]
    Incompatible {
        /// Who answered: `flashpan-vmm`, `the guest's agent`.
        peer: &'static str,
        /// Its version.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// The other side broke the protocol.
    #[error("{peer} broke the protocol: {why}")]
    Protocol {
        /// Who.
        peer: &'static str,
        /// How.
        why: String,
    },
    /// A request could not be encoded.
    #[error("cannot send the request: {0}")]
    Encode(#[from] FrameError),
    /// The guest's agent did not take the connection.
    #[error(
        "guest refused the connection to its agent (port {port}); is it out of memory or shutting down?"
    )]
    AgentRefused {
        /// The vsock port.
        port: u32,
    },
    /// The connection to a running program was lost while the VM lives on.
    #[error("lost the connection to the program: the guest's agent closed it")]
    AgentLost,
    /// The guest's agent does not take requests, or not fast enough.
    #[error("the guest's agent takes no more requests; end the VM if it stays so")]
    AgentBusy,
    /// The guest did not answer in time.
    #[error("guest did not {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The program ran for longer than it may ([`crate::ExecOptions::timeout`]) and
    /// was ended.
    #[error("the program had not ended after {after:?}, its time limit, and was ended")]
    ProgramTimeout {
        /// The limit.
        after: Duration,
    },
    /// The VM has run for as long as it may ([`crate::SandboxBuilder::time_limit`]).
    #[error("time is up: {after:?} have passed since the VM was ready")]
    VmTimeout {
        /// The limit.
        after: Duration,
    },
    /// The program was not started.
    #[error("{message}")]
    StartFailed {
        /// The class of failure.
        kind: StartFailureKind,
        /// What the guest reported.
        message: String,
    },
    /// The guest could not do what was asked for with a file of its.
    #[error("{} in the guest: {message}", shown_path(path))]
    File {
        /// The file.
        path: PathBuf,
        /// The class of failure.
        kind: FileFailureKind,
        /// The error number in the guest, 0 if there is none.
        errno: i32,
        /// What the guest reported.
        message: String,
    },
    /// A file of the guest was longer than the caller allowed.
    #[error(
        "{} in the guest is longer than the {limit} bytes that were asked for at most; read it as a stream",
        shown_path(path)
    )]
    FileTooLong {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: usize,
    },
    /// A directory of the guest has more entries than are listed.
    #[error(
        "{} in the guest has more than {limit} entries; list it with a program in the guest",
        shown_path(path)
    )]
    ListingTooLong {
        /// The directory.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A tree of the guest was longer than the caller allowed.
    #[error(
        "{} in the guest is longer than the {limit} bytes that were asked for at most; what was copied so far is there",
        shown_path(path)
    )]
    CopyTooLong {
        /// What was copied.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A tree of the guest had more in it than is copied.
    #[error(
        "{} in the guest has more than {limit} files and directories, the most that are copied; what was copied so far is there",
        shown_path(path)
    )]
    CopyTooMany {
        /// What was copied.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// A file of this machine could not be read or written.
    #[error("cannot copy {}: {}", shown_path(path), attempt(what, source))]
    HostFile {
        /// What was tried, e.g. `write it`; empty if `source` says it all.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A tar archive was not unpacked, or not all of it.
    #[error("cannot unpack the archive: {why}")]
    Archive {
        /// What is wrong with it.
        why: String,
    },
    /// A port of this machine cannot be listened on.
    #[error("cannot listen on {address} ({}): {source}{}", transport_name(*transport), listen_hint(source))]
    Listen {
        /// The address and port.
        address: SocketAddr,
        /// TCP or UDP.
        transport: Transport,
        /// Why not.
        source: io::Error,
    },
    /// A connection to a port of the guest was not made, or was lost.
    #[error("{target} in the guest ({}): {message}", transport_name(*transport))]
    Forward {
        /// The address and port in the guest.
        target: SocketAddr,
        /// TCP or UDP.
        transport: Transport,
        /// The class of failure.
        kind: ForwardFailureKind,
        /// The error number in the guest, 0 if there is none.
        errno: i32,
        /// What the guest reported.
        message: String,
    },
    /// Output was longer than the caller allowed.
    #[error("the program wrote more than the {limit} bytes that were asked for at most")]
    OutputTooLong {
        /// The limit in bytes.
        limit: usize,
    },
}

/// Short for a result with [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For mapping an I/O error: `.map_err(Error::host("create a pipe"))`.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            what,
            source: source.into(),
        }
    }

    /// What the end of the VM means for whoever needed it.
    pub(crate) fn ended(reason: ExitReason) -> Self {
        match reason {
            ExitReason::TimedOut { after, .. } => Self::VmTimeout { after },
            reason => Self::VmEnded(reason),
        }
    }

    /// What kind of error it is, by a name that stays the same between versions.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::InvalidConfig { .. } => ErrorCode::ConfigInvalid,
            Self::ConfigSyntax(error) => error.code(),
            Self::ConfigInvalid(errors) => errors.code(),
            Self::Unsupported(_) => ErrorCode::Unsupported,
            Self::Launch(error) => error.code(),
            Self::NotFound { .. } => ErrorCode::VmNotFound,
            Self::Blocked { .. } => ErrorCode::Blocked,
            Self::HostNotAllowed { .. } => ErrorCode::HostNotAllowed,
            Self::SecretLeak { .. } => ErrorCode::SecretLeak,
            Self::ProgramNotFound { .. } | Self::Spawn { .. } | Self::Incompatible { .. } => {
                ErrorCode::Installation
            }
            Self::Open { .. } | Self::HostFile { .. } | Self::Archive { .. } => {
                ErrorCode::FileUnusable
            }
            Self::Listen { .. } | Self::Forward { .. } => ErrorCode::ForwardFailed,
            Self::Host { .. } => ErrorCode::Host,
            Self::BootFailed { .. } | Self::GuestSetup { .. } | Self::GaveUp { .. } => {
                ErrorCode::BootFailed
            }
            Self::BootTimeout { .. }
            | Self::Timeout { .. }
            | Self::ProgramTimeout { .. }
            | Self::VmTimeout { .. } => ErrorCode::Timeout,
            Self::VmEnded(_) => ErrorCode::VmEnded,
            Self::NotRunning | Self::Starting => ErrorCode::VmNotRunning,
            Self::Paused | Self::NotPaused => ErrorCode::VmPaused,
            Self::State(error) => error.code(),
            Self::Supervisor { .. } => ErrorCode::Host,
            Self::Protocol { .. }
            | Self::Encode(_)
            | Self::AgentRefused { .. }
            | Self::AgentLost
            | Self::AgentBusy => ErrorCode::Agent,
            Self::StartFailed { kind, .. } => match kind {
                StartFailureKind::NotFound => ErrorCode::CommandNotFound,
                StartFailureKind::NotExecutable => ErrorCode::CommandNotExecutable,
                _ => ErrorCode::CommandNotStarted,
            },
            Self::OutputTooLong { .. } => ErrorCode::OutputTooLong,
            Self::File { kind, .. } => match kind {
                FileFailureKind::NotFound => ErrorCode::FileNotFound,
                _ => ErrorCode::FileFailed,
            },
            Self::FileTooLong { .. }
            | Self::ListingTooLong { .. }
            | Self::CopyTooLong { .. }
            | Self::CopyTooMany { .. } => ErrorCode::FileTooLong,
        }
    }

    /// Whether a time limit was reached: that of a boot, of an answer, of a program
    /// or of a VM.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.code() == ErrorCode::Timeout
    }

    /// An [`Error::Archive`].
    pub(crate) fn archive(why: impl Into<String>) -> Self {
        Self::Archive { why: why.into() }
    }

    /// An [`Error::InvalidConfig`].
    pub(crate) fn config(field: &'static str, why: impl Into<String>) -> Self {
        Self::InvalidConfig {
            field,
            why: why.into(),
        }
    }
}

impl From<LaunchError> for Error {
    fn from(error: LaunchError) -> Self {
        Self::Launch(Box::new(error))
    }
}

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        match error {
            StateError::NotFound(id) => Self::NotFound { id },
            error => Self::State(error),
        }
    }
}

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Invalid(errors) => errors.into(),
            RequestError::ImageRequired => LaunchError::ImageRequired.into(),
            RequestError::IdGiven => Self::config("id", "internal-only and cannot be set"),
        }
    }
}

fn reached_text(reached: Option<Phase>) -> String {
    match reached {
        Some(phase) => format!("it got as far as {}", phase_name(phase)),
        None => "the VMM did not answer".to_owned(),
    }
}

/// What to do about a file that cannot be opened. One that is something else
/// than it should be has said so itself.
fn open_hint(what: &str, source: &io::Error) -> &'static str {
    match (what, source.kind()) {
        (_, io::ErrorKind::InvalidData) => "",
        ("kernel", _) => "; name another, or build one with `flashpan kernel build`",
        ("root image", _) => "; name another: an EROFS or ext4 image",
        _ => "; build it with `cargo build --release`",
    }
}

/// As it is written behind a port.
pub(crate) fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

fn attempt(what: &str, source: &io::Error) -> String {
    match what {
        "" => source.to_string(),
        what => format!("{what}: {source}"),
    }
}

/// What to do about a port that cannot be listened on.
fn listen_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "; choose another port, or end what listens there",
        io::ErrorKind::AddrNotAvailable => "; name an address of this machine",
        io::ErrorKind::PermissionDenied => "; choose a port from 1024 on",
        _ => "",
    }
}

fn gave_up(message: Option<&str>, console: Option<&str>) -> String {
    match message {
        Some(message) => format!(": it could not {message}"),
        None => quoted(console),
    }
}

/// What to do about a guest whose init could not call.
fn kernel_hint(connected: bool) -> &'static str {
    if connected {
        return "";
    }
    "; its kernel needs VSOCKETS, VIRTIO_VSOCKETS, VIRTIO_MMIO, VIRTIO_MMIO_CMDLINE_DEVICES, \
     DEVTMPFS, PROC_FS and SYSFS built in (=y, not =m), as `flashpan kernel build` makes them"
}

fn quoted(line: Option<&str>) -> String {
    line.map(|line| format!("; last on its console: {line}"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
