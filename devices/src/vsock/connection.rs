//! One connection: its state machine and its credit, without any I/O.
//!
//! The methods are called with what came from the guest (`receive`, `admit`)
//! and from the host (`host_*`, `take_in`, `forwarded`); what is to be sent is
//! asked for with [`Connection::due`] and [`Connection::credit`]. All counters
//! of virtio 1.2 §5.10.6.3 wrap at 2³², and nothing that the guest says about
//! its own is believed further than it can harm only the guest.

use std::collections::VecDeque;

#[cfg(test)]
mod tests;

use super::packet::{
    HOST_CID, Header, Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};

/// Memory that an empty buffer may keep, in bytes.
const IDLE_BUFFER: usize = 4096;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest asked; the host has not answered.
    Asked,
    /// The host asked; the guest has not answered.
    Connecting,
    /// Data may flow.
    Established,
    /// Both directions were shut by the host; the guest has to confirm by RST.
    Closing,
    /// Over for the guest, which may use the ports again. What it sent before
    /// is still on its way to the host.
    Draining,
    /// Over for the guest before the host answered, which it still has to do.
    Abandoned,
}

/// What a packet of the guest leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Nothing but a new state.
    None,
    /// The guest accepted the host's connection.
    Connected,
    /// The packet carries data: [`Connection::admit`] it.
    Data,
    /// The guest shut a direction: carry over to the host's stream.
    GuestShutdown,
    /// The guest shut both directions: confirm by RST, then drain.
    Finished,
    /// The guest ended it by RST: drain.
    Gone,
    /// The packet is not allowed now: RST, and drop everything.
    Violation,
}

/// A control packet that waits to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) op: Op,
    /// Of a SHUTDOWN.
    pub(super) flags: u32,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    phase: Phase,

    /// A REQUEST or RESPONSE waits to be sent.
    handshake_due: bool,
    credit_update_due: bool,
    credit_request_due: bool,
    /// Nothing more is asked until the guest gives credit.
    credit_requested: bool,

    /// What the guest said in SHUTDOWN: never taken back.
    guest_shut: u32,
    /// What the host did, as SHUTDOWN flags.
    host_shut: u32,
    /// How much of `host_shut` the guest was told.
    told_shut: u32,

    /// Bytes promised to the guest: the buffer's bound.
    buf_alloc: u32,
    /// Bytes received from the guest.
    rx_cnt: u32,
    /// Bytes of those that left for the host.
    fwd_cnt: u32,
    /// The `fwd_cnt` that the guest was last told.
    told_fwd_cnt: u32,
    /// `rx_cnt - fwd_cnt` bytes that the host's stream did not take yet.
    buffer: VecDeque<u8>,

    /// The guest's promise, as it last said.
    peer_buf_alloc: u32,
    /// How much of `tx_cnt` the guest says to have used up.
    peer_fwd_cnt: u32,
    /// Bytes sent to the guest.
    tx_cnt: u32,
}

impl Connection {
    fn new(ports: Ports, phase: Phase, buf_alloc: u32) -> Self {
        Self {
            ports,
            phase,
            handshake_due: false,
            credit_update_due: false,
            credit_request_due: false,
            credit_requested: false,
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
            buf_alloc,
            rx_cnt: 0,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            buffer: VecDeque::new(),
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            tx_cnt: 0,
        }
    }

    /// The host's connection to the guest: REQUEST is due.
    pub(super) fn outgoing(ports: Ports, buf_alloc: u32) -> Self {
        Self {
            handshake_due: true,
            ..Self::new(ports, Phase::Connecting, buf_alloc)
        }
    }

