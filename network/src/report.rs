//! What is told of flows, requests and questions for names: what was decided, by what, and
//! what became of it.
//!
//! Nothing in a report is a secret: a URL is as the guest sent it, with placeholders.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};

use crate::policy::{Basis, Code, Denial};

/// The longest text of a report, in bytes.
const MAX_TEXT: usize = 2048;

/// What a report is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scheme {
    /// A question for a name.
    Dns,
    /// A connection that was not looked into.
    Tcp,
    /// Datagrams.
    Udp,
    /// A TLS connection that was passed on as it was.
    Tls,
    /// A request in the clear.
    Http,
    /// A request in TLS.
    Https,
}

impl Scheme {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was allowed.
    Allowed(Basis),
    /// It was refused, or failed.
    Refused(Denial),
}

/// What was done with secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretUse {
    /// Names of those whose value was put in.
    pub substituted: Vec<String>,
    /// Names of those whose placeholder was there and stayed, since the place is not one
    /// that the secret is for.
    pub missed: Vec<String>,
    /// Names of those whose placeholder was sent to a host that may not have it.
    pub leaked: Vec<String>,
    /// How often a value was taken out of the response.
    pub scrubbed: u64,
}

impl SecretUse {
    /// Adds what else was done, each name once.
    pub(crate) fn add(&mut self, more: &Self) {
        let add = |names: &mut Vec<String>, more: &Vec<String>| {
            let new = more.iter().filter(|name| !names.contains(name));
            let new: Vec<_> = new.cloned().collect();
            names.extend(new);
        };
        add(&mut self.substituted, &more.substituted);
        add(&mut self.missed, &more.missed);
        add(&mut self.leaked, &more.leaked);
        self.scrubbed += more.scrubbed;
    }
}

/// What was done with secrets so far, by what goes on.
#[derive(Debug, Clone, Default)]
pub struct Noted(Arc<Mutex<SecretUse>>);

impl Noted {
    /// Adds what was done.
    pub(crate) fn add(&self, more: &SecretUse) {
        (self.0.lock().unwrap_or_else(PoisonError::into_inner)).add(more);
    }

    /// What was done.
    #[must_use]
    pub fn so_far(&self) -> SecretUse {
        (self.0.lock().unwrap_or_else(PoisonError::into_inner)).clone()
    }
}

/// What is told of one flow, request or question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// When it began.
    pub at: SystemTime,
    /// What it is.
    pub scheme: Scheme,
    /// The host, as the guest named it, and the port.
    pub host: String,
    /// Where the guest sent it.
    pub destination: Option<SocketAddr>,
    /// The method of a request, or the type of a question; may be empty.
    pub method: String,
    /// The URL of a request; may be empty.
    pub url: String,
    /// The status of a response; 0: there is none.
    pub status: u16,
    /// Bytes that the guest sent.
    pub sent: u64,
    /// Bytes that it got.
    pub received: u64,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// What was done with secrets.
    pub secrets: SecretUse,
}

impl Report {
    /// A report of what begins now and was refused, with nothing in it but this.
    #[must_use]
    pub fn refused(scheme: Scheme, denial: Denial) -> Self {
        let host = denial.host.clone();
        Self::new(scheme, host, Outcome::Refused(denial))
    }

    /// A report of what begins now, and was given up by the guest unless more becomes known.
    pub(crate) fn given_up(scheme: Scheme, host: String) -> Self {
        let denial = Denial {
            code: Code::GivenUp,
            host: host.clone(),
            rule: None,
        };
        Self::new(scheme, host, Outcome::Refused(denial))
    }

    /// A report of a connection to a port of HTTP that says nothing.
    pub(crate) fn silent(scheme: Scheme, host: String) -> Self {
        let denial = Denial {
            code: Code::UnknownProtocol,
            host,
            rule: None,
        };
        Self::refused(scheme, denial)
    }

    /// A report of what begins now, with nothing in it but this.
    #[must_use]
    pub fn new(scheme: Scheme, host: String, outcome: Outcome) -> Self {
        Self {
            at: SystemTime::now(),
            scheme,
            host,
            destination: None,
            method: String::new(),
            url: String::new(),
            status: 0,
            sent: 0,
            received: 0,
            duration: Duration::ZERO,
            outcome,
            secrets: SecretUse::default(),
        }
    }

    /// With every text of a length that somebody may want to keep.
    fn bounded(mut self) -> Self {
        for text in [&mut self.host, &mut self.method, &mut self.url] {
            text.truncate(text.floor_char_boundary(MAX_TEXT));
        }
        self
    }
}

/// Where reports go. What nobody takes in time is counted, and lost: no flow waits for it.
#[derive(Debug, Clone)]
pub struct Reporter {
    reports: mpsc::Sender<Report>,
    lost: Arc<AtomicU64>,
    /// What goes on of which something will be told.
    going_on: watch::Sender<usize>,
}

/// The other end of a [`Reporter`].
#[derive(Debug)]
pub struct Reports {
    reports: mpsc::Receiver<Report>,
    lost: Arc<AtomicU64>,
}

/// A reporter, and what it reports, of which `waiting` may wait.
#[must_use]
pub fn channel(waiting: usize) -> (Reporter, Reports) {
    let (sender, receiver) = mpsc::channel(waiting);
    let lost = Arc::new(AtomicU64::new(0));
    let reporter = Reporter {
        reports: sender,
        lost: Arc::clone(&lost),
        going_on: watch::Sender::new(0),
    };
    let reports = Reports {
        reports: receiver,
        lost,
    };
    (reporter, reports)
}

impl Reporter {
    /// Tells of something.
    pub fn tell(&self, report: Report) {
        if self.reports.try_send(report.bounded()).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Something has begun of which is told when it ends.
    pub(crate) fn begin(&self) {
        self.going_on.send_modify(|number| *number += 1);
    }

    /// It has ended, and was told of.
    pub(crate) fn end(&self) {
        self.going_on.send_modify(|number| *number -= 1);
    }

    /// Waits until nothing goes on that will be told of.
    pub(crate) async fn all_told(&self) {
        // It fails only if all senders are gone, of which `self` holds one.
        let _ = self
            .going_on
            .subscribe()
            .wait_for(|number| *number == 0)
            .await;
    }
}

impl Reports {
    /// The next report, and how many before it were lost; none when nobody reports any
    /// more. Cancel safe.
    pub async fn next(&mut self) -> Option<(u64, Report)> {
        let report = self.reports.recv().await?;
        Some((self.lost.swap(0, Ordering::Relaxed), report))
    }

    /// The same of what is there already; none if there is nothing.
    pub fn next_now(&mut self) -> Option<(u64, Report)> {
        let report = self.reports.try_recv().ok()?;
        Some((self.lost.swap(0, Ordering::Relaxed), report))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn what_is_not_taken_is_counted() {
        let (reporter, mut reports) = channel(2);
        let report =
            |host: &str| Report::new(Scheme::Tcp, host.to_owned(), Outcome::Allowed(Basis::Open));
        for host in ["1", "2", "3", "4"] {
            reporter.tell(report(host));
        }
        let (lost, first) = reports.next().await.unwrap();
        assert_eq!((lost, first.host.as_str()), (2, "1"));
        reporter.tell(report(&"ä".repeat(2000)));
        assert_eq!(reports.next().await.unwrap().0, 0);
        let (_, long) = reports.next().await.unwrap();
        assert_eq!(long.host, "ä".repeat(1024));
        drop(reporter);
        assert_eq!(reports.next().await, None);
    }
}
