//! The events of a VM, read.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::path::Path;

use crate::state::logged_event::LoggedEvent;
use crate::state::{LogReader, LogStream, Result, Vm};

/// Longest line that is read: a program's words are bounded by its agent, and each
/// byte of them takes at most six in JSON.
const LINE_MAX: usize = 64 * 1024;

/// The events of a VM, as they are there and as they come.
#[derive(Debug)]
pub struct EventReader {
    vm: String,
    /// What its programs and itself did, and what the network saw.
    logs: [Log; 2],
    /// Of these only the last count that are there at first.
    tail: Option<usize>,
    last: VecDeque<LoggedEvent>,
}

/// One log of events.
#[derive(Debug)]
struct Log {
    reader: LogReader,
    network: bool,
    /// The beginning of a line.
    rest: Vec<u8>,
    ready: VecDeque<LoggedEvent>,
}

impl EventReader {
    /// Opens the events of a VM; of those that are there already only the last `tail`
    /// count, if that is given.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn open(vm: &Vm, tail: Option<usize>) -> Result<Self> {
        Self::at(vm.id(), vm.directory(), tail)
    }

    pub(crate) fn at(vm: &str, directory: &Path, tail: Option<usize>) -> Result<Self> {
        let log = |stream: LogStream| -> Result<Log> {
            Ok(Log {
                reader: LogReader::at(directory.join(stream.file_name()), directory, tail)?,
                network: stream == LogStream::Network,
                rest: Vec::new(),
                ready: VecDeque::new(),
            })
        };
        Ok(Self {
            vm: vm.to_owned(),
            logs: [log(LogStream::Events)?, log(LogStream::Network)?],
            tail,
            last: VecDeque::new(),
        })
    }

    /// The next one that is there, of those in the order of their times; `None` at the
    /// end so far.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn available(&mut self) -> Result<Option<LoggedEvent>> {
        if let Some(tail) = self.tail.take() {
            while let Some(event) = self.earliest()? {
                if self.last.len() >= tail {
                    self.last.pop_front();
                }
                if tail > 0 {
                    self.last.push_back(event);
                }
            }
        }
        match self.last.pop_front() {
            Some(event) => Ok(Some(event)),
            None => self.earliest(),
        }
    }

    fn earliest(&mut self) -> Result<Option<LoggedEvent>> {
        for log in &mut self.logs {
            log.fill(&self.vm)?;
        }
        let [one, other] = &mut self.logs;
        let from = match (one.ready.front(), other.ready.front()) {
            (Some(first), Some(second)) => match first.time.cmp(&second.time) {
                Ordering::Greater => other,
                Ordering::Less | Ordering::Equal => one,
            },
            (None, _) => other,
            (_, None) => one,
        };
        Ok(from.ready.pop_front())
    }

    /// Waits until there may be more. Cancel safe.
    ///
    /// # Errors
    /// The host does not say.
    pub async fn changed(&mut self) -> Result<()> {
        let [one, other] = &mut self.logs;
        tokio::select! {
            changed = one.reader.changed() => changed,
            changed = other.reader.changed() => changed,
        }
    }
}

impl Log {
    /// Reads on until there is an event, or all is read.
    fn fill(&mut self, vm: &str) -> Result<()> {
        while self.ready.is_empty() {
            let chunk = self.reader.available()?;
            if self.reader.take_lost() {
                // Nobody knows how many were in the file that is gone.
                let lost = LoggedEvent::of_lost(vm, 1, self.network);
                self.ready.push_back(lost);
            }
            if chunk.is_empty() {
                break;
            }
            self.take_in(&chunk);
        }
        Ok(())
    }

    fn take_in(&mut self, mut chunk: &[u8]) {
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            let (line, more) = chunk.split_at(end);
            self.rest.extend_from_slice(line);
            // Of a line that was not written whole (the disk was full), or is of a later
            // version, nothing is known.
            if let Ok(event) = serde_json::from_slice(&self.rest) {
                self.ready.push_back(event);
            }
            self.rest.clear();
            chunk = more.get(1..).unwrap_or_default();
        }
        self.rest.extend_from_slice(chunk);
        if self.rest.len() > LINE_MAX {
            self.rest.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::state::{LoggedKind, Status};

    fn line(second: u64, kind: &LoggedKind) -> String {
        let event = LoggedEvent {
            time: (SystemTime::UNIX_EPOCH + Duration::from_secs(second)).into(),
            vm: "vm-00000001".to_owned(),
            kind: kind.clone(),
        };
        format!("{}\n", serde_json::to_string(&event).unwrap())
    }

    fn write(directory: &Path, stream: LogStream, seconds: &[u64]) {
        let kind = match stream {
            LogStream::Network => LoggedKind::Lost {
                count: 1,
                network: true,
            },
            _ => LoggedKind::Vm {
                status: Status::Running,
                message: None,
            },
        };
        let lines: String = seconds.iter().map(|second| line(*second, &kind)).collect();
        std::fs::write(directory.join(stream.file_name()), lines).unwrap();
    }

    /// The seconds of what there is.
    fn seconds(reader: &mut EventReader) -> Vec<i64> {
        let mut seconds = Vec::new();
        while let Some(event) = reader.available().unwrap() {
            seconds.push(event.time.unix_seconds());
        }
        seconds
    }

    #[test]
    fn two_logs_are_read_as_one_in_the_order_of_time() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), LogStream::Events, &[1, 4, 5, 9]);
        write(dir.path(), LogStream::Network, &[2, 3, 5, 7, 8]);
        for (tail, expected) in [
            (None, &[1, 2, 3, 4, 5, 5, 7, 8, 9][..]),
            (Some(4), &[5, 7, 8, 9]),
            (Some(20), &[1, 2, 3, 4, 5, 5, 7, 8, 9]),
            (Some(0), &[]),
        ] {
            let mut reader = EventReader::at("vm-00000001", dir.path(), tail).unwrap();
            assert_eq!(seconds(&mut reader), expected, "{tail:?}");
        }
    }

    #[tokio::test]
    async fn both_logs_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = EventReader::at("vm-00000001", dir.path(), Some(2)).unwrap();
        assert_eq!(seconds(&mut reader), [0; 0]);
        for (stream, second) in [(LogStream::Events, 3), (LogStream::Network, 4)] {
            write(dir.path(), stream, &[second]);
            let event = loop {
                match reader.available().unwrap() {
                    Some(event) => break event,
                    None => reader.changed().await.unwrap(),
                }
            };
            assert_eq!(event.time.unix_seconds(), i64::try_from(second).unwrap());
        }
    }
}
