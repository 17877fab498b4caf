//! What happens in a VM, as a stream.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use flashpan_protocol::agent::{
    EVENT_ARGV, EVENT_DIRECTORY, ExitStatus, ProgramEnded, ProgramStarted,
};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::api::{self, Timestamp, shell_quote_args};
use crate::driver::Ended;
use crate::network_event::NetworkActivity;
use crate::secret_event::SecretActivity;
use crate::state::{EventReader, LoggedEvent, LoggedKind};

/// How many events wait for whoever reads slowly.
const WAITING: usize = 1024;

/// How many events before anybody listens are kept for who does first.
const EARLY: usize = 16;

/// Most programs whose ends are awaited, for their names: more than an agent runs.
const PROGRAMS: usize = 512;

/// Something that happened in a VM.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VmEvent {
    /// When the host heard of it.
    pub at: Timestamp,
    /// What happened.
    pub kind: VmEventKind,
}

/// What happened in a VM.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum VmEventKind {
    /// A program was started.
    ExecStarted(Arc<ExecStarted>),
    /// A program has ended.
    ExecEnded(ExecEnded),
    /// Something of the network is over, or was refused.
    Network(Arc<NetworkActivity>),
    /// A secret has another value from its source, or keeps the one that it had.
    Secret(SecretActivity),
    /// At least so many events before this are missing: they came faster than they
    /// were read.
    Lost(u64),
}

/// A program that was started.
///
/// All of it is what the guest's agent says, and a guest in which a program has
/// become root may say anything.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecStarted {
    /// The program's number in its VM.
    pub id: u64,
    /// Its process id in the guest; 0 if it could not be started.
    pub pid: u32,
    /// Each argument, and a NUL after it.
    argv: Vec<u8>,
    /// Whether [`Self::argv`] was longer than 4096 bytes.
    pub truncated: bool,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Working directory.
    pub working_dir: OsString,
}

impl ExecStarted {
    /// The program and its arguments, as far as they are known.
    #[must_use]
    pub fn argv(&self) -> Vec<OsString> {
        let arguments = self.argv.split_inclusive(|byte| *byte == 0);
        let without_end =
            arguments.map(|argument| argument.strip_suffix(b"\0").unwrap_or(argument));
        without_end
            .map(|argument| OsString::from_vec(argument.to_vec()))
            .collect()
    }

    /// The command as one text: what a shell would take for these arguments. What
    /// is not UTF-8 is replaced.
    #[must_use]
    pub fn command(&self) -> String {
        let argv = self.argv();
        let words: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
        shell_quote_args(&words)
    }
}

/// A program that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecEnded {
    /// The program's number in its VM.
    pub id: u64,
    /// Its process id in the guest, which may be another's by now; 0 if it could not be
    /// started.
    pub pid: u32,
    /// How it ended: with 127 if there is no such program, 126 if it cannot be executed,
    /// 125 if it could not be started otherwise.
    pub status: ExitStatus,
    /// How long it ran.
    pub duration: Duration,
    /// What was said when it was started; `None` if that was lost, or was before anybody
    /// listened.
    pub started: Option<Arc<ExecStarted>>,
    /// What was written down of its command.
    command: String,
}

impl ExecEnded {
    /// The same as the API tells it.
    pub(crate) fn to_api(&self) -> api::ExecEvent {
        let command = self.started.as_ref().map(|started| started.command());
        api::ExecEvent {
            command: command.unwrap_or_else(|| self.command.clone()),
            exit_code: match self.status {
                ExitStatus::Code(code) => i32::from(code),
                ExitStatus::Signal(_) => -1,
            },
        }
    }
}

impl VmEvent {
    pub(crate) fn lost(count: u64) -> Self {
        Self::now(VmEventKind::Lost(count))
    }

    pub(crate) fn now(kind: VmEventKind) -> Self {
        Self {
            at: SystemTime::now().into(),
            kind,
        }
    }

    /// The same as an event of the API, which tells of programs when they end, and of
    /// requests and connections but not of questions for names.
    #[must_use]
    pub fn to_api(&self) -> Option<api::Event> {
        let kind = match &self.kind {
            VmEventKind::ExecEnded(ended) => api::EventKind::Exec(ended.to_api()),
            VmEventKind::Network(activity) if activity.scheme != "dns" => {
                api::EventKind::Network(activity.network.clone())
            }
            _ => return None,
        };
        Some(api::Event::new(self.at, kind))
    }
}

