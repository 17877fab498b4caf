//! Forwarded TCP connections that lead to the guest's network card, without its agent.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flashpan_network::both_ways;
use flashpan_protocol::network::{End, NotOpened};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::dial::Dialer;
use crate::forward_link::CONNECT_WITHIN;
use crate::opened::OpenedFlow;

/// How long a port is left to the agent whose card did not answer: a filter in the guest
/// drops what comes, and each try takes as long as the VMM waits.
const SILENT_FOR: Duration = Duration::from_secs(60);

/// The way to ports of the guest by its card.
#[derive(Debug, Default)]
pub(crate) struct Card {
    /// Ports that did not answer, and until when they are not tried. There are no more than
    /// are forwarded.
    silent: Mutex<HashMap<u16, Instant>>,
}

impl Card {
    /// Connects to a port of the card. None if that cannot be had: the agent tries, and
    /// knows why not.
    pub(crate) async fn open(&self, dialer: &Dialer, port: u16) -> Option<CardLink> {
        let until = self.silent().get(&port).copied();
        if until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        match timeout(CONNECT_WITHIN, dialer.open(port)).await {
            Ok(Ok(Ok(link))) => Some(link),
            Ok(Ok(Err(NotOpened::Silent))) => {
                if let Some(until) = Instant::now().checked_add(SILENT_FOR) {
                    self.silent().insert(port, until);
                }
                None
            }
            Ok(Ok(Err(NotOpened::Refused | NotOpened::NoRoom)) | Err(_)) | Err(_) => None,
        }
    }

    /// Nothing panics while it is locked.
    fn silent(&self) -> std::sync::MutexGuard<'_, HashMap<u16, Instant>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to the guest's card.
#[derive(Debug)]
pub(crate) struct CardLink {
    flow: OpenedFlow,
    /// All that the guest sends was read, and it ended in order.
    at_end: bool,
    /// It has failed.
    broken: bool,
}

/// Why a connection went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The client's doing, which is its own affair.
    Client,
    Guest,
}

impl CardLink {
    pub(crate) fn new(flow: OpenedFlow) -> Self {
        Self {
            flow,
            at_end: false,
            broken: false,
        }
    }

    /// Passes on what comes, both ways, until the guest has all that the client has sent.
    pub(crate) async fn relay(mut self, client: &mut TcpStream) -> Result<(), Broken> {
        // Of a pair of its own: what `self` has of it is not asked again.
        let (_, unused) = oneshot::channel();
        let mut ended = std::mem::replace(&mut self.flow.ended, unused);
        let passed = {
            let mut passing = std::pin::pin!(both_ways(client, &mut self));
            tokio::select! {
                biased;
                passed = &mut passing => passed.map(|()| None),
                how = &mut ended => match how {
                    // What the guest has sent may be on its way to the client.
                    Ok(End::Closed) => passing.await.map(|()| Some(End::Closed)),
                    _ => return Err(Broken::Guest),
                },
            }
        };
        match passed {
            // What the guest still has for its program would be lost.
            Ok(None) => {
                let _ = ended.await;
                Ok(())
            }
            Ok(Some(_)) => Ok(()),
            Err(_) if self.broken => Err(Broken::Guest),
            Err(_) => Err(Broken::Client),
        }
    }

    /// Notes whether it has failed.
    fn noted<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.broken |= matches!(polled, Poll::Ready(Err(_)));
        polled
    }
}

impl AsyncRead for CardLink {
    /// The end of the socket pair is the guest's only when it was said to be one.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at_end {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = self.flow.stream()?.poll_read(cx, buffer);
        ready!(self.noted(read))?;
        if buffer.filled().len() > before || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let finished = ready!(Pin::new(&mut self.flow.finished).poll(cx));
        self.at_end = true;
        let reset = |_| io::ErrorKind::ConnectionReset.into();
        self.noted(Poll::Ready(finished.map_err(reset)))
    }
}

impl AsyncWrite for CardLink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.flow.stream()?.poll_write(cx, bytes);
        self.noted(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It fails only if the guest is gone, which whoever reads is told.
        let _ = ready!(self.flow.stream()?.poll_shutdown(cx));
        Poll::Ready(Ok(()))
    }
}
