//! A device that does nothing but tell what it is asked for.

use std::io;

use virtio_queue::{Queue, QueueState};

use crate::ring::{Kicked, Progress};
use crate::state::{DeviceState, RestoreError};
use crate::virtio::{ActivateError, Activation, VirtioDevice, read_bytes};

/// A device with two queues, features and eight bytes of configuration, for
/// tests of the transport.
#[derive(Debug, Default)]
pub struct Probe {
    /// What is offered.
    pub features: u64,
    /// The configuration space.
    pub config: [u8; 8],
    /// Its generation.
    pub generation: u32,
    /// What the last activation handed over.
    pub active: Option<Activation>,
    /// How often it was activated.
    pub activations: u32,
    /// How often it was reset.
    pub resets: u32,
    /// Whether it refuses to be activated.
    pub refuses: bool,
    /// The queues that were kicked while it was active.
    pub kicks: Vec<usize>,
}

impl Probe {
    /// Type of this device: one of those that are reserved.
    pub const DEVICE_TYPE: u32 = 0x7f;

    /// Sizes of its queues.
    pub const QUEUES: [u16; 2] = [16, 8];
}

impl Kicked for Probe {
    fn serve(&mut self, queue: usize) -> Progress {
        if self.active.is_some() {
            self.kicks.push(queue);
        }
        Progress::Drained
    }

    fn unreachable(&mut self, error: io::Error) {
        panic!("the event loop does not work: {error}");
    }
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        Self::DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &Self::QUEUES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            if let Some(to) = self.config.get_mut(at) {
                *to = *byte;
            }
        }
    }

    fn config_generation(&self) -> u32 {
        self.generation
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(self.active.is_none(), "activated twice");
        if self.refuses {
            return Err(ActivateError::MissingQueue(0));
        }
        self.activations += 1;
        self.active = Some(activation);
        Ok(())
    }

    fn queue_states(&self) -> Vec<QueueState> {
        let active = self.active.iter();
        active
            .flat_map(|a| a.queues.iter().map(Queue::state))
            .collect()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Entropy
    }

    fn restore(&mut self, _state: &DeviceState) -> Result<(), RestoreError> {
        assert!(self.active.is_none(), "restored while active");
        Ok(())
    }

    fn reset(&mut self) -> Vec<Queue> {
        self.resets += 1;
        self.active
            .take()
            .map_or_else(Vec::new, |active| active.queues)
    }
}
