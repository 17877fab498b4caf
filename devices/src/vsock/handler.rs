//! Moves packets between the rings and the connections.
//!
//! One run takes the guest's packets first, since they bring credit and free
//! connections, and then gives the guest what waits for it: first RSTs, then
//! the connections in `ready`, in turns. A connection is in `ready` if and only
//! if it has a packet to give; its stream is watched for input if and only if
//! all that was there has been read. So nothing wakes the event loop that
//! cannot be acted on.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::connection::{Connection, Control, Phase, Reaction};
use super::metrics::Metrics;
use super::packet::{HEADER_LEN, HOST_CID, Header, MAX_PAYLOAD, Op, TYPE_STREAM};
use super::reactor::{Reactor, Ready};
use super::rings::{Rings, TransportReset, gather};
use super::table::{Entry, Table};
use super::{
    BYTES_PER_RUN, BYTES_PER_TURN, Deadlines, MAX_PENDING_RSTS, PACKETS_PER_RUN, VsockError,
    VsockEvent, VsockState, sock,
};
use crate::ring::{Chain, RingError};
use crate::virtio::GuestRam;

/// Buffers tried in one read of a stream. Grows by eight while they are filled:
/// a short message does not pay for looking at many buffers, a long one comes
/// in few system calls although Linux gives buffers of 4 KiB only.
const FIRST_BATCH: usize = 1;
const LARGEST_BATCH: usize = 64;

const DATA: Control = Control {
    op: Op::Rw,
    flags: 0,
};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Handler {
    guest_cid: u64,
    deadlines: Deadlines,
    pub(super) table: Table,
    /// Connections with something for the guest, in order of their turns.
    ready: VecDeque<u64>,
    /// RSTs that belong to no connection any more, at most
    /// [`MAX_PENDING_RSTS`].
    pub(super) resets: VecDeque<Header>,
    transport_reset: TransportReset,
    transport_reset_deadline: Option<Instant>,
    reactor: Reactor,
    /// Connections whose stream has to be watched for something else.
    touched: Vec<u64>,
    /// For the host, at the end of the run.
    pub(super) events: Vec<VsockEvent>,
    pub(super) metrics: Metrics,
}

/// What is left of a run, for one direction.
struct Budget {
    bytes: usize,
    packets: usize,
}

impl Budget {
    fn new() -> Self {
        Self {
            bytes: BYTES_PER_RUN,
            packets: PACKETS_PER_RUN,
        }
    }

    fn is_spent(&self) -> bool {
        self.bytes == 0 || self.packets == 0
    }

    fn spend(&mut self, bytes: usize, packets: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.packets = self.packets.saturating_sub(packets);
    }
}

/// How a connection's turn ended.
enum Turn {
    /// It has nothing more to give.
    Idle,
    /// It has more, and is at the end of the line.
    Again,
    /// The guest has no buffers.
    Starved,
}

/// What a read of a stream brought.
enum Input {
    /// `all`: there is no more, as far as can be seen.
    Data {
        bytes: usize,
        packets: usize,
        all: bool,
    },
    Nothing,
    /// The host sends no more.
    End,
    /// The guest has no buffers.
    Starved,
}

impl Handler {
    pub(super) fn new(guest_cid: u64, deadlines: Deadlines) -> Result<Self, VsockError> {
        Ok(Self {
            guest_cid,
            deadlines,
            table: Table::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            transport_reset: TransportReset::Idle,
            transport_reset_deadline: None,
            reactor: Reactor::new()?,
            touched: Vec::new(),
            events: Vec::new(),
            metrics: Metrics::default(),
        })
    }

    pub(super) fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    // Commands of the host.

    pub(super) fn connect(&mut self, host_id: u64, port: u32, stream: UnixStream) {
        let ports = (!self.table.is_full())
            .then(|| self.table.allocate_port(port))
            .flatten();
        match ports {
            Some(ports) => {
                let connection = Connection::outgoing(ports, self.table.promise());
                let id = self.table.insert(connection, stream, Some(host_id));
                let deadline = Instant::now() + self.deadlines.connect;
                self.table.set_deadline(id, Some(deadline));
                self.touch(id);
            }
            None => self.refused(host_id),
        }
        self.reactor.wake();
    }

    pub(super) fn accept(&mut self, id: u64) {
        if let Some(entry) = self.table.get_mut(id)
            && entry.connection.accept()
        {
            self.metrics.connected += 1;
            self.table.set_deadline(id, None);
            self.touch(id);
            self.reactor.wake();
        }
    }

