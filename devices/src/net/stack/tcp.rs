//! One TCP connection: a socket of the stack on the guest's side, a stream on the host's.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;

use event_manager::EventSet;
use flashpan_protocol::network::{End, NotOpened, Tuple};
use smoltcp::iface::{Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpListenEndpoint, IpVersion};
use vm_memory::VolatileSlice;

use super::memory::{self, Grant, Memory};
use super::output::{Output, Phy};
use super::packet;
use crate::sock;

/// A connection that was accepted.
pub(super) struct TcpFlow {
    pub(super) stream: UnixStream,
    /// What the stream is watched for.
    pub(super) watched: Option<EventSet>,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    pub(super) version: IpVersion,
    /// What the guest takes in a segment.
    segment: u16,
    /// How much of the buffer to the guest may be used.
    pub(super) grant: Grant,
    /// What was written to that buffer since it was empty.
    written: usize,
    /// The packet that asked for it, until the stack has seen it.
    syn: Option<Vec<u8>>,
    /// The stream may have something to read that was not read yet.
    readable: bool,
    /// The stream may have room.
    writable: bool,
    /// Both directions of the stream are shut: it need not be watched any more.
    hung_up: bool,
    /// The host sends no more.
    host_done: bool,
    /// The guest sends no more, and the host was told so.
    guest_done: bool,
    /// What the guest has sent and the host not taken when both were done with it: the
    /// socket is of no more use then.
    left: Option<Left>,
    /// The host has begun it, and was not told yet that the guest has answered.
    opening: Option<Opening>,
    /// The host has begun it, and is to be told when the guest sends no more.
    tells_finish: bool,
}

/// A connection that the host begins.
#[derive(Debug)]
pub(super) struct Opening {
    request: u64,
    /// When the guest must have answered.
    by: Instant,
    answered: bool,
    late: bool,
}

impl Opening {
    /// For the host's request of this number, if the guest answers in time.
    pub(super) fn new(request: u64, by: Instant) -> Self {
        Self {
            request,
            by,
            answered: false,
            late: false,
        }
    }
}

/// See [`TcpFlow::left`].
struct Left {
    data: Vec<u8>,
    sent: usize,
}

/// Bytes that a connection takes from the guest before the host has, by how many flows there
/// are when it is made.
///
/// They are one less than a power of two. Until the guest's first data are acknowledged,
/// smoltcp believes that it has told the guest the most that a scaled window can be, and
/// stops if the guest sends that much and there is no room for it: of these sizes that most
/// is less.
const FROM_GUEST: [(usize, usize); 3] = [
    (64, (1 << 20) - 1),
    (256, (1 << 18) - 1),
    (usize::MAX, (1 << 17) - 1),
];

/// What a guest takes in a segment that says nothing of it (RFC 9293 §3.7.1).
const SEGMENT: u16 = 536;

/// What became of a connection when it was looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pumped {
    /// Nothing is left to do for now.
    Idle,
    /// There is more, as soon as there is room for frames.
    Held,
    /// It is over.
    Ended(End),
}

impl std::fmt::Debug for TcpFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpFlow")
            .field("state", &self.socket().state())
            .finish_non_exhaustive()
    }
}

impl TcpFlow {
    /// A connection, one of so many flows, whose handshake is made when `syn` is pumped in. Its
    /// segments have `most` bytes or fewer. Buffers cost memory as far as they are used.
    pub(super) fn new(
        tuple: &Tuple,
        syn: Vec<u8>,
        stream: UnixStream,
        flows: usize,
        most: u16,
    ) -> Self {
        let mut socket = socket(flows);
        let endpoint = IpListenEndpoint {
            addr: Some(tuple.destination.ip().into()),
            port: tuple.destination.port(),
        };
        // Fails only for port 0, with which there is no tuple.
        let _ = socket.listen(endpoint);
        let segment = packet::longest_segment(&syn).unwrap_or(SEGMENT);
        Self {
            syn: Some(syn),
            ..Self::of(socket, tuple, stream, segment.min(most))
        }
    }

    /// A connection that the host begins, one of so many flows, whose SYN is sent when it is
    /// pumped. Its segments have `most` bytes or fewer. None to a port that there is not.
    pub(super) fn open(
        interface: &mut Interface,
        tuple: &Tuple,
        opening: Opening,
        stream: UnixStream,
        flows: usize,
        most: u16,
    ) -> Option<Self> {
        let mut socket = socket(flows);
        (socket.connect(interface.context(), tuple.source, tuple.destination)).ok()?;
        Some(Self {
            opening: Some(opening),
            tells_finish: true,
            ..Self::of(socket, tuple, stream, most)
        })
    }

