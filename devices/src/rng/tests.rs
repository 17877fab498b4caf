//! Entropy for drivers that keep to the rules and drivers that do not.
//! `docs/devices.md` lists the tests by class.

use proptest::prelude::*;

use super::{MAX_REQUEST_BYTES, Rng};
use crate::testing::{Descriptor, Driver, HOLE, Machine, NEXT, Segment, WRITE};
use crate::transport::registers as reg;

/// Everything that is offered.
const ALL: u64 = u64::MAX;

fn driver() -> Driver<Rng> {
    Driver::new(Rng::new(), ALL)
}

/// Whether every part of `bytes` was written: random bytes are not the
/// pattern for long.
fn is_random(bytes: &[u8]) -> bool {
    bytes
        .chunks(32)
        .all(|part| part.len() < 32 || part.iter().any(|&byte| byte != 0xa5))
}

/// virtio 1.2 §5.4.1, §5.4.4: an entropy device without configuration.
#[test]
fn identification() {
    let driver = driver();
    assert_eq!(driver.machine.read(reg::DEVICE_ID), 4);
    assert_eq!(driver.machine.read(reg::CONFIG), 0);
    assert_eq!(driver.features, 1 << 32 | 1 << 29 | 1 << 28);
}

/// virtio 1.2 §5.4.6.2: the buffer is filled, and all of it.
#[test]
fn buffers_are_filled() {
    let mut driver = driver();
    for len in [1, 2, 64, 4095, 4096, 65536] {
        let buffer = driver.writable(len);
        assert_eq!(driver.request(0, &[buffer]), len as u32);
        assert!(is_random(&driver.content(buffer)), "{len} bytes");
    }
    let (a, b) = (driver.writable(64), driver.writable(64));
    driver.request(0, &[a, b]);
    assert_ne!(driver.content(a), driver.content(b));
    let statistics = driver.machine.device().metrics().read();
    assert_eq!(statistics.requests, 7);
}

/// virtio 1.2 §2.7.4.1: several buffers, empty ones among them, are one.
#[test]
fn several_buffers() {
    let mut driver = driver();
    let lens = [0, 100, 1, 0, 300];
    let buffers: Vec<_> = lens.iter().map(|&len| driver.writable(len)).collect();
    assert_eq!(driver.request(0, &buffers), 401);
    for buffer in &buffers {
        assert!(is_random(&driver.content(*buffer)));
    }
    let head = driver.send_indirect(0, &buffers);
    driver.machine.run();
    assert_eq!(driver.rings[0].collect(), Some((head, 401)));
}

/// virtio 1.2 §5.4.6.1: a driver gets less than it asked for; no guest makes
/// the host produce what it likes. The bytes after it are left alone.
#[test]
fn requests_are_capped() {
    let mut driver = driver();
    let cap = MAX_REQUEST_BYTES as u32;
    let buffer = driver.writable(MAX_REQUEST_BYTES + 4096);
    assert_eq!(driver.request(0, &[buffer]), cap);
    let content = driver.content(buffer);
    assert!(is_random(&content[..MAX_REQUEST_BYTES]));
    assert!(
        content[MAX_REQUEST_BYTES..]
            .iter()
            .all(|&byte| byte == 0xa5)
    );

    // By several buffers as well.
    let buffers = [(); 3].map(|()| driver.writable(40 << 10));
    assert_eq!(driver.request(0, &buffers), cap);
    let rest = (MAX_REQUEST_BYTES - (40 << 10)) as u32;
    let after = Segment::writable(buffers[1].addr + u64::from(rest), (40 << 10) - rest);
    assert!(driver.content(after).iter().all(|&byte| byte == 0xa5));
    assert!(driver.content(buffers[2]).iter().all(|&byte| byte == 0xa5));

    // The same 4 MiB again and again: 256 MiB are described.
    let much = Segment::writable(0x40_0000, 4 << 20);
    assert_eq!(driver.request(0, &[much; 64]), cap);
}

/// virtio 1.2 §5.4.6.1: device-readable buffers have no place here.
#[test]
fn readable_buffers_are_refused() {
    let mut driver = driver();
    let (readable, writable) = (driver.readable(b"?"), driver.writable(64));
    driver.send(0, &[readable, writable]);
    driver.machine.run();
    assert!(driver.machine.needs_reset());
    assert_eq!(driver.content(writable), [0xa5; 64]);
    driver = driver.restart(ALL);
    assert_eq!(driver.request(0, &[writable]), 64);
}

/// virtio 1.2 §5.4.6.2: there is no answer to a request without room for a
/// byte.
#[test]
fn empty_requests_are_refused() {
    let mut driver = driver();
    let empty = driver.writable(0);
    driver.send(0, &[empty]);
    driver.machine.run();
    assert!(driver.machine.needs_reset());
    assert_eq!(driver.rings[0].collect(), None);
}

