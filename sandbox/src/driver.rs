//! The task that owns a VMM process from its start to its reaping.
//!
//! Everything that concerns the VM as a whole passes here: requests go out in
//! order, events come in, the console is read, and at the end all that is known
//! is made into one [`Exit`]. The task ends only when the process is reaped, or does
//! not end although it was killed.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::agent::BOOT_PORT;
use flashpan_protocol::control::{Event, MAX_PACKET, Request, Stats, VERSION};
use flashpan_protocol::network::NotOpened;
use flashpan_protocol::phase::Phase;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::console::Tail;
use crate::control::{Channel, Packet, Received};
use crate::exit::{Exit, ExitReason, LastWord, classify};
use crate::flows::Flows;
use crate::host_cgroup::HostCgroup;
use crate::opened::{OpenedFlows, Reply};
use crate::shared::Shared;
use crate::spawn::{Child, ChildStatus, KILLED_WITHIN};
use crate::vmm_process::VmmProcess;

/// How long a VMM may take to end after it was asked to, or after its last
/// word, before it is killed.
const END_GRACE: Duration = Duration::from_secs(2);

/// How long a VMM may take to make room for a packet. It reads its control
/// socket whatever its guest does, so one that does not is stuck.
const SEND_WITHIN: Duration = Duration::from_secs(30);

/// Most packets that wait to be sent; events are not read meanwhile, so a VMM
/// that asks much and reads little only stops itself.
const MAX_OUTBOX: usize = 64;

/// How much of the console is read at a time.
const CHUNK: usize = 16 * 1024;

/// What the task is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Connect a stream to a port in the guest; the answer is whether the
    /// guest accepted.
    Connect {
        port: u32,
        stream: OwnedFd,
        reply: oneshot::Sender<bool>,
    },
    /// Connect a stream to a TCP port of the guest's card.
    Open {
        port: u16,
        stream: UnixStream,
        /// The end of it for the VMM.
        theirs: OwnedFd,
        reply: Reply,
    },
    /// Get counters.
    Stats(oneshot::Sender<Stats>),
    /// Let the VM stand still, or go on; the answer is that it does.
    Pause(bool, oneshot::Sender<()>),
}

/// How the end of a VM is made known.
pub(crate) type Ended = watch::Receiver<Option<Arc<Exit>>>;

/// The handles to a running [`Driver`].
#[derive(Debug)]
pub(crate) struct DriverHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    /// Ends the VM, at the first message or when it is dropped. Not a command:
    /// it must not wait behind any.
    pub(crate) kill: mpsc::Sender<()>,
    pub(crate) ended: Ended,
    /// The guest's boot connection, once it is made.
    pub(crate) boot: oneshot::Receiver<OwnedFd>,
    /// Of the VMM. As long as the VM has not ended, it is not that of another process.
    pub(crate) pid: i32,
}

pub(crate) struct Driver {
    child: Child,
    /// Removed after the process has ended.
    _held: Option<HostCgroup>,
    control: Option<Channel>,
    stderr: Option<pipe::Receiver>,
    stderr_tail: Tail,
    console: Option<pipe::Receiver>,
    console_tap: Option<mpsc::Sender<Vec<u8>>>,
    console_tap_done: Option<oneshot::Receiver<()>>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    kill: mpsc::Receiver<()>,
    outbox: VecDeque<Packet>,
    next_id: u64,
    connects: HashMap<u64, oneshot::Sender<bool>>,
    stats: VecDeque<oneshot::Sender<Stats>>,
    /// Who waits to hear that the VM stands still, and that it goes on.
    pauses: VecDeque<oneshot::Sender<()>>,
    resumes: VecDeque<oneshot::Sender<()>>,
    /// What the guest wants to reach.
    flows: Flows,
    /// What the host wants to reach in the guest.
    opened: OpenedFlows,
    boot: Option<oneshot::Sender<OwnedFd>>,
    greeted: bool,
    kill_at: Option<Instant>,
    /// Until when the first packet of the outbox must have been sent.
    send_by: Option<Instant>,
    last_word: LastWord,
    ended: watch::Sender<Option<Arc<Exit>>>,
}

/// Console output on its way to a sink, and the news that all was written.
#[derive(Debug)]
pub(crate) struct ConsoleTap {
    pub(crate) sender: mpsc::Sender<Vec<u8>>,
    pub(crate) done: oneshot::Receiver<()>,
}

