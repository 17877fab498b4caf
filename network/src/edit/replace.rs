//! Byte strings that are replaced in a stream, wherever they are in it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::filter::{Broken, Filter};

/// What is looked for. Its bytes are cleared when nobody needs them any more, and not
/// shown: they may be of a secret.
pub(super) struct Replacement {
    /// The bytes; not empty.
    pub(super) find: Zeroizing<Vec<u8>>,
    /// What takes their place.
    pub(super) with: Zeroizing<Vec<u8>>,
    /// Whose they are: what [`Replacer::hits`] counts.
    pub(super) owner: usize,
}

/// Byte strings, prepared for the search.
///
/// Of those that are found at one place the longest counts, and of two that overlap the
/// first.
pub(super) struct Table {
    /// Sorted, so that the longest one at a place is the last one that fits.
    all: Vec<Replacement>,
    /// Which of them begin with this byte.
    buckets: Vec<Range<usize>>,
    /// Whether one of them begins with these two bytes: one bit each.
    pairs: Vec<u64>,
    longest: usize,
    owners: usize,
}

impl Table {
    /// Prepares a search. What is empty is passed over; of two that are equal the first
    /// counts.
    pub(super) fn new(mut all: Vec<Replacement>) -> Arc<Self> {
        all.retain(|one| !one.find.is_empty());
        // Stable, so that the first stays the first.
        all.sort_by(|a, b| a.find.cmp(&b.find));
        all.dedup_by(|second, first| second.find == first.find);
        let mut pairs = vec![0_u64; 1024];
        for one in &all {
            let [first, rest @ ..] = one.find.as_slice() else {
                continue;
            };
            let seconds = match rest.first() {
                Some(second) => *second..=*second,
                None => 0..=u8::MAX,
            };
            for second in seconds {
                let (word, bit) = position(*first, second);
                if let Some(word) = pairs.get_mut(word) {
                    *word |= bit;
                }
            }
        }
        let begins = |byte: u8| {
            let before = |one: &Replacement| one.find.first().is_some_and(|first| *first < byte);
            all.partition_point(before)
        };
        let buckets = (0..=u8::MAX).map(|byte| match byte.checked_add(1) {
            Some(next) => begins(byte)..begins(next),
            None => begins(byte)..all.len(),
        });
        Arc::new(Self {
            buckets: buckets.collect(),
            pairs,
            longest: all.iter().map(|one| one.find.len()).max().unwrap_or(0),
            owners: all.iter().map(|one| one.owner + 1).max().unwrap_or(0),
            all,
        })
    }

    /// Whether there is nothing to look for.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn beginning_with(&self, byte: u8) -> &[Replacement] {
        let range = self.buckets.get(usize::from(byte)).cloned();
        range
            .and_then(|range| self.all.get(range))
            .unwrap_or_default()
    }

    /// The longest one with which these bytes begin.
    fn at(&self, bytes: &[u8]) -> Option<&Replacement> {
        let fits = |one: &&Replacement| bytes.starts_with(&one.find);
        self.beginning_with(*bytes.first()?)
            .iter()
            .rev()
            .find(|one| fits(one))
    }

    /// The first one in these bytes, and where it begins.
    fn find(&self, bytes: &[u8]) -> Option<(usize, &Replacement)> {
        let pairs = bytes.windows(2).enumerate();
        for (start, pair) in pairs {
            let [first, second] = pair else { continue };
            let (word, bit) = position(*first, *second);
            if self.pairs.get(word).is_some_and(|word| word & bit != 0) {
                let found = bytes.get(start..).and_then(|rest| self.at(rest));
                if let Some(found) = found {
                    return Some((start, found));
                }
            }
        }
        let last = bytes.len().checked_sub(1)?;
        let found = self.at(bytes.get(last..)?)?;
        Some((last, found))
    }

    /// Where the last bytes begin that could be the begin of one, if more follow.
    fn open_end(&self, bytes: &[u8]) -> usize {
        let from = bytes.len().saturating_sub(self.longest.saturating_sub(1));
        let is_begin = |start: &usize| {
            let Some(end) = bytes.get(*start..) else {
                return false;
            };
            let Some(first) = end.first() else {
                return false;
            };
            self.beginning_with(*first)
                .iter()
                .any(|one| one.find.len() > end.len() && one.find.starts_with(end))
        };
        (from..bytes.len()).find(is_begin).unwrap_or(bytes.len())
    }

    /// Whether one of them is in the name of a header, which has lost its upper case.
    pub(super) fn is_in_name(&self, name: &str) -> bool {
        let is_in = |one: &Replacement| {
            let mut windows = name.as_bytes().windows(one.find.len());
            windows.any(|window| window.eq_ignore_ascii_case(&one.find))
        };
        self.all.iter().any(is_in)
    }

    /// All in bytes that are all there, and where they are.
    pub(super) fn matches<'a>(
        &'a self,
        bytes: &'a [u8],
    ) -> impl Iterator<Item = (Range<usize>, &'a Replacement)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let (start, one) = self.find(bytes.get(done..)?)?;
            let start = done + start;
            done = start + one.find.len();
            Some((start..done, one))
        })
    }

    /// Replaces in bytes that are all there, and tells how often. None if there is nothing
    /// to replace.
    pub(super) fn replace(&self, bytes: &[u8]) -> Option<(Vec<u8>, u64)> {
        let (mut out, mut done, mut count) = (Vec::new(), 0, 0);
        for (range, one) in self.matches(bytes) {
            out.extend_from_slice(bytes.get(done..range.start).unwrap_or_default());
            out.extend_from_slice(&one.with);
            done = range.end;
            count += 1;
        }
        out.extend_from_slice(bytes.get(done..).unwrap_or_default());
        (count > 0).then_some((out, count))
    }
}