    pub(super) fn reject(&mut self, id: u64) {
        if let Some(entry) = self.table.get_mut(id)
            && entry.connection.phase() == Phase::Asked
        {
            self.end(id);
            self.reactor.wake();
        }
    }

    // Life of the device.

    /// The driver's reset, or rings that cannot be trusted: all connections
    /// end. What the guest sent before still goes to the host. Connections that
    /// the guest cannot have heard of wait for the next driver.
    pub(super) fn reset(&mut self) {
        for id in self.table.ids() {
            let known =
                (self.table.get_mut(id)).is_some_and(|entry| entry.connection.is_known_to_guest());
            if known {
                self.drain(id);
            }
        }
        self.resets.clear();
        self.transport_reset = TransportReset::Idle;
        self.transport_reset_deadline = None;
        self.reactor.wake();
    }

    pub(super) fn save(&self) -> VsockState {
        let waiting = self.resets.iter();
        let mut open: Vec<_> = (self.table.known_ports())
            .map(|ports| (ports.host, ports.guest))
            .chain(waiting.map(|reset| (reset.src_port, reset.dst_port)))
            .collect();
        // The same VM in the same state saves the same bytes.
        open.sort_unstable();
        open.dedup();
        VsockState {
            open,
            next_port: self.table.next_port(),
        }
    }

