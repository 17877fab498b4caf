//! Rings against drivers that keep to the rules and drivers that do not.
//! `docs/devices.md` lists the tests by class.

use std::os::fd::AsRawFd;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Budget, Chain, Progress, Ring, RingError};
use crate::testing::{
    Descriptor, HOLE, INDIRECT, NEXT, REGION_SEAM, Ring as DriverRing, Segment, WRITE,
};
use crate::virtio::{GuestRam, Interrupt};

const SIZE: u16 = 8;
const BASE: u64 = 0x1000;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

/// Where buffers and tables are put.
const DATA: u64 = 0x1_0000;
const TABLE: u64 = 0x2_0000;

/// More than any test here makes available at a time.
const AMPLE: Budget = Budget {
    chains: 1000,
    bytes: u64::MAX,
};

/// Both sides of one queue.
struct Pair {
    memory: GuestRam,
    driver: DriverRing,
    device: Ring,
    interrupt: Interrupt,
    line: EventFd,
}

/// Two regions without a gap, and a hole after them.
fn memory() -> GuestRam {
    let len = REGION_SEAM as usize;
    let regions = [(GuestAddress(0), len), (GuestAddress(REGION_SEAM), len)];
    GuestRam::from_ranges(&regions).unwrap()
}

impl Pair {
    fn new(features: u64) -> Self {
        Self::at(features, 0)
    }

    /// A pair that has used the queue up to `position`.
    fn at(features: u64, position: u16) -> Self {
        let memory = memory();
        let event_idx = features & EVENT_IDX != 0;
        let mut driver = DriverRing::new(memory.clone(), BASE, SIZE, event_idx);
        driver.start_at(position);
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(driver.desc as u32), None);
        queue.set_avail_ring_address(Some(driver.avail as u32), None);
        queue.set_used_ring_address(Some(driver.used as u32), None);
        queue.set_event_idx(event_idx);
        queue.set_next_avail(position);
        queue.set_next_used(position);
        queue.set_ready(true);
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            memory,
            driver,
            device: Ring::new(queue, features),
            interrupt: Interrupt::new(line.try_clone().unwrap()),
            line,
        }
    }

    /// Serves what is available; each answer is as long as what was read.
    fn serve(&mut self, budget: Budget) -> Progress {
        self.device
            .serve(&self.memory, &self.interrupt, budget, |chain| {
                Ok(chain.readable.len() as u32)
            })
    }

    /// Offers `table` from descriptor 0 on, and pops it.
    fn pop(&mut self, descriptors: &[Descriptor]) -> Result<(usize, usize), RingError> {
        self.driver.write_table(self.driver.desc, descriptors);
        self.driver.offer(0);
        self.pop_offered()
    }

    fn pop_offered(&mut self) -> Result<(usize, usize), RingError> {
        let mut chain = Chain::new();
        assert!(self.device.pop(&self.memory, &mut chain)?);
        Ok((chain.readable.len(), chain.writable.len()))
    }

    fn interrupts(&self) -> u64 {
        self.line.read().unwrap_or(0)
    }
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr,
        len,
        flags,
        next,
    }
}

/// virtio 1.2 §2.7.5: each way to break a chain has its error; nothing is
/// taken for a short chain.
#[test]
fn broken_chains() {
    use RingError as E;
    let memory_end = 2 * REGION_SEAM;
    let cases: &[(&str, &[Descriptor], RingError)] = &[
        (
            "next = size",
            &[descriptor(DATA, 1, NEXT, SIZE)],
            E::NextOutOfRange,
        ),
        (
            "next = 65535",
            &[descriptor(DATA, 1, NEXT, 0xffff)],
            E::NextOutOfRange,
        ),
        (
            "a loop of one",
            &[descriptor(DATA, 1, NEXT, 0)],
            E::TooManyDescriptors,
        ),
        (
            "a loop of two",
            &[descriptor(DATA, 1, NEXT, 1), descriptor(DATA, 1, NEXT, 0)],
            E::TooManyDescriptors,
        ),
        (
            "a loop of empty buffers",
            &[descriptor(DATA, 0, NEXT, 0)],
            E::TooManyDescriptors,
        ),
        (
            "a buffer after the end",
            &[descriptor(memory_end, 1, 0, 0)],
            E::OutsideMemory,
        ),
        (
            "a buffer over the end",
            &[descriptor(memory_end - 1, 2, 0, 0)],
            E::OutsideMemory,
        ),
        (
            "a buffer at the top",
            &[descriptor(u64::MAX, 2, WRITE, 0)],
            E::OutsideMemory,
        ),
        (
            "all of 4 GiB",
            &[descriptor(0, u32::MAX, WRITE, 0)],
            E::OutsideMemory,
        ),
        (
            "readable after writable",
            &[
                descriptor(DATA, 1, NEXT | WRITE, 1),
                descriptor(DATA, 1, 0, 0),
            ],
            E::ReadableAfterWritable,
        ),
        (
            "readable after an empty writable",
            &[
                descriptor(DATA, 0, NEXT | WRITE, 1),
                descriptor(DATA, 1, 0, 0),
            ],
            E::ReadableAfterWritable,
        ),
    ];
    for (what, descriptors, error) in cases {
        let mut pair = Pair::new(INDIRECT_DESC);
        assert_eq!(pair.pop(descriptors), Err(*error), "{what}");
    }
}

