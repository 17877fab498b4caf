//! A guest's events, written down no faster than is good for the host.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::events::{Events, VmEvent, VmEventKind};
use crate::supervise::life::Shared;

/// Most events of programs that are written down in a second: of those that are run through
/// the agent, two each. A guest that says more lies, or is told to.
const PER_SECOND: u32 = 400;

/// Most events of the network, for themselves: any program can make as many as it likes, and
/// must not push out what is told of programs.
const NETWORK_PER_SECOND: u32 = 100;

/// The time in which so many count.
const SECOND: Duration = Duration::from_secs(1);

/// Passes what happens in the guest to who writes it down. Tells when that was all.
pub(super) fn tell(mut events: Events, shared: Arc<Shared>) -> oneshot::Receiver<()> {
    let (teller, told) = oneshot::channel();
    tokio::spawn(async move {
        let mut quota = Quota::new(PER_SECOND, Instant::now());
        let mut of_network = Quota::new(NETWORK_PER_SECOND, Instant::now());
        loop {
            let next = match quota.lost.saturating_add(of_network.lost) {
                0 => Ok(events.next().await),
                // What is lost is told soon, also if nothing follows.
                _ => timeout(SECOND, events.next()).await,
            };
            let event = match next {
                Ok(Some(event)) => Some(event),
                Ok(None) => break,
                Err(_) => None,
            };
            for quota in [&mut quota, &mut of_network] {
                if let Some(lost) = quota.renewed(Instant::now()) {
                    shared.tell(&VmEvent::lost(lost));
                }
            }
            let Some(event) = event else { continue };
            let quota = match event.kind {
                VmEventKind::Network(_) => &mut of_network,
                _ => &mut quota,
            };
            if quota.admits() {
                shared.tell(&event);
            }
        }
        let lost = quota.lost.saturating_add(of_network.lost);
        if lost > 0 {
            shared.tell(&VmEvent::lost(lost));
        }
        // Nobody waits any more when it took too long.
        let _ = teller.send(());
    });
    told
}

/// How many events may still be written down.
#[derive(Debug)]
struct Quota {
    most: u32,
    begun: Instant,
    written: u32,
    /// How many were not.
    lost: u64,
}

impl Quota {
    fn new(most: u32, now: Instant) -> Self {
        Self {
            most,
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
        *self = Self::new(self.most, now);
        (lost > 0).then_some(lost)
    }

    /// Whether another one may be.
    fn admits(&mut self) -> bool {
        match self.written < self.most {
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
        let mut quota = Quota::new(PER_SECOND, begun);
        let admitted = (0..PER_SECOND + 30).filter(|_| quota.admits()).count();
        assert_eq!(admitted, usize::try_from(PER_SECOND).unwrap());
        assert_eq!(quota.renewed(begun + SECOND / 2), None);
        assert!(!quota.admits());
        assert_eq!(quota.renewed(begun + SECOND), Some(31));
        assert!(quota.admits());
        assert_eq!(quota.renewed(begun + 3 * SECOND), None);
    }
}
