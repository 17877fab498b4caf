//! Moves packets between the rings and the connections.
//!
//! One run takes the guest's packets first, since they bring credit and free
//! connections, and then gives the guest what waits for it: first RSTs, then
//! the connections in `ready`, in turns. A connection is in `ready` if and only
//! if it has a packet to give; its stream is watched for input if and only if
//! all that was there has been read. So nothing wakes the event loop that
//! cannot be acted on.

mod from_guest;
mod to_guest;

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::connection::{Connection, Control, Phase};
use super::metrics::Metrics;
use super::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use super::rings::{Rings, TransportReset};
use super::table::{Entry, Table};
use super::{
    BYTES_PER_RUN, Deadlines, MAX_CONNECTIONS, MAX_PENDING_RSTS, PACKETS_PER_RUN, VsockError,
    VsockEvent, VsockState,
};
use crate::reactor::{Reactor, Ready};
use crate::ring::RingError;
use crate::virtio::GuestRam;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Handler {
    guest_cid: u64,
    deadlines: Deadlines,
    pub(super) table: Table,
    /// Connections with something for the guest, in order of their turns.
    pub(super) ready: VecDeque<u64>,
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
            reactor: Reactor::new().map_err(|(what, error)| VsockError::Host { what, error })?,
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
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        if entry.connection.accept() {
            self.metrics.connected += 1;
            if entry.hung_up {
                entry.connection.host_receives_no_more();
            }
            self.table.set_deadline(id, None);
            self.touch(id);
        } else if entry.connection.phase() == Phase::Abandoned {
            self.remove(id);
        }
        self.reactor.wake();
    }

    pub(super) fn reject(&mut self, id: u64) {
        let phase = (self.table.get_mut(id)).map(|entry| entry.connection.phase());
        if matches!(phase, Some(Phase::Asked | Phase::Abandoned)) {
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

    /// The guest has stood still for so long, and could answer nobody.
    pub(super) fn postpone(&mut self, by: Duration) {
        self.table.postpone(by);
        self.transport_reset_deadline = self.transport_reset_deadline.map(|it| it + by);
        self.settle();
    }

    // A run.

    /// Takes note of what streams and timer report.
    pub(super) fn poll(&mut self) {
        for ready in self.reactor.poll() {
            match ready {
                Ready::Socket {
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
            Phase::Connecting => self.end(id),
            Phase::Established => entry.connection.host_receives_no_more(),
            // The host may have accepted before it closed, and what it wrote is
            // still to be passed on: its answer, or the deadline, decides.
            Phase::Asked | Phase::Closing | Phase::Abandoned => {}
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
            let failed = self.table.get_mut(id).is_some_and(|entry| {
                let interest = entry.interest();
                let Entry {
                    stream, watched, ..
                } = entry;
                self.reactor.watch(id, stream, watched, interest).is_err()
            });
            if failed {
                // Cannot be waited for: not a socket, or no memory for it.
                self.end(id);
                self.reactor.wake();
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
        // Connections that are gone leave the line when it is their turn, which
        // need not come while the guest has no buffers for the first.
        if self.ready.len() > 2 * MAX_CONNECTIONS {
            self.ready.retain(|id| self.table.get_mut(*id).is_some());
        }
    }

    // Ends.

    /// The host is done with a connection: RST, at once.
    fn end(&mut self, id: u64) {
        self.tell_end(id);
        self.remove(id);
    }

    /// The guest broke the rules of a connection: RST, at once.
    fn end_offender(&mut self, id: u64) {
        self.tell_end(id);
        match self.table.get_mut(id) {
            Some(entry) if entry.connection.phase() == Phase::Asked => self.drain(id),
            _ => self.remove(id),
        }
    }

    fn tell_end(&mut self, id: u64) {
        if let Some(entry) = self.table.get_mut(id)
            && entry.connection.is_known_to_guest()
        {
            let reset = Control {
                op: Op::Rst,
                flags: 0,
            };
            let header = entry.connection.header(self.guest_cid, reset, 0);
            self.queue_reset(header);
        }
    }

    /// The guest is done with a connection. What it sent before still goes to
    /// the host; and what the host was asked still waits for its answer, so
    /// that a guest cannot ask faster than the host answers.
    fn drain(&mut self, id: u64) {
        let Some(entry) = self.table.get_mut(id) else {
            return;
        };
        // Neither can fail in a way that matters: the host may be gone.
        if entry.connection.phase() == Phase::Asked {
            let _ = entry.stream.shutdown(Shutdown::Both);
            // By ourselves, which need not be reported.
            entry.hung_up = true;
        } else if entry.connection.keeps_data() {
            // What the host sends from now on, nobody receives.
            let _ = entry.stream.shutdown(Shutdown::Read);
        } else {
            self.remove(id);
            return;
        }
        self.table.drain(id);
        self.touch(id);
    }

    fn remove(&mut self, id: u64) {
        let Some(mut entry) = self.table.remove(id) else {
            return;
        };
        self.reactor.forget(&entry.stream, &mut entry.watched);
        match (entry.connection.phase(), entry.host_id) {
            (Phase::Connecting, Some(host_id)) => self.refused(host_id),
            (Phase::Asked | Phase::Abandoned, _) => self.metrics.refused += 1,
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
