//! The report of one flow or request, from its first byte to its last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::report::{Noted, Report, Reporter};

/// A report that is told when this is dropped, whatever came in between.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) report: Report,
    /// What was sent so far, by whoever sends it.
    pub(crate) sent: Arc<AtomicU64>,
    /// What was received so far.
    pub(crate) received: Arc<AtomicU64>,
    /// Whether the guest had given it up, although it was allowed.
    pub(crate) given_up: Arc<AtomicBool>,
    /// How often the value of a secret was taken out of the body.
    pub(crate) scrubbed: u64,
    /// What was done with secrets in the body of the request so far.
    pub(crate) noted: Noted,
    reporter: Reporter,
    is_told: bool,
    began: Instant,
}

impl Meter {
    pub(crate) fn new(reporter: Reporter, report: Report) -> Self {
        reporter.begin();
        Self {
            report,
            sent: Arc::default(),
            received: Arc::default(),
            given_up: Arc::default(),
            scrubbed: 0,
            noted: Noted::default(),
            reporter,
            is_told: true,
            began: Instant::now(),
        }
    }

    /// Tells nothing: somebody else does.
    pub(crate) fn forget(mut self) {
        self.is_told = false;
    }
}

impl Meter {
    fn told(&self) -> Report {
        let mut report = self.report.clone();
        if self.given_up.load(Ordering::Acquire) {
            let Report { scheme, host, .. } = &report;
            report.outcome = Report::given_up(*scheme, host.clone()).outcome;
        }
        report.duration = self.began.elapsed();
        report.sent = self.sent.load(Ordering::Relaxed);
        report.received = self.received.load(Ordering::Relaxed);
        report.secrets.scrubbed += self.scrubbed;
        report.secrets.add(&self.noted.so_far());
        report
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.is_told {
            self.reporter.tell(self.told());
        }
        self.reporter.end();
    }
}
