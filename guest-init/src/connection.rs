//! One stream to the supervisor: frames in, frames out, without blocking.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use flashpan_protocol::agent::MAX_FRAME;
use flashpan_protocol::frame::{self, Decoder, FrameError};
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{MsgFlags, recv, send};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::poller::{Poller, Watched};

/// What one read from the peer brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes, now in the decoder.
    Bytes,
    /// Nothing for now.
    Nothing,
    /// The peer has closed, or the connection has failed.
    Closed,
}

/// A non-blocking stream socket that carries frames both ways.
///
/// What cannot be sent at once is queued; whoever produces much looks at
/// [`Connection::queued`] first.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Watched,
    decoder: Decoder,
    queue: VecDeque<Vec<u8>>,
    /// Bytes of the first frame of `queue` that were sent.
    sent: usize,
    queued: usize,
    closed: bool,
}

impl Connection {
    /// Takes a non-blocking stream socket whose events are to carry `token`.
    pub(crate) fn new(poller: &Poller, socket: OwnedFd, token: u64) -> Self {
        Self {
            socket: Watched::new(poller, socket, token),
            decoder: Decoder::new(MAX_FRAME),
            queue: VecDeque::new(),
            sent: 0,
            queued: 0,
            closed: false,
        }
    }

    /// Reads once, at most `scratch.len()` bytes: a busy peer does not keep
    /// the loop from the others.
    pub(crate) fn receive(&mut self, scratch: &mut [u8]) -> Received {
        if self.closed {
            return Received::Closed;
        }
        match recv(self.socket.as_raw_fd(), scratch, MsgFlags::empty()) {
            Ok(0) => self.close(),
            Ok(n) => {
                self.decoder.extend(scratch.get(..n).unwrap_or_default());
                return Received::Bytes;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
            Err(_) => self.close(),
        }
        Received::Closed
    }

    /// The next whole message that has arrived.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        self.decoder.next_message()
    }

    /// Sends `message`, or queues what does not fit. Does nothing once the
    /// peer is gone.
    pub(crate) fn send<T: Serialize>(&mut self, message: &T) {
        if self.closed {
            return;
        }
        // Our messages are far below the limit: the longest carries MAX_DATA.
        if let Ok(bytes) = frame::encode(message, MAX_FRAME) {
            self.queued = self.queued.saturating_add(bytes.len());
            self.queue.push_back(bytes);
            self.flush();
        }
    }

    /// Sends as much of the queue as the peer takes.
    pub(crate) fn flush(&mut self) {
        while let Some(front) = self.queue.front() {
            let rest = front.get(self.sent..).unwrap_or_default();
            match send(self.socket.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => {
                    self.queued = self.queued.saturating_sub(n);
                    self.sent = self.sent.saturating_add(n);
                    if n >= rest.len() {
                        self.queue.pop_front();
                        self.sent = 0;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.close();
                    return;
                }
            }
        }
    }

    /// Bytes that wait to be sent.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Whether the peer is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Gives the peer up: nothing is read or sent any more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.queue.clear();
        self.queued = 0;
        self.sent = 0;
    }

    /// Watches for what the connection waits for now.
    pub(crate) fn watch(&mut self) -> nix::Result<()> {
        let interest = if self.closed {
            None
        } else if self.queue.is_empty() {
            Some(EpollFlags::EPOLLIN)
        } else {
            Some(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT)
        };
        self.socket.watch(interest)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