/// virtio 1.2 §2.7.6: a head is an index of the descriptor table.
#[test]
fn head_out_of_range() {
    for head in [SIZE, SIZE + 1, 0x7fff, 0xffff] {
        let mut pair = Pair::new(0);
        pair.driver.offer(head);
        assert_eq!(pair.pop_offered(), Err(RingError::HeadOutOfRange));
    }
}

/// virtio 1.2 §2.7.5.2: at most 2^32 bytes in total. Every buffer is in memory
/// here, which takes many that overlap.
#[test]
fn lengths_past_4_gib() {
    let mut pair = Pair::new(INDIRECT_DESC);
    let memory = memory_of(1 << 30);
    let table: Vec<_> = (0..5)
        .map(|index| descriptor(0x10_0000, 0x3fe0_0000, NEXT, index + 1))
        .collect();
    pair.memory = memory.clone();
    pair.driver = pair.driver.in_memory(memory);
    assert_eq!(pair.pop(&table), Err(RingError::TooManyBytes));
}

/// Memory that nobody touches costs nothing.
fn memory_of(len: usize) -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), len)]).unwrap()
}

/// virtio 1.2 §2.7.5.3.1: a chain of as many descriptors as the queue has is
/// the longest, directly or indirectly.
#[test]
fn chains_longer_than_the_queue() {
    let chain = |len: u16| -> Vec<_> {
        (1..=len)
            .map(|next| descriptor(DATA, 1, if next < len { NEXT } else { 0 }, next))
            .collect()
    };
    let mut pair = Pair::new(INDIRECT_DESC);
    assert_eq!(pair.pop(&chain(SIZE)), Ok((SIZE.into(), 0)));

    for (len, expected) in [
        (SIZE, Ok((SIZE.into(), 0))),
        (SIZE + 1, Err(RingError::TooManyDescriptors)),
        (1000, Err(RingError::TooManyDescriptors)),
    ] {
        let mut pair = Pair::new(INDIRECT_DESC);
        pair.driver.write_table(TABLE, &chain(len));
        let head = descriptor(TABLE, 16 * u32::from(len), INDIRECT, 0);
        assert_eq!(pair.pop(&[head]), expected, "{len} descriptors");
    }
}

/// virtio 1.2 §2.7.5.2: an empty buffer is no buffer; it is in nobody's way.
#[test]
fn zero_length_descriptors() {
    let mut pair = Pair::new(0);
    let chain = [
        descriptor(u64::MAX, 0, NEXT, 1),
        descriptor(DATA, 3, NEXT, 2),
        descriptor(HOLE, 0, NEXT, 3),
        descriptor(DATA, 0, NEXT | WRITE, 4),
        descriptor(DATA, 5, WRITE, 0),
    ];
    assert_eq!(pair.pop(&chain), Ok((3, 5)));
    assert_eq!(pair.pop(&[descriptor(0, 0, 0, 0)]), Ok((0, 0)));
}

/// virtio 1.2 §2.7.4.1: a buffer that lies in two regions is one buffer.
#[test]
fn buffers_across_regions() {
    let mut pair = Pair::new(0);
    let addr = REGION_SEAM - 2;
    pair.memory
        .write_slice(b"seam", GuestAddress(addr))
        .unwrap();
    pair.driver.write_table(BASE, &[descriptor(addr, 4, 0, 0)]);
    pair.driver.offer(0);
    let mut chain = Chain::new();
    assert_eq!(pair.device.pop(&pair.memory, &mut chain), Ok(true));
    assert_eq!(chain.readable.slices().len(), 2);
    assert_eq!(chain.readable.take_array(), Some(*b"seam"));
}

