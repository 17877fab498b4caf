//! A guest's events, written down no faster than is good for the host.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::events::{Events, VmEvent};
use crate::supervise::life::Shared;

/// Most events of a guest that are written down in a second. Only programs that are run
/// through its agent are events, two each; a guest that says more lies, or is told to.
const PER_SECOND: u32 = 400;

/// The time in which so many count.
const SECOND: Duration = Duration::from_secs(1);

/// Passes what happens in the guest to who writes it down. Tells when that was all.
pub(super) fn tell(mut events: Events, shared: Arc<Shared>) -> oneshot::Receiver<()> {
    let (teller, told) = oneshot::channel();
    tokio::spawn(async move {
        let mut quota = Quota::new(Instant::now());
        loop {
            let next = match quota.lost {
                0 => Ok(events.next().await),
                // What is lost is told soon, also if nothing follows.
                _ => timeout(SECOND, events.next()).await,
            };
            let event = match next {
                Ok(Some(event)) => Some(event),
                Ok(None) => break,
                Err(_) => None,
            };
            if let Some(lost) = quota.renewed(Instant::now()) {
                shared.tell(&VmEvent::lost(lost));
            }
            if let Some(event) = event.filter(|_| quota.admits()) {
                shared.tell(&event);
            }
        }
        if quota.lost > 0 {
            shared.tell(&VmEvent::lost(quota.lost));
        }
        // Nobody waits any more when it took too long.
        let _ = teller.send(());
    });
    told
}

/// How many events may still be written down.
#[derive(Debug)]
struct Quota {
    begun: Instant,
    written: u32,
    /// How many were not.
    lost: u64,
}

impl Quota {
    fn new(now: Instant) -> Self {
        Self {
            begun: now,
            written: 0,
            lost: 0,
        }
    }

    /// How many were lost in a time that is over now, if any were.
    fn renewed(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.begun) < SECOND {
            return None;
        }
        let lost = self.lost;
        *self = Self::new(now);
        (lost > 0).then_some(lost)
    }

    /// Whether another one may be.
    fn admits(&mut self) -> bool {
        match self.written < PER_SECOND {
            true => self.written = self.written.saturating_add(1),
            false => self.lost = self.lost.saturating_add(1),
        }
        self.lost == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_in_a_second_is_counted_and_told_in_the_next() {
        let begun = Instant::now();
        let mut quota = Quota::new(begun);
        let admitted = (0..PER_SECOND + 30).filter(|_| quota.admits()).count();
        assert_eq!(admitted, usize::try_from(PER_SECOND).unwrap());
        assert_eq!(quota.renewed(begun + SECOND / 2), None);
        assert!(!quota.admits());
        assert_eq!(quota.renewed(begun + SECOND), Some(31));
        assert!(quota.admits());
        assert_eq!(quota.renewed(begun + 3 * SECOND), None);
    }
}
