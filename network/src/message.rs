//! Datagrams on a socket pair of messages (`SOCK_SEQPACKET`).
#![allow(unsafe_code)] // tokio wants a promise that a descriptor stays open while it watches it.

use std::cell::RefCell;
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

    /// The next datagram.
    ///
    /// # Errors
    /// `UnexpectedEof` if the other end is closed.
    pub(crate) async fn next(&self) -> io::Result<Vec<u8>> {
        let next = |socket: &OwnedFd| {
            let received =
                datagram(|buffer| Ok(recv(socket.as_raw_fd(), buffer, MsgFlags::empty())?))?;
            match received.is_empty() && is_closed(socket)? {
                true => Err(io::ErrorKind::UnexpectedEof.into()),
                false => Ok(received),
            }
        };
        self.socket.async_io(Interest::READABLE, next).await
    }

    /// The next datagram, in a buffer; how long it is.
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

/// The longest datagram.
const MAX_DATAGRAM: usize = 65_535;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_DATAGRAM]);
}

/// What is received now, in as much memory as it takes: those who wait have none.
pub(crate) fn datagram(
    receive: impl FnOnce(&mut [u8]) -> io::Result<usize>,
) -> io::Result<Vec<u8>> {
    BUFFER.with_borrow_mut(|buffer| {
        let len = receive(buffer)?;
        Ok(buffer.get(..len).unwrap_or_default().to_vec())
    })
}

/// Whether the other end is closed.
fn is_closed(socket: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    let [fd] = fds;
    Ok((fd.revents()).is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}
