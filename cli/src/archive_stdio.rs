//! Archives on our standard streams, for whoever must not be blocked by them.
//!
//! As in [`crate::stdio`], a thread of its own serves each: the other end may take or
//! give nothing for as long as it likes, and a signal still ends the command.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::stdio::Patient;

/// How much is read at a time, and most that is written.
const CHUNK: usize = 64 * 1024;

/// An archive that comes on our standard input.
#[derive(Debug)]
pub(crate) struct Input {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    taken: usize,
}

impl Input {
    /// What comes on standard input, which must not be a terminal.
    pub(crate) fn stdin() -> Result<Self, Failure> {
        if io::stdin().is_terminal() {
            return Err(Failure::new(
                "standard input is a terminal, and an archive is wanted; use `<` or a pipe",
            ));
        }
        Self::of(io::stdin().as_fd())
            .map_err(|e| Failure::new(format!("cannot read standard input: {e}")))
    }

    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut from = Patient::new(fd)?;
        let (sender, chunks) = mpsc::channel(1);
        thread::Builder::new()
            .name("archive".to_owned())
            .spawn(move || {
                let mut buffer = vec![0; CHUNK];
                loop {
                    let read = from.read(&mut buffer);
                    let read = read.map(|n| buffer.get(..n).unwrap_or_default().to_vec());
                    let is_last = read.as_ref().map_or(true, Vec::is_empty);
                    // Nobody may want it any more.
                    if sender.blocking_send(read).is_err() || is_last {
                        break;
                    }
                }
            })?;
        Ok(Self {
            chunks,
            chunk: Vec::new(),
            taken: 0,
        })
    }
}

impl AsyncRead for Input {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.taken == self.chunk.len() {
            match ready!(self.chunks.poll_recv(context)) {
                Some(Ok(chunk)) => (self.chunk, self.taken) = (chunk, 0),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                // It has ended before.
                None => return Poll::Ready(Ok(())),
            }
        }
        let left = self.chunk.get(self.taken..).unwrap_or_default();
        let now = left.get(..buffer.remaining()).unwrap_or(left);
        buffer.put_slice(now);
        let taken = now.len();
        self.taken += taken;
        Poll::Ready(Ok(()))
    }
}

/// An archive that goes to our standard output.
#[derive(Debug)]
pub(crate) struct Output {
    chunks: mpsc::Sender<Vec<u8>>,
    written: mpsc::Receiver<io::Result<()>>,
    /// Whether the thread has a chunk that it has not written yet.
    is_busy: bool,
}

impl Output {
    /// To standard output, which must not be a terminal.
    pub(crate) fn stdout() -> Result<Self, Failure> {
        if io::stdout().is_terminal() {
            return Err(Failure::new(
                "standard output is a terminal, and no place for an archive; use `>` or a pipe",
            ));
        }
        Self::of(io::stdout().as_fd())
            .map_err(|e| Failure::new(format!("cannot write to standard output: {e}")))
    }

    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut to = Patient::new(fd)?;
        let (chunks, mut to_write) = mpsc::channel::<Vec<u8>>(1);
        let (done, written) = mpsc::channel(1);
        thread::Builder::new()
            .name("archive".to_owned())
            .spawn(move || {
                while let Some(chunk) = to_write.blocking_recv() {
                    // Nobody may be waiting any more.
                    if done.blocking_send(to.write_all(&chunk)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            chunks,
            written,
            is_busy: false,
        })
    }

    /// Ready when all that was taken is written.
    fn poll_written(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_busy {
            return Poll::Ready(Ok(()));
        }
        let written = ready!(self.written.poll_recv(context));
        self.is_busy = false;
        Poll::Ready(written.unwrap_or_else(|| Err(gone())))
    }
}

/// The thread does not end by itself.
fn gone() -> io::Error {
    io::Error::other("its thread has ended")
}

impl AsyncWrite for Output {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_written(context))?;
        let bytes = bytes.get(..CHUNK).unwrap_or(bytes);
        // There is room: the thread has nothing to do.
        let sent = self.chunks.try_send(bytes.to_vec());
        sent.map_err(|_| gone())?;
        self.is_busy = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_written(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}