    fn of(socket: Socket<'static>, tuple: &Tuple, stream: UnixStream, segment: u16) -> Self {
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let version = match tuple.destination {
            SocketAddr::V4(_) => IpVersion::Ipv4,
            SocketAddr::V6(_) => IpVersion::Ipv6,
        };
        Self {
            stream,
            watched: None,
            sockets,
            handle,
            version,
            segment,
            grant: Grant::least(),
            written: 0,
            syn: None,
            readable: true,
            writable: true,
            hung_up: false,
            host_done: false,
            guest_done: false,
            left: None,
            opening: None,
            tells_finish: false,
        }
    }

    /// Whether the guest has not answered yet what the host has begun.
    pub(super) fn is_opening(&self) -> bool {
        self.opening
            .as_ref()
            .is_some_and(|opening| !opening.answered)
    }

    /// The host's request, as soon as the guest has accepted it. Once.
    pub(super) fn take_opened(&mut self) -> Option<u64> {
        let opened = self.opening.take_if(|opening| opening.answered);
        opened.map(|opening| opening.request)
    }

    /// Whether the guest has come to its end, which the host wants to know. Once.
    pub(super) fn take_finished(&mut self) -> bool {
        let finished = self.tells_finish && self.guest_done;
        self.tells_finish &= !finished;
        finished
    }

