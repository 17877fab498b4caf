//! The register file in front of one device.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{QueueSetup, set_high, set_low};
use super::registers as reg;
use super::status::{self, Step};
use crate::virtio::{Activation, GuestRam, Interrupt, VirtioDevice};

/// What a shared memory region that does not exist has for base and length
/// (virtio 1.2 §4.2.2).
const NO_REGION: u32 = u32::MAX;

/// Why a transport cannot be put in front of a device.
#[derive(Debug, Error)]
pub enum TransportError {
    /// Not one event descriptor per queue.
    #[error(
        "the device has {queues} queues, but {kicks} kick descriptors were given: give one for each queue"
    )]
    Kicks {
        /// Queues of the device.
        queues: usize,
        /// Descriptors given.
        kicks: usize,
    },
    /// The device wants a queue size that cannot be.
    #[error(
        "queue {index} of the device has maximum size {size}, which is not a power of two up to 32768"
    )]
    QueueSize {
        /// Which queue.
        index: usize,
        /// Its maximum size.
        size: u16,
    },
}

/// A virtio-mmio device as the guest sees it: [`reg::MMIO_SIZE`] bytes of
/// address space.
///
/// * Only aligned 32-bit accesses reach a register (virtio 1.2 §4.2.2.2): the
///   others read as zero and are ignored when written. The configuration space
///   takes every width and alignment.
/// * A read of a write-only register gives zero, a write of a read-only one is
///   ignored, as is every write that the status does not permit. See
///   [`Self::refused_writes`].
/// * Features can be written between `DRIVER` and `FEATURES_OK` only, queue
///   registers between `FEATURES_OK` and `DRIVER_OK` only, and while the queue
///   is not ready. Hence nothing about a live queue can change
///   (CVE-2026-5747); a single live queue cannot be stopped, for which
///   `VIRTIO_F_RING_RESET` would have to be offered.
/// * `QueueReady` stays 0 when the queue's size, alignment or place is wrong.
/// * A reset is finished when the write returns: `Status` reads as zero.
///
/// `QueueNotify` is meant to be bound to the kick descriptors in KVM
/// (ioeventfd at [`reg::QUEUE_NOTIFY`], matching the queue's index): then no
/// notification comes through here.
pub struct MmioTransport {
    pub(super) device: Arc<Mutex<dyn VirtioDevice>>,
    pub(super) memory: GuestRam,
    pub(super) interrupt: Interrupt,
    pub(super) kicks: Vec<EventFd>,
    pub(super) device_type: u32,
    pub(super) offered: u64,
    pub(super) max_sizes: Vec<u16>,

    pub(super) status: u32,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    /// The driver accepted a feature beyond bit 63.
    pub(super) accepts_unknown: bool,
    pub(super) queue_sel: u32,
    pub(super) setups: Vec<QueueSetup>,
    refused_writes: u64,
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_type", &self.device_type)
            .field("status", &self.status)
            .field("driver_features", &self.driver_features)
            .field("setups", &self.setups)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Puts a register file in front of `device`, which must not be active.
    /// `kicks` are the descriptors that the device's subscriber waits for, one
    /// for each queue.
    ///
    /// # Errors
    /// If `kicks` or the queue sizes do not fit the device.
    pub fn new(
        device: Arc<Mutex<dyn VirtioDevice>>,
        memory: GuestRam,
        interrupt: Interrupt,
        kicks: Vec<EventFd>,
    ) -> Result<Self, TransportError> {
        let (device_type, offered, max_sizes) = {
            let device = lock(&device);
            (
                device.device_type(),
                device.features() | 1 << VIRTIO_F_VERSION_1,
                device.queue_max_sizes().to_vec(),
            )
        };
        if kicks.len() != max_sizes.len() {
            return Err(TransportError::Kicks {
                queues: max_sizes.len(),
                kicks: kicks.len(),
            });
        }
        for (index, &size) in max_sizes.iter().enumerate() {
            if Queue::new(size).is_err() {
                return Err(TransportError::QueueSize { index, size });
            }
        }
        let setups = max_sizes.iter().copied().map(QueueSetup::initial).collect();
        Ok(Self {
            device,
            memory,
            interrupt,
            kicks,
            device_type,
            offered,
            max_sizes,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            accepts_unknown: false,
            queue_sel: 0,
            setups,
            refused_writes: 0,
        })
    }

