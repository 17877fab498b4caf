//! One exec connection: the conversation of [`flashpan_protocol::agent`] as a
//! state machine that never blocks.
//!
//! ```text
//! Waiting ──Start──► Running ──leader ended──► Emptying ──group empty──► Draining ──Exited──► Flushing ──► Done
//!    │                  │ Cancel, peer gone: SIGTERM, grace, SIGKILL       (output)              ▲
//!    └──bad request─────┴──execve failed: StartFailed──────────────────────────────────────────┘
//! ```
//!
//! When the supervisor reads slowly, output stays in the pipes: they are not
//! read while more than [`QUEUE_HIGH`] bytes wait to be sent.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use flashpan_protocol::agent::{
    ExecInput, ExecOutput, ExecRequest, ExitStatus, ProgramEnded, ProgramStarted, StartFailure,
    StartFailureKind,
};
use nix::libc;
use nix::sys::epoll::EpollFlags;

use crate::agent::{Shared, Source, token};
use crate::connection::{Connection, Received};
use crate::events;
use crate::plan::Plan;
use crate::run::{Launch, Remains, Run};
use crate::stdio::{Output, Piece};
use crate::users::Accounts;

/// Output is not read while this much waits for the supervisor.
const QUEUE_HIGH: usize = 256 * 1024;

/// How long a connection may take to say what it wants.
const START_WITHIN: Duration = Duration::from_secs(10);

/// Between SIGTERM and SIGKILL when the supervisor has gone away.
const GONE_GRACE: Duration = Duration::from_secs(5);

/// How long processes may take to die of SIGKILL before they are given up.
const KILL_WITHIN: Duration = Duration::from_secs(10);

/// Where the conversation is.
#[derive(Debug)]
enum Stage {
    Waiting,
    Running(Box<Run>),
    /// The leader has ended; what it left behind is being ended.
    Emptying(Box<Run>),
    /// The last output is on its way into the queue.
    Draining(Box<Run>),
    /// The last frame is in the queue.
    Flushing,
    Done,
}

/// How far the end of the program was pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pressure {
    None,
    /// SIGTERM was sent, SIGKILL follows at the deadline.
    Asked,
    /// SIGKILL was sent, at the deadline it is given up.
    Killed,
}

/// An exec connection.
#[derive(Debug)]
pub(crate) struct Exec {
    id: u64,
    connection: Connection,
    stage: Stage,
    pressure: Pressure,
    deadline: Option<Instant>,
    /// [`ExecOutput::StartFailed`] was sent: nothing else follows.
    failed: bool,
    news: News,
}

/// What the supervisor is told of the program by itself.
#[derive(Debug)]
enum News {
    /// Nothing, or all of it.
    None,
    /// That it was started, when it is.
    Start(Box<ProgramStarted>),
    /// That it has ended, when it has; it runs since then.
    End(Instant),
}

impl Exec {
    /// Takes a connection on which nothing was said yet.
    pub(crate) fn new(id: u64, socket: OwnedFd, shared: &Shared) -> nix::Result<Self> {
        let mut connection = Connection::new(&shared.poller, socket, token(id, Source::Socket));
        connection.watch()?;
        Ok(Self {
            id,
            connection,
            stage: Stage::Waiting,
            pressure: Pressure::None,
            deadline: Some(Instant::now() + START_WITHIN),
            failed: false,
            news: News::None,
        })
    }

    /// Turns the connection down.
    pub(crate) fn refuse(&mut self, failure: StartFailure) {
        self.fail(failure);
        self.finish_event();
    }

    /// When [`Exec::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether it can be dropped.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// The number of its connection.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether `pid` is the leader of its program and not reaped yet.
    pub(crate) fn leads(&self, pid: i32) -> bool {
        self.run()
            .is_some_and(|run| run.pid() == pid && run.exit.is_none())
    }

    fn run(&self) -> Option<&Run> {
        match &self.stage {
            Stage::Running(run) | Stage::Emptying(run) | Stage::Draining(run) => Some(run),
            _ => None,
        }
    }

