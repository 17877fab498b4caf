//! A guest that breaks the rules.

use std::io::{Read, Write};

use vm_memory::{Bytes, GuestAddress};

use super::super::packet::{HEADER_LEN, Header, Op};
use super::super::{Deadlines, MAX_CONNECTIONS, MAX_PENDING_RSTS, VsockEvent};
use super::driver::{
    EVENT, FEATURES, GUEST_CID, Guest, INDIRECT, LINUX_RX_BUFFER, MEMORY, NEXT, RX, TX, WRITE,
    data, pattern, write_descriptor,
};
use super::socket::header;
use crate::virtio::VirtioDevice;

/// Sends a packet that belongs to a connection if `connected`.
fn answer(connected: bool, change: impl Fn(&mut Header), payload: &[u8]) -> (Vec<Op>, usize) {
    let mut guest = Guest::new();
    let (socket, _host) = guest.connect_out(80, 256 * 1024);
    let mut packet = socket.header(Op::Rw, 0, payload.len() as u32);
    if !connected {
        packet.src_port += 1;
    }
    change(&mut packet);
    guest.transmit(&packet, payload);
    guest.settle();
    assert!(!guest.interrupt.is_reset_needed());
    let ops = guest.inbox.iter().map(|(header, _)| header.op().unwrap());
    let ops = ops.collect();
    let left = guest.device.handler().table.len();
    (ops, left)
}

#[test]
fn packets_that_make_no_sense_are_answered_by_reset_or_not_at_all() {
    type Change = fn(&mut Header);
    // Name, change, whether it is for a connection, answer, connections left.
    let cases: &[(&str, Change, bool, &[Op], usize)] = &[
        ("good", |_| {}, true, &[], 1),
        ("no such connection", |_| {}, false, &[Op::Rst], 1),
        ("wrong destination", |h| h.dst_cid = 3, true, &[Op::Rst], 1),
        (
            "destination above 32 bits",
            |h| h.dst_cid |= 1 << 32,
            true,
            &[Op::Rst],
            1,
        ),
        // §5.10.6.4: RST for an unknown type.
        ("unknown type", |h| h.kind = 7, true, &[Op::Rst], 1),
        (
            "SEQPACKET, not offered",
            |h| h.kind = 2,
            true,
            &[Op::Rst],
            1,
        ),
        (
            "SEQPACKET request",
            |h| (h.kind, h.raw_op) = (2, 1),
            false,
            &[Op::Rst],
            1,
        ),
        ("operation 0", |h| h.raw_op = 0, true, &[Op::Rst], 0),
        ("operation 8", |h| h.raw_op = 8, true, &[Op::Rst], 0),
        (
            "operation 8, no connection",
            |h| h.raw_op = 8,
            false,
            &[Op::Rst],
            1,
        ),
        (
            "request on a connection",
            |h| h.raw_op = 1,
            true,
            &[Op::Rst],
            0,
        ),
        (
            "response on a connection",
            |h| h.raw_op = 2,
            true,
            &[Op::Rst],
            0,
        ),
        (
            "response without request",
            |h| h.raw_op = 2,
            false,
            &[Op::Rst],
            1,
        ),
        (
            "shutdown, no connection",
            |h| h.raw_op = 4,
            false,
            &[Op::Rst],
            1,
        ),
        (
            "shutdown of nothing",
            |h| (h.raw_op, h.flags) = (4, 0),
            true,
            &[],
            1,
        ),
        (
            "shutdown of the unknown",
            |h| (h.raw_op, h.flags) = (4, !3),
            true,
            &[],
            1,
        ),
        ("reset, no connection", |h| h.raw_op = 3, false, &[], 1),
        (
            "reset of another type",
            |h| (h.raw_op, h.kind) = (3, 9),
            true,
            &[],
            1,
        ),
        (
            "reset to elsewhere",
            |h| (h.raw_op, h.dst_cid) = (3, 9),
            true,
            &[],
            1,
        ),
        ("forged source", |h| h.src_cid = GUEST_CID + 1, true, &[], 1),
        (
            "source above 32 bits",
            |h| h.src_cid |= 1 << 40,
            true,
            &[],
            1,
        ),
        ("host as source", |h| h.src_cid = 2, true, &[], 1),
        (
            "length beyond the buffer",
            |h| h.len = 7,
            true,
            &[Op::Rst],
            0,
        ),
        ("length 4 GiB", |h| h.len = u32::MAX, true, &[Op::Rst], 0),
        (
            "length beyond, no connection",
            |h| h.len = 7,
            false,
            &[Op::Rst],
            1,
        ),
        (
            "reset with length",
            |h| (h.raw_op, h.len) = (3, 99),
            true,
            &[],
            0,
        ),
        ("less than the buffer", |h| h.len = 2, true, &[], 1),
        ("nothing", |h| h.len = 0, true, &[], 1),
    ];
    for (name, change, connected, ops, left) in cases {
        let found = answer(*connected, change, b"abcdef");
        assert_eq!(found, (ops.to_vec(), *left), "{name}");
    }
}

