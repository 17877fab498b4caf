//! The network card for drivers that keep to the rules and drivers that do not.
//! `docs/devices.md` lists the tests by class.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::num::NonZeroU64;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use flashpan_protocol::control::{IoRate, Rate};
use flashpan_protocol::network::{Link, Refusal};

use super::header::HEADER_LEN;
use super::{Net, NetError, NetEvent};
use crate::testing::{Driver, HOLE, Segment};
use crate::transport::registers as reg;

const ALL: u64 = u64::MAX;
const MRG_RXBUF: u64 = 1 << 15;

static LINK: LazyLock<Link> = LazyLock::new(|| Link::standard(1500));

type Events = Arc<Mutex<Vec<NetEvent>>>;

fn driver(features: u64) -> (Driver<Net>, Events) {
    let events = Events::default();
    let heard = Arc::clone(&events);
    let host = Box::new(move |event| heard.lock().unwrap().push(event));
    let net = Net::new(*LINK, host).unwrap();
    (Driver::new(net, features), events)
}

/// Who has the gateway's address?
fn arp() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(LINK.guest_mac);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(LINK.guest_mac);
    frame.extend(LINK.guest4.octets());
    frame.extend([0; 6]);
    frame.extend(LINK.gateway4.octets());
    frame
}

/// The answer to it.
fn is_answer(frame: &[u8]) -> bool {
    frame.len() == 42 && frame[..6] == LINK.guest_mac && frame[20..22] == [0, 2]
}