/// virtio 1.2 §2.7.5.3.2: normal descriptors and then an indirect one; `WRITE`
/// in the latter means nothing, and tables need no alignment.
#[test]
fn indirect_tables() {
    for (flags, table) in [
        (INDIRECT, TABLE),
        (INDIRECT | WRITE, TABLE),
        (INDIRECT, TABLE + 3),
    ] {
        let mut pair = Pair::new(INDIRECT_DESC);
        // In another order than that of the table.
        let inner = [
            descriptor(DATA, 10, NEXT, 2),
            descriptor(DATA, 30, WRITE, 0),
            descriptor(DATA, 20, NEXT | WRITE, 1),
        ];
        pair.driver.write_table(table, &inner);
        let outer = [
            descriptor(DATA, 1, NEXT, 1),
            descriptor(table, 48, flags, 0),
        ];
        assert_eq!(pair.pop(&outer), Ok((11, 50)));
    }
}

/// virtio 1.2 §2.7.5.3.1: an indirect table is not in another, has no
/// successor, is not empty, is whole, is in memory, and was negotiated.
#[test]
fn broken_indirect_tables() {
    use RingError as E;
    let table = |len| descriptor(TABLE, len, INDIRECT, 0);
    let inner_loop = [descriptor(DATA, 1, NEXT, 0)];
    let inner_next = [descriptor(DATA, 1, NEXT, 1)];
    let nested = [descriptor(TABLE, 16, INDIRECT, 0)];
    let nested_later = [descriptor(DATA, 1, NEXT, 1), table(16)];
    let good = [descriptor(DATA, 1, 0, 0)];
    let cases: &[(&str, u64, &[Descriptor], Descriptor, RingError)] = &[
        (
            "not negotiated",
            0,
            &good,
            table(16),
            E::IndirectNotNegotiated,
        ),
        (
            "nested",
            INDIRECT_DESC,
            &nested,
            table(16),
            E::NestedIndirect,
        ),
        (
            "nested later",
            INDIRECT_DESC,
            &nested_later,
            table(32),
            E::NestedIndirect,
        ),
        (
            "with a successor",
            INDIRECT_DESC,
            &good,
            descriptor(TABLE, 16, INDIRECT | NEXT, 1),
            E::IndirectWithNext,
        ),
        ("empty", INDIRECT_DESC, &good, table(0), E::IndirectLength),
        (
            "a piece",
            INDIRECT_DESC,
            &good,
            table(15),
            E::IndirectLength,
        ),
        (
            "one and a piece",
            INDIRECT_DESC,
            &good,
            table(17),
            E::IndirectLength,
        ),
        (
            "leads out",
            INDIRECT_DESC,
            &inner_next,
            table(16),
            E::NextOutOfRange,
        ),
        (
            "a loop",
            INDIRECT_DESC,
            &inner_loop,
            table(16),
            E::TooManyDescriptors,
        ),
        (
            "outside memory",
            INDIRECT_DESC,
            &good,
            descriptor(2 * REGION_SEAM, 16, INDIRECT, 0),
            E::OutsideMemory,
        ),
        (
            "over the end of memory",
            INDIRECT_DESC,
            &good,
            descriptor(2 * REGION_SEAM - 8, 16, INDIRECT, 0),
            E::OutsideMemory,
        ),
        (
            "at the top",
            INDIRECT_DESC,
            &good,
            descriptor(u64::MAX - 7, 16, INDIRECT, 0),
            E::OutsideMemory,
        ),
    ];
    for (what, features, inner, outer, error) in cases {
        let mut pair = Pair::new(*features);
        pair.driver.write_table(TABLE, inner);
        assert_eq!(pair.pop(&[*outer]), Err(*error), "{what}");
    }
}

