//! Stopping a build from another thread.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

/// A handle that stops a build, from any thread and more than once. The program
/// that owns the terminal calls [`Cancel::cancel`] on Ctrl-C.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    cancelled: bool,
    wake: Option<SyncSender<Event>>,
}

/// What a step of a build waits for.
#[derive(Debug)]
pub(crate) enum Event {
    /// A line of output of the running program.
    Line(String),
    /// Bytes of output of the running program.
    Data(Vec<u8>),
    /// The program has closed its output.
    End,
    /// The lock that another build held is ours.
    Locked(std::io::Result<()>),
    /// [`Cancel::cancel`] was called.
    Cancelled,
}

impl Cancel {
    /// Stops the build: running programs are killed with all that they started,
    /// and [`crate::Cache::build`] returns [`crate::Error::Cancelled`].
    pub fn cancel(&self) {
        let wake = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.cancelled = true;
            state.wake.take()
        };
        if let Some(wake) = wake {
            // Nobody listens when the step has just ended; the next one looks
            // first. And where there is no room, the step is not waiting: it
            // looks before it takes the next event. Waiting for room would be
            // for ever when the caller is the step's own callback.
            let _ = wake.try_send(Event::Cancelled);
        }
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .cancelled
    }

    /// Lets the step that reads from `wake` hear of the cancellation.
    pub(crate) fn attach(&self, wake: SyncSender<Event>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.cancelled {
            drop(state);
            let _ = wake.try_send(Event::Cancelled);
        } else {
            state.wake = Some(wake);
        }
    }

    /// The step is over.
    pub(crate) fn detach(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).wake = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{channel, sync_channel};
    use std::time::Duration;

    use super::*;

    #[test]
    fn cancelling_never_waits_for_the_step() {
        let (wake, _events) = sync_channel(1);
        wake.send(Event::Line("fills the queue".into())).unwrap();
        let cancel = Cancel::default();
        cancel.attach(wake);
        let (done, returned) = channel();
        std::thread::spawn(move || {
            cancel.cancel();
            done.send(cancel.is_cancelled())
        });
        assert_eq!(returned.recv_timeout(Duration::from_secs(20)), Ok(true));
    }
}
