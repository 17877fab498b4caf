//! What an entropy device has done.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counters of a [`super::Rng`], shared with whoever wants to read them.
#[derive(Debug, Default)]
pub struct RngMetrics {
    pub(super) requests: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngStatistics {
    /// Requests that were answered.
    pub requests: u64,
    /// Random bytes in the answers.
    pub bytes: u64,
}

impl RngMetrics {
    /// Reads all counters. They are independent of each other.
    #[must_use]
    pub fn read(&self) -> RngStatistics {
        RngStatistics {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}
