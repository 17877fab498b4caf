//! TCP.

use std::io::Write;
use std::net::Shutdown;

use flashpan_protocol::network::{End, Refusal};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{Ipv4Address, TcpPacket, TcpRepr};

use super::guest::{Wire, read_now};
use crate::net::NetEvent;
use crate::net::stack::Offload;
use crate::net::stack::memory::Memory;

pub(super) const ALL: Offload = Offload {
    checksum: true,
    tso4: true,
    tso6: true,
};

pub(super) const V4: &str = "93.184.216.34:443";
const V6: &str = "[2001:db8::7]:443";

pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn ended(link: &mut Wire) -> Vec<End> {
    link.settle();
    (link.events.drain(..))
        .filter_map(|event| match event {
            NetEvent::Ended { how, .. } => Some(how),
            _ => None,
        })
        .collect()
}

#[test]
fn a_connection_is_made_only_when_the_host_has_accepted_it() {
    let mut link = Wire::new(Offload::default());
    let handle = link.connect(V4);
    let (id, _, tuple, _socket) = link.asked();
    assert_eq!(tuple.source.ip().to_string(), "198.18.0.2");
    assert_eq!(link.socket(handle).state(), State::SynSent);
    link.stack.accept(id);
    link.settle();
    assert_eq!(link.socket(handle).state(), State::Established);
}

#[test]
fn data_and_the_end_of_it_pass_both_ways() {
    for (offload, to) in [(Offload::default(), V4), (ALL, V6)] {
        let mut link = Wire::new(offload);
        let (_, handle, mut stream) = link.connected(to);
        link.socket(handle).send_slice(b"question").unwrap();
        link.socket(handle).close();
        link.settle();
        assert_eq!(read_now(&mut stream), b"question");
        // Read to its end: the guest sends no more, and the host still may.
        assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
        stream.write_all(b"answer").unwrap();
        link.settle();
        assert_eq!(link.take(handle), b"answer");
        drop(stream);
        assert_eq!(ended(&mut link), [End::Closed]);
        assert!(!link.socket(handle).may_recv());
    }
}

#[test]
fn the_host_may_be_the_first_to_say_that_it_sends_no_more() {
    let mut link = Wire::new(ALL);
    let (_, handle, mut stream) = link.connected(V4);
    stream.write_all(b"all").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    link.settle();
    assert_eq!(link.take(handle), b"all");
    assert_eq!(link.socket(handle).state(), State::CloseWait);
    link.socket(handle).send_slice(&pattern(100_000)).unwrap();
    link.settle();
    assert_eq!(read_now(&mut stream), pattern(100_000));
    link.socket(handle).close();
    assert_eq!(ended(&mut link), [End::Closed]);
}

/// In segments longer than the link only where the driver has agreed to it (virtio 1.2
/// §5.1.6.2 and §5.1.3).
#[test]
fn megabytes_arrive_as_they_were_sent() {
    let (no_tso6, no_tso4, no_sums) = (
        Offload { tso6: false, ..ALL },
        Offload { tso4: false, ..ALL },
        Offload {
            checksum: false,
            ..ALL
        },
    );
    for (offload, to, long) in [
        (Offload::default(), V4, false),
        (Offload::default(), V6, false),
        (ALL, V4, true),
        (ALL, V6, true),
        // What the driver refused is not done.
        (no_tso6, V4, true),
        (no_tso6, V6, false),
        (no_tso4, V4, false),
        (no_tso4, V6, true),
        (no_sums, V4, false),
        (no_sums, V6, false),
    ] {
        let mut link = Wire::new(offload);
        let (_, handle, mut stream) = link.connected(to);
        let data = pattern(4 << 20);
        // Up and down at once.
        let (mut up, mut down) = (0, 0);
        let (mut at_host, mut at_guest) = (Vec::new(), Vec::new());
        while at_host.len() < data.len() || at_guest.len() < data.len() {
            up += (link.socket(handle).send_slice(&data[up..])).unwrap_or(0);
            down += stream.write(&data[down..]).unwrap_or(0);
            link.settle();
            at_host.extend(read_now(&mut stream));
            at_guest.extend(link.take(handle));
        }
        assert!(at_host == data && at_guest == data);
        let longest = link.headers.iter().map(|&(_, len)| len).max().unwrap();
        assert_eq!(longest > 1514, long, "{longest} with {offload:?} to {to}");
        if long {
            assert!(longest > 60_000, "{longest}");
        }
        assert_eq!(link.stack.metrics().malformed, 0);
    }
}

