//! When to try again, and how long to wait before.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::error::{Again, Error, Failure};
use super::options::{Notice, Options};

/// The attempts at one thing.
#[derive(Debug)]
pub(super) struct Attempts<'a> {
    options: &'a Options,
    made: u32,
    most: u32,
}

impl<'a> Attempts<'a> {
    /// A mirror has less patience coming: there are others to ask.
    pub(super) fn new(options: &'a Options, mirror: bool) -> Self {
        let most = options.retry.attempts.max(1);
        Self {
            options,
            made: 0,
            most: if mirror { most.min(2) } else { most },
        }
    }

    /// Things went better than before: all attempts are to be had again.
    pub(super) fn renew(&mut self) {
        self.made = 0;
    }

    /// Waits until the time for the next attempt has come.
    ///
    /// # Errors
    ///
    /// The error of the last attempt, if there is no point in another, or if
    /// there were enough.
    pub(super) async fn wait(&mut self, failure: Failure) -> Result<(), Error> {
        self.made = self.made.saturating_add(1);
        let Again::After(wanted) = failure.again else {
            return Err(failure.error);
        };
        let retry = &self.options.retry;
        if self.made >= self.most || wanted.is_some_and(|wanted| wanted > retry.longest) {
            return Err(failure.error);
        }
        let wait = wanted.unwrap_or_else(|| back_off(self.made, retry.first, retry.longest));
        self.options.tell(&Notice::Retry {
            why: failure.error.to_string(),
            wait,
            made: self.made,
            most: self.most,
        });
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The wait after so many attempts: doubled each time, up to `longest`; the
/// second half of it is random, so that those who failed together do not come
/// back together.
fn back_off(made: u32, first: Duration, longest: Duration) -> Duration {
    let doubled = 2u32.saturating_pow(made.saturating_sub(1));
    let whole = first.saturating_mul(doubled).min(longest);
    let half = whole / 2;
    let random = u32::from(u16::try_from(random() & 0xffff).unwrap_or_default());
    half + half.saturating_mul(random) / 0xffff
}

/// Good enough for that: the keys of hash maps are random.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_are_half_random() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        for (made, whole) in [
            (1, 100),
            (2, 200),
            (3, 400),
            (4, 800),
            (5, 1000),
            (99, 1000),
        ] {
            let waits: Vec<_> = (0..50).map(|_| back_off(made, first, longest)).collect();
            let (half, whole) = (
                Duration::from_millis(whole / 2),
                Duration::from_millis(whole),
            );
            assert!(
                waits.iter().all(|wait| (half..=whole).contains(wait)),
                "{made}: {waits:?}"
            );
            assert!(
                waits.iter().any(|wait| wait != &waits[0]),
                "{made}: {waits:?}"
            );
        }
    }
}
