//! The entropy device (virtio 1.2 §5.4): random bytes of the host's kernel.

mod device;
mod handler;
mod metrics;

use crate::ring::{Budget, KickSubscriber};

pub use device::Rng;
pub use metrics::{RngMetrics, RngStatistics};

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "tests choose the numbers")]
mod tests;

/// Waits for the kicks of a [`Rng`].
pub type RngSubscriber = KickSubscriber<Rng>;

/// Device type (virtio 1.2 §5.4.1).
pub const DEVICE_TYPE: u32 = 4;

/// Descriptors of the queue. Linux has one request under way at a time.
pub const QUEUE_SIZE: u16 = 64;

/// Random bytes for one request. A driver that describes more gets this many:
/// it must look at the used length anyway (virtio 1.2 §5.4.6.1), and no guest
/// can make the host produce gigabytes.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;

/// What is served before the other devices of the loop get their turn.
pub const BUDGET: Budget = Budget {
    chains: 16,
    bytes: 256 << 10,
};
