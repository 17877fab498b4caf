//! Buffer space management (virtio 1.2 §5.10.6.3), and what happens when there
//! is none.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::super::packet::{Header, Op};
use super::driver::{Guest, LINUX_RX_BUFFER, RX, pattern};

/// Writes until the stream is full; how much.
fn fill(host: &mut UnixStream) -> usize {
    host.set_nonblocking(true).unwrap();
    let data = pattern(1 << 20);
    let mut written = 0;
    while let Ok(count) = host.write(&data[written..]) {
        written += count;
    }
    host.set_nonblocking(false).unwrap();
    written
}

#[test]
fn host_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_out(80, 10_000);
    let written = fill(&mut host);
    guest.settle();
    socket.take_in(&mut guest);
    assert_eq!(socket.received.len(), 10_000);
    // As the guest reads, it gets the rest, and all of it.
    let mut all = Vec::new();
    while all.len() < written {
        assert!(!socket.received.is_empty(), "nothing comes any more");
        all.extend(socket.read(&mut guest, 3_000));
        guest.settle();
        socket.take_in(&mut guest);
    }
    assert!(all == pattern(1 << 20)[..written]);
}

#[test]
fn a_guest_without_room_costs_no_time() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_out(80, 1_000);
    fill(&mut host);
    guest.settle();
    socket.take_in(&mut guest);
    assert_eq!(socket.received.len(), 1_000);
    // There is more to read from the host, and that wakes nobody.
    let wakeups = guest.device.metrics().wakeups;
    assert!(!guest.is_ready(0));
    assert_eq!(guest.device.metrics().wakeups, wakeups);
    // A hang-up, which epoll reports unasked, is told once.
    drop(host);
    guest.settle();
    assert!(!guest.is_ready(0));
    assert!(guest.device.metrics().wakeups < wakeups + 5);
}

#[test]
fn a_guest_without_buffers_costs_no_time_and_loses_nothing() {
    let mut guest = Guest::new();
    guest.repost = false;
    let (mut a, mut host_a) = guest.connect_out(80, 64 << 20);
    let (mut b, mut host_b) = guest.connect_out(81, 64 << 20);
    // Use up all buffers.
    let mut expected = (Vec::new(), Vec::new());
    for _ in 0..2 {
        for (host, data) in [
            (&mut host_a, &mut expected.0),
            (&mut host_b, &mut expected.1),
        ] {
            let written = fill(host);
            data.extend_from_slice(&pattern(1 << 20)[..written]);
            guest.settle();
        }
    }
    for _ in 0..4 {
        for (host, data) in [
            (&mut host_a, &mut expected.0),
            (&mut host_b, &mut expected.1),
        ] {
            let written = fill(host);
            data.extend_from_slice(&pattern(1 << 20)[..written]);
            guest.settle();
        }
    }
    assert_eq!(guest.rings[RX].used, 256, "all buffers are used");
    let wakeups = guest.device.metrics().wakeups;
    assert!(!guest.is_ready(0), "the event loop would spin");
    // What the guest sends is taken nevertheless (virtio 1.2 §5.10.6.1), and
    // answers wait.
    a.control(&mut guest, Op::CreditRequest, 0);
    guest.raw(Op::Rw, 4711, 4712);
    assert!(guest.device.metrics().wakeups < wakeups + 10);
    assert_eq!(guest.device.handler().resets.len(), 1);

    // Buffers again: one kick, and everything comes, in turns.
    let old = guest.rings[RX].avail;
    for at in 0..256 {
        guest.post(at, LINUX_RX_BUFFER);
    }
    assert!(guest.rings[RX].wants_kick(&guest.memory, old));
    guest.repost = true;
    guest.run_until(|guest| {
        a.take_in(guest);
        b.take_in(guest);
        a.received.len() == expected.0.len() && b.received.len() == expected.1.len()
    });
    assert!(a.received == expected.0);
    assert!(b.received == expected.1);
    assert_eq!(guest.expect(Op::Rst).0.src_port, 4711);
}

#[test]
fn kicks_of_the_rx_queue_are_not_asked_for_without_need() {
    let mut guest = Guest::new();
    let (_socket, mut host) = guest.connect_out(80, 64 << 20);
    for _ in 0..1000 {
        let old = guest.rings[RX].avail;
        host.write_all(b"a short message").unwrap();
        guest.expect(Op::Rw);
        assert!(guest.rings[RX].avail != old, "buffers were given again");
        assert!(!guest.rings[RX].wants_kick(&guest.memory, old));
    }
}

#[test]
fn no_connection_keeps_others_from_their_turn() {
    let mut guest = Guest::new();
    guest.repost = false;
    let (mut greedy, mut host_greedy) = guest.connect_out(80, 64 << 20);
    let (mut modest, mut host_modest) = guest.connect_out(81, 64 << 20);
    fill(&mut host_greedy);
    host_modest.write_all(b"me too").unwrap();
    // One run moves the greedy one's turn, and then the other's.
    guest.device.run_streams();
    guest.reap();
    greedy.take_in(&mut guest);
    modest.take_in(&mut guest);
    assert_eq!(modest.received, b"me too");
    assert!(greedy.received.len() <= 256 * 1024);
}

