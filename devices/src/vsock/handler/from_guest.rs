//! From the tx ring to connections and host streams.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::super::VsockEvent;
use super::super::connection::{Connection, Phase, Reaction};
use super::super::packet::{HEADER_LEN, HOST_CID, Header, MAX_PAYLOAD, Op, TYPE_STREAM};
use super::super::rings::{Rings, gather};
use super::super::table::Entry;
use super::{Budget, Handler};
use crate::ring::{Chain, RingError};
use crate::sock;
use crate::virtio::GuestRam;

impl Handler {
    /// Takes packets until there are none; true if the budget ended first.
    pub(super) fn take_packets(
        &mut self,
        memory: &GuestRam,
        rings: &mut Rings,
    ) -> Result<bool, RingError> {
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
        // Only data has a payload; elsewhere its length means nothing.
        let mut payload = 0;
        if header.op() == Some(Op::Rw) {
            payload = usize::try_from(header.len).unwrap_or(usize::MAX);
            if payload > chain.readable.len() || header.len > MAX_PAYLOAD {
                self.metrics.malformed += 1;
                match self.table.find(ports) {
                    Some(id) => self.end_offender(id),
                    None => self.answer_reset(&header),
                }
                return 0;
            }
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
                self.end_offender(id);
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
            self.end_offender(id);
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
    pub(super) fn flush(&mut self, id: u64) {
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
