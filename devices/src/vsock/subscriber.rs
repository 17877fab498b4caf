//! From the event loop to the device.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::{QUEUE_SIZES, Vsock};

/// Token of the device's own descriptor; smaller ones are those of the kicks.
const STREAMS: u32 = 3;

/// Runs the device when the driver kicks one of its queues, and when a host
/// stream or a deadline asks for it.
#[derive(Debug)]
pub struct VsockSubscriber {
    device: Arc<Mutex<Vsock>>,
    kicks: [EventFd; QUEUE_SIZES.len()],
}

impl VsockSubscriber {
    /// Waits for `kicks`, which must be nonblocking, one for each queue: rx,
    /// tx, event.
    #[must_use]
    pub fn new(device: Arc<Mutex<Vsock>>, kicks: [EventFd; QUEUE_SIZES.len()]) -> Self {
        Self { device, kicks }
    }

    fn device(&self) -> MutexGuard<'_, Vsock> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MutEventSubscriber for VsockSubscriber {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if events.data() == STREAMS {
            self.device().run_streams();
            return;
        }
        let kick = usize::try_from(events.data());
        // Nothing to read after all: nothing to do.
        if let Some(kick) = kick.ok().and_then(|queue| self.kicks.get(queue))
            && kick.read().is_ok()
        {
            self.device().run();
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = Events::with_data_raw(device.as_raw_fd(), STREAMS, EventSet::IN);
        let kicks = (0..).zip(&self.kicks);
        for events in kicks
            .map(|(queue, kick)| Events::with_data(kick, queue, EventSet::IN))
            .chain([streams])
        {
            if let Err(error) = ops.add(events) {
                device.unreachable(io::Error::other(error));
            }
        }
    }
}