    fn run_mut(&mut self) -> Option<&mut Run> {
        match &mut self.stage {
            Stage::Running(run) | Stage::Emptying(run) | Stage::Draining(run) => Some(run),
            _ => None,
        }
    }

    /// Something has happened to `source`.
    pub(crate) fn handle(&mut self, source: Source, events: EpollFlags, shared: &mut Shared) {
        match source {
            Source::Socket => self.on_socket(events, shared),
            Source::Status => self.on_status(shared),
            Source::Child => {
                // What became of execve comes before how it ended.
                self.on_status(shared);
                if let Some(run) = self.run_mut() {
                    run.reap();
                    run.end_tracers();
                }
            }
            Source::Stdin => self.on_stdin(events),
            Source::Stdout => self.on_output(Source::Stdout, shared),
            Source::Stderr => self.on_output(Source::Stderr, shared),
            // What it means is looked at below.
            Source::Group | Source::Local => {}
        }
        self.advance(shared);
    }

    /// The leader has ended.
    pub(crate) fn child_ended(&mut self, shared: &mut Shared) {
        self.handle(Source::Child, EpollFlags::EPOLLIN, shared);
    }

    /// Asks the program to end and kills it after `grace`.
    pub(crate) fn cancel(&mut self, grace: Duration) {
        let deadline = Instant::now().checked_add(grace);
        let Some(run) = self.run_mut() else {
            return;
        };
        run.linger = false;
        run.terminate();
        match self.pressure {
            Pressure::None => {
                self.pressure = Pressure::Asked;
                self.deadline = deadline;
            }
            // The shorter of the two.
            Pressure::Asked => self.deadline = self.deadline.min(deadline),
            Pressure::Killed => {}
        }
    }