/// The word and the bit of two bytes.
fn position(first: u8, second: u8) -> (usize, u64) {
    let number = u16::from_be_bytes([first, second]);
    (usize::from(number >> 6), 1 << (number & 63))
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.all.len();
        f.debug_struct("Table")
            .field("count", &count)
            .finish_non_exhaustive()
    }
}

/// Replaces in a stream. What it keeps is shorter than the longest byte string, and only
/// what could be the begin of one: the rest is passed on at once.
#[derive(Debug)]
pub(super) struct Replacer {
    table: Arc<Table>,
    kept: Zeroizing<Vec<u8>>,
    hits: Vec<u64>,
}

impl Replacer {
    pub(super) fn new(table: Arc<Table>) -> Self {
        Self {
            kept: Zeroizing::new(Vec::new()),
            hits: vec![0; table.owners],
            table,
        }
    }

    /// What it looks for.
    pub(super) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// How often something of each owner was found.
    pub(super) fn hits(&self) -> &[u64] {
        &self.hits
    }

    /// How often anything was found.
    pub(super) fn count(&self) -> u64 {
        self.hits.iter().sum()
    }

    fn run(&mut self, bytes: &[u8], is_end: bool, out: &mut Vec<u8>) -> Zeroizing<Vec<u8>> {
        let mut rest = bytes;
        loop {
            let open = match is_end {
                true => rest.len(),
                false => self.table.open_end(rest),
            };
            // What is found before the open end is decided, and so is whatever is between.
            let mut moved = false;
            let mut done = 0;
            while let Some((start, one)) = rest.get(done..).and_then(|rest| self.table.find(rest)) {
                let start = done + start;
                if start >= open {
                    break;
                }
                out.extend_from_slice(rest.get(done..start).unwrap_or_default());
                out.extend_from_slice(&one.with);
                if let Some(hits) = self.hits.get_mut(one.owner) {
                    *hits += 1;
                }
                done = start + one.find.len();
                if done > open {
                    moved = true;
                    break;
                }
            }
            if moved {
                // It reached into the open end, which therefore is another one now.
                rest = rest.get(done..).unwrap_or_default();
                continue;
            }
            out.extend_from_slice(rest.get(done..open).unwrap_or_default());
            return Zeroizing::new(rest.get(open..).unwrap_or_default().to_vec());
        }
    }
}

