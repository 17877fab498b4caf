//! What happens in a VM, written down as lines of JSON in its directory: what its programs
//! and itself do in one log, and what the network sees in another. Of the network a guest
//! can make any number of events, and must not push out what is told of programs.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::events::VmEvent;
use crate::state::logged_event::{LoggedEvent, LoggedKind};
use crate::state::{LogFile, LogStream, Status};

/// Lines that wait for a slow disk. What comes when so many do is counted instead.
const WAITING: usize = 1024;

/// How much of that room what the network sees leaves for all else.
const LEFT_BY_NETWORK: usize = WAITING / 2;

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

/// How many events there was no room for, behind all that were taken.
#[derive(Debug, Default)]
struct Lost {
    /// Of the network.
    network: u64,
    /// All others.
    others: u64,
}

impl Lost {
    fn add(&mut self, event: &LoggedEvent) {
        let count = match event.kind {
            LoggedKind::Lost { count, .. } => count,
            _ => 1,
        };
        let sum = match event.is_of_network() {
            true => &mut self.network,
            false => &mut self.others,
        };
        *sum = sum.saturating_add(count);
    }

    /// What has to be told of it, from now on not again.
    fn take(&mut self, vm: &str) -> impl Iterator<Item = LoggedEvent> + use<> {
        let Self { network, others } = std::mem::take(self);
        let told =
            |count: u64, network| (count > 0).then(|| LoggedEvent::of_lost(vm, count, network));
        let told = [told(others, false), told(network, true)];
        told.into_iter().flatten()
    }

    /// How many lines that takes.
    fn lines(&self) -> usize {
        usize::from(self.network > 0).saturating_add(usize::from(self.others > 0))
    }
}

/// The events of a VM, in the hands of its supervisor. A thread of its own writes them,
/// so nobody who has something to tell waits for a disk.
#[derive(Debug)]
pub(crate) struct EventLog {
    vm: String,
    /// `None` from the end of the VM's run on.
    entries: Mutex<Option<mpsc::Sender<Entry>>>,
    lost: Arc<Mutex<Lost>>,
    /// Tells when the thread has written everything.
    done: Mutex<Option<oneshot::Receiver<()>>>,
}

impl EventLog {
    pub(crate) fn open(vm: &str, directory: &Path) -> std::io::Result<Self> {
        let open = |stream: LogStream| {
            let mut file = LogFile::open(directory.join(stream.file_name()))?;
            // Behind what a killed supervisor was writing; an empty line is none.
            file.write_all(b"\n")?;
            Ok::<_, std::io::Error>(file)
        };
        let (mut events, mut network) = (open(LogStream::Events)?, open(LogStream::Network)?);
        Self::into(vm, move |line, is_of_network| {
            let file = match is_of_network {
                true => &mut network,
                false => &mut events,
            };
            // A log takes everything, or does without.
            let _ = file.begin_line(line.len());
            let _ = file.write_all(line);
        })
    }

    fn into(vm: &str, sink: impl FnMut(&[u8], bool) + Send + 'static) -> std::io::Result<Self> {
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
        self.add(LoggedEvent::of_vm(&self.vm, status, message));
    }

    pub(crate) fn program(&self, event: &VmEvent) {
        self.add(LoggedEvent::of_program(&self.vm, event));
    }

