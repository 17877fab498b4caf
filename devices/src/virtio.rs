//! What a virtio device is to the transport, and what it is given.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use thiserror::Error;
use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

use crate::state::{DeviceState, RestoreError};

/// Guest memory as all devices see it. Clones share the mapping.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// `InterruptStatus` bit 0: a used buffer was added (virtio 1.2 §4.2.2).
pub const INTERRUPT_USED_RING: u32 = 1;
/// `InterruptStatus` bit 1: the configuration or status changed.
pub const INTERRUPT_CONFIG_CHANGE: u32 = 2;

/// How a device gets the driver's attention.
///
/// Shared between the transport, which answers the driver's reads of
/// `InterruptStatus`, and the device, so that neither has to lock the other.
#[derive(Debug, Clone)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    status: AtomicU32,
    needs_reset: AtomicBool,
    /// Bound to the guest's interrupt line (a KVM irqfd).
    line: EventFd,
}

impl Interrupt {
    /// An idle interrupt that pulses `line`.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        let shared = Shared {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            line,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Tells the driver that used buffers are waiting. Ask
    /// [`virtio_queue::QueueT::needs_notification`] first.
    ///
    /// # Errors
    /// If the event descriptor cannot be written.
    pub fn signal_used(&self) -> io::Result<()> {
        self.raise(INTERRUPT_USED_RING)
    }

    /// Tells the driver that the configuration space changed.
    ///
    /// # Errors
    /// If the event descriptor cannot be written.
    pub fn signal_config_change(&self) -> io::Result<()> {
        self.raise(INTERRUPT_CONFIG_CHANGE)
    }

    /// Gives the device up until the driver resets it: `DEVICE_NEEDS_RESET`
    /// (virtio 1.2 §2.1.2). The answer to a driver that broke the rules so that
    /// a queue cannot be trusted any more.
    pub fn needs_reset(&self) {
        self.shared.needs_reset.store(true, Ordering::SeqCst);
        // A driver that cannot be told finds out when it reads the status.
        let _ = self.raise(INTERRUPT_CONFIG_CHANGE);
    }

    /// Whether [`Self::needs_reset`] was called since the last reset.
    #[must_use]
    pub fn is_reset_needed(&self) -> bool {
        self.shared.needs_reset.load(Ordering::SeqCst)
    }

    /// The `InterruptStatus` register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.shared.status.load(Ordering::SeqCst)
    }

    /// Clears bits of `InterruptStatus` (a write of `InterruptACK`).
    pub fn acknowledge(&self, bits: u32) {
        self.shared.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Back to idle, at reset of the device.
    pub fn clear(&self) {
        self.shared.status.store(0, Ordering::SeqCst);
        self.shared.needs_reset.store(false, Ordering::SeqCst);
    }

    /// Takes over a saved state. Pulses the line if an interrupt was pending,
    /// since the pulse itself is not part of the state.
    ///
    /// # Errors
    /// If the event descriptor cannot be written.
    pub fn restore(&self, status: u32, needs_reset: bool) -> io::Result<()> {
        self.shared.needs_reset.store(needs_reset, Ordering::SeqCst);
        self.shared.status.store(status, Ordering::SeqCst);
        if status == 0 {
            Ok(())
        } else {
            self.shared.line.write(1)
        }
    }

    fn raise(&self, bit: u32) -> io::Result<()> {
        self.shared.status.fetch_or(bit, Ordering::SeqCst);
        self.shared.line.write(1)
    }
}

/// What a device receives when its driver is ready (`DRIVER_OK`).
#[derive(Debug)]
pub struct Activation {
    /// All of guest memory.
    pub memory: GuestRam,
    /// The features that the driver accepted, a subset of those offered.
    pub features: u64,
    /// One queue for each of [`VirtioDevice::queue_max_sizes`], validated:
    /// those that the driver did not set up are not `ready()`.
    pub queues: Vec<Queue>,
    /// How to get the driver's attention.
    pub interrupt: Interrupt,
}

/// Why a device did not start. The transport answers with
/// `DEVICE_NEEDS_RESET`.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// A queue without which the device cannot work was not set up.
    #[error("the driver did not set up queue {0}, which the device needs")]
    MissingQueue(usize),
    /// The host refused a resource.
    #[error("could not {what}: {error}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

impl ActivateError {
    /// As [`Self::Host`], for an error that is kept: it is one for every
    /// activation that follows.
    pub(crate) fn lasting(what: &'static str, error: &io::Error) -> Self {
        let error = io::Error::new(error.kind(), error.to_string());
        Self::Host { what, error }
    }
}

/// A virtio device behind a transport.
///
/// The transport guarantees to the device:
/// * [`Self::activate`] and [`Self::reset`] alternate, beginning with
///   `activate`; `reset` is also called on a device that never activated, and
///   must then return no queues;
/// * the features in an [`Activation`] are a subset of those offered and
///   contain `VIRTIO_F_VERSION_1`;
/// * every ready queue of an [`Activation`] has its rings inside guest memory.
///
/// The device guarantees to the transport:
/// * after [`Self::reset`] returns it touches neither guest memory nor the
///   interrupt until it is activated again;
/// * no call panics or blocks for long, whatever the guest wrote.
///
/// The transport calls these from a vCPU thread, the subscriber calls the
/// device's own methods from the event loop: the device is behind one mutex,
/// which the hot registers (`InterruptStatus`, `InterruptACK`, `QueueNotify`)
/// never take.
pub trait VirtioDevice: Send {
    /// Device type (virtio 1.2 §5): 2 block, 4 entropy, 19 vsock, ….
    fn device_type(&self) -> u32;

    /// Largest size of each queue, in descriptors; powers of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// Offered features, those of the device and of its rings. The transport
    /// adds `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;

    /// Reads the device's configuration space. Bytes past its end read as
    /// zero. `offset` is relative to the space's start.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device's configuration space. Most devices have nothing
    /// that can be written.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Changes whenever the configuration space does (virtio 1.2 §4.2.2.1).
    fn config_generation(&self) -> u32 {
        0
    }

    /// Starts the device.
    ///
    /// # Errors
    /// If it cannot work with what the driver set up; the queues are dropped.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The state of the device's queues while it is active; empty otherwise.
    fn queue_states(&self) -> Vec<QueueState>;

    /// The device's own state, without queues and without the transport.
    fn save(&self) -> DeviceState;

    /// Takes over a saved state. Called on a device that is not active; if it
    /// was active when saved, [`Self::activate`] follows with the saved queues.
    ///
    /// # Errors
    /// If the state is of another kind of device or contradicts this one.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;

    /// Stops the device, finishing or dropping I/O in flight, and gives the
    /// queues back.
    fn reset(&mut self) -> Vec<Queue>;
}

/// Reads from a configuration space that is `config`: for
/// [`VirtioDevice::read_config`]. Bytes past its end are left alone, which the
/// transport has zeroed.
pub fn read_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Ok(offset) = usize::try_from(offset) else {
        return;
    };
    let rest = config.get(offset..).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}
