//! Connections that the host begins.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use flashpan_protocol::network::{End, NotOpened};
use proptest::prelude::*;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use smoltcp::wire::TcpPacket;

use super::connections::{ALL, V4, pattern};
use super::guest::{LINK, Wire, read_now};
use super::hostile::{fix, syn};
use crate::net::NetEvent;
use crate::net::stack::Offload;
use crate::net::stack::open::{ANSWER, FIRST_PORT};

const REQUEST: u64 = 77;
const PORT: u16 = 8000;

/// Asks for a connection; the host's end.
fn open(link: &mut Wire, port: u16) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    link.stack.open(REQUEST, port, theirs);
    ours
}

/// A connection to a program that listens, from both ends.
fn opened(link: &mut Wire) -> (u64, SocketHandle, UnixStream) {
    let handle = link.listen(PORT);
    let stream = open(link, PORT);
    link.settle();
    let Some(NetEvent::Opened { request, id }) = link.events.pop_front() else {
        panic!("{:?} and not opened", link.events);
    };
    assert_eq!(request, REQUEST);
    assert_eq!(link.socket(handle).state(), State::Established);
    (id, handle, stream)
}

/// Why there is no connection, if that is all there is to be told.
fn not_opened(link: &mut Wire) -> NotOpened {
    link.settle();
    match (link.events.pop_front(), link.events.len()) {
        (Some(NetEvent::NotOpened { request, why }), 0) => {
            assert_eq!(request, REQUEST);
            why
        }
        other => panic!("{other:?}"),
    }
}

/// What was told of flow `id` so far: whether the guest has finished, and how it ended.
fn told(link: &mut Wire, flow: u64) -> (bool, Option<End>) {
    link.settle();
    let mut told = (false, None);
    for event in link.events.drain(..) {
        match event {
            NetEvent::Finished { id } if id == flow && told == (false, None) => told.0 = true,
            NetEvent::Ended { id, how } if id == flow && told.1.is_none() => told.1 = Some(how),
            other => panic!("{other:?} after {told:?}"),
        }
    }
    told
}

#[test]
fn a_program_that_listens_sees_the_gateway_as_its_client() {
    for offload in [Offload::default(), ALL] {
        let mut link = Wire::new(offload);
        let (_, handle, _stream) = opened(&mut link);
        let peer = link.socket(handle).remote_endpoint().unwrap();
        assert_eq!(peer.addr, LINK.gateway4.into());
        assert!(peer.port >= FIRST_PORT);
        assert_eq!(link.stack.metrics().opened, 1);
        // None of it is a flow of the guest's.
        assert_eq!(link.stack.metrics().asked, 0);
    }
}

#[test]
fn data_and_the_end_of_it_pass_both_ways() {
    for guest_first in [true, false] {
        let mut link = Wire::new(ALL);
        let (id, handle, mut stream) = opened(&mut link);
        stream.write_all(b"question").unwrap();
        link.socket(handle).send_slice(b"banner").unwrap();
        link.settle();
        assert_eq!(read_now(&mut stream), b"banner");
        assert_eq!(link.take(handle), b"question");
        if guest_first {
            link.socket(handle).close();
            assert_eq!(told(&mut link, id), (true, None));
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            stream.write_all(b"still").unwrap();
            link.settle();
            assert_eq!(link.take(handle), b"still");
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(told(&mut link, id), (false, Some(End::Closed)));
        } else {
            stream.shutdown(Shutdown::Write).unwrap();
            link.settle();
            assert_eq!(link.socket(handle).state(), State::CloseWait);
            link.socket(handle).send_slice(b"still").unwrap();
            link.socket(handle).close();
            assert_eq!(told(&mut link, id), (true, Some(End::Closed)));
            assert_eq!(read_now(&mut stream), b"still");
        }
    }
}

#[test]
fn megabytes_arrive_as_they_were_sent() {
    for offload in [Offload::default(), ALL] {
        let mut link = Wire::new(offload);
        let (_, handle, mut stream) = opened(&mut link);
        let data = pattern(4 << 20);
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
        assert_eq!(longest > 60_000, offload == ALL, "{longest}");
    }
}

#[test]
fn what_is_written_before_the_guest_answers_waits_for_it() {
    let mut link = Wire::new(ALL);
    let handle = link.listen(PORT);
    let mut stream = open(&mut link, PORT);
    stream.write_all(b"early").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    link.settle();
    assert_eq!(link.take(handle), b"early");
    assert_eq!(link.socket(handle).state(), State::CloseWait);
}

