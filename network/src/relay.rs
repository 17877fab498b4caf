//! Bytes between two streams, both ways.
//!
//! What is read is written at once, from a buffer that all flows of a thread have in common;
//! only what the other side does not take is kept. A flow that has nothing on its way has no
//! memory here, and what those that stand still have is bounded for all together.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read at once: more than fits into a socket pair.
const MOST: usize = 256 * 1024;

/// What is read at once while the other sides of all flows have not taken [`CROWDED`] bytes.
const LEAST: usize = 32 * 1024;
const CROWDED: usize = 64 * 1024 * 1024;

/// What was read of all flows, and not written yet.
static KEPT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MOST]);
}

/// What was read and is to be written.
#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    written: usize,
}

impl Kept {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.give_up();
        self.bytes = bytes.to_vec();
        KEPT.fetch_add(self.bytes.len(), Ordering::Relaxed);
    }

    /// It is done with: also its memory.
    fn give_up(&mut self) {
        KEPT.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        *self = Self {
            bytes: Vec::new(),
            written: 0,
        };
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    kept: Kept,
    /// Nothing more comes.
    has_ended: bool,
    /// And the other side was told.
    is_shut: bool,
}

impl Way {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut R>,
        mut to: Pin<&mut W>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead,
        W: AsyncWrite,
    {
        while !self.is_shut {
            while !self.kept.rest().is_empty() {
                let count = ready!(to.as_mut().poll_write(cx, self.kept.rest()))?;
                self.kept.written = self.kept.written.saturating_add(some(count)?);
            }
            if !self.kept.bytes.is_empty() {
                self.kept.give_up();
            }
            if self.has_ended {
                ready!(to.as_mut().poll_shutdown(cx))?;
                self.is_shut = true;
                break;
            }
            ready!(BUFFER.with_borrow_mut(|buffer| self.pass(cx, buffer, &mut from, &mut to)))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, and writes that as far as it is taken.
    fn pass<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        from: &mut Pin<&mut R>,
        to: &mut Pin<&mut W>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead,
        W: AsyncWrite,
    {
        let most = match KEPT.load(Ordering::Relaxed) {
            CROWDED.. => LEAST,
            _ => MOST,
        };
        let mut buffer = ReadBuf::new(buffer.get_mut(..most).unwrap_or_default());
        ready!(from.as_mut().poll_read(cx, &mut buffer))?;
        let mut rest = buffer.filled();
        self.has_ended = rest.is_empty();
        while !rest.is_empty() {
            match to.as_mut().poll_write(cx, rest) {
                Poll::Ready(count) => rest = rest.get(some(count?)?..).unwrap_or_default(),
                Poll::Pending => {
                    self.kept.keep(rest);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What was written: a stream that takes nothing and does not wait never will.
fn some(count: usize) -> io::Result<usize> {
    match count {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
}

/// Passes on what comes, both ways, until both have ended in order.
///
/// # Errors
/// One of them broke.
pub async fn both_ways<A, B>(a: &mut A, b: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Way::default(), Way::default());
    std::future::poll_fn(move |cx| {
        let (mut a, mut b) = (Pin::new(&mut *a), Pin::new(&mut *b));
        let there = there.poll(cx, a.as_mut(), b.as_mut())?;
        let back = back.poll(cx, b, a)?;
        match (there, back) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::net::UnixStream;
    use tokio::time::timeout;

    use super::*;

    /// Longer than any test takes.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[tokio::test]
    async fn both_ways_carry_everything_and_end_by_themselves() {
        let (mut left, mut a) = UnixStream::pair().unwrap();
        let (mut b, mut right) = duplex(1000);
        let relay = tokio::spawn(async move { both_ways(&mut a, &mut b).await });
        let data = pattern(3 << 20);
        let (mut read, mut write) = left.split();
        let up = async {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let down = async {
            // All that comes, before a word of ours.
            let mut all = Vec::new();
            right.read_to_end(&mut all).await.unwrap();
            assert!(all == data);
            right.write_all(&data).await.unwrap();
            right.shutdown().await.unwrap();
        };
        let back = async {
            let mut all = Vec::new();
            read.read_to_end(&mut all).await.unwrap();
            assert!(all == data);
        };
        timeout(PATIENCE, async { tokio::join!(up, down, back) })
            .await
            .unwrap();
        timeout(PATIENCE, relay).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_the_other_side_does_not_take_is_bounded_and_given_up() {
        let (left, mut a) = UnixStream::pair().unwrap();
        let (mut b, right) = duplex(1000);
        let relay = tokio::spawn(async move { both_ways(&mut a, &mut b).await });
        let data = pattern(1 << 20);
        let (mut sent, mut refused) = (0, 0);
        // Until nothing more is taken however often the relay has its turn.
        while refused < 10_000 {
            match left.try_write(&data) {
                Ok(count) => (sent, refused) = (sent + count, 0),
                Err(_) => refused += 1,
            }
            tokio::task::yield_now().await;
        }
        // What a socket pair has, what is kept, and what the other side has.
        assert!(sent < (1 << 20), "{sent}");
        assert!(KEPT.load(Ordering::Relaxed) > 0);
        drop(right);
        let broken = timeout(PATIENCE, relay).await.unwrap().unwrap();
        assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
