//! One bucket of tokens.

use std::time::{Duration, Instant};

use flashpan_protocol::control::Rate;

/// Parts of a token. What a rate brings in a nanosecond is a whole number of them,
/// so that nothing is ever rounded.
const PARTS: i128 = 1_000_000_000;

/// An empty bucket is left alone until it has what this time brings, or is full:
/// waking up for every token would cost more than the request that it is for.
const REST_NS: i128 = 5_000_000;

/// Longest wait. Whoever wakes up looks again, so that a longer one is several.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// See the [module](super).
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    /// Parts of a token that come in a nanosecond: as many as tokens in a second.
    rate: i128,
    /// What fits, in parts.
    burst: i128,
    /// What is there, in parts; less than 0 is a debt.
    level: i128,
    /// When that was so.
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        let burst = parts(rate.burst.get());
        Self {
            rate: rate.per_second.get().into(),
            burst,
            level: burst,
            at: now,
        }
    }

    /// Takes `tokens` out.
    pub(super) fn spend(&mut self, tokens: u64, now: Instant) {
        self.fill(now);
        self.level = self.level.saturating_sub(parts(tokens));
    }

    /// How long to leave it alone; `None` if there is something in it.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.fill(now);
        if self.level > 0 {
            return None;
        }
        let enough = self.rate.saturating_mul(REST_NS).min(self.burst);
        let missing = enough.saturating_sub(self.level).unsigned_abs();
        // A bucket's rate is not 0.
        let time = missing.div_ceil(self.rate.unsigned_abs().max(1));
        let time = Duration::from_nanos(u64::try_from(time).unwrap_or(u64::MAX));
        Some(time.min(MAX_WAIT))
    }

    /// Puts in what has come since the last time. A clock that goes back brings
    /// nothing.
    fn fill(&mut self, now: Instant) {
        let Some(passed) = now.checked_duration_since(self.at) else {
            return;
        };
        let passed = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
        let gained = passed.saturating_mul(self.rate);
        self.level = self.level.saturating_add(gained).min(self.burst);
        self.at = now;
    }
}

fn parts(tokens: u64) -> i128 {
    i128::from(tokens).saturating_mul(PARTS)
}