impl Driver {
    /// Starts the task for a VMM process.
    pub(crate) fn start(
        vmm: VmmProcess,
        shared: Arc<Shared>,
        tap: Option<ConsoleTap>,
        flows: Flows,
    ) -> DriverHandle {
        let (command_sender, commands) = mpsc::channel(16);
        let (kill_sender, kill) = mpsc::channel(1);
        let (boot_sender, boot) = oneshot::channel();
        let (ended_sender, ended) = watch::channel(None);
        let pid = vmm.child.pid();
        let (console_tap, console_tap_done) = tap.map(|tap| (tap.sender, tap.done)).unzip();
        let driver = Self {
            child: vmm.child,
            _held: vmm.held,
            control: Some(vmm.control),
            stderr: Some(vmm.stderr),
            stderr_tail: Tail::default(),
            console: vmm.console,
            console_tap,
            console_tap_done,
            shared,
            commands,
            kill,
            outbox: VecDeque::from(vmm.opening),
            next_id: 1,
            connects: HashMap::new(),
            stats: VecDeque::new(),
            pauses: VecDeque::new(),
            resumes: VecDeque::new(),
            flows,
            opened: OpenedFlows::new(),
            boot: Some(boot_sender),
            greeted: false,
            kill_at: None,
            send_by: None,
            last_word: LastWord::Nothing,
            ended: ended_sender,
        };
        tokio::spawn(driver.run());
        DriverHandle {
            commands: command_sender,
            kill: kill_sender,
            ended,
            boot,
            pid,
        }
    }

    async fn run(mut self) {
        let mut packet = vec![0_u8; MAX_PACKET];
        let mut console_chunk = vec![0_u8; CHUNK];
        let mut stderr_chunk = vec![0_u8; CHUNK];
        while let Some(control) = &self.control {
            let outgoing = self.outbox.front();
            self.send_by = outgoing.and(self.send_by.or(Instant::now().checked_add(SEND_WITHIN)));
            tokio::select! {
                received = control.receive(&mut packet), if self.outbox.len() < MAX_OUTBOX => {
                    match received {
                        Ok(Some(received)) => self.on_event(received),
                        Ok(None) => self.control = None,
                        Err(e) => self.broken(e.to_string()),
                    }
                }
                sent = send(control, outgoing), if outgoing.is_some() => match sent {
                    Ok(()) => {
                        self.outbox.pop_front();
                        self.send_by = None;
                    }
                    // The reason is in the events that are still to be read, or
                    // in the status of the process.
                    Err(_) => self.outbox.clear(),
                },
                _ = self.kill.recv(), if self.kill_at.is_none() => {
                    self.kill_at = Instant::now().checked_add(END_GRACE);
                    self.request(&Request::Kill, Vec::new());
                }
                Some(command) = self.commands.recv(),
                    if self.kill_at.is_none() && self.outbox.len() < MAX_OUTBOX =>
                {
                    self.on_command(command);
                }
                answer = self.flows.next(), if self.outbox.len() < MAX_OUTBOX => {
                    self.request(&answer, Vec::new());
                }
                id = self.opened.next_to_close(), if self.outbox.len() < MAX_OUTBOX => {
                    self.request(&Request::FlowClose { id }, Vec::new());
                }
                read = read_console(&mut self.console, self.console_tap.as_ref(), &mut console_chunk),
                    if self.console.is_some() =>
                {
                    self.on_console(read, &console_chunk);
                }
                read = read_pipe(&mut self.stderr, &mut stderr_chunk), if self.stderr.is_some() => {
                    self.on_stderr(read, &stderr_chunk);
                }
                () = until(self.kill_at) => {
                    self.child.kill();
                    self.control = None;
                }
                () = until(self.send_by) => {
                    self.broken(format!("it has read nothing for {SEND_WITHIN:?}"));
                }
            }
        }
        self.finish(console_chunk, stderr_chunk).await;
    }

    fn broken(&mut self, why: String) {
        self.last_word = LastWord::Broken(why);
        self.control = None;
    }

