//! What happened in a VM, as lines of JSON in its directory.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use flashpan_protocol::agent::ExitStatus;
use serde::{Deserialize, Serialize};

use crate::api::{ExecEvent, Timestamp};
use crate::events::{VmEvent, VmEventKind};
use crate::state::{LogFile, LogReader, LogStream, Result, Status, Vm};
use crate::text::one_line;

/// Longest line that is read: a program's words are bounded by its agent, and each
/// byte of them takes at most six in JSON.
const LINE_MAX: usize = 64 * 1024;

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
    /// At least so many events before this are missing: they came faster than they
    /// could be told.
    Lost {
        /// How many.
        count: u64,
    },
}

impl LoggedEvent {
    fn of_program(vm: &str, event: &VmEvent) -> Self {
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
            VmEventKind::Lost(count) => LoggedKind::Lost { count: *count },
        };
        Self {
            time: event.at,
            vm: vm.to_owned(),
            kind,
        }
    }
}

/// The events of a VM, in the hands of its supervisor.
#[derive(Debug)]
pub(crate) struct EventLog {
    vm: String,
    /// `None` from the end of the VM's run on.
    file: Mutex<Option<LogFile>>,
}

impl EventLog {
    pub(crate) fn open(vm: &str, directory: &Path) -> std::io::Result<Self> {
        let mut file = LogFile::open(directory.join(LogStream::Events.file_name()))?;
        // Behind what a killed supervisor was writing; an empty line is none.
        file.write_all(b"\n")?;
        Ok(Self {
            vm: vm.to_owned(),
            file: Mutex::new(Some(file)),
        })
    }

    pub(crate) fn vm(&self, status: Status, message: Option<&str>) {
        self.write(&LoggedEvent {
            time: SystemTime::now().into(),
            vm: self.vm.clone(),
            kind: LoggedKind::Vm {
                status,
                message: message.map(|text| one_line(text, MESSAGE_MAX)),
            },
        });
    }

    /// The last event of a run.
    pub(crate) fn end(&self, message: &str) {
        self.vm(Status::Stopped, Some(message));
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn program(&self, event: &VmEvent) {
        self.write(&LoggedEvent::of_program(&self.vm, event));
    }

    fn write(&self, event: &LoggedEvent) {
        let Ok(mut line) = serde_json::to_vec(event) else {
            return;
        };
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = &mut *file else { return };
        // A log takes everything, or does without.
        let _ = file.begin_line(line.len());
        let _ = file.write_all(&line);
    }
}

/// The events of a VM, as they are there and as they come.
#[derive(Debug)]
pub struct EventReader {
    vm: String,
    log: LogReader,
    /// The beginning of a line.
    rest: Vec<u8>,
    ready: VecDeque<LoggedEvent>,
}

impl EventReader {
    /// Opens the events of a VM; of those that are there already only the last `tail`
    /// count, if that is given.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn open(vm: &Vm, tail: Option<usize>) -> Result<Self> {
        Self::at(vm.id(), vm.directory(), tail)
    }

    pub(crate) fn at(vm: &str, directory: &Path, tail: Option<usize>) -> Result<Self> {
        let path = directory.join(LogStream::Events.file_name());
        Ok(Self {
            vm: vm.to_owned(),
            log: LogReader::at(path, directory, tail)?,
            rest: Vec::new(),
            ready: VecDeque::new(),
        })
    }

    /// The next one that is there; `None` at the end so far.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn available(&mut self) -> Result<Option<LoggedEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let chunk = self.log.available()?;
            if self.log.take_lost() {
                // Nobody knows how many were in the file that is gone.
                self.ready.push_back(LoggedEvent {
                    time: SystemTime::now().into(),
                    vm: self.vm.clone(),
                    kind: LoggedKind::Lost { count: 1 },
                });
            }
            if chunk.is_empty() && self.ready.is_empty() {
                return Ok(None);
            }
            self.take_in(&chunk);
        }
    }

    /// Waits until there may be more. Cancel safe.
    ///
    /// # Errors
    /// The host does not say.
    pub async fn changed(&mut self) -> Result<()> {
        self.log.changed().await
    }

    fn take_in(&mut self, mut chunk: &[u8]) {
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            let (line, more) = chunk.split_at(end);
            self.rest.extend_from_slice(line);
            // Of a line that was not written whole (the disk was full), or is of a later
            // version, nothing is known.
            if let Ok(event) = serde_json::from_slice(&self.rest) {
                self.ready.push_back(event);
            }
            self.rest.clear();
            chunk = more.get(1..).unwrap_or_default();
        }
        self.rest.extend_from_slice(chunk);
        if self.rest.len() > LINE_MAX {
            self.rest.clear();
        }
    }
}
