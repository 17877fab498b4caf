//! The arithmetic, by a clock of the test's.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use flashpan_protocol::control::{IoRate, Rate};
use proptest::prelude::*;

use super::RateLimiter;

const SECOND: Duration = Duration::from_secs(1);

fn rate(per_second: u64, burst: u64) -> Option<Rate> {
    let number = |n| NonZeroU64::new(n).unwrap();
    Some(Rate {
        per_second: number(per_second),
        burst: number(burst),
    })
}

fn bytes(per_second: u64, burst: u64, now: Instant) -> RateLimiter {
    let bytes = rate(per_second, burst);
    let operations = None;
    RateLimiter::new(IoRate { bytes, operations }, now).unwrap()
}

fn operations(per_second: u64, burst: u64, now: Instant) -> RateLimiter {
    let operations = rate(per_second, burst);
    let bytes = None;
    RateLimiter::new(IoRate { bytes, operations }, now).unwrap()
}

#[test]
fn without_limits_there_is_nothing() {
    assert!(RateLimiter::new(IoRate::default(), Instant::now()).is_none());
}

/// The burst at once, then what the rate brings.
#[test]
fn a_burst_and_then_the_rate() {
    let start = Instant::now();
    let mut limiter = operations(100, 3, start);
    for _ in 0..3 {
        assert_eq!(limiter.wait(start), None);
        limiter.spend(1 << 40, start);
    }
    // Five milliseconds are half an operation: it rests for no more than that.
    let wait = Duration::from_millis(5);
    assert_eq!(limiter.wait(start), Some(wait));
    assert_eq!(limiter.wait(start + wait), None);
    limiter.spend(0, start + wait);
    // That was a half more than there was, and is paid back.
    assert_eq!(limiter.wait(start + wait), Some(2 * wait));
    assert_eq!(limiter.wait(start + 2 * wait), Some(wait));
    assert_eq!(limiter.wait(start + 3 * wait), None);
}

/// A bucket that was left alone for long holds no more than its burst.
#[test]
fn rest_is_worth_no_more_than_the_burst() {
    let start = Instant::now();
    let mut limiter = bytes(10, 20, start);
    let later = start + 1000 * SECOND;
    limiter.spend(19, later);
    assert_eq!(limiter.wait(later), None);
    limiter.spend(1, later);
    assert!(limiter.wait(later).is_some());
}

/// A request of ten seconds is let in at once, and paid for by those that follow.
#[test]
fn what_is_larger_than_the_bucket_leaves_a_debt() {
    let start = Instant::now();
    let mut limiter = bytes(1000, 1000, start);
    limiter.spend(11_000, start);
    let wait = limiter.wait(start).unwrap();
    assert!(wait >= 10 * SECOND, "{wait:?}");
    assert!(limiter.wait(start + 10 * SECOND).is_some());
    assert_eq!(limiter.wait(start + wait), None);
    // Not a whole second of tokens, which a debt would have eaten.
    limiter.spend(11_000, start + wait);
    assert!(limiter.wait(start + wait + 10 * SECOND).is_some());
}

/// The bucket that is empty for longer counts.
#[test]
fn both_limits_hold() {
    let start = Instant::now();
    let (bytes, operations) = (rate(1000, 1000), rate(2, 2));
    let mut limiter = RateLimiter::new(IoRate { bytes, operations }, start).unwrap();
    limiter.spend(3000, start);
    assert!(limiter.wait(start).unwrap() > 2 * SECOND);
    let later = start + 4 * SECOND;
    assert_eq!(limiter.wait(later), None);
    limiter.spend(0, later);
    limiter.spend(0, later);
    limiter.spend(0, later);
    assert!(limiter.wait(later).unwrap() > SECOND / 2);
    assert!(limiter.wait(later).unwrap() < SECOND);
}

#[test]
fn a_clock_that_goes_back_brings_nothing() {
    let start = Instant::now() + 10 * SECOND;
    let mut limiter = bytes(1000, 1000, start);
    limiter.spend(1000, start);
    assert!(limiter.wait(start - 5 * SECOND).is_some());
    // And what passes until it is where it was is not counted twice.
    assert!(limiter.wait(start).is_some());
    assert_eq!(limiter.wait(start + SECOND), None);
}

/// The largest numbers that can be: no wait is so long that a timer refuses it, and
/// nothing overflows.
#[test]
fn extremes() {
    let start = Instant::now();
    let ages = Duration::from_secs(1 << 40);
    for (per_second, burst) in [(1, 1), (1, u64::MAX), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
        let mut limiter = bytes(per_second, burst, start);
        for _ in 0..1000 {
            limiter.spend(u64::MAX, start);
        }
        let wait = limiter.wait(start).unwrap();
        assert!(!wait.is_zero() && wait <= 3600 * SECOND, "{wait:?}");
        let later = start + ages;
        limiter.wait(later);
        limiter.spend(u64::MAX, later);
        limiter.wait(later);
    }
}

proptest! {
    /// Requests of any size at any time, each served as soon as it may be and asked
    /// for again when the limiter says so: in any stretch of time no more than the
    /// burst, what the rate brings and one request are let in, and every one is at
    /// last.
    #[test]
    fn no_stretch_of_time_has_more_than_its_share(
        per_second in 1_u64..5_000_000_000,
        burst in 1_u64..10_000_000,
        requests in prop::collection::vec((0_u64..3_000_000_000, 0_u64..20_000_000), 1..40),
    ) {
        const NANOS: u128 = 1_000_000_000;
        let start = Instant::now();
        let mut limiter = bytes(per_second, burst, start);
        let mut now = start;
        let mut admitted: Vec<(Instant, u128)> = Vec::new();
        for (pause, size) in requests {
            now += Duration::from_nanos(pause);
            // As long as one wait may be, times more than any debt here.
            let mut waits = 0;
            while let Some(wait) = limiter.wait(now) {
                prop_assert!(!wait.is_zero());
                now += wait;
                waits += 1;
                prop_assert!(waits <= 1 + 20_000_000 / 3600, "starved");
            }
            limiter.spend(size, now);
            admitted.push((now, size.into()));
        }
        for (first, (from, _)) in admitted.iter().enumerate() {
            let mut sum = 0;
            for (to, size) in &admitted[first..] {
                sum += size;
                let time = (*to - *from).as_nanos();
                let share = u128::from(burst) * NANOS + u128::from(per_second) * time;
                prop_assert!(sum * NANOS <= share + size * NANOS, "{sum} in {time} ns");
            }
        }
    }

    /// Somebody who always has requests gets all that the rate brings: resting
    /// until there is enough for several costs nothing.
    #[test]
    fn nothing_of_the_rate_is_lost(
        per_second in 1_u64..100_000_000,
        burst in 1_u64..1_000_000,
        size in 1_u64..1_000_000,
    ) {
        let start = Instant::now();
        let mut limiter = bytes(per_second, burst, start);
        let (mut now, mut sum) = (start, 0_u128);
        for _ in 0..200 {
            while let Some(wait) = limiter.wait(now) {
                now += wait;
            }
            limiter.spend(size, now);
            sum += u128::from(size);
        }
        let brought = u128::from(per_second) * (now - start).as_nanos() / 1_000_000_000;
        // A bucket that is left alone until it is full may overflow for a nanosecond.
        let lost = 1 + 200 * u128::from(per_second) / 1_000_000_000;
        prop_assert!(sum + lost >= brought, "{sum} of {brought}");
    }
}
