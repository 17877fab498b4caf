//! Limits of a device's I/O: bytes and operations in a second, each by a bucket
//! of tokens.
//!
//! A bucket is filled steadily and holds no more than its burst. A request is let
//! in while there is anything in both buckets, and takes all that it costs: one
//! that is larger than the bucket leaves a debt, for which later ones wait. So in
//! any time at most the burst, what the rate brings in that time, and one request
//! are let in, and no request is too large ever to be.
//!
//! [`RateLimiter`] is the arithmetic, to which the time is told. [`Throttle`] is
//! what a device has: a limiter with a clock, and a timer that goes off when there
//! are tokens again. The device stops serving its queue until then, and nothing
//! polls.

mod bucket;
mod throttle;

use std::time::{Duration, Instant};

use flashpan_protocol::control::IoRate;

use bucket::Bucket;

pub use throttle::Throttle;

#[cfg(test)]
mod tests;

/// The two buckets of a device.
#[derive(Debug, Clone)]
pub struct RateLimiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl RateLimiter {
    /// A limiter whose buckets are full at `now`; `None` if `rate` limits nothing.
    #[must_use]
    pub fn new(rate: IoRate, now: Instant) -> Option<Self> {
        let bucket = |rate| Bucket::new(rate, now);
        let (bytes, operations) = (rate.bytes.map(bucket), rate.operations.map(bucket));
        (bytes.is_some() || operations.is_some()).then_some(Self { bytes, operations })
    }

    /// Takes one operation and `bytes` out of the buckets, which may become less
    /// than empty by that.
    pub fn spend(&mut self, bytes: u64, now: Instant) {
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(bytes, now);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.spend(1, now);
        }
    }

    /// How long to wait before the next request is let in; `None` if it is now.
    /// That is not the shortest time possible, but long enough for more than one
    /// small request.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let buckets = [&mut self.bytes, &mut self.operations];
        let waits = buckets.into_iter().flatten();
        waits.filter_map(|bucket| bucket.wait(now)).max()
    }
}
