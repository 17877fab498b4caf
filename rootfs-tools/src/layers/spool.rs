//! Unlinked files for what layers unpack to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::error::LayerError;
use crate::tar::Segment;

/// Zeros are left out in blocks of this size: what later looks for holes does
/// so in files of at least as much.
const HOLE: usize = 64 << 10;
/// Sparse files start at multiples of this, so that their holes are holes.
const ALIGN: u64 = 4096;

/// A file without a name; gone when it is closed, even by a crash.
fn unnamed(directory: &Path) -> Result<File, LayerError> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(File::from(fd)),
        Err(error) => Err(failed("make", directory)(error.into())),
    }
}

fn failed<'a>(what: &'static str, directory: &'a Path) -> impl Fn(io::Error) -> LayerError + 'a {
    move |source| LayerError::Spool {
        what,
        directory: directory.to_owned(),
        source,
    }
}

/// A stream, in a file with holes for its zeros.
#[derive(Debug)]
pub(super) struct Spool<'a> {
    directory: &'a Path,
    file: File,
    length: u64,
}

impl<'a> Spool<'a> {
    pub(super) fn new(directory: &'a Path) -> Result<Self, LayerError> {
        Ok(Self {
            directory,
            file: unnamed(directory)?,
            length: 0,
        })
    }

    /// Appends `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        let failed = failed("write", self.directory);
        let mut start = 0;
        let mut at = 0;
        while at < bytes.len() {
            // Blocks are those of the file, not of these bytes.
            let in_block = usize::try_from((self.length + to_u64(at)) % to_u64(HOLE)).unwrap_or(0);
            let end = bytes.len().min(at + HOLE - in_block);
            let block = bytes.get(at..end).unwrap_or_default();
            if block.len() == HOLE && is_zero(block) {
                let data = bytes.get(start..at).unwrap_or_default();
                self.file
                    .write_all_at(data, self.length + to_u64(start))
                    .map_err(&failed)?;
                start = end;
            }
            at = end;
        }
        let data = bytes.get(start..).unwrap_or_default();
        self.file
            .write_all_at(data, self.length + to_u64(start))
            .map_err(&failed)?;
        self.length += to_u64(bytes.len());
        Ok(())
    }

    /// The file, as long as the stream.
    pub(super) fn finish(self) -> Result<Arc<File>, LayerError> {
        self.file
            .set_len(self.length)
            .map_err(failed("write", self.directory))?;
        Ok(Arc::new(self.file))
    }
}

/// The sparse files of a layer, expanded, one after the other in one file.
#[derive(Debug)]
pub(super) struct Expander<'a> {
    directory: &'a Path,
    file: Option<Arc<File>>,
    /// First byte after the last file.
    end: u64,
    /// The file being written: where it starts, and the pieces that are missing.
    base: u64,
    missing: std::vec::IntoIter<Segment>,
    current: Segment,
}

impl<'a> Expander<'a> {
    pub(super) fn new(directory: &'a Path) -> Self {
        Self {
            directory,
            file: None,
            end: 0,
            base: 0,
            missing: Vec::new().into_iter(),
            current: Segment {
                offset: 0,
                length: 0,
            },
        }
    }

    /// Starts a file of `size` bytes; its file and offset.
    pub(super) fn begin(
        &mut self,
        size: u64,
        map: Vec<Segment>,
    ) -> Result<(Arc<File>, u64), LayerError> {
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => Arc::clone(self.file.insert(Arc::new(unnamed(self.directory)?))),
        };
        self.base = self.end.next_multiple_of(ALIGN);
        self.end = self.base.saturating_add(size);
        file.set_len(self.end)
            .map_err(failed("write", self.directory))?;
        self.missing = map.into_iter();
        self.current = Segment {
            offset: 0,
            length: 0,
        };
        Ok((file, self.base))
    }

    /// Writes what is stored next of the file.
    pub(super) fn data(&mut self, mut bytes: &[u8]) -> Result<(), LayerError> {
        while !bytes.is_empty() {
            if self.current.length == 0 {
                let Some(next) = self.missing.next() else {
                    return Ok(());
                };
                self.current = next;
                continue;
            }
            let most = usize::try_from(self.current.length).unwrap_or(usize::MAX);
            let (data, rest) = bytes.split_at(bytes.len().min(most));
            if let Some(file) = &self.file {
                let at = self.base.saturating_add(self.current.offset);
                file.write_all_at(data, at)
                    .map_err(failed("write", self.directory))?;
            }
            self.current.offset += to_u64(data.len());
            self.current.length -= to_u64(data.len());
            bytes = rest;
        }
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Most blocks show in their first bytes that they are not.
    let (first, rest) = bytes.split_at(bytes.len().min(64));
    first.iter().all(|byte| *byte == 0)
        && rest
            .chunks(128)
            .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_become_holes_and_the_rest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let mut content = vec![0_u8; 1 << 20];
        content[0] = 1;
        content[300_000..300_010].fill(2);
        content.extend([0; 100_000]);
        for step in [1000, HOLE, 200_000, usize::MAX] {
            let mut spool = Spool::new(directory.path()).unwrap();
            for part in content.chunks(step.min(content.len())) {
                spool.write(part).unwrap();
            }
            let file = spool.finish().unwrap();
            let mut read = vec![9; content.len()];
            file.read_exact_at(&mut read, 0).unwrap();
            assert!(read == content, "step {step}");
            assert_eq!(file.metadata().unwrap().len(), to_u64(content.len()));
            if step >= 200_000 {
                assert!(
                    file.metadata().unwrap().blocks() * 512 < 1 << 19,
                    "no holes"
                );
            }
        }
    }
}