    /// So many events could not be told, all of the network or none.
    pub(crate) fn lost(&self, count: u64, network: bool) {
        self.add(LoggedEvent::of_lost(&self.vm, count, network));
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
        let last = LoggedEvent::of_vm(&self.vm, Status::Stopped, Some(message));
        let all = async move {
            if let Ok(mut room) = entries.reserve_many(3).await {
                let lost = locked(&self.lost).take(&self.vm);
                for event in lost.chain([last]) {
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
        let wanted = lost.lines().saturating_add(1);
        let left = match event.is_of_network() {
            true => LEFT_BY_NETWORK,
            false => 0,
        };
        let has_room = entries.capacity() >= wanted.saturating_add(left);
        let room = has_room.then(|| entries.try_reserve_many(wanted).ok());
        let Some(mut room) = room.flatten() else {
            return lost.add(&event);
        };
        for event in lost.take(&self.vm).chain([event]) {
            if let Some(room) = room.next() {
                room.send(Entry::Event(Box::new(event)));
            }
        }
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
    lost: Arc<Mutex<Lost>>,
    sink: S,
}

impl<S: FnMut(&[u8], bool)> Writer<S> {
    fn run(mut self) {
        while let Some(entry) = self.entries.blocking_recv() {
            match entry {
                Entry::Event(event) => self.write(&event),
                // Whoever waited may be gone.
                Entry::Written(teller) => drop(teller.send(())),
            }
            // What was lost is told also if nothing follows.
            for lost in self.lost_before_the_next() {
                self.write(&lost);
            }
        }
    }

    fn lost_before_the_next(&self) -> Vec<LoggedEvent> {
        // Under this lock nothing is added.
        let mut lost = locked(&self.lost);
        match self.entries.is_empty() {
            true => lost.take(&self.vm).collect(),
            false => Vec::new(),
        }
    }

    fn write(&mut self, event: &LoggedEvent) {
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            (self.sink)(&line, event.is_of_network());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::VmEventKind;
    use crate::network_event::NetworkActivity;

    fn of_others(count: u64) -> LoggedKind {
        let network = false;
        LoggedKind::Lost { count, network }
    }

    fn statuses(lines: &std::sync::mpsc::Receiver<LoggedEvent>) -> Vec<LoggedKind> {
        lines.try_iter().map(|event| event.kind).collect()
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_holds_nobody_up_and_what_is_lost_is_counted() {
        let (at_disk, reached) = std::sync::mpsc::channel();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (written, lines) = std::sync::mpsc::channel();
        let log = EventLog::into("vm-00000001", move |line, _| {
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
        assert_eq!(kinds[WAITING + 1], of_others(7));
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
        let log = EventLog::into("vm-00000001", move |line, _| {
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
        assert_eq!(lost, Some(of_others(2)));
        log.vm(Status::Paused, None);
        log.written().await;
        let paused = LoggedKind::Vm {
            status: Status::Paused,
            message: None,
        };
        assert_eq!(lines.try_iter().last(), Some(paused));
    }

    #[tokio::test]
    async fn what_the_network_sees_takes_no_room_of_what_programs_do() {
        let (at_disk, reached) = std::sync::mpsc::channel();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (written, lines) = std::sync::mpsc::channel();
        let log = EventLog::into("vm-00000001", move |line, network| {
            let _ = at_disk.send(());
            let _ = gate.recv();
            let event: LoggedEvent = serde_json::from_slice(line).unwrap();
            written.send((event.kind, network)).unwrap();
        })
        .unwrap();
        log.vm(Status::Starting, None);
        reached.recv().unwrap();
        let seen = VmEvent::now(VmEventKind::Network(Arc::new(NetworkActivity::default())));
        for _ in 0..=WAITING {
            log.program(&seen);
        }
        for _ in 0..LEFT_BY_NETWORK - 1 {
            log.vm(Status::Running, None);
        }
        drop(open);
        log.end("told so").await;
        let lines: Vec<_> = lines.iter().collect();
        let of_network = |(_, network): &&(LoggedKind, bool)| *network;
        let is_lost = |kind: &LoggedKind| matches!(kind, LoggedKind::Lost { .. });
        let lost: Vec<_> = lines.iter().filter(|(kind, _)| is_lost(kind)).collect();
        let count = u64::try_from(WAITING + 1 - LEFT_BY_NETWORK).unwrap();
        let network = true;
        assert_eq!(lost, [&(LoggedKind::Lost { count, network }, true)]);
        let network = lines.iter().filter(of_network).count();
        assert_eq!(network, WAITING - LEFT_BY_NETWORK + 1);
        // All others, and the first and last.
        assert_eq!(lines.len() - network, LEFT_BY_NETWORK - 1 + 2);
    }
}
