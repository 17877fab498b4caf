//! Requests of a driver that does not mean well.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::testing::{Descriptor, HOLE, Machine, NEXT, WRITE};

/// virtio 1.2 §5.2.6.2: sectors past the end, and past the end of arithmetic.
#[test]
fn positions_outside_the_disk() {
    for (sector, len, good) in [
        (0, SECTORS * SECTOR, true),
        (SECTORS - 1, 512, true),
        (SECTORS, 0, true),
        (SECTORS - 1, 1024, false),
        (SECTORS, 512, false),
        (SECTORS + 1, 0, false),
        (1, SECTORS * SECTOR, false),
        (u64::MAX, 512, false),
        (u64::MAX / 512, 512, false),
        (u64::MAX / 512 + 1, 512, false), // zero, after multiplication
        (1 << 55, 512, false),
        (1 << 63, 512, false),
    ] {
        let mut fixture = Fixture::new();
        let before = fixture.content();
        let status = if good { OK } else { IOERR };
        let (got, used, data) = fixture.read(sector, len as usize);
        assert_eq!(got, status, "read of {len} from {sector}");
        if !good {
            // Not even the status byte counts: nothing was written before it.
            assert_eq!(used, u32::from(len == 0));
            assert!(data.iter().all(|&byte| byte == UNTOUCHED));
        }
        assert_eq!(fixture.write(sector, &vec![0; len as usize]), status);
        assert_eq!(fixture.content() == before, !good || len == 0);
    }
}

/// virtio 1.2 §5.2.6.1: data is whole sectors.
#[test]
fn lengths_that_are_not_whole_sectors() {
    let mut fixture = Fixture::new();
    let before = fixture.content();
    for len in [1, 511, 513, 1023] {
        assert_eq!(fixture.read(0, len).0, IOERR);
        assert_eq!(fixture.write(0, &vec![0xff; len]), IOERR);
    }
    assert_eq!(fixture.content(), before);
}