/// A stream of events ([`crate::Sandbox::events`]).
#[derive(Debug)]
pub struct Events(Source);

#[derive(Debug)]
enum Source {
    /// Those of a VM of this process, and before them what was kept.
    Heard(VecDeque<VmEvent>, broadcast::Receiver<VmEvent>),
    /// Those of a VM of another's.
    Written(Box<Written>),
    None,
}

/// Events that somebody else writes down.
#[derive(Debug)]
struct Written {
    reader: EventReader,
    ended: Ended,
    /// Whether nobody tells the end of the VM any more.
    over: bool,
    running: Running,
}

impl Events {
    pub(crate) fn written(reader: EventReader, ended: Ended) -> Self {
        Self(Source::Written(Box::new(Written {
            reader,
            ended,
            over: false,
            running: Running::default(),
        })))
    }

    /// The next event; `None` when the guest is gone, or nobody can tell any more: those
    /// of an attached handle end with it. Cancel safe.
    pub async fn next(&mut self) -> Option<VmEvent> {
        let event = match &mut self.0 {
            Source::Heard(early, events) => match early.pop_front() {
                Some(event) => Some(event),
                None => match events.recv().await {
                    Ok(event) => Some(event),
                    Err(RecvError::Lagged(lost)) => Some(VmEvent::lost(lost)),
                    Err(RecvError::Closed) => None,
                },
            },
            Source::Written(events) => events.next().await,
            Source::None => None,
        };
        if event.is_none() {
            self.0 = Source::None;
        }
        event
    }
}

impl Written {
    async fn next(&mut self) -> Option<VmEvent> {
        loop {
            // Seen before the last lines are read.
            let over = self.over || self.ended.borrow().is_some();
            while let Some(logged) = self.reader.available().ok()? {
                if let Some(event) = self.running.event_of(logged) {
                    return Some(event);
                }
            }
            if over {
                return None;
            }
            tokio::select! {
                changed = self.reader.changed() => changed.ok()?,
                told = self.ended.changed() => self.over = told.is_err(),
            }
        }
    }
}

/// The programs that run, by number.
#[derive(Debug, Default)]
struct Running(BTreeMap<u64, Arc<ExecStarted>>);

impl Running {
    fn add(&mut self, started: &Arc<ExecStarted>) {
        // Of an agent that starts more than it can, the oldest are forgotten.
        if self.0.len() >= PROGRAMS {
            self.0.pop_first();
        }
        self.0.insert(started.id, Arc::clone(started));
    }

    /// What was written down, as it was told; `None` if that is of no program.
    fn event_of(&mut self, logged: LoggedEvent) -> Option<VmEvent> {
        let kind = match logged.kind {
            LoggedKind::ExecStarted {
                id,
                pid,
                argv,
                truncated,
                uid,
                gid,
                working_dir,
            } => {
                let mut bytes = Vec::new();
                for argument in &argv {
                    bytes.extend(argument.bytes().filter(|byte| *byte != 0));
                    bytes.push(0);
                }
                let started = Arc::new(ExecStarted {
                    id,
                    pid,
                    argv: bytes,
                    truncated,
                    uid,
                    gid,
                    working_dir: working_dir.into(),
                });
                self.add(&started);
                VmEventKind::ExecStarted(started)
            }
            LoggedKind::Exec {
                exec,
                id,
                pid,
                signal,
                duration_ms,
                ..
            } => VmEventKind::ExecEnded(ExecEnded {
                id,
                pid,
                status: match (signal, u8::try_from(exec.exit_code)) {
                    (Some(signal), _) => ExitStatus::Signal(signal),
                    (None, Ok(code)) => ExitStatus::Code(code),
                    (None, Err(_)) => return None,
                },
                duration: Duration::from_millis(duration_ms),
                started: self.0.remove(&id),
                command: exec.command,
            }),
            LoggedKind::Network { activity, .. } => VmEventKind::Network(Arc::new(*activity)),
            LoggedKind::Secret(activity) => VmEventKind::Secret(activity),
            LoggedKind::Lost { count, .. } => VmEventKind::Lost(count),
            LoggedKind::Vm { .. } => return None,
        };
        Some(VmEvent {
            at: logged.time,
            kind,
        })
    }
}

/// What happened before anybody listened.
#[derive(Debug, Default)]
struct Early {
    events: VecDeque<VmEvent>,
    /// How many more there were.
    lost: u64,
}

