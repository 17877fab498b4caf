//! Features and life cycle of the entropy device.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};

use super::metrics::RngMetrics;
use super::{BUDGET, DEVICE_TYPE, QUEUE_SIZE, handler};
use crate::ring::{Kicked, Progress, Ring};
use crate::state::{DeviceState, RestoreError};
use crate::virtio::{ActivateError, Activation, GuestRam, Interrupt, VirtioDevice};

/// An entropy device. See the [module](super).
#[derive(Debug, Default)]
pub struct Rng {
    metrics: Arc<RngMetrics>,
    active: Option<Active>,
    unreachable: Option<io::Error>,
}

#[derive(Debug)]
struct Active {
    memory: GuestRam,
    interrupt: Interrupt,
    ring: Ring,
}

impl Rng {
    /// An entropy device fed by the host's kernel.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The device's counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<RngMetrics> {
        Arc::clone(&self.metrics)
    }
}

impl Kicked for Rng {
    fn serve(&mut self, _queue: usize) -> Progress {
        let Some(active) = &mut self.active else {
            return Progress::Drained;
        };
        let metrics = &*self.metrics;
        active
            .ring
            .serve(&active.memory, &active.interrupt, BUDGET, |chain| {
                handler::answer(chain, metrics)
            })
    }

    fn unreachable(&mut self, error: io::Error) {
        if let Some(active) = &self.active {
            active.interrupt.needs_reset();
        }
        self.unreachable = Some(error);
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    /// There is no configuration space (virtio 1.2 §5.4.4).
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if let Some(error) = &self.unreachable {
            return Err(ActivateError::lasting(
                "wait for the kicks of the entropy device",
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
        DeviceState::Entropy
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Entropy => Ok(()),
            _ => Err(RestoreError::WrongDevice {
                expected: "entropy",
            }),
        }
    }

    fn reset(&mut self) -> Vec<Queue> {
        self.active
            .take()
            .map(|active| active.ring.into_queue())
            .into_iter()
            .collect()
    }
}