    pub(super) fn restore(&mut self, state: &VsockState) {
        self.table.set_next_port(state.next_port);
        for (host, guest) in &state.open {
            self.queue_reset(Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: *host,
                dst_port: *guest,
                kind: TYPE_STREAM,
                raw_op: Op::Rst.to_wire(),
                ..Header::default()
            });
        }
        self.transport_reset = TransportReset::Due;
        self.transport_reset_deadline = Some(Instant::now() + self.deadlines.transport_reset);
        self.reactor.wake();
    }

    // A run.

    /// Takes note of what streams and timer report.
    pub(super) fn poll(&mut self) {
        for ready in self.reactor.poll() {
            match ready {
                Ready::Stream {
                    id,
                    input,
                    output,
                    gone,
                } => {
                    if output {
                        self.flush(id);
                    }
                    if let Some(entry) = self.table.get_mut(id) {
                        entry.readable |= input || gone;
                    }
                    if gone {
                        self.hung_up(id);
                    }
                    self.touch(id);
                }
                Ready::Timer => self.expire(Instant::now()),
            }
        }
    }

    /// The host closed its end, or both directions of it.
    fn hung_up(&mut self, id: u64) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        entry.hung_up = true;
        match entry.connection.phase() {
            Phase::Asked | Phase::Connecting => self.end(id),
            Phase::Established => entry.connection.host_receives_no_more(),
            Phase::Closing => {}
            Phase::Draining => self.remove(id),
        }
    }

    fn expire(&mut self, now: Instant) {
        if self
            .transport_reset_deadline
            .is_some_and(|deadline| deadline <= now)
        {
            // A driver that does not know the event; its connections get RSTs.
            self.transport_reset_deadline = None;
            self.transport_reset = TransportReset::Idle;
        }
        while let Some(id) = self.table.expired(now) {
            self.end(id);
        }
        self.reactor.timer_expired();
    }

    /// Moves packets in both directions, within the budget of a run.
    pub(super) fn run(&mut self, memory: &GuestRam, rings: &mut Rings) -> Result<(), RingError> {
        let more_tx = self.take_packets(memory, rings)?;
        let mut more_rx = false;
        self.queue_touched();
        self.transport_reset = rings.reset_transport(memory, self.transport_reset)?;
        if self.transport_reset == TransportReset::Idle {
            // A packet sent earlier could reach a new connection before the
            // event that is to end the old ones.
            self.transport_reset_deadline = None;
            more_rx = self.give_packets(memory, rings)?;
        }
        if more_tx || more_rx {
            self.reactor.wake();
        }
        Ok(())
    }

    /// Brings what epoll and timer watch up to date.
    pub(super) fn settle(&mut self) {
        self.queue_touched();
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            let failed = (self.table.get_mut(id))
                .is_some_and(|entry| self.reactor.watch(id, entry).is_err());
            if failed {
                // Cannot be waited for: not a socket, or no memory for it.
                self.end(id);
            }
        }
        self.touched = touched;
        let deadlines = [self.table.next_deadline(), self.transport_reset_deadline];
        self.reactor
            .set_timer(deadlines.into_iter().flatten().min());
    }

    fn touch(&mut self, id: u64) {
        self.touched.push(id);
    }

    /// Puts connections that have got work into the line.
    fn queue_touched(&mut self) {
        for id in &self.touched {
            if let Some(entry) = self.table.get_mut(*id)
                && !entry.queued
                && entry.find_work()
            {
                entry.queued = true;
                self.ready.push_back(*id);
            }
        }
    }

    // From the guest.

    /// Takes packets until there are none; true if the budget ended first.
    fn take_packets(&mut self, memory: &GuestRam, rings: &mut Rings) -> Result<bool, RingError> {
        let mut budget = Budget::new();
        let mut chain = Chain::new();
        while rings.pop_tx(memory, &mut chain)? {
            let head = chain.head();
            self.metrics.tx_packets += 1;
            let bytes = self.take_packet(&mut chain);
            rings.complete_tx(memory, head)?;
            budget.spend(bytes, 1);
            if budget.is_spent() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Acts on one packet; returns its bytes of payload.
    fn take_packet(&mut self, chain: &mut Chain<'_>) -> usize {
        let Some(bytes) = chain.readable.take_array::<HEADER_LEN>() else {
            // No header, nobody to tell.
            self.metrics.malformed += 1;
            return 0;
        };
        let header = Header::parse(&bytes);
        if header.src_cid != self.guest_cid {
            // Whoever this is supposed to come from must not get an answer.
            self.metrics.spoofed += 1;
            return 0;
        }
        // virtio 1.2 §5.10.6.4: a packet of an unknown type is answered by RST.
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.metrics.malformed += 1;
            self.answer_reset(&header);
            return 0;
        }
        let ports = header.ports_from_guest();
        let payload = usize::try_from(header.len).unwrap_or(usize::MAX);
        if payload > chain.readable.len() || header.len > MAX_PAYLOAD {
            self.metrics.malformed += 1;
            match self.table.find(ports) {
                Some(id) => self.end(id),
                None => self.answer_reset(&header),
            }
            return 0;
        }
        match self.table.find(ports) {
            Some(id) => self.take_packet_of(id, &header, chain),
            None if header.op() == Some(Op::Request) => self.asked(&header),
            None => self.answer_reset(&header),
        }
        payload
    }

    fn take_packet_of(&mut self, id: u64, header: &Header, chain: &Chain<'_>) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if header.op() == Some(Op::Request) && entry.connection.phase() == Phase::Closing {
            // The guest has forgotten the old connection (Linux does, at our
            // SHUTDOWN) and uses its ports for a new one.
            self.remove(id);
            self.asked(header);
            return;
        }
        match entry.connection.receive(header) {
            Reaction::None => {}
            Reaction::Connected => {
                self.metrics.connected += 1;
                if let Some(id) = entry.host_id {
                    self.events.push(VsockEvent::Connected { id });
                }
                self.table.set_deadline(id, None);
            }
            Reaction::Data => self.take_data(id, header.len, chain),
            Reaction::GuestShutdown => {
                if entry.connection.guest_receives_no_more() {
                    // Fails only if the host is gone, which epoll reports.
                    let _ = entry.stream.shutdown(Shutdown::Read);
                }
                self.pass_end_on(id);
            }
            Reaction::Finished => {
                self.answer_reset(header);
                self.drain(id);
            }
            Reaction::Gone => self.drain(id),
            Reaction::Violation => {
                self.metrics.malformed += 1;
                self.end(id);
            }
        }
        self.touch(id);
    }

    /// The guest wants to connect.
    fn asked(&mut self, request: &Header) {
        let pair = if self.table.is_full() {
            Err(io::ErrorKind::QuotaExceeded.into())
        } else {
            UnixStream::pair()
        };
        let Ok((ours, stream)) = pair else {
            self.metrics.refused += 1;
            self.answer_reset(request);
            return;
        };
        let connection = Connection::incoming(request, self.table.promise());
        let port = connection.ports().host;
        let id = self.table.insert(connection, ours, None);
        let deadline = Instant::now() + self.deadlines.answer;
        self.table.set_deadline(id, Some(deadline));
        self.touch(id);
        self.events.push(VsockEvent::Incoming { id, port, stream });
    }

    fn take_data(&mut self, id: u64, len: u32, chain: &Chain<'_>) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if !entry.connection.admit(len) {
            self.metrics.malformed += 1;
            self.end(id);
            return;
        }
        self.metrics.tx_bytes += u64::from(len);
        let Some(sent) = send_data(entry, len, chain) else {
            entry.connection.forwarded(len);
            entry.connection.host_receives_no_more();
            return;
        };
        entry.connection.forwarded(sent);
        let mut rest = Vec::new();
        let rest_len = usize::try_from(len - sent).unwrap_or(0);
        let sent = usize::try_from(sent).unwrap_or(usize::MAX);
        gather(&mut rest, chain.readable.slices(), sent, rest_len);
        for slice in rest {
            let mut copy = vec![0; slice.len()];
            slice.copy_to(&mut copy);
            entry.connection.keep(&copy);
        }
    }

    /// The host's stream takes data again.
    fn flush(&mut self, id: u64) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if entry.connection.keeps_data() {
            match sock::send_halves(&entry.stream, entry.connection.kept()) {
                Ok(count) => entry.connection.forwarded_kept(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => entry.connection.host_receives_no_more(),
            }
        }
        self.pass_end_on(id);
    }

    /// Once all data of the guest was passed on, so is its end.
    fn pass_end_on(&mut self, id: u64) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if entry.connection.phase() == Phase::Draining {
            if !entry.connection.keeps_data() {
                self.remove(id);
            }
        } else if entry.connection.guest_sends_no_more() {
            // Fails only if the host is gone, which epoll reports.
            let _ = entry.stream.shutdown(Shutdown::Write);
        }
    }

    // To the guest.

    /// Gives packets until there are none or no buffers; true if the budget
    /// ended first.
    fn give_packets(&mut self, memory: &GuestRam, rings: &mut Rings) -> Result<bool, RingError> {
        let mut budget = Budget::new();
        let mut chain = Chain::new();
        while let Some(reset) = self.resets.front() {
            if budget.is_spent() {
                return Ok(true);
            }
            if !rings.pop_rx(memory, &mut chain)? {
                return Ok(false);
            }
            rings.complete_packet(memory, &mut chain, reset)?;
            self.resets.pop_front();
            self.metrics.resets_sent += 1;
            self.metrics.rx_packets += 1;
            budget.spend(0, 1);
        }
        while let Some(id) = self.ready.pop_front() {
            if budget.is_spent() {
                self.ready.push_front(id);
                return Ok(true);
            }
            self.touch(id);
            match self.take_turn(id, memory, rings, &mut budget)? {
                Turn::Idle => {
                    if let Some(entry) = self.table.get_mut(id) {
                        entry.queued = false;
                    }
                }
                Turn::Again => self.ready.push_back(id),
                Turn::Starved => {
                    self.ready.push_front(id);
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }

    /// Lets a connection give what it has, within its turn.
    fn take_turn(
        &mut self,
        id: u64,
        memory: &GuestRam,
        rings: &mut Rings,
        budget: &mut Budget,
    ) -> Result<Turn, RingError> {
        let mut left = BYTES_PER_TURN;
        let mut batch = FIRST_BATCH;
        loop {
            let Some(entry) = self.table.get_mut(id) else {
                return Ok(Turn::Idle);
            };
            if budget.is_spent() {
                return Ok(Turn::Again);
            }
            if let Some(control) = entry.due() {
                let mut chain = Chain::new();
                if !rings.pop_rx(memory, &mut chain)? {
                    return Ok(Turn::Starved);
                }
                let header = entry.connection.header(self.guest_cid, control, 0);
                rings.complete_packet(memory, &mut chain, &header)?;
                entry.connection.sent(control);
                let closing = entry.connection.phase() == Phase::Closing;
                budget.spend(0, 1);
                self.metrics.rx_packets += 1;
                if control.op == Op::CreditUpdate {
                    self.metrics.credit_updates += 1;
                }
                if closing {
                    let deadline = Instant::now() + self.deadlines.close;
                    self.table.set_deadline(id, Some(deadline));
                }
                continue;
            }
            if !entry.readable || !entry.connection.reads_host() {
                return Ok(Turn::Idle);
            }
            let credit = usize::try_from(entry.connection.credit()).unwrap_or(usize::MAX);
            if credit == 0 {
                entry.connection.stalled();
                if entry.connection.due().is_none() {
                    return Ok(Turn::Idle);
                }
                continue;
            }
            if left == 0 {
                return Ok(Turn::Again);
            }
            let room = credit.min(left).min(budget.bytes);
            match give_data(entry, self.guest_cid, memory, rings, room, batch)? {
                Input::Data {
                    bytes,
                    packets,
                    all,
                } => {
                    // Nobody tells of the end of a stream that has hung up.
                    entry.readable = !all || entry.hung_up;
                    left = left.saturating_sub(bytes);
                    batch = (batch * 8).min(LARGEST_BATCH);
                    budget.spend(bytes, packets);
                    self.metrics.rx_bytes += bytes as u64;
                    self.metrics.rx_packets += packets as u64;
                }
                Input::Nothing if !entry.hung_up => entry.readable = false,
                Input::Nothing | Input::End => entry.connection.host_sends_no_more(),
                Input::Starved => return Ok(Turn::Starved),
            }
        }
    }

    // Ends.

    /// Ends a connection from this side, at once: RST if the guest knows it.
    fn end(&mut self, id: u64) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        let known = entry.connection.is_known_to_guest();
        if known && entry.connection.phase() != Phase::Draining {
            let reset = Control {
                op: Op::Rst,
                flags: 0,
            };
            let header = entry.connection.header(self.guest_cid, reset, 0);
            self.queue_reset(header);
        }
        self.remove(id);
    }

    /// The guest ended a connection. What it sent before still goes to the host.
    fn drain(&mut self, id: u64) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if entry.connection.keeps_data() {
            // What the host sends from now on, nobody receives.
            let _ = entry.stream.shutdown(Shutdown::Read);
            self.table.drain(id);
            self.touch(id);
        } else {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(mut entry) = self.table.remove(id) else {
            return;
        };
        self.reactor.forget(&mut entry);
        match (entry.connection.phase(), entry.host_id) {
            (Phase::Connecting, Some(host_id)) => self.refused(host_id),
            (Phase::Asked, _) => self.metrics.refused += 1,
            _ => {}
        }
    }

    fn refused(&mut self, host_id: u64) {
        self.metrics.refused += 1;
        self.events.push(VsockEvent::Refused { id: host_id });
    }

    /// Answers a packet by RST, except an RST: two sides that do so never end.
    fn answer_reset(&mut self, header: &Header) {
        if header.op() != Some(Op::Rst) {
            self.queue_reset(header.rst_reply());
        }
    }

    fn queue_reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_PENDING_RSTS {
            self.resets.push_back(reset);
        } else {
            self.metrics.resets_dropped += 1;
        }
    }
}

