//! Checking that layers are what somebody says, without making anything.

use std::io::{BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};

use super::error::{Error, LayerError};
use super::{DiffId, Layer, Options};
use crate::compression::{Decompressor, Part};

/// Read at a time.
const STEP: usize = 256 << 10;

/// Unpacks a layer to nowhere, to see that it has this hash.
///
/// # Errors
///
/// It has another one, cannot be read, or unpacks to more than
/// [`Limits::total`](super::Limits::total); or [`Options::cancel`] was set.
pub fn verify(layer: &Layer, expected: &DiffId, options: &Options<'_>) -> Result<(), Error> {
    hashed(layer, options)
        .and_then(|found| match found == *expected {
            true => Ok(()),
            false => Err(LayerError::DiffId {
                expected: *expected,
                found,
            }),
        })
        .map_err(|source| Error::layer(layer.name.clone(), source))
}

fn hashed(layer: &Layer, options: &Options<'_>) -> Result<DiffId, LayerError> {
    let part = Part::new(Arc::clone(&layer.file), layer.offset, layer.length);
    let part = BufReader::with_capacity(STEP, part);
    let mut stream = Decompressor::new(part, layer.compression);
    let mut buffer = vec![0; STEP];
    let mut hash = Sha256::new();
    let mut total = 0_u64;
    loop {
        if options.cancel.load(Ordering::Relaxed) {
            return Err(LayerError::Cancelled);
        }
        let read = stream
            .read(&mut buffer)
            .map_err(|error| LayerError::unreadable(layer.compression, error))?;
        if read == 0 {
            return Ok(hash.finalize().into());
        }
        let limit = options.limits.total;
        total = total.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if total > limit {
            return Err(LayerError::Total { limit });
        }
        hash.update(buffer.get(..read).unwrap_or_default());
    }
}
