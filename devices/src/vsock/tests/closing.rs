//! How connections end, one direction at a time or all at once.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::packet::{Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::super::{Deadlines, VsockEvent};
use super::driver::{Guest, RX, pattern};
use super::socket::{Socket, header};
use crate::virtio::VirtioDevice;

const KIB_256: u32 = 256 * 1024;

fn connected(guest: &mut Guest) -> (Socket, UnixStream) {
    guest.connect_out(80, KIB_256)
}

#[test]
fn host_ends_sending_and_still_receives() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = connected(&mut guest);
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(Op::Rw).1, b"last words");
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_SEND);
    socket.send(&mut guest, b"answer");
    guest.expect_silence();
    let mut answer = [0; 6];
    host.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    // Now the other direction as well.
    drop(host);
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_BOTH);
    guest.raw(Op::Rst, 80, socket.guest);
    guest.expect_silence();
    assert_eq!(guest.device.handler().table.len(), 0);
}

#[test]
fn host_ends_receiving_and_still_sends() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = connected(&mut guest);
    host.shutdown(Shutdown::Read).unwrap();
    // It is noticed when there is something to receive.
    socket.send(&mut guest, b"unwanted");
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_RECEIVE);
    host.write_all(b"still here").unwrap();
    assert_eq!(guest.expect(Op::Rw).1, b"still here");
}

#[test]
fn guest_ends_sending_and_still_receives() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = connected(&mut guest);
    socket.send(&mut guest, b"last words");
    socket.control(&mut guest, Op::Shutdown, SHUTDOWN_SEND);
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last words");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(Op::Rw).1, b"answer");
    // The host has nothing more to say either: that is all.
    host.shutdown(Shutdown::Write).unwrap();
    guest.settle();
    socket.take_in(&mut guest);
    assert_eq!(socket.shut, SHUTDOWN_BOTH);
}

#[test]
fn guest_ends_sending_only_after_everything_kept_was_passed_on() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = connected(&mut guest);
    let sent = overfill(&mut guest, &mut socket);
    socket.control(&mut guest, Op::Shutdown, SHUTDOWN_SEND);
    let reader = guest.spawn(move || {
        let mut all = Vec::new();
        host.read_to_end(&mut all).map(|_| (all, host))
    });
    let (all, _host) = guest.finish(reader).unwrap();
    assert!(all == sent);
}

#[test]
fn guest_ends_receiving_and_still_sends() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = connected(&mut guest);
    socket.control(&mut guest, Op::Shutdown, SHUTDOWN_RECEIVE);
    let error = host.write(b"unwanted").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    socket.send(&mut guest, b"still here");
    guest.expect_silence();
    let mut bytes = [0; 10];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
    drop(host);
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_BOTH);
}

#[test]
fn guest_closes_and_is_confirmed() {
    // virtio 1.2 §5.10.6.5: SHUTDOWN of both directions, in one packet or in
    // two, is answered by RST.
    for steps in [&[SHUTDOWN_BOTH][..], &[SHUTDOWN_SEND, SHUTDOWN_RECEIVE]] {
        let mut guest = Guest::new();
        let (mut socket, mut host) = connected(&mut guest);
        socket.send(&mut guest, b"bye");
        for flags in steps {
            guest.expect_silence();
            socket.control(&mut guest, Op::Shutdown, *flags);
        }
        let (reset, _) = guest.expect(Op::Rst);
        assert_eq!((reset.src_port, reset.dst_port), (80, socket.guest));
        let mut all = Vec::new();
        host.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"bye");
        assert_eq!(guest.device.handler().table.len(), 0);
    }
}

/// Sends until the host's stream is full and the credit used up.
fn overfill(guest: &mut Guest, socket: &mut Socket) -> Vec<u8> {
    let data = pattern(4 << 20);
    let mut sent = 0;
    loop {
        let end = data.len().min(sent + 64 * 1024);
        let count = socket.send(guest, &data[sent..end]);
        guest.settle();
        socket.take_in(guest);
        if count == 0 {
            break;
        }
        sent += count;
    }
    assert!(sent > KIB_256 as usize);
    data[..sent].to_vec()
}

