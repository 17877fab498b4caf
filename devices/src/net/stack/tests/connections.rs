//! TCP.

use std::io::Write;
use std::net::Shutdown;

use flashpan_protocol::network::{End, Refusal};
use smoltcp::socket::tcp::State;

use super::guest::{Wire, read_now};
use crate::net::NetEvent;
use crate::net::stack::Offload;

const ALL: Offload = Offload {
    checksum: true,
    tso4: true,
    tso6: true,
};

const V4: &str = "93.184.216.34:443";
const V6: &str = "[2001:db8::7]:443";

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn ended(link: &mut Wire) -> Vec<End> {
    link.settle();
    (link.events.drain(..))
        .filter_map(|event| match event {
            NetEvent::Ended { how, .. } => Some(how),
            NetEvent::Asked { .. } => None,
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

#[test]
fn megabytes_arrive_as_they_were_sent() {
    for (offload, to) in [(Offload::default(), V4), (ALL, V4), (ALL, V6)] {
        let mut link = Wire::new(offload);
        let (_, handle, mut stream) = link.connected(to);
        let data = pattern(8 << 20);
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
        assert_eq!(longest > 1514, offload == ALL && to == V4, "{longest}");
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
    assert_eq!(ended(&mut link), [End::Reset]);
}
