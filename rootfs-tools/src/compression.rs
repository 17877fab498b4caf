//! Compressed streams, told apart by their first bytes.
//!
//! gzip (RFC 1952) may have several members and zstd (RFC 8878) several
//! frames, with skippable ones between them: tools for lazy pulling make both.
//! Decompression is pure Rust: the data comes from strangers and is handled with
//! the user's rights (`docs/decisions/0010-layers-are-unpacked-in-rust.md`).

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// How a stream is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// As it is.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
}

/// The longest distance that a zstd frame may refer back, which is memory that
/// its decompression takes: 64 MiB, four times what level 19 of the zstd program uses
/// and within what other container runtimes take.
const ZSTD_WINDOW_MAX: u64 = 64 << 20;

/// `0x184D2A50` to `0x184D2A5F`, little-endian: skippable frames.
fn is_skippable(magic: [u8; 4]) -> bool {
    matches!(magic, [low, 0x2a, 0x4d, 0x18] if low & 0xf0 == 0x50)
}

impl Compression {
    /// What a stream that begins with these bytes is; four are enough.
    #[must_use]
    pub fn of_bytes(start: &[u8]) -> Self {
        match start.first_chunk::<4>() {
            Some([0x1f, 0x8b, 8, _]) => Self::Gzip,
            Some([0x28, 0xb5, 0x2f, 0xfd]) => Self::Zstd,
            Some(magic) if is_skippable(*magic) => Self::Zstd,
            _ => Self::None,
        }
    }

    /// What the `length` bytes of `file` from `offset` on are.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub fn of(file: &File, offset: u64, length: u64) -> io::Result<Self> {
        let mut start = Vec::with_capacity(4);
        let mut part = Part {
            file,
            offset,
            end: offset.saturating_add(length.min(4)),
        };
        part.read_to_end(&mut start)?;
        Ok(Self::of_bytes(&start))
    }
}

/// A part of a file as a stream. Does not use the file's position, so that
/// several can read one file.
#[derive(Debug)]
pub struct Part<F> {
    file: F,
    offset: u64,
    end: u64,
}

impl Part<Arc<File>> {
    /// `length` bytes of `file` from `offset` on, or less if the file ends before.
    #[must_use]
    pub fn new(file: Arc<File>, offset: u64, length: u64) -> Self {
        Self {
            file,
            offset,
            end: offset.saturating_add(length),
        }
    }
}

impl<F: std::ops::Deref<Target = File>> Read for Part<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let read = self
            .file
            .read_at(buffer.get_mut(..length).unwrap_or_default(), self.offset)?;
        self.offset += u64::try_from(read).unwrap_or(0);
        Ok(read)
    }
}

/// The uncompressed stream of a compressed one.
///
/// Check sums are verified. What follows the last member or frame and is
/// neither is an error, as is a stream that ends within one.
pub struct Decompressor<R: BufRead>(Inner<R>);

enum Inner<R: BufRead> {
    None(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(Box<Frames<R>>),
}

impl<R: BufRead> std::fmt::Debug for Decompressor<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Decompressor").finish_non_exhaustive()
    }
}

impl<R: BufRead> Decompressor<R> {
    /// Reads `source`, which is stored as `compression` says.
    pub fn new(source: R, compression: Compression) -> Self {
        Self(match compression {
            Compression::None => Inner::None(source),
            Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => Inner::Zstd(Box::new(Frames::new(source))),
        })
    }
}

impl<R: BufRead> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::None(source) => source.read(buffer),
            Inner::Gzip(decoder) => decoder.read(buffer),
            Inner::Zstd(frames) => frames.read(buffer),
        }
    }
}

/// zstd frames one after the other.
struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    /// Is the decoder within a frame?
    inside: bool,
    /// Was there a frame, be it a skippable one?
    any: bool,
}

impl<R: BufRead> Frames<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW_MAX);
        Self {
            source,
            decoder,
            inside: false,
            any: false,
        }
    }

    /// Reads headers up to that of a frame with data; false at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return match self.any {
                    true => Ok(false),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            self.any = true;
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.inside = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
                    if skipped != length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(zstd_error(error)),
            }
        }
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.inside = false;
        let stored = self.decoder.get_checksum_from_data();
        if stored.is_some() && stored != self.decoder.get_calculated_checksum() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the check sum of a zstd frame is wrong",
            ));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.inside && !self.next_frame()? {
                return Ok(0);
            }
            let wanted = buffer.len();
            while self.decoder.can_collect() < wanted && !self.decoder.is_finished() {
                let blocks = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder
                    .decode_blocks(&mut self.source, blocks)
                    .map_err(zstd_error)?;
            }
            let read = self.decoder.read(buffer)?;
            if self.decoder.is_finished() && self.decoder.can_collect() == 0 {
                self.end_frame()?;
            }
            if read > 0 {
                return Ok(read);
            }
        }
    }
}

fn zstd_error(error: FrameDecoderError) -> io::Error {
    // A stream that ends within a frame is told from one that is wrong.
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof)
        {
            return io::ErrorKind::UnexpectedEof.into();
        }
        source = cause.source();
    }
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