#[test]
fn a_port_on_which_nobody_listens_refuses_at_once() {
    let mut link = Wire::new(ALL);
    // This guest forgets what it has to say to one whose link address it does not know.
    link.connect(V4);
    link.asked();
    let mut stream = open(&mut link, PORT);
    assert_eq!(not_opened(&mut link), NotOpened::Refused);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(link.stack.metrics().opened, 0);
    // There is no port 0.
    open(&mut link, 0);
    assert_eq!(not_opened(&mut link), NotOpened::NoRoom);
}

/// The SYNs that the guest has got.
fn syns(link: &mut Wire) -> usize {
    link.stack.poll();
    link.stack.run();
    let mut count = 0;
    while let Some(frame) = link.stack.frame() {
        let tcp = TcpPacket::new_checked(&frame.bytes[34..]).unwrap();
        count += usize::from(tcp.syn());
        link.stack.frame_done();
    }
    count
}

#[test]
fn a_guest_that_does_not_answer_is_asked_again_and_then_given_up() {
    let mut link = Wire::new(ALL);
    let stream = open(&mut link, PORT);
    let mut count = syns(&mut link);
    // The clock is put forward by what a step takes.
    for _ in 0..15 {
        assert!(link.stack.events().next().is_none());
        link.stack.epoch -= ANSWER / 15;
        count += syns(&mut link);
    }
    assert_eq!(count, 2);
    assert_eq!(not_opened(&mut link), NotOpened::Silent);
    drop(stream);
    // A VM that stood still is given the time.
    open(&mut link, PORT);
    syns(&mut link);
    link.stack.epoch -= Duration::from_secs(100);
    link.stack.postpone(Duration::from_secs(100));
    syns(&mut link);
    assert!(link.stack.events().next().is_none());
}

