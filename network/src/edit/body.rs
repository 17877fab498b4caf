//! Bodies as they pass: what is done to them, in its order.

use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderMap;

use super::filter::{Broken, Chain, Filter};
use super::replace::{Replacement, Replacer, Table};
use super::sse::Events;
use super::substitute::scrub;
use crate::http::{Refused, Transform};
use crate::policy::{Code, Denial};
use crate::report::SecretUse;

/// Takes a body through filters, and takes values of secrets out of what comes out.
pub(super) struct Body {
    filters: Chain,
    scrubber: Option<Replacer>,
    /// How often a value was taken out of trailers.
    of_trailers: u64,
    why: Option<Why>,
}

/// Who is told that a request may not pass after all.
struct Why {
    told: Arc<OnceLock<Refused>>,
    host: String,
}

impl Body {
    pub(super) fn new(filters: Vec<Box<dyn Filter>>, scrubber: Option<Replacer>) -> Self {
        Self {
            filters: Chain(filters),
            scrubber,
            of_trailers: 0,
            why: None,
        }
    }

    /// The body of a request for this host, which may not pass if a secret leaks in it. That
    /// is told then.
    pub(super) fn of_request(
        filter: Box<dyn Filter>,
        host: String,
    ) -> (Self, Arc<OnceLock<Refused>>) {
        let told = Arc::new(OnceLock::new());
        let why = Why {
            told: Arc::clone(&told),
            host,
        };
        let body = Self {
            why: Some(why),
            ..Self::new(vec![filter], None)
        };
        (body, told)
    }

    /// The error for a body that is broken off, with a [`Broken`] in it.
    fn broken(&self, broken: Broken) -> io::Error {
        if let (Some(why), Broken::Leak(names)) = (&self.why, &broken) {
            // The first one counts.
            let _ = why.told.set(leak(&why.host, names.clone()));
        }
        io::Error::new(io::ErrorKind::InvalidData, broken)
    }

    fn pass(&mut self, input: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), Broken> {
        let step = |filter: &mut dyn Filter, out: &mut Vec<u8>| match input {
            Some(bytes) => filter.push(bytes, out),
            None => filter.finish(out),
        };
        let Some(scrubber) = &mut self.scrubber else {
            return step(&mut self.filters, out);
        };
        let mut between = Vec::new();
        step(&mut self.filters, &mut between)?;
        scrubber.push(&between, out)?;
        match input {
            Some(_) => Ok(()),
            None => scrubber.finish(out),
        }
    }

    /// Takes a whole body through, and tells what came out, and how often a value was taken
    /// out of it.
    pub(super) fn whole(mut self, body: &[u8]) -> Result<(Bytes, u64), Broken> {
        let mut out = Vec::new();
        for piece in body.chunks(self.filters.piece()) {
            self.pass(Some(piece), &mut out)?;
        }
        self.pass(None, &mut out)?;
        Ok((out.into(), self.scrubbed()))
    }
}

impl Transform for Body {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let passed = self.pass(Some(input), out);
        passed.map_err(|why| self.broken(why))
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let passed = self.pass(None, out);
        passed.map_err(|why| self.broken(why))
    }

    fn keeps_length(&self) -> bool {
        let filters = &self.filters.0;
        self.scrubber.is_none() && filters.iter().all(|filter| filter.keeps_length())
    }

    fn keeps_back(&self) -> bool {
        self.scrubber.is_some()
    }

    fn piece(&self) -> usize {
        self.filters.piece()
    }

    fn trailers(&mut self, trailers: &mut HeaderMap) -> io::Result<()> {
        for value in trailers.values() {
            let checked = self
                .filters
                .0
                .iter()
                .try_for_each(|filter| filter.check(value.as_bytes()));
            checked.map_err(|why| self.broken(why))?;
        }
        if let Some(scrubber) = &self.scrubber {
            self.of_trailers += scrub(scrubber.table(), trailers);
        }
        Ok(())
    }

    fn scrubbed(&self) -> u64 {
        self.of_trailers + self.scrubber.as_ref().map_or(0, Replacer::count)
    }
}

/// The refusal of a request in which placeholders of these secrets are that are not for its
/// host.
pub(super) fn leak(host: &str, leaked: Vec<String>) -> Refused {
    let denial = Denial {
        code: Code::SecretLeak,
        host: host.to_owned(),
        rule: Some(format!("secret {}", leaked.join(", "))),
    };
    let secrets = SecretUse {
        leaked,
        ..SecretUse::default()
    };
    Refused { denial, secrets }
}

/// Replaces texts in their order: in what the first one left, the second is looked for, and
/// so on. In a stream of events only in what is data, line by line.
pub(super) fn in_order(texts: &[(String, String)], is_events: bool) -> Option<Box<dyn Filter>> {
    let one = |(find, with): &(String, String)| -> Box<dyn Filter> {
        let bytes = |text: &String| text.clone().into_bytes().into();
        let one = Replacement {
            find: bytes(find),
            with: bytes(with),
            owner: 0,
        };
        Box::new(Replacer::new(Table::new(vec![one])))
    };
    let texts = texts.iter().filter(|(find, _)| !find.is_empty());
    let all = Chain(texts.map(one).collect());
    match (all.0.is_empty(), is_events) {
        (true, _) => None,
        (false, true) => Some(Box::new(Events::new(all))),
        (false, false) => Some(Box::new(all)),
    }
}