/// Passes data straight to the host's stream; how much of it was taken. None if
/// the host receives no more.
fn send_data(entry: &mut Entry, len: u32, chain: &Chain<'_>) -> Option<u32> {
    if !entry.connection.host_receives() {
        return None;
    }
    if len == 0 || entry.connection.keeps_data() {
        return Some(0);
    }
    let mut slices = Vec::new();
    let limit = usize::try_from(len).unwrap_or(0);
    gather(&mut slices, chain.readable.slices(), 0, limit);
    match sock::send(&entry.stream, &slices) {
        Ok(count) => u32::try_from(count).ok(),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(0),
        Err(_) => None,
    }
}

/// Reads the host's stream into at most `batch` of the guest's buffers, at most
/// `room` bytes, and makes a packet of each buffer that got something.
fn give_data(
    entry: &mut Entry,
    guest_cid: u64,
    memory: &GuestRam,
    rings: &mut Rings,
    room: usize,
    batch: usize,
) -> Result<Input, RingError> {
    let largest = usize::try_from(MAX_PAYLOAD).unwrap_or(usize::MAX);
    let mut chains = Vec::with_capacity(batch);
    let mut slices = Vec::with_capacity(batch);
    let mut gathered = 0;
    while chains.len() < batch && gathered < room {
        let mut chain = Chain::new();
        if !rings.pop_rx(memory, &mut chain)? {
            break;
        }
        let limit = largest.min(room - gathered);
        let part = gather(&mut slices, chain.writable.slices(), HEADER_LEN, limit);
        gathered += part;
        chains.push((chain, part));
    }
    if chains.is_empty() {
        return Ok(Input::Starved);
    }
    let taken = sock::receive(&entry.stream, &slices);
    let bytes = *taken.as_ref().unwrap_or(&0);
    let mut rest = bytes;
    let (mut packets, mut unused) = (0, 0);
    for (mut chain, part) in chains {
        let len = part.min(rest);
        if len == 0 {
            unused += 1;
            continue;
        }
        rest -= len;
        packets += 1;
        let len = u32::try_from(len).unwrap_or(MAX_PAYLOAD);
        let header = entry.connection.header(guest_cid, DATA, len);
        rings.complete_packet(memory, &mut chain, &header)?;
        entry.connection.sent_data(len);
    }
    rings.rx.put_back(unused);
    Ok(match taken {
        Ok(0) => Input::End,
        // A short read has emptied the stream; if not, epoll says so again.
        Ok(_) => Input::Data {
            bytes,
            packets,
            all: bytes < gathered,
        },
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Input::Nothing,
        // The host is gone without having read everything.
        Err(_) => Input::End,
    })
}
