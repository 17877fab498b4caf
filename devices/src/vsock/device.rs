//! The device as the transport and the host see it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};

use super::handler::Handler;
use super::rings::Rings;
use super::{
    DEVICE_TYPE, Deadlines, MAX_CONNECTIONS, MAX_PENDING_RSTS, Metrics, QUEUE_SIZES, VsockError,
    VsockEvent,
};
use crate::ring::{Ring, RingError};
use crate::state::{DeviceState, RestoreError};
use crate::virtio::{ActivateError, Activation, GuestRam, Interrupt, VirtioDevice};

/// `VIRTIO_VSOCK_F_STREAM` (virtio 1.2 §5.10.3).
const F_STREAM: u64 = 1 << 0;

/// A virtio-vsock device, see the [module](super).
///
/// The host's calls only take note; what follows from them, and all
/// [`VsockEvent`]s, come when the event loop runs the device. It has to do so
/// with [`Self::run_streams`] whenever the descriptor of [`AsRawFd`] is
/// readable, and with [`Self::run`] after each kick; [`super::VsockSubscriber`]
/// does both.
pub struct Vsock {
    guest_cid: u64,
    handler: Handler,
    active: Option<Active>,
    /// Why the event loop cannot run the device.
    unreachable: Option<io::Error>,
    host: Box<dyn FnMut(VsockEvent) + Send>,
}

struct Active {
    memory: GuestRam,
    rings: Rings,
    interrupt: Interrupt,
}

impl std::fmt::Debug for Vsock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (f.debug_struct("Vsock"))
            .field("guest_cid", &self.guest_cid)
            .field("active", &self.active.is_some())
            .field("metrics", &self.handler.metrics)
            .finish_non_exhaustive()
    }
}

impl Vsock {
    /// A device for the guest of this CID, from 3 to 2³² - 2.
    ///
    /// `host` is called from the event loop, while the device is locked: it
    /// must not call the device.
    ///
    /// # Errors
    /// If the CID is reserved, or the host refuses a descriptor.
    pub fn new(
        guest_cid: u64,
        host: Box<dyn FnMut(VsockEvent) + Send>,
    ) -> Result<Self, VsockError> {
        Self::with_deadlines(guest_cid, host, Deadlines::default())
    }

    pub(super) fn with_deadlines(
        guest_cid: u64,
        host: Box<dyn FnMut(VsockEvent) + Send>,
        deadlines: Deadlines,
    ) -> Result<Self, VsockError> {
        // virtio 1.2 §5.10.4: 0, 1, 2, 2³² - 1 and all that needs more bits.
        if !(3..u64::from(u32::MAX)).contains(&guest_cid) {
            return Err(VsockError::GuestCid(guest_cid));
        }
        Ok(Self {
            guest_cid,
            handler: Handler::new(guest_cid, deadlines)?,
            active: None,
            unreachable: None,
            host,
        })
    }

    /// Connects `stream` to `port` in the guest. [`VsockEvent::Connected`] or
    /// [`VsockEvent::Refused`] follows, with this `id`. Data may be written to
    /// the other end of `stream` before.
    ///
    /// If no driver is there yet, the guest is asked as soon as one is; the 10
    /// seconds for the answer begin now.
    pub fn connect(&mut self, id: u64, port: u32, stream: UnixStream) {
        self.handler.connect(id, port, stream);
    }

    /// Accepts the connection of [`VsockEvent::Incoming`]. Nothing happens if
    /// it is gone meanwhile; its stream is then closed.
    pub fn accept(&mut self, id: u64) {
        self.handler.accept(id);
    }

    /// Rejects the connection of [`VsockEvent::Incoming`]: the guest sees
    /// "connection reset".
    pub fn reject(&mut self, id: u64) {
        self.handler.reject(id);
    }

    /// Lets there be at most so many connections at once, for a process that may
    /// not have more descriptors; [`MAX_CONNECTIONS`] otherwise, and at most.
    pub fn limit_connections(&mut self, most: usize) {
        self.handler.table.limit(most);
    }

    /// Puts off what waits for the guest: it has stood still for so long.
    pub fn postpone(&mut self, by: Duration) {
        self.handler.postpone(by);
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.handler.metrics
    }

