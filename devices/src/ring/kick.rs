//! From a queue's kick descriptor, or the device's timer, to the device's handler.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

    /// What is readable when the device wants its queues to be served without a
    /// kick. It stays the same for the life of the device.
    fn timer(&self) -> Option<RawFd> {
        None
    }

    /// That is readable, and must not be any more. All queues are served then.
    fn expired(&mut self) {}
}

/// Token of the device's timer; smaller ones are those of the kicks.
const TIMER: u32 = u32::MAX;

/// Waits for the kicks of a device, one descriptor for each queue, and for its timer
/// if it has one.
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

    fn device(&self) -> MutexGuard<'_, D> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, queue: usize, kick: &EventFd) {
        if self.device().serve(queue) == Progress::Yielded {
            // Fails only if the counter is full: kicked already.
            let _ = kick.write(1);
        }
    }
}

impl<D: Kicked> MutEventSubscriber for KickSubscriber<D> {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if events.data() == TIMER {
            self.device().expired();
            for (queue, kick) in self.kicks.iter().enumerate() {
                self.serve(queue, kick);
            }
            return;
        }
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
        self.serve(queue, kick);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut device = self.device();
        let timer = device.timer();
        let timer = timer.map(|fd| Events::with_data_raw(fd, TIMER, EventSet::IN));
        let kicks = (0..).zip(&self.kicks);
        let kicks = kicks.map(|(queue, kick)| Events::with_data(kick, queue, EventSet::IN));
        for events in kicks.chain(timer) {
            if let Err(error) = ops.add(events) {
                device.unreachable(io::Error::other(error));
            }
        }
    }
}
