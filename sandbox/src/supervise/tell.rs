//! A guest's events, written down no faster than is good for the host.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::events::{Events, VmEventKind};
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
        let mut quotas = Quotas::new(Instant::now());
        loop {
            let next = match quotas.are_kept() {
                true => Ok(events.next().await),
                // What is lost is told soon, also if nothing follows.
                false => timeout(SECOND, events.next()).await,
            };
            let event = match next {
                Ok(Some(event)) => Some(event),
                Ok(None) => break,
                Err(_) => None,
            };
            for (lost, is_of_network) in quotas.renewed(Instant::now()) {
                shared.lost(lost, is_of_network);
            }
            if let Some(event) = event
                && quotas.admit(&event.kind)
            {
                shared.tell(&event);
            }
        }
        for (lost, is_of_network) in quotas.lost() {
            shared.lost(lost, is_of_network);
        }
        // Nobody waits any more when it took too long.
        let _ = teller.send(());
    });
    told
}

/// How many events of each kind may still be written down.
#[derive(Debug)]
struct Quotas {
    programs: Quota,
    network: Quota,
}

impl Quotas {
    fn new(now: Instant) -> Self {
        Self {
            programs: Quota::new(PER_SECOND, now),
            network: Quota::new(NETWORK_PER_SECOND, now),
        }
    }

    /// Whether nothing was lost since the last second that was told of.
    fn are_kept(&self) -> bool {
        self.lost().next().is_none()
    }

    /// What was lost in a time that is over now, and whether it is of the network.
    fn renewed(&mut self, now: Instant) -> impl Iterator<Item = (u64, bool)> + use<> {
        let programs = self.programs.renewed(now).map(|lost| (lost, false));
        let network = self.network.renewed(now).map(|lost| (lost, true));
        programs.into_iter().chain(network)
    }

    /// What was lost and not told of yet, and whether it is of the network.
    fn lost(&self) -> impl Iterator<Item = (u64, bool)> + use<> {
        let lost = [(self.programs.lost, false), (self.network.lost, true)];
        lost.into_iter().filter(|(lost, _)| *lost > 0)
    }

    /// Whether another one may be.
    fn admit(&mut self, kind: &VmEventKind) -> bool {
        match kind {
            VmEventKind::Network(_) => self.network.admits(1),
            // It stands for others: not written, they are still missing. A guest that
            // tells of none takes room all the same.
            VmEventKind::Lost(count) => self.programs.admits((*count).max(1)),
            _ => self.programs.admits(1),
        }
    }
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

    /// Whether another one may be, which otherwise leaves so many missing.
    fn admits(&mut self, missing: u64) -> bool {
        match self.written < self.most {
            true => self.written = self.written.saturating_add(1),
            false => self.lost = self.lost.saturating_add(missing),
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
        let admitted = (0..PER_SECOND + 30).filter(|_| quota.admits(1)).count();
        assert_eq!(admitted, usize::try_from(PER_SECOND).unwrap());
        assert_eq!(quota.renewed(begun + SECOND / 2), None);
        assert!(!quota.admits(1));
        assert_eq!(quota.renewed(begun + SECOND), Some(31));
        assert!(quota.admits(1));
        assert_eq!(quota.renewed(begun + 3 * SECOND), None);
    }

    #[test]
    fn what_was_missing_before_is_counted_with_what_is_too_much() {
        let begun = Instant::now();
        let mut quotas = Quotas::new(begun);
        assert!(quotas.admit(&VmEventKind::Lost(1000)));
        for _ in 1..PER_SECOND {
            assert!(quotas.admit(&VmEventKind::Lost(1)));
        }
        for (count, lost) in [(1000, 1000), (1, 1001), (0, 1002), (u64::MAX, u64::MAX)] {
            assert!(!quotas.admit(&VmEventKind::Lost(count)));
            assert_eq!(quotas.lost().collect::<Vec<_>>(), [(lost, false)]);
        }
    }

    #[test]
    fn what_the_network_sees_takes_nothing_from_programs_and_is_told_as_its_own() {
        let begun = Instant::now();
        let mut quotas = Quotas::new(begun);
        let network = VmEventKind::Network(Arc::default());
        let of_program = VmEventKind::Lost(1);
        let admitted = (0..NETWORK_PER_SECOND + 7).filter(|_| quotas.admit(&network));
        assert_eq!(
            admitted.count(),
            usize::try_from(NETWORK_PER_SECOND).unwrap()
        );
        let admitted = (0..PER_SECOND).filter(|_| quotas.admit(&of_program));
        assert_eq!(admitted.count(), usize::try_from(PER_SECOND).unwrap());
        assert!(!quotas.are_kept());
        assert_eq!(quotas.lost().collect::<Vec<_>>(), [(7, true)]);
        assert_eq!(quotas.renewed(begun).count(), 0);
        let told: Vec<_> = quotas.renewed(begun + SECOND).collect();
        assert_eq!(told, [(7, true)]);
        assert!(quotas.are_kept());
    }
}
