//! The two tasks behind a program: one takes what comes from the agent to where
//! it belongs, the other takes input and requests to the agent.

use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::agent::{
    ExecInput, ExecOutput, ExitStatus, MAX_DATA, MAX_FRAME, TerminalSize,
};
use flashpan_protocol::frame::{self, FrameError};
use flashpan_protocol::phase::Phase;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::driver::Ended;
use crate::error::{Error, Result};
use crate::frames::FrameReader;
use crate::sandbox::reason_of_end;
use crate::shared::Shared;
use crate::stdio::InputGate;

/// Longest frame of an agent: one of output and some bytes around it.
pub(crate) const MAX_OUTPUT_FRAME: usize = MAX_DATA + 4096;

/// How long the end of the VM may take to arrive after a connection broke,
/// before the connection itself is blamed: longer than the driver takes to hear
/// the last of a VM, whoever does not read its console.
const END_NEWS: Duration = Duration::from_secs(15);

/// Who is to blame in error messages.
const PEER: &str = "the guest's agent";

/// A task that ends with its owner.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How long a program that has run out of time has between SIGTERM and SIGKILL.
const LIMIT_GRACE: Duration = Duration::from_secs(2);

/// How long its agent may take after that to say that it has ended.
const LIMIT_ANSWER: Duration = Duration::from_secs(5);

/// How long a program may run.
pub(crate) struct TimeLimit {
    /// As it was asked for.
    pub(crate) after: Duration,
    /// When that is over.
    pub(crate) until: Instant,
    /// Takes the request to end the program.
    pub(crate) control: mpsc::Sender<ExecInput>,
}

impl TimeLimit {
    /// Awaits the end of a program, and ends it when its time is up: then that is
    /// the result, whatever becomes of the program.
    async fn keep(self, program: impl Future<Output = Result<ExitStatus>>) -> Result<ExitStatus> {
        let mut program = std::pin::pin!(program);
        tokio::select! {
            biased;
            ended = &mut program => return ended,
            () = tokio::time::sleep_until(self.until) => {}
        }
        let grace_ms = u32::try_from(LIMIT_GRACE.as_millis()).unwrap_or(u32::MAX);
        // An agent that takes no requests ends the program when the connection
        // closes.
        let _ = self.control.try_send(ExecInput::Cancel { grace_ms });
        let _ = timeout(LIMIT_GRACE + LIMIT_ANSWER, program).await;
        Err(Error::ProgramTimeout { after: self.after })
    }
}

/// Takes frames from the agent to where they belong.
pub(crate) struct OutputPump {
    pub(crate) reader: FrameReader<OwnedReadHalf>,
    pub(crate) stdout: mpsc::Sender<Vec<u8>>,
    pub(crate) stderr: mpsc::Sender<Vec<u8>>,
    pub(crate) gate: InputGate,
    pub(crate) shared: Arc<Shared>,
    pub(crate) ended: Ended,
}

impl OutputPump {
    pub(crate) async fn run(
        mut self,
        limit: Option<TimeLimit>,
        status: oneshot::Sender<Result<ExitStatus>>,
    ) {
        let result = match limit {
            Some(limit) => limit.keep(self.pump()).await,
            None => self.pump().await,
        };
        self.gate.close();
        let result = match (result, self.shared.time_up()) {
            (Err(Error::AgentLost), _) => Err(lost(self.ended).await),
            // The guest ended it, because its own time is up.
            (Ok(_), Some(after)) => Err(Error::VmTimeout { after }),
            (result, _) => result,
        };
        // Nobody may be waiting any more.
        let _ = status.send(result);
    }

    async fn pump(&mut self) -> Result<ExitStatus> {
        let mut first_byte = true;
        loop {
            let message = match self.reader.next().await {
                Ok(Some(message)) => message,
                Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated) => {
                    return Err(Error::AgentLost);
                }
                Err(e) => return Err(broken(e.to_string())),
            };
            let (bytes, receiver) = match message {
                ExecOutput::Stdout(bytes) => (bytes, &self.stdout),
                ExecOutput::Stderr(bytes) => (bytes, &self.stderr),
                ExecOutput::StdinCredit(bytes) => {
                    let granted = self.gate.grant(bytes);
                    granted
                        .ok_or_else(|| broken("it granted more input than was sent".to_owned()))?;
                    continue;
                }
                ExecOutput::StdinClosed => {
                    self.gate.close();
                    continue;
                }
                ExecOutput::Exited(status) => {
                    self.shared.mark(Phase::CommandExited);
                    return Ok(status);
                }
                ExecOutput::Started { .. } | ExecOutput::StartFailed(_) => {
                    return Err(broken("it started the program twice".to_owned()));
                }
            };
            if bytes.len() > MAX_DATA {
                return Err(broken(format!(
                    "{} bytes of output in one message",
                    bytes.len()
                )));
            }
            if bytes.is_empty() {
                continue;
            }
            if std::mem::take(&mut first_byte) {
                self.shared.mark(Phase::FirstByte);
            }
            // A stream that the caller has dropped is read and thrown away.
            let _ = receiver.send(bytes).await;
        }
    }
}

/// Takes requests and input, if there is any, to the agent: requests first,
/// then the size of the terminal if it is new, input as it comes, end of file
/// when the input's sender is gone.
pub(crate) async fn pump_input(
    mut writer: OwnedWriteHalf,
    mut control: mpsc::Receiver<ExecInput>,
    mut size: watch::Receiver<Option<TerminalSize>>,
    mut input: Option<mpsc::Receiver<Vec<u8>>>,
) {
    loop {
        let message = tokio::select! {
            biased;
            message = control.recv() => match message {
                Some(message) => message,
                None => return,
            },
            Ok(()) = size.changed() => match *size.borrow_and_update() {
                Some(size) => ExecInput::Resize(size),
                None => continue,
            },
            bytes = next_input(&mut input), if input.is_some() => match bytes {
                Some(bytes) => ExecInput::Stdin(bytes),
                None => {
                    input = None;
                    ExecInput::StdinEof
                }
            },
        };
        // These messages are within the limit by construction. When the
        // connection breaks, the reading side has the reason.
        let Ok(frame) = frame::encode(&message, MAX_FRAME) else {
            return;
        };
        if writer.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn next_input(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => None,
    }
}

/// Why a connection broke: usually because the VM ended, news of which may
/// still be on its way.
pub(crate) async fn lost(ended: Ended) -> Error {
    match timeout(END_NEWS, reason_of_end(ended)).await {
        Ok(reason) => Error::ended(reason),
        Err(_) => Error::AgentLost,
    }
}

pub(crate) fn broken(why: String) -> Error {
    Error::Protocol { peer: PEER, why }
}