/// A connection is asked for.
fn syn() -> Vec<u8> {
    let mut frame = LINK.gateway_mac.to_vec();
    frame.extend(LINK.guest_mac);
    frame.extend([8, 0]);
    let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    ip.extend(LINK.guest4.octets());
    ip.extend([1, 1, 1, 1]);
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend([
        0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    frame
}

/// Sends a frame.
fn send(driver: &mut Driver<Net>, frame: &[u8]) {
    let header = driver.readable(&[0; HEADER_LEN]);
    let body = driver.readable(frame);
    driver.send(1, &[header, body]);
    driver.machine.run();
}

/// What was put into these buffers, of one frame.
fn received(driver: &mut Driver<Net>, buffers: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for buffer in buffers {
        let Some((_, len)) = driver.rings[0].collect() else {
            break;
        };
        bytes.extend(&driver.content(*buffer)[..len as usize]);
    }
    bytes
}

/// virtio 1.2 §5.1.1, §5.1.4: a network card with its address, its link up, one pair
/// of queues, and an MTU.
#[test]
fn identification() {
    let (driver, _) = driver(ALL);
    assert_eq!(driver.machine.read(reg::DEVICE_ID), 1);
    let mut config = [0; 12];
    driver.machine.transport.read(reg::CONFIG, &mut config);
    assert_eq!(config, [2, 0xf1, 0xa5, 0, 0, 2, 1, 0, 1, 0, 0xdc, 5]);
    let offered = 1 << 32 | 1 << 29 | 1 << 28 | 0x1_99ab;
    assert_eq!(driver.features, offered);
}

#[test]
fn an_mtu_that_no_link_has_is_refused() {
    for mtu in [0, 575, 65_521] {
        let error = Net::new(Link::standard(mtu), Box::new(drop)).unwrap_err();
        assert!(matches!(error, NetError::Mtu(refused) if refused == mtu));
    }
}

#[test]
fn frames_go_in_and_out() {
    for features in [ALL, ALL & !MRG_RXBUF, 0] {
        let (mut driver, _) = driver(features);
        let buffer = driver.writable(2048);
        driver.send(0, &[buffer]);
        send(&mut driver, &arp());
        let bytes = received(&mut driver, &[buffer]);
        assert_eq!(bytes[..HEADER_LEN], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert!(is_answer(&bytes[HEADER_LEN..]), "{bytes:?}");
        assert!(driver.rings[1].collect().is_some(), "the frame comes back");
    }
}

/// virtio 1.2 §5.1.6.4: a frame in several buffers, whose number the first one tells.
#[test]
fn a_frame_is_spread_over_buffers_that_are_too_small() {
    let (mut driver, _) = driver(ALL);
    let buffers: Vec<_> = (0..4).map(|_| driver.writable(20)).collect();
    for buffer in &buffers {
        driver.send(0, &[*buffer]);
    }
    send(&mut driver, &arp());
    let bytes = received(&mut driver, &buffers);
    assert_eq!(bytes[10..HEADER_LEN], [3, 0]);
    assert!(is_answer(&bytes[HEADER_LEN..]));
    // The fourth is there for the next one.
    assert_eq!(driver.machine.device().ring_metrics().unplaceable, 0);
}

#[test]
fn a_frame_waits_for_buffers() {
    let (mut driver, _) = driver(ALL);
    let first = driver.writable(20);
    driver.send(0, &[first]);
    send(&mut driver, &arp());
    assert!(driver.rings[0].collect().is_none(), "not a part of it");
    let second = driver.writable(2000);
    driver.send(0, &[second]);
    driver.machine.run();
    let bytes = received(&mut driver, &[first, second]);
    assert!(is_answer(&bytes[HEADER_LEN..]));
}

#[test]
fn without_room_for_answers_nothing_more_is_taken() {
    let (mut driver, _) = driver(ALL);
    for _ in 0..100 {
        send(&mut driver, &arp());
    }
    let taken = std::iter::from_fn(|| driver.rings[1].collect()).count();
    assert_eq!(taken, 64);
    // All the rest comes when there is room.
    let buffers: Vec<_> = (0..100).map(|_| driver.writable(100)).collect();
    for buffer in &buffers {
        driver.send(0, &[*buffer]);
    }
    driver.machine.run();
    let answers = std::iter::from_fn(|| driver.rings[0].collect()).count();
    assert_eq!(answers, 100);
}

#[test]
fn a_frame_that_fits_into_nothing_is_dropped() {
    let (mut driver, _) = driver(ALL & !MRG_RXBUF);
    let small = driver.writable(20);
    driver.send(0, &[small]);
    send(&mut driver, &arp());
    assert!(driver.rings[0].collect().is_none());
    assert_eq!(driver.machine.device().ring_metrics().unplaceable, 1);
}

#[test]
fn frames_of_no_length_that_a_frame_has_are_dropped() {
    let (mut driver, _) = driver(ALL);
    for len in [0, 5, HEADER_LEN] {
        let buffer = driver.readable(&vec![0; len]);
        driver.send(1, &[buffer]);
        driver.machine.run();
        assert!(driver.rings[1].collect().is_some());
    }
    send(&mut driver, &vec![0; 70_000]);
    let device = driver.machine.device();
    assert_eq!(device.ring_metrics().oversized, 3);
    assert_eq!(device.metrics().malformed, 1);
}

#[test]
fn a_driver_that_breaks_the_rules_has_to_begin_anew() {
    for queue in [0, 1] {
        let (mut driver, _) = driver(ALL);
        if queue == 0 {
            let buffer = driver.writable(2048);
            driver.send(0, &[Segment::writable(HOLE, 100), buffer]);
            send(&mut driver, &arp());
        } else {
            driver.send(1, &[Segment::readable(HOLE, 100)]);
            driver.machine.run();
        }
        assert_eq!(driver.machine.status() & 64, 64, "DEVICE_NEEDS_RESET");
        assert_eq!(driver.machine.device().ring_metrics().broken_rings, 1);
        let mut driver = driver.restart(ALL);
        let buffer = driver.writable(2048);
        driver.send(0, &[buffer]);
        send(&mut driver, &arp());
        assert!(is_answer(&received(&mut driver, &[buffer])[HEADER_LEN..]));
    }
}

#[test]
fn flows_are_asked_for_and_answered_from_another_thread() {
    let (mut driver, events) = driver(ALL);
    let buffer = driver.writable(2048);
    driver.send(0, &[buffer]);
    send(&mut driver, &syn());
    let Some(NetEvent::Asked { id, tuple, .. }) = events.lock().unwrap().pop() else {
        panic!("nothing was asked for");
    };
    assert_eq!(tuple.destination.to_string(), "1.1.1.1:80");
    driver.machine.device().refuse(id, Refusal::Reset);
    driver.machine.run();
    let bytes = received(&mut driver, &[buffer]);
    // A reset that acknowledges the SYN.
    assert_eq!(bytes[HEADER_LEN + 34 + 13], 0x14);
}

#[test]
fn a_reset_ends_all_flows() {
    let (mut driver, events) = driver(ALL);
    send(&mut driver, &syn());
    assert_eq!(events.lock().unwrap().len(), 1);
    let driver = driver.restart(ALL);
    assert!(matches!(
        events.lock().unwrap().as_slice(),
        [NetEvent::Asked { id, .. }, NetEvent::Ended { id: ended, .. }] if id == ended
    ));
    drop(driver);
}

/// After a burst so much in each second, in each direction; the rest waits.
#[test]
fn what_passes_is_limited() {
    let number = |number| NonZeroU64::new(number).unwrap();
    let operations = Some(Rate {
        per_second: number(100),
        burst: number(2),
    });
    let rate = IoRate {
        bytes: None,
        operations,
    };
    let net = Net::new(*LINK, Box::new(drop)).unwrap().limited(rate);
    let mut driver = Driver::new(net, ALL);
    let begun = Instant::now();
    for _ in 0..20 {
        let buffer = driver.writable(100);
        driver.send(0, &[buffer]);
        send(&mut driver, &arp());
    }
    let mut answers = 0;
    loop {
        answers += std::iter::from_fn(|| driver.rings[0].collect()).count();
        if answers == 20 {
            break;
        }
        driver.machine.wait();
    }
    // Two at once, and eighteen at a hundred in a second, of which some come together.
    assert!(
        begun.elapsed() > Duration::from_millis(150),
        "{:?}",
        begun.elapsed()
    );
}
