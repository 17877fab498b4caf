//! How connections come to be, or not.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::super::packet::{Header, Op};
use super::super::{Deadlines, MAX_CONNECTIONS, VsockError, VsockEvent};
use super::driver::{FEATURES, GUEST_CID, Guest, LINUX_RX_BUFFER, pair};
use super::socket::{Socket, header};
use crate::virtio::VirtioDevice;
use crate::vsock::Vsock;

/// Short enough to wait for.
fn hasty() -> Deadlines {
    let soon = Duration::from_millis(30);
    Deadlines {
        connect: soon,
        answer: soon,
        close: soon,
        transport_reset: soon,
    }
}

#[test]
fn host_connects_and_data_flows_both_ways() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_in(1234);

    host.write_all(b"ping").unwrap();
    let (header, payload) = guest.expect(Op::Rw);
    assert_eq!(payload, b"ping");
    assert_eq!((header.src_port, header.dst_port), (socket.host, 1234));

    assert_eq!(socket.send(&mut guest, b"pong"), 4);
    guest.settle();
    let mut answer = [0; 4];
    host.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
}

#[test]
fn guest_connects_and_data_flows_both_ways() {
    let mut guest = Guest::new();
    let (mut socket, mut host) = guest.connect_out(1024, 256 * 1024);
    assert_eq!(socket.send(&mut guest, b"hello"), 5);
    guest.settle();
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    host.write_all(b"welcome").unwrap();
    assert_eq!(guest.expect(Op::Rw).1, b"welcome");
}

#[test]
fn what_the_host_writes_before_the_answer_arrives_after_it() {
    let mut guest = Guest::new();
    let (mut ours, theirs) = pair();
    ours.write_all(b"early").unwrap();
    guest.device.connect(1, 99, theirs);
    let (request, _) = guest.expect(Op::Request);
    guest.expect_silence();
    let mut socket = Socket::new(request.src_port, 99);
    socket.control(&mut guest, Op::Response, 0);
    assert_eq!(guest.expect(Op::Rw).1, b"early");
}

#[test]
fn guest_refuses_a_connection() {
    let mut guest = Guest::new();
    let (mut ours, theirs) = pair();
    guest.device.connect(5, 99, theirs);
    let (request, _) = guest.expect(Op::Request);
    guest.raw(Op::Rst, request.src_port, 99);
    assert!(matches!(guest.event(), VsockEvent::Refused { id: 5 }));
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    guest.expect_silence();
    assert_eq!(guest.device.metrics().refused, 1);
}

#[test]
fn guest_that_does_not_answer_is_given_up() {
    let mut guest = Guest::with_deadlines(hasty());
    let (mut ours, theirs) = pair();
    guest.device.connect(5, 99, theirs);
    let (request, _) = guest.expect(Op::Request);
    let mut refused = false;
    guest.run_until(|guest| {
        refused |= matches!(guest.host.try_recv(), Ok(VsockEvent::Refused { id: 5 }));
        refused
    });
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    // An answer that comes too late finds nobody.
    let (reset, _) = guest.expect(Op::Rst);
    assert_eq!(reset.src_port, request.src_port);
    guest.raw(Op::Response, request.src_port, 99);
    guest.expect(Op::Rst);
}

#[test]
fn a_guest_that_stood_still_has_the_time_that_was_left() {
    let mut guest = Guest::new();
    let (_ours, theirs) = pair();
    guest.device.connect(5, 99, theirs);
    let (request, _) = guest.expect(Op::Request);
    let hour = Duration::from_secs(3600);
    guest.device.postpone(hour);
    let deadline = guest.device.handler().table.next_deadline().unwrap();
    assert!(deadline > Instant::now() + hour);
    guest.raw(Op::Response, request.src_port, 99);
    assert!(matches!(guest.event(), VsockEvent::Connected { id: 5 }));
    assert_eq!(guest.device.handler().table.next_deadline(), None);
}