#[test]
fn a_refused_connection_is_reset() {
    for to in [V4, V6] {
        let mut link = Wire::new(Offload::default());
        let handle = link.connect(to);
        let (id, ..) = link.asked();
        link.stack.refuse(id, Refusal::Reset);
        link.settle();
        assert_eq!(link.socket(handle).state(), State::Closed);
        assert_eq!(link.stack.metrics().refused, 1);
    }
}

#[test]
fn an_unreachable_host_is_said_to_be_so() {
    for (to, icmp, code) in [(V4, (3, 1), 23), (V6, (1, 3), 6)] {
        let mut link = Wire::new(Offload::default());
        link.connect(to);
        let (id, ..) = link.asked();
        link.listening = false;
        link.stack.refuse(id, Refusal::Host);
        link.settle();
        let bytes = &link.stack.frame().unwrap().bytes;
        // The protocol in the IP header; type and code of the message.
        let (protocol, body) = if code == 23 {
            (bytes[code], 14 + 20)
        } else {
            (bytes[14 + code], 14 + 40)
        };
        assert_eq!(protocol, if code == 23 { 1 } else { 58 });
        assert_eq!((bytes[body], bytes[body + 1]), icmp);
    }
}

#[test]
fn a_host_that_goes_away_in_the_middle_resets_the_connection() {
    let mut link = Wire::new(ALL);
    let (_, handle, stream) = link.connected(V4);
    drop(stream);
    link.settle();
    // Until then its end looks like that of one who sends no more.
    link.socket(handle).send_slice(b"too late").unwrap();
    assert_eq!(ended(&mut link), [End::Reset]);
    assert_eq!(link.socket(handle).state(), State::Closed);
}

#[test]
fn a_guest_that_resets_is_reported_and_its_stream_closed() {
    let mut link = Wire::new(ALL);
    let (_, handle, mut stream) = link.connected(V4);
    link.socket(handle).abort();
    assert_eq!(ended(&mut link), [End::Reset]);
    assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
}

#[test]
fn the_host_may_end_a_connection() {
    let mut link = Wire::new(ALL);
    let (id, handle, _stream) = link.connected(V4);
    link.stack.close(id);
    assert_eq!(ended(&mut link), [End::Reset]);
    assert_eq!(link.socket(handle).state(), State::Closed);
}

#[test]
fn a_host_that_does_not_read_closes_the_window() {
    let mut link = Wire::new(ALL);
    let (_, handle, mut stream) = link.connected(V4);
    let data = pattern(8 << 20);
    let mut sent = 0;
    loop {
        let more = link.socket(handle).send_slice(&data[sent..]).unwrap();
        link.settle();
        if more == 0 {
            break;
        }
        sent += more;
    }
    // Its own buffer, ours, and what a socket pair holds.
    assert!(sent < 2 << 20, "{sent}");
    let mut received = read_now(&mut stream);
    while received.len() < sent {
        link.settle();
        received.extend(read_now(&mut stream));
    }
    assert_eq!(received, data[..sent]);
}

#[test]
fn a_guest_that_takes_no_frames_costs_no_memory() {
    let mut link = Wire::new(ALL);
    let (_, handle, mut stream) = link.connected(V4);
    link.listening = false;
    let data = pattern(16 << 20);
    let mut sent = 0;
    while let Ok(more) = stream.write(&data[sent..]) {
        sent += more;
        link.settle();
    }
    // The window of the guest and what a socket pair holds.
    assert!(sent < 2 << 20, "{sent}");
    link.listening = true;
    let mut received = Vec::new();
    while received.len() < sent {
        link.settle();
        received.extend(link.take(handle));
    }
    assert_eq!(received, data[..sent]);
}

/// The options of a SYN of the stack, and its window.
fn promised(link: &mut Wire) -> (Option<u16>, Option<u8>) {
    let bytes = &link.stack.frame().unwrap().bytes;
    let header = if bytes[14] >> 4 == 4 { 20 } else { 40 };
    let tcp = TcpPacket::new_checked(&bytes[14 + header..]).unwrap();
    assert!(tcp.syn() && tcp.ack());
    let (from, to) = (Ipv4Address::UNSPECIFIED, Ipv4Address::UNSPECIFIED);
    let sums = ChecksumCapabilities::ignored();
    let repr = TcpRepr::parse(&tcp, &from.into(), &to.into(), &sums).unwrap();
    (repr.max_seg_size, repr.window_scale)
}

