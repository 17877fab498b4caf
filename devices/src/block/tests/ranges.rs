//! Discard and write-zeroes.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::block::{MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_SECTORS};

const UNMAP: u32 = 1;

/// virtio 1.2 §5.2.6: both leave zeroes here, in their ranges and nowhere
/// else.
#[test]
fn ranges_become_zeroes() {
    for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, UNMAP)] {
        let mut fixture = Fixture::new();
        let mut expected = fixture.content();
        assert_eq!(fixture.ranges(kind, &[(8, 3, flags)]), OK);
        expected[8 * 512..11 * 512].fill(0);
        assert_eq!(fixture.content(), expected, "{kind} with {flags}");
        assert_eq!(fixture.driver.machine.device().metrics().read().discards, 1);
    }
}

/// virtio 1.2 §5.2.6.2: space is given back where the file system can.
#[test]
fn discarded_space_is_given_back() {
    let mut fixture = Fixture::new();
    let blocks = |fixture: &Fixture| fixture.file.metadata().unwrap().blocks();
    let before = blocks(&fixture);
    assert!(before >= SECTORS);
    assert_eq!(fixture.ranges(DISCARD, &[(0, 32, 0)]), OK);
    assert!(blocks(&fixture) < before, "a hole");
    assert_eq!(fixture.ranges(WRITE_ZEROES, &[(0, 64, UNMAP)]), OK);
    assert!(blocks(&fixture) <= before - 32);
    assert_eq!(fixture.file.metadata().unwrap().len(), SECTORS * SECTOR);
}

/// virtio 1.2 §5.2.6.2: flags that do not exist, and `unmap` on a discard, are
/// not supported; nothing is done then.
#[test]
fn flags_of_ranges() {
    for (kind, flags, status) in [
        (DISCARD, 0, OK),
        (DISCARD, UNMAP, UNSUPP),
        (DISCARD, 2, UNSUPP),
        (DISCARD, 1 << 31, UNSUPP),
        (WRITE_ZEROES, 0, OK),
        (WRITE_ZEROES, UNMAP, OK),
        (WRITE_ZEROES, 2, UNSUPP),
        (WRITE_ZEROES, 3, UNSUPP),
        (WRITE_ZEROES, u32::MAX, UNSUPP),
    ] {
        let mut fixture = Fixture::new();
        let before = fixture.content();
        assert_eq!(
            fixture.ranges(kind, &[(0, 8, flags)]),
            status,
            "{kind}, {flags}"
        );
        assert_eq!(fixture.content() == before, status != OK);
    }
}

/// virtio 1.2 §5.2.6.2: ranges past the end, too long, or past the end of
/// arithmetic.
#[test]
fn ranges_outside_the_disk() {
    for (sector, sectors, status) in [
        (SECTORS - 1, 1, OK),
        (SECTORS, 0, OK),
        (SECTORS - 1, 2, IOERR),
        (SECTORS, 1, IOERR),
        (SECTORS + 1, 0, IOERR),
        (0, SECTORS as u32 + 1, IOERR),
        (u64::MAX, 1, IOERR),
        (u64::MAX, u32::MAX, IOERR),
        (u64::MAX / 512, 1, IOERR),
        (u64::MAX / 512 + 1, 1, IOERR),
        (1 << 55, 1, IOERR),
        (0, MAX_DISCARD_SECTORS + 1, IOERR),
        (0, MAX_WRITE_ZEROES_SECTORS + 1, IOERR),
    ] {
        for kind in [DISCARD, WRITE_ZEROES] {
            let mut fixture = Fixture::new();
            let before = fixture.content();
            let got = fixture.ranges(kind, &[(sector, sectors, 0)]);
            assert_eq!(got, status, "{kind} of {sectors} from {sector}");
            if status != OK {
                assert_eq!(fixture.content(), before);
            }
        }
    }
}

/// virtio 1.2 §5.2.4: more than the configuration permits is refused, even on
/// a disk that has it.
#[test]
fn ranges_longer_than_offered() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 32).unwrap();
    let driver = Driver::new(block(&file, false), ALL);
    let mut fixture = Fixture { driver, file };
    for (kind, max) in [
        (DISCARD, MAX_DISCARD_SECTORS),
        (WRITE_ZEROES, MAX_WRITE_ZEROES_SECTORS),
    ] {
        assert_eq!(fixture.ranges(kind, &[(0, max, 0)]), OK);
        assert_eq!(fixture.ranges(kind, &[(0, max + 1, 0)]), IOERR);
    }
}

/// virtio 1.2 §5.2.6: data is a whole number of ranges, one at least, and as many
/// as `max_discard_seg` and `max_write_zeroes_seg`: one.
#[test]
fn pieces_of_ranges() {
    let mut fixture = Fixture::new();
    let before = fixture.content();
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(fixture.ranges(kind, &[]), IOERR);
        for len in [1, 15, 17, 31] {
            let bytes = [range_bytes((0, 8, 0)), range_bytes((8, 8, 0))].concat();
            let data = fixture.driver.readable(&bytes[..len]);
            assert_eq!(fixture.request(kind, 0, &[data]).0, IOERR, "{len} bytes");
        }
    }
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(fixture.ranges(kind, &[(0, 1, 0), (1, 1, 0)]), IOERR);
    }
    assert_eq!(fixture.content(), before);
}

/// virtio 1.2 §5.2.6.2: what was not negotiated is not supported.
#[test]
fn ranges_without_negotiation() {
    let mut fixture = Fixture::with(0, false);
    let before = fixture.content();
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(fixture.ranges(kind, &[(0, 8, 0)]), UNSUPP);
    }
    assert_eq!(fixture.content(), before);
}
