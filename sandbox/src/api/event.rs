//! What a VM reports while it runs.

use serde::{Deserialize, Serialize};
use thiserror::Error as ThisError;

use super::file::FileMode;
use super::timestamp::Timestamp;
use super::vfs::FileOp;
use super::words::words;
use crate::error::Error;
use crate::text::one_line;

/// Longest host that an error names, in characters: the guest says it.
const HOST_MAX: usize = 300;

/// Something that happened in or for a VM.
///
/// In JSON: `type` (`network`, `file` or `exec`), `timestamp`, and an object
/// with the name of the type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
#[non_exhaustive]
pub struct Event {
    /// When it happened: since 1970, in seconds for [`EventKind::Network`], in
    /// milliseconds for the others. 0 if that is not known.
    pub timestamp: i64,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// A request or connection of the guest.
    Network(NetworkEvent),
    /// An operation on files.
    File(FileEvent),
    /// A program that ended.
    Exec(ExecEvent),
}

impl EventKind {
    /// The `type` in JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Network(_) => "network",
            Self::File(_) => "file",
            Self::Exec(_) => "exec",
        }
    }
}

impl Event {
    /// An event of this time.
    #[must_use]
    pub fn new(at: Timestamp, kind: EventKind) -> Self {
        let timestamp = match kind {
            EventKind::Network(_) => at.unix_seconds(),
            EventKind::File(_) | EventKind::Exec(_) => at.unix_milliseconds(),
        };
        Self { timestamp, kind }
    }
}

words! {
    /// Why a request or connection was refused.
    pub enum BlockReason {
        /// Its host is not among those that the guest may reach.
        HostNotAllowed = "host not in allowlist",
        /// A rule or callback refused it.
        Policy = "request blocked by policy",
        /// It carried a secret's placeholder to a host that may not have the
        /// secret.
        SecretLeak = "secret placeholder sent to unauthorized host",
    }
}

/// A request or connection of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkEvent {
    /// The HTTP method; empty if there is none.
    #[serde(default)]
    pub method: String,
    /// The URL, without secrets.
    #[serde(default)]
    pub url: String,
    /// The host; `ip:port` for a connection that is not HTTP.
    #[serde(default)]
    pub host: String,
    /// The HTTP status; 0 if there is none.
    #[serde(default)]
    pub status_code: u16,
    /// Bytes of the request's body.
    #[serde(default)]
    pub request_bytes: u64,
    /// Bytes of the response's body.
    #[serde(default)]
    pub response_bytes: u64,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
    /// Whether it was refused.
    #[serde(default)]
    pub blocked: bool,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_reason: Option<BlockReason>,
}

impl NetworkEvent {
    /// The refusal as an error, if it is one: [`Error::Blocked`],
    /// [`Error::HostNotAllowed`] or [`Error::SecretLeak`].
    #[must_use]
    pub fn refusal(&self) -> Option<Error> {
        let host = one_line(&self.host, HOST_MAX);
        let refusal = match &self.block_reason {
            // Of a sender that knows a reason that is not known here.
            None | Some(BlockReason::Policy | BlockReason::Other(_)) => Error::Blocked { host },
            Some(BlockReason::HostNotAllowed) => Error::HostNotAllowed { host },
            Some(BlockReason::SecretLeak) => Error::SecretLeak { host },
        };
        self.blocked.then_some(refusal)
    }
}

/// An operation on files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FileEvent {
    /// The operation.
    pub op: FileOp,
    /// The path in the guest.
    pub path: String,
    /// Bytes read or written; 0 for other operations.
    #[serde(default)]
    pub size: u64,
    /// Type and permissions of the file; 0 (absent in JSON) if not known.
    #[serde(default, skip_serializing_if = "super::lenient::is_default")]
    pub mode: FileMode,
    /// User; 0 is absent in JSON.
    #[serde(default, skip_serializing_if = "super::lenient::is_default")]
    pub uid: u32,
    /// Group; 0 is absent in JSON.
    #[serde(default, skip_serializing_if = "super::lenient::is_default")]
    pub gid: u32,
}

/// A program that ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExecEvent {
    /// The command.
    pub command: String,
    /// Its exit code, 0 to 255; -1 if a signal ended it.
    pub exit_code: i32,
}

/// The form in JSON.
#[derive(Clone, Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "type")]
    name: String,
    #[serde(default)]
    timestamp: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<NetworkEvent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<FileEvent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exec: Option<ExecEvent>,
}

/// An event is of no known type, or lacks the object of its type.
#[derive(Debug, ThisError)]
#[error("an event has no type that is known, or not the object of its type")]
struct UnknownEvent;

impl TryFrom<Wire> for Event {
    type Error = UnknownEvent;

    fn try_from(wire: Wire) -> Result<Self, UnknownEvent> {
        let kind = match wire.name.as_str() {
            "network" => wire.network.map(EventKind::Network),
            "file" => wire.file.map(EventKind::File),
            "exec" => wire.exec.map(EventKind::Exec),
            _ => None,
        };
        Ok(Self {
            timestamp: wire.timestamp,
            kind: kind.ok_or(UnknownEvent)?,
        })
    }
}

impl From<Event> for Wire {
    fn from(event: Event) -> Self {
        let mut wire = Self {
            name: event.kind.name().to_owned(),
            timestamp: event.timestamp,
            network: None,
            file: None,
            exec: None,
        };
        match event.kind {
            EventKind::Network(network) => wire.network = Some(network),
            EventKind::File(file) => wire.file = Some(file),
            EventKind::Exec(exec) => wire.exec = Some(exec),
        }
        wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_that_of_the_interface() {
        for json in [
            concat!(
                r#"{"type":"network","timestamp":5,"network":{"method":"GET","#,
                r#""url":"http://a/b","host":"a","status_code":200,"request_bytes":0,"#,
                r#""response_bytes":7,"duration_ms":3,"blocked":false}}"#
            ),
            concat!(
                r#"{"type":"network","timestamp":0,"network":{"method":"","url":"","#,
                r#""host":"10.0.0.1:22","status_code":0,"request_bytes":0,"#,
                r#""response_bytes":0,"duration_ms":0,"blocked":true,"#,
                r#""block_reason":"host not in allowlist"}}"#
            ),
            concat!(
                r#"{"type":"file","timestamp":5000,"file":{"op":"write","path":"/w/a","#,
                r#""size":3,"mode":420,"uid":1000,"gid":1000}}"#
            ),
            r#"{"type":"file","timestamp":5000,"file":{"op":"stat","path":"/w","size":0}}"#,
            r#"{"type":"exec","timestamp":5000,"exec":{"command":"true","exit_code":0}}"#,
        ] {
            let event: Event = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&event).unwrap(), json);
        }
    }

    #[test]
    fn an_event_has_the_object_of_its_type() {
        for json in [
            r#"{"type":"file","timestamp":1}"#,
            r#"{"type":"file","exec":{"command":"","exit_code":0}}"#,
            r#"{"type":"other"}"#,
            "{}",
        ] {
            assert!(serde_json::from_str::<Event>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn times_have_the_unit_of_the_type() {
        let at = Timestamp::from_unix(5, 250_000_000).unwrap();
        let network = Event::new(at, EventKind::Network(NetworkEvent::default()));
        assert_eq!(network.timestamp, 5);
        let exec = Event::new(at, EventKind::Exec(ExecEvent::default()));
        assert_eq!(exec.timestamp, 5250);
    }
}