#[test]
fn the_guest_is_promised_segments_of_the_link_and_a_scaled_window() {
    for (to, segment) in [(V4, 1460), (V6, 1440)] {
        for offload in [Offload::default(), ALL] {
            let mut link = Wire::new(offload);
            link.connect(to);
            let (id, ..) = link.asked();
            link.listening = false;
            link.stack.accept(id);
            link.settle();
            // 1 MiB.
            assert_eq!(promised(&mut link), (Some(segment), Some(4)), "{to}");
        }
    }
}

#[test]
fn more_than_a_window_without_a_scale_is_taken_from_a_guest() {
    let mut link = Wire::new(ALL);
    let (_, handle, stream) = link.connected(V4);
    // What the host does not take is in the socket pair, and then here.
    let mut sent = 0;
    loop {
        let more = link.socket(handle).send_slice(&pattern(65_536)).unwrap();
        sent += more;
        link.settle();
        if more == 0 {
            break;
        }
    }
    let mut stream = stream;
    let in_pair = read_now(&mut stream).len();
    let guest = 256 * 1024;
    assert!(sent - in_pair - guest > 200_000, "{sent} {in_pair}");
}

#[test]
fn without_memory_a_connection_goes_on_and_with_it_what_was_granted_comes_back() {
    for left in [0, 1 << 20, 256 << 20] {
        let mut link = Wire::new(ALL);
        link.stack.memory = Memory::of(left);
        let flows: Vec<_> = (0..8).map(|_| link.connected(V4)).collect();
        let data = pattern(1 << 20);
        for (_, handle, mut stream) in flows {
            let (mut sent, mut at_guest) = (0, Vec::new());
            while at_guest.len() < data.len() {
                sent += stream.write(&data[sent..]).unwrap_or(0);
                link.settle();
                at_guest.extend(link.take(handle));
            }
            assert!(at_guest == data);
            assert!(link.stack.memory.left() <= left);
            let grew = link.stack.memory.left() < left;
            assert_eq!(grew, left > 0);
            link.socket(handle).close();
            drop(stream);
            link.settle();
        }
        assert_eq!(link.stack.memory.left(), left);
    }
}

#[test]
fn ports_can_be_used_again_at_once() {
    let mut link = Wire::new(ALL);
    for _ in 0..3 {
        let (_, handle, stream) = link.connected(V4);
        link.socket(handle).close();
        link.settle();
        drop(stream);
        assert_eq!(ended(&mut link), [End::Closed]);
    }
}

#[test]
fn a_driver_that_begins_anew_finds_no_old_connection() {
    let mut link = Wire::new(ALL);
    let (_, _, mut stream) = link.connected(V4);
    link.stack.reset(Offload::default());
    assert_eq!(ended(&mut link), [End::Reset]);
    assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
}

#[test]
fn what_a_slow_host_has_not_taken_when_both_are_done_is_not_lost() {
    for host_first in [true, false] {
        let mut link = Wire::new(ALL);
        let (_, handle, mut stream) = link.connected(V4);
        if host_first {
            stream.shutdown(Shutdown::Write).unwrap();
            link.settle();
        }
        let data = pattern(4 << 20);
        let mut sent = 0;
        loop {
            let more = link.socket(handle).send_slice(&data[sent..]).unwrap();
            link.settle();
            if more == 0 {
                break;
            }
            sent += more;
        }
        // The host takes as much as lets the guest say that this was all.
        let mut received = Vec::new();
        link.socket(handle).close();
        while link.socket(handle).send_queue() > 0 {
            let mut part = [0; 16 * 1024];
            let count = std::io::Read::read(&mut stream, &mut part).unwrap_or(0);
            received.extend_from_slice(&part[..count]);
            link.settle();
        }
        if !host_first {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        link.settle();
        while received.len() < sent {
            received.extend(read_now(&mut stream));
            link.settle();
        }
        assert_eq!(received, data[..sent]);
        assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
        assert_eq!(ended(&mut link), [End::Closed]);
    }
}

#[test]
fn a_connection_that_is_reset_before_it_is_one_is_gone() {
    let mut link = Wire::new(ALL);
    let handle = link.connect(V4);
    let (id, ..) = link.asked();
    // The guest has closed its socket meanwhile, and answers with a reset.
    link.socket(handle).abort();
    link.stack.accept(id);
    assert_eq!(ended(&mut link), [End::GivenUp]);
}