impl Early {
    fn add(&mut self, event: VmEvent) {
        match self.events.len() < EARLY {
            true => self.events.push_back(event),
            false => self.lost = self.lost.saturating_add(1),
        }
    }

    fn into_events(mut self) -> VecDeque<VmEvent> {
        if self.lost > 0 {
            self.events.push_back(VmEvent::lost(self.lost));
        }
        self.events
    }
}

/// Where events go.
#[derive(Debug, Default)]
pub(crate) struct Hub(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Since somebody first asked.
    sender: Option<broadcast::Sender<VmEvent>>,
    /// What is kept for who asks first, if something is.
    early: Option<Early>,
    running: Running,
    closed: bool,
}

impl Hub {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change to it is whole at once.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All events from now on.
    pub(crate) fn subscribe(&self) -> Events {
        let mut state = self.state();
        if state.closed {
            return Events(Source::None);
        }
        let early = state.early.take().unwrap_or_default().into_events();
        let sender = state
            .sender
            .get_or_insert_with(|| broadcast::channel(WAITING).0);
        Events(Source::Heard(early, sender.subscribe()))
    }

    /// Keeps what happens from now on for who subscribes first: something is started
    /// before anybody can.
    pub(crate) fn keep(&self) {
        let mut state = self.state();
        if state.sender.is_none() && !state.closed {
            state.early.get_or_insert_default();
        }
    }

    pub(crate) fn started(&self, program: ProgramStarted) {
        let mut argv = Vec::new();
        let mut truncated = program.truncated;
        for argument in program.argv {
            // An agent that keeps to the protocol sends no more.
            if argv.len().saturating_add(argument.len()) >= EVENT_ARGV {
                truncated = true;
                break;
            }
            // Nor any with a NUL.
            argv.extend(argument.iter().filter(|byte| **byte != 0));
            argv.push(0);
        }
        let mut working_dir = program.working_dir.into_vec();
        working_dir.truncate(EVENT_DIRECTORY);
        let started = Arc::new(ExecStarted {
            id: program.id,
            pid: program.pid,
            argv,
            truncated,
            uid: program.uid,
            gid: program.gid,
            working_dir: OsString::from_vec(working_dir),
        });
        let mut state = self.state();
        state.running.add(&started);
        state.tell(VmEventKind::ExecStarted(started));
    }

    pub(crate) fn ended(&self, program: ProgramEnded) {
        let mut state = self.state();
        let started = state.running.0.remove(&program.id);
        state.tell(VmEventKind::ExecEnded(ExecEnded {
            id: program.id,
            pid: program.pid,
            status: program.status,
            duration: Duration::from_micros(program.duration_us),
            started,
            command: String::new(),
        }));
    }

    /// Something of the network. Nothing of it is kept for who listens later: programs
    /// can make any number of connections, and would push out what is told of them.
    pub(crate) fn network(&self, activity: NetworkActivity) {
        let mut state = self.state();
        if state.early.is_none() {
            state.tell(VmEventKind::Network(Arc::new(activity)));
        }
    }

    /// Something of the source of a secret.
    pub(crate) fn secret(&self, activity: SecretActivity) {
        self.state().tell(VmEventKind::Secret(activity));
    }

    pub(crate) fn lost(&self, number: u64) {
        self.state().tell(VmEventKind::Lost(number));
    }

    /// There will be no more.
    pub(crate) fn close(&self) {
        *self.state() = State {
            closed: true,
            ..State::default()
        };
    }
}

