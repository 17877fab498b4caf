//! From a queue's kick descriptor to the device's handler.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::Progress;

/// A device whose queues are served when the driver kicks them.
pub trait Kicked {
    /// Serves queue `queue`; does nothing while the device is not active.
    fn serve(&mut self, queue: usize) -> Progress;

    /// Its kicks cannot be waited for: it must refuse to be activated from now
    /// on, and ask for a reset if it is active.
    fn unreachable(&mut self, error: io::Error);
}

/// Waits for the kicks of a device, one descriptor for each queue.
///
/// A device that has spent its budget kicks itself, so that the other
/// subscribers of the loop get their turn in between.
#[derive(Debug)]
pub struct KickSubscriber<D> {
    device: Arc<Mutex<D>>,
    kicks: Vec<EventFd>,
}

impl<D: Kicked> KickSubscriber<D> {
    /// Waits for `kicks`, which must be nonblocking, on behalf of `device`.
    #[must_use]
    pub fn new(device: Arc<Mutex<D>>, kicks: Vec<EventFd>) -> Self {
        Self { device, kicks }
    }
}

impl<D: Kicked> MutEventSubscriber for KickSubscriber<D> {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let Ok(queue) = usize::try_from(events.data()) else {
            return;
        };
        let Some(kick) = self.kicks.get(queue) else {
            return;
        };
        // Nothing to read after all: nothing to do.
        if kick.read().is_err() {
            return;
        }
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        if device.serve(queue) == Progress::Yielded {
            // Fails only if the counter is full: kicked already.
            let _ = kick.write(1);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (queue, kick) in (0..).zip(&self.kicks) {
            if let Err(error) = ops.add(Events::with_data(kick, queue, EventSet::IN)) {
                let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
                device.unreachable(io::Error::other(error));
            }
        }
    }
}