#[test]
fn a_reset_of_the_guest_is_no_end_in_order() {
    let mut link = Wire::new(ALL);
    let (id, handle, mut stream) = opened(&mut link);
    link.socket(handle).abort();
    assert_eq!(told(&mut link, id), (false, Some(End::Reset)));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn the_host_may_reset_it() {
    let mut link = Wire::new(ALL);
    let (id, handle, _stream) = opened(&mut link);
    link.stack.close(id);
    assert_eq!(told(&mut link, id), (false, Some(End::Reset)));
    assert_eq!(link.socket(handle).state(), State::Closed);
}

#[test]
fn there_are_no_more_flows_than_there_may_be() {
    let mut link = Wire::new(ALL);
    link.stack.limit_flows(1);
    let (id, ..) = opened(&mut link);
    open(&mut link, PORT);
    assert_eq!(not_opened(&mut link), NotOpened::NoRoom);
    // Nor of the guest's.
    link.connect(V4);
    link.settle();
    assert_eq!(link.stack.metrics().crowded, 1);
    link.stack.close(id);
    assert_eq!(told(&mut link, id), (false, Some(End::Reset)));
    opened(&mut link);
}

#[test]
fn memory_of_one_that_ends_comes_back() {
    let mut link = Wire::new(ALL);
    let before = link.stack.memory.left();
    let (id, handle, mut stream) = opened(&mut link);
    let data = pattern(1 << 20);
    let (mut sent, mut at_guest) = (0, Vec::new());
    while at_guest.len() < data.len() {
        sent += stream.write(&data[sent..]).unwrap_or(0);
        link.settle();
        at_guest.extend(link.take(handle));
    }
    assert!(link.stack.memory.left() < before);
    link.stack.close(id);
    link.settle();
    assert_eq!(link.stack.memory.left(), before);
}

#[test]
fn a_driver_that_begins_anew_has_refused() {
    let mut link = Wire::new(ALL);
    open(&mut link, PORT);
    syns(&mut link);
    link.stack.reset(Offload::default());
    assert_eq!(not_opened(&mut link), NotOpened::Refused);
}

/// A segment from the guest's port to one of the gateway's.
fn segment(to: u16, flags: u8, seq: u32, ack: u32) -> Vec<u8> {
    let mut frame = syn(PORT);
    frame[30..34].copy_from_slice(&LINK.gateway4.octets());
    frame[36..38].copy_from_slice(&to.to_be_bytes());
    frame[38..42].copy_from_slice(&seq.to_be_bytes());
    frame[42..46].copy_from_slice(&ack.to_be_bytes());
    frame[47] = flags;
    // A window.
    frame[48] = 0xff;
    fix(&mut frame);
    frame
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Where the SYN that waits for the guest comes from, and its number.
fn sent_syn(link: &mut Wire) -> (u16, u32) {
    link.stack.run();
    let frame = &link.stack.frame().unwrap().bytes;
    let tcp = TcpPacket::new_checked(&frame[34..]).unwrap();
    assert!(tcp.syn() && !tcp.ack());
    let from = (tcp.src_port(), tcp.seq_number().0.cast_unsigned());
    link.stack.frame_done();
    from
}

#[test]
fn only_what_answers_the_syn_makes_a_connection() {
    let mut link = Wire::new(Offload::default());
    link.listening = false;
    let _stream = open(&mut link, PORT);
    let (to, seq) = sent_syn(&mut link);
    for (flags, ack) in [
        // One of the guest's own, from and to the same ports.
        (SYN, 0),
        (SYN | ACK, seq),
        (SYN | ACK, seq.wrapping_add(2)),
        (ACK, seq.wrapping_add(1)),
        (RST, 0),
        (RST | ACK, seq),
        (FIN | ACK, seq.wrapping_add(1)),
        (SYN | FIN, 0),
        (0, 0),
    ] {
        link.stack.input(&segment(to, flags, 5, ack));
        while link.stack.frame().is_some() {
            link.stack.frame_done();
        }
        link.settle();
        assert!(link.events.is_empty(), "{:?} after {flags}", link.events);
    }
    assert_eq!(link.stack.metrics().asked, 0);
    link.stack
        .input(&segment(to, SYN | ACK, 5, seq.wrapping_add(1)));
    link.settle();
    assert!(
        matches!(link.events.pop_front(), Some(NetEvent::Opened { .. })),
        "{:?}",
        link.events
    );
}

#[test]
fn a_flow_of_the_guests_is_never_taken_for_one_and_has_its_port() {
    let mut link = Wire::new(Offload::default());
    link.listening = false;
    // From the port that is opened, to the port that would be used for it.
    link.stack.input(&segment(FIRST_PORT, SYN, 5, 0));
    link.settle();
    assert!(matches!(
        link.events.pop_front(),
        Some(NetEvent::Asked { .. })
    ));
    let _stream = open(&mut link, PORT);
    let (to, _) = sent_syn(&mut link);
    assert_eq!(to, FIRST_PORT + 1);
    // What answers nothing belongs to no flow.
    let strays = link.stack.metrics().strays;
    link.stack.input(&segment(to + 1, SYN | ACK, 5, 1));
    assert_eq!(link.stack.metrics().strays, strays + 1);
    assert!(link.events.is_empty());
}

#[test]
fn ports_of_the_gateway_have_their_turn_and_begin_again() {
    let mut link = Wire::new(ALL);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (id, handle, _stream) = opened(&mut link);
        seen.push(link.socket(handle).remote_endpoint().unwrap().port);
        link.stack.close(id);
        link.settle();
        link.events.clear();
        link.stack.last_port = u16::MAX;
    }
    assert_eq!(seen, [FIRST_PORT, FIRST_PORT]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a guest answers, each connection that was asked for is told of once, and it
    /// is not asked for others.
    #[test]
    fn whatever_is_answered_is_one_answer(
        answers in prop::collection::vec((any::<u8>(), 0_u32..4, 0_u32..4, any::<bool>()), 1..24),
    ) {
        let mut link = Wire::new(Offload::default());
        link.listening = false;
        let mut stream = open(&mut link, PORT);
        let (to, seq) = sent_syn(&mut link);
        let mut said = 0;
        for (flags, from, ack, writes) in answers {
            if writes {
                let _ = stream.write(b"word");
            }
            let frame = segment(to, flags & 0x3f, from, seq.wrapping_add(ack));
            link.stack.input(&frame);
            link.settle();
            while link.stack.frame().is_some() {
                link.stack.frame_done();
            }
            for event in link.events.drain(..) {
                match event {
                    NetEvent::Opened { .. } | NetEvent::NotOpened { .. } => said += 1,
                    // A flow of its own, from a port of which there is no connection any more.
                    NetEvent::Asked { .. } => prop_assert_eq!(said, 1),
                    NetEvent::Finished { .. } | NetEvent::Ended { .. } => {
                        prop_assert_eq!(said, 1);
                    }
                }
            }
            prop_assert!(said <= 1);
        }
    }
}
