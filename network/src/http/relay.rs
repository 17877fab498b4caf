//! Bytes that are passed on as they are.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::policy::{Denial, Policy};

/// What passes at once, in each direction.
const BUFFER: usize = 32 * 1024;

/// Passes on what comes until both sides have ended, or may not go on any more. An error is
/// an end that neither side may take for one in order.
pub(crate) async fn relay<A, B>(
    guest: &mut Counted<A>,
    host: &mut B,
    policy: &mut watch::Receiver<Arc<Policy>>,
    may_be: impl Fn(&Policy) -> Result<(), Denial>,
) -> Result<io::Result<()>, Denial>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let denied = async {
        loop {
            if policy.changed().await.is_err() {
                // It will never change again.
                return std::future::pending().await;
            }
            let now = Arc::clone(&policy.borrow_and_update());
            if let Err(denial) = may_be(&now) {
                return denial;
            }
        }
    };
    tokio::select! {
        passed = copy_bidirectional_with_sizes(guest, host, BUFFER, BUFFER) => Ok(passed.map(drop)),
        denial = denied => Err(denial),
    }
}

/// Has a connection end as connections do, after all that was sent has arrived.
pub(crate) fn linger_in_order(stream: &TcpStream) {
    let in_order = nix::libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    // Fails only for a socket that is none.
    let _ = setsockopt(stream, sockopt::Linger, &in_order);
}

/// A stream of which bytes are counted: those that are read are sent, those that are
/// written are received, as the guest sees it.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
}

impl<S> Counted<S> {
    pub(crate) fn new(stream: S, sent: Arc<AtomicU64>, received: Arc<AtomicU64>) -> Self {
        Self {
            stream,
            sent,
            received,
        }
    }
}

fn add(counter: &AtomicU64, len: usize) {
    counter.fetch_add(len.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        add(&self.sent, buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        add(&self.received, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