#[test]
fn payload_of_64_kib_is_the_most() {
    let most = pattern(64 * 1024);
    assert_eq!(answer(true, |_| {}, &most), (vec![], 1));
    let more = pattern(64 * 1024 + 1);
    assert_eq!(answer(true, |_| {}, &more), (vec![Op::Rst], 0));
}

#[test]
fn answer_to_nobody_goes_where_the_packet_came_from() {
    let mut guest = Guest::new();
    let mut packet = header(Op::Rw, 1, 2);
    packet.kind = 5;
    guest.transmit(&packet, &[]);
    let (reset, _) = guest.expect(Op::Rst);
    assert_eq!((reset.src_port, reset.dst_port, reset.kind), (1, 2, 5));
    assert_eq!((reset.buf_alloc, reset.fwd_cnt, reset.len), (0, 0, 0));
}

#[test]
fn data_after_the_guests_own_shutdown_is_an_offence() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_out(80, 256 * 1024);
    socket.control(&mut guest, Op::Shutdown, 2);
    socket.send_anyway(&mut guest, b"x");
    guest.expect(Op::Rst);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn packets_before_the_host_answered_are_an_offence() {
    for op in [Op::Rw, Op::Request, Op::Response, Op::Shutdown] {
        let mut guest = Guest::new();
        guest.raw(Op::Request, 80, 1000);
        let VsockEvent::Incoming { id, .. } = guest.event() else {
            panic!("no connection");
        };
        guest.raw(op, 80, 1000);
        guest.expect(Op::Rst);
        guest.device.accept(id);
        guest.expect_silence();
        assert_eq!(guest.device.handler().table.len(), 0, "{op:?}");
    }
}

#[test]
fn resets_are_never_answered_and_never_pile_up() {
    let mut guest = Guest::bare(Deadlines::default());
    guest.activate(FEATURES);
    // No receive buffers: all answers have to wait.
    for i in 0..4 * MAX_PENDING_RSTS as u32 {
        guest.transmit(&header(Op::Rw, 80, i), &[]);
        guest.transmit(&header(Op::Rst, 80, i), &[]);
        if i % 16 == 0 {
            guest.settle();
        }
    }
    guest.settle();
    assert_eq!(guest.device.handler().resets.len(), MAX_PENDING_RSTS);
    let dropped = guest.device.metrics().resets_dropped;
    assert_eq!(dropped, 3 * MAX_PENDING_RSTS as u64);
    guest.post_all(LINUX_RX_BUFFER);
    guest.run_until(|guest| guest.inbox.len() == MAX_PENDING_RSTS);
    for (reset, _) in std::mem::take(&mut guest.inbox) {
        assert_eq!(reset.op(), Some(Op::Rst));
    }
    guest.expect_silence();
}

#[test]
fn packets_may_be_cut_anywhere() {
    // virtio 1.2 §2.7.4.1: no assumption about where descriptors begin. Linux
    // before 6.3 used two, then one, and now up to one for each page.
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_out(80, 256 * 1024);
    let payload = pattern(100);
    for cut in 0..HEADER_LEN + 100 {
        for cuts in [
            vec![],
            vec![cut],
            vec![cut, cut + 1],
            vec![1, cut, HEADER_LEN + 50],
        ] {
            let packet = socket.header(Op::Rw, 0, 100);
            socket.tx_cnt += 100;
            guest.transmit_cut(&packet, &payload, &cuts);
            guest.settle();
            let mut bytes = [0; 100];
            host.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes[..], payload[..], "{cuts:?}");
        }
    }
}

#[test]
fn partly_taken_packets_continue_where_they_stopped() {
    // A stream that takes some of the descriptors of a packet: nothing is sent
    // twice, and nothing left out.
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_out(80, 64 << 20);
    let data = pattern(4 << 20);
    let mut sent = 0;
    while socket.credit() > 0 {
        let len = (socket.credit() as usize).min(60_000);
        let packet = socket.header(Op::Rw, 0, len as u32);
        socket.tx_cnt += len as u32;
        let cuts = [HEADER_LEN + 1, HEADER_LEN + 20_000, HEADER_LEN + 40_001];
        guest.transmit_cut(&packet, &data[sent..sent + len], &cuts);
        sent += len;
        guest.settle();
        socket.take_in(&mut guest);
    }
    let mut all = vec![0; sent];
    let reader = guest.spawn(move || host.read_exact(&mut all).map(|()| (all, host)));
    assert!(guest.finish(reader).unwrap().0 == data[..sent]);
}

