//! What is told of a source: how it is, when that has changed, and not too often.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::secret_event::SecretState;

/// How fast things are told, and tried again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// How long something may be wrong before it is told: what replaces a file may take it
    /// away first.
    pub(super) grace: Duration,
    /// In this time, what is told of a source is limited.
    pub(super) within: Duration,
    /// After this time what could not be watched is tried again.
    pub(super) retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(2),
            within: Duration::from_secs(60),
            retry: Duration::from_secs(60),
        }
    }
}

/// How often something is told of one source in [`Pace::within`]. Then only how it is at its
/// end.
pub(super) const MOST: usize = 4;

/// How a source is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct How {
    /// How many values it has had.
    values: u64,
    /// What is wrong with it.
    wrong: Option<String>,
}

/// How a source is, and what was told of it.
#[derive(Debug, Default)]
pub(super) struct Told {
    now: How,
    /// Since when.
    since: Option<Instant>,
    told: How,
    /// When the last were told.
    recent: VecDeque<Instant>,
}

impl Told {
    /// It has another value, which was taken.
    pub(super) fn refreshed(&mut self) {
        let values = self.now.values.saturating_add(1);
        self.set(How {
            values,
            wrong: None,
        });
    }

    /// It is as it should be.
    pub(super) fn right(&mut self) {
        let values = self.now.values;
        self.set(How {
            values,
            wrong: None,
        });
    }

    /// Something is wrong with it.
    pub(super) fn wrong(&mut self, why: String) {
        let values = self.now.values;
        self.set(How {
            values,
            wrong: Some(why),
        });
    }

    pub(super) fn is_wrong(&self) -> bool {
        self.now.wrong.is_some()
    }

    fn set(&mut self, how: How) {
        if self.now != how {
            // How long something has been wrong, whatever that is.
            if !(self.now.wrong.is_some() && how.wrong.is_some()) {
                self.since = Some(Instant::now());
            }
            self.now = how;
        }
    }

    /// When there is something to be told, if there is.
    pub(super) fn due(&self, pace: &Pace) -> Option<Instant> {
        if self.now == self.told {
            return None;
        }
        let since = self.since?;
        let settled = match &self.now.wrong {
            Some(_) => since.checked_add(pace.grace)?,
            None => since,
        };
        let full = self.recent.len() >= MOST;
        let oldest = self.recent.front().filter(|_| full);
        let free = oldest.and_then(|oldest| oldest.checked_add(pace.within));
        Some(free.map_or(settled, |free| free.max(settled)))
    }

    /// What is to be told now, and why, if it is wrong.
    pub(super) fn take(&mut self, pace: &Pace) -> Option<(SecretState, Option<String>)> {
        let now = Instant::now();
        if self.due(pace)? > now {
            return None;
        }
        if self.recent.len() >= MOST {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        let state = match (&self.now.wrong, self.now.values == self.told.values) {
            (Some(_), _) => SecretState::Kept,
            (None, true) => SecretState::Followed,
            (None, false) => SecretState::Refreshed,
        };
        self.told = self.now.clone();
        Some((state, self.now.wrong.clone()))
    }
}