#[test]
fn a_process_with_few_descriptors_has_few_connections() {
    let mut guest = Guest::new();
    guest.device.limit_connections(2);
    let _connections = [guest.connect_in(1), guest.connect_out(2, 4096)];
    guest.raw(Op::Request, 3, 50_000);
    guest.expect(Op::Rst);
    let (_ours, theirs) = pair();
    guest.device.connect(9, 99, theirs);
    assert!(matches!(guest.event(), VsockEvent::Refused { id: 9 }));
    // No limit of a process makes more of them than there are.
    guest.device.limit_connections(usize::MAX);
    guest.connect_in(4);
}

#[test]
fn host_that_gives_up_waiting_for_the_guest_is_no_longer_connecting() {
    let mut guest = Guest::new();
    let (ours, theirs) = pair();
    guest.device.connect(5, 99, theirs);
    guest.expect(Op::Request);
    drop(ours);
    guest.expect(Op::Rst);
    assert!(matches!(guest.event(), VsockEvent::Refused { id: 5 }));
}

#[test]
fn host_rejects_the_guests_connection() {
    for how in ["reject", "close", "deadline"] {
        let mut guest = Guest::with_deadlines(if how == "reject" {
            Deadlines::default()
        } else {
            hasty()
        });
        guest.raw(Op::Request, 80, 4000);
        let VsockEvent::Incoming { id, stream, .. } = guest.event() else {
            panic!("{how}: no connection");
        };
        match how {
            "reject" => guest.device.reject(id),
            "close" => drop(stream),
            _ => {}
        }
        guest.run_until(|guest| !guest.inbox.is_empty());
        let (reset, _) = guest.expect(Op::Rst);
        assert_eq!((reset.src_port, reset.dst_port), (80, 4000), "{how}");
        // Too late, and without effect.
        guest.device.accept(id);
        guest.device.reject(id);
        guest.expect_silence();
        assert_eq!(guest.device.handler().table.len(), 0, "{how}");
    }
}

/// What the host did last is seen first: the stream's end before the answer.
#[test]
fn host_that_writes_accepts_and_closes_at_once_loses_nothing() {
    let mut guest = Guest::new();
    guest.raw(Op::Request, 80, 4000);
    let VsockEvent::Incoming { id, mut stream, .. } = guest.event() else {
        panic!("no connection");
    };
    stream.write_all(b"all there is").unwrap();
    drop(stream);
    guest.settle();
    guest.expect_silence();
    guest.device.accept(id);
    guest.settle();
    guest.expect(Op::Response);
    assert_eq!(guest.expect(Op::Rw).1, b"all there is");
    let (shutdown, _) = guest.expect(Op::Shutdown);
    assert_eq!(shutdown.flags, 3);
}

#[test]
fn host_may_connect_before_there_is_a_driver() {
    let mut guest = Guest::bare(Deadlines::default());
    let (_ours, theirs) = pair();
    guest.device.connect(1, 99, theirs);
    guest.device.run_streams();
    // The driver resets the device before it sets it up (virtio 1.2 §3.1.1).
    assert!(guest.device.reset().is_empty());
    guest.activate(FEATURES);
    guest.post_all(LINUX_RX_BUFFER);
    assert_eq!(guest.expect(Op::Request).0.dst_port, 99);
}

#[test]
fn connections_are_limited() {
    let mut guest = Guest::new();
    let (mut ids, mut streams) = (Vec::new(), Vec::new());
    for i in 0..MAX_CONNECTIONS as u32 {
        guest.raw(Op::Request, 80, 10_000 + i);
        let VsockEvent::Incoming { id, stream, .. } = guest.event() else {
            panic!("no connection");
        };
        ids.push(id);
        streams.push(stream);
        if i % 64 == 0 {
            guest.expect_silence();
        }
    }
    guest.raw(Op::Request, 80, 9_999);
    guest.expect(Op::Rst);
    assert!(guest.host.try_recv().is_err());
    let (_ours, theirs) = pair();
    guest.device.connect(77, 99, theirs);
    assert!(matches!(guest.event(), VsockEvent::Refused { id: 77 }));
    // One that the guest gave up counts until the host has answered: else the
    // guest could ask faster than the host answers.
    guest.raw(Op::Rst, 80, 10_000);
    assert_eq!(streams[0].read(&mut [0]).unwrap(), 0);
    guest.raw(Op::Request, 80, 9_999);
    guest.expect(Op::Rst);
    guest.device.accept(ids[0]);
    guest.raw(Op::Request, 80, 9_999);
    assert!(matches!(guest.event(), VsockEvent::Incoming { .. }));
}

