//! A TCP/IP stack that turns frames of a guest into flows of the host, and back.
//!
//! * `packet` – what a frame is; `gateway` – what the gateway answers itself; `answer` –
//!   packets that belong to no flow;
//! * `tcp`, `udp` – one flow; `table` – all of them; `open` – those that the host begins;
//!   `memory` – what their buffers may take;
//! * `output` – frames for the guest, and what smoltcp takes for a device; `interfaces` –
//!   what makes packets of flows.
//!
//! # Back-pressure
//!
//! At most 64 frames wait for the guest. While they do, [`Stack::wants_input`] says no,
//! flows wait for their turn, and their streams are not read. What the host does not
//! take stays in a flow's window, which the guest then finds closed.
//!
//! # Memory
//!
//! To the guest a connection has 16 KiB, and up to 1 MiB by use, of 256 MiB that all have
//! together (`memory`). From the guest it has 1 MiB while there are at most 64 flows, 256 KiB up
//! to 256, and 128 KiB beyond. At most 2,050 MiB for 12,000 flows whose guest and host both stand still in
//! the middle of everything. Memory that is not used is not there.

mod answer;
mod gateway;
mod interfaces;
mod memory;
mod metrics;
mod open;
mod output;
mod packet;
mod table;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration as StdDuration, Instant as StdInstant};

use flashpan_protocol::network::{End, Link, MTU, Protocol, Refusal, Tuple};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpVersion};

use self::interfaces::{Interfaces, empty};
use self::memory::Memory;
use self::output::Output;
use self::packet::{Drop, Packet};
use self::table::{Asked, Flow, State, Table};
use self::tcp::{Pumped, TcpFlow};
use self::udp::UdpFlow;
use super::{NetError, NetEvent};
use crate::reactor::{Reactor, Ready};
use crate::sock;

pub use metrics::Metrics;
pub use output::{Frame, Offload};

/// How long the host may take for an answer: longer than a connection takes that nobody
/// answers.
const ANSWER: StdDuration = StdDuration::from_secs(150);

/// Flows that have a turn before the caller has one.
const TURNS: usize = 256;

/// See the [module](self).
///
/// Frames go in by [`Self::input`] and come out by [`Self::frame`]. [`Self::poll`] has to
/// be called whenever the descriptor of [`AsRawFd`] is readable, and [`Self::run`] after
/// that, after frames went in, and after frames were taken out.
pub struct Stack {
    link: Link,
    /// What makes packets of flows: of IPv4, and of IPv6.
    interfaces: Interfaces,
    output: Output,
    /// Of the buffers to the guest.
    memory: Memory,
    table: Table,
    reactor: Reactor,
    /// Flows whose sockets may have to be watched for something else.
    touched: Vec<u64>,
    events: Vec<NetEvent>,
    metrics: Metrics,
    scratch: Vec<u8>,
    /// When the stack's clock was 0.
    epoch: StdInstant,
    /// When the stack's user wants to be woken.
    alarm: Option<StdInstant>,
    /// The gateway's port of the flow that was opened last.
    last_port: u16,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("link", &self.link)
            .field("flows", &self.table.len())
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}

impl Stack {
    /// A stack at the end of this link, to a guest that can take `offload`.
    ///
    /// # Errors
    /// If the MTU is out of range, or the host refuses a descriptor.
    pub fn new(link: Link, offload: Offload) -> Result<Self, NetError> {
        if !MTU.contains(&link.mtu) {
            return Err(NetError::Mtu(link.mtu));
        }
        let reactor = Reactor::new().map_err(|(what, error)| NetError::Host { what, error })?;
        let (output, interfaces) = empty(&link, offload);
        Ok(Self {
            link,
            interfaces,
            output,
            memory: Memory::new(),
            table: Table::new(),
            reactor,
            touched: Vec::new(),
            events: Vec::new(),
            metrics: Metrics::default(),
            scratch: Vec::new(),
            epoch: StdInstant::now(),
            alarm: None,
            last_port: 0,
        })
    }

    /// Begins anew, with a driver that can take `offload`: all flows are gone, and
    /// frames too.
    pub fn reset(&mut self, offload: Offload) {
        for (id, flow) in self.table.drain() {
            self.finish(id, flow, End::Reset);
        }
        (self.output, self.interfaces) = empty(&self.link, offload);
    }

    /// Lets there be at most so many flows, for a process that may not have more
    /// descriptors.
    pub fn limit_flows(&mut self, most: usize) {
        self.table.limit(most);
    }

    /// Puts off what waits for the guest: it has stood still for so long.
    pub fn postpone(&mut self, by: StdDuration) {
        self.epoch = self.epoch.checked_add(by).unwrap_or(self.epoch);
    }

