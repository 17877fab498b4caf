//! Plain, serialisable state of transport and devices.
//!
//! A saved state is not trusted: whoever restores checks it as if a guest had
//! written it.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_queue::QueueState;

use crate::block::BlockState;

/// The own state of a device, by kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A disk.
    Block(BlockState),
    /// An entropy device, which has none.
    Entropy,
    /// A network device, whose flows do not outlive it.
    Net,
    /// A socket device.
    Vsock(crate::vsock::VsockState),
}

impl DeviceState {
    /// The name of the kind, for messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Block(_) => "block",
            Self::Entropy => "entropy",
            Self::Net => "net",
            Self::Vsock(_) => "vsock",
        }
    }
}

/// A queue of an active device: what the driver set up and how far the device
/// has come. The same as [`QueueState`], which cannot be serialised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    /// Largest size that the device offers, in descriptors.
    pub max_size: u16,
    /// Size that the driver chose, in descriptors.
    pub size: u16,
    /// Whether the driver set the queue up.
    pub ready: bool,
    /// Whether `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Where the device reads the available ring next.
    pub next_avail: u16,
    /// Where the device writes the used ring next.
    pub next_used: u16,
    /// Guest-physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest-physical address of the available ring.
    pub avail_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
}

impl From<QueueState> for SavedQueue {
    fn from(queue: QueueState) -> Self {
        Self {
            max_size: queue.max_size,
            size: queue.size,
            ready: queue.ready,
            event_idx: queue.event_idx_enabled,
            next_avail: queue.next_avail,
            next_used: queue.next_used,
            desc_table: queue.desc_table,
            avail_ring: queue.avail_ring,
            used_ring: queue.used_ring,
        }
    }
}

impl From<SavedQueue> for QueueState {
    fn from(queue: SavedQueue) -> Self {
        Self {
            max_size: queue.max_size,
            next_avail: queue.next_avail,
            next_used: queue.next_used,
            event_idx_enabled: queue.event_idx,
            size: queue.size,
            ready: queue.ready,
            desc_table: queue.desc_table,
            avail_ring: queue.avail_ring,
            used_ring: queue.used_ring,
        }
    }
}

/// Why a saved state was not taken over.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The state belongs to another kind of device.
    #[error("the saved state is not that of the device, which is of kind {expected}")]
    WrongDevice {
        /// What it should have been.
        expected: &'static str,
    },
    /// The state contradicts the device or itself.
    #[error("the saved state of the {device} device is not valid: {why}")]
    Invalid {
        /// Which device.
        device: &'static str,
        /// What is wrong.
        why: String,
    },
}
