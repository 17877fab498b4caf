//! The block device (virtio 1.2 §5.2): a raw file or block device of the host
//! as a disk of the guest.
//!
//! I/O is synchronous and goes straight between the file and guest memory, one
//! system call for a request with up to 256 segments. A queue that keeps coming
//! gives way to other devices after [`BUDGET`]. One with limits
//! ([`Block::limited`]) rests while it has used them up.

mod device;
mod disk;
mod handler;
mod metrics;
mod request;

use std::io;

use thiserror::Error;

use crate::ring::{Budget, KickSubscriber};

pub use device::{Block, BlockState};
pub use metrics::{BlockMetrics, BlockStatistics};

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "tests choose the numbers")]
mod tests;

/// Waits for the kicks of a [`Block`].
pub type BlockSubscriber = KickSubscriber<Block>;

/// Device type (virtio 1.2 §5.2.1).
pub const DEVICE_TYPE: u32 = 2;

/// Unit of capacities and positions, in bytes (virtio 1.2 §5.2.4).
pub const SECTOR: u64 = 512;

/// Descriptors of the queue.
pub const QUEUE_SIZE: u16 = 256;

/// Data segments of a request: what the queue can hold beside header and
/// status.
pub const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Bytes of one data segment. Linux makes requests of little more than a
/// mebibyte, which this does not touch.
pub const SIZE_MAX: u32 = 128 << 10;

/// Bytes of a request's data, a little below 32 MiB: what the two limits above
/// permit. More is refused, because the other devices of the loop wait.
pub const MAX_DATA_BYTES: u64 = SEG_MAX as u64 * SIZE_MAX as u64;

/// Sectors of the one range of a discard request: 16 MiB. Taking space from a
/// file costs time for each piece of it: where a guest has written every other
/// block, 16 MiB take a tenth of a second, which nothing can interrupt.
pub const MAX_DISCARD_SECTORS: u32 = 0x8000;

/// Sectors of the one range of a write-zeroes request: 16 MiB as well, because
/// on some file systems the zeroes have to be written.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 0x8000;

/// What discarded ranges should be aligned to, in sectors: the block size of
/// the host's file systems.
pub const DISCARD_ALIGNMENT: u32 = 8;

/// Length of the answer to `VIRTIO_BLK_T_GET_ID` (virtio 1.2 §5.2.6).
pub const ID_LEN: usize = 20;

/// What is served before the other devices of the loop get their turn.
pub const BUDGET: Budget = Budget {
    chains: 64,
    bytes: 8 << 20,
};

/// What a flush counts for, in bytes: all of [`BUDGET`]. It waits for the host's
/// disk, and the other devices wait with it.
pub const FLUSH_COST: u64 = BUDGET.bytes;

/// Why a file cannot be a disk.
#[derive(Debug, Error)]
pub enum BlockError {
    /// Its size cannot be found out.
    #[error("could not find out the size of the disk '{id}': {error}")]
    Size {
        /// Which disk.
        id: String,
        /// Why.
        error: io::Error,
    },
    /// It is not a whole number of sectors: part of it could not be reached.
    #[error("the disk '{id}' has {size} bytes, which is not a multiple of {SECTOR}: pad the file")]
    PartialSector {
        /// Which disk.
        id: String,
        /// Its size in bytes.
        size: u64,
    },
    /// It has limits, and there is no timer for them.
    #[error("could not make the timer for the rate limit of the disk '{id}': {error}")]
    Timer {
        /// Which disk.
        id: String,
        /// Why.
        error: io::Error,
    },
}