    /// Has the descriptor become readable at this time, too. It counts from the next
    /// [`Self::run`] on.
    pub fn set_alarm(&mut self, at: Option<StdInstant>) {
        self.alarm = at;
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What happened since the last call.
    pub fn events(&mut self) -> std::vec::Drain<'_, NetEvent> {
        self.events.drain(..)
    }

    /// Whether [`Self::input`] may be called.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.output.has_room()
    }

    /// The next frame for the guest.
    #[must_use]
    pub fn frame(&self) -> Option<&Frame> {
        self.output.front()
    }

    /// The next frame was given to the guest.
    pub fn frame_done(&mut self) {
        if let Some(frame) = self.output.front() {
            self.metrics.frames_out += 1;
            self.metrics.bytes_out += u64::try_from(frame.bytes.len()).unwrap_or(u64::MAX);
        }
        self.output.pop();
    }

    /// A frame of the guest, with whatever checksums it has.
    pub fn input(&mut self, frame: &[u8]) {
        self.metrics.frames_in += 1;
        self.metrics.bytes_in += u64::try_from(frame.len()).unwrap_or(u64::MAX);
        let taken =
            packet::parse(frame, &self.link).and_then(|(peer, packet)| self.take(peer, packet));
        match taken {
            Ok(()) => {}
            Err(Drop::Malformed) => self.metrics.malformed += 1,
            Err(Drop::Fragment) => self.metrics.fragments += 1,
            Err(Drop::Protocol) => self.metrics.protocols += 1,
            Err(Drop::Receiver) => self.metrics.receivers += 1,
            Err(Drop::Source) => self.metrics.sources += 1,
        }
    }

    fn take(&mut self, peer: EthernetAddress, packet: Packet<'_>) -> Result<(), Drop> {
        let Self { link, output, .. } = self;
        match packet {
            Packet::Arp(packet) => gateway::arp(link, output, packet),
            Packet::Icmp4(packet) => gateway::icmp4(link, output, peer, packet),
            Packet::Icmp6(packet) => gateway::icmp6(link, output, peer, packet),
            Packet::Udp { tuple, payload, .. } if gateway::is_dhcp(&tuple) => {
                gateway::dhcp(link, output, payload)
            }
            Packet::Udp { tuple, payload, ip } => {
                self.datagram(peer, tuple, payload, ip);
                Ok(())
            }
            Packet::Tcp { tuple, opens, ip } => {
                self.segment(peer, tuple, opens, ip);
                Ok(())
            }
        }
    }

    fn segment(&mut self, peer: EthernetAddress, tuple: Tuple, opens: bool, ip: &[u8]) {
        let now = self.now();
        let Some(id) = self.table.find(Protocol::Tcp, tuple) else {
            if opens {
                self.ask(Protocol::Tcp, peer, tuple, ip, None);
            } else {
                self.metrics.strays += 1;
                answer::refuse(&mut self.output, peer, ip, Refusal::Reset);
            }
            return;
        };
        let Some(flow) = self.table.get_mut(id) else {
            return;
        };
        match &mut flow.state {
            // What the guest begins is no answer to what the host has.
            State::Tcp(tcp) if opens && tcp.is_opening() => {}
            State::Tcp(tcp) => {
                let interface = self.interfaces.of(tcp.version);
                let output = &mut self.output;
                tcp.segment(interface, output, flow.peer, ip, now);
                self.table.queue(id);
            }
            // It asks again, or has changed its mind. The question stays: who asks and
            // takes back again and again has no more of them open.
            State::Asked(asked) if opens => {
                asked.withdrawn = false;
                asked.first = ip.to_vec();
            }
            State::Asked(asked) => asked.withdrawn |= is_reset(ip),
            State::Udp(_) => {}
        }
    }

    fn datagram(&mut self, peer: EthernetAddress, tuple: Tuple, payload: &[u8], ip: &[u8]) {
        let due = self.now() + from_std(udp::patience(&tuple));
        let Some(id) = self.table.find(Protocol::Udp, tuple) else {
            self.ask(Protocol::Udp, peer, tuple, ip, Some(payload));
            return;
        };
        let Some(flow) = self.table.get_mut(id) else {
            return;
        };
        let taken = match &mut flow.state {
            State::Udp(udp) => {
                let taken = udp.datagram(payload);
                self.table.set_due(id, Some(due));
                taken
            }
            State::Asked(asked) if asked.waiting.len() < udp::MAX_WAITING => {
                asked.waiting.push_back(payload.to_vec());
                true
            }
            State::Asked(_) | State::Tcp(_) => false,
        };
        self.metrics.datagrams_lost += u64::from(!taken);
    }

    /// Asks the host for a flow.
    fn ask(
        &mut self,
        protocol: Protocol,
        peer: EthernetAddress,
        tuple: Tuple,
        ip: &[u8],
        payload: Option<&[u8]>,
    ) {
        let pair = match protocol {
            protocol if !self.table.has_room(protocol) => None,
            Protocol::Tcp => (UnixStream::pair().ok()).map(|(a, b)| (a.into(), b.into())),
            Protocol::Udp => sock::message_pair().ok(),
        };
        let Some((ours, theirs)) = pair else {
            // At once: a guest that waits for an answer sends more.
            self.metrics.crowded += 1;
            answer::refuse(&mut self.output, peer, ip, Refusal::Host);
            return;
        };
        let asked = Asked {
            socket: ours,
            first: ip.to_vec(),
            waiting: payload.map(<[u8]>::to_vec).into_iter().collect(),
            withdrawn: false,
        };
        let id = (self.table).add(protocol, tuple, peer, State::Asked(asked));
        let due = self.now() + from_std(ANSWER);
        self.table.set_due(id, Some(due));
        self.metrics.asked += 1;
        self.events.push(NetEvent::Asked {
            id,
            protocol,
            tuple,
            socket: theirs,
        });
    }

    /// Lets a flow be that was asked for. Nothing happens if it is gone.
    pub fn accept(&mut self, id: u64) {
        if let Some(flow) = self.table.get_mut(id)
            && let State::Asked(asked) = &flow.state
            && asked.withdrawn
        {
            self.end(id, End::GivenUp);
            self.reactor.wake();
            return;
        }
        let flows = self.table.len();
        let output = &self.output;
        let mut due = None;
        let mut made = false;
        let now = self.now();
        self.table.accepted(id, |protocol, tuple, asked| {
            made = true;
            match protocol {
                Protocol::Tcp => {
                    let stream = UnixStream::from(asked.socket);
                    let version = match tuple.destination {
                        SocketAddr::V4(_) => IpVersion::Ipv4,
                        SocketAddr::V6(_) => IpVersion::Ipv6,
                    };
                    let most = output.most_segment(version);
                    let flow = TcpFlow::new(tuple, asked.first, stream, flows, most);
                    State::Tcp(Box::new(flow))
                }
                Protocol::Udp => {
                    due = Some(now + from_std(udp::patience(tuple)));
                    State::Udp(UdpFlow::new(asked.socket, asked.waiting))
                }
            }
        });
        if made {
            self.metrics.accepted += 1;
            self.table.set_due(id, due);
            self.table.queue(id);
            self.reactor.wake();
        }
    }

    /// Refuses a flow that was asked for. Nothing happens if it is gone.
    pub fn refuse(&mut self, id: u64, why: Refusal) {
        let asked =
            (self.table.get_mut(id)).is_some_and(|flow| matches!(flow.state, State::Asked(_)));
        if !asked {
            return;
        }
        if let Some(flow) = self.table.remove(id)
            && let State::Asked(asked) = flow.state
        {
            self.metrics.refused += 1;
            if asked.withdrawn {
                return;
            }
            // One frame more than may wait does no harm: there are no more of them
            // than flows that were asked for.
            answer::refuse(&mut self.output, flow.peer, &asked.first, why);
            self.reactor.wake();
        }
    }

    /// Ends a flow that was accepted or opened: a connection with a reset.
    pub fn close(&mut self, id: u64) {
        let Some(flow) = self.table.get_mut(id) else {
            return;
        };
        match &mut flow.state {
            State::Tcp(tcp) => {
                tcp.abort();
                self.table.queue(id);
                self.reactor.wake();
            }
            State::Udp(_) => self.end(id, End::Closed),
            State::Asked(_) => self.refuse(id, Refusal::Reset),
        }
    }

    /// Takes note of sockets that are ready, and of the time.
    pub fn poll(&mut self) {
        for ready in self.reactor.poll() {
            match ready {
                Ready::Socket {
                    id,
                    input,
                    output,
                    gone,
                } => {
                    match self.table.get_mut(id).map(|flow| &mut flow.state) {
                        Some(State::Tcp(tcp)) => tcp.ready(input, output, gone),
                        Some(State::Udp(udp)) => udp.ready(gone),
                        Some(State::Asked(_)) | None => continue,
                    }
                    self.table.queue(id);
                }
                Ready::Timer => self.reactor.timer_expired(),
            }
        }
        let now = self.now();
        while let Some(id) = self.table.overdue(now) {
            match self.table.get_mut(id).map(|flow| &flow.state) {
                Some(State::Tcp(_)) => self.table.queue(id),
                Some(State::Udp(_)) => self.end(id, End::Idle),
                Some(State::Asked(_)) => {
                    self.refuse(id, Refusal::Host);
                    self.events.push(NetEvent::Ended { id, how: End::Idle });
                }
                None => {}
            }
        }
    }

    /// Looks after flows, as far as there is room for frames. If there is more to do
    /// that waits for nothing, the descriptor is readable afterwards.
    pub fn run(&mut self) {
        let now = self.now();
        for _ in 0..TURNS {
            if !self.output.has_room() {
                break;
            }
            let Some(id) = self.table.next() else {
                break;
            };
            self.turn(id, now);
        }
        if self.output.has_room() && self.table.has_work() {
            self.reactor.wake();
        }
        self.settle();
    }

    fn turn(&mut self, id: u64, now: Instant) {
        let Some(flow) = self.table.get_mut(id) else {
            return;
        };
        self.touched.push(id);
        let output = &mut self.output;
        match &mut flow.state {
            State::Asked(_) => {}
            State::Tcp(tcp) => {
                let interface = self.interfaces.of(tcp.version);
                let pumped = tcp.pump(interface, output, &mut self.memory, flow.peer, now);
                if let Some(request) = tcp.take_opened() {
                    self.metrics.opened += 1;
                    self.events.push(NetEvent::Opened { request, id });
                }
                if tcp.take_finished() {
                    self.events.push(NetEvent::Finished { id });
                }
                match pumped {
                    Pumped::Ended(how) => self.end(id, how),
                    Pumped::Held => self.table.queue(id),
                    Pumped::Idle => {
                        // What is due now was done: smoltcp rounds down.
                        let due = tcp.due(interface, now);
                        let due = due.map(|due| due.max(now + Duration::from_millis(1)));
                        self.table.set_due(id, due);
                    }
                }
            }
            State::Udp(udp) => {
                let (peer, tuple) = (flow.peer, flow.tuple);
                let mtu = self.link.mtu.into();
                let Ok(turn) = udp.pump(output, peer, &tuple, &mut self.scratch, mtu) else {
                    self.end(id, End::Closed);
                    return;
                };
                self.metrics.datagrams_too_long += turn.too_long;
                if turn.delivered > 0 {
                    let due = now + from_std(udp::patience(&tuple));
                    self.table.set_due(id, Some(due));
                }
                if turn.more {
                    self.table.queue(id);
                }
            }
        }
    }

    fn end(&mut self, id: u64, how: End) {
        if let Some(flow) = self.table.remove(id) {
            self.finish(id, flow, how);
        }
    }

    fn finish(&mut self, id: u64, mut flow: Flow, how: End) {
        match &mut flow.state {
            State::Tcp(tcp) => {
                self.reactor.forget(&tcp.stream, &mut tcp.watched);
                self.memory.end(&tcp.grant);
                if let Some((request, why)) = tcp.not_opened() {
                    self.events.push(NetEvent::NotOpened { request, why });
                    return;
                }
            }
            State::Udp(udp) => self.reactor.forget(&udp.socket, &mut udp.watched),
            State::Asked(_) => {}
        }
        self.events.push(NetEvent::Ended { id, how });
    }

    /// Brings what epoll and timer watch up to date.
    fn settle(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            let Some(flow) = self.table.get_mut(id) else {
                continue;
            };
            let watched = match &mut flow.state {
                State::Tcp(tcp) => {
                    let interest = tcp.interest();
                    (self.reactor).watch(id, &tcp.stream, &mut tcp.watched, interest)
                }
                State::Udp(udp) => {
                    let interest = udp.interest();
                    (self.reactor).watch(id, &udp.socket, &mut udp.watched, interest)
                }
                State::Asked(_) => Ok(()),
            };
            if watched.is_err() {
                // Cannot be waited for: no memory for it.
                self.end(id, End::Reset);
            }
        }
        self.touched = touched;
        let due = self.table.next_due().map(|due| {
            let micros = u64::try_from(due.total_micros()).unwrap_or(0);
            self.epoch + StdDuration::from_micros(micros)
        });
        self.reactor
            .set_timer(due.into_iter().chain(self.alarm).min());
    }

    fn now(&self) -> Instant {
        let passed = self.epoch.elapsed().as_micros();
        Instant::from_micros(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

/// The descriptor that is readable when [`Stack::poll`] has work.
impl AsRawFd for Stack {
    fn as_raw_fd(&self) -> RawFd {
        self.reactor.as_raw_fd()
    }
}

/// Whether a TCP packet is a reset.
fn is_reset(ip: &[u8]) -> bool {
    packet::tcp_flags(ip).is_some_and(|tcp| tcp.rst())
}

fn from_std(duration: StdDuration) -> Duration {
    Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}
