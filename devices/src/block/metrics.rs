//! What a disk has done.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Counters of a [`super::Block`], shared with whoever wants to read them.
#[derive(Debug, Default)]
pub struct BlockMetrics {
    pub(super) reads: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) discards: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) no_space: AtomicU64,
    pub(super) yields: AtomicU64,
    pub(super) holds: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStatistics {
    /// Read requests that succeeded.
    pub reads: u64,
    /// Bytes that they read.
    pub read_bytes: u64,
    /// Write requests that succeeded.
    pub writes: u64,
    /// Bytes that they wrote.
    pub written_bytes: u64,
    /// Times that earlier writes were made durable.
    pub flushes: u64,
    /// Discard and write-zeroes requests that succeeded.
    pub discards: u64,
    /// Requests that were answered with an error.
    pub failures: u64,
    /// Those among them that failed because the host had no room for what the
    /// guest wrote.
    pub no_space: u64,
    /// Times that the queue gave way to other devices.
    pub yields: u64,
    /// Times that the queue had to wait for its limits.
    pub holds: u64,
}

impl BlockMetrics {
    /// Reads all counters. They are independent of each other.
    #[must_use]
    pub fn read(&self) -> BlockStatistics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BlockStatistics {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
            flushes: get(&self.flushes),
            discards: get(&self.discards),
            failures: get(&self.failures),
            no_space: get(&self.no_space),
            yields: get(&self.yields),
            holds: get(&self.holds),
        }
    }
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