    /// The host's request that has come to nothing, and why.
    pub(super) fn not_opened(&self) -> Option<(u64, NotOpened)> {
        let opening = self.opening.as_ref()?;
        let why = match opening.late {
            true => NotOpened::Silent,
            false => NotOpened::Refused,
        };
        Some((opening.request, why))
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    /// What the stream has to be watched for.
    pub(super) fn interest(&self) -> Option<EventSet> {
        if self.hung_up {
            return None;
        }
        let mut interest = EventSet::empty();
        if !self.readable && !self.host_done {
            interest |= EventSet::IN | EventSet::READ_HANG_UP;
        }
        if !self.writable {
            interest |= EventSet::OUT;
        }
        Some(interest)
    }

    /// The stream is ready for this.
    pub(super) fn ready(&mut self, input: bool, output: bool, gone: bool) {
        self.readable |= input || gone;
        self.writable |= output || gone;
        self.hung_up |= gone;
    }

    /// A segment of the guest. There must be room for a frame.
    pub(super) fn segment(
        &mut self,
        interface: &mut Interface,
        output: &mut Output,
        peer: EthernetAddress,
        packet: &[u8],
        now: Instant,
    ) {
        let mut phy = Phy {
            packet: Some(packet),
            peer,
            output,
            version: self.version,
            segment: self.segment,
            urgent: false,
        };
        let _: PollIngressSingleResult =
            interface.poll_ingress_single(now, &mut phy, &mut self.sockets);
        let state = self.sockets.get::<Socket<'_>>(self.handle).state();
        if let Some(opening) = self.opening.as_mut().filter(|opening| !opening.answered)
            && !matches!(state, State::SynSent | State::Closed)
        {
            opening.answered = true;
            let segment = packet::longest_segment(packet).unwrap_or(SEGMENT);
            self.segment = segment.min(self.segment);
        }
        // Until it is acknowledged, smoltcp's window ends before it begins if it was full,
        // and anything seems to be in it.
        if packet::tcp_flags(packet).is_some_and(|tcp| tcp.fin()) {
            phy.urgent = true;
            let _: PollResult = interface.poll_egress(now, &mut phy, &mut self.sockets);
        }
    }

    /// Moves what can be moved, both ways.
    pub(super) fn pump(
        &mut self,
        interface: &mut Interface,
        output: &mut Output,
        memory: &mut Memory,
        peer: EthernetAddress,
        now: Instant,
    ) -> Pumped {
        if let Some(syn) = self.syn.take() {
            if !output.has_room() {
                self.syn = Some(syn);
                return Pumped::Held;
            }
            self.segment(interface, output, peer, &syn, now);
        }
        if self.left.is_some() {
            return self.feed_rest();
        }
        if let Some(opening) = self.opening.as_mut().filter(|opening| !opening.answered)
            && opening.by <= now
        {
            opening.late = true;
            self.abort();
        }
        if self.feed_host().is_err() || self.feed_guest(memory).is_err() {
            // Its reset goes out with the frames.
            self.sockets.get_mut::<Socket<'_>>(self.handle).abort();
        }
        let mut phy = Phy {
            packet: None,
            peer,
            output,
            version: self.version,
            segment: self.segment,
            urgent: false,
        };
        loop {
            if !phy.output.has_room() {
                return Pumped::Held;
            }
            if interface.poll_egress(now, &mut phy, &mut self.sockets) == PollResult::None {
                break;
            }
        }
        let both_done = match self.socket().state() {
            State::TimeWait => true,
            State::Closed => self.host_done,
            _ => false,
        };
        if both_done && self.socket().can_recv() {
            let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
            let mut data = Vec::new();
            while let Ok(1..) = socket.recv(|part| {
                data.extend_from_slice(part);
                (part.len(), part.len())
            }) {}
            self.left = Some(Left { data, sent: 0 });
            return self.feed_rest();
        }
        match self.socket().state() {
            // It was reset before it was one, or its first segment was none.
            State::Listen => Pumped::Ended(End::GivenUp),
            // The link loses nothing: an old segment cannot turn up later.
            State::TimeWait => Pumped::Ended(End::Closed),
            State::Closed if self.host_done && self.guest_done => Pumped::Ended(End::Closed),
            State::Closed => Pumped::Ended(End::Reset),
            _ => Pumped::Idle,
        }
    }

    /// When it has to be pumped although nothing happened.
    pub(super) fn due(&self, interface: &mut Interface, now: Instant) -> Option<Instant> {
        let due = interface.poll_at(now, &self.sockets);
        let answer = self.opening.as_ref().map(|opening| opening.by);
        due.into_iter().chain(answer).min()
    }

    /// Ends it with a reset, at the next pump.
    pub(super) fn abort(&mut self) {
        self.sockets.get_mut::<Socket<'_>>(self.handle).abort();
    }

    /// The rest of what the guest has sent, when that is all that is to be done.
    fn feed_rest(&mut self) -> Pumped {
        let Some(left) = &mut self.left else {
            return Pumped::Idle;
        };
        while self.writable {
            let rest = left.data.get(left.sent..).unwrap_or_default();
            if rest.is_empty() {
                let _ = self.stream.shutdown(Shutdown::Write);
                return Pumped::Ended(End::Closed);
            }
            match sock::send_halves(&self.stream, (rest, &[])) {
                Ok(count) => left.sent = left.sent.saturating_add(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_) => return Pumped::Ended(End::Reset),
            }
        }
        Pumped::Idle
    }

    /// From the guest to the host. An error: the host takes no more.
    fn feed_host(&mut self) -> io::Result<()> {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        while self.writable && socket.can_recv() {
            let stream = &self.stream;
            let sent = socket.recv(|data| match sock::send_halves(stream, (data, &[])) {
                Ok(count) => (count, Ok(())),
                Err(error) => (0, Err(error)),
            });
            match sent {
                Ok(Ok(())) => {}
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        if !self.guest_done && !socket.can_recv() && has_sent_all(socket.state()) {
            self.guest_done = true;
            // Fails only if the host has closed its end.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// From the host to the guest. An error: the host's end is of no more use.
    fn feed_guest(&mut self, memory: &mut Memory) -> io::Result<()> {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        while self.readable && !self.host_done && socket.can_send() {
            if socket.send_queue() == 0 {
                self.written = 0;
            }
            let most = self.grant.room(self.written);
            if most == 0 {
                if memory.grow(&mut self.grant) {
                    continue;
                }
                // As soon as the guest has acknowledged all there is.
                break;
            }
            let stream = &self.stream;
            let received = socket.send(|room| {
                let room = match room.get_mut(..most) {
                    Some(granted) => granted,
                    None => room,
                };
                let received = sock::receive(stream, &[VolatileSlice::from(room)]);
                (*received.as_ref().unwrap_or(&0), received)
            });
            match received {
                Ok(Ok(0)) => {
                    self.host_done = true;
                    socket.close();
                }
                Ok(Ok(count)) => self.written = self.written.saturating_add(count),
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

/// A socket of one of so many flows.
fn socket(flows: usize) -> Socket<'static> {
    let from_guest = (FROM_GUEST.iter()).find(|&&(few, _)| flows <= few);
    let from_guest = from_guest.map_or(usize::from(u16::MAX), |&(_, size)| size);
    let buffer = |len| SocketBuffer::new(vec![0; len]);
    let mut socket = Socket::new(buffer(from_guest), buffer(memory::MOST));
    // The link loses nothing, and its ends answer at once.
    socket.set_congestion_control(CongestionControl::None);
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket
}

/// Whether the guest has said that it sends no more.
fn has_sent_all(state: State) -> bool {
    matches!(
        state,
        State::CloseWait | State::LastAck | State::Closing | State::TimeWait
    )
}
