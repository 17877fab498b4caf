//! The way out of a terminal whose keys all go to a guest: Ctrl-] three times
//! within one second, as systemd-nspawn has it.

use std::time::{Duration, Instant};

/// What terminals send for Ctrl-].
const KEY: u8 = 0x1d;

/// How long the three may take.
const WITHIN: Duration = Duration::from_secs(1);

/// Watches keys on their way to the guest. It holds none of them back: those of a
/// sequence that is never completed are the guest's like any other.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    /// When the key was pressed the last two times, without another in between.
    earlier: [Option<Instant>; 2],
}

impl Escape {
    /// Looks at what was read at `now`; whether the third key is in it.
    pub(crate) fn is_completed_by(&mut self, keys: &[u8], now: Instant) -> bool {
        for key in keys {
            if *key != KEY {
                self.earlier = [None; 2];
                continue;
            }
            let [first, second] = self.earlier;
            if first.is_some_and(|first| now.saturating_duration_since(first) <= WITHIN) {
                return true;
            }
            self.earlier = [second, Some(now)];
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether keys, each read so many milliseconds after the start, end the run.
    fn ends(reads: &[(u64, &[u8])]) -> bool {
        let start = Instant::now();
        let mut escape = Escape::default();
        let mut completed = |(after, keys): &(u64, &[u8])| {
            escape.is_completed_by(keys, start + Duration::from_millis(*after))
        };
        let (last, before) = reads.split_last().unwrap();
        assert!(!before.iter().any(&mut completed), "{reads:?}");
        completed(last)
    }

    #[test]
    fn three_within_a_second_end_it_however_they_are_read() {
        assert!(ends(&[(0, b"\x1d\x1d\x1d")]));
        assert!(ends(&[(0, b"\x1d"), (400, b"\x1d"), (1000, b"\x1d")]));
        assert!(ends(&[(0, b"ls\r\x1d"), (900, b"\x1d\x1d more")]));
    }

    #[test]
    fn fewer_or_slower_or_others_in_between_do_not() {
        assert!(!ends(&[(0, b"\x1d\x1d")]));
        assert!(!ends(&[(0, b"\x1d"), (500, b"\x1d"), (1001, b"\x1d")]));
        assert!(!ends(&[(0, b"\x1d\x1d"), (1, b"x"), (2, b"\x1d")]));
        assert!(!ends(&[(0, b"\x1dx\x1dx\x1dx\x1d")]));
        assert!(!ends(&[(0, b"")]));
    }

    #[test]
    fn any_three_in_a_row_count_not_only_those_after_the_first() {
        let slow: (u64, &[u8]) = (0, b"\x1d");
        assert!(ends(&[
            slow,
            (900, b"\x1d"),
            (1100, b"\x1d"),
            (1200, b"\x1d")
        ]));
    }
}
