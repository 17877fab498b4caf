//! Anything at all, written anywhere: the transport neither panics nor leaves
//! its states.

use proptest::prelude::*;

use super::*;
use crate::transport::status::is_legal;

/// Registers mostly, their neighbourhood and the rest of the address space
/// sometimes.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0u64..0x40).prop_map(|word| word * 4),
        1 => 0u64..0x120,
        1 => any::<u64>(),
    ]
}

/// What a driver writes when it goes by the book, and everything else.
fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => prop::sample::select(vec![0, 1, 2, 3, 8, 11, 15, 16, 0x1_0000, 0x1_1000, 0x1_2000]),
        1 => any::<u32>(),
    ]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => value().prop_map(|value| value.to_le_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..17),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// virtio 1.2 §2.1, §4.2.2: random writes and reads, from any status.
    #[test]
    fn random_accesses(
        start in prop::sample::select(vec![0, 1, 3, 11, 15]),
        accesses in prop::collection::vec((offset(), data()), 1..64),
    ) {
        let mut machine = match start {
            15 => live(),
            11 => negotiated(),
            _ => machine(),
        };
        for (offset, data) in accesses {
            let before = machine.status();
            machine.transport.write(offset, &data);
            let mut read = data.clone();
            machine.transport.read(offset, &mut read);

            let status = machine.status();
            prop_assert!(is_legal(status & !64));
            // Bits go by a reset only.
            prop_assert!(status & before == before || status == 0);
            // A device is active exactly while its driver is.
            let device = machine.device();
            prop_assert_eq!(device.active.is_some(), status & 4 != 0);
            if let Some(active) = &device.active {
                prop_assert_eq!(active.features & !(OFFERED | VERSION_1), 0);
                prop_assert!(active.features & VERSION_1 != 0);
            }
            drop(device);
            machine.run();
        }
        // Whatever happened: a good driver can start over.
        prop_assert_eq!(machine.set_status(0), 0);
        prop_assert_eq!(machine.negotiate(VERSION_1), 11);
        prop_assert_eq!(machine.set_up_queue(0, 8, PARTS), 1);
        prop_assert_eq!(machine.set_status(15), 15);
    }

    /// virtio 1.2 §4.2.3.2: a queue that becomes ready is one that a device can
    /// use without looking again.
    #[test]
    fn random_queues(
        size in prop_oneof![0u32..70, any::<u32>()],
        parts in prop::array::uniform3(prop_oneof![0u64..0x90_0000, any::<u64>()]),
    ) {
        let mut machine = negotiated();
        if machine.set_up_queue(0, size, parts) == 1 {
            prop_assert!(size.is_power_of_two() && size <= 16);
            let size = u64::from(size);
            for (start, len) in parts.into_iter().zip([16 * size, 6 + 2 * size, 6 + 8 * size]) {
                use vm_memory::{GuestAddress, GuestMemoryBackend};
                prop_assert!(machine.memory.check_range(GuestAddress(start), len as usize));
            }
        }
    }
}
