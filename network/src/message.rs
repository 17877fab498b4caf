//! Datagrams on a socket pair of messages (`SOCK_SEQPACKET`).
#![allow(unsafe_code)] // tokio wants a promise that a descriptor stays open while it watches it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One end of such a pair.
#[derive(Debug)]
pub(crate) struct Messages {
    socket: AsyncFd<OwnedFd>,
}

impl Messages {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // SAFETY: an OwnedFd keeps the same descriptor open for its whole life.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self { socket })
    }

    /// The next datagram; how long it is.
    ///
    /// # Errors
    /// `UnexpectedEof` if the other end is closed.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let receive = |socket: &OwnedFd| {
            let len = recv(socket.as_raw_fd(), buffer, MsgFlags::empty())?;
            // An empty datagram looks like the end.
            match len == 0 && is_closed(socket)? {
                true => Err(io::ErrorKind::UnexpectedEof.into()),
                false => Ok(len),
            }
        };
        self.socket.async_io(Interest::READABLE, receive).await
    }

    /// Sends a datagram, waiting for room.
    pub(crate) async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let send = |socket: &OwnedFd| {
            send(socket.as_raw_fd(), datagram, MsgFlags::MSG_NOSIGNAL)
                .map(drop)
                .map_err(io::Error::from)
        };
        self.socket.async_io(Interest::WRITABLE, send).await
    }
}

/// Whether the other end is closed.
fn is_closed(socket: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    let [fd] = fds;
    Ok((fd.revents()).is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}