#[test]
fn packets_too_short_for_a_header_are_dropped() {
    let mut guest = Guest::new();
    for len in [0, 1, HEADER_LEN as u32 - 1] {
        guest.rings[TX].describe(&guest.memory, 0, (data(TX, 0), len, 0, 0));
        guest.rings[TX].offer(&guest.memory, 0);
        guest.expect_silence();
    }
    assert_eq!(guest.rings[TX].used, 3);
    assert_eq!(guest.device.metrics().malformed, 3);
}

#[test]
fn broken_rings_end_everything_until_the_driver_resets() {
    type Break = fn(&mut Guest);
    let cases: &[(&str, Break)] = &[
        ("§2.7.6: tx index jumps", |g| {
            let index = g.rings[TX].avail.wrapping_add(257);
            g.rings[TX].publish(&g.memory, index);
        }),
        ("§2.7.6: tx index goes back", |g| {
            let index = g.rings[TX].avail.wrapping_sub(1);
            g.rings[TX].publish(&g.memory, index);
        }),
        ("§2.7.5: head outside the table", |g| {
            let Guest { rings, memory, .. } = g;
            rings[TX].offer(memory, 256);
        }),
        ("§2.7.5: next outside the table", |g| {
            tx(g, &[(data(TX, 0), 44, NEXT, 256)]);
        }),
        ("§2.7.5.2: loop", |g| {
            tx(g, &[(data(TX, 0), 44, NEXT, 1), (data(TX, 0), 44, NEXT, 0)]);
        }),
        ("buffer outside memory", |g| {
            tx(g, &[(MEMORY, 44, 0, 0)]);
        }),
        ("buffer crosses the end of memory", |g| {
            tx(g, &[(MEMORY - 43, 44, 0, 0)]);
        }),
        ("§2.7.5.2: more than 4 GiB", |g| {
            tx(g, &[(0, u32::MAX, NEXT, 1), (0, u32::MAX, 0, 0)]);
        }),
        ("§2.7.4.2: readable after writable", |g| {
            tx(
                g,
                &[(data(TX, 0), 44, NEXT | WRITE, 1), (data(TX, 1), 9, 0, 0)],
            );
        }),
        ("§2.7.5.3.1: indirect and next", |g| {
            tx(
                g,
                &[
                    (data(TX, 0), 16, INDIRECT | NEXT, 1),
                    (data(TX, 1), 9, 0, 0),
                ],
            );
        }),
        ("§2.7.5.3.1: indirect in indirect", |g| {
            let table = data(TX, 9);
            write_descriptor(&g.memory, table, (data(TX, 0), 16, INDIRECT, 0));
            tx(g, &[(table, 16, INDIRECT, 0)]);
        }),
        ("indirect table of 15 bytes", |g| {
            tx(g, &[(data(TX, 0), 15, INDIRECT, 0)]);
        }),
        ("rx index jumps", |g| {
            let index = g.rings[RX].avail.wrapping_add(257);
            g.rings[RX].publish(&g.memory, index);
            unknown(g);
        }),
        ("rx buffer outside memory", |g| {
            rx(g, (MEMORY - 1, 4096, WRITE, 0));
        }),
        ("rx buffer that may only be read", |g| {
            rx(g, (data(RX, 0), 4096, 0, 0));
        }),
        ("rx buffer without room", |g| {
            rx(g, (data(RX, 0), 44, WRITE, 0));
        }),
        ("rx buffer of no length", |g| {
            rx(g, (data(RX, 0), 0, WRITE, 0));
        }),
    ];
    for (name, breakage) in cases {
        let mut guest = Guest::new();
        let (_socket, mut host) = guest.connect_out(80, 256 * 1024);
        breakage(&mut guest);
        guest.device.run();
        assert!(guest.interrupt.is_reset_needed(), "{name}");
        assert_eq!(guest.device.metrics().broken_rings, 1, "{name}");
        // Connections are over for the host, and rings are left alone.
        assert_eq!(host.read(&mut [0]).unwrap(), 0, "{name}");
        let used = [RX, TX, EVENT].map(|queue| guest.rings[queue].clone().take(&guest.memory));
        for _ in 0..3 {
            guest.device.run_streams();
        }
        assert!(!guest.is_ready(0), "{name}: the event loop would spin");
        let after = [RX, TX, EVENT].map(|queue| guest.rings[queue].clone().take(&guest.memory));
        assert_eq!(used, after, "{name}");
        assert_eq!(guest.device.metrics().broken_rings, 1, "{name}");

        // After a reset all is well.
        guest.device.reset();
        guest.interrupt.clear();
        let mut fresh = Guest::bare(Deadlines::default());
        std::mem::swap(&mut fresh.rings, &mut guest.rings);
        guest.memory = fresh.memory.clone();
        guest.activate(FEATURES);
        guest.post_all(LINUX_RX_BUFFER);
        unknown(&mut guest);
        guest.expect(Op::Rst);
    }
}

