//! A program that runs in a guest: its streams, its signals, its end.
//!
//! Output is held back all the way to the program when it is not read: the
//! channels here are short, the socket behind them is bounded, and vsock's
//! credit does the rest. Input flows within a window that the agent grants, so
//! signals and resizes never wait behind input that the program does not read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flashpan_protocol::agent::{
    ExecInput, ExecOutput, ExitStatus, MAX_DATA, MAX_FRAME, STDIN_WINDOW, TerminalSize,
};
use flashpan_protocol::frame::{self, FrameError};
use flashpan_protocol::phase::Phase;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::driver::{Ended, Shared};
use crate::error::{Error, Result};
use crate::frames::FrameReader;
use crate::sandbox::reason_of_end;

/// Longest frame of an agent: one of output and some bytes around it.
pub(crate) const MAX_OUTPUT_FRAME: usize = MAX_DATA + 4096;

/// Chunks of output, each at most [`MAX_DATA`] bytes, that wait for a reader.
const OUTPUT_CHUNKS: usize = 4;

/// Most bytes of input sent in one frame.
const STDIN_CHUNK: usize = 32 * 1024;

/// How long the end of the VM may take to arrive after a connection broke,
/// before the connection itself is blamed.
const END_NEWS: Duration = Duration::from_secs(3);

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
    control: mpsc::Sender<ExecInput>,
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
        pid: u32,
        reader: FrameReader<OwnedReadHalf>,
        writer: OwnedWriteHalf,
        (stdin, terminal): (bool, bool),
        shared: Arc<Shared>,
        ended: Ended,
    ) -> Self {
        let (stdout_sender, stdout) = mpsc::channel(OUTPUT_CHUNKS);
        let (stderr_sender, stderr) = mpsc::channel(OUTPUT_CHUNKS);
        let (control, control_receiver) = mpsc::channel(8);
        let (input_sender, input) = mpsc::channel(1);
        let (status_sender, status) = oneshot::channel();
        let window = Arc::new(Window::new());
        let (input_closed, is_closed) = watch::channel(());
        let output = OutputPump {
            reader,
            stdout: stdout_sender,
            stderr: stderr_sender,
            window: Arc::clone(&window),
            input_closed: Some(input_closed),
            shared,
            ended,
        };
        let tasks = [
            Task::spawn(output.run(status_sender)),
            Task::spawn(pump_input(writer, control_receiver, stdin.then_some(input))),
        ];
        Self {
            stdin: stdin.then(|| Stdin {
                frames: input_sender,
                window,
                is_closed,
            }),
            stdout: Some(Output::new(stdout)),
            stderr: (!terminal).then(|| Output::new(stderr)),
            pid,
            control,
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
    /// [`Error::VmEnded`] if the VM ended first, [`Error::AgentLost`] or
    /// [`Error::Protocol`] if its agent misbehaved.
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

    /// Sends a signal to the program's process group.
    ///
    /// # Errors
    /// [`Error::AgentLost`] if the program has ended or its connection broke.
    pub async fn signal(&self, signal: i32) -> Result<()> {
        self.send(ExecInput::Signal(signal)).await
    }

    /// Tells the program's terminal its new size.
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub async fn resize(&self, size: TerminalSize) -> Result<()> {
        self.send(ExecInput::Resize(size)).await
    }

    /// Ends the program: SIGTERM to its process group, and SIGKILL to
    /// everything it started when it is still there after `grace`.
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub async fn cancel(&self, grace: Duration) -> Result<()> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.send(ExecInput::Cancel { grace_ms }).await
    }

    async fn send(&self, message: ExecInput) -> Result<()> {
        self.control
            .send(message)
            .await
            .map_err(|_| Error::AgentLost)
    }

    /// Collects all output, at most `limit` bytes of each stream, and waits for
    /// the end. Standard input, if any is left, is closed.
    ///
    /// # Errors
    /// [`Error::OutputTooLong`], which ends the program, and those of
    /// [`Process::wait`].
    pub async fn collect(mut self, limit: usize) -> Result<Collected> {
        drop(self.stdin.take());
        let stdout = collect(self.stdout.take(), limit);
        let stderr = collect(self.stderr.take(), limit);
        let (stdout, stderr) = tokio::try_join!(stdout, stderr)?;
        let status = self.wait().await?;
        Ok(Collected {
            status,
            stdout,
            stderr,
        })
    }
}

/// What [`Process::collect`] collected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// How the program ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

async fn collect(output: Option<Output>, limit: usize) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(mut output) = output {
        while let Some(chunk) = output.next_chunk().await {
            if chunk.len() > limit.saturating_sub(all.len()) {
                return Err(Error::OutputTooLong { limit });
            }
            all.extend_from_slice(&chunk);
        }
    }
    Ok(all)
}

