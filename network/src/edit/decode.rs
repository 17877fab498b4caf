//! Content codings, undone: what is looked for in a body has to be seen.

use std::io::{self, Write};
use std::sync::Arc;

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::filter::{Broken, Chain, Filter};

/// How much more a body may become: this, and [`RATIO`] times what it was.
const SLACK: u64 = 1 << 20;
/// What a decoder is best given at a time: what it makes of it is in memory at once. Of so
/// much deflate makes a quarter of [`MOST`] at best.
pub(super) const PIECE: usize = 256;
/// What may become of a piece.
const MOST: u64 = 1 << 20;
/// How many bodies there may be at once whose decoder keeps megabytes to itself: those of
/// brotli and zstd. One more is refused.
const MAX_LARGE: usize = 64;
/// See [`SLACK`]. A body that is far from any that somebody reads is refused; deflate
/// alone could do four times as much, and the others have no bound.
const RATIO: u64 = 256;
/// Most codings of one body. Each has the ratio for itself, so that two of them could make
/// gigabytes of a piece of a few kilobytes; servers use one.
const MAX_CODINGS: usize = 1;
/// The largest window of zstd in HTTP (RFC 9659).
const MAX_WINDOW: u64 = 8 << 20;
/// The longest head of a frame of zstd.
const ZSTD_HEAD: usize = 18;

/// Room for decoders that keep much to themselves.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LARGE)))
    }
}

/// The codings that a client is said to take where bodies are looked into. Zstd is undone
/// if it is there, but is not among them: its decoder keeps a window's worth to itself,
/// and with it events that somebody waits for.
const OFFERED: [&str; 2] = ["gzip", "br"];

/// The messages of gRPC, and of what is like it, have codings of their own, each for itself.
const ACCEPT_MESSAGES: [&str; 2] = ["grpc-accept-encoding", "connect-accept-encoding"];
const MESSAGES: [&str; 2] = ["grpc-encoding", "connect-content-encoding"];

/// Leaves in `Accept-Encoding` only what can be undone. Without the header a server may
/// send any coding, so that there always is one afterwards.
pub(super) fn restrict(headers: &mut HeaderMap) {
    let values = headers.get_all(ACCEPT_ENCODING);
    let texts = values.iter().filter_map(|value| value.to_str().ok());
    let mut kept: Vec<&str> = Vec::new();
    for one in texts.flat_map(|text| text.split(',')) {
        let one = one.trim();
        let coding = one.split(';').next().unwrap_or_default().trim();
        let is_kept = |offered: &&str| coding.eq_ignore_ascii_case(offered);
        if OFFERED.iter().any(is_kept) && kept.len() < OFFERED.len() {
            kept.push(one);
        }
    }
    let value = HeaderValue::from_str(&kept.join(", "));
    let value = value.ok().filter(|value| !value.is_empty());
    headers.insert(
        ACCEPT_ENCODING,
        value.unwrap_or(HeaderValue::from_static("identity")),
    );
    for name in ACCEPT_MESSAGES {
        if headers.contains_key(name) {
            headers.insert(name, HeaderValue::from_static("identity"));
        }
    }
}

/// The coding of the messages in a body, if they have one.
pub(super) fn coded_messages(headers: &HeaderMap) -> Option<String> {
    let values = MESSAGES.iter().flat_map(|name| headers.get_all(*name));
    let mut codings = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
    let coding = codings.find(|coding| !coding.trim().eq_ignore_ascii_case("identity"))?;
    Some(crate::host::shown(&coding))
}

/// What undoes the codings of a body, none if it has none.
///
/// # Errors
/// One of them cannot be undone.
pub(super) fn decoder(headers: &HeaderMap, room: &Room) -> Result<Option<Chain>, Broken> {
    let mut filters: Vec<Box<dyn Filter>> = Vec::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        let unknown = || {
            let text = String::from_utf8_lossy(value.as_bytes());
            Broken::Coding(crate::host::shown(&text))
        };
        for coding in value.to_str().map_err(|_| unknown())?.split(',') {
            let coding = coding.trim().to_ascii_lowercase();
            let kind = match coding.as_str() {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => Kind::Gzip(Box::new(MultiGzDecoder::new(Sink::default()))),
                "deflate" => Kind::Unknown,
                "br" => Kind::brotli(),
                "zstd" => Kind::zstd(),
                _ => return Err(unknown()),
            };
            if filters.len() == MAX_CODINGS {
                return Err(unknown());
            }
            let room = match kind {
                Kind::Brotli(_) | Kind::Zstd(_) => {
                    let room = Arc::clone(&room.0).try_acquire_owned();
                    Some(room.map_err(|_| Broken::Crowded(kind.name()))?)
                }
                _ => None,
            };
            filters.push(Box::new(Decoder::new(kind, room)));
        }
    }
    // The last one was applied last.
    filters.reverse();
    Ok((!filters.is_empty()).then_some(Chain(filters)))
}

