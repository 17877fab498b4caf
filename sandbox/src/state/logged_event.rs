//! What happened in a VM, as it is written down.

use std::time::SystemTime;

use flashpan_protocol::agent::ExitStatus;
use serde::{Deserialize, Serialize};

use crate::api::{ExecEvent, Timestamp};
use crate::events::{VmEvent, VmEventKind};
use crate::network_event::NetworkActivity;
use crate::secret_event::SecretActivity;
use crate::state::Status;
use crate::text::one_line;

/// Longest text of an end, in characters.
const MESSAGE_MAX: usize = 400;

/// A line of a VM's events.
///
/// In JSON: `type`, `time`, `vm` and the fields of the type. Those of type `exec` have
/// all that the reference's events have as well: `timestamp` and `exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LoggedEvent {
    /// When its supervisor heard of it.
    pub time: Timestamp,
    /// The VM's id.
    pub vm: String,
    /// What happened.
    #[serde(flatten)]
    pub kind: LoggedKind,
}

/// What happened in a VM, or with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum LoggedKind {
    /// The VM does something else.
    Vm {
        /// What it does now.
        status: Status,
        /// How it ended, on one line.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// A program was started.
    ExecStarted {
        /// The program's number in its VM.
        id: u64,
        /// Its process id in the guest.
        pid: u32,
        /// The program and its arguments; what is not UTF-8 is replaced.
        argv: Vec<String>,
        /// Whether there was more of them.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// Working directory.
        working_dir: String,
    },
    /// A program has ended.
    Exec {
        /// Since 1970, in milliseconds.
        timestamp: i64,
        /// The command and its exit code.
        exec: ExecEvent,
        /// The program's number in its VM.
        id: u64,
        /// Its process id in the guest, which may be another's by now.
        pid: u32,
        /// The signal that ended it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// How long it ran, in milliseconds.
        duration_ms: u64,
    },
    /// A connection, request or question for a name is over, or was refused.
    Network {
        /// Since 1970, in seconds.
        timestamp: i64,
        /// What it was.
        #[serde(flatten)]
        activity: Box<NetworkActivity>,
    },
    /// A secret has another value from its source, or keeps the one that it had.
    Secret(SecretActivity),
    /// At least so many events before this are missing: they came faster than they
    /// could be told. One also where a reader fell so far behind that some may be.
    Lost {
        /// How many.
        count: u64,
        /// Whether they are all of the network; nothing else is missing then.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        network: bool,
    },
}

impl LoggedEvent {
    /// Whether it is of the network, which has a log of its own.
    pub(super) fn is_of_network(&self) -> bool {
        matches!(
            self.kind,
            LoggedKind::Network { .. } | LoggedKind::Lost { network: true, .. }
        )
    }

    pub(super) fn of_program(vm: &str, event: &VmEvent) -> Self {
        let kind = match &event.kind {
            VmEventKind::ExecStarted(started) => LoggedKind::ExecStarted {
                id: started.id,
                pid: started.pid,
                argv: started
                    .argv()
                    .iter()
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect(),
                truncated: started.truncated,
                uid: started.uid,
                gid: started.gid,
                working_dir: started.working_dir.to_string_lossy().into_owned(),
            },
            VmEventKind::ExecEnded(ended) => LoggedKind::Exec {
                timestamp: event.at.unix_milliseconds(),
                exec: ended.to_api(),
                id: ended.id,
                pid: ended.pid,
                signal: match ended.status {
                    ExitStatus::Signal(signal) => Some(signal),
                    ExitStatus::Code(_) => None,
                },
                duration_ms: u64::try_from(ended.duration.as_millis()).unwrap_or(u64::MAX),
            },
            VmEventKind::Network(activity) => LoggedKind::Network {
                timestamp: event.at.unix_seconds(),
                activity: Box::new(NetworkActivity::clone(activity)),
            },
            VmEventKind::Secret(activity) => LoggedKind::Secret(activity.clone()),
            VmEventKind::Lost(count) => LoggedKind::Lost {
                count: *count,
                network: false,
            },
        };
        Self {
            time: event.at,
            vm: vm.to_owned(),
            kind,
        }
    }

    pub(super) fn of_vm(vm: &str, status: Status, message: Option<&str>) -> Self {
        Self::now(
            vm,
            LoggedKind::Vm {
                status,
                message: message.map(|text| one_line(text, MESSAGE_MAX)),
            },
        )
    }

    pub(super) fn of_lost(vm: &str, count: u64, network: bool) -> Self {
        Self::now(vm, LoggedKind::Lost { count, network })
    }

    fn now(vm: &str, kind: LoggedKind) -> Self {
        Self {
            time: SystemTime::now().into(),
            vm: vm.to_owned(),
            kind,
        }
    }
}
