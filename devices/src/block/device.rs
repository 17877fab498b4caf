//! Features, configuration space and life cycle of a disk.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use flashpan_protocol::control::IoRate;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};

use super::disk::Disk;
use super::handler::{Answer, Backend};
use super::metrics::{BlockMetrics, count};
use super::{
    BUDGET, BlockError, DEVICE_TYPE, DISCARD_ALIGNMENT, ID_LEN, MAX_DISCARD_SECTORS,
    MAX_WRITE_ZEROES_SECTORS, QUEUE_SIZE, SECTOR, SEG_MAX, SIZE_MAX,
};
use crate::rate_limit::Throttle;
use crate::ring::{Kicked, Progress, Ring, Served};
use crate::state::{DeviceState, RestoreError};
use crate::virtio::{ActivateError, Activation, GuestRam, Interrupt, VirtioDevice, read_bytes};

/// Length of the configuration space, up to `write_zeroes_may_unmap` and its
/// padding (virtio 1.2 §5.2.4).
const CONFIG_LEN: usize = 60;

/// What must be the same when a disk is restored: the content itself is the
/// business of whoever keeps the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// In sectors of 512 bytes.
    pub capacity: u64,
    /// Whether the guest may write.
    pub read_only: bool,
}

/// A disk. See the [module](super).
#[derive(Debug)]
pub struct Block {
    backend: Backend,
    config: [u8; CONFIG_LEN],
    metrics: Arc<BlockMetrics>,
    throttle: Option<Throttle>,
    active: Option<Active>,
    unreachable: Option<io::Error>,
}

#[derive(Debug)]
struct Active {
    memory: GuestRam,
    interrupt: Interrupt,
    features: u64,
    ring: Ring,
}

impl Block {
    /// A disk with the content of `file`, which is a regular file or a block
    /// device, opened for writing unless `read_only`. The guest can ask for
    /// `id`, of which it gets the first 20 bytes.
    ///
    /// # Errors
    /// If the size of `file` cannot be found out or is not a multiple of 512
    /// bytes.
    pub fn new(file: File, read_only: bool, id: &str) -> Result<Self, BlockError> {
        let (disk, size) = Disk::new(file).map_err(|error| BlockError::Size {
            id: id.to_owned(),
            error,
        })?;
        if !size.is_multiple_of(SECTOR) {
            return Err(BlockError::PartialSector {
                id: id.to_owned(),
                size,
            });
        }
        let capacity = size / SECTOR;
        let mut padded = [0; ID_LEN];
        for (to, from) in padded.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Ok(Self {
            backend: Backend {
                disk,
                capacity,
                read_only,
                id: padded,
            },
            config: config_space(capacity),
            metrics: Arc::default(),
            throttle: None,
            active: None,
            unreachable: None,
        })
    }

    /// The disk's content is thrown away when the device is: a flush is answered
    /// without waiting for the host's storage, which a later crash of the host
    /// could not make worse.
    #[must_use]
    pub fn volatile(mut self) -> Self {
        self.backend.disk.set_volatile();
        self
    }

    /// The disk does no more than `rate`: every request is one operation, and what
    /// it reads or writes counts as bytes, zeroes that the driver has written too.
    /// A reset gives the driver nothing back, and a disk that is restored begins
    /// with full buckets.
    ///
    /// # Errors
    /// If the host gives no timer.
    pub fn limited(mut self, rate: IoRate, id: &str) -> Result<Self, BlockError> {
        self.throttle = Throttle::new(rate).map_err(|error| BlockError::Timer {
            id: id.to_owned(),
            error,
        })?;
        Ok(self)
    }

    /// The same by a clock of the test's.
    #[cfg(test)]
    pub(super) fn throttled(mut self, throttle: Option<Throttle>) -> Self {
        self.throttle = throttle;
        self
    }

    /// The same with another capacity, in sectors, than its file has: devices of
    /// the host that fail in a certain way have none.
    #[cfg(test)]
    pub(super) fn with_capacity(mut self, capacity: u64) -> Self {
        self.backend.capacity = capacity;
        self.config = config_space(capacity);
        self
    }

