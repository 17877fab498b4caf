//! A range of a file: what an archive's members and blobs are.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::directory::hex;
use crate::store::Cancel;

/// Read at a time.
const STEP: usize = 256 << 10;

/// Bytes of an open file. Cloning shares the file.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The file; its position is not used.
    pub file: Arc<File>,
    /// Where the bytes begin.
    pub offset: u64,
    /// How many there are.
    pub length: u64,
}

impl Piece {
    /// All of a file.
    ///
    /// # Errors
    ///
    /// Its size cannot be found out.
    pub fn whole(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            offset: 0,
            length,
        })
    }

    /// All bytes, if there are at most `max`.
    pub(crate) fn read(&self, max: usize) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.length).unwrap_or(usize::MAX);
        if length > max {
            let text = format!("it has {length} bytes; at most {max} are read");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, self.offset)?;
        Ok(bytes)
    }

    /// The first bytes, at most `N`; zeros where there are fewer.
    pub(crate) fn head<const N: usize>(&self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        let there = usize::try_from(self.length).unwrap_or(N).min(N);
        let there = bytes.get_mut(..there).unwrap_or_default();
        self.file.read_exact_at(there, self.offset)?;
        Ok(bytes)
    }

    /// `sha256:` and the digest of the bytes.
    pub(crate) fn digest(&self, progress: &mut dyn FnMut(u64)) -> io::Result<String> {
        let digest = self.digest_while(&mut |bytes| {
            progress(bytes);
            true
        })?;
        digest.ok_or_else(|| io::ErrorKind::Interrupted.into())
    }

    /// The same; nothing if it was cancelled.
    pub(crate) fn digest_unless(&self, cancel: &Cancel) -> io::Result<Option<String>> {
        self.digest_while(&mut |_| !cancel.is_cancelled())
    }

    fn digest_while(&self, go_on: &mut dyn FnMut(u64) -> bool) -> io::Result<Option<String>> {
        let mut reader = self.reader();
        let mut buffer = vec![0; STEP];
        let mut hash = Sha256::new();
        loop {
            match reader.read(&mut buffer)? {
                0 => break,
                n => {
                    hash.update(buffer.get(..n).unwrap_or_default());
                    if !go_on(u64::try_from(n).unwrap_or(0)) {
                        return Ok(None);
                    }
                }
            }
        }
        if reader.left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(format!("sha256:{}", hex(&hash.finalize()))))
    }

    /// Reads from the beginning; a file that is too short ends early.
    pub(crate) fn reader(&self) -> PieceReader {
        PieceReader {
            file: Arc::clone(&self.file),
            at: self.offset,
            left: self.length,
        }
    }
}

/// Reads a [`Piece`].
#[derive(Debug)]
pub(crate) struct PieceReader {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let buffer = buffer.get_mut(..most).unwrap_or_default();
        let n = self.file.read_at(buffer, self.at)?;
        let read = u64::try_from(n).unwrap_or(0);
        self.at = self.at.saturating_add(read);
        self.left = self.left.saturating_sub(read);
        Ok(n)
    }
}