    /// The deadline may have passed.
    pub(crate) fn expire(&mut self, now: Instant, shared: &mut Shared) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.deadline = None;
        match (&self.stage, self.pressure) {
            (Stage::Waiting, _) => self.connection.close(),
            (_, Pressure::None | Pressure::Asked) => self.kill(),
            (_, Pressure::Killed) => {
                if let Some(run) = self.run_mut() {
                    run.abandon();
                    shared.leftovers.extend(run.give_up_group());
                }
            }
        }
        self.advance(shared);
    }

    fn kill(&mut self) {
        if let Some(run) = self.run_mut() {
            run.linger = false;
            run.kill();
            self.pressure = Pressure::Killed;
            self.deadline = Some(Instant::now() + KILL_WITHIN);
        }
    }

    /// The peer broke the protocol: it is cut off and its program killed.
    fn cut_off(&mut self) {
        self.connection.close();
        self.kill();
    }

    fn on_socket(&mut self, events: EpollFlags, shared: &mut Shared) {
        if events.contains(EpollFlags::EPOLLOUT) {
            self.connection.flush();
        }
        if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
            && self.connection.receive(&mut shared.scratch) == Received::Bytes
        {
            self.messages(shared);
        }
    }

    fn messages(&mut self, shared: &mut Shared) {
        loop {
            match self.connection.next::<ExecInput>() {
                Ok(Some(message)) => {
                    if !self.message(message, shared) {
                        return self.cut_off();
                    }
                }
                Ok(None) => return,
                Err(_) => return self.cut_off(),
            }
        }
    }

    /// Returns whether the message is allowed.
    fn message(&mut self, message: ExecInput, shared: &mut Shared) -> bool {
        let run = match (&mut self.stage, message) {
            (Stage::Waiting, ExecInput::Start(request)) => {
                self.start(*request, shared);
                return true;
            }
            (Stage::Waiting, _) => return false,
            // Too late to matter; the peer cannot know yet.
            (Stage::Flushing | Stage::Done, _) => return true,
            (Stage::Running(run) | Stage::Emptying(run) | Stage::Draining(run), message) => {
                (run, message)
            }
        };
        match run {
            (_, ExecInput::Start(_)) => return false,
            (run, ExecInput::Stdin(bytes)) => {
                if run.input.push(&bytes).is_err() {
                    return false;
                }
                self.give_input();
            }
            (run, ExecInput::StdinEof) => {
                run.input.end();
                self.give_input();
            }
            (run, ExecInput::Signal(signal)) => {
                if !(1..=libc::SIGRTMAX()).contains(&signal) {
                    return false;
                }
                run.signal(signal);
            }
            (run, ExecInput::Resize(size)) => run.resize(size),
            (_, ExecInput::Cancel { grace_ms }) => {
                self.cancel(Duration::from_millis(u64::from(grace_ms)));
            }
        }
        true
    }

    fn start(&mut self, mut request: ExecRequest, shared: &mut Shared) {
        self.deadline = None;
        request.env.extend(shared.variables.iter().cloned());
        let started = Plan::new(request, &Accounts::load(&shared.anchors)).and_then(|plan| {
            self.news = News::Start(Box::new(events::started(self.id, &plan)));
            Run::start(plan, self.id, shared)
        });
        match started {
            Ok(run) => {
                shared.run_started();
                self.stage = Stage::Running(Box::new(run));
            }
            Err(failure) => {
                self.tell_failure(failure.kind, shared);
                self.fail(failure);
            }
        }
    }

    /// Tells that the program could not be started: as one that ended at once, as it
    /// does for a shell. A request that is no program's is told to who made it only.
    fn tell_failure(&mut self, kind: StartFailureKind, shared: &mut Shared) {
        let News::Start(started) = std::mem::replace(&mut self.news, News::None) else {
            return;
        };
        shared.events.started(started);
        shared.events.ended(ProgramEnded {
            id: self.id,
            pid: 0,
            status: ExitStatus::Code(match kind {
                StartFailureKind::NotFound => 127,
                StartFailureKind::NotExecutable => 126,
                StartFailureKind::BadRequest | StartFailureKind::Resources => 125,
            }),
            duration_us: 0,
        });
    }

    fn fail(&mut self, failure: StartFailure) {
        self.connection.send(&ExecOutput::StartFailed(failure));
        self.failed = true;
        if self.run().is_none() {
            self.deadline = None;
            self.stage = Stage::Flushing;
        }
    }

    fn on_status(&mut self, shared: &mut Shared) {
        let Some(run) = self.run_mut() else { return };
        if run.is_launched() {
            return;
        }
        match run.launch() {
            Launch::Pending => {}
            Launch::Failed(failure) => {
                self.tell_failure(failure.kind, shared);
                self.fail(failure);
            }
            Launch::Started => {
                let pid = run.pid().unsigned_abs();
                self.connection.send(&ExecOutput::Started { pid });
                if let News::Start(mut started) = std::mem::replace(&mut self.news, News::None) {
                    started.pid = pid;
                    shared.events.started(started);
                    self.news = News::End(Instant::now());
                }
                self.give_input();
            }
        }
    }

    fn on_stdin(&mut self, events: EpollFlags) {
        let Some(run) = self.run_mut() else { return };
        if run.input.closed_by_program(events) {
            self.connection.send(&ExecOutput::StdinClosed);
        } else {
            self.give_input();
        }
    }

    fn give_input(&mut self) {
        let Some(run) = self.run_mut() else { return };
        if !run.is_launched() {
            return;
        }
        let closed = run.input.pump();
        let credit = run.input.take_credit();
        if let Some(credit) = credit {
            self.connection.send(&ExecOutput::StdinCredit(credit));
        }
        if closed {
            self.connection.send(&ExecOutput::StdinClosed);
        }
    }

    fn on_output(&mut self, source: Source, shared: &mut Shared) {
        let (Stage::Running(run) | Stage::Emptying(run) | Stage::Draining(run)) = &mut self.stage
        else {
            return;
        };
        // An output that is not known to end is read once per event.
        match source {
            Source::Stderr => {
                if let Some(errors) = &mut run.errors {
                    forward(
                        errors,
                        ExecOutput::Stderr,
                        &mut self.connection,
                        &mut shared.scratch,
                    );
                }
            }
            _ => {
                forward(
                    &mut run.output,
                    ExecOutput::Stdout,
                    &mut self.connection,
                    &mut shared.scratch,
                );
            }
        }
    }

    /// Goes as far as the state of things allows and says what to wait for.
    fn advance(&mut self, shared: &mut Shared) {
        if self.connection.is_closed() && self.pressure == Pressure::None {
            self.cancel(GONE_GRACE);
        }
        self.end_program(shared);
        if let Stage::Draining(run) = &mut self.stage
            && drain(run, &mut self.connection, &mut shared.scratch)
        {
            if let (Some(status), false) = (run.exit, self.failed) {
                self.connection.send(&ExecOutput::Exited(status));
            }
            self.deadline = None;
            self.stage = Stage::Flushing;
        }
        self.finish_event();
    }

    /// From the leader's end to the last output.
    fn end_program(&mut self, shared: &mut Shared) {
        if let Stage::Running(run) = &self.stage
            && run.exit.is_some()
            && run.is_launched()
        {
            let Stage::Running(mut run) = std::mem::replace(&mut self.stage, Stage::Done) else {
                return;
            };
            run.input.close();
            if let (News::End(since), Some(status)) = (&self.news, run.exit) {
                let microseconds = since.elapsed().as_micros();
                shared.events.ended(ProgramEnded {
                    id: self.id,
                    pid: run.pid().unsigned_abs(),
                    status,
                    duration_us: u64::try_from(microseconds).unwrap_or(u64::MAX),
                });
                self.news = News::None;
            }
            if run.linger {
                shared.leftovers.extend(run.give_up_group());
            }
            self.stage = Stage::Emptying(run);
            // After Cancel, what the leader leaves behind has the rest of the
            // grace period; otherwise it has none.
            let id = self.id;
            if self.pressure == Pressure::None
                && self
                    .run_mut()
                    .is_some_and(|run| run.clear_group(id, shared) == Remains::Processes)
            {
                self.kill();
            }
        }
        if let Stage::Emptying(run) = &mut self.stage
            && run.clear_group(self.id, shared) == Remains::None
        {
            let Stage::Emptying(mut run) = std::mem::replace(&mut self.stage, Stage::Done) else {
                return;
            };
            self.deadline = None;
            run.leave_namespace();
            shared.run_ended(run.linger);
            run.output.finish();
            if let Some(errors) = &mut run.errors {
                errors.finish();
            }
            self.stage = Stage::Draining(run);
        }
    }

    fn finish_event(&mut self) {
        let idle = self.connection.is_closed() || self.connection.queued() == 0;
        if matches!(self.stage, Stage::Flushing) && idle
            || matches!(self.stage, Stage::Waiting) && self.connection.is_closed()
        {
            self.stage = Stage::Done;
            return;
        }
        let room = self.connection.queued() < QUEUE_HIGH;
        let watched = self.connection.watch();
        let run_watched = self.run_mut().map_or(Ok(()), |run| run.watch(room));
        if watched.and(run_watched).is_err() && self.pressure != Pressure::Killed {
            // The kernel has no memory for another watch: the connection
            // cannot go on, the others can.
            self.cut_off();
        }
    }
}

