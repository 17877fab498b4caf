//! All forwarded connections: the conversation of
//! [`flashpan_protocol::forward`].
//!
//! They are part of the event loop. Nothing that is done for one blocks: an
//! address is a number, and connecting, reading and writing of sockets tell when
//! they would have to wait. A flow holds two descriptors, and memory only while
//! one of its sides takes less than the other gives: then at most one chunk in
//! each direction, and nothing more is read.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use flashpan_protocol::forward::{
    ForwardAnswer, ForwardFailure, ForwardFailureKind, ForwardStart, MAX_FORWARD_FRAME, Transport,
};
use flashpan_protocol::frame::{self, Decoder};
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::sockopt::{
    KeepAlive, SocketError, TcpKeepCount, TcpKeepIdle, TcpKeepInterval, TcpNoDelay,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, getsockopt, recv, send,
    setsockopt, socket,
};

use crate::agent::{Shared, Source, token};
use crate::poller::Watched;

mod relay;

use relay::Relay;

/// Most flows at a time. Each takes at most some 100 KiB of PID 1's memory.
pub(crate) const FORWARDS_MAX: usize = 256;

/// How long a connection may take to say what it wants.
const START_WITHIN: Duration = Duration::from_secs(10);

/// After how many seconds of silence a server is asked whether it is there, how many
/// seconds later again, and how often before it is taken for gone.
const KEEP_IDLE: u32 = 60;
const KEEP_INTERVAL: u32 = 15;
const KEEP_COUNT: u32 = 4;

/// How long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// The flows that are under way.
#[derive(Debug, Default)]
pub(crate) struct Forwards {
    flows: BTreeMap<u64, Flow>,
}

#[derive(Debug)]
struct Flow {
    id: u64,
    host: Watched,
    state: State,
    /// When it is given up, unless it is open by then.
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// It has not said what it wants.
    Starting(Decoder),
    /// It waits for the socket to be connected.
    Connecting(Watched),
    Open(Relay),
    /// There is nothing more to do.
    Done,
}

impl Forwards {
    /// Takes a new connection `id`, a non-blocking stream socket.
    pub(crate) fn connect(&mut self, id: u64, socket: OwnedFd, shared: &Shared) {
        let mut flow = Flow {
            id,
            host: Watched::new(&shared.poller, socket, token(id, Source::Socket)),
            state: State::Starting(Decoder::new(MAX_FORWARD_FRAME)),
            deadline: Instant::now().checked_add(START_WITHIN),
        };
        if self.flows.len() >= FORWARDS_MAX {
            let message =
                format!("the guest already forwards {FORWARDS_MAX} connections; end one first");
            return flow.refuse(ForwardFailureKind::Resources, 0, message);
        }
        // If it cannot even be watched, closing it says enough.
        if flow.host.watch(Some(EpollFlags::EPOLLIN)).is_ok() {
            self.flows.insert(id, flow);
        }
    }

    /// Dispatches an event of a flow; returns whether there is one of that `id`.
    pub(crate) fn handle(
        &mut self,
        id: u64,
        host: bool,
        events: EpollFlags,
        shared: &mut Shared,
    ) -> bool {
        let Some(flow) = self.flows.get_mut(&id) else {
            return false;
        };
        flow.handle(host, events, shared);
        if matches!(flow.state, State::Done) {
            self.flows.remove(&id);
        }
        true
    }

    /// When [`Forwards::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.flows.values().filter_map(|flow| flow.deadline).min()
    }

    /// Gives up what has taken too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.flows.retain(|_, flow| {
            let late = flow.deadline.is_some_and(|deadline| now >= deadline);
            if late && matches!(flow.state, State::Connecting(_)) {
                let message = format!("connect: no answer within {CONNECT_WITHIN:?}");
                flow.refuse(ForwardFailureKind::TimedOut, 0, message);
            }
            !late
        });
    }

    /// Whether there are none.
    pub(crate) fn is_idle(&self) -> bool {
        self.flows.is_empty()
    }
}

impl Flow {
    fn handle(&mut self, host: bool, events: EpollFlags, shared: &mut Shared) {
        match &mut self.state {
            State::Starting(_) => self.start(shared),
            State::Connecting(_) if host => self.interrupted(),
            State::Connecting(local) => {
                let outcome = getsockopt(local, SocketError).unwrap_or(0);
                match Errno::from_raw(outcome) {
                    _ if outcome == 0 => self.connected(Transport::Tcp),
                    errno => self.refuse_errno(errno),
                }
            }
            State::Open(relay) => {
                if relay
                    .step(&mut self.host, host, events, &mut shared.scratch)
                    .is_err()
                {
                    self.state = State::Done;
                }
            }
            State::Done => {}
        }
    }