impl Filter for Replacer {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let mut kept = std::mem::take(&mut self.kept);
        self.kept = if kept.is_empty() {
            self.run(bytes, false, out)
        } else {
            kept.extend_from_slice(bytes);
            self.run(&kept, false, out)
        };
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        let kept = std::mem::take(&mut self.kept);
        self.run(&kept, true, out);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pairs of texts as a table, each its own owner.
    pub(in super::super) fn table(pairs: &[(&[u8], &[u8])]) -> Arc<Table> {
        let all = pairs
            .iter()
            .enumerate()
            .map(|(owner, (find, with))| Replacement {
                find: Zeroizing::new(find.to_vec()),
                with: Zeroizing::new(with.to_vec()),
                owner,
            });
        Table::new(all.collect())
    }

    /// All that comes out of a filter that gets these pieces.
    pub(in super::super) fn filtered<'a>(
        filter: &mut dyn Filter,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in pieces {
            filter.push(piece, &mut out).unwrap();
        }
        filter.finish(&mut out).unwrap();
        out
    }

    /// The same on all bytes at once, as plainly as it can be written.
    fn naive(pairs: &[(Vec<u8>, Vec<u8>)], bytes: &[u8]) -> (Vec<u8>, u64) {
        let (mut out, mut at, mut count) = (Vec::new(), 0, 0);
        while at < bytes.len() {
            let mut longest: Option<&(Vec<u8>, Vec<u8>)> = None;
            for pair in pairs {
                let longer = longest.is_none_or(|longest| pair.0.len() > longest.0.len());
                if !pair.0.is_empty() && bytes[at..].starts_with(&pair.0) && longer {
                    longest = Some(pair);
                }
            }
            match longest {
                Some((find, with)) => {
                    out.extend_from_slice(with);
                    at += find.len();
                    count += 1;
                }
                None => {
                    out.push(bytes[at]);
                    at += 1;
                }
            }
        }
        (out, count)
    }

    /// Few letters, so that strings overlap and contain each other.
    fn letters(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(&b"aab"[..]), len)
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            pairs in prop::collection::vec((letters(0..6), letters(0..4)), 0..5),
            bytes in letters(0..60),
            steps in prop::collection::vec(1_usize..9, 1..20),
        ) {
            let borrowed: Vec<(&[u8], &[u8])> =
                pairs.iter().map(|(find, with)| (&find[..], &with[..])).collect();
            let table = table(&borrowed);
            let (expected, count) = naive(&pairs, &bytes);
            let whole = table.replace(&bytes).unwrap_or((bytes.clone(), 0));
            prop_assert_eq!(&whole, &(expected.clone(), count));
            let mut replacer = Replacer::new(table);
            let (mut out, mut rest, mut steps) = (Vec::new(), &bytes[..], steps.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(*steps.next().unwrap()));
                replacer.push(piece, &mut out).unwrap();
                prop_assert!(replacer.kept.len() < replacer.table.longest.max(1));
                rest = after;
            }
            replacer.finish(&mut out).unwrap();
            prop_assert_eq!(out, expected);
            prop_assert_eq!(replacer.count(), count);
        }
    }

    #[test]
    fn the_longest_counts_and_nothing_is_replaced_twice() {
        let table = table(&[(b"KEY", b"1"), (b"KEY_2", b"KEY"), (b"Y_", b"3")]);
        for step in 1..8 {
            let bytes = b"KEYKEY_2 KEY_ KE";
            let mut replacer = Replacer::new(Arc::clone(&table));
            let out = filtered(&mut replacer, bytes.chunks(step));
            assert_eq!(out, b"1KEY 1_ KE");
            assert_eq!(replacer.hits(), [2, 1, 0]);
        }
    }

    #[test]
    fn what_cannot_be_a_begin_is_passed_on_at_once() {
        let table = table(&[(b"SECRET", b"x")]);
        let mut replacer = Replacer::new(table);
        let mut out = Vec::new();
        replacer.push(b"data: hello\n\n", &mut out).unwrap();
        assert_eq!(out, b"data: hello\n\n");
        replacer.push(b"SEC", &mut out).unwrap();
        assert_eq!(out, b"data: hello\n\n");
        replacer.push(b"OND", &mut out).unwrap();
        assert_eq!(out, b"data: hello\n\nSECOND");
    }

    #[test]
    fn nothing_of_it_is_shown() {
        let table = table(&[(b"hunter2hunter2", b"x")]);
        assert!(!format!("{:?}", Replacer::new(table)).contains("hunter"));
    }
}
