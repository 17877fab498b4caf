//! Sockets between this guest and its host.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, listen, socket,
};

use crate::sys;

/// Context identifier that stands for any of this machine's.
const ANY_CID: u32 = u32::MAX;

fn stream() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )
}

/// Begins to connect; the socket is writable once the outcome is known.
pub(crate) fn start_connect(cid: u32, port: u32, timeout_seconds: i64) -> nix::Result<OwnedFd> {
    let socket = stream()?;
    sys::set_connect_timeout(&socket, timeout_seconds)?;
    match connect(socket.as_raw_fd(), &VsockAddr::new(cid, port)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// Listens on `port`.
pub(crate) fn listen_on(port: u32) -> nix::Result<OwnedFd> {
    let socket = stream()?;
    bind(socket.as_raw_fd(), &VsockAddr::new(ANY_CID, port))?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(socket)
}