/// virtio 1.2 §2.7.13, §2.1.2: more available than the queue holds is nonsense;
/// the device asks to be reset and touches the queue no more.
#[test]
fn avail_idx_jumps() {
    for (position, jump, good) in [
        (0, SIZE, true),
        (0, SIZE + 1, false),
        (0, 0x8000, false),
        (0, 0xffff, false), // backwards
        (0xfffc, SIZE, true),
        (0xfffc, SIZE + 1, false),
        (100, 0xffff, false),
    ] {
        let mut pair = Pair::at(0, position);
        for slot in 0..SIZE {
            pair.driver
                .write_descriptor(slot, descriptor(DATA, 4, 0, 0));
            pair.driver.put_avail(slot, slot);
        }
        pair.driver.set_avail_idx(position.wrapping_add(jump));
        let progress = pair.serve(AMPLE);
        if good {
            assert_eq!(progress, Progress::Drained);
            assert_eq!(pair.driver.used_idx(), position.wrapping_add(jump));
            continue;
        }
        assert_eq!(progress, Progress::Broken(RingError::AvailIndexJump));
        assert!(pair.interrupt.is_reset_needed());
        assert_eq!(pair.driver.used_idx(), position);
        // It does not come to life again by itself.
        pair.driver.set_avail_idx(position.wrapping_add(1));
        assert_eq!(pair.serve(AMPLE), Progress::Drained);
        assert_eq!(pair.driver.used_idx(), position);
    }
}

/// virtio 1.2 §2.7.8.2: what was answered before a broken chain is returned,
/// the broken chain is not.
#[test]
fn chains_before_a_broken_one_are_answered() {
    let mut pair = Pair::new(0);
    let good = pair.driver.send(&[Segment::readable(DATA, 7)]);
    pair.driver.offer(SIZE);
    let progress = pair.serve(AMPLE);
    assert_eq!(progress, Progress::Broken(RingError::HeadOutOfRange));
    assert_eq!(pair.driver.collect(), Some((good, 7)));
    assert_eq!(pair.driver.collect(), None);
    assert!(pair.interrupts() > 0);
    assert_eq!(pair.interrupt.status(), 3, "used and changed");
}

/// virtio 1.2 §2.7.8: positions count on from 65535 to 0, with every
/// interrupt and kick that is due.
#[test]
fn event_idx_wraps() {
    for features in [0, EVENT_IDX] {
        let mut pair = Pair::at(features, 0xffe0);
        pair.serve(AMPLE);
        for round in 0..0x40 {
            let heads: Vec<_> = (0..1 + round % 3)
                .map(|_| pair.driver.send(&[Segment::readable(DATA, round)]))
                .collect();
            assert!(pair.driver.wants_kick(), "round {round}");
            assert_eq!(pair.serve(AMPLE), Progress::Drained);
            assert_eq!(pair.interrupts(), 1, "round {round}");
            for head in heads {
                assert_eq!(pair.driver.collect(), Some((head, round)));
            }
            assert_eq!(pair.driver.collect(), None);
        }
    }
}

/// virtio 1.2 §2.7.7.2: with `EVENT_IDX` the interrupt comes when the driver
/// said, not before.
#[test]
fn event_idx_suppresses_interrupts() {
    let mut pair = Pair::new(EVENT_IDX);
    pair.driver.set_used_event(3);
    for (interrupts, already) in [(0, 1), (0, 2), (0, 3), (1, 4), (0, 5)] {
        pair.driver.send(&[Segment::readable(DATA, 1)]);
        pair.serve(AMPLE);
        assert_eq!(pair.driver.used_idx(), already);
        assert_eq!(pair.interrupts(), interrupts, "after {already}");
    }
}

/// virtio 1.2 §2.7.7.2: without it the flag is what counts.
#[test]
fn no_interrupt_flag() {
    let mut pair = Pair::new(0);
    for (flags, interrupts) in [(0, 1), (1, 0), (1, 0), (0, 1)] {
        pair.driver.set_avail_flags(flags);
        pair.driver.send(&[Segment::readable(DATA, 1)]);
        pair.serve(AMPLE);
        assert_eq!(pair.interrupts(), interrupts);
    }
}