    /// Looks after host streams and deadlines, and then does the same as
    /// [`Self::run`].
    pub fn run_streams(&mut self) {
        self.handler.poll();
        self.run();
    }

    /// Moves packets between rings and streams, at most 256 KiB each way; if
    /// there is more, the device's descriptor is readable afterwards.
    pub fn run(&mut self) {
        self.handler.metrics.wakeups += 1;
        if let Some(active) = &mut self.active
            && let Err(_broken) = active.run(&mut self.handler)
        {
            self.handler.metrics.broken_rings += 1;
            active.interrupt.needs_reset();
            self.handler.reset();
        }
        self.handler.settle();
        for event in self.handler.events.drain(..) {
            (self.host)(event);
        }
    }

    /// The event loop cannot wait for what the device needs: it must refuse to
    /// be activated.
    pub(super) fn unreachable(&mut self, error: io::Error) {
        if let Some(active) = &self.active {
            active.interrupt.needs_reset();
        }
        self.unreachable = Some(error);
    }

    #[cfg(test)]
    pub(super) fn handler(&mut self) -> &mut Handler {
        &mut self.handler
    }
}

impl Active {
    fn run(&mut self, handler: &mut Handler) -> Result<(), RingError> {
        if self.interrupt.is_reset_needed() {
            return Ok(());
        }
        handler.run(&self.memory, &mut self.rings)?;
        if self.rings.wants_interrupt(&self.memory)? {
            handler.metrics.interrupts += 1;
            // Fails only if the counter is full: the line is up already.
            let _ = self.interrupt.signal_used();
        }
        Ok(())
    }
}

/// The descriptor that is readable when [`Vsock::run_streams`] has work.
impl AsRawFd for Vsock {
    fn as_raw_fd(&self) -> RawFd {
        self.handler.reactor().as_raw_fd()
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_STREAM | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    /// `struct virtio_vsock_config`: the guest's CID (virtio 1.2 §5.10.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let config = self.guest_cid.to_le_bytes();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
        } = activation;
        let host = |what, error| ActivateError::Host { what, error };
        if let Some(error) = &self.unreachable {
            let what = "wait for the queues of the vsock device";
            return Err(ActivateError::lasting(what, error));
        }
        let mut queues = queues.into_iter().map(|queue| {
            let ready = queue.ready();
            ready.then(|| Ring::new(queue, features))
        });
        let mut next = || queues.next().flatten();
        let rx = next().ok_or(ActivateError::MissingQueue(0))?;
        let tx = next().ok_or(ActivateError::MissingQueue(1))?;
        let event = next();
        let rings = Rings::new(&memory, rx, tx, event).map_err(|error| {
            host(
                "set up the rings of the vsock device",
                io::Error::other(error),
            )
        })?;
        self.active = Some(Active {
            memory,
            rings,
            interrupt,
        });
        self.handler.reactor().wake();
        Ok(())
    }

    fn queue_states(&self) -> Vec<QueueState> {
        let Some(Active { rings, .. }) = &self.active else {
            return Vec::new();
        };
        let event = rings.event.as_ref().map_or_else(
            || absent_queue().map(|queue| queue.state()),
            |ring| Some(ring.state()),
        );
        [Some(rings.rx.state()), Some(rings.tx.state()), event]
            .into_iter()
            .flatten()
            .collect()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(self.handler.save())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Vsock(state) = state else {
            return Err(RestoreError::WrongDevice { expected: "vsock" });
        };
        let most = MAX_CONNECTIONS + MAX_PENDING_RSTS;
        if state.open.len() > most {
            return Err(RestoreError::Invalid {
                device: "vsock",
                why: format!(
                    "it has {} connections, the device at most {most}",
                    state.open.len()
                ),
            });
        }
        self.handler.restore(state);
        Ok(())
    }

    fn reset(&mut self) -> Vec<Queue> {
        self.handler.reset();
        let Some(Active { rings, .. }) = self.active.take() else {
            return Vec::new();
        };
        let Rings { rx, tx, event, .. } = rings;
        let event = event.map_or_else(absent_queue, |ring| Some(ring.into_queue()));
        [Some(rx.into_queue()), Some(tx.into_queue()), event]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// In place of an event queue that the driver did not set up.
fn absent_queue() -> Option<Queue> {
    let [.., size] = QUEUE_SIZES;
    Queue::new(size).ok()
}