/// A chain in the tx queue.
fn tx(guest: &mut Guest, descriptors: &[(u64, u32, u16, u16)]) {
    let Guest { rings, memory, .. } = guest;
    let packet = header(Op::Rw, 1, 2).to_bytes();
    memory
        .write_slice(&packet, GuestAddress(data(TX, 0)))
        .unwrap();
    for (at, descriptor) in (0..).zip(descriptors) {
        rings[TX].describe(memory, at, *descriptor);
    }
    rings[TX].offer(memory, 0);
}

/// The same receive buffer everywhere, and something to put into it.
fn rx(guest: &mut Guest, descriptor: (u64, u32, u16, u16)) {
    for at in 0..256 {
        guest.rings[RX].describe(&guest.memory, at, descriptor);
    }
    unknown(guest);
}

/// A packet that is answered.
fn unknown(guest: &mut Guest) {
    guest.transmit(&header(Op::Rw, 1, 2), &[]);
}

#[test]
fn indirect_chains_are_followed() {
    // virtio 1.2 §2.7.5.3
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_out(80, 256 * 1024);
    let packet = socket.header(Op::Rw, 0, 5);
    socket.tx_cnt += 5;
    let at = data(TX, 0);
    guest
        .memory
        .write_slice(&packet.to_bytes(), GuestAddress(at))
        .unwrap();
    guest
        .memory
        .write_slice(b"hello", GuestAddress(at + 100))
        .unwrap();
    let table = data(TX, 1);
    write_descriptor(&guest.memory, table, (at, 44, NEXT, 1));
    write_descriptor(&guest.memory, table + 16, (at + 100, 5, 0, 0));
    guest.rings[TX].describe(&guest.memory, 7, (table, 32, INDIRECT, 0));
    guest.rings[TX].offer(&guest.memory, 7);
    guest.settle();
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
fn receive_buffers_may_be_cut_anywhere() {
    for first in [1, 43, 44, 45, 60] {
        let mut guest = Guest::bare(Deadlines::default());
        guest.activate(FEATURES);
        let at = data(RX, 200);
        guest.rings[RX].describe(&guest.memory, 200, (at, first, WRITE | NEXT, 201));
        let rest = (at + u64::from(first), 100, WRITE, 0);
        guest.rings[RX].describe(&guest.memory, 201, rest);
        guest.repost = false;
        guest.post(1, 100);
        let (_socket, mut host) = guest.connect_out(80, 256 * 1024);
        host.write_all(&pattern(first as usize + 56)).unwrap();
        guest.rings[RX].offer(&guest.memory, 200);
        guest.settle();
        assert_eq!(guest.rings[RX].take(&guest.memory), None, "taken by settle");
        let (header, payload) = guest.inbox.pop_front().unwrap();
        assert_eq!(header.op(), Some(Op::Rw));
        assert!(payload == pattern(first as usize + 56), "{first}");
    }
}

#[test]
fn connections_that_come_and_go_leave_nothing_in_line() {
    let mut guest = Guest::bare(Deadlines::default());
    guest.activate(FEATURES);
    // The guest has no buffers: the answer to the first waits for ever, and those
    // to all others behind it.
    for port in 0..5 * MAX_CONNECTIONS as u32 {
        guest.raw(Op::Request, port, 50_000);
        let VsockEvent::Incoming { id, .. } = guest.event() else {
            panic!("no connection");
        };
        guest.device.accept(id);
        guest.settle();
        if port > 0 {
            guest.raw(Op::Rst, port, 50_000);
            guest.settle();
        }
    }
    assert_eq!(guest.device.handler().table.len(), 1);
    assert!(guest.device.handler().ready.len() <= 2 * MAX_CONNECTIONS + 1);
}