    /// The disk's counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<BlockMetrics> {
        Arc::clone(&self.metrics)
    }
}

impl Block {
    /// Whether the disk has to wait for its limits: its timer is set.
    fn rests(&mut self) -> bool {
        let held = self.throttle.as_mut().map_or(Ok(false), Throttle::holds);
        held.unwrap_or_else(|error| {
            self.unreachable(error);
            true
        })
    }

    fn serve_ring(&mut self) -> Progress {
        let Some(active) = &mut self.active else {
            return Progress::Drained;
        };
        let (backend, metrics, features) = (&self.backend, &*self.metrics, active.features);
        let throttle = &mut self.throttle;
        active
            .ring
            .serve(&active.memory, &active.interrupt, BUDGET, |chain| {
                let Answer { served, moved } = backend.answer(chain, features, metrics)?;
                let last = throttle.as_mut().is_some_and(|all| all.spend(moved));
                Ok(Served { last, ..served })
            })
    }
}

impl Kicked for Block {
    fn serve(&mut self, _queue: usize) -> Progress {
        if self.active.is_none() {
            return Progress::Drained;
        }
        if self.rests() {
            return Progress::Held;
        }
        let progress = self.serve_ring();
        if progress == Progress::Yielded {
            count(&self.metrics.yields, 1);
        }
        if progress == Progress::Held {
            count(&self.metrics.holds, 1);
            // There may be enough again by now, and then no timer is set.
            if !self.rests() {
                return Progress::Yielded;
            }
        }
        progress
    }

    fn timer(&self) -> Option<RawFd> {
        self.throttle.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn expired(&mut self) {
        if let Some(throttle) = &mut self.throttle {
            throttle.expired();
        }
    }

    fn unreachable(&mut self, error: io::Error) {
        if let Some(active) = &self.active {
            active.interrupt.needs_reset();
        }
        self.unreachable = Some(error);
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        if self.backend.read_only {
            common | 1 << VIRTIO_BLK_F_RO
        } else {
            common | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if let Some(error) = &self.unreachable {
            return Err(ActivateError::lasting(
                "wait for the kicks and the timer of the disk",
                error,
            ));
        }
        let Activation {
            memory,
            features,
            queues,
            interrupt,
        } = activation;
        let queue = queues
            .into_iter()
            .next()
            .filter(QueueT::ready)
            .ok_or(ActivateError::MissingQueue(0))?;
        self.active = Some(Active {
            memory,
            interrupt,
            features,
            ring: Ring::new(queue, features),
        });
        Ok(())
    }

    fn queue_states(&self) -> Vec<QueueState> {
        self.active
            .iter()
            .map(|active| active.ring.state())
            .collect()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(BlockState {
            capacity: self.backend.capacity,
            read_only: self.backend.read_only,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Block(saved) = state else {
            return Err(RestoreError::WrongDevice { expected: "block" });
        };
        if DeviceState::Block(*saved) == self.save() {
            return Ok(());
        }
        Err(RestoreError::Invalid {
            device: "block",
            why: format!(
                "the disk had {} sectors (read-only: {}), but has {} (read-only: {})",
                saved.capacity, saved.read_only, self.backend.capacity, self.backend.read_only
            ),
        })
    }

    fn reset(&mut self) -> Vec<Queue> {
        // No request is ever in flight outside `serve`.
        self.active
            .take()
            .map(|active| active.ring.into_queue())
            .into_iter()
            .collect()
    }
}

/// `struct virtio_blk_config` (virtio 1.2 §5.2.4).
fn config_space(capacity: u64) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |offset: usize, value: &[u8]| {
        for (to, from) in config.iter_mut().skip(offset).zip(value) {
            *to = *from;
        }
    };
    put(0, &capacity.to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &512u32.to_le_bytes()); // blk_size
    put(34, &1u16.to_le_bytes()); // num_queues
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &1_u32.to_le_bytes());
    put(44, &DISCARD_ALIGNMENT.to_le_bytes());
    put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
    put(52, &1u32.to_le_bytes()); // max_write_zeroes_seg
    put(56, &[1]); // write_zeroes_may_unmap
    config
}