    fn request(&mut self, request: &Request, fds: Vec<OwnedFd>) {
        // None of the requests made here can be too long to encode.
        if let Ok(packet) = Packet::new(request, fds) {
            self.outbox.push_back(packet);
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect {
                port,
                stream,
                reply,
            } => {
                let id = self.next_id;
                self.next_id = self.next_id.wrapping_add(1);
                self.connects.insert(id, reply);
                self.request(&Request::Connect { id, port }, vec![stream]);
            }
            Command::Open {
                port,
                stream,
                theirs,
                reply,
            } => {
                let id = self.next_id;
                self.next_id = self.next_id.wrapping_add(1);
                self.opened.ask(id, stream, reply);
                self.request(&Request::FlowOpen { id, port }, vec![theirs]);
            }
            Command::Stats(reply) => {
                self.stats.push_back(reply);
                self.request(&Request::Stats, Vec::new());
            }
            Command::Pause(true, reply) => {
                self.pauses.push_back(reply);
                self.request(&Request::Pause, Vec::new());
            }
            Command::Pause(false, reply) => {
                self.resumes.push_back(reply);
                self.request(&Request::Resume, Vec::new());
            }
        }
    }

    fn on_event(&mut self, Received { event, mut fds }: Received) {
        match event {
            Event::Hello {
                version: VERSION, ..
            } if !self.greeted => self.greeted = true,
            Event::Hello { version, .. } if !self.greeted => self.broken(format!(
                "flashpan-vmm speaks protocol version {version}, this program speaks {VERSION}; \
                 install both from one build"
            )),
            _ if !self.greeted => self.broken("it did not begin with a hello".to_owned()),
            Event::Hello { .. } => self.broken("a second hello".to_owned()),
            Event::Phase(stamp) => self.shared.timeline().mark(stamp.phase, stamp.at_ns),
            Event::UserPhase { code, at_ns } => self.shared.timeline().mark_user(code, at_ns),
            Event::Incoming { id, port } => self.on_incoming(id, port, fds.pop()),
            Event::Connected { id } => self.on_connected(id, true),
            Event::Refused { id } => self.on_connected(id, false),
            Event::FlowAsked {
                id,
                protocol,
                tuple,
            } => {
                if let Some(answer) = self.flows.ask(id, protocol, tuple, fds.pop()) {
                    self.request(&answer, Vec::new());
                }
            }
            Event::FlowEnded { id, how } => {
                if !self.opened.ended(id, how) {
                    self.flows.ended(id, how);
                }
            }
            Event::FlowOpened { id, flow } => self.on_opened(id, Ok(flow)),
            Event::FlowNotOpened { id, why } => self.on_opened(id, Err(why)),
            Event::FlowFinished { id } => self.opened.finished(id),
            Event::Stats(stats) => {
                self.shared.timeline().set_stats((*stats).clone());
                if let Some(reply) = self.stats.pop_front() {
                    // Whoever asked may have given up.
                    let _ = reply.send(*stats);
                }
            }
            // Whoever asked may have given up.
            Event::Paused => drop(self.pauses.pop_front().map(|reply| reply.send(()))),
            Event::Resumed => drop(self.resumes.pop_front().map(|reply| reply.send(()))),
            Event::BootFailed(failure) => {
                self.last_word = LastWord::BootFailed(failure);
                self.control = None;
            }
            Event::Exited(report) => {
                let mut timeline = self.shared.timeline();
                timeline.mark(Phase::Exit, report.at_ns);
                timeline.set_stats(report.stats.clone());
                drop(timeline);
                self.last_word = LastWord::Exited(report);
                self.control = None;
            }
        }
    }

    /// The guest connects out: only its PID 1 may, once.
    fn on_incoming(&mut self, id: u64, port: u32, stream: Option<OwnedFd>) {
        match (self.boot.take_if(|_| port == BOOT_PORT), stream) {
            (Some(boot), Some(stream)) => {
                self.request(&Request::Accept { id }, Vec::new());
                let _ = boot.send(stream);
            }
            (Some(_), None) => self.broken("a connection came without its descriptor".to_owned()),
            (None, _) => self.request(&Request::Reject { id }, Vec::new()),
        }
    }

    fn on_connected(&mut self, id: u64, accepted: bool) {
        match self.connects.remove(&id) {
            // Whoever asked may have given up.
            Some(reply) => drop(reply.send(accepted).ok()),
            None => self.broken(format!(
                "an answer to connection {id}, which nobody asked for"
            )),
        }
    }

