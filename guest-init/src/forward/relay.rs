//! An open flow: chunks on the supervisor's side, a socket on the other.

use std::os::fd::AsRawFd;

use flashpan_protocol::forward::{CHUNK_PREFIX, MAX_CHUNK, Transport};
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, setsockopt, shutdown};

use crate::poller::Watched;

/// Most bytes of a stream that are read at a time.
const READ_MAX: usize = 32 * 1024;

/// The flow goes no further: it has ended on both sides, or was reset on one.
#[derive(Debug)]
pub(super) struct Over;

/// Both directions.
#[derive(Debug)]
pub(super) struct Relay {
    transport: Transport,
    local: Watched,
    /// From the supervisor, as it came: what the socket has no room for, or is
    /// not complete.
    to_local: Vec<u8>,
    /// The socket has no room.
    blocked: bool,
    /// Bytes of the current chunk that the socket has not got.
    left: usize,
    /// The supervisor's stream has ended.
    host_ended: bool,
    /// For the supervisor, which has no room.
    to_host: Vec<u8>,
    /// The socket's stream has ended.
    local_ended: bool,
    /// The socket has failed, which is seen when it is its turn to be read.
    local_failed: bool,
}

impl Relay {
    /// Between the supervisor and the connected socket `local`.
    pub(super) fn new(transport: Transport, local: Watched) -> Self {
        Self {
            transport,
            local,
            to_local: Vec::new(),
            blocked: false,
            left: 0,
            host_ended: false,
            to_host: Vec::new(),
            local_ended: false,
            local_failed: false,
        }
    }

    /// Does what an event of one side makes possible.
    pub(super) fn step(
        &mut self,
        host: &mut Watched,
        of_host: bool,
        events: EpollFlags,
        scratch: &mut [u8],
    ) -> Result<(), Over> {
        let failed = events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if of_host {
            self.flush(host)?;
            if !self.blocked {
                self.read_host(host, scratch)?;
            } else if failed {
                return Err(self.reset());
            }
        } else {
            self.local_failed |= failed;
            if self.blocked {
                self.deliver(&[])?;
            }
            if self.to_host.is_empty() && !self.local_ended {
                self.read_local(host, scratch)?;
            } else if failed && self.local_ended && !self.host_ended {
                // It closed its half in order before; the rest was refused.
                return Err(self.reset());
            }
        }
        if self.host_ended && self.local_ended && self.to_host.is_empty() {
            return Err(Over);
        }
        self.watch(host).map_err(|_| self.reset())
    }

    /// Watches both sides for what can happen next.
    pub(super) fn watch(&mut self, host: &mut Watched) -> nix::Result<()> {
        let interest = |read, write| {
            let mut interest = EpollFlags::empty();
            interest.set(EpollFlags::EPOLLIN, read);
            interest.set(EpollFlags::EPOLLOUT, write);
            interest
        };
        // That the supervisor is gone is seen in any case.
        host.watch(Some(interest(!self.blocked, !self.to_host.is_empty())))?;
        let from_local = self.to_host.is_empty() && !self.local_ended;
        let local = interest(from_local, self.blocked);
        // A failure that is not looked at yet would wake the loop again at once.
        let quiet = self.local_failed && !from_local;
        self.local.watch((!quiet).then_some(local))
    }

    /// Reads once from the supervisor.
    fn read_host(&mut self, host: &Watched, scratch: &mut [u8]) -> Result<(), Over> {
        match recv(host.as_raw_fd(), scratch, MsgFlags::empty()) {
            Ok(n @ 1..) => self.deliver(scratch.get(..n).unwrap_or_default()),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Ok(_) | Err(_) => Err(self.reset()),
        }
    }

    /// Gives the socket what came from the supervisor, now and before; keeps the
    /// rest.
    fn deliver(&mut self, bytes: &[u8]) -> Result<(), Over> {
        self.blocked = false;
        let mut before = std::mem::take(&mut self.to_local);
        let mut rest = bytes;
        if !before.is_empty() {
            before.extend_from_slice(bytes);
            rest = &before;
        }
        while let Some(taken) = match self.transport {
            Transport::Tcp => self.deliver_stream(rest)?,
            Transport::Udp => self.deliver_datagram(rest),
        } {
            rest = rest.get(taken..).unwrap_or_default();
        }
        self.to_local = rest.to_vec();
        Ok(())
    }

