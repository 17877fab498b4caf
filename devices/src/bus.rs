//! Which device answers at an address: a sorted list of ranges, for MMIO and
//! port I/O alike.

use thiserror::Error;

/// Why a range was not taken into a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BusError {
    /// No addresses, or more than there are.
    #[error("the range of {len:#x} addresses from {base:#x} is empty or does not end")]
    InvalidRange {
        /// First address.
        base: u64,
        /// Number of addresses.
        len: u64,
    },
    /// Some of the addresses are taken.
    #[error("the range of {len:#x} addresses from {base:#x} overlaps one that is on the bus")]
    Overlap {
        /// First address.
        base: u64,
        /// Number of addresses.
        len: u64,
    },
}

#[derive(Debug)]
struct Range<D> {
    base: u64,
    last: u64,
    device: D,
}

/// Ranges of addresses with a `D` behind each. A few dozen at most, looked up
/// at every exit: a sorted list beats a tree.
#[derive(Debug)]
pub struct Bus<D> {
    /// Sorted, disjoint.
    ranges: Vec<Range<D>>,
}

impl<D> Default for Bus<D> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D> Bus<D> {
    /// A bus with nothing on it.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Puts `device` at `base..base + len`.
    ///
    /// # Errors
    /// If the range is empty, leaves the address space or overlaps another.
    pub fn insert(&mut self, base: u64, len: u64, device: D) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|more| base.checked_add(more))
            .ok_or(BusError::InvalidRange { base, len })?;
        let at = self.ranges.partition_point(|range| range.last < base);
        if self.ranges.get(at).is_some_and(|next| next.base <= last) {
            return Err(BusError::Overlap { base, len });
        }
        self.ranges.insert(at, Range { base, last, device });
        Ok(())
    }

    /// The device at `address` and the offset in its range. An access that
    /// starts in a range may be longer than it: devices judge lengths
    /// themselves.
    #[must_use]
    pub fn lookup(&self, address: u64) -> Option<(u64, &D)> {
        let at = self.ranges.partition_point(|range| range.last < address);
        let range = self.ranges.get(at)?;
        let offset = address.checked_sub(range.base)?;
        Some((offset, &range.device))
    }

    /// As [`Self::lookup`], for devices that are not shared.
    pub fn lookup_mut(&mut self, address: u64) -> Option<(u64, &mut D)> {
        let at = self.ranges.partition_point(|range| range.last < address);
        let range = self.ranges.get_mut(at)?;
        let offset = address.checked_sub(range.base)?;
        Some((offset, &mut range.device))
    }

    /// All devices, by address.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &D)> {
        self.ranges.iter().map(|range| (range.base, &range.device))
    }
}

/// What a read gets where there is no device: all ones, as a bus without a
/// driver on it.
pub fn read_unmapped(data: &mut [u8]) {
    data.fill(0xff);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_the_device_of_each_address() {
        let mut bus = Bus::new();
        bus.insert(0x2000, 0x1000, 'b').unwrap();
        bus.insert(0x1000, 0x1000, 'a').unwrap();
        bus.insert(u64::MAX, 1, 'z').unwrap();
        for (address, found) in [
            (0xfff, None),
            (0x1000, Some((0, &'a'))),
            (0x1fff, Some((0xfff, &'a'))),
            (0x2000, Some((0, &'b'))),
            (0x3000, None),
            (u64::MAX, Some((0, &'z'))),
        ] {
            assert_eq!(bus.lookup(address), found, "at {address:#x}");
        }
    }

    #[test]
    fn refuses_ranges_that_cannot_be() {
        let mut bus = Bus::new();
        bus.insert(0x10, 0x10, ()).unwrap();
        for (base, len) in [(0, 0), (u64::MAX, 2), (2, u64::MAX)] {
            assert_eq!(
                bus.insert(base, len, ()),
                Err(BusError::InvalidRange { base, len })
            );
        }
        for (base, len) in [(0x10, 0x10), (0x1f, 1), (0, 0x11), (0, u64::MAX), (0x14, 2)] {
            assert_eq!(
                bus.insert(base, len, ()),
                Err(BusError::Overlap { base, len })
            );
        }
        bus.insert(0x20, 1, ()).unwrap();
        bus.insert(0xf, 1, ()).unwrap();
    }

    #[test]
    fn unmapped_reads_give_all_ones() {
        let mut data = [0; 8];
        read_unmapped(&mut data);
        assert_eq!(data, [0xff; 8]);
    }

    proptest! {
        /// Whatever was let in is found at each of its addresses, and only there.
        #[test]
        fn agrees_with_a_list(ranges in prop::collection::vec((0u8..100, 0u8..20), 0..20)) {
            let mut bus = Bus::new();
            let mut model = [None; 128];
            for (name, (base, len)) in ranges.into_iter().enumerate() {
                let cells = &mut model[usize::from(base)..usize::from(base + len)];
                let free = len > 0 && cells.iter().all(Option::is_none);
                prop_assert_eq!(bus.insert(base.into(), len.into(), name).is_ok(), free);
                if free {
                    cells.fill(Some(name));
                }
            }
            for (address, name) in (0u64..).zip(model) {
                prop_assert_eq!(bus.lookup(address).map(|(_, &found)| found), name);
            }
        }
    }
}
