//! Stopping a build from another thread.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;

/// A handle that stops a build, from any thread and more than once. The program
/// that owns the terminal calls [`Cancel::cancel`] on Ctrl-C.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    cancelled: bool,
    /// Builds that have begun and not ended.
    working: usize,
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
    ///
    /// Returns whether there is something to wait for, so that nothing half-built
    /// is left: a build that is still looking at its source, which may take long,
    /// has made nothing and started nothing that stays, and never will.
    pub fn cancel(&self) -> bool {
        let (wake, working) = {
            let mut state = self.state();
            state.cancelled = true;
            (state.wake.take(), state.working > 0)
        };
        if let Some(wake) = wake {
            // Nobody listens when the step has just ended; the next one looks
            // first. And where there is no room, the step is not waiting: it
            // looks before it takes the next event. Waiting for room would be
            // for ever when the caller is the step's own callback.
            let _ = wake.try_send(Event::Cancelled);
        }
        working
    }

    /// From here on, until what it returns is dropped, [`Cancel::cancel`] says that
    /// there is something to wait for.
    pub(crate) fn begin(&self) -> Result<Working, Error> {
        let mut state = self.state();
        if state.cancelled {
            return Err(Error::Cancelled);
        }
        state.working = state.working.saturating_add(1);
        Ok(Working(self.clone()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.state().cancelled
    }

    /// Lets the step that reads from `wake` hear of the cancellation.
    pub(crate) fn attach(&self, wake: SyncSender<Event>) {
        let mut state = self.state();
        if state.cancelled {
            drop(state);
            let _ = wake.try_send(Event::Cancelled);
        } else {
            state.wake = Some(wake);
        }
    }

    /// The step is over.
    pub(crate) fn detach(&self) {
        self.state().wake = None;
    }
}

/// A build that works in the cache.
#[derive(Debug)]
pub(crate) struct Working(Cancel);

impl Drop for Working {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.working = state.working.saturating_sub(1);
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

    #[test]
    fn only_a_build_that_has_begun_is_worth_waiting_for() {
        let cancel = Cancel::default();
        let working = cancel.begin().unwrap();
        assert!(cancel.cancel());
        drop(working);
        assert!(!cancel.cancel());
        assert!(matches!(cancel.begin(), Err(Error::Cancelled)));
    }
}
