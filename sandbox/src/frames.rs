//! Frames over a tokio stream.

use flashpan_protocol::frame::{Decoder, FrameError};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads frames.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    stream: R,
    decoder: Decoder,
    chunk: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader of frames of at most `max` bytes, that takes up to `chunk`
    /// bytes at a time from the stream.
    pub(crate) fn new(stream: R, max: usize, chunk: usize) -> Self {
        Self {
            stream,
            decoder: Decoder::new(max),
            chunk: vec![0; chunk],
        }
    }

    /// Whether nothing has come that was not returned.
    pub(crate) fn is_empty(&self) -> bool {
        self.decoder.is_empty()
    }

    /// The stream itself.
    pub(crate) fn into_inner(self) -> R {
        self.stream
    }

    /// The next message, or `None` if the stream ends between messages. Cancel
    /// safe: bytes that arrived are kept.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(Some(message));
            }
            match self.stream.read(&mut self.chunk).await? {
                0 if self.decoder.is_empty() => return Ok(None),
                0 => return Err(FrameError::Truncated),
                n => self.decoder.extend(self.chunk.get(..n).unwrap_or_default()),
            }
        }
    }
}
