//! From connections and host streams to the rx ring.

use std::io;
use std::time::Instant;

use super::super::BYTES_PER_TURN;
use super::super::connection::{Control, Phase};
use super::super::packet::{HEADER_LEN, MAX_PAYLOAD, Op};
use super::super::rings::{Rings, gather};
use super::super::table::Entry;
use super::{Budget, Handler};
use crate::ring::{Chain, RingError};
use crate::sock;
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
    /// Gives packets until there are none or no buffers; true if the budget
    /// ended first.
    pub(super) fn give_packets(
        &mut self,
        memory: &GuestRam,
        rings: &mut Rings,
    ) -> Result<bool, RingError> {
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
