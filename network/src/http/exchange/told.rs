//! What is told of requests, and of connections without any.

use http::header::HOST;
use http::request;
use http::uri::PathAndQuery;

use super::super::Dial;
use super::super::failure::Failure;
use super::Exchange;
use crate::meter::Meter;
use crate::report::{Report, Scheme};

impl<D: Dial> Exchange<D> {
    /// The beginning of what is told of a request: that nothing is known of it.
    pub(super) fn meter(&self, parts: &request::Parts) -> Meter {
        let host = match (parts.headers.get(HOST), parts.uri.authority()) {
            (_, Some(authority)) => authority.to_string(),
            (Some(host), None) => String::from_utf8_lossy(host.as_bytes()).into_owned(),
            (None, None) => self.destination.to_string(),
        };
        let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
        let url = format!("{}://{host}{path}", self.scheme().as_str());
        // Dropped before there is a response, it is a request whose guest has gone away.
        let mut report = Report::given_up(self.scheme(), host);
        report.destination = Some(self.destination);
        parts.method.as_str().clone_into(&mut report.method);
        report.url = url;
        Meter::new(self.reporter.clone(), report)
    }

    /// Tells of a request that nobody could read.
    pub(crate) fn tell_unread(&self) {
        self.untold.forget();
        let denial = Failure::ambiguous(self.place()).denial;
        let mut report = Report::refused(self.scheme(), denial);
        report.destination = Some(self.destination);
        self.reporter.tell(report);
    }

    /// Tells of a connection on which nobody has asked for anything, if that is so.
    pub(crate) fn tell_silent(&self) {
        if !self.untold.forget() {
            return;
        }
        let mut report = match &self.refusal {
            Some(refusal) => Report::refused(self.scheme(), refusal.denial.clone()),
            None => Report::silent(self.scheme(), self.place()),
        };
        report.destination = Some(self.destination);
        self.reporter.tell(report);
    }

    fn scheme(&self) -> Scheme {
        match self.named {
            Some(_) => Scheme::Https,
            None => Scheme::Http,
        }
    }

    /// Where a request goes that does not say it.
    pub(super) fn place(&self) -> String {
        match &self.named {
            Some(host) => format!("{host}:{}", self.destination.port()),
            None => self.destination.to_string(),
        }
    }
}
