//! Reading the logs of a VM, while they are written and after.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::WatchFlags;

use crate::state::error::failed;
use crate::state::log_file::old;
use crate::state::watches::Watches;
use crate::state::{Result, Vm};

/// How much is read at a time.
const CHUNK: usize = 64 * 1024;

/// Which log of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// What the VM's command writes, output and errors as they come.
    Output,
    /// The guest's console.
    Console,
    /// What happened, a line of JSON each: see [`crate::state::EventReader`].
    Events,
    /// What the network saw, as part of what happened.
    Network,
}

impl LogStream {
    /// The file's name in the VM's directory.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Output => "output.log",
            Self::Console => "console.log",
            Self::Events => "events.log",
            Self::Network => "network.log",
        }
    }
}

/// A log that is read to its end so far, and then as it grows, also when it becomes
/// the old one and another begins.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: Option<File>,
    /// Read already and not returned yet.
    pending: Vec<u8>,
    watches: Watches,
    /// That of the file, if it is watched.
    of_file: Option<i32>,
    lost: bool,
}

impl LogReader {
    /// Opens a log of a VM; of what is there already only the last `tail` lines count,
    /// if that is given.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(vm: &Vm, stream: LogStream, tail: Option<usize>) -> Result<Self> {
        let path = vm.directory().join(stream.file_name());
        Self::at(path, vm.directory(), tail)
    }

    pub(crate) fn at(path: PathBuf, directory: &Path, tail: Option<usize>) -> Result<Self> {
        let names = WatchFlags::CREATE | WatchFlags::MOVED_TO;
        let watches = watch(directory, names).map_err(failed("watch", directory))?;
        let mut reader = Self {
            path,
            file: None,
            pending: Vec::new(),
            watches,
            of_file: None,
            lost: false,
        };
        reader.begin(tail).map_err(|source| {
            let path = reader.path.clone();
            failed("read", &path)(source)
        })?;
        Ok(reader)
    }

    /// Reads what is there: both files are small.
    fn begin(&mut self, tail: Option<usize>) -> io::Result<()> {
        self.open_current()?;
        let mut before = Vec::new();
        if let Some(mut file) = open(&old(&self.path))? {
            // It may have become the old one since it was opened.
            let same = match &self.file {
                Some(current) => inode(&file.metadata()?) == inode(&current.metadata()?),
                None => false,
            };
            if !same {
                file.read_to_end(&mut before)?;
            }
            // What follows it is not there yet.
            self.file.get_or_insert(file);
        }
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut before)?;
        }
        if let Some(lines) = tail {
            before.drain(..last_lines(&before, lines));
        }
        self.pending = before;
        Ok(())
    }

    /// What there is now; empty at the end so far.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn available(&mut self) -> Result<Vec<u8>> {
        self.read_on()
            .map_err(|source| failed("read", &self.path)(source))
    }

    fn read_on(&mut self) -> io::Result<Vec<u8>> {
        if !self.pending.is_empty() {
            return Ok(std::mem::take(&mut self.pending));
        }
        loop {
            let Some(file) = &mut self.file else {
                self.open_what_follows(None)?;
                if self.file.is_none() {
                    return Ok(Vec::new());
                }
                continue;
            };
            let chunk = read_chunk(file)?;
            if !chunk.is_empty() {
                return Ok(chunk);
            }
            let ours = inode(&file.metadata()?);
            let there = match fs::metadata(&self.path) {
                Ok(metadata) => Some(inode(&metadata)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            if there == Some(ours) {
                return Ok(Vec::new());
            }
            // Nothing is written to it any more, but may have been since.
            let chunk = read_chunk(file)?;
            if !chunk.is_empty() {
                return Ok(chunk);
            }
            let Some(_) = there else {
                return Ok(Vec::new());
            };
            self.open_what_follows(Some(ours))?;
        }
    }

    /// Goes on to what was written after the file that was read, if one was: to the
    /// current file if that is the next, or else to the oldest there is.
    fn open_what_follows(&mut self, read: Option<Inode>) -> io::Result<()> {
        self.open_current()?;
        // Looked at after the current file is open: if the old one is what was read, no
        // other was between them. One that cannot be opened is as good as gone.
        let before = open(&old(&self.path)).unwrap_or_default();
        let before = before.and_then(|file| Some((inode(&file.metadata().ok()?), file)));
        match before {
            Some((number, _)) if Some(number) == read => {}
            Some((_, file)) => {
                // How many there were between them, if any, nobody knows.
                self.lost = true;
                // The current one may have become the old one since: it is the same then.
                self.file = Some(file);
            }
            None => self.lost |= read.is_some(),
        }
        Ok(())
    }

    fn open_current(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        if self.file.is_some() {
            // Before it is read: what is written afterwards is an event. A file that
            // was replaced meanwhile is noticed by its number.
            let watch = self.watches.add(&self.path, WatchFlags::MODIFY).ok();
            if let Some(before) = std::mem::replace(&mut self.of_file, watch)
                && watch != Some(before)
            {
                self.watches.remove(before);
            }
        }
        Ok(())
    }

    /// What was there when this was opened, if none of it was returned yet.
    pub(super) fn take_first(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Waits until there may be more. Cancel safe.
    ///
    /// # Errors
    /// The host does not say.
    pub async fn changed(&mut self) -> Result<()> {
        let changed = self.watches.changed().await;
        changed.map_err(failed("watch", &self.path))
    }

    /// Whether so much was written, before it was read, that some of it may be gone;
    /// since this was last asked.
    pub fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }
}

/// Tells when VMs are made or removed.
#[derive(Debug)]
pub struct ListWatch {
    directory: PathBuf,
    watches: Watches,
}

impl ListWatch {
    pub(super) fn on(directory: &Path) -> Result<Self> {
        let names = WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
        Ok(Self {
            directory: directory.to_owned(),
            watches: watch(directory, names).map_err(failed("watch", directory))?,
        })
    }

    /// Waits until there may be others than before. Cancel safe.
    ///
    /// # Errors
    /// The host does not say.
    pub async fn changed(&mut self) -> Result<()> {
        let changed = self.watches.changed().await;
        changed.map_err(failed("watch", &self.directory))
    }
}

fn watch(directory: &Path, what: WatchFlags) -> io::Result<Watches> {
    let mut watches = Watches::new()?;
    watches.add(directory, what)?;
    Ok(watches)
}

fn open(path: &Path) -> io::Result<Option<File>> {
    // Whatever is there is not waited for.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    match file {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_chunk(file: &mut File) -> io::Result<Vec<u8>> {
    let mut chunk = vec![0; CHUNK];
    let read = loop {
        match file.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    chunk.truncate(read);
    Ok(chunk)
}

/// What tells a file from all others while it is open.
type Inode = (u64, u64);

fn inode(metadata: &fs::Metadata) -> Inode {
    (metadata.dev(), metadata.ino())
}

/// Where the last `lines` lines begin.
fn last_lines(text: &[u8], lines: usize) -> usize {
    if lines == 0 {
        return text.len();
    }
    // The end of the last line ends nothing that is left out.
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut ends = body
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n');
    ends.nth(lines.saturating_sub(1))
        .map_or(0, |(at, _)| at.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::state::log_file::LogFile;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn lines_are_counted_from_the_end() {
        for (text, lines, rest) in [
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc", 1, "c"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("a\n\n", 1, "\n"),
            ("a\n", 0, ""),
            ("", 5, ""),
        ] {
            assert_eq!(
                &text[last_lines(text.as_bytes(), lines)..],
                rest,
                "{text:?}"
            );
        }
    }

    /// More than a user may have of what watches files, where nobody has changed that.
    const MANY: usize = 200;

    #[tokio::test]
    async fn many_logs_are_followed_at_once_and_each_is_told_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut logs: Vec<_> = (0..MANY)
            .map(|number| {
                let directory = dir.path().join(number.to_string());
                fs::create_dir(&directory).unwrap();
                let path = directory.join("output.log");
                let reader = LogReader::at(path.clone(), &directory, None).unwrap();
                (LogFile::with_max(path, 100).unwrap(), reader)
            })
            .collect();
        let instances = fs::read_dir("/proc/self/fd").unwrap().filter(|entry| {
            let target = fs::read_link(entry.as_ref().unwrap().path());
            target.is_ok_and(|target| target == Path::new("anon_inode:inotify"))
        });
        let instances = instances.count();
        assert!(instances < MANY / 10, "{instances}");
        for (number, (log, _)) in logs.iter_mut().enumerate() {
            log.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        for (number, (_, reader)) in logs.iter_mut().enumerate() {
            let line = loop {
                timeout(LONG, reader.changed()).await.unwrap().unwrap();
                let chunk = reader.available().unwrap();
                if !chunk.is_empty() {
                    break chunk;
                }
            };
            assert_eq!(line, format!("{number}\n").into_bytes());
        }
        // Again, now that each knows its file.
        let (log, reader) = &mut logs[MANY / 2];
        log.write_all(b"more\n").unwrap();
        timeout(LONG, reader.changed()).await.unwrap().unwrap();
        assert_eq!(reader.available().unwrap(), b"more\n");
    }

    #[test]
    fn who_falls_behind_goes_on_with_the_oldest_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let all = |reader: &mut LogReader| {
            let mut all = Vec::new();
            loop {
                match reader.available().unwrap() {
                    chunk if chunk.is_empty() => return String::from_utf8(all).unwrap(),
                    chunk => all.extend(chunk),
                }
            }
        };
        let mut early = LogReader::at(path.clone(), dir.path(), None).unwrap();
        let mut log = LogFile::with_max(path.clone(), 4).unwrap();
        log.write_all(b"one ").unwrap();
        let mut reader = LogReader::at(path.clone(), dir.path(), None).unwrap();
        assert_eq!(all(&mut reader), "one ");
        log.write_all(b"two tre fou fiv ").unwrap();
        // Two and three are gone.
        assert_eq!(all(&mut reader), "fou fiv ");
        assert!(reader.take_lost());
        log.write_all(b"six").unwrap();
        assert_eq!(all(&mut reader), "six");
        assert!(!reader.take_lost());
        // Nothing was there for this one when it began.
        assert_eq!(all(&mut early), "fiv six");
        assert!(early.take_lost());
    }

    #[test]
    fn an_old_file_alone_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        // Its follower is about to be made.
        fs::write(old(&path), "one ").unwrap();
        let mut reader = LogReader::at(path.clone(), dir.path(), None).unwrap();
        assert_eq!(reader.available().unwrap(), b"one ");
        assert!(reader.available().unwrap().is_empty());
        fs::write(&path, "two").unwrap();
        assert_eq!(reader.available().unwrap(), b"two");
        assert!(reader.available().unwrap().is_empty());
        assert!(!reader.take_lost());
    }

    #[tokio::test]
    async fn a_log_is_followed_from_before_it_is_there_and_through_its_turns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut reader = LogReader::at(path.clone(), dir.path(), None).unwrap();
        assert!(reader.available().unwrap().is_empty());
        let mut log = LogFile::with_max(path.clone(), 10).unwrap();
        let mut seen = Vec::new();
        for part in ["one ", "two three ", "four ", "five six"] {
            log.write_all(part.as_bytes()).unwrap();
            let before = seen.len();
            while seen.len() < before + part.len() {
                let chunk = reader.available().unwrap();
                if chunk.is_empty() {
                    timeout(LONG, reader.changed()).await.unwrap().unwrap();
                }
                seen.extend(chunk);
            }
        }
        assert_eq!(
            String::from_utf8(seen).unwrap(),
            "one two three four five six"
        );
        assert!(!reader.take_lost());
        log.write_all(&[b'x'; 35]).unwrap();
        while !reader.available().unwrap().is_empty() {}
        assert!(reader.take_lost());
        // Whoever comes later gets what there is.
        let mut late = LogReader::at(path, dir.path(), Some(1)).unwrap();
        // 62 bytes by tens: the last two, and those before.
        assert_eq!(late.available().unwrap().len(), 12);
    }
}