/// virtio 1.2 §5.2.6.2: a read-only disk is not written, whatever is asked.
#[test]
fn read_only_disks() {
    let mut fixture = Fixture::with(ALL, true);
    let before = fixture.content();
    assert_eq!(fixture.write(0, &[0; 512]), IOERR);
    assert_eq!(fixture.ranges(DISCARD, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(fixture.ranges(WRITE_ZEROES, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(fixture.request(FLUSH, 0, &[]).0, OK);
    assert_eq!(fixture.read(1, 512), (OK, 513, vec![2; 512]));
    assert_eq!(fixture.content(), before);
}

/// virtio 1.2 §5.2.6.2: types that do not exist.
#[test]
fn unknown_types() {
    let mut fixture = Fixture::new();
    let before = fixture.content();
    // Old SCSI commands, secure erase, zones, and everything else.
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 15, 26, 0x8000_0000, u32::MAX] {
        let data = fixture.driver.readable(&[0; 512]);
        let answer = fixture.driver.writable(512);
        assert_eq!(
            fixture.request(kind, 0, &[data, answer]).0,
            UNSUPP,
            "type {kind}"
        );
        assert_eq!(fixture.driver.content(answer), [UNTOUCHED; 512]);
    }
    assert_eq!(fixture.content(), before);
}

/// virtio 1.2 §5.2.6 (CVE-2019-18960): a header that is too short, or not
/// there.
#[test]
fn short_headers() {
    for len in 0..16 {
        let mut fixture = Fixture::new();
        let head = fixture.driver.readable(&header(GET_ID, 0)[..len]);
        let data = fixture.driver.writable(20);
        let status = fixture.driver.writable(1);
        fixture.driver.request(0, &[head, data, status]);
        assert_eq!(fixture.driver.content(status), [IOERR], "{len} bytes");
        assert_eq!(fixture.driver.content(data), [UNTOUCHED; 20]);
    }
    // Only a status.
    let mut fixture = Fixture::new();
    let status = fixture.driver.writable(1);
    assert_eq!(fixture.driver.request(0, &[status]), 1);
    assert_eq!(fixture.driver.content(status), [IOERR]);
}

/// virtio 1.2 §5.2.6, §2.1.2: without a place for the status the driver cannot
/// be told; nothing is done, and it has to reset.
#[test]
fn no_status_byte() {
    for len in [0, 3, 16, 528] {
        let mut fixture = Fixture::new();
        let before = fixture.content();
        let bytes = [&header(OUT, 0)[..], &[0xff; 512]].concat();
        let head = fixture.driver.readable(&bytes[..len]);
        let empty = fixture.driver.writable(0);
        fixture.driver.send(0, &[head, empty]);
        fixture.driver.machine.run();
        assert!(fixture.driver.machine.needs_reset());
        assert_eq!(fixture.driver.rings[0].collect(), None);
        assert_eq!(fixture.content(), before);

        fixture.driver = fixture.driver.restart(ALL);
        assert_eq!(fixture.read(0, 512).0, OK, "a reset helps");
    }
}

/// The header is looked at once: what the driver writes afterwards is not
/// seen. Here header and answer are the same memory.
#[test]
fn a_header_that_is_overwritten_by_its_answer() {
    let mut fixture = Fixture::new();
    let head = fixture.driver.readable(&header(IN, 2));
    let data = Segment::writable(head.addr, 512);
    fixture.driver.alloc(512);
    assert_eq!(fixture.request_at(head, data), OK);
    assert_eq!(fixture.driver.content(data), [3; 512]);
}

impl Fixture {
    fn request_at(&mut self, head: Segment, data: Segment) -> u8 {
        let status = self.driver.writable(1);
        self.driver.request(0, &[head, data, status]);
        self.driver.content(status)[0]
    }
}

/// virtio 1.2 §2.7.5 (CVE-2026-48914): a buffer that is not in guest memory,
/// or that ends outside, is not read or written, nor is any other of its
/// chain.
#[test]
fn data_outside_memory() {
    for (addr, len) in [
        (HOLE, 512),
        (HOLE - 511, 512),
        (u64::MAX - 511, 512),
        (1 << 40, 512),
    ] {
        for kind in [IN, OUT] {
            let mut fixture = Fixture::new();
            let before = fixture.content();
            let head = fixture.driver.readable(&header(kind, 0));
            let good = fixture.driver.writable(512);
            let flags = if kind == IN { NEXT | WRITE } else { NEXT };
            let ring = &mut fixture.driver.rings[0];
            let at = |addr, len, flags, next| Descriptor {
                addr,
                len,
                flags,
                next,
            };
            ring.write_descriptor(0, at(head.addr, 16, NEXT, 1));
            ring.write_descriptor(1, at(good.addr, 512, flags, 2));
            ring.write_descriptor(2, at(addr, len, flags, 3));
            ring.write_descriptor(3, at(good.addr, 1, WRITE, 0));
            ring.offer(0);
            fixture.driver.machine.kick(0);
            fixture.driver.machine.run();
            assert!(fixture.driver.machine.needs_reset());
            assert_eq!(fixture.content(), before);
            assert_eq!(fixture.driver.content(good), [UNTOUCHED; 512]);
        }
    }
}

/// A host file that fails is an error of the request, not of the device:
/// truncated behind our back, or not open for writing.
#[test]
fn host_errors() {
    let mut fixture = Fixture::new();
    fixture.file.set_len(SECTOR).unwrap();
    assert_eq!(fixture.read(0, 1024).0, IOERR);
    assert_eq!(fixture.read(0, 512).0, OK);

    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(SECTORS * SECTOR).unwrap();
    let file = File::open(path.path()).unwrap();
    let driver = Driver::new(block(&file, false), ALL);
    let mut fixture = Fixture { driver, file };
    assert_eq!(fixture.write(0, &[1; 512]), IOERR);
    assert_eq!(fixture.ranges(DISCARD, &[(0, 8, 0)]), IOERR);
    assert_eq!(fixture.ranges(WRITE_ZEROES, &[(0, 8, 0)]), IOERR);
    assert_eq!(fixture.read(0, 512).0, OK);
    assert_eq!(fixture.driver.machine.device().metrics().read().failures, 3);
}

/// A host without room is an error like any other to the driver, and counted so
/// that the user can be told. `/dev/full` has room for nothing.
#[test]
fn a_host_without_room() {
    let file = File::options().read(true).write(true).open("/dev/full");
    let file = file.unwrap();
    let full = block(&file, false).with_capacity(SECTORS);
    let driver = Driver::new(full, ALL);
    let mut fixture = Fixture { driver, file };
    assert_eq!(fixture.write(0, &[1; 512]), IOERR);
    assert_eq!(fixture.write(8, &[1; 4096]), IOERR);
    assert_eq!(fixture.ranges(WRITE_ZEROES, &[(0, 8, 0)]), IOERR);
    // What fails for another reason does not count.
    assert_eq!(fixture.write(SECTORS, &[1; 512]), IOERR);
    assert_eq!(fixture.read(0, 512).0, OK);
    let read = fixture.driver.machine.device().metrics().read();
    assert_eq!((read.failures, read.no_space), (4, 3));
}

/// virtio 1.2 §2.4.1 (CVE-2026-45782): after a reset in the middle of the
/// work, and with a kick under way, the rings are not touched.
#[test]
fn reset_in_the_middle() {
    for served in [false, true] {
        let mut fixture = Fixture::with(0, false);
        for _ in 0..80 {
            let head = fixture.driver.readable(&header(GET_ID, 0));
            let status = fixture.driver.writable(1);
            fixture.driver.rings[0].send(&[head, status]);
        }
        fixture.driver.machine.kick(0);
        if served {
            // Part of it; the rest would follow by itself.
            fixture.driver.machine.run_once();
        }
        fixture.driver.machine.set_status(0);
        let used = fixture.driver.rings[0].used_idx();
        assert_eq!(used, if served { 64 } else { 0 });
        let _ = fixture.driver.machine.interrupts();
        fixture.driver.machine.kick(0);
        fixture.driver.machine.run();
        assert_eq!(fixture.driver.rings[0].used_idx(), used);
        assert_eq!(fixture.driver.machine.interrupts(), 0);

        fixture.driver = fixture.driver.restart(ALL);
        assert_eq!(fixture.read(0, 512).0, OK);
    }
}

/// virtio 1.2 §3.1.1: "The driver MUST NOT send any buffer available
/// notifications to the device before setting DRIVER_OK": nothing happens.
#[test]
fn kicks_before_driver_ok() {
    let file = image();
    let mut machine = Machine::new(block(&file, false));
    for status in [0, 1, 3] {
        machine.set_status(status);
        machine.kick(0);
        machine.run();
    }
    machine.negotiate(1 << 32);
    machine.kick(0);
    machine.run();
    assert_eq!(machine.set_status(15), 15 | 64, "its queue was not set up");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// virtio 1.2 §2.7, §5.2.6: random rings, headers and kicks. The disk
    /// neither panics nor hangs, and its size stays.
    #[test]
    fn random_requests(
        descriptors in prop::collection::vec(
            (0u64..64, prop_oneof![Just(16u32), Just(1), Just(512), 0u32..2048], 0u16..8, 0u16..16),
            16,
        ),
        headers in prop::collection::vec((0u32..16, prop_oneof![0..SECTORS + 2, any::<u64>()]), 8),
        heads in prop::collection::vec(0u16..17, 1..12),
        seed in any::<u8>(),
    ) {
        let mut fixture = Fixture::new();
        let area = fixture.driver.alloc(0x1_0000);
        for (n, (kind, sector)) in headers.into_iter().enumerate() {
            let at = GuestAddress(area + 512 * n as u64);
            fixture.driver.machine.memory.write_slice(&header(kind, sector), at).unwrap();
        }
        for (index, (place, len, flags, next)) in (0..).zip(descriptors) {
            // Mostly where the headers are; sometimes outside memory.
            let addr = if place == 63 { HOLE - 256 } else { area + 512 * (place % 16) };
            fixture.driver.rings[0].write_descriptor(index, Descriptor { addr, len, flags, next });
        }
        for head in heads {
            fixture.driver.rings[0].offer(head);
            if head as u8 & 3 != seed & 3 {
                fixture.driver.machine.kick(0);
                fixture.driver.machine.run();
            }
        }
        fixture.driver.machine.run();
        prop_assert_eq!(fixture.file.metadata().unwrap().len(), SECTORS * SECTOR);
        // A reset makes it a good disk again.
        fixture.driver = fixture.driver.restart(ALL);
        prop_assert_eq!(fixture.read(0, 512).0, OK);
    }
}
