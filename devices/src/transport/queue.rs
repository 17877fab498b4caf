//! What the driver has written to the registers of one queue.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};

use crate::virtio::GuestRam;

/// The registers of one queue, as written. Nothing in it is checked before the
/// driver declares the queue ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// `QueueNum`, in descriptors.
    pub size: u32,
    /// `QueueReady`: the setup was checked and found good.
    pub ready: bool,
    /// `QueueDescLow/High`: the descriptor table.
    pub desc_table: u64,
    /// `QueueDriverLow/High`: the available ring.
    pub avail_ring: u64,
    /// `QueueDeviceLow/High`: the used ring.
    pub used_ring: u64,
}

impl QueueSetup {
    /// A queue as it is after reset. The driver may leave `QueueNum` alone if
    /// it wants the largest size.
    pub(super) fn initial(max_size: u16) -> Self {
        Self {
            size: u32::from(max_size),
            ..Self::default()
        }
    }

    /// The queue that the device gets, at the start of its rings, if the setup
    /// is good: size a power of two and at most `max_size` (virtio 1.2 §2.7),
    /// parts aligned (§2.7 table), not at address zero, and all in guest
    /// memory.
    pub(super) fn validate(&self, max_size: u16, memory: &GuestRam) -> Option<Queue> {
        let size = u16::try_from(self.size).ok()?;
        let queue = checked_queue(QueueState {
            max_size,
            size,
            ready: true,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
            ..QueueState::default()
        })?;
        queue.is_valid(memory).then_some(queue)
    }
}

/// A queue of `state` if its size and alignment are good.
pub(super) fn checked_queue(state: QueueState) -> Option<Queue> {
    // virtio-queue takes an available ring at address zero for "not set up".
    if state.ready && state.avail_ring == 0 {
        return None;
    }
    Queue::try_from(state).ok()
}

/// Replaces the lower half of `address`.
pub(super) fn set_low(address: &mut u64, low: u32) {
    *address = (*address & 0xffff_ffff_0000_0000) | u64::from(low);
}

/// Replaces the upper half of `address`.
pub(super) fn set_high(address: &mut u64, high: u32) {
    *address = (*address & 0x0000_0000_ffff_ffff) | (u64::from(high) << 32);
}