#[test]
fn guest_that_sends_more_than_it_may_is_reset() {
    let mut guest = Guest::new();
    let (mut socket, host) = guest.connect_out(80, 1 << 30);
    let mut sent = 0;
    // The host reads nothing: its stream fills up, then the promised buffer.
    while socket.credit() > 0 {
        sent += socket.send(&mut guest, &pattern(64 * 1024));
        guest.settle();
        socket.take_in(&mut guest);
    }
    assert!(!socket.reset);
    assert!(sent > 256 * 1024);
    guest.expect_silence();
    socket.send_anyway(&mut guest, b"x");
    guest.settle();
    socket.take_in(&mut guest);
    assert!(socket.reset);
    assert_eq!(guest.device.handler().table.len(), 0);
    drop(host);
}

#[test]
fn guest_with_a_small_buffer_of_its_own_does_not_wait_for_ever() {
    // Linux has no more in flight than its own receive buffer, which may be
    // smaller than what it is promised.
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_out(80, 4096);
    let data = pattern(200_000);
    let reader = guest.spawn(move || {
        let mut all = vec![0; 200_000];
        host.read_exact(&mut all).map(|()| all)
    });
    let mut sent = 0;
    guest.run_until(|guest| {
        while sent < data.len() {
            let count = socket.send(guest, &data[sent..]);
            guest.settle();
            socket.take_in(guest);
            sent += count;
            if count == 0 && socket.credit() == 0 {
                return false;
            }
        }
        true
    });
    assert!(guest.finish(reader).unwrap() == data);
}

#[test]
fn credit_updates_are_rare() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_out(80, 256 * 1024);
    let reader = guest.spawn(move || {
        let mut left = 8 << 20;
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            left -= host.read(&mut buffer).unwrap();
        }
    });
    let data = pattern(64 * 1024);
    let mut sent = 0;
    guest.run_until(|guest| {
        while sent < 8 << 20 {
            let count = socket.send(guest, &data[..data.len().min((8 << 20) - sent)]);
            guest.settle();
            socket.take_in(guest);
            sent += count;
            if count == 0 && socket.credit() == 0 {
                return false;
            }
        }
        true
    });
    guest.finish(reader);
    // One for half of the promised buffer at most.
    assert!(guest.device.metrics().credit_updates <= 8 * 1024 / 128);
}

#[test]
fn guest_asks_for_credit() {
    let mut guest = Guest::new();
    let (mut socket, _host) = guest.connect_out(80, 256 * 1024);
    socket.send(&mut guest, b"12345");
    for _ in 0..3 {
        socket.control(&mut guest, Op::CreditRequest, 0);
    }
    let (update, _) = guest.expect(Op::CreditUpdate);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (256 * 1024, 5));
}

#[test]
fn guest_that_promises_nothing_is_asked_once() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_out(80, 0);
    host.write_all(b"patience").unwrap();
    guest.expect(Op::CreditRequest);
    socket.control(&mut guest, Op::CreditUpdate, 0);
    guest.expect_silence();
    socket.buf_alloc = 3;
    socket.control(&mut guest, Op::CreditUpdate, 0);
    assert_eq!(guest.expect(Op::Rw).1, b"pat");
    guest.expect_silence();
    socket.buf_alloc = 1_000_000;
    socket.control(&mut guest, Op::CreditUpdate, 0);
    assert_eq!(guest.expect(Op::Rw).1, b"ience");
}

#[test]
fn promises_that_shrink_and_counts_that_lie_give_no_credit() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_out(80, 100);
    host.write_all(&[1; 100]).unwrap();
    assert_eq!(guest.expect(Op::Rw).1.len(), 100);
    host.write_all(&[2; 1000]).unwrap();
    guest.expect_silence();
    let lies = [(50, 0), (100, 101), (100, u32::MAX), (0, 0), (100, 1 << 31)];
    for (buf_alloc, fwd_cnt) in lies {
        let lie = Header {
            buf_alloc,
            fwd_cnt,
            ..socket.header(Op::CreditUpdate, 0, 0)
        };
        guest.transmit(&lie, &[]);
        guest.expect_silence();
    }
    // Half used up: fifty more; and this cannot be taken back.
    socket.fwd_cnt = 50;
    socket.control(&mut guest, Op::CreditUpdate, 0);
    assert_eq!(guest.expect(Op::Rw).1.len(), 50);
    socket.fwd_cnt = 0;
    socket.control(&mut guest, Op::CreditUpdate, 0);
    guest.expect_silence();
    socket.fwd_cnt = 150;
    socket.control(&mut guest, Op::CreditUpdate, 0);
    assert_eq!(guest.expect(Op::Rw).1.len(), 100);
}