/// Undoes one coding.
struct Decoder {
    kind: Kind,
    /// Bytes that it got.
    taken: u64,
    /// Bytes that it gave.
    given: u64,
    /// What it has of the room for decoders that need much.
    _room: Option<OwnedSemaphorePermit>,
}

enum Kind {
    Gzip(Box<MultiGzDecoder<Sink>>),
    /// Deflate before its first byte: with the head of zlib, or, by an old mistake,
    /// without.
    Unknown,
    Zlib(Box<ZlibDecoder<Sink>>),
    Deflate(Box<DeflateDecoder<Sink>>),
    Brotli(Box<Brotli>),
    Zstd(Box<Zstd>),
}

struct Brotli {
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    buffer: Vec<u8>,
    total: usize,
    is_done: bool,
}

/// Frames of zstd, block by block, so that no more is decoded than one block at a time.
struct Zstd {
    decoder: FrameDecoder,
    input: Vec<u8>,
    /// Whether the frame that is being read ends in a check sum; none between frames.
    frame: Option<bool>,
}

/// Where decoders write to, which has an end.
#[derive(Default)]
struct Sink {
    out: Vec<u8>,
    room: u64,
    is_over: bool,
}

impl Sink {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        match self.room.checked_sub(len) {
            Some(room) => {
                self.room = room;
                self.out.extend_from_slice(bytes);
                Ok(())
            }
            None => {
                self.is_over = true;
                Err(Failed)
            }
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let put = self.put(bytes);
        put.map_err(|Failed| io::ErrorKind::StorageFull.into())
            .map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Something is wrong: the input, or its length.
struct Failed;

impl From<io::Error> for Failed {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl Kind {
    fn brotli() -> Self {
        let alloc = StandardAlloc::default;
        Self::Brotli(Box::new(Brotli {
            // Windows of at most 16 MiB.
            state: BrotliState::new_strict(alloc(), alloc(), alloc()),
            buffer: vec![0; 16 << 10],
            total: 0,
            is_done: false,
        }))
    }

    fn zstd() -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Self::Zstd(Box::new(Zstd {
            decoder,
            input: Vec::new(),
            frame: None,
        }))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Gzip(_) => "gzip",
            Self::Unknown | Self::Zlib(_) | Self::Deflate(_) => "deflate",
            Self::Brotli(_) => "br",
            Self::Zstd(_) => "zstd",
        }
    }
}

impl Decoder {
    fn new(kind: Kind, room: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            kind,
            taken: 0,
            given: 0,
            _room: room,
        }
    }

    /// Decodes, and tells what came out, and what went wrong after that.
    fn run(&mut self, bytes: &[u8], is_end: bool) -> (Sink, Result<(), Failed>) {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.taken = self.taken.saturating_add(len);
        let most = self.taken.saturating_mul(RATIO).saturating_add(SLACK);
        let mut sink = Sink {
            room: most.saturating_sub(self.given).min(MOST),
            ..Sink::default()
        };
        if let (Kind::Unknown, [first, ..]) = (&self.kind, bytes) {
            // A block of deflate never begins so: its kind would be the one that is reserved,
            // or it would be stored, with padding that is not zero.
            self.kind = match first & 0x0f == 8 {
                true => Kind::Zlib(Box::new(ZlibDecoder::new(Sink::default()))),
                false => Kind::Deflate(Box::new(DeflateDecoder::new(Sink::default()))),
            };
        }
        macro_rules! write {
            ($decoder:expr) => {{
                *$decoder.get_mut() = sink;
                let result = match is_end {
                    true => $decoder.try_finish(),
                    false => $decoder.write_all(bytes).and_then(|()| $decoder.flush()),
                };
                sink = std::mem::take($decoder.get_mut());
                result.map_err(Failed::from)
            }};
        }
        let result = match &mut self.kind {
            // An empty body is one, whatever it is said to be: it is that of no content.
            _ if self.taken == 0 => Ok(()),
            Kind::Unknown => Ok(()),
            Kind::Gzip(decoder) => write!(decoder),
            Kind::Zlib(decoder) => write!(decoder),
            Kind::Deflate(decoder) => write!(decoder),
            Kind::Brotli(decoder) if is_end => decoder.is_done.then_some(()).ok_or(Failed),
            Kind::Brotli(decoder) => decoder.push(bytes, &mut sink),
            Kind::Zstd(decoder) if is_end => {
                let is_done = decoder.frame.is_none() && decoder.input.is_empty();
                is_done.then_some(()).ok_or(Failed)
            }
            Kind::Zstd(decoder) => decoder.push(bytes, &mut sink),
        };
        let len = u64::try_from(sink.out.len()).unwrap_or(u64::MAX);
        self.given = self.given.saturating_add(len);
        (sink, result)
    }

