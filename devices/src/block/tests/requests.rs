//! Requests of a driver that means well.

use proptest::prelude::*;

use super::*;
use crate::block::{BlockError, MAX_DISCARD_SECTORS, SEG_MAX, SIZE_MAX};
use crate::testing::REGION_SEAM;
use crate::transport::registers as reg;
use crate::virtio::VirtioDevice;
use vm_memory::{Bytes, GuestAddress};

/// virtio 1.2 §5.2.3, §5.2.4: what the driver learns before the first request.
#[test]
fn features_and_configuration() {
    let mut fixture = Fixture::new();
    let machine = &mut fixture.driver.machine;
    assert_eq!(machine.read(reg::DEVICE_ID), 2);
    let fields = [
        (0, SECTORS as u32),       // capacity
        (4, 0),                    //
        (8, 0x2_0000),             // size_max
        (12, SEG_MAX),             //
        (16, 0),                   // geometry
        (20, 512),                 // blk_size
        (24, 0),                   // topology
        (28, 0),                   //
        (32, 1 << 16),             // writeback, num_queues
        (36, MAX_DISCARD_SECTORS), //
        (40, 1),                   // max_discard_seg
        (44, 8),                   // discard_sector_alignment
        (48, 0x8000),              // max_write_zeroes_sectors
        (52, 1),                   // max_write_zeroes_seg
        (56, 1),                   // write_zeroes_may_unmap
        (60, 0),                   // the end
    ];
    for (offset, value) in fields {
        assert_eq!(machine.read(reg::CONFIG + offset), value, "offset {offset}");
    }

    let bits = |features: u64| {
        (0..64)
            .filter(|bit| features & 1 << bit != 0)
            .collect::<Vec<_>>()
    };
    let file = image();
    assert_eq!(
        bits(block(&file, false).features()),
        [1, 2, 6, 9, 13, 14, 28, 29]
    );
    assert_eq!(bits(block(&file, true).features()), [1, 2, 5, 6, 9, 28, 29]);
}

/// A file that is not whole sectors is refused, with the reason; an empty one
/// is an empty disk.
#[test]
fn sizes_of_files() {
    for (len, good) in [
        (0, true),
        (511, false),
        (512, true),
        (513, false),
        (1 << 40, true),
    ] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        match Block::new(file, false, "root") {
            Ok(_) => assert!(good, "{len} bytes"),
            Err(BlockError::PartialSector { .. }) => assert!(!good, "{len} bytes"),
            Err(other) => panic!("{other}"),
        }
    }
    let (pipe, _keep) = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
    let error = Block::new(pipe, false, "root").unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("could not find out the size of the disk 'root'")
    );
}

/// virtio 1.2 §5.2.6: what is written is read back and is in the file.
#[test]
fn reads_and_writes() {
    let mut fixture = Fixture::new();
    assert_eq!(
        fixture.read(3, 1024),
        (OK, 1025, [[4; 512], [5; 512]].concat())
    );
    assert_eq!(fixture.write(4, &[0xee; 512]), OK);
    assert_eq!(
        fixture.read(3, 1536),
        (OK, 1537, [[4; 512], [0xee; 512], [6; 512]].concat())
    );
    assert_eq!(fixture.content()[4 * 512..5 * 512], [0xee; 512]);

    let metrics = fixture.driver.machine.device().metrics().read();
    assert_eq!((metrics.reads, metrics.read_bytes), (2, 2560));
    assert_eq!((metrics.writes, metrics.written_bytes), (1, 512));
    assert_eq!(metrics.failures, 0);
}

/// virtio 1.2 §5.2.6.1: no data, no harm.
#[test]
fn requests_without_data() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.request(IN, 0, &[]), (OK, 1));
    assert_eq!(fixture.request(OUT, SECTORS, &[]), (OK, 1));
}

