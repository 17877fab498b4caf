//! How many questions there may be: each one that is passed on is a few bytes that leave
//! the host, whatever the policy allows.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::host::Name;

/// Questions that name servers are asked in a second, in the long run. A browser or a
/// package manager that starts asks a few hundred; nothing does all the time.
pub(super) const QUESTIONS_PER_SECOND: u32 = 100;

/// Questions that they are asked at once, after a while without.
pub(super) const QUESTIONS_AT_ONCE: u32 = 500;

/// The longest name that a glob allows, in bytes. Those of hosts of clouds have up to about
/// a hundred; data that somebody wants to get out takes all 253 there are.
pub(super) const MAX_GLOB_NAME: usize = 128;

/// New names that globs allow in a minute, in the long run. With the length that is about
/// a hundred bytes in a second, which remain as a way out to whom a guest may speak anyway.
pub(super) const GLOB_NAMES_PER_MINUTE: u32 = 60;

/// New names that globs allow at once, after a while without.
pub(super) const GLOB_NAMES_AT_ONCE: u32 = 120;

/// Names of globs that are known, and not new.
const MAX_KNOWN: usize = 4096;

/// So many in a while, and so many at once.
#[derive(Debug)]
pub(super) struct Bucket {
    /// What one takes to come back.
    each: Duration,
    most: u32,
    /// When it is full again.
    full: Mutex<Option<Instant>>,
}

impl Bucket {
    pub(super) fn new(count: u32, per: Duration, most: u32) -> Self {
        Self {
            each: per / count.max(1),
            most,
            full: Mutex::new(None),
        }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&self, now: Instant) -> bool {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let then = full.map_or(now, |full| full.max(now)) + self.each;
        let is_there = then.duration_since(now) <= self.each * self.most;
        if is_there {
            *full = Some(then);
        }
        is_there
    }
}

/// Which names a glob allows, besides those that it means: not too long, and not too many.
#[derive(Debug)]
pub(super) struct Spread {
    new: Bucket,
    known: Mutex<HashMap<Name, Instant>>,
}

impl Spread {
    pub(super) fn new() -> Self {
        let minute = Duration::from_secs(60);
        Self {
            new: Bucket::new(GLOB_NAMES_PER_MINUTE, minute, GLOB_NAMES_AT_ONCE),
            known: Mutex::default(),
        }
    }

    pub(super) fn allows(&self, name: &Name, now: Instant) -> bool {
        if name.as_str().len() > MAX_GLOB_NAME {
            return false;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = known.get_mut(name) {
            *used = now;
            return true;
        }
        if !self.new.take(now) {
            return false;
        }
        if known.len() >= MAX_KNOWN {
            let oldest = known.iter().min_by_key(|(_, used)| **used);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                known.remove(&oldest);
            }
        }
        known.insert(name.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_bucket_fills_again() {
        let bucket = Bucket::new(2, SECOND, 3);
        let start = Instant::now();
        let taken = |at: Duration| (0..10).filter(|_| bucket.take(start + at)).count();
        assert_eq!(taken(Duration::ZERO), 3);
        assert_eq!(taken(SECOND / 4), 0);
        assert_eq!(taken(SECOND), 2);
        assert_eq!(taken(SECOND * 100), 3);
    }

    #[test]
    fn a_glob_allows_so_many_new_names_and_no_long_ones() {
        let spread = Spread::new();
        let start = Instant::now();
        let name = |number: u32| -> Name { format!("n{number}.test").parse().unwrap() };
        let new = (0..1000).filter(|number| spread.allows(&name(*number), start));
        assert_eq!(new.count(), usize::try_from(GLOB_NAMES_AT_ONCE).unwrap());
        assert!(spread.allows(&name(0), start), "a known name is not new");
        let later = start + SECOND * 60;
        let new = (1000..2000).filter(|number| spread.allows(&name(*number), later));
        assert_eq!(new.count(), usize::try_from(GLOB_NAMES_PER_MINUTE).unwrap());
        let label = "a".repeat(60);
        let name: Name = format!("{label}.{label}.bb.test").parse().unwrap();
        assert_eq!(name.as_str().len(), MAX_GLOB_NAME + 1);
        assert!(!spread.allows(&name, later + SECOND * 60));
    }
}
