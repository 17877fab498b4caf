//! Getting an archive into a file that can be read at any place: unpacking one
//! that is compressed as a whole, collecting one that comes through a pipe.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use crate::compression::Compression;
use crate::store::Cancel;

/// Read at a time.
pub(super) const STEP: usize = 256 << 10;

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Known(Compression),
    /// A compression that is not understood; what to do instead.
    Foreign(&'static str),
}

/// Looks at the first bytes of a file or layer.
pub(crate) fn look(head: &[u8]) -> Look {
    match Compression::of_bytes(head) {
        Compression::None => {}
        known => return Look::Known(known),
    }
    if head.starts_with(b"\xfd7zXZ") {
        Look::Foreign("it is compressed with xz; unpack it with `xz -d` first")
    } else if head.starts_with(b"BZh") {
        Look::Foreign("it is compressed with bzip2; unpack it with `bzip2 -d` first")
    } else if head.starts_with(b"PK\x03\x04") {
        Look::Foreign("it is a zip archive")
    } else {
        Look::Known(Compression::None)
    }
}

/// Why spooling failed.
#[derive(Debug)]
pub(crate) enum SpoolError {
    /// What is read, or how it is packed, is broken.
    Read(io::Error),
    /// The disk does not take it.
    Write(io::Error),
    /// It unpacks to more than it may.
    TooLarge,
    Cancelled,
}

/// Copies all of `from` into `to`, at most `max` bytes; leaves `to` at its start.
pub(crate) fn collect(
    mut from: impl Read,
    to: &mut File,
    max: u64,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, SpoolError> {
    let mut buffer = vec![0; STEP];
    let mut total = 0_u64;
    loop {
        if cancel.is_cancelled() {
            return Err(SpoolError::Cancelled);
        }
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SpoolError::Read(error)),
        };
        total = total.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
        if total > max {
            return Err(SpoolError::TooLarge);
        }
        let bytes = buffer.get(..n).unwrap_or_default();
        to.write_all(bytes).map_err(SpoolError::Write)?;
        progress(total);
    }
    to.rewind().map_err(SpoolError::Write)?;
    Ok(total)
}
