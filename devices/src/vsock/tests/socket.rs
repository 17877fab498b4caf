//! Sockets of a guest, with correct credit.

use super::super::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use super::driver::{GUEST_CID, Guest};

/// A packet of the guest without payload, which promises 256 KiB.
pub(super) fn header(op: Op, host: u32, guest: u32) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        kind: TYPE_STREAM,
        raw_op: op.to_wire(),
        buf_alloc: 256 * 1024,
        ..Header::default()
    }
}

/// One end of a connection in the guest, with credit as Linux keeps it.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    pub(super) host: u32,
    pub(super) guest: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
    pub(super) tx_cnt: u32,
    pub(super) peer_buf_alloc: u32,
    pub(super) peer_fwd_cnt: u32,
    told_fwd_cnt: u32,
    pub(super) received: Vec<u8>,
    /// SHUTDOWN flags of the host.
    pub(super) shut: u32,
    pub(super) reset: bool,
}

impl Socket {
    pub(super) fn new(host: u32, guest: u32) -> Self {
        Self {
            host,
            guest,
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
            tx_cnt: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            told_fwd_cnt: 0,
            received: Vec::new(),
            shut: 0,
            reset: false,
        }
    }

    pub(super) fn header(&self, op: Op, flags: u32, len: u32) -> Header {
        Header {
            flags,
            len,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..header(op, self.host, self.guest)
        }
    }

    pub(super) fn control(&mut self, guest: &mut Guest, op: Op, flags: u32) {
        self.told_fwd_cnt = self.fwd_cnt;
        guest.transmit(&self.header(op, flags, 0), &[]);
        guest.settle();
    }

    pub(super) fn learn(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
    }

    /// `virtio_transport_has_space`: not more than the own buffer either.
    pub(super) fn credit(&self) -> u32 {
        let window = self.peer_buf_alloc.min(self.buf_alloc);
        window.saturating_sub(self.tx_cnt.wrapping_sub(self.peer_fwd_cnt))
    }

    /// Sends as much as there is credit for; how much.
    pub(super) fn send(&mut self, guest: &mut Guest, data: &[u8]) -> usize {
        let len = data.len().min(self.credit() as usize);
        if len > 0 {
            self.send_anyway(guest, &data[..len]);
        }
        len
    }

    pub(super) fn send_anyway(&mut self, guest: &mut Guest, data: &[u8]) {
        self.told_fwd_cnt = self.fwd_cnt;
        guest.transmit(&self.header(Op::Rw, 0, data.len() as u32), data);
        self.tx_cnt = self.tx_cnt.wrapping_add(data.len() as u32);
    }

    /// Takes in packets for this socket; others stay.
    pub(super) fn take_in(&mut self, guest: &mut Guest) {
        for (header, payload) in std::mem::take(&mut guest.inbox) {
            if (header.src_port, header.dst_port) != (self.host, self.guest) {
                guest.inbox.push_back((header, payload));
                continue;
            }
            self.learn(&header);
            match header.op().unwrap() {
                Op::Rw => {
                    assert_eq!(self.shut & 2, 0, "data after SHUTDOWN");
                    self.received.extend(payload);
                    let in_use = self.received.len();
                    assert!(
                        in_use <= self.buf_alloc as usize,
                        "credit overrun: {in_use}"
                    );
                }
                Op::Shutdown => self.shut |= header.flags,
                Op::Rst => self.reset = true,
                Op::CreditRequest => self.control(guest, Op::CreditUpdate, 0),
                Op::CreditUpdate | Op::Response | Op::Request => {}
            }
        }
    }

    /// What a program does with `read`, `limit` bytes at most. Tells of the
    /// room as `virtio_transport_stream_do_dequeue` does.
    pub(super) fn read(&mut self, guest: &mut Guest, limit: usize) -> Vec<u8> {
        let count = limit.min(self.received.len());
        let data: Vec<u8> = self.received.drain(..count).collect();
        self.fwd_cnt = self.fwd_cnt.wrapping_add(count as u32);
        let untold = self.fwd_cnt.wrapping_sub(self.told_fwd_cnt);
        let low = self.received.is_empty();
        if untold > 0 && (self.buf_alloc.saturating_sub(untold) < 64 * 1024 || low) {
            self.control(guest, Op::CreditUpdate, 0);
        }
        data
    }
}
