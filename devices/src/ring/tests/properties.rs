//! Rings of which some bytes, or all, are random.

use proptest::prelude::*;

use super::*;

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