/// virtio 1.2 §2.7.10: with nothing left the device wants to be kicked; with
/// something left, which it comes back for by itself, it does not.
#[test]
fn kicks_are_wanted_when_drained() {
    for features in [0, EVENT_IDX] {
        let mut pair = Pair::new(features);
        assert_eq!(pair.serve(AMPLE), Progress::Drained);
        pair.driver.send(&[Segment::readable(DATA, 1)]);
        assert!(pair.driver.wants_kick());
        for _ in 0..3 {
            pair.driver.send(&[Segment::readable(DATA, 1)]);
        }
        let one = Budget {
            chains: 1,
            bytes: u64::MAX,
        };
        assert_eq!(pair.serve(one), Progress::Yielded);
        pair.driver.send(&[Segment::readable(DATA, 1)]);
        assert!(!pair.driver.wants_kick(), "it knows");
        while pair.serve(one) == Progress::Yielded {}
        assert_eq!(pair.driver.used_idx(), 5);
        pair.driver.send(&[Segment::readable(DATA, 1)]);
        assert!(pair.driver.wants_kick());
    }
}

/// virtio 1.2 §2.7.10: driver and device at the same time. A chain that comes
/// while the device is about to wait is seen or kicked for: nobody waits for
/// ever.
#[test]
fn no_kick_is_lost() {
    const REQUESTS: u32 = 20_000;
    for features in [0, EVENT_IDX] {
        let Pair {
            memory,
            mut driver,
            mut device,
            interrupt,
            line,
        } = Pair::new(features);
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::SeqCst) && wait(&kick) {
                    let answer = |chain: &mut Chain<'_>| Ok(chain.readable.len() as u32);
                    device.serve(&memory, &interrupt, AMPLE, answer);
                }
            });
            let (mut sent, mut collected) = (0, 0);
            while collected < REQUESTS {
                if sent < REQUESTS && driver.outstanding() < 3 {
                    driver.send(&[Segment::readable(DATA, 1)]);
                    sent += 1;
                    if driver.wants_kick() {
                        kick.write(1).unwrap();
                    }
                }
                while driver.collect().is_some() {
                    collected += 1;
                }
                let idle = driver.outstanding() == 3 || sent == REQUESTS;
                if idle && collected < REQUESTS && !wait(&line) {
                    break;
                }
            }
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
            kick.write(1).unwrap();
            assert_eq!(
                collected, REQUESTS,
                "the rest waits for a kick or an interrupt"
            );
        });
    }
}

/// Waits until `event` was written. False if it is not for far longer than
/// anything here takes.
fn wait(event: &EventFd) -> bool {
    let epoll = Epoll::new().unwrap();
    let interest = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, event.as_raw_fd(), interest)
        .unwrap();
    let mut ready = [EpollEvent::default()];
    epoll.wait(20_000, &mut ready).unwrap() == 1 && event.read().is_ok()
}

/// A queue that never ends gives way: by number of chains and by bytes.
#[test]
fn budgets() {
    for (budget, runs) in [
        (
            Budget {
                chains: 2,
                bytes: u64::MAX,
            },
            2,
        ),
        (
            Budget {
                chains: 100,
                bytes: 11,
            },
            2,
        ),
        (
            Budget {
                chains: 100,
                bytes: 1,
            },
            4,
        ),
        (
            Budget {
                chains: 1,
                bytes: 1,
            },
            4,
        ),
    ] {
        let mut pair = Pair::new(0);
        for _ in 0..4 {
            pair.driver.send(&[Segment::readable(DATA, 10)]);
        }
        for run in 0..runs {
            assert_eq!(pair.serve(budget), Progress::Yielded, "run {run}");
        }
        assert_eq!(pair.serve(budget), Progress::Drained);
        assert_eq!(pair.driver.used_idx(), 4);
    }
}

/// virtio 1.2 §2.7.8.2: answers are entries with the head and the length; the
/// index moves after them.
#[test]
fn used_entries() {
    let mut pair = Pair::new(0);
    let heads: Vec<_> = (0..5)
        .map(|len| pair.driver.send(&[Segment::readable(DATA, len)]))
        .collect();
    pair.serve(AMPLE);
    for (len, head) in (0..).zip(heads) {
        assert_eq!(pair.driver.collect(), Some((head, len)));
    }
}

/// virtio 1.2 §2.7.8.3: what the driver writes to the used ring is nothing to
/// the device.
#[test]
fn used_ring_abuse() {
    let mut pair = Pair::new(EVENT_IDX);
    for round in 1..=20 {
        let garbage = vec![0xff; 6 + 8 * usize::from(SIZE)];
        let used = GuestAddress(pair.driver.used);
        pair.memory.write_slice(&garbage, used).unwrap();
        pair.driver.write_descriptor(0, descriptor(DATA, 4, 0, 0));
        pair.driver.offer(0);
        assert_eq!(pair.serve(AMPLE), Progress::Drained);
        assert_eq!(pair.driver.used_idx(), round);
    }
}