#[test]
fn what_the_guest_sent_before_its_end_reaches_a_slow_host() {
    for op in [Op::Shutdown, Op::Rst] {
        let mut guest = Guest::new();
        let (mut socket, mut host) = connected(&mut guest);
        let sent = overfill(&mut guest, &mut socket);
        socket.control(&mut guest, op, SHUTDOWN_BOTH);
        if op == Op::Shutdown {
            guest.expect(Op::Rst);
        }
        guest.expect_silence();
        // The guest may use the ports again, while the host is still reading.
        guest.raw(Op::Request, 80, socket.guest);
        assert!(matches!(guest.event(), VsockEvent::Incoming { .. }));
        assert!(host.write(b"to nobody").is_err());
        let reader = guest.spawn(move || {
            let mut all = Vec::new();
            host.read_to_end(&mut all).map(|_| all)
        });
        assert!(guest.finish(reader).unwrap() == sent);
    }
}

#[test]
fn what_the_host_sent_before_its_end_reaches_a_slow_guest() {
    let mut guest = Guest::new();
    guest.repost = false;
    let (mut socket, mut host) = connected(&mut guest);
    host.set_nonblocking(true).unwrap();
    let data = pattern(100_000);
    host.write_all(&data).unwrap();
    drop(host);
    guest.settle();
    socket.take_in(&mut guest);
    assert!(socket.received == data);
    assert_eq!(socket.shut, SHUTDOWN_BOTH);
}

#[test]
fn host_closes_in_the_middle_and_the_guest_learns_it() {
    let mut guest = Guest::new();
    let (mut socket, host) = connected(&mut guest);
    socket.send(&mut guest, b"never read");
    guest.settle();
    // Closed with unread data: the stream is reset, not ended.
    drop(host);
    guest.settle();
    socket.take_in(&mut guest);
    assert_eq!(socket.shut, SHUTDOWN_BOTH);
    // What was on its way meanwhile is no offence.
    socket.send(&mut guest, b"crossing");
    guest.expect_silence();
    guest.raw(Op::Rst, 80, socket.guest);
    assert_eq!(guest.device.handler().table.len(), 0);
}

#[test]
fn guest_that_does_not_confirm_is_reset() {
    let mut guest = Guest::with_deadlines(Deadlines {
        close: Duration::from_millis(30),
        ..Deadlines::default()
    });
    let (_socket, host) = connected(&mut guest);
    drop(host);
    assert_eq!(guest.expect(Op::Shutdown).0.flags, SHUTDOWN_BOTH);
    guest.run_until(|guest| !guest.inbox.is_empty());
    guest.expect(Op::Rst);
    assert_eq!(guest.device.handler().table.len(), 0);
}

#[test]
fn ports_may_be_used_again_while_the_old_connection_is_closing() {
    let mut guest = Guest::new();
    let (socket, host) = connected(&mut guest);
    drop(host);
    guest.expect(Op::Shutdown);
    guest.raw(Op::Request, 80, socket.guest);
    let VsockEvent::Incoming { id, .. } = guest.event() else {
        panic!("no connection");
    };
    guest.device.accept(id);
    guest.expect(Op::Response);
    assert_eq!(guest.device.handler().table.len(), 1);
}

#[test]
fn guest_resets_a_connection() {
    let mut guest = Guest::new();
    let (socket, mut host) = connected(&mut guest);
    guest.raw(Op::Rst, 80, socket.guest);
    guest.expect_silence();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.device.handler().table.len(), 0);
}

#[test]
fn reset_of_the_device_closes_all_streams_and_gives_the_queues_back() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = connected(&mut guest);
    let (mut ours, theirs) = super::driver::pair();
    guest.device.connect(9, 5, theirs);
    guest.expect(Op::Request);
    let before = guest.device.queue_states();
    let queues = guest.device.reset();
    assert_eq!(queues.len(), 3);
    for (queue, before) in queues.iter().zip(before) {
        assert_eq!(queue.state(), before);
    }
    assert!(guest.device.queue_states().is_empty());
    assert!(matches!(guest.event(), VsockEvent::Refused { id: 9 }));
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);

    // Nothing of it is left for the next driver.
    let used = guest.rings[RX].used;
    socket.send_anyway(&mut guest, b"old");
    guest.settle();
    assert_eq!(guest.rings[RX].used, used);
    guest.activate_with(queues, super::driver::FEATURES);
    guest.transmit(&header(Op::CreditUpdate, 80, socket.guest), &[]);
    guest.expect(Op::Rst);
}

#[test]
fn reset_of_the_device_does_not_lose_what_the_guest_sent_before() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = connected(&mut guest);
    let sent = overfill(&mut guest, &mut socket);
    guest.device.reset();
    let reader = guest.spawn(move || {
        let mut all = Vec::new();
        host.read_to_end(&mut all).map(|_| all)
    });
    assert!(guest.finish(reader).unwrap() == sent);
    assert_eq!(guest.device.handler().table.len(), 0);
}
