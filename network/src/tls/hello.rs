//! What a client says first in TLS, read without taking it away.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use crate::host::Name;

/// How long a client may take to say it.
pub const WITHIN: Duration = Duration::from_secs(10);

/// The longest there may be. With keys for after quantum computers it has 2 KiB.
const MAX: usize = 16 * 1024;

/// The most that it may take on the wire, in records however small.
const MAX_RECORDS: usize = 2 * MAX;

/// What a connection of TLS begins with: a record of a handshake (RFC 8446 §5.1).
pub(crate) const HANDSHAKE: u8 = 22;

/// What a client wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// Whom it wants to reach, if it says so.
    pub server_name: Option<Name>,
    /// The protocols that it offers, in its order.
    pub alpn: Vec<Vec<u8>>,
    /// Whether it may mean another host than the one that it names: there is an encrypted
    /// hello in it, or something that looks like one.
    pub is_encrypted: bool,
}

/// Why there is none.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HelloError {
    /// It is not TLS.
    #[error("what was sent is not TLS")]
    NotTls,
    /// It is none that anybody could answer.
    #[error("the first message of TLS is malformed")]
    Malformed,
    /// The name in it is none, or there are several.
    #[error("the name in the first message of TLS is no name of one host")]
    ServerName,
    /// It is longer than any.
    #[error("the first message of TLS has more than {MAX} bytes")]
    TooLong,
    /// It did not come in time.
    #[error("no first message of TLS within {} seconds", WITHIN.as_secs())]
    Late,
    /// The connection broke, or ended.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a hello. The stream has it still.
pub async fn read<S: AsyncRead + Unpin>(mut stream: S) -> (Rewound<S>, Result<Hello, HelloError>) {
    let mut bytes = Vec::new();
    let read = timeout(WITHIN, read_into(&mut stream, &mut bytes)).await;
    let read = read.unwrap_or(Err(HelloError::Late));
    (Rewound::new(bytes, stream), read)
}

async fn read_into<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes: &mut Vec<u8>,
) -> Result<Hello, HelloError> {
    loop {
        if let Some(hello) = parse(bytes)? {
            return Ok(hello);
        }
        if bytes.len() > MAX_RECORDS {
            return Err(HelloError::TooLong);
        }
        if stream.read_buf(bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// The hello at the beginning of these bytes; none if more are needed.
///
/// # Errors
/// It cannot be one, whatever follows.
pub fn parse(bytes: &[u8]) -> Result<Option<Hello>, HelloError> {
    let mut message = Vec::new();
    let mut rest = Reader(bytes);
    loop {
        // Each byte that is there is looked at, so that what is not TLS is known at once.
        match rest.0 {
            [kind, ..] if *kind != HANDSHAKE => return Err(HelloError::NotTls),
            [_, major, ..] if *major != 3 => return Err(HelloError::NotTls),
            _ => {}
        }
        let Some(head) = rest.take(5) else {
            return Ok(None);
        };
        let len = head.get(3..).map_or(0, number);
        if len == 0 || len > MAX {
            return Err(HelloError::Malformed);
        }
        let there = rest.0.get(..len.min(rest.0.len())).unwrap_or_default();
        message.extend_from_slice(there);
        match message.as_slice() {
            [kind, ..] if *kind != 1 => return Err(HelloError::NotTls),
            [_, high, middle, low, ..] => {
                let len = number(&[*high, *middle, *low]);
                if len > MAX {
                    return Err(HelloError::TooLong);
                }
                if let Some(body) = message.get(4..4 + len) {
                    return parse_body(body).map(Some);
                }
            }
            _ => {}
        }
        if rest.take(len).is_none() {
            return Ok(None);
        }
    }
}

/// RFC 8446 §4.1.2; a hello of TLS 1.2 may have no extensions at all.
fn parse_body(body: &[u8]) -> Result<Hello, HelloError> {
    let mut hello = Hello::default();
    let mut rest = Reader(body);
    let fixed = |rest: &mut Reader<'_>| {
        rest.take(2 + 32)?;
        let session = rest.vector(1)?;
        let suites = rest.vector(2)?;
        let compression = rest.vector(1)?;
        let is_sound = session.len() <= 32
            && !suites.is_empty()
            && suites.len().is_multiple_of(2)
            && !compression.is_empty();
        is_sound.then_some(())
    };
    fixed(&mut rest).ok_or(HelloError::Malformed)?;
    if rest.0.is_empty() {
        return Ok(hello);
    }
    let extensions = rest.vector(2).ok_or(HelloError::Malformed)?;
    if !rest.0.is_empty() {
        return Err(HelloError::Malformed);
    }
    let mut extensions = Reader(extensions);
    let mut seen = Vec::new();
    while !extensions.0.is_empty() {
        let mut next = || Some((extensions.number(2)?, extensions.vector(2)?));
        let (kind, data) = next().ok_or(HelloError::Malformed)?;
        // Of two, one reader would take the first and another the last.
        if seen.contains(&kind) || seen.len() > 128 {
            return Err(HelloError::Malformed);
        }
        seen.push(kind);
        match kind {
            0 => hello.server_name = Some(server_name(data)?),
            16 => hello.alpn = protocols(data).ok_or(HelloError::Malformed)?,
            0xfe0d => hello.is_encrypted = true,
            _ => {}
        }
    }
    Ok(hello)
}

/// RFC 6066 §3: a list with one name in it.
fn server_name(data: &[u8]) -> Result<Name, HelloError> {
    let parse = || {
        let mut data = Reader(data);
        let mut list = Reader(data.vector(2)?);
        let kind = list.number(1)?;
        let name = list.vector(2)?;
        let is_one = kind == 0 && list.0.is_empty() && data.0.is_empty();
        let name = std::str::from_utf8(name).ok()?;
        (is_one && name.is_ascii()).then_some(name)
    };
    let name = parse().ok_or(HelloError::ServerName)?;
    name.parse().map_err(|_| HelloError::ServerName)
}

/// RFC 7301 §3.1.
fn protocols(data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut data = Reader(data);
    let mut list = Reader(data.vector(2)?);
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let protocol = list.vector(1)?;
        if protocol.is_empty() {
            return None;
        }
        protocols.push(protocol.to_vec());
    }
    (data.0.is_empty() && !protocols.is_empty()).then_some(protocols)
}

/// What is left to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of so many bytes.
    fn number(&mut self, size: usize) -> Option<usize> {
        self.take(size).map(number)
    }

    /// Bytes, with their length before them as a number of so many bytes.
    fn vector(&mut self, size: usize) -> Option<&'a [u8]> {
        let len = self.number(size)?;
        self.take(len)
    }
}