    /// Reads what the connection is for, and begins to connect.
    fn start(&mut self, shared: &mut Shared) {
        let State::Starting(decoder) = &mut self.state else {
            return;
        };
        let mut first = [0; 256];
        let request = match recv(self.host.as_raw_fd(), &mut first, MsgFlags::empty()) {
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Ok(0) | Err(_) => Err(()),
            Ok(n) => {
                decoder.extend(first.get(..n).unwrap_or_default());
                match decoder.next_message::<ForwardStart>() {
                    Ok(None) => return,
                    // Chunks come after the answer.
                    Ok(Some(start)) if decoder.is_empty() => Ok(start),
                    Ok(Some(_)) | Err(_) => Err(()),
                }
            }
        };
        let Ok(start) = request else {
            self.state = State::Done;
            return;
        };
        if start.port == 0 {
            let message = "there is no port 0".to_owned();
            return self.refuse(ForwardFailureKind::BadRequest, 0, message);
        }
        match begin(&start) {
            Ok((local, finished)) => {
                let local = Watched::new(&shared.poller, local, token(self.id, Source::Local));
                self.state = State::Connecting(local);
                self.deadline = Instant::now().checked_add(CONNECT_WITHIN);
                if finished {
                    self.connected(start.transport);
                } else if let State::Connecting(local) = &mut self.state
                    && local.watch(Some(EpollFlags::EPOLLOUT)).is_err()
                {
                    self.state = State::Done;
                }
            }
            Err(errno) => self.refuse_errno(errno),
        }
    }

    /// The supervisor has done something while nothing is its turn: it went
    /// away, or broke the protocol.
    fn interrupted(&mut self) {
        let flags = MsgFlags::MSG_PEEK;
        if !matches!(
            recv(self.host.as_raw_fd(), &mut [0], flags),
            Err(Errno::EAGAIN | Errno::EINTR)
        ) {
            self.state = State::Done;
        }
    }

    fn connected(&mut self, transport: Transport) {
        self.deadline = None;
        if let State::Connecting(local) = std::mem::replace(&mut self.state, State::Done)
            && self.answer(&ForwardAnswer::Connected)
        {
            let mut relay = Relay::new(transport, local);
            if relay.watch(&mut self.host).is_ok() {
                self.state = State::Open(relay);
            }
        }
    }

    fn refuse_errno(&mut self, errno: Errno) {
        let kind = match errno {
            Errno::ECONNREFUSED => ForwardFailureKind::Refused,
            Errno::ENETUNREACH
            | Errno::EHOSTUNREACH
            | Errno::ENETDOWN
            | Errno::EADDRNOTAVAIL
            | Errno::EAFNOSUPPORT => ForwardFailureKind::Unreachable,
            Errno::ETIMEDOUT => ForwardFailureKind::TimedOut,
            Errno::ENOMEM | Errno::ENOBUFS | Errno::EMFILE | Errno::ENFILE => {
                ForwardFailureKind::Resources
            }
            _ => ForwardFailureKind::Other,
        };
        self.refuse(kind, errno as i32, format!("connect: {}", errno.desc()));
    }

    /// Says no, and is done with it.
    fn refuse(&mut self, kind: ForwardFailureKind, errno: i32, message: String) {
        let failure = ForwardFailure {
            kind,
            errno,
            message,
        };
        self.answer(&ForwardAnswer::Failed(failure));
        self.state = State::Done;
    }

    /// Returns whether the answer was taken: it is the first thing to be sent
    /// and fits into any socket.
    fn answer(&self, answer: &ForwardAnswer) -> bool {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        frame::encode(answer, MAX_FORWARD_FRAME)
            .is_ok_and(|frame| send(self.host.as_raw_fd(), &frame, flags) == Ok(frame.len()))
    }
}

/// A socket that connects, and whether it has finished doing that.
fn begin(start: &ForwardStart) -> nix::Result<(OwnedFd, bool)> {
    let family = match start.address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let kind = match start.transport {
        Transport::Tcp => SockType::Stream,
        Transport::Udp => SockType::Datagram,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, kind, flags, None)?;
    if start.transport == Transport::Tcp {
        // Whoever wants to gather small pieces has done so before they got here.
        setsockopt(&socket, TcpNoDelay, &true)?;
        keep_alive(&socket)?;
    }
    let address = SockaddrStorage::from(SocketAddr::new(start.address, start.port));
    match connect(socket.as_raw_fd(), &address) {
        Ok(()) => Ok((socket, true)),
        Err(Errno::EINPROGRESS) => Ok((socket, false)),
        Err(errno) => Err(errno),
    }
}

/// Lets the kernel find out within two minutes that the server is gone without a
/// word: the flow would keep its place among [`FORWARDS_MAX`] for ever.
fn keep_alive(socket: &OwnedFd) -> nix::Result<()> {
    setsockopt(socket, TcpKeepIdle, &KEEP_IDLE)?;
    setsockopt(socket, TcpKeepInterval, &KEEP_INTERVAL)?;
    setsockopt(socket, TcpKeepCount, &KEEP_COUNT)?;
    setsockopt(socket, KeepAlive, &true)
}

#[cfg(test)]
mod tests;
