//! UDP.

use std::net::SocketAddr;
use std::time::Duration;

use flashpan_protocol::network::{End, Refusal};
use smoltcp::wire::EthernetAddress;

use super::guest::{LINK, Wire};
use crate::net::NetEvent;
use crate::net::stack::{Offload, answer, output::Output};

/// A datagram of the guest, as a frame.
pub(super) fn datagram(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let guest = EthernetAddress(LINK.guest_mac);
    let gateway = EthernetAddress(LINK.gateway_mac);
    let mut output = Output::new(guest, Offload::default(), 65_000);
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    assert!(answer::udp(&mut output, gateway, from, to, payload, 65_000));
    output.front().unwrap().bytes.clone()
}

#[test]
fn datagrams_pass_one_for_one() {
    for (guest, host) in [
        ("198.18.0.2:5000", "1.1.1.1:53"),
        ("[fdf1:a5f1:a5f1::2]:5000", "[2001:db8::1]:123"),
    ] {
        let mut link = Wire::new(Offload::default());
        let (_, socket) = link.conversation(datagram(guest, host, b"first"));
        (link.card.sent).extend([datagram(guest, host, b""), datagram(guest, host, b"third")]);
        link.settle();
        let mut buffer = [0; 64];
        for expected in [&b"first"[..], b"", b"third"] {
            let count = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], expected);
        }
        link.listening = false;
        socket.send(b"answer").unwrap();
        link.settle();
        let expected = datagram(host, guest, b"answer");
        // The other way round on the link.
        assert_eq!(link.stack.frame().unwrap().bytes[14..], expected[14..]);
        assert_eq!(link.stack.metrics().datagrams_lost, 0);
    }
}

#[test]
fn datagrams_wait_for_the_answer_of_the_host_but_not_many() {
    let mut link = Wire::new(Offload::default());
    let frame = datagram("198.18.0.2:5000", "1.1.1.1:443", b"x");
    link.card.sent.extend(std::iter::repeat_n(frame, 10));
    let (id, _, _, socket) = link.asked();
    link.stack.accept(id);
    link.settle();
    let socket = std::os::unix::net::UnixDatagram::from(socket);
    socket.set_nonblocking(true).unwrap();
    let arrived = std::iter::from_fn(|| socket.recv(&mut [0; 8]).ok()).count();
    assert_eq!(arrived, 4);
    assert_eq!(link.stack.metrics().datagrams_lost, 6);
}

#[test]
fn a_refused_conversation_is_answered_as_a_closed_port() {
    let mut link = Wire::new(Offload::default());
    (link.card.sent).push_back(datagram("198.18.0.2:5000", "1.1.1.1:99", b"x"));
    let (id, ..) = link.asked();
    link.listening = false;
    link.stack.refuse(id, Refusal::Reset);
    let bytes = &link.stack.frame().unwrap().bytes;
    // ICMP, destination unreachable, port.
    assert_eq!((bytes[23], bytes[34], bytes[35]), (1, 3, 3));
}

#[test]
fn what_does_not_fit_on_the_link_is_dropped_and_counted() {
    let mut link = Wire::new(Offload::default());
    let (_, socket) = link.conversation(datagram("198.18.0.2:5000", "1.1.1.1:99", b"x"));
    socket.send(&[0; 1473]).unwrap();
    socket.send(&[0; 1472]).unwrap();
    link.settle();
    assert_eq!(link.stack.metrics().datagrams_too_long, 1);
    assert!(link.headers.iter().any(|&(_, len)| len == 1514));
}

#[test]
fn a_host_that_closes_its_end_ends_the_conversation() {
    let mut link = Wire::new(Offload::default());
    let (id, socket) = link.conversation(datagram("198.18.0.2:5000", "1.1.1.1:99", b"x"));
    drop(socket);
    link.settle();
    assert!(matches!(
        link.events.pop_front(),
        Some(NetEvent::Ended { id: ended, how: End::Closed }) if ended == id
    ));
}

#[test]
fn a_conversation_ends_when_nothing_is_said() {
    let mut link = Wire::new(Offload::default());
    let (id, _socket) = link.conversation(datagram("198.18.0.2:5000", "1.1.1.1:99", b"x"));
    link.stack.epoch -= Duration::from_secs(119);
    link.settle();
    assert!(link.events.is_empty());
    link.stack.epoch -= Duration::from_secs(2);
    link.settle();
    assert!(matches!(
        link.events.pop_front(),
        Some(NetEvent::Ended { id: ended, how: End::Idle }) if ended == id
    ));
}