/// virtio 1.2 §2.7.4.1: header, data and status are one string of bytes each
/// way, wherever the descriptors end.
#[test]
fn framing_does_not_matter() {
    let cuts: &[(&[usize], &[usize])] = &[
        (&[16], &[512, 1]),
        (&[16], &[513]),
        (&[1; 16], &[511, 1, 1]),
        (&[8, 8], &[1, 512]),
        (&[0, 4, 12, 0], &[0, 256, 257, 0]),
        (&[3, 13], &[100, 200, 212, 1]),
    ];
    for indirect in [false, true] {
        for (readable, writable) in cuts {
            let mut fixture = Fixture::new();
            let mut bytes = &header(IN, 9)[..];
            let mut segments = Vec::new();
            for &len in *readable {
                let (now, later) = bytes.split_at(len);
                segments.push(fixture.driver.readable(now));
                bytes = later;
            }
            segments.extend(writable.iter().map(|&len| fixture.driver.writable(len)));
            if indirect {
                fixture.driver.send_indirect(0, &segments);
            } else {
                fixture.driver.send(0, &segments);
            }
            fixture.driver.machine.run();
            let (_, len) = fixture.driver.rings[0].collect().unwrap();
            assert_eq!(len, 513);
            let written = segments.iter().filter(|segment| segment.writable);
            let written: Vec<u8> = written.flat_map(|s| fixture.driver.content(*s)).collect();
            assert_eq!(written, [&[10; 512][..], &[OK]].concat());
        }
    }
}

/// virtio 1.2 §2.7.4.1: the data of a write may begin in the header's
/// descriptor.
#[test]
fn header_and_data_in_one_descriptor() {
    let mut fixture = Fixture::new();
    let bytes = [&header(OUT, 1)[..], &[7; 512]].concat();
    for cut in [1, 15, 16, 17, 500, 527, 528] {
        let first = fixture.driver.readable(&bytes[..cut]);
        let second = fixture.driver.readable(&bytes[cut..]);
        let status = fixture.driver.writable(1);
        assert_eq!(fixture.write(1, &[0; 512]), OK);
        assert_eq!(fixture.driver.request(0, &[first, second, status]), 1);
        assert_eq!(fixture.driver.content(status), [OK]);
        assert_eq!(fixture.content()[512..1024], [7; 512], "cut at {cut}");
    }
}

/// virtio 1.2 §5.2.4: as many segments as `seg_max` says, in any order of
/// places, over the seam of two memory regions.
#[test]
fn many_segments() {
    let file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..u64::from(SEG_MAX) * 512)
        .map(|n| (n / 3) as u8)
        .collect();
    file.write_all_at(&bytes, 0).unwrap();
    let driver = Driver::new(block(&file, false), ALL);
    let mut fixture = Fixture { driver, file };

    let middle = u64::from(SEG_MAX) / 2;
    let segments: Vec<_> = (0..u64::from(SEG_MAX))
        .map(|n| Segment::writable(REGION_SEAM + 256 + 512 * middle - 512 * n, 512))
        .collect();
    assert_eq!(fixture.request(IN, 0, &segments), (OK, SEG_MAX * 512 + 1));
    let read: Vec<u8> = segments
        .iter()
        .flat_map(|s| fixture.driver.content(*s))
        .collect();
    assert_eq!(read, bytes);
}

/// virtio 1.2 §5.2.4: no more data than `seg_max` segments of `size_max` bytes,
/// however much a chain can describe.
#[test]
fn more_data_than_offered() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 30).unwrap();
    let driver = Driver::new(block(&file, false), ALL);
    let mut fixture = Fixture { driver, file };
    for (len, status) in [(SIZE_MAX, OK), (SIZE_MAX + 512, IOERR), (4 << 20, IOERR)] {
        let segments = vec![Segment::writable(REGION_SEAM, len); SEG_MAX as usize];
        assert_eq!(
            fixture.request(IN, 0, &segments).0,
            status,
            "segments of {len}"
        );
    }
}