/// A number of a few bytes, the highest first.
fn number(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// A stream of which something was read, which is read again first.
#[derive(Debug)]
pub struct Rewound<S> {
    bytes: Vec<u8>,
    at: usize,
    stream: S,
}

impl<S> Rewound<S> {
    /// A stream, and what was read of it.
    pub fn new(bytes: Vec<u8>, stream: S) -> Self {
        Self {
            bytes,
            at: 0,
            stream,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let left = this.bytes.get(this.at..).unwrap_or_default();
        if left.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let now = left
            .get(..left.len().min(buf.remaining()))
            .unwrap_or_default();
        buf.put_slice(now);
        this.at += now.len();
        if this.at == this.bytes.len() {
            (this.bytes, this.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] = include_bytes!("../../../tests/fuzz/corpus/hello/plain");

    #[test]
    fn a_hello_says_whom_it_wants_and_how() {
        let hello = parse(PLAIN).unwrap().unwrap();
        assert_eq!(hello.server_name, Some("api.test".parse().unwrap()));
        assert_eq!(hello.alpn, [&b"h2"[..], b"http/1.1"]);
        assert!(!hello.is_encrypted);
        let encrypted = include_bytes!("../../../tests/fuzz/corpus/hello/encrypted");
        assert!(parse(encrypted).unwrap().unwrap().is_encrypted);
        let pieces = include_bytes!("../../../tests/fuzz/corpus/hello/pieces");
        let name = parse(pieces).unwrap().unwrap().server_name;
        assert_eq!(name, Some("api.test".parse().unwrap()));
    }

    #[test]
    fn every_part_of_one_needs_more() {
        for len in 0..PLAIN.len() {
            assert!(matches!(parse(&PLAIN[..len]), Ok(None)), "{len}");
        }
    }

    #[test]
    fn names_that_are_none_or_many() {
        let with_name = |name: &[u8; 8]| {
            let at = PLAIN.windows(8).position(|of| of == b"api.test").unwrap();
            let mut bytes = PLAIN.to_vec();
            bytes[at..at + 8].copy_from_slice(name);
            parse(&bytes)
        };
        assert!(with_name(b"API.TEST").is_ok());
        for name in [
            b"api\0test",
            b"api test",
            b"api..tst",
            b".pi.test",
            b"10.0.0.1",
            b"\xc3\xa4i.test",
            b"api\ttest",
            b"[::1]:80",
            b"*.i.test",
        ] {
            let refused = with_name(name).unwrap_err();
            assert!(matches!(refused, HelloError::ServerName), "{name:?}");
        }
        let two = include_bytes!("../../../tests/fuzz/corpus/hello/two-names");
        assert!(matches!(parse(two), Err(HelloError::ServerName)));
        let twice = include_bytes!("../../../tests/fuzz/corpus/hello/name-twice");
        assert!(matches!(parse(twice), Err(HelloError::Malformed)));
    }

    #[tokio::test]
    async fn what_was_read_is_there_still() {
        let mut sent = PLAIN.to_vec();
        sent.extend(b"what follows");
        let (stream, hello) = read(sent.as_slice()).await;
        assert!(hello.unwrap().server_name.is_some());
        let mut stream = stream;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, sent);
    }

    #[tokio::test]
    async fn what_has_no_end_is_not_read_to_it() {
        // Records of one byte, of a message that is as long as may be.
        let mut endless = b"\x16\x03\x01\0\x04\x01\0\x40\0".to_vec();
        endless.extend(b"\x16\x03\x01\0\x01\0".repeat(MAX));
        let (_, hello) = read(endless.as_slice()).await;
        assert!(matches!(hello, Err(HelloError::TooLong)));
        let long = include_bytes!("../../../tests/fuzz/corpus/hello/long");
        assert!(matches!(parse(long), Err(HelloError::TooLong)));
    }
}