    /// The guest's connection to the host, by its REQUEST.
    pub(super) fn incoming(request: &Header, buf_alloc: u32) -> Self {
        let ports = request.ports_from_guest();
        let mut connection = Self::new(ports, Phase::Asked, buf_alloc);
        connection.learn_credit(request);
        connection
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    /// Whether the guest may know this connection.
    pub(super) fn is_known_to_guest(&self) -> bool {
        match self.phase {
            Phase::Connecting => !self.handshake_due,
            Phase::Asked | Phase::Established | Phase::Closing => true,
            Phase::Draining | Phase::Abandoned => false,
        }
    }

    /// The host accepts the guest's connection: RESPONSE is due. False if that
    /// is not what the connection waits for.
    pub(super) fn accept(&mut self) -> bool {
        if self.phase != Phase::Asked {
            return false;
        }
        self.phase = Phase::Established;
        self.handshake_due = true;
        true
    }

    /// The guest is done with this connection.
    pub(super) fn drain(&mut self) {
        self.phase = match self.phase {
            Phase::Asked | Phase::Abandoned => Phase::Abandoned,
            _ => Phase::Draining,
        };
    }

    // From the guest.

    /// A packet of the guest on this connection (virtio 1.2 §5.10.6.5).
    pub(super) fn receive(&mut self, header: &Header) -> Reaction {
        self.learn_credit(header);
        let Some(op) = header.op() else {
            return Reaction::Violation;
        };
        if op == Op::Rst {
            return Reaction::Gone;
        }
        match (self.phase, op) {
            (Phase::Connecting, Op::Response) if !self.handshake_due => {
                self.phase = Phase::Established;
                Reaction::Connected
            }
            (Phase::Established, Op::Rw) => Reaction::Data,
            (Phase::Established, Op::Shutdown) => {
                self.guest_shut |= header.flags & SHUTDOWN_BOTH;
                if self.guest_shut == SHUTDOWN_BOTH {
                    Reaction::Finished
                } else {
                    Reaction::GuestShutdown
                }
            }
            (Phase::Closing, Op::Shutdown) => Reaction::Finished,
            (Phase::Established, Op::CreditRequest) => {
                self.credit_update_due = true;
                Reaction::None
            }
            (Phase::Established, Op::CreditUpdate) => Reaction::None,
            // Sent before the guest learned of the end.
            (Phase::Closing, Op::Rw | Op::CreditUpdate | Op::CreditRequest) => Reaction::None,
            _ => Reaction::Violation,
        }
    }

    /// Every packet tells `buf_alloc` and `fwd_cnt` (virtio 1.2 §5.10.6.3).
    ///
    /// `buf_alloc` may be anything, and shrink. A `fwd_cnt` that goes back or
    /// overtakes what was sent cannot be true and is passed over.
    fn learn_credit(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        let step = header.fwd_cnt.wrapping_sub(self.peer_fwd_cnt);
        if step <= self.in_flight() {
            self.peer_fwd_cnt = header.fwd_cnt;
        }
        if self.credit() > 0 {
            self.credit_requested = false;
        }
        self.review_room();
    }

    /// Takes responsibility for `len` bytes of data. False if the guest has
    /// shut this direction or has no credit for them.
    #[must_use]
    pub(super) fn admit(&mut self, len: u32) -> bool {
        let held = self.rx_cnt.wrapping_sub(self.fwd_cnt);
        let fits = held
            .checked_add(len)
            .is_some_and(|held| held <= self.buf_alloc);
        if self.guest_shut & SHUTDOWN_SEND != 0 || !fits {
            return false;
        }
        self.rx_cnt = self.rx_cnt.wrapping_add(len);
        true
    }

    /// Keeps admitted data that the host's stream did not take.
    pub(super) fn keep(&mut self, data: &[u8]) {
        self.buffer.extend(data);
    }

    /// Kept data, oldest first.
    pub(super) fn kept(&self) -> (&[u8], &[u8]) {
        self.buffer.as_slices()
    }

    pub(super) fn keeps_data(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// `count` admitted bytes, not kept ones, went to the host.
    pub(super) fn forwarded(&mut self, count: u32) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(count);
        self.review_room();
    }

    /// Tells the guest of room that it does not know of once the room that it
    /// knows of is half its window: rare enough, and early enough that the
    /// guest need not wait.
    ///
    /// The window is not only what was promised: Linux has no more in flight
    /// than its own buffer's size either, and would wait for ever for an update
    /// that comes only after half of a larger one.
    fn review_room(&mut self) {
        let window = self.buf_alloc.min(self.peer_buf_alloc);
        let known_held = self.rx_cnt.wrapping_sub(self.told_fwd_cnt);
        if self.fwd_cnt != self.told_fwd_cnt && known_held >= window / 2 {
            self.credit_update_due = true;
        }
    }

    /// `count` of the kept bytes went to the host.
    pub(super) fn forwarded_kept(&mut self, count: usize) {
        let count = count.min(self.buffer.len());
        self.buffer.drain(..count);
        if self.buffer.is_empty() && self.buffer.capacity() > IDLE_BUFFER {
            self.buffer = VecDeque::new();
        }
        // Not more than `buf_alloc`, which is a u32.
        self.forwarded(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// Whether the host is to learn that the guest sends no more: it said so,
    /// and all that it sent was passed on.
    pub(super) fn guest_sends_no_more(&self) -> bool {
        self.guest_shut & SHUTDOWN_SEND != 0 && self.buffer.is_empty()
    }

    pub(super) fn guest_receives_no_more(&self) -> bool {
        self.guest_shut & SHUTDOWN_RECEIVE != 0
    }

    // From the host.

    /// The host sends no more, and everything that it sent is on its way.
    pub(super) fn host_sends_no_more(&mut self) {
        self.host_shut |= SHUTDOWN_SEND;
    }

    /// The host receives no more: data for it is dropped.
    pub(super) fn host_receives_no_more(&mut self) {
        self.host_shut |= SHUTDOWN_RECEIVE;
        let kept = self.buffer.len();
        self.forwarded_kept(kept);
        if !self.reads_host() {
            self.host_shut |= SHUTDOWN_SEND;
        }
    }

    pub(super) fn host_receives(&self) -> bool {
        self.host_shut & SHUTDOWN_RECEIVE == 0
    }

    /// Whether data of the host is of use at all, now or when credit comes.
    pub(super) fn reads_host(&self) -> bool {
        self.phase == Phase::Established
            && self.host_shut & SHUTDOWN_SEND == 0
            && !self.guest_receives_no_more()
    }

    /// Bytes that may be sent to the guest now.
    pub(super) fn credit(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.in_flight())
    }

    fn in_flight(&self) -> u32 {
        self.tx_cnt.wrapping_sub(self.peer_fwd_cnt)
    }

    /// The host has data and the guest has no credit. Bytes in flight make the
    /// guest tell when it has used them up; without any, it is asked, once.
    pub(super) fn stalled(&mut self) {
        if self.in_flight() == 0 && !self.credit_requested {
            self.credit_requested = true;
            self.credit_request_due = true;
        }
    }

    // To the guest.

    /// The next control packet to be sent; [`Self::sent`] when it was.
    pub(super) fn due(&self) -> Option<Control> {
        let control = |op| Some(Control { op, flags: 0 });
        match self.phase {
            Phase::Connecting if self.handshake_due => control(Op::Request),
            Phase::Established if self.handshake_due => control(Op::Response),
            Phase::Established if self.host_shut != self.told_shut => Some(Control {
                op: Op::Shutdown,
                flags: self.host_shut,
            }),
            Phase::Established if self.credit_update_due => control(Op::CreditUpdate),
            Phase::Established if self.credit_request_due => control(Op::CreditRequest),
            _ => None,
        }
    }

    /// A control packet is in the guest's hands.
    pub(super) fn sent(&mut self, control: Control) {
        self.told_credit();
        match control.op {
            Op::Request | Op::Response => self.handshake_due = false,
            Op::CreditRequest => self.credit_request_due = false,
            Op::Shutdown => {
                self.told_shut = control.flags;
                if control.flags == SHUTDOWN_BOTH {
                    self.phase = Phase::Closing;
                }
            }
            Op::Rst | Op::Rw | Op::CreditUpdate => {}
        }
    }

    /// `count` bytes of data are in the guest's hands.
    pub(super) fn sent_data(&mut self, count: u32) {
        self.told_credit();
        self.tx_cnt = self.tx_cnt.wrapping_add(count);
    }

    fn told_credit(&mut self) {
        self.told_fwd_cnt = self.fwd_cnt;
        self.credit_update_due = false;
    }

    /// The header of a packet to the guest.
    pub(super) fn header(&self, guest_cid: u64, control: Control, len: u32) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: TYPE_STREAM,
            raw_op: control.op.to_wire(),
            flags: control.flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }
}
