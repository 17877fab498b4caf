//! Length-prefixed frames: a little-endian `u32` length, then that many bytes
//! of postcard.

use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Bytes of the length prefix.
const PREFIX: usize = 4;

/// How much a [`Decoder`] reads at a time when it reads for itself.
const READ_CHUNK: usize = 64 * 1024;

/// Why a message could not be sent or understood.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The peer announced, or the caller tried to send, too long a message.
    #[error("message of {len} bytes is longer than the {max} bytes that this connection allows")]
    TooLong {
        /// The length announced or produced.
        len: usize,
        /// The connection's limit.
        max: usize,
    },
    /// The bytes are not a message of the expected type.
    #[error("malformed message: {0}")]
    Malformed(#[from] postcard::Error),
    /// The bytes hold a message and then something else.
    #[error("malformed message: {0} bytes left over")]
    Trailing(usize),
    /// The connection ended inside a frame.
    #[error("connection ended in the middle of a message")]
    Truncated,
    /// The underlying stream failed.
    #[error("connection failed: {0}")]
    Io(#[from] std::io::Error),
}

/// Decodes exactly one message from `bytes`.
///
/// # Errors
/// If the bytes are not one whole `T`.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(FrameError::Trailing(rest.len()))
    }
}

/// Encodes `message` as a frame: length prefix and body.
///
/// # Errors
/// [`FrameError::TooLong`] if the body would be longer than `max` bytes.
pub fn encode<T: Serialize>(message: &T, max: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = postcard::to_extend(message, vec![0_u8; PREFIX])?;
    let len = frame.len().saturating_sub(PREFIX);
    let prefix = u32::try_from(len).ok().filter(|_| len <= max);
    let Some(prefix) = prefix else {
        return Err(FrameError::TooLong { len, max });
    };
    if let Some(head) = frame.first_chunk_mut::<PREFIX>() {
        *head = prefix.to_le_bytes();
    }
    Ok(frame)
}

/// Writes `message` as one frame and flushes.
///
/// # Errors
/// If the message is too long or the stream fails.
pub fn write<T: Serialize>(
    stream: &mut impl Write,
    message: &T,
    max: usize,
) -> Result<(), FrameError> {
    stream.write_all(&encode(message, max)?)?;
    stream.flush()?;
    Ok(())
}

/// Turns a stream of bytes, in whatever pieces it comes, into messages.
///
/// Memory stays within the limit plus what one [`Decoder::extend`] brings: a
/// length that is announced but not delivered allocates nothing.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that were already returned.
    consumed: usize,
    max: usize,
}

impl Decoder {
    /// A decoder that refuses message bodies over `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            buffer: Vec::new(),
            consumed: 0,
            max,
        }
    }

    /// Adds bytes that arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// If the next frame is too long or malformed. The connection cannot be
    /// used any further: frame boundaries are lost.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let pending = self.buffer.get(self.consumed..).unwrap_or_default();
        let Some((prefix, body)) = pending.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        if len > self.max {
            return Err(FrameError::TooLong { len, max: self.max });
        }
        let Some(body) = body.get(..len) else {
            return Ok(None);
        };
        let message = from_bytes(body)?;
        self.consumed = self.consumed.saturating_add(PREFIX).saturating_add(len);
        Ok(Some(message))
    }

    /// Reads from a blocking stream until a message is complete; `None` if the
    /// stream ends between messages.
    ///
    /// # Errors
    /// If the stream fails, ends inside a message, or carries a bad frame.
    pub fn read_message<T: DeserializeOwned>(
        &mut self,
        stream: &mut impl Read,
    ) -> Result<Option<T>, FrameError> {
        let mut chunk = vec![0_u8; READ_CHUNK];
        loop {
            if let Some(message) = self.next_message()? {
                return Ok(Some(message));
            }
            match stream.read(&mut chunk) {
                Ok(0) if self.is_empty() => return Ok(None),
                Ok(0) => return Err(FrameError::Truncated),
                Ok(n) => self.extend(chunk.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Whether no byte of an unfinished message is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.len() == self.consumed
    }
}