    /// Returns how much was taken; `None` if nothing can be for now.
    fn deliver_stream(&mut self, bytes: &[u8]) -> Result<Option<usize>, Over> {
        if bytes.is_empty() {
            return Ok(None);
        }
        if self.host_ended {
            // Nothing follows the end.
            return Err(self.reset());
        }
        if self.left == 0 {
            let Some((prefix, _)) = bytes.split_first_chunk::<CHUNK_PREFIX>() else {
                return Ok(None);
            };
            self.left = usize::from(u16::from_le_bytes(*prefix));
            if self.left == 0 {
                self.host_ended = true;
                // Of a socket that is gone, reading tells.
                let _ = shutdown(self.local.as_raw_fd(), Shutdown::Write);
            }
            return Ok(Some(CHUNK_PREFIX));
        }
        let now = bytes.get(..self.left).unwrap_or(bytes);
        match send(self.local.as_raw_fd(), now, MsgFlags::MSG_NOSIGNAL) {
            Ok(n) => {
                self.left = self.left.saturating_sub(n);
                Ok(Some(n))
            }
            Err(Errno::EINTR) => Ok(Some(0)),
            Err(Errno::EAGAIN) => {
                self.blocked = true;
                Ok(None)
            }
            Err(_) => Err(self.reset()),
        }
    }

    fn deliver_datagram(&mut self, bytes: &[u8]) -> Option<usize> {
        let (prefix, rest) = bytes.split_first_chunk::<CHUNK_PREFIX>()?;
        let datagram = rest.get(..usize::from(u16::from_le_bytes(*prefix)))?;
        let send = || send(self.local.as_raw_fd(), datagram, MsgFlags::MSG_NOSIGNAL);
        match send() {
            Err(Errno::EAGAIN | Errno::EINTR) => {
                self.blocked = true;
                return None;
            }
            // The news is of an earlier one: that nobody listened. Now there
            // may be somebody.
            Err(Errno::ECONNREFUSED) => drop(send()),
            // What is too long, say, is lost, as datagrams are.
            Ok(_) | Err(_) => {}
        }
        Some(datagram.len().saturating_add(CHUNK_PREFIX))
    }

    /// Reads once from the socket.
    fn read_local(&mut self, host: &Watched, scratch: &mut [u8]) -> Result<(), Over> {
        let Some((prefix, content)) = scratch.split_first_chunk_mut::<CHUNK_PREFIX>() else {
            return Ok(());
        };
        let most = match self.transport {
            Transport::Tcp => READ_MAX,
            Transport::Udp => MAX_CHUNK,
        };
        let most = most.min(content.len());
        let content = content.get_mut(..most).unwrap_or_default();
        let length = match recv(self.local.as_raw_fd(), content, MsgFlags::empty()) {
            Ok(n) => n,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            // A datagram that nobody wanted.
            Err(_) if self.transport == Transport::Udp => return Ok(()),
            Err(_) => return Err(self.reset()),
        };
        *prefix = u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes();
        self.local_ended = length == 0 && self.transport == Transport::Tcp;
        let chunk = scratch.get(..length.saturating_add(CHUNK_PREFIX));
        self.to_host.extend_from_slice(chunk.unwrap_or_default());
        self.flush(host)
    }

    /// Sends the supervisor what it takes.
    fn flush(&mut self, host: &Watched) -> Result<(), Over> {
        let mut sent = 0;
        while let Some(rest @ [_, ..]) = self.to_host.get(sent..) {
            match send(host.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => sent = sent.saturating_add(n),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return Err(self.reset()),
            }
        }
        if sent == self.to_host.len() {
            self.to_host = Vec::new();
        } else {
            self.to_host.drain(..sent);
        }
        Ok(())
    }

    /// The supervisor is gone, or the socket failed: what is left of the flow
    /// must not look like an end in order.
    fn reset(&self) -> Over {
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        if self.transport == Transport::Tcp {
            let _ = setsockopt(&self.local, Linger, &at_once);
        }
        Over
    }
}