/// virtio 1.2 §2.7.5: nothing is written outside guest memory, nor before it.
#[test]
fn buffers_outside_memory() {
    for (addr, len) in [(HOLE, 1), (HOLE - 64, 65), (u64::MAX, 1), (0, u32::MAX)] {
        let mut driver = driver();
        let good = driver.writable(64);
        let ring = &mut driver.rings[0];
        let at = |addr, len, flags| Descriptor {
            addr,
            len,
            flags,
            next: 1,
        };
        ring.write_descriptor(0, at(good.addr, 64, WRITE | NEXT));
        ring.write_descriptor(1, at(addr, len, WRITE));
        ring.offer(0);
        driver.machine.kick(0);
        driver.machine.run();
        assert!(driver.machine.needs_reset());
        assert_eq!(driver.content(good), [0xa5; 64]);
    }
}

/// A request that waits when the device moves is answered there.
#[test]
fn a_device_moves_with_requests_under_way() {
    let mut driver = driver();
    let first = driver.writable(64);
    driver.request(0, &[first]);
    let waiting = driver.writable(64);
    driver.send(0, &[waiting]);
    let mut driver = driver.migrate(Rng::new());
    driver.machine.run();
    assert_eq!(driver.rings[0].collect().unwrap().1, 64);
    assert!(is_random(&driver.content(waiting)));
}

/// A state of another kind of device is not taken over.
#[test]
fn another_device_is_not_taken_over() {
    let file = tempfile::tempfile().unwrap();
    let disk = Machine::new(crate::block::Block::new(file, false, "").unwrap());
    let mut machine = Machine::new(Rng::new());
    let error = machine
        .transport
        .restore(&disk.transport.save())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the saved state is not that of the device, which is of kind entropy"
    );
}

/// virtio 1.2 §2.4.1: after a reset a kick that is under way does nothing.
#[test]
fn reset_in_the_middle() {
    let mut driver = driver();
    let buffer = driver.writable(64);
    driver.send(0, &[buffer]);
    driver.machine.set_status(0);
    driver.machine.run();
    assert_eq!(driver.content(buffer), [0xa5; 64]);
    let mut driver = driver.restart(ALL);
    assert_eq!(driver.request(0, &[buffer]), 64);
}

/// A queue that never ends gives way.
#[test]
fn a_busy_device_gives_way() {
    let mut driver = Driver::new(Rng::new(), 0);
    for _ in 0..40 {
        let buffer = driver.writable(16);
        driver.rings[0].send(&[buffer]);
    }
    driver.machine.kick(0);
    for used in [16, 32, 40] {
        driver.machine.run_once();
        assert_eq!(driver.rings[0].used_idx(), used);
    }
    assert_eq!(driver.machine.run(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// virtio 1.2 §2.7, §5.4.6: random rings: no panic, an end of the work, and
    /// a reset helps.
    #[test]
    fn random_requests(
        descriptors in prop::collection::vec(
            (0u64..0xa0_0000, prop_oneof![0u32..4096, any::<u32>()], 0u16..8, 0u16..16),
            16,
        ),
        heads in prop::collection::vec(0u16..17, 1..12),
    ) {
        let mut driver = driver();
        for (index, (addr, len, flags, next)) in (0..).zip(descriptors) {
            // Away from the ring itself, which would be another test.
            let addr = addr.max(0x2_0000);
            driver.rings[0].write_descriptor(index, Descriptor { addr, len, flags, next });
        }
        for head in heads {
            driver.rings[0].offer(head);
            driver.machine.kick(0);
            driver.machine.run();
        }
        let mut driver = driver.restart(ALL);
        let buffer = driver.writable(64);
        prop_assert_eq!(driver.request(0, &[buffer]), 64);
    }

    /// virtio 1.2 §2.7: the ring is the guest's to overwrite, by the device's
    /// own hand as well: random bytes over descriptors and rings.
    #[test]
    fn rings_that_are_overwritten(place in 0u64..0x800, len in 1u32..0x800) {
        let mut driver = driver();
        let over = Segment::writable(driver.rings[0].desc + place, len);
        for _ in 0..3 {
            driver.rings[0].write_descriptor(0, Descriptor {
                addr: over.addr,
                len,
                flags: WRITE,
                next: 0,
            });
            driver.rings[0].offer(0);
            driver.machine.kick(0);
            driver.machine.run();
        }
        let mut driver = driver.restart(ALL);
        let buffer = driver.writable(64);
        prop_assert_eq!(driver.request(0, &[buffer]), 64);
    }
}

/// A device whose descriptors are not watched says so, each time that it is
/// set up.
#[test]
fn an_unreachable_device_does_not_start() {
    use crate::ring::Kicked;
    let mut rng = Rng::new();
    rng.unreachable(std::io::Error::other("no more descriptors"));
    let mut machine = Machine::new(rng);
    for _ in 0..2 {
        machine.negotiate(1 << 32);
        machine.set_up_queue(0, 8, [0x1_0000, 0x1_1000, 0x1_2000]);
        assert_eq!(machine.set_status(15), 15 | 64);
        assert_eq!(machine.set_status(0), 0);
    }
}
