//! Descriptor chains, one at a time.

use super::*;

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