    fn pass(&mut self, bytes: &[u8], is_end: bool, out: &mut Vec<u8>) -> Result<(), Broken> {
        let (mut sink, result) = self.run(bytes, is_end);
        let name = self.kind.name();
        match result {
            Ok(()) => {
                out.append(&mut sink.out);
                Ok(())
            }
            Err(Failed) if sink.is_over => Err(Broken::Bomb(name)),
            Err(Failed) => Err(Broken::Malformed(name)),
        }
    }
}

impl Filter for Decoder {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        self.pass(bytes, false, out)
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Broken> {
        self.pass(&[], true, out)
    }

    fn piece(&self) -> usize {
        PIECE
    }
}

impl Brotli {
    fn push(&mut self, bytes: &[u8], sink: &mut Sink) -> Result<(), Failed> {
        let (mut available, mut offset) = (bytes.len(), 0);
        loop {
            if self.is_done {
                // What follows the end belongs to nothing.
                return (available == 0).then_some(()).ok_or(Failed);
            }
            let (mut room, mut end) = (self.buffer.len(), 0);
            let result = BrotliDecompressStream(
                &mut available,
                &mut offset,
                bytes,
                &mut room,
                &mut end,
                &mut self.buffer,
                &mut self.total,
                &mut self.state,
            );
            sink.put(self.buffer.get(..end).unwrap_or_default())?;
            match result {
                BrotliResult::ResultSuccess => self.is_done = true,
                BrotliResult::NeedsMoreOutput => {}
                BrotliResult::NeedsMoreInput => return Ok(()),
                BrotliResult::ResultFailure => return Err(Failed),
            }
        }
    }
}

impl Zstd {
    fn push(&mut self, bytes: &[u8], sink: &mut Sink) -> Result<(), Failed> {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = input.as_slice();
        while self.step(&mut rest, sink)? {}
        self.input = rest.to_vec();
        Ok(())
    }

    /// Reads a head or a block, if it is there in full.
    fn step(&mut self, rest: &mut &[u8], sink: &mut Sink) -> Result<bool, Failed> {
        let Some(has_sum) = self.frame else {
            // Magic number, then what the head has.
            let Some(descriptor) = rest.get(4) else {
                return Ok(false);
            };
            let mut after = *rest;
            return match self.decoder.reset(&mut after) {
                Ok(()) => {
                    self.frame = Some(descriptor & 4 != 0);
                    *rest = after;
                    Ok(true)
                }
                Err(_) if rest.len() < ZSTD_HEAD => Ok(false),
                Err(_) => Err(Failed),
            };
        };
        let [a, b, c, ..] = **rest else {
            return Ok(false);
        };
        let head = u32::from_le_bytes([a, b, c, 0]);
        let is_last = head & 1 != 0;
        let stored = match head >> 1 & 3 {
            // One byte, many times.
            1 => 1,
            _ => usize::try_from(head >> 3).unwrap_or(usize::MAX),
        };
        if stored > 128 << 10 {
            return Err(Failed);
        }
        let sum = if is_last && has_sum { 4 } else { 0 };
        if rest.len() < 3 + stored + sum {
            return Ok(false);
        }
        let one = BlockDecodingStrategy::UptoBlocks(1);
        let is_end = self.decoder.decode_blocks(&mut *rest, one);
        let is_end = is_end.map_err(|_| Failed)?;
        self.decoder.collect_to_writer(&mut *sink)?;
        if is_end {
            let told = self.decoder.get_checksum_from_data();
            if told.is_some() && told != self.decoder.get_calculated_checksum() {
                return Err(Failed);
            }
            self.frame = None;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
