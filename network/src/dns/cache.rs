//! What was answered, and what is being asked: a question that several have is asked once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::OnceCell;

use super::resolver::ResolveError;
use crate::host::Name;

/// Most answers that are kept.
const MAX: usize = 2048;

/// Which addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn has(self, address: &IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

/// An answer, which may be that there is none.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) found: Result<Vec<IpAddr>, ResolveError>,
    pub(super) until: Instant,
}

/// An answer, or whoever asks for it. If those that ask give up, the next one asks.
pub(super) type Cell = Arc<OnceCell<Outcome>>;

#[derive(Debug, Default)]
pub(super) struct Cache {
    cells: Mutex<HashMap<(Name, Family), Cell>>,
}

impl Cache {
    /// The answer to this question, if it still counts, or a place for it.
    pub(super) fn cell(&self, name: &Name, family: Family, now: Instant) -> Cell {
        let counts = |cell: &Cell| cell.get().is_none_or(|outcome| outcome.until > now);
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.clone(), family);
        if let Some(cell) = cells.get(&key).filter(|cell| counts(cell)) {
            return Arc::clone(cell);
        }
        cells.remove(&key);
        if cells.len() >= MAX {
            // What nobody waits for, and what counts no longer.
            cells.retain(|_, cell| match cell.get() {
                Some(outcome) => outcome.until > now,
                None => Arc::strong_count(cell) > 1,
            });
        }
        if cells.len() >= MAX {
            let until = |cell: &Cell| cell.get().map(|outcome| outcome.until);
            let first = cells.iter().filter(|(_, cell)| cell.get().is_some());
            let first = first.min_by_key(|(_, cell)| until(cell));
            if let Some(first) = first.map(|(key, _)| key.clone()) {
                cells.remove(&first);
            }
        }
        let cell = Cell::default();
        // With everything being asked for there is no room; then each asks for itself.
        if cells.len() < MAX {
            cells.insert(key, Arc::clone(&cell));
        }
        cell
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    #[test]
    fn answers_are_kept_while_they_count_and_there_is_room() {
        let cache = Cache::default();
        let now = Instant::now();
        let name = |number: usize| -> Name { format!("n{number}.test").parse().unwrap() };
        let answer = |number: usize, seconds: u64| {
            let outcome = Outcome {
                found: Ok(Vec::new()),
                until: now + Duration::from_secs(seconds),
            };
            let cell = cache.cell(&name(number), Family::V4, now);
            cell.set(outcome).unwrap();
        };
        answer(0, 1);
        let is_known = |number: usize, seconds: u64| {
            let now = now + Duration::from_secs(seconds);
            cache.cell(&name(number), Family::V4, now).get().is_some()
        };
        assert!(is_known(0, 0));
        assert!(!is_known(0, 1), "it counts no longer");
        assert!(!Arc::ptr_eq(
            &cache.cell(&name(0), Family::V4, now),
            &cache.cell(&name(0), Family::V6, now),
        ));
        for number in 1..=MAX + 10 {
            answer(number, u64::try_from(number).unwrap() + 10);
        }
        assert!(is_known(MAX + 10, 0), "the newest");
        assert!(
            !is_known(1, 0),
            "what counts for the shortest time goes first"
        );
        assert!(cache.cells.lock().unwrap().len() <= MAX);
        // Those that are being asked for stay.
        let asked: Vec<Cell> = (0..MAX * 2)
            .map(|number| cache.cell(&name(number), Family::V6, now))
            .collect();
        assert!(Arc::ptr_eq(
            &asked[0],
            &cache.cell(&name(0), Family::V6, now)
        ));
        assert!(cache.cells.lock().unwrap().len() <= MAX);
    }
}