    /// The guest reads `data.len()` bytes at `offset` of the device.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            lock(&self.device).read_config(offset, data);
        } else if offset.is_multiple_of(4)
            && let Ok(word) = <&mut [u8; 4]>::try_from(data)
        {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    /// The guest writes `data` at `offset` of the device.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            if self.status & status::DRIVER != 0 && !self.interrupt.is_reset_needed() {
                lock(&self.device).write_config(offset, data);
            } else {
                self.refuse();
            }
        } else if offset.is_multiple_of(4)
            && let Ok(word) = <[u8; 4]>::try_from(data)
        {
            self.write_register(offset, u32::from_le_bytes(word));
        } else {
            self.refuse();
        }
    }

    /// Back to the state after power-on, device and interrupt included. What a
    /// driver does by writing 0 to `Status`.
    pub fn reset(&mut self) {
        // The device first: it must not raise an interrupt that was cleared.
        drop(lock(&self.device).reset());
        self.interrupt.clear();
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.accepts_unknown = false;
        self.queue_sel = 0;
        for (setup, &max_size) in self.setups.iter_mut().zip(&self.max_sizes) {
            *setup = QueueSetup::initial(max_size);
        }
    }

    /// Writes that were ignored, since the transport was made: accesses of a
    /// wrong width, writes of registers that are read-only or do not exist,
    /// and those against the order of initialisation. A correct driver makes
    /// none.
    #[must_use]
    pub fn refused_writes(&self) -> u64 {
        self.refused_writes
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::VERSION => reg::MMIO_VERSION,
            reg::DEVICE_ID => self.device_type,
            reg::VENDOR_ID => reg::VENDOR,
            reg::DEVICE_FEATURES => word(self.offered, self.device_features_sel),
            reg::QUEUE_NUM_MAX => self
                .selected()
                .and_then(|index| self.max_sizes.get(index))
                .map_or(0, |&size| u32::from(size)),
            reg::QUEUE_READY => self
                .selected()
                .and_then(|index| self.setups.get(index))
                .map_or(0, |setup| u32::from(setup.ready)),
            reg::INTERRUPT_STATUS => self.interrupt.status(),
            reg::STATUS if self.interrupt.is_reset_needed() => self.status | status::NEEDS_RESET,
            reg::STATUS => self.status,
            reg::SHM_LEN_LOW | reg::SHM_LEN_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => {
                NO_REGION
            }
            reg::CONFIG_GENERATION => lock(&self.device).config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.write_features(value),
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_READY => self.write_queue_ready(value),
            reg::QUEUE_NUM
            | reg::QUEUE_DESC_LOW
            | reg::QUEUE_DESC_HIGH
            | reg::QUEUE_DRIVER_LOW
            | reg::QUEUE_DRIVER_HIGH
            | reg::QUEUE_DEVICE_LOW
            | reg::QUEUE_DEVICE_HIGH => self.write_queue(offset, value),
            reg::QUEUE_NOTIFY => self.notify(value),
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::STATUS => self.write_status(value),
            // There is no region to select.
            reg::SHM_SEL => {}
            _ => self.refuse(),
        }
    }

    fn write_features(&mut self, value: u32) {
        if !status::negotiates(self.status) {
            return self.refuse();
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            _ => self.accepts_unknown |= value != 0,
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        let permitted = status::configures_queues(self.status);
        match self.selected_setup() {
            Some(setup) if permitted && !setup.ready => match offset {
                reg::QUEUE_NUM => setup.size = value,
                reg::QUEUE_DESC_LOW => set_low(&mut setup.desc_table, value),
                reg::QUEUE_DESC_HIGH => set_high(&mut setup.desc_table, value),
                reg::QUEUE_DRIVER_LOW => set_low(&mut setup.avail_ring, value),
                reg::QUEUE_DRIVER_HIGH => set_high(&mut setup.avail_ring, value),
                reg::QUEUE_DEVICE_LOW => set_low(&mut setup.used_ring, value),
                _ => set_high(&mut setup.used_ring, value),
            },
            _ => self.refuse(),
        }
    }

    fn write_queue_ready(&mut self, value: u32) {
        let ready = match (self.selected(), value) {
            _ if !status::configures_queues(self.status) => None,
            (Some(index), 1) => self.validated(index).map(|_| true),
            (Some(_), 0) => Some(false),
            _ => None,
        };
        match (self.selected_setup(), ready) {
            (Some(setup), Some(ready)) => setup.ready = ready,
            _ => self.refuse(),
        }
    }

    fn notify(&mut self, index: u32) {
        let kick = usize::try_from(index).ok().and_then(|index| {
            let ready = self.setups.get(index)?.ready;
            (ready && status::is_live(self.status)).then(|| self.kicks.get(index))?
        });
        match kick {
            // Can fail only when the counter is at its end: kicked already.
            Some(kick) => drop(kick.write(1)),
            None => self.refuse(),
        }
    }

    fn write_status(&mut self, value: u32) {
        // A driver adds bits to what it has read, which includes NEEDS_RESET. On
        // its own that bit is not the 0 that resets.
        let value = if self.interrupt.is_reset_needed() && value != status::NEEDS_RESET {
            value & !status::NEEDS_RESET
        } else {
            value
        };
        match status::step(self.status, value) {
            Step::Reset => self.reset(),
            Step::Stay => {}
            Step::Add(status::FEATURES_OK)
                if !self.accepts(self.driver_features, self.accepts_unknown) =>
            {
                self.refuse();
            }
            Step::Add(status::DRIVER_OK) => {
                self.status |= status::DRIVER_OK;
                self.activate();
            }
            Step::Add(bit) => self.status |= bit,
            Step::Refuse => self.refuse(),
        }
    }

    /// Whether a driver may settle on these features: `VERSION_1` (virtio 1.2
    /// §6.1) and none that was not offered (§2.2.2).
    pub(super) fn accepts(&self, features: u64, unknown: bool) -> bool {
        !unknown && features & !self.offered == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        let queues = (0..self.setups.len())
            .map(|index| self.validated(index).filter(|_| self.is_ready(index)))
            .zip(&self.max_sizes)
            .filter_map(|(queue, &max_size)| queue.or_else(|| Queue::new(max_size).ok()))
            .collect();
        if lock(&self.device)
            .activate(self.activation(queues))
            .is_err()
        {
            self.interrupt.needs_reset();
        }
    }

    pub(super) fn activation(&self, mut queues: Vec<Queue>) -> Activation {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for queue in &mut queues {
            queue.set_event_idx(event_idx);
        }
        Activation {
            memory: self.memory.clone(),
            features: self.driver_features,
            queues,
            interrupt: self.interrupt.clone(),
        }
    }

    fn validated(&self, index: usize) -> Option<Queue> {
        let setup = self.setups.get(index)?;
        setup.validate(*self.max_sizes.get(index)?, &self.memory)
    }

    fn is_ready(&self, index: usize) -> bool {
        self.setups.get(index).is_some_and(|setup| setup.ready)
    }

    fn selected(&self) -> Option<usize> {
        usize::try_from(self.queue_sel).ok()
    }

    fn selected_setup(&mut self) -> Option<&mut QueueSetup> {
        self.selected().and_then(|index| self.setups.get_mut(index))
    }

    fn refuse(&mut self) {
        self.refused_writes = self.refused_writes.saturating_add(1);
    }
}

/// The 32 bits of `features` that selector `sel` stands for; there are none
/// beyond bit 63.
fn word(features: u64, sel: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match sel {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

/// A device whose last user panicked is as good as any: it is reset by the
/// driver or dies with the process.
pub(super) fn lock(device: &Mutex<dyn VirtioDevice>) -> MutexGuard<'_, dyn VirtioDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
