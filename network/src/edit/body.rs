//! Bodies as they pass: what is done to them, in its order.

use std::io;

use bytes::Bytes;

use super::filter::{Broken, Chain, Filter};
use super::replace::{Replacement, Replacer, Table};
use super::sse::Events;
use crate::http::Transform;

/// Takes a body through filters, and takes values of secrets out of what comes out.
pub(super) struct Body {
    filters: Chain,
    scrubber: Option<Replacer>,
}

impl Body {
    pub(super) fn new(filters: Vec<Box<dyn Filter>>, scrubber: Option<Replacer>) -> Self {
        Self {
            filters: Chain(filters),
            scrubber,
        }
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
        self.pass(Some(body), &mut out)?;
        self.pass(None, &mut out)?;
        Ok((out.into(), self.scrubbed()))
    }
}

impl Transform for Body {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        self.pass(Some(input), out).map_err(broken)
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.pass(None, out).map_err(broken)
    }

    fn keeps_length(&self) -> bool {
        let filters = &self.filters.0;
        self.scrubber.is_none() && filters.iter().all(|filter| filter.keeps_length())
    }

    fn scrubbed(&self) -> u64 {
        self.scrubber.as_ref().map_or(0, Replacer::count)
    }
}

/// The error has a [`Broken`] in it.
fn broken(why: Broken) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
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
