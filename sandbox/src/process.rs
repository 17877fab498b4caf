//! A program that runs in a guest: its streams, its signals, its end.
//!
//! Output is held back all the way to the program when it is not read: the
//! channels here are short, the socket behind them is bounded, and vsock's
//! credit does the rest. Input flows within a window that the agent grants, so
//! signals and resizes never wait behind input that the program does not read.

use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::agent::{ExecInput, ExitStatus, TerminalSize};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::driver::Ended;
use crate::error::{Error, Result};
use crate::frames::FrameReader;
use crate::pump::{OutputPump, Task, TimeLimit, pump_input};
use crate::shared::Shared;
use crate::stdio::{self, Output, Stdin};

/// Signals that wait for an agent that does not take them.
const REQUESTS: usize = 64;

/// A running program. Dropping it ends the program: the agent sends SIGTERM to
/// its process group, then SIGKILL to everything it started.
#[derive(Debug)]
pub struct Process {
    /// The program's standard input, if it was asked for. Dropping it is end of
    /// file.
    pub stdin: Option<Stdin>,
    /// The program's standard output, or all output on a terminal. Whoever
    /// holds it has to read it or drop it, or the program stops.
    pub stdout: Option<Output>,
    /// The program's standard error; `None` on a terminal. As `stdout`.
    pub stderr: Option<Output>,
    pid: u32,
    began: Instant,
    control: mpsc::Sender<ExecInput>,
    size: watch::Sender<Option<TerminalSize>>,
    status: Status,
    _tasks: [Task; 2],
}

#[derive(Debug)]
enum Status {
    Pending(oneshot::Receiver<Result<ExitStatus>>),
    Known(ExitStatus),
    /// The error was already returned.
    Lost,
}

impl Process {
    /// Takes over a connection on which the agent has said `Started`.
    pub(crate) fn new(
        (pid, began): (u32, Instant),
        reader: FrameReader<OwnedReadHalf>,
        writer: OwnedWriteHalf,
        (stdin, terminal): (bool, bool),
        limit: Option<(Duration, Instant)>,
        shared: Arc<Shared>,
        ended: Ended,
    ) -> Self {
        let (stdout_sender, stdout) = stdio::output();
        let (stderr_sender, stderr) = stdio::output();
        let (input, frames, gate) = stdio::input();
        let (control, control_receiver) = mpsc::channel(REQUESTS);
        let (size, new_size) = watch::channel(None);
        let (status_sender, status) = oneshot::channel();
        let limit = limit.map(|(after, until)| TimeLimit {
            after,
            until,
            control: control.clone(),
        });
        let output = OutputPump {
            reader,
            stdout: stdout_sender,
            stderr: stderr_sender,
            gate,
            shared,
            ended,
        };
        let tasks = [
            Task::spawn(output.run(limit, status_sender)),
            Task::spawn(pump_input(
                writer,
                control_receiver,
                new_size,
                stdin.then_some(frames),
            )),
        ];
        Self {
            stdin: stdin.then_some(input),
            stdout: Some(stdout),
            stderr: (!terminal).then_some(stderr),
            pid,
            began,
            control,
            size,
            status: Status::Pending(status),
            _tasks: tasks,
        }
    }

    /// The program's process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the program has ended and all its output was received. Its
    /// output has to be read meanwhile, or dropped. Cancel safe.
    ///
    /// # Errors
    /// [`Error::VmEnded`] if the VM ended first, [`Error::ProgramTimeout`] and
    /// [`Error::VmTimeout`] if the time of the one or the other is up,
    /// [`Error::AgentLost`] or [`Error::Protocol`] if its agent misbehaved.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        let status = match &mut self.status {
            Status::Pending(receiver) => receiver.await.unwrap_or(Err(Error::AgentLost)),
            Status::Known(status) => return Ok(*status),
            Status::Lost => return Err(Error::AgentLost),
        };
        self.status = match &status {
            Ok(status) => Status::Known(*status),
            Err(_) => Status::Lost,
        };
        status
    }

    /// Sends a signal to the program's process group. Does not wait.
    ///
    /// # Errors
    /// [`Error::AgentLost`] if the program has ended or its connection broke,
    /// [`Error::AgentBusy`] if the agent takes no requests any more.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.send(ExecInput::Signal(signal))
    }

    /// Tells the program's terminal its new size. Does not wait; of sizes that
    /// come faster than the agent takes them only the last counts.
    ///
    /// # Errors
    /// [`Error::AgentLost`] if the program has ended or its connection broke.
    pub fn resize(&self, size: TerminalSize) -> Result<()> {
        let told = self.size.send(Some(size));
        told.map_err(|_| Error::AgentLost)
    }

    /// Ends the program: SIGTERM to its process group, and SIGKILL to
    /// everything it started when it is still there after `grace`. Does not
    /// wait for it.
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn cancel(&self, grace: Duration) -> Result<()> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.send(ExecInput::Cancel { grace_ms })
    }

    fn send(&self, message: ExecInput) -> Result<()> {
        self.control.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) => Error::AgentBusy,
            TrySendError::Closed(_) => Error::AgentLost,
        })
    }

    /// Collects all output, at most `limit` bytes of each stream, and waits for
    /// the end. Standard input, if any is left, is closed.
    ///
    /// # Errors
    /// [`Error::OutputTooLong`], which ends the program, and those of
    /// [`Process::wait`].
    pub async fn collect(self, limit: usize) -> Result<Collected> {
        let (mut stdout, mut stderr, began) = (Vec::new(), Vec::new(), self.began);
        let status = self.collect_into(&mut stdout, &mut stderr, limit).await?;
        Ok(Collected {
            status,
            stdout,
            stderr,
            duration: began.elapsed(),
        })
    }

    /// The same, but what was written is there also if the program does not end by itself,
    /// as when its time is up.
    ///
    /// # Errors
    /// As [`Process::collect`].
    pub async fn collect_into(
        mut self,
        stdout: &mut Vec<u8>,
        stderr: &mut Vec<u8>,
        limit: usize,
    ) -> Result<ExitStatus> {
        drop(self.stdin.take());
        let stdout = collect(self.stdout.take(), stdout, limit);
        let stderr = collect(self.stderr.take(), stderr, limit);
        tokio::try_join!(stdout, stderr)?;
        self.wait().await
    }
}

/// What [`Process::collect`] collected; [`crate::api::ExecResult`] is made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collected {
    /// How the program ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// From the call of [`crate::Sandbox::exec`] until its end and all its output were
    /// here.
    pub duration: Duration,
}

async fn collect(output: Option<Output>, all: &mut Vec<u8>, limit: usize) -> Result<()> {
    if let Some(mut output) = output {
        while let Some(chunk) = output.next_chunk().await {
            if chunk.len() > limit.saturating_sub(all.len()) {
                return Err(Error::OutputTooLong { limit });
            }
            all.extend_from_slice(&chunk);
        }
    }
    Ok(())
}