/// How much input the agent still takes.
#[derive(Debug)]
struct Window {
    permits: Semaphore,
    /// Bytes sent and not yet granted again. Kept apart because permits that a
    /// waiting writer has collected so far count nowhere.
    in_flight: AtomicUsize,
}

impl Window {
    fn new() -> Self {
        Self {
            permits: Semaphore::new(to_usize(STDIN_WINDOW)),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// Waits until `bytes` (at most the window) may be sent.
    async fn take(&self, bytes: usize) -> io::Result<()> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        match self.permits.acquire_many(permits).await {
            Ok(permit) => permit.forget(),
            Err(_closed) => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Takes credit from the agent; `None` if that is more than was sent.
    fn grant(&self, bytes: usize) -> Option<()> {
        let less = |in_flight: usize| in_flight.checked_sub(bytes);
        let granted = self
            .in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        granted.ok()?;
        self.permits.add_permits(bytes);
        Some(())
    }
}

/// The standard input of a program.
#[derive(Debug)]
pub struct Stdin {
    frames: mpsc::Sender<Vec<u8>>,
    window: Arc<Window>,
    /// Its sender goes when the program stops reading.
    is_closed: watch::Receiver<()>,
}

impl Stdin {
    /// Writes all of `bytes`, waiting while the program does not read. If the
    /// future is dropped, some of the bytes may have been written.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] if the program no longer reads its input.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(STDIN_CHUNK) {
            self.window.take(chunk.len()).await?;
            if self.frames.send(chunk.to_vec()).await.is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(())
    }

    /// Waits until the program no longer reads its input. Cancel safe.
    pub async fn closed(&self) {
        // Nothing is ever sent, so the only news is that the sender is gone.
        let _ = self.is_closed.clone().changed().await;
    }
}

/// An output stream of a program.
#[derive(Debug)]
pub struct Output {
    chunks: mpsc::Receiver<Vec<u8>>,
    /// What [`AsyncRead`] has left of a chunk.
    rest: Vec<u8>,
}

impl Output {
    fn new(chunks: mpsc::Receiver<Vec<u8>>) -> Self {
        Self {
            chunks,
            rest: Vec::new(),
        }
    }

    /// The next bytes (1 to 65536), or `None` when there will be no more.
    /// Cancel safe.
    pub async fn next_chunk(&mut self) -> Option<Vec<u8>> {
        if !self.rest.is_empty() {
            return Some(std::mem::take(&mut self.rest));
        }
        self.chunks.recv().await
    }

    /// As [`Output::next_chunk`], for a thread that may block.
    ///
    /// # Panics
    /// If called from asynchronous code.
    pub fn blocking_next_chunk(&mut self) -> Option<Vec<u8>> {
        if !self.rest.is_empty() {
            return Some(std::mem::take(&mut self.rest));
        }
        self.chunks.blocking_recv()
    }
}

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.chunks.poll_recv(cx)) {
                Some(chunk) => self.rest = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(self.rest.get(..n).unwrap_or_default());
        self.rest.drain(..n);
        Poll::Ready(Ok(()))
    }
}

/// Takes frames from the agent to where they belong.
struct OutputPump {
    reader: FrameReader<OwnedReadHalf>,
    stdout: mpsc::Sender<Vec<u8>>,
    stderr: mpsc::Sender<Vec<u8>>,
    window: Arc<Window>,
    input_closed: Option<watch::Sender<()>>,
    shared: Arc<Shared>,
    ended: Ended,
}

impl OutputPump {
    async fn run(mut self, status: oneshot::Sender<Result<ExitStatus>>) {
        let result = self.pump().await;
        self.close_input();
        let result = match result {
            Err(Error::AgentLost) => Err(lost(self.ended).await),
            result => result,
        };
        // Nobody may be waiting any more.
        let _ = status.send(result);
    }

    fn close_input(&mut self) {
        self.window.permits.close();
        self.input_closed = None;
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
                    let granted = self.window.grant(to_usize(bytes));
                    granted
                        .ok_or_else(|| broken("it granted more input than was sent".to_owned()))?;
                    continue;
                }
                ExecOutput::StdinClosed => {
                    self.close_input();
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
/// input as it comes, end of file when the input's sender is gone.
async fn pump_input(
    mut writer: OwnedWriteHalf,
    mut control: mpsc::Receiver<ExecInput>,
    mut input: Option<mpsc::Receiver<Vec<u8>>>,
) {
    loop {
        let message = tokio::select! {
            biased;
            message = control.recv() => match message {
                Some(message) => message,
                None => return,
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
    match tokio::time::timeout(END_NEWS, reason_of_end(ended)).await {
        Ok(reason) => Error::VmEnded(reason),
        Err(_) => Error::AgentLost,
    }
}

pub(crate) fn broken(why: String) -> Error {
    Error::Protocol { peer: PEER, why }
}

/// `u32` to `usize` on the 64-bit hosts that KVM guests of ours need.
fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