#[test]
fn promises_of_all_connections_together_are_bounded() {
    let mut guest = Guest::new();
    let mut promised = 0;
    let mut streams = Vec::new();
    for i in 0..MAX_CONNECTIONS as u32 {
        guest.raw(Op::Request, 80, 10_000 + i);
        let VsockEvent::Incoming { id, stream, .. } = guest.event() else {
            panic!("no connection");
        };
        streams.push(stream);
        guest.device.accept(id);
        promised += guest.expect(Op::Response).0.buf_alloc as usize;
    }
    assert!(promised <= 32 << 20, "{promised}");
}

#[test]
fn host_ports_are_not_used_twice_at_once() {
    let mut guest = Guest::new();
    // One port before the end of the range.
    guest.device.handler().table.set_next_port((1 << 31) - 1);
    let mut ports = Vec::new();
    let mut streams = Vec::new();
    for round in 0..2 {
        for id in 0..3 {
            let (ours, theirs) = pair();
            streams.push(ours);
            guest.device.connect(id, 99, theirs);
            ports.push(guest.expect(Op::Request).0.src_port);
        }
        if round == 0 {
            assert_eq!(ports, [(1 << 31) - 1, 1 << 30, (1 << 30) + 1]);
            guest.device.handler().table.set_next_port((1 << 31) - 1);
        }
    }
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 6);
}

#[test]
fn a_stream_that_cannot_be_waited_for_is_refused() {
    let mut guest = Guest::new();
    // epoll refuses ordinary files.
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let stream = UnixStream::from(std::os::fd::OwnedFd::from(file));
    guest.device.connect(3, 99, stream);
    assert!(matches!(guest.event(), VsockEvent::Refused { id: 3 }));
}

#[test]
fn configuration_is_the_guests_cid() {
    // virtio 1.2 §5.10.4
    let guest = Guest::bare(Deadlines::default());
    let mut whole = [0xff; 12];
    guest.device.read_config(0, &mut whole);
    assert_eq!(whole[..8], GUEST_CID.to_le_bytes());
    assert_eq!(whole[8..], [0; 4]);
    let mut high = [0xff; 4];
    guest.device.read_config(4, &mut high);
    assert_eq!(high, [0; 4]);
    guest.device.read_config(u64::MAX, &mut high);
    assert_eq!(high, [0; 4]);
}

#[test]
fn reserved_cids_are_refused() {
    // virtio 1.2 §5.10.4
    for cid in [0, 1, 2, 0xffff_ffff, 0x1_0000_0000, u64::MAX] {
        let error = Vsock::new(cid, Box::new(|_| {})).unwrap_err();
        assert!(matches!(error, VsockError::GuestCid(c) if c == cid));
    }
    for cid in [3, 0xffff_fffe] {
        assert!(Vsock::new(cid, Box::new(|_| {})).is_ok());
    }
}

#[test]
fn first_packets_promise_a_buffer() {
    // virtio 1.2 §5.10.6.3: buf_alloc and fwd_cnt are in every packet.
    let mut guest = Guest::new();
    let (_ours, theirs) = pair();
    guest.device.connect(1, 99, theirs);
    let (request, _) = guest.expect(Op::Request);
    assert_eq!((request.buf_alloc, request.fwd_cnt), (256 * 1024, 0));
    assert_eq!(
        Header::parse(&request.to_bytes()),
        request,
        "header survives its encoding"
    );
    assert_eq!(header(Op::Request, 1, 2).op(), Some(Op::Request));
}
