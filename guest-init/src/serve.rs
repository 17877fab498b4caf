//! The agent without the rest of PID 1, for tests of what connects to it: it
//! serves one connection on this machine, with the rights of this process.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::epoll::EpollEvent;

use crate::agent::Agent;
use crate::anchors::Anchors;
use crate::poller::Poller;
use crate::spawn::Privileges;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// An operation on files ([`flashpan_protocol::file`]).
    File,
    /// A forwarded connection ([`flashpan_protocol::forward`]).
    Forward,
}

/// Serves `socket`, a stream, to its end.
///
/// # Errors
/// If this process cannot make an epoll instance or open what an agent needs.
pub fn serve(service: Service, socket: OwnedFd) -> io::Result<()> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let poller = Poller::new()?;
    // No program is started here, so nobody gets any.
    let mut agent = Agent::new(&poller, Anchors::take()?, None, None, Privileges::Set);
    match service {
        Service::File => agent.connect_files(socket.into()),
        Service::Forward => agent.connect_forward(socket.into()),
    }
    let mut events = [EpollEvent::empty(); 16];
    while !(agent.is_idle() && agent.forwards_nothing()) {
        let count = poller.wait(&mut events, agent.deadline())?;
        for event in events.iter().take(count) {
            agent.handle(event.data(), event.events());
        }
        agent.expire(std::time::Instant::now());
    }
    Ok(())
}
