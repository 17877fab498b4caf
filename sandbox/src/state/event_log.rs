//! What happened in a VM, as lines of JSON in its directory.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use flashpan_protocol::agent::ExitStatus;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::api::{ExecEvent, Timestamp};
use crate::events::{VmEvent, VmEventKind};
use crate::network_event::NetworkActivity;
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
    /// A connection, request or question for a name is over, or was refused.
    Network {
        /// Since 1970, in seconds.
        timestamp: i64,
        /// What it was.
        #[serde(flatten)]
        activity: Box<NetworkActivity>,
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
            VmEventKind::Network(activity) => LoggedKind::Network {
                timestamp: event.at.unix_seconds(),
                activity: Box::new(NetworkActivity::clone(activity)),
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

/// Lines that wait for a slow disk. What comes when so many do is counted instead.
const WAITING: usize = 1024;

/// How long the lines that wait may take when somebody waits for them.
const WRITTEN_WITHIN: Duration = Duration::from_secs(5);

/// How long they may take at the end of a run.
const END_WITHIN: Duration = Duration::from_secs(60);

/// What the thread that writes is told.
#[derive(Debug)]
enum Entry {
    Event(Box<LoggedEvent>),
    /// All before this is written.
    Written(oneshot::Sender<()>),
}

/// The events of a VM, in the hands of its supervisor. A thread of its own writes them,
/// so nobody who has something to tell waits for a disk.
#[derive(Debug)]
pub(crate) struct EventLog {
    vm: String,
    /// `None` from the end of the VM's run on.
    entries: Mutex<Option<mpsc::Sender<Entry>>>,
    /// How many events there was no room for, behind all that were taken.
    lost: Arc<Mutex<u64>>,
    /// Tells when the thread has written everything.
    done: Mutex<Option<oneshot::Receiver<()>>>,
}

impl EventLog {
    pub(crate) fn open(vm: &str, directory: &Path) -> std::io::Result<Self> {
        let mut file = LogFile::open(directory.join(LogStream::Events.file_name()))?;
        // Behind what a killed supervisor was writing; an empty line is none.
        file.write_all(b"\n")?;
        Self::into(vm, move |line| {
            // A log takes everything, or does without.
            let _ = file.begin_line(line.len());
            let _ = file.write_all(line);
        })
    }

    fn into(vm: &str, sink: impl FnMut(&[u8]) + Send + 'static) -> std::io::Result<Self> {
        let (sender, entries) = mpsc::channel(WAITING);
        let (teller, done) = oneshot::channel();
        let lost = Arc::default();
        let writer = Writer {
            vm: vm.to_owned(),
            entries,
            lost: Arc::clone(&lost),
            sink,
        };
        std::thread::Builder::new()
            .name("event-log".to_owned())
            .spawn(move || {
                writer.run();
                // Nobody waits any more when it took too long.
                let _ = teller.send(());
            })?;
        Ok(Self {
            vm: vm.to_owned(),
            entries: Mutex::new(Some(sender)),
            lost,
            done: Mutex::new(Some(done)),
        })
    }

    pub(crate) fn vm(&self, status: Status, message: Option<&str>) {
        self.add(of_vm(&self.vm, status, message));
    }

    pub(crate) fn program(&self, event: &VmEvent) {
        self.add(LoggedEvent::of_program(&self.vm, event));
    }

    /// Waits until everything so far is written, unless that takes long.
    pub(crate) async fn written(&self) {
        let Some(entries) = locked(&self.entries).clone() else {
            return;
        };
        let (teller, written) = oneshot::channel();
        let all = async move {
            // A thread that is gone has written everything.
            let _ = entries.send(Entry::Written(teller)).await;
            let _ = written.await;
        };
        let _ = timeout(WRITTEN_WITHIN, all).await;
    }

    /// The last event of a run, which waits for its room. Returns when it is written,
    /// or the disk has not taken it for a minute.
    pub(crate) async fn end(&self, message: &str) {
        // What comes later would be another run's.
        let entries = locked(&self.entries).take();
        let done = locked(&self.done).take();
        let (Some(entries), Some(done)) = (entries, done) else {
            return;
        };
        let last = of_vm(&self.vm, Status::Stopped, Some(message));
        let all = async move {
            if let Ok(mut room) = entries.reserve_many(2).await {
                let lost = std::mem::take(&mut *locked(&self.lost));
                let lost = (lost > 0).then(|| of_lost(&self.vm, lost));
                for event in lost.into_iter().chain([last]) {
                    if let Some(room) = room.next() {
                        room.send(Entry::Event(Box::new(event)));
                    }
                }
            }
            drop(entries);
            let _ = done.await;
        };
        let _ = timeout(END_WITHIN, all).await;
    }

    fn add(&self, event: LoggedEvent) {
        let entries = locked(&self.entries);
        let Some(entries) = &*entries else { return };
        let mut lost = locked(&self.lost);
        let before = (*lost > 0).then(|| of_lost(&self.vm, *lost));
        let wanted = if before.is_some() { 2 } else { 1 };
        let Ok(mut room) = entries.try_reserve_many(wanted) else {
            let more = match event.kind {
                LoggedKind::Lost { count } => count,
                _ => 1,
            };
            *lost = lost.saturating_add(more);
            return;
        };
        *lost = 0;
        for event in before.into_iter().chain([event]) {
            if let Some(room) = room.next() {
                room.send(Entry::Event(Box::new(event)));
            }
        }
    }
}

fn of_vm(vm: &str, status: Status, message: Option<&str>) -> LoggedEvent {
    LoggedEvent {
        time: SystemTime::now().into(),
        vm: vm.to_owned(),
        kind: LoggedKind::Vm {
            status,
            message: message.map(|text| one_line(text, MESSAGE_MAX)),
        },
    }
}

fn of_lost(vm: &str, count: u64) -> LoggedEvent {
    LoggedEvent {
        time: SystemTime::now().into(),
        vm: vm.to_owned(),
        kind: LoggedKind::Lost { count },
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change to what these hold is whole at once.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread that writes has.
struct Writer<S> {
    vm: String,
    entries: mpsc::Receiver<Entry>,
    lost: Arc<Mutex<u64>>,
    sink: S,
}

impl<S: FnMut(&[u8])> Writer<S> {
    fn run(mut self) {
        while let Some(entry) = self.entries.blocking_recv() {
            match entry {
                Entry::Event(event) => self.write(&event),
                // Whoever waited may be gone.
                Entry::Written(teller) => drop(teller.send(())),
            }
            // What was lost is told also if nothing follows.
            if let Some(lost) = self.lost_before_the_next() {
                self.write(&of_lost(&self.vm, lost));
            }
        }
    }

    fn lost_before_the_next(&self) -> Option<u64> {
        // Under this lock nothing is added.
        let mut lost = locked(&self.lost);
        if *lost == 0 || !self.entries.is_empty() {
            return None;
        }
        Some(std::mem::take(&mut *lost))
    }

    fn write(&mut self, event: &LoggedEvent) {
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            (self.sink)(&line);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(lines: &std::sync::mpsc::Receiver<LoggedEvent>) -> Vec<LoggedKind> {
        lines.try_iter().map(|event| event.kind).collect()
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_holds_nobody_up_and_what_is_lost_is_counted() {
        let (at_disk, reached) = std::sync::mpsc::channel();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (written, lines) = std::sync::mpsc::channel();
        let log = EventLog::into("vm-00000001", move |line| {
            let _ = at_disk.send(());
            // Shut for the first line, open for good when `open` is dropped.
            let _ = gate.recv();
            let event: LoggedEvent = serde_json::from_slice(line).unwrap();
            written.send(event).unwrap();
        })
        .unwrap();
        log.vm(Status::Starting, None);
        reached.recv().unwrap();
        for _ in 0..WAITING {
            log.vm(Status::Running, None);
        }
        for _ in 0..4 {
            log.vm(Status::Paused, None);
        }
        log.program(&VmEvent::lost(3));
        assert!(statuses(&lines).is_empty());
        drop(open);
        log.end("told so").await;
        let kinds = statuses(&lines);
        let vm = |status, message: Option<&str>| LoggedKind::Vm {
            status,
            message: message.map(str::to_owned),
        };
        assert_eq!(kinds.len(), WAITING + 3);
        assert_eq!(kinds[0], vm(Status::Starting, None));
        assert!(
            kinds[1..=WAITING]
                .iter()
                .all(|kind| *kind == vm(Status::Running, None))
        );
        assert_eq!(kinds[WAITING + 1], LoggedKind::Lost { count: 7 });
        assert_eq!(kinds[WAITING + 2], vm(Status::Stopped, Some("told so")));
        // Nothing comes after the end.
        log.vm(Status::Running, None);
        assert!(lines.recv().is_err());
    }

    #[tokio::test]
    async fn what_was_lost_is_told_also_if_nothing_follows() {
        let (at_disk, reached) = std::sync::mpsc::channel();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (written, lines) = std::sync::mpsc::channel();
        let log = EventLog::into("vm-00000001", move |line| {
            let _ = at_disk.send(());
            let _ = gate.recv();
            let event: LoggedEvent = serde_json::from_slice(line).unwrap();
            written.send(event.kind).unwrap();
        })
        .unwrap();
        log.vm(Status::Starting, None);
        reached.recv().unwrap();
        for _ in 0..WAITING + 2 {
            log.vm(Status::Running, None);
        }
        drop(open);
        let lost = lines
            .iter()
            .find(|kind| matches!(kind, LoggedKind::Lost { .. }));
        assert_eq!(lost, Some(LoggedKind::Lost { count: 2 }));
        log.vm(Status::Paused, None);
        log.written().await;
        let paused = LoggedKind::Vm {
            status: Status::Paused,
            message: None,
        };
        assert_eq!(lines.try_iter().last(), Some(paused));
    }
}
