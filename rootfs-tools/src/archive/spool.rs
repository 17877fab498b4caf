//! Getting an archive into a file that can be read at any place: unpacking one
//! that is compressed as a whole, collecting one that comes through a pipe.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};

use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use crate::manifest::Packing;

/// Read at a time.
const STEP: usize = 256 << 10;

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Packed(Packing),
    /// A compression that is not understood; what to do instead.
    Foreign(&'static str),
}

/// Looks at the first bytes of a file or layer.
pub(crate) fn look(head: &[u8]) -> Look {
    let skippable = head
        .get(..4)
        .is_some_and(|magic| magic.ends_with(b"\x2a\x4d\x18") && magic.starts_with(&[0x50]));
    if head.starts_with(b"\x1f\x8b") {
        Look::Packed(Packing::Gzip)
    } else if head.starts_with(b"\x28\xb5\x2f\xfd") || skippable {
        Look::Packed(Packing::Zstd)
    } else if head.starts_with(b"\xfd7zXZ") {
        Look::Foreign("it is compressed with xz; unpack it with `xz -d` first")
    } else if head.starts_with(b"BZh") {
        Look::Foreign("it is compressed with bzip2; unpack it with `bzip2 -d` first")
    } else if head.starts_with(b"PK\x03\x04") {
        Look::Foreign("it is a zip archive")
    } else {
        Look::Packed(Packing::Plain)
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
}

/// Copies all of `from` into `to`, at most `max` bytes; leaves `to` at its start.
pub(crate) fn collect(
    mut from: impl Read,
    to: &mut File,
    max: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, SpoolError> {
    let mut buffer = vec![0; STEP];
    let mut total = 0_u64;
    loop {
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

/// A reader of what is packed so.
pub(crate) fn unpacker<'a>(
    packing: Packing,
    from: impl Read + 'a,
) -> io::Result<Box<dyn Read + 'a>> {
    let from = BufReader::with_capacity(STEP, from);
    Ok(match packing {
        Packing::Plain => Box::new(from),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        Packing::Zstd => Box::new(Frames::Between(from)),
    })
}

/// Zstandard frames one after the other.
enum Frames<R: io::BufRead> {
    Between(R),
    Inside(Box<StreamingDecoder<R, FrameDecoder>>),
    /// Only while one of the others becomes the other.
    Neither,
}

impl<R: io::BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(self, Self::Neither) {
                Self::Between(mut from) => {
                    if from.fill_buf()?.is_empty() {
                        *self = Self::Between(from);
                        return Ok(0);
                    }
                    *self = Self::Inside(Box::new(
                        StreamingDecoder::new(from).map_err(io::Error::other)?,
                    ));
                }
                Self::Inside(mut decoder) => {
                    let n = decoder.read(buffer)?;
                    if n > 0 {
                        *self = Self::Inside(decoder);
                        return Ok(n);
                    }
                    *self = Self::Between(decoder.into_inner());
                }
                // An error came before.
                Self::Neither => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}