/// A buffer is used up from the front, the last byte from the end, however it
/// is cut.
#[test]
fn buffers_are_one_string_of_bytes() {
    let content = b"0123456789";
    for cut in 0..=10u32 {
        let mut pair = Pair::new(0);
        pair.memory
            .write_slice(content, GuestAddress(DATA))
            .unwrap();
        let rest = DATA + u64::from(cut);
        pair.driver.send(&[
            Segment::readable(DATA, cut),
            Segment::readable(rest, 10 - cut),
            Segment::writable(DATA, cut),
            Segment::writable(rest, 10 - cut),
        ]);
        let mut chain = Chain::new();
        assert_eq!(pair.device.pop(&pair.memory, &mut chain), Ok(true));
        assert_eq!(chain.bytes(), 20);
        assert_eq!(chain.readable.take_array::<11>(), None);
        assert_eq!(chain.readable.take_array(), Some(*b"012"));
        let mut left = [0; 20];
        assert_eq!(chain.readable.read(&mut left), 7);
        assert_eq!(&left[..7], b"3456789");
        assert!(chain.readable.is_empty() && chain.readable.slices().is_empty());
        assert!(chain.readable.take_last().is_none());

        let last = chain.writable.take_last().unwrap();
        last.copy_from(b"!");
        assert_eq!(chain.writable.write(b"abcde"), 5);
        assert_eq!(chain.writable.len(), 4);
        assert_eq!(chain.writable.write(b"fghijkl"), 4);
        let mut all = [0; 10];
        pair.memory
            .read_slice(&mut all, GuestAddress(DATA))
            .unwrap();
        assert_eq!(&all, b"abcdefghi!");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// virtio 1.2 §2.7: rings of random bytes: no panic, no end of memory, and
    /// an end of the work.
    #[test]
    fn random_rings(
        bytes in prop::collection::vec(any::<u8>(), 16 * 8 + 6 + 16),
        features in prop::sample::select(vec![0, INDIRECT_DESC, EVENT_IDX, EVENT_IDX | INDIRECT_DESC]),
        idx in prop_oneof![0u16..10, any::<u16>()],
    ) {
        let mut pair = Pair::new(features);
        pair.memory.write_slice(&bytes, GuestAddress(BASE)).unwrap();
        pair.driver.set_avail_idx(idx);
        let mut calls = 0;
        let memory = pair.memory.clone();
        pair.device.serve(&memory, &pair.interrupt, AMPLE, |chain| {
            calls += 1;
            assert!(chain.bytes() <= 1 << 32);
            let len = chain.writable.len();
            Ok(chain.writable.write(&vec![0x5a; len.min(1 << 16)]) as u32)
        });
        prop_assert!(calls <= SIZE);
    }

    /// virtio 1.2 §2.7.5: descriptors that are nearly right, which gets further
    /// into the walk than random bytes do.
    #[test]
    fn random_descriptors(
        table in prop::collection::vec(
            (
                prop_oneof![6 => 0u64..0x3_0000, 1 => any::<u64>()],
                prop_oneof![6 => 0u32..64, 2 => (0u32..8).prop_map(|n| 16 * n), 1 => any::<u32>()],
                0u16..8,
                0u16..9,
            ),
            8,
        ),
        heads in prop::collection::vec(0u16..9, 1..8),
    ) {
        let table: Vec<_> = table
            .into_iter()
            .map(|(addr, len, flags, next)| descriptor(addr, len, flags, next))
            .collect();
        let mut pair = Pair::new(INDIRECT_DESC);
        // Indirect tables may be anywhere: here they are the same table.
        pair.driver.write_table(TABLE, &table);
        pair.driver.write_table(BASE, &table);
        let offered = heads.len();
        for head in heads {
            pair.driver.offer(head);
        }
        let mut served = 0;
        let memory = pair.memory.clone();
        let progress = pair.device.serve(&memory, &pair.interrupt, AMPLE, |chain| {
            served += 1;
            let described = chain.readable.len() + chain.writable.len();
            assert_eq!(described as u64, chain.bytes());
            Ok(0)
        });
        let broken = matches!(progress, Progress::Broken(_));
        prop_assert_eq!(broken, pair.interrupt.is_reset_needed());
        prop_assert_eq!(broken, served < offered);
    }
}
