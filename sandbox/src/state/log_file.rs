//! A log on disk that never takes more than it may.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most bytes of a log file; there is one old one beside it.
const LOG_MAX: u64 = 8 << 20;

/// The name of the file that was full before this one.
pub(crate) fn old(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// A file that is written to its end. When it is full it becomes the old one, and the
/// old one is gone.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    max: u64,
}

impl LogFile {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        Self::with_max(path, LOG_MAX)
    }

    pub(super) fn with_max(path: PathBuf, max: u64) -> io::Result<Self> {
        let file = append(&path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            path,
            file,
            length,
            max,
        })
    }

    /// Begins another file if a line of this length would not be whole in this one.
    pub(crate) fn begin_line(&mut self, length: usize) -> io::Result<()> {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        match self.length.saturating_add(length) > self.max && self.length > 0 {
            true => self.rotate(),
            false => Ok(()),
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        match fs::rename(&self.path, old(&self.path)) {
            // Another file could not be begun the last time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        self.file = append(&self.path)?;
        self.length = 0;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

impl Write for LogFile {
    /// Takes everything: what a full disk has no room for is lost, and whoever writes
    /// goes on.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let left = usize::try_from(self.max.saturating_sub(self.length)).unwrap_or(usize::MAX);
            if left == 0 && self.rotate().is_err() {
                break;
            }
            let left = if left == 0 { usize::MAX } else { left };
            let most = left.min(usize::try_from(self.max).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at(rest.len().min(most));
            if self.file.write_all(now).is_err() {
                // Nothing rather than a part.
                let _ = self.file.set_len(self.length);
                break;
            }
            let written = u64::try_from(now.len()).unwrap_or(u64::MAX);
            self.length = self.length.saturating_add(written);
            rest = later;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_a_limit_and_one_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut log = LogFile::with_max(path.clone(), 10).unwrap();
        log.write_all(b"0123456789abc").unwrap();
        assert_eq!(fs::read(old(&path)).unwrap(), b"0123456789");
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        // Another start of the VM goes on where it was.
        let mut log = LogFile::with_max(path.clone(), 10).unwrap();
        log.write_all(&b"x".repeat(25)).unwrap();
        assert_eq!(fs::read(old(&path)).unwrap(), b"xxxxxxxxxx");
        assert_eq!(fs::read(&path).unwrap(), b"xxxxxxxx");
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 2);
    }
}
