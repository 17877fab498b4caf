//! Saving a transport and its device, and taking the state over again.

use std::io;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::Queue;

use super::mmio::{MmioTransport, lock};
use super::queue::{QueueSetup, checked_queue};
use super::status;
use crate::state::{DeviceState, RestoreError, SavedQueue};
use crate::virtio::{INTERRUPT_CONFIG_CHANGE, INTERRUPT_USED_RING};

/// Everything about a transport and its device that outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    pub(super) status: u32,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) accepts_unknown: bool,
    pub(super) queue_sel: u32,
    pub(super) setups: Vec<QueueSetup>,
    pub(super) interrupt_status: u32,
    pub(super) needs_reset: bool,
    /// The queues while they are with the device.
    pub(super) queues: Vec<SavedQueue>,
    pub(super) device: DeviceState,
}

impl MmioTransport {
    /// The state of transport, device and queues. The VM's vCPUs must not run.
    #[must_use]
    pub fn save(&self) -> TransportState {
        // Under the device's lock, so that the event loop does not use queue or
        // interrupt in between.
        let device = lock(&self.device);
        TransportState {
            status: self.status,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: self.driver_features,
            accepts_unknown: self.accepts_unknown,
            queue_sel: self.queue_sel,
            setups: self.setups.clone(),
            interrupt_status: self.interrupt.status(),
            needs_reset: self.interrupt.is_reset_needed(),
            queues: device
                .queue_states()
                .into_iter()
                .map(SavedQueue::from)
                .collect(),
            device: device.save(),
        }
    }

    /// Takes over a saved state, with the guest memory of that moment. The
    /// device is reset first. A kick that was under way when the state was
    /// saved is not part of it, therefore every ready queue is kicked.
    ///
    /// # Errors
    /// If the state contradicts the device, itself or guest memory; then the
    /// device is left reset.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        self.reset();
        let result = self.try_restore(state);
        if result.is_err() {
            self.reset();
        }
        result
    }

    fn try_restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        let device_name = state.device.kind();
        let invalid = |why: &str| RestoreError::Invalid {
            device: device_name,
            why: why.to_owned(),
        };
        if !status::is_legal(state.status) {
            return Err(invalid("the device status cannot be reached"));
        }
        let settled = state.status & status::FEATURES_OK != 0;
        if settled && !self.accepts(state.driver_features, state.accepts_unknown) {
            return Err(invalid("the driver's features are not those offered"));
        }
        if state.interrupt_status & !(INTERRUPT_USED_RING | INTERRUPT_CONFIG_CHANGE) != 0 {
            return Err(invalid("an interrupt is pending that does not exist"));
        }
        if state.setups.len() != self.max_sizes.len() {
            return Err(invalid("the number of queues is another one"));
        }
        for (setup, &max_size) in state.setups.iter().zip(&self.max_sizes) {
            if setup.ready && (!settled || setup.validate(max_size, &self.memory).is_none()) {
                return Err(invalid("a queue that is ready is not valid"));
            }
        }
        lock(&self.device).restore(&state.device)?;

        self.status = state.status;
        self.device_features_sel = state.device_features_sel;
        self.driver_features_sel = state.driver_features_sel;
        self.driver_features = state.driver_features;
        self.accepts_unknown = state.accepts_unknown;
        self.queue_sel = state.queue_sel;
        self.setups.clone_from(&state.setups);
        self.interrupt
            .restore(state.interrupt_status, state.needs_reset)
            .map_err(|error| invalid(&format!("could not raise its interrupt: {error}")))?;

        // A device that failed to start has no queues, and needs a reset.
        let live = state.status & status::DRIVER_OK != 0;
        if !live || (state.needs_reset && state.queues.is_empty()) {
            return Ok(());
        }
        let queues = self
            .saved_queues(&state.queues)
            .ok_or_else(|| invalid("a queue is not the one that the driver set up"))?;
        lock(&self.device)
            .activate(self.activation(queues))
            .map_err(|error| invalid(&error.to_string()))?;
        self.kick_all()
            .map_err(|error| invalid(&format!("could not kick its queues: {error}")))
    }

    /// The queues of a saved state, if they agree with the registers.
    fn saved_queues(&self, saved: &[SavedQueue]) -> Option<Vec<Queue>> {
        if saved.len() != self.setups.len() {
            return None;
        }
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let agree = |saved: &SavedQueue, setup: &QueueSetup, max_size: u16| {
            saved.max_size == max_size
                && saved.ready == setup.ready
                && (!setup.ready
                    || (saved.event_idx == event_idx
                        && u32::from(saved.size) == setup.size
                        && saved.desc_table == setup.desc_table
                        && saved.avail_ring == setup.avail_ring
                        && saved.used_ring == setup.used_ring))
        };
        saved
            .iter()
            .zip(&self.setups)
            .zip(&self.max_sizes)
            .map(|((saved, setup), &max_size)| {
                agree(saved, setup, max_size)
                    .then(|| checked_queue((*saved).into()))
                    .flatten()
            })
            .collect()
    }

    fn kick_all(&self) -> io::Result<()> {
        self.kicks
            .iter()
            .zip(&self.setups)
            .filter(|(_, setup)| setup.ready)
            .try_for_each(|(kick, _)| kick.write(1))
    }
}
