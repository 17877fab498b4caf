//! A guest that asks for all there is: what it has is bounded, and its other connections go on.

use std::io::Write;

use super::connections::{ALL, V4, pattern};
use super::datagrams::datagram;
use super::guest::{Wire, read_now};
use super::hostile::{segment, syn};
use crate::net::stack::memory::{LEAST, MOST};
use crate::net::stack::udp;
use crate::net::{MAX_ASKED, NetEvent};

/// A connection that keeps to the rules, and has to go on.
struct Good {
    handle: smoltcp::iface::SocketHandle,
    stream: std::os::unix::net::UnixStream,
}

impl Good {
    fn new(link: &mut Wire) -> Self {
        let (_, handle, stream) = link.connected(V4);
        Self { handle, stream }
    }

    /// Carries a megabyte each way.
    fn goes_on(&mut self, link: &mut Wire) {
        let data = pattern(1 << 20);
        let (mut up, mut down) = (0, 0);
        let (mut at_host, mut at_guest) = (Vec::new(), Vec::new());
        while at_host.len() < data.len() || at_guest.len() < data.len() {
            up += (link.socket(self.handle).send_slice(&data[up..])).unwrap();
            down += self.stream.write(&data[down..]).unwrap_or(0);
            link.settle();
            at_host.extend(read_now(&mut self.stream));
            at_guest.extend(link.take(self.handle));
        }
        assert!(at_host == data && at_guest == data);
    }
}

/// Frames for the guest that it never takes note of.
fn lose_frames(link: &mut Wire) {
    while link.stack.frame().is_some() {
        link.stack.frame_done();
        link.stack.run();
    }
}

#[test]
fn half_open_connections_are_no_more_than_there_may_be() {
    const MOST: usize = 500;
    let mut link = Wire::new(ALL);
    link.stack.limit_flows(MOST);
    let mut good = Good::new(&mut link);
    let mut held = Vec::new();
    for number in 0..100_000_u32 {
        let mut frame = syn((number % 60_000 + 1) as u16);
        // From one of two hosts, as ports do not suffice.
        frame[33] = 80 + (number / 60_000) as u8;
        super::hostile::fix(&mut frame);
        link.stack.input(&frame);
        for event in link.stack.events().collect::<Vec<_>>() {
            if let NetEvent::Asked { id, socket, .. } = event {
                held.push(socket);
                link.stack.accept(id);
            }
        }
        link.stack.run();
        // The answer to a SYN is never answered.
        lose_frames(&mut link);
    }
    assert_eq!(held.len(), MOST - 1);
    assert_eq!(link.stack.metrics().crowded, 100_000 - (MOST as u64 - 1));
    good.goes_on(&mut link);
}

#[test]
fn a_storm_of_resets_hits_nobody_else_and_is_not_answered() {
    let mut link = Wire::new(ALL);
    let mut good = Good::new(&mut link);
    link.listening = false;
    let port = link.socket(good.handle).local_endpoint().unwrap().port;
    let far = 1 << 30;
    for number in 0..100_000_u32 {
        let mut frame = match number % 2 {
            // Of no connection.
            0 => syn((number % 30_000 + 1) as u16),
            // Of the good one's ports, far from its window.
            _ => {
                let mut frame = segment(far + number, 0, 0);
                frame[30..34].copy_from_slice(&[93, 184, 216, 34]);
                frame[34..36].copy_from_slice(&port.to_be_bytes());
                frame[36..38].copy_from_slice(&443_u16.to_be_bytes());
                frame
            }
        };
        frame[34 + 13] = 4;
        super::hostile::fix(&mut frame);
        link.stack.input(&frame);
        link.stack.run();
    }
    assert!(link.stack.frame().is_none());
    assert_eq!(link.stack.metrics().malformed, 0);
    link.listening = true;
    good.goes_on(&mut link);
}

#[test]
fn those_who_do_not_read_keep_nobody_else_from_it() {
    let mut link = Wire::new(ALL);
    let mut good = Good::new(&mut link);
    let before = link.stack.memory.left();
    let slow: Vec<_> = (0..100).map(|_| link.connected(V4)).collect();
    let data = pattern(1 << 20);
    let mut kept = Vec::new();
    for (_, handle, mut stream) in slow {
        // The guest closes its window, and so does the host.
        let (mut to_guest, mut to_host) = (1, 1);
        while to_guest + to_host > 0 {
            to_guest = stream.write(&data).unwrap_or(0);
            to_host = link.socket(handle).send_slice(&data).unwrap();
            link.settle();
        }
        kept.push(stream);
    }
    let taken = before - link.stack.memory.left();
    assert!(taken <= 100 * (MOST - LEAST), "{taken}");
    good.goes_on(&mut link);
}

#[test]
fn giant_questions_that_nobody_answers_are_few() {
    let mut link = Wire::new(ALL);
    let mut good = Good::new(&mut link);
    let mut giant = datagram("198.18.0.2:1", "1.1.1.1:53", &vec![0; 60_000]);
    let mut asked = 0;
    for number in 0..20_000_u32 {
        let port = 1000 + (number % 2000) as u16;
        giant[34..36].copy_from_slice(&port.to_be_bytes());
        link.stack.input(&giant);
        asked += link.stack.events().count();
    }
    assert_eq!(asked, MAX_ASKED);
    // Of each question the first datagrams are kept, and the others counted.
    let of_questions = 20_000 / 2000 * MAX_ASKED;
    let kept = (udp::MAX_WAITING * MAX_ASKED).min(of_questions);
    let metrics = link.stack.metrics();
    assert_eq!(metrics.datagrams_lost, (of_questions - kept) as u64);
    assert_eq!(metrics.crowded, (20_000 - of_questions) as u64);
    good.goes_on(&mut link);
}
