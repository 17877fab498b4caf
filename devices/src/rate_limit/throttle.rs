//! A limiter with a clock and a timer.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use flashpan_protocol::control::IoRate;
use vmm_sys_util::timerfd::TimerFd;

use super::RateLimiter;

/// What tells the time.
type Clock = Box<dyn Fn() -> Instant + Send>;

/// The limits of a device, and what wakes it when it may go on.
///
/// A device asks [`Self::holds`] before it serves a queue and calls [`Self::spend`]
/// for every request; where either says so it stops, and the timer is set. An
/// event loop watches the descriptor, calls [`Self::expired`] when it is readable,
/// and has the device serve its queues.
///
/// Time that the machine stands still counts, up to the burst. A timer that goes
/// off meanwhile is reported when the descriptor is watched again.
pub struct Throttle {
    limiter: RateLimiter,
    timer: TimerFd,
    armed: bool,
    clock: Clock,
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle")
            .field("limiter", &self.limiter)
            .field("armed", &self.armed)
            .finish_non_exhaustive()
    }
}

impl Throttle {
    /// With full buckets; `None` if `rate` limits nothing.
    ///
    /// # Errors
    /// If the host gives no timer.
    pub fn new(rate: IoRate) -> io::Result<Option<Self>> {
        Self::with_clock(rate, Box::new(Instant::now))
    }

    /// The same by another clock. The timer is always the host's.
    pub(crate) fn with_clock(rate: IoRate, clock: Clock) -> io::Result<Option<Self>> {
        let Some(limiter) = RateLimiter::new(rate, clock()) else {
            return Ok(None);
        };
        Ok(Some(Self {
            limiter,
            timer: TimerFd::new()?,
            armed: false,
            clock,
        }))
    }

    /// Counts one request with so many bytes of data. True if it has to be the last
    /// one for now.
    pub fn spend(&mut self, bytes: u64) -> bool {
        let now = (self.clock)();
        self.limiter.spend(bytes, now);
        self.limiter.wait(now).is_some()
    }

    /// Whether no request may be served now. The timer is set then.
    ///
    /// # Errors
    /// If the timer cannot be set: nothing would have the device go on.
    pub fn holds(&mut self) -> io::Result<bool> {
        let Some(wait) = self.limiter.wait((self.clock)()) else {
            return Ok(false);
        };
        // One that is set already goes off, perhaps early: a kick may have had
        // requests served meanwhile. It is set again then.
        if !self.armed {
            self.timer.reset(wait, None)?;
            self.armed = true;
        }
        Ok(true)
    }

    /// The timer has gone off: it is not readable any more.
    pub fn expired(&mut self) {
        // Setting it, even to never, takes the report back. It fails only for values
        // that are out of range.
        let _ = self.timer.clear();
        self.armed = false;
    }
}

impl AsRawFd for Throttle {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
