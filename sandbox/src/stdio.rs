//! The streams of a program in a guest.
//!
//! Both directions are held back: output by short channels, input by a window
//! that the agent grants.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use flashpan_protocol::agent::STDIN_WINDOW;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{Semaphore, mpsc, watch};

/// Chunks of output, each at most [`MAX_DATA`] bytes, that wait for a reader.
const OUTPUT_CHUNKS: usize = 4;

/// Most bytes of input sent in one frame.
const STDIN_CHUNK: usize = 32 * 1024;

/// An output stream: where chunks go in, and where the caller takes them out.
pub(crate) fn output() -> (mpsc::Sender<Vec<u8>>, Output) {
    let (sender, chunks) = mpsc::channel(OUTPUT_CHUNKS);
    let rest = Vec::new();
    (sender, Output { chunks, rest })
}

/// An input stream: the caller's end, the chunks that are to be sent, and what
/// lets them through.
pub(crate) fn input() -> (Stdin, mpsc::Receiver<Vec<u8>>, InputGate) {
    let (frames, chunks) = mpsc::channel(1);
    let (open, is_closed) = watch::channel(());
    let window = Arc::new(Window::new());
    let gate = InputGate {
        window: Arc::clone(&window),
        open: Some(open),
    };
    (
        Stdin {
            frames,
            window,
            is_closed,
        },
        chunks,
        gate,
    )
}

/// The agent's say over the input of its program.
#[derive(Debug)]
pub(crate) struct InputGate {
    window: Arc<Window>,
    open: Option<watch::Sender<()>>,
}

impl InputGate {
    /// The program took this much; `None` if that is more than was sent.
    pub(crate) fn grant(&self, bytes: u32) -> Option<()> {
        self.window.grant(to_usize(bytes))
    }

    /// The program takes no more. Nothing happens the second time.
    pub(crate) fn close(&mut self) {
        self.window.permits.close();
        self.open = None;
    }
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

/// `u32` to `usize` on the 64-bit hosts that KVM guests of ours need.
fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
