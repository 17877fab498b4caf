//! The report of one flow or request, from its first byte to its last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::report::{Report, Reporter};

/// A report that is told when this is dropped, whatever came in between.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) report: Report,
    /// What was sent so far, by whoever sends it.
    pub(crate) sent: Arc<AtomicU64>,
    /// What was received so far.
    pub(crate) received: Arc<AtomicU64>,
    /// How often the value of a secret was taken out of the body.
    pub(crate) scrubbed: u64,
    /// None: nothing is told.
    reporter: Option<Reporter>,
    began: Instant,
}

impl Meter {
    pub(crate) fn new(reporter: Reporter, report: Report) -> Self {
        Self {
            report,
            sent: Arc::default(),
            received: Arc::default(),
            scrubbed: 0,
            reporter: Some(reporter),
            began: Instant::now(),
        }
    }

    /// Tells nothing: somebody else does.
    pub(crate) fn forget(mut self) {
        self.reporter = None;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let Some(reporter) = self.reporter.take() else {
            return;
        };
        let mut report = self.report.clone();
        report.duration = self.began.elapsed();
        report.sent = self.sent.load(Ordering::Relaxed);
        report.received = self.received.load(Ordering::Relaxed);
        report.secrets.scrubbed += self.scrubbed;
        reporter.tell(report);
    }
}