/// virtio 1.2 §5.2.6: the disk's name, as far as it and the buffer go.
#[test]
fn get_id() {
    let mut fixture = Fixture::new();
    for (len, used) in [(20, 21), (64, 20), (19, 20), (3, 4)] {
        let data = fixture.driver.writable(len);
        assert_eq!(
            fixture.request(GET_ID, 0, &[data]),
            (OK, used),
            "into {len} bytes"
        );
        let mut expected = vec![0xa5; len];
        for (to, from) in expected
            .iter_mut()
            .zip(b"a disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0")
        {
            *to = *from;
        }
        assert_eq!(fixture.driver.content(data), expected);
    }
}

/// virtio 1.2 §5.2.6.2: with `FLUSH` writes are durable when the driver asks;
/// without it, at once.
#[test]
fn durability() {
    let mut fixture = Fixture::new();
    let metrics = fixture.driver.machine.device().metrics();
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    assert_eq!(metrics.read().flushes, 0);
    assert_eq!(fixture.request(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(metrics.read().flushes, 1);

    let mut fixture = Fixture::with(ALL & !(1 << 9), false);
    let metrics = fixture.driver.machine.device().metrics();
    assert_eq!(fixture.write(0, &[1; 512]), OK);
    assert_eq!(metrics.read().flushes, 1);
    assert_eq!(fixture.ranges(WRITE_ZEROES, &[(0, 1, 0)]), OK);
    assert_eq!(metrics.read().flushes, 2);
    fixture.read(0, 512);
    assert_eq!(metrics.read().flushes, 2);
}

/// Requests that wait when a disk moves to another process are answered
/// there, once.
#[test]
fn a_disk_moves_with_requests_under_way() {
    for features in [ALL, 0] {
        let mut fixture = Fixture::with(features, false);
        assert_eq!(fixture.write(0, &[0xcc; 512]), OK);
        let mut waiting = Vec::new();
        for sector in 0..10 {
            let head = fixture.driver.readable(&header(IN, sector));
            let data = fixture.driver.writable(512);
            let status = fixture.driver.writable(1);
            fixture.driver.send(0, &[head, data, status]);
            waiting.push(data);
            if sector == 4 {
                // Some are answered, but the driver has not looked.
                fixture.driver.machine.run();
            }
        }
        let other = block(&fixture.file, false);
        fixture.driver = fixture.driver.migrate(other);
        fixture.driver.machine.run();
        for (sector, data) in (0..).zip(waiting) {
            assert_eq!(fixture.driver.rings[0].collect().unwrap().1, 513);
            let expected = if sector == 0 { 0xcc } else { sector + 1 };
            assert_eq!(fixture.driver.content(data), [expected; 512]);
        }
        assert_eq!(fixture.driver.rings[0].collect(), None);
        assert_eq!(
            fixture.read(5, 512),
            (OK, 513, vec![6; 512]),
            "and it goes on"
        );
    }
}

/// A disk is not restored over another one.
#[test]
fn another_disk_is_not_taken_over() {
    let fixture = Fixture::new();
    let state = fixture.driver.machine.transport.save();
    let larger = image();
    larger.set_len((SECTORS + 1) * SECTOR).unwrap();
    for other in [block(&larger, false), block(&fixture.file, true)] {
        let mut machine = crate::testing::Machine::new(other);
        let error = machine.transport.restore(&state).unwrap_err().to_string();
        assert!(error.contains("block"), "{error}");
        assert_eq!(machine.status(), 0);
    }
}

/// One queue that never ends does not keep the event loop: after
/// [`super::super::BUDGET`] the others get their turn.
#[test]
fn a_busy_disk_gives_way() {
    let mut fixture = Fixture::with(0, false);
    for _ in 0..80 {
        let head = fixture.driver.readable(&header(GET_ID, 0));
        let status = fixture.driver.writable(1);
        fixture.driver.rings[0].send(&[head, status]);
    }
    fixture.driver.machine.kick(0);
    fixture.driver.machine.run_once();
    assert_eq!(fixture.driver.rings[0].used_idx(), 64);
    fixture.driver.machine.run_once();
    assert_eq!(fixture.driver.rings[0].used_idx(), 80);
    assert_eq!(fixture.driver.machine.run(), 0, "nothing is left to do");
    let metrics = fixture.driver.machine.device().metrics();
    assert_eq!(metrics.read().yields, 1);
}

/// A request of a few bytes can be long work for the host: a flush, or ranges
/// that are discarded or zeroed. After as much as [`super::super::BUDGET`]
/// permits, the others get their turn.
#[test]
fn short_requests_that_are_long_work_give_way() {
    const RANGE: u64 = 12 << 20;
    let file = tempfile::tempfile().unwrap();
    file.set_len(RANGE).unwrap();
    for (kind, sectors) in [
        (FLUSH, None),
        (DISCARD, Some((RANGE / SECTOR) as u32)),
        (WRITE_ZEROES, Some((RANGE / SECTOR) as u32)),
    ] {
        let mut driver = Driver::new(block(&file, false), ALL);
        for _ in 0..3 {
            let mut segments = vec![driver.readable(&header(kind, 0))];
            if let Some(sectors) = sectors {
                segments.push(driver.readable(&range_bytes((0, sectors, 0))));
            }
            segments.push(driver.writable(1));
            driver.rings[0].send(&segments);
        }
        driver.machine.kick(0);
        for turn in 1..=3 {
            driver.machine.run_once();
            assert_eq!(driver.rings[0].used_idx(), turn, "request of type {kind}");
        }
        driver.machine.run();
        let statistics = driver.machine.device().metrics().read();
        assert_eq!(statistics.failures, 0, "request of type {kind}");
    }
}

/// A disk whose descriptors are not watched says so instead of hanging.
#[test]
fn an_unreachable_disk_does_not_start() {
    use crate::ring::Kicked;
    let file = image();
    let mut disk = block(&file, false);
    disk.unreachable(std::io::Error::other("no more descriptors"));
    let mut machine = crate::testing::Machine::new(disk);
    machine.negotiate(1 << 32);
    assert_eq!(
        machine.set_up_queue(0, 8, [0x1_0000, 0x1_1000, 0x1_2000]),
        1
    );
    assert_eq!(machine.set_status(15), 15 | 64);

    // It does not forget: a reset helps no more than the first time.
    assert_eq!(machine.set_status(0), 0);
    machine.negotiate(1 << 32);
    machine.set_up_queue(0, 8, [0x1_0000, 0x1_1000, 0x1_2000]);
    assert_eq!(machine.set_status(15), 15 | 64);
}

/// One that can be reached no more while it is in use says so at once.
#[test]
fn a_disk_that_becomes_unreachable_needs_a_reset() {
    use crate::ring::Kicked;
    let fixture = Fixture::new();
    (fixture.driver.machine.device()).unreachable(std::io::Error::other("no more descriptors"));
    assert!(fixture.driver.machine.needs_reset());
}

/// virtio 1.2 §2.1.2, §3.1.1: nor does one without its queue.
#[test]
fn a_disk_without_its_queue_does_not_start() {
    let mut machine = crate::testing::Machine::new(block(&image(), false));
    machine.negotiate(1 << 32);
    assert_eq!(machine.set_status(15), 15 | 64);
    machine.kick(0);
    machine.run();
    assert_eq!(machine.set_status(0), 0);
}

#[derive(Debug, Clone)]
enum Operation {
    Read(u64, Vec<u16>),
    Write(u64, Vec<u16>, u8),
    Zero(u64, u32, bool),
    Discard(u64, u32),
    Migrate,
    Restart(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    let sector = || 0..SECTORS + 4;
    let lens = || prop::collection::vec(prop_oneof![0u16..2000, Just(512), Just(1024)], 0..6);
    prop_oneof![
        4 => (sector(), lens()).prop_map(|(at, lens)| Operation::Read(at, lens)),
        4 => (sector(), lens(), any::<u8>()).prop_map(|(at, l, fill)| Operation::Write(at, l, fill)),
        1 => (sector(), 0u32..8, any::<bool>()).prop_map(|(at, n, u)| Operation::Zero(at, n, u)),
        1 => (sector(), 0u32..8).prop_map(|(at, n)| Operation::Discard(at, n)),
        1 => Just(Operation::Migrate),
        1 => any::<u64>().prop_map(Operation::Restart),
    ]
}

/// Cuts a length as a multiple of a sector where that is possible.
fn total(lens: &[u16]) -> usize {
    lens.iter().map(|&len| usize::from(len)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// virtio 1.2 §5.2.6: whatever is asked for, the disk is what an array of
    /// bytes would be.
    #[test]
    fn a_disk_is_an_array(operations in prop::collection::vec(operation(), 1..24)) {
        let mut fixture = Fixture::new();
        let mut model = fixture.content();
        for operation in operations {
            let inside = |sector: u64, len: usize| {
                let start = (sector * SECTOR) as usize;
                (len.is_multiple_of(512) && start + len <= model.len()).then(|| start..start + len)
            };
            match operation {
                Operation::Read(sector, lens) => {
                    let data: Vec<_> = lens
                        .iter()
                        .map(|&len| fixture.driver.writable(len.into()))
                        .collect();
                    let (status, _) = fixture.request(IN, sector, &data);
                    let read: Vec<u8> =
                        data.iter().flat_map(|s| fixture.driver.content(*s)).collect();
                    match inside(sector, total(&lens)) {
                        Some(range) => {
                            prop_assert_eq!(status, OK);
                            prop_assert_eq!(&read, &model[range]);
                        }
                        None => {
                            prop_assert_eq!(status, IOERR);
                            prop_assert!(read.iter().all(|&byte| byte == UNTOUCHED));
                        }
                    }
                }
                Operation::Write(sector, lens, fill) => {
                    let data: Vec<_> = lens
                        .iter()
                        .map(|&len| fixture.driver.readable(&vec![fill; len.into()]))
                        .collect();
                    let (status, _) = fixture.request(OUT, sector, &data);
                    let range = inside(sector, total(&lens));
                    prop_assert_eq!(status, if range.is_some() { OK } else { IOERR });
                    if let Some(range) = range {
                        model[range].fill(fill);
                    }
                }
                Operation::Zero(sector, sectors, unmap) => {
                    if fixture.driver.features & 1 << 14 == 0 {
                        continue;
                    }
                    let status = fixture.ranges(WRITE_ZEROES, &[(sector, sectors, unmap.into())]);
                    let range = inside(sector, sectors as usize * 512);
                    prop_assert_eq!(status, if range.is_some() { OK } else { IOERR });
                    if let Some(range) = range {
                        model[range].fill(0);
                    }
                }
                Operation::Discard(sector, sectors) => {
                    if fixture.driver.features & 1 << 13 == 0 {
                        continue;
                    }
                    let status = fixture.ranges(DISCARD, &[(sector, sectors, 0)]);
                    let range = inside(sector, sectors as usize * 512);
                    prop_assert_eq!(status, if range.is_some() { OK } else { IOERR });
                    if let Some(range) = range {
                        // Anything may be there now; here it is zeroes.
                        model[range].fill(0);
                    }
                }
                Operation::Migrate => {
                    let other = block(&fixture.file, false);
                    fixture.driver = fixture.driver.migrate(other);
                }
                Operation::Restart(features) => {
                    fixture.driver = fixture.driver.restart(features);
                }
            }
            prop_assert!(!fixture.driver.machine.needs_reset());
        }
        prop_assert_eq!(fixture.content(), model);
    }
}

/// Guest memory outside the buffers is left alone.
#[test]
fn neighbours_of_buffers_are_untouched() {
    let mut fixture = Fixture::new();
    let area = fixture.driver.writable(4096);
    let data = Segment::writable(area.addr + 1001, 512);
    assert_eq!(fixture.request(IN, 6, &[data]), (OK, 513));
    let mut expected = vec![0xa5; 4096];
    expected[1001..1513].fill(7);
    let mut all = vec![0; 4096];
    let memory = &fixture.driver.machine.memory;
    memory
        .read_slice(&mut all, GuestAddress(area.addr))
        .unwrap();
    assert_eq!(all, expected);
}
