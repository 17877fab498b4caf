//! The report of one flow or request, from its first byte to its last.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::policy::Denial;
use crate::report::{Noted, Outcome, Report, Reporter, Scheme};

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

/// What is told of a connection of which nothing else is.
#[derive(Debug)]
pub(crate) struct Untold(Mutex<Option<Meter>>);

impl Untold {
    /// One that the guest gives up unless more becomes known.
    pub(crate) fn new(reporter: Reporter, scheme: Scheme, destination: SocketAddr) -> Self {
        let mut report = Report::given_up(scheme, destination.to_string());
        report.destination = Some(destination);
        Self(Mutex::new(Some(Meter::new(reporter, report))))
    }

    /// It is for this host, and may not be if there is a denial.
    pub(crate) fn is_for(&self, host: &str, denial: Option<&Denial>) {
        if let Some(meter) = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
        {
            let report = &mut meter.report;
            host.clone_into(&mut report.host);
            report.outcome = match denial {
                Some(denial) => Outcome::Refused(denial.clone()),
                None => Report::given_up(report.scheme, host.to_owned()).outcome,
            };
        }
    }

    /// Something else is told. Whether nothing was before.
    pub(crate) fn forget(&self) -> bool {
        let meter = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        meter.map(Meter::forget).is_some()
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