impl State {
    fn tell(&mut self, kind: VmEventKind) {
        let event = VmEvent::now(kind);
        if let Some(early) = &mut self.early {
            early.add(event);
        } else if let Some(sender) = &self.sender {
            // It fails only if nobody listens.
            let _ = sender.send(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use flashpan_protocol::agent::Bytes;

    use super::*;

    fn started(id: u64, argv: &[&str]) -> ProgramStarted {
        let bytes = |text: &&str| Bytes::from(text.as_bytes().to_vec());
        ProgramStarted {
            id,
            pid: 7,
            argv: argv.iter().map(bytes).collect(),
            truncated: false,
            uid: 1,
            gid: 2,
            working_dir: Bytes::from(b"/tmp".to_vec()),
        }
    }

    fn ended(id: u64, status: ExitStatus) -> ProgramEnded {
        ProgramEnded {
            id,
            pid: 7,
            status,
            duration_us: 1500,
        }
    }

    #[tokio::test]
    async fn starts_and_ends_come_in_order_and_know_of_each_other() {
        let hub = Hub::default();
        let mut events = hub.subscribe();
        hub.started(started(1, &["sh", "-c", "echo $HOME", ""]));
        hub.ended(ended(1, ExitStatus::Code(3)));
        hub.ended(ended(2, ExitStatus::Signal(9)));
        let first = events.next().await.unwrap();
        assert!(first.to_api().is_none());
        let VmEventKind::ExecStarted(program) = first.kind else {
            panic!("{first:?}")
        };
        assert_eq!(program.argv(), ["sh", "-c", "echo $HOME", ""]);
        assert_eq!(program.command(), "sh -c 'echo $HOME' ''");
        let second = events.next().await.unwrap();
        let json = serde_json::to_value(second.to_api().unwrap()).unwrap();
        assert_eq!(json["type"], "exec");
        assert_eq!(json["exec"]["command"], "sh -c 'echo $HOME' ''");
        assert_eq!(json["exec"]["exit_code"], 3);
        let VmEventKind::ExecEnded(end) = second.kind else {
            panic!("{second:?}")
        };
        assert_eq!(end.started.unwrap(), program);
        assert_eq!(end.duration, Duration::from_micros(1500));
        // Its start was not heard.
        let third = events.next().await.unwrap().to_api().unwrap();
        let json = serde_json::to_value(third).unwrap();
        assert_eq!(json["exec"]["exit_code"], -1);
    }

    #[tokio::test]
    async fn a_slow_reader_learns_how_much_it_lost() {
        let hub = Hub::default();
        let mut events = hub.subscribe();
        for id in 0..WAITING as u64 + 5 {
            hub.ended(ended(id, ExitStatus::Code(0)));
        }
        let first = events.next().await.unwrap();
        assert!(matches!(first.kind, VmEventKind::Lost(5)), "{first:?}");
        let second = events.next().await.unwrap();
        let VmEventKind::ExecEnded(end) = second.kind else {
            panic!("{second:?}")
        };
        assert_eq!(end.id, 5);
        // What the agent could not send is told as well.
        let mut fresh = hub.subscribe();
        hub.lost(8);
        let event = fresh.next().await.unwrap();
        assert!(matches!(event.kind, VmEventKind::Lost(8)), "{event:?}");
    }

    #[tokio::test]
    async fn what_is_started_before_anybody_can_listen_is_told_to_the_first_who_does() {
        let hub = Hub::default();
        hub.keep();
        hub.started(started(1, &["entry"]));
        for id in 2..EARLY as u64 + 4 {
            hub.ended(ended(id, ExitStatus::Code(0)));
        }
        let (mut first, mut second) = (hub.subscribe(), hub.subscribe());
        hub.lost(100);
        let event = first.next().await.unwrap();
        assert!(
            matches!(event.kind, VmEventKind::ExecStarted(_)),
            "{event:?}"
        );
        for _ in 1..EARLY {
            let event = first.next().await.unwrap();
            assert!(matches!(event.kind, VmEventKind::ExecEnded(_)), "{event:?}");
        }
        let event = first.next().await.unwrap();
        assert!(matches!(event.kind, VmEventKind::Lost(3)), "{event:?}");
        for events in [&mut first, &mut second] {
            let event = events.next().await.unwrap();
            assert!(matches!(event.kind, VmEventKind::Lost(100)), "{event:?}");
        }
    }

    #[tokio::test]
    async fn a_guest_that_is_gone_has_no_events() {
        let hub = Hub::default();
        let mut events = hub.subscribe();
        hub.started(started(1, &["x"]));
        hub.close();
        assert!(events.next().await.is_some());
        assert!(events.next().await.is_none());
        assert!(events.next().await.is_none());
        assert!(hub.subscribe().next().await.is_none());
        hub.started(started(2, &["x"]));
    }

    #[test]
    fn an_agent_that_breaks_the_rules_takes_no_memory() {
        let hub = Hub::default();
        for id in 0..10_000 {
            hub.started(started(id, &["x"]));
        }
        assert_eq!(hub.state().running.0.len(), PROGRAMS);
        let many = vec![""; 3 * EVENT_ARGV];
        hub.started(started(20_000, &many));
        let program = Arc::clone(&hub.state().running.0[&20_000]);
        assert!(program.truncated);
        assert_eq!(program.argv().len(), EVENT_ARGV);
        let long = "x".repeat(3 * EVENT_ARGV);
        hub.started(started(20_001, &["x", &long]));
        assert_eq!(hub.state().running.0[&20_001].argv(), ["x"]);
    }
}