/// Passes one piece of output on. Returns whether there may be more.
fn forward(
    output: &mut Output,
    frame: fn(Vec<u8>) -> ExecOutput,
    connection: &mut Connection,
    scratch: &mut [u8],
) -> bool {
    match output.read(scratch) {
        Piece::Bytes(n) => {
            // Without a peer it is thrown away: the program may still want to
            // say something while it ends, and must not fail for it.
            if !connection.is_closed() {
                connection.send(&frame(scratch.get(..n).unwrap_or_default().to_vec()));
            }
            true
        }
        Piece::Nothing => true,
        Piece::End => false,
    }
}

/// Passes the last output on, as far as there is room. Returns whether that
/// was all.
fn drain(run: &mut Run, connection: &mut Connection, scratch: &mut [u8]) -> bool {
    let outputs = [
        (
            Some(&mut run.output),
            ExecOutput::Stdout as fn(Vec<u8>) -> ExecOutput,
        ),
        (run.errors.as_mut(), ExecOutput::Stderr),
    ];
    for (output, frame) in outputs {
        let Some(output) = output else { continue };
        while !output.is_done() {
            if connection.queued() >= QUEUE_HIGH {
                return false;
            }
            forward(output, frame, connection, scratch);
        }
    }
    true
}

#[cfg(test)]
mod tests;
