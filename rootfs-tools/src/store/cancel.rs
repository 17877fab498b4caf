//! A way to end long work in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Ends the work that has a clone of it, with [`super::Error::Cancelled`].
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    notify: Arc<Notify>,
}

impl Cancel {
    /// Ends the work. What was downloaded stays, to be resumed.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    /// Is it cancelled?
    pub(crate) fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    /// For work that looks now and then.
    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.flag
    }

    /// Waits until it is cancelled. Cancel safe.
    pub(crate) async fn cancelled(&self) {
        let notified = self.notify.notified();
        tokio::pin!(notified);
        // Registered before the flag is read, so that no call is missed.
        notified.as_mut().enable();
        if !self.flag.load(Ordering::Acquire) {
            notified.await;
        }
    }
}
