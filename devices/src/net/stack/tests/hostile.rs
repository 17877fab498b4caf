//! A guest that keeps to no rule.

use std::os::fd::OwnedFd;

use flashpan_protocol::network::End;
use proptest::prelude::*;
use smoltcp::wire::{EthernetFrame, Ipv4Packet};

use super::datagrams::datagram;
use super::guest::Wire;
use crate::net::stack::Offload;
use crate::net::{MAX_ASKED, NetEvent};

/// The frame of a SYN from this port.
pub(super) fn syn(port: u16) -> Vec<u8> {
    let mut frame = datagram("198.18.0.2:1", "1.1.1.1:80", &[0; 12]);
    frame[23] = 6;
    let mut tcp = [0; 20];
    tcp[..2].copy_from_slice(&port.to_be_bytes());
    tcp[2..4].copy_from_slice(&80_u16.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = 2;
    frame[34..54].copy_from_slice(&tcp);
    fix(&mut frame);
    frame
}

/// Makes the checksum of the IP header again, if it has one.
pub(super) fn fix(frame: &mut [u8]) {
    let mut ethernet = EthernetFrame::new_unchecked(frame);
    let packet = ethernet.payload_mut();
    let header = usize::from(packet[0] & 15) * 4;
    if (20..=packet.len()).contains(&header) {
        Ipv4Packet::new_unchecked(packet).fill_checksum();
    }
}

fn link() -> Wire {
    Wire::new(Offload::default())
}

#[test]
fn a_flood_of_connections_is_asked_for_in_part() {
    let mut link = link();
    link.card.sent.extend((1..=60_000).map(syn));
    link.settle();
    assert_eq!(link.events.len(), MAX_ASKED);
    let metrics = *link.stack.metrics();
    assert_eq!(metrics.asked, MAX_ASKED as u64);
    assert_eq!(metrics.crowded, 60_000 - MAX_ASKED as u64);
    // Another one has its turn as soon as one was answered.
    let Some(NetEvent::Asked { id, .. }) = link.events.pop_front() else {
        panic!("nothing was asked for");
    };
    link.stack
        .refuse(id, flashpan_protocol::network::Refusal::Silence);
    link.card.sent.push_back(syn(60_001));
    link.settle();
    assert_eq!(link.stack.metrics().asked, MAX_ASKED as u64 + 1);
    // Who finds no room is told at once: ICMP, the host is unreachable.
    link.listening = false;
    link.card.sent.push_back(syn(60_002));
    link.settle();
    let bytes = &link.stack.frame().unwrap().bytes;
    assert_eq!((bytes[14 + 9], bytes[14 + 20], bytes[14 + 21]), (1, 3, 1));
}

#[test]
fn a_segment_of_no_connection_is_reset_and_a_reset_is_not() {
    let mut link = link();
    link.listening = false;
    let mut ack = syn(9);
    ack[14 + 20 + 13] = 0x10;
    link.stack.input(&ack);
    // RST, from there to here.
    let bytes = &link.stack.frame().unwrap().bytes;
    assert_eq!(bytes[14 + 20 + 13] & 4, 4);
    link.stack.frame_done();
    let mut reset = syn(9);
    reset[14 + 20 + 13] = 4;
    link.stack.input(&reset);
    assert!(link.stack.frame().is_none());
}

/// A segment of the connection that `syn(9)` asked for, `offset` bytes into what the guest
/// sends.
pub(super) fn segment(offset: u32, acknowledged: u32, payload: usize) -> Vec<u8> {
    let mut frame = datagram("198.18.0.2:1", "1.1.1.1:80", &vec![7; 12 + payload]);
    frame[23] = 6;
    let head = syn(9);
    frame[34..54].copy_from_slice(&head[34..54]);
    frame[38..42].copy_from_slice(&(1 + offset).to_be_bytes());
    frame[42..46].copy_from_slice(&acknowledged.to_be_bytes());
    frame[34 + 13] = 0x10;
    fix(&mut frame);
    frame
}

/// Asks for the connection, with these options; where the other side begins, and the host's
/// end.
fn begin(link: &mut Wire, options: &[u8]) -> (u32, OwnedFd) {
    let mut frame = datagram("198.18.0.2:1", "1.1.1.1:80", &vec![0; 12 + options.len()]);
    frame[23] = 6;
    frame[34..54].copy_from_slice(&syn(9)[34..54]);
    frame[34 + 12] = u8::try_from((20 + options.len()) / 4).unwrap() << 4;
    frame[34 + 14..34 + 16].copy_from_slice(&[0xff, 0xff]);
    frame[54..].copy_from_slice(options);
    fix(&mut frame);
    link.card.sent.push_back(frame);
    let (id, _, _, socket) = link.asked();
    link.listening = false;
    link.stack.accept(id);
    link.stack.run();
    let bytes = &link.stack.frame().unwrap().bytes;
    let theirs = u32::from_be_bytes(bytes[38..42].try_into().unwrap()).wrapping_add(1);
    link.stack.frame_done();
    (theirs, socket)
}

/// Segment of 1460 bytes, and a window that is scaled by seven bits.
const OPTIONS: [u8; 8] = [2, 4, 5, 0xb4, 3, 3, 7, 1];

#[test]
fn a_guest_that_sends_more_than_its_window_at_once_does_no_harm() {
    for step in [1_u32, 7, 60_000] {
        for payload in [1400, 60_000] {
            let mut link = link();
            let (theirs, _socket) = begin(&mut link, &OPTIONS);
            // Before anything is acknowledged, and after.
            for round in 0..3 {
                let mut offset = 0;
                while offset < 1_200_000 {
                    link.stack.input(&segment(offset, theirs, payload));
                    offset += step.max(u32::try_from(payload).unwrap());
                }
                if round > 0 {
                    link.stack.run();
                }
                while link.stack.frame().is_some() {
                    link.stack.frame_done();
                }
            }
            assert_eq!(link.stack.metrics().malformed, 0);
        }
    }
}

/// However long the segments are that a guest says to take, and whatever options there are.
#[test]
fn segments_of_a_guest_are_those_of_the_link() {
    for (options, most) in [
        (&[2, 4, 0xff, 0xff][..], 1460),
        (&[1, 1, 1, 1, 2, 4, 0x23, 0x28], 1460),
        (&[3, 3, 7, 1, 2, 4, 2, 0], 512),
        (&[30, 4, 2, 4, 2, 4, 0xff, 0xff], 1460),
        (&[], 536),
    ] {
        let mut link = link();
        let (theirs, socket) = begin(&mut link, options);
        let mut stream = std::os::unix::net::UnixStream::from(socket);
        std::io::Write::write_all(&mut stream, &[1; 20_000]).unwrap();
        let mut acknowledging = segment(0, theirs, 0);
        acknowledging[34 + 14..34 + 16].copy_from_slice(&[0xff, 0xff]);
        link.stack.input(&acknowledging);
        link.stack.poll();
        link.stack.run();
        let longest = std::iter::from_fn(|| {
            let len = link.stack.frame()?.bytes.len();
            link.stack.frame_done();
            Some(len)
        });
        assert_eq!(longest.max(), Some(54 + most), "{options:?}");
    }
}

#[test]
fn what_must_not_be_a_flow_is_none() {
    let change = |change: fn(&mut [u8])| {
        let mut frame = datagram("198.18.0.2:5000", "1.1.1.1:99", b"payload");
        change(&mut frame);
        fix(&mut frame);
        frame
    };
    for (what, frame) in [
        ("a fragment", change(|frame| frame[20] |= 0x20)),
        ("a later fragment", change(|frame| frame[21] = 1)),
        ("another protocol", change(|frame| frame[23] = 47)),
        ("for another card", change(|frame| frame[5] = 9)),
        ("from a group", change(|frame| frame[6] = 1)),
        ("to a group", change(|frame| frame[30] = 224)),
        ("from nowhere", change(|frame| frame[26..30].fill(0))),
        ("to itself", change(|frame| frame.copy_within(26..30, 30))),
        ("to port 0", change(|frame| frame[36..38].fill(0))),
        ("longer than it is", change(|frame| frame[17] = 200)),
        (
            "a datagram longer than its packet",
            change(|frame| frame[39] = 99),
        ),
        ("version 5", change(|frame| frame[14] = 0x55)),
        ("too short", vec![0; 13]),
        ("nothing", Vec::new()),
    ] {
        let mut link = link();
        link.stack.input(&frame);
        link.settle();
        assert!(link.events.is_empty(), "{what}: {:?}", link.events);
        let metrics = link.stack.metrics();
        let dropped = metrics.malformed
            + metrics.fragments
            + metrics.protocols
            + metrics.receivers
            + metrics.sources;
        assert_eq!(dropped, 1, "{what}");
    }
    let mut broken = datagram("198.18.0.2:5000", "1.1.1.1:99", b"payload");
    broken[24] ^= 1;
    let mut link = link();
    link.stack.input(&broken);
    assert_eq!(link.stack.metrics().malformed, 1);
}

#[test]
fn a_connection_that_is_taken_back_while_the_host_connects_was_none() {
    let mut link = link();
    link.card.sent.push_back(syn(9));
    let (id, ..) = link.asked();
    let mut reset = syn(9);
    reset[14 + 20 + 13] = 4;
    link.card.sent.push_back(reset);
    link.settle();
    link.stack.accept(id);
    link.settle();
    let event = link.events.pop_front();
    assert!(
        matches!(event, Some(NetEvent::Ended { id: of, how: End::GivenUp }) if of == id),
        "{event:?}"
    );
}

/// A guest has one address of each family, and its card nobody else's.
#[test]
fn packets_from_addresses_that_the_guest_does_not_have_are_dropped() {
    let six = |source: &str| datagram(source, "[2606:4700::1]:99", b"payload");
    for source in [
        "198.18.0.1:5000",
        "198.18.0.3:5000",
        "192.168.0.7:5000",
        "127.0.0.1:5000",
        "0.0.0.0:5000",
    ] {
        let mut link = link();
        link.stack
            .input(&datagram(source, "1.1.1.1:67", b"payload"));
        let mut segment = syn(5000);
        let std::net::IpAddr::V4(address) = source.parse::<std::net::SocketAddr>().unwrap().ip()
        else {
            panic!("{source}");
        };
        segment[26..30].copy_from_slice(&address.octets());
        fix(&mut segment);
        link.stack.input(&segment);
        let mut ping = segment;
        ping[23] = 1;
        fix(&mut ping);
        link.stack.input(&ping);
        link.settle();
        assert!(link.events.is_empty(), "{source}: {:?}", link.events);
        let metrics = link.stack.metrics();
        assert_eq!(metrics.sources + metrics.malformed, 3, "{source}");
        assert!(metrics.sources > 1, "{source}");
        assert!(link.stack.frame().is_none(), "{source}");
    }
    for source in [
        "[fdf1:a5f1:a5f1::3]:5000",
        "[2001:db8::1]:5000",
        "[::1]:5000",
    ] {
        let mut link = link();
        link.stack.input(&six(source));
        link.settle();
        assert!(link.events.is_empty(), "{source}: {:?}", link.events);
        assert_eq!(link.stack.metrics().sources, 1, "{source}");
    }
    for source in ["[fdf1:a5f1:a5f1::2]:5000", "[fe80::1234]:5000"] {
        let mut link = link();
        link.stack.input(&six(source));
        link.settle();
        assert_eq!(link.stack.metrics().asked, 1, "{source}");
        assert_eq!(link.stack.metrics().sources, 0, "{source}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever comes, the stack stands and answers no more than is asked.
    #[test]
    fn any_bytes(frames in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..200), 0..8,
    )) {
        let mut link = link();
        for frame in &frames {
            link.stack.input(frame);
        }
        link.stack.run();
        prop_assert!(link.stack.metrics().frames_in == frames.len() as u64);
    }

    /// The same for frames that look like some.
    #[test]
    fn changed_frames(
        port in 1_u16..4,
        flags in any::<u8>(),
        changes in proptest::collection::vec((0_usize..54, any::<u8>()), 0..6),
        accept in any::<bool>(),
    ) {
        let mut link = link();
        link.card.sent.push_back(syn(port));
        let (id, ..) = link.asked();
        if accept {
            link.stack.accept(id);
        }
        let mut frame = syn(port);
        frame[14 + 20 + 13] = flags;
        for (at, value) in changes {
            frame[at] = value;
        }
        for _ in 0..4 {
            link.stack.input(&frame);
            fix(&mut frame);
        }
        link.settle();
    }
}
