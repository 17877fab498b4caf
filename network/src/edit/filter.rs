//! What bodies go through, piece by piece.

use thiserror::Error;

/// Why a body cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Broken {
    /// It has a coding that cannot be undone, and has to be looked into.
    #[error("a body has the coding {0:?}; gzip, deflate, br and zstd can be undone")]
    Coding(String),
    /// It is not what its coding says.
    #[error("a body is no valid {0}")]
    Malformed(&'static str),
    /// It becomes far more than it was.
    #[error("a body in {0} becomes more than 256 times what it was, or a piece of it a megabyte")]
    Bomb(&'static str),
    /// There are too many of its coding at once.
    #[error("too many bodies in br and zstd are looked into at once to undo one more in {0}")]
    Crowded(&'static str),
    /// The placeholders of these secrets are in it, and its host may not have them.
    #[error("a placeholder of a secret is in a body for a host that may not have the secret")]
    Leak(Vec<String>),
}

/// Takes a body in pieces, and gives it on, changed or not.
///
/// After an error there is no more of it.
pub(super) trait Filter: Send {
    /// Takes a piece, and adds to `out` what can be passed on now.
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Broken>;

    /// Adds what is left to `out`.
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Broken>;

    /// Whether a text beside the body, in its trailers, may pass.
    fn check(&self, text: &[u8]) -> Result<(), Broken> {
        let _ = text;
        Ok(())
    }

    /// Whether it gives on as many bytes as it takes.
    fn keeps_length(&self) -> bool {
        false
    }

    /// The longest piece that it is to be given.
    fn piece(&self) -> usize {
        usize::MAX
    }
}

/// Filters, one after the other.
#[derive(Default)]
pub(super) struct Chain(pub(super) Vec<Box<dyn Filter>>);

impl Filter for Chain {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        pass(&mut self.0, bytes, out)
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        let mut filters = self.0.as_mut_slice();
        while let [first, rest @ ..] = filters {
            let mut last = Vec::new();
            first.finish(&mut last)?;
            pass(rest, &last, out)?;
            filters = rest;
        }
        Ok(())
    }

    fn check(&self, text: &[u8]) -> Result<(), Broken> {
        self.0.iter().try_for_each(|filter| filter.check(text))
    }

    fn piece(&self) -> usize {
        let pieces = self.0.iter().map(|filter| filter.piece());
        pieces.min().unwrap_or(usize::MAX)
    }
}

fn pass(filters: &mut [Box<dyn Filter>], bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
    match filters {
        _ if bytes.is_empty() => Ok(()),
        [] => {
            out.extend_from_slice(bytes);
            Ok(())
        }
        [only] => only.push(bytes, out),
        [first, rest @ ..] => {
            let mut between = Vec::with_capacity(bytes.len());
            first.push(bytes, &mut between)?;
            pass(rest, &between, out)
        }
    }
}