    fn on_opened(&mut self, id: u64, answer: Result<u64, NotOpened>) {
        if !self.opened.answered(id, answer) {
            self.broken(format!("an answer to flow {id}, which nobody asked for"));
        }
    }

    fn on_console(&mut self, read: usize, chunk: &[u8]) {
        let bytes = chunk.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            self.console = None;
            return;
        }
        self.shared.add_console(bytes);
        if let Some(tap) = &self.console_tap {
            // `read_console` made sure that there is room.
            let _ = tap.try_send(bytes.to_vec());
        }
    }

    fn on_stderr(&mut self, read: usize, chunk: &[u8]) {
        match chunk.get(..read).unwrap_or_default() {
            [] => self.stderr = None,
            bytes => self.stderr_tail.push(bytes),
        }
    }

    /// Waits for the process to end, killing it if it takes too long, and tells
    /// everybody how it all ended.
    async fn finish(mut self, mut chunk: Vec<u8>, mut stderr: Vec<u8>) {
        self.connects.clear();
        self.opened.clear();
        self.stats.clear();
        self.pauses.clear();
        self.resumes.clear();

        let ended = timeout(END_GRACE, self.drain(&mut chunk, &mut stderr)).await;
        if ended.is_err() {
            self.child.kill();
        }
        let status = self.child.wait_at_most(KILLED_WITHIN).await;
        let gone = status != ChildStatus::StillThere;
        if ended.is_err() && gone {
            // With the process gone both pipes end, whatever held them up.
            let _ = timeout(END_GRACE, self.drain(&mut chunk, &mut stderr)).await;
        }
        self.console_tap = None;
        if let Some(done) = self.console_tap_done.take() {
            // The sink may be a pipe that nobody reads.
            let _ = timeout(END_GRACE, done).await;
        }
        if gone {
            // Its end of the connection is closed by now; what it said before is
            // still on its way.
            let _ = timeout(END_GRACE, self.shared.heard_all()).await;
        }
        // Flows tell of themselves when they end, and nobody can be told after the last event.
        self.flows.end().await;
        self.shared.events.close();
        self.shared.mark(Phase::Exit);

        let console = self.shared.console();
        let killed = self.kill_at.is_some();
        let stderr = self.stderr_tail.bytes();
        let reason = classify(&self.last_word, killed, &status, &console, &stderr)
            .explained_by(self.shared.take_word())
            .at_its_limit(self.shared.time_up());
        let reason = match gone {
            true => reason,
            false => ExitReason::VmmStuck {
                pid: self.child.pid(),
                message: reason.to_string(),
            },
        };
        let stats = match self.last_word {
            LastWord::Exited(report) => Some(report.stats),
            _ => None,
        };
        self.ended.send_replace(Some(Arc::new(Exit {
            reason,
            console,
            stats,
        })));
    }

    /// Reads what is left in the pipes, and waits for the process.
    async fn drain(&mut self, chunk: &mut [u8], stderr_chunk: &mut [u8]) {
        while self.console.is_some() || self.stderr.is_some() {
            tokio::select! {
                read = read_console(&mut self.console, self.console_tap.as_ref(), chunk),
                    if self.console.is_some() => self.on_console(read, chunk),
                read = read_pipe(&mut self.stderr, stderr_chunk),
                    if self.stderr.is_some() => self.on_stderr(read, stderr_chunk),
            }
        }
        self.child.wait().await;
    }
}

/// Waits until `deadline`, for ever if there is none.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn send(control: &Channel, packet: Option<&Packet>) -> io::Result<()> {
    match packet {
        Some(packet) => control.send(packet).await,
        None => Ok(()),
    }
}

/// Reads the console when its sink, if there is one, has room for more.
async fn read_console(
    console: &mut Option<pipe::Receiver>,
    tap: Option<&mpsc::Sender<Vec<u8>>>,
    chunk: &mut [u8],
) -> usize {
    if let Some(tap) = tap {
        // A sink that has failed takes nothing more; the tail still wants it.
        let _ = tap.reserve().await;
    }
    read_pipe(console, chunk).await
}

/// Reads what there is; 0 is the end, and so is an error. Cancel safe.
async fn read_pipe(pipe: &mut Option<pipe::Receiver>, chunk: &mut [u8]) -> usize {
    match pipe {
        Some(pipe) => pipe.read(chunk).await.unwrap_or(0),
        None => 0,
    }
}
