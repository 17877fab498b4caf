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
    /// Opens the events of a VM; of those that are there at this moment only the last
    /// `tail` count, if that is given, and of those that come later all.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn open(vm: &Vm, tail: Option<usize>) -> Result<Self> {
        Self::at(vm.id(), vm.directory(), tail)
    }

    pub(crate) fn at(vm: &str, directory: &Path, tail: Option<usize>) -> Result<Self> {
        let log = |stream: LogStream| -> Result<Log> {
            Ok(Log {
                reader: LogReader::at(directory.join(stream.file_name()), directory, None)?,
                network: stream == LogStream::Network,
                rest: Vec::new(),
                ready: VecDeque::new(),
            })
        };
        let mut reader = Self {
            vm: vm.to_owned(),
            logs: [log(LogStream::Events)?, log(LogStream::Network)?],
        };
        if let Some(tail) = tail {
            reader.keep_last(tail);
        }
        Ok(reader)
    }

    /// Of what is there now, only the last `count` events are left.
    fn keep_last(&mut self, count: usize) {
        for log in &mut self.logs {
            log.keep_last(count);
        }
        let there = self.logs.iter().map(|log| log.ready.len());
        let there = there.fold(0, usize::saturating_add);
        for _ in count..there {
            self.take_earliest();
        }
    }

    /// The next one that is there, of those in the order of their times; `None` at the
    /// end so far.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn available(&mut self) -> Result<Option<LoggedEvent>> {
        for log in &mut self.logs {
            log.fill(&self.vm)?;
        }
        Ok(self.take_earliest())
    }

    /// The earliest of those that are read.
    fn take_earliest(&mut self) -> Option<LoggedEvent> {
        let [one, other] = &mut self.logs;
        let from = match (one.ready.front(), other.ready.front()) {
            (Some(first), Some(second)) => match first.time.cmp(&second.time) {
                Ordering::Greater => other,
                Ordering::Less | Ordering::Equal => one,
            },
            (None, _) => other,
            (_, None) => one,
        };
        from.ready.pop_front()
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
                // What follows is the begin of a file, and no end of a line.
                self.rest.clear();
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

    /// Of what was there at first, only the last `count` events are left. Lines that are
    /// none do not count: nobody sees them.
    fn keep_last(&mut self, count: usize) {
        let first = self.reader.take_first();
        let whole = first.iter().rposition(|byte| *byte == b'\n');
        let (lines, rest) = first.split_at(whole.map_or(0, |end| end.saturating_add(1)));
        // Not more than is wanted: logs are large, and most of this reads little of them.
        let events = lines.rsplit(|byte| *byte == b'\n').filter_map(event_in);
        self.ready = events.take(count).collect();
        self.ready.make_contiguous().reverse();
        // A line that is being written is an event yet to come.
        self.take_in(rest);
    }

    fn take_in(&mut self, mut chunk: &[u8]) {
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            let (line, more) = chunk.split_at(end);
            self.rest.extend_from_slice(line);
            self.ready.extend(event_in(&self.rest));
            self.rest.clear();
            chunk = more.get(1..).unwrap_or_default();
        }
        self.rest.extend_from_slice(chunk);
        if self.rest.len() > LINE_MAX {
            self.rest.clear();
        }
    }
}

/// The event of a line. Of one that was not written whole (the disk was full), or is of a
/// later version, nothing is known.
fn event_in(line: &[u8]) -> Option<LoggedEvent> {
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::state::log_file::old;
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

    fn append(directory: &Path, stream: LogStream, text: &str) {
        let path = directory.join(stream.file_name());
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    const PAUSED: LoggedKind = LoggedKind::Vm {
        status: Status::Paused,
        message: None,
    };

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

    #[test]
    fn what_comes_after_the_opening_is_there_whatever_the_tail() {
        for (tail, before) in [(0, &[][..]), (1, &[2]), (9, &[1, 2])] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), LogStream::Events, &[1]);
            write(dir.path(), LogStream::Network, &[2]);
            // One more is being written.
            let halved = line(3, &PAUSED);
            let (begin, end) = halved.split_at(20);
            append(dir.path(), LogStream::Events, begin);
            let mut reader = EventReader::at("vm-00000001", dir.path(), Some(tail)).unwrap();
            let later: String = (4..20).map(|second| line(second, &PAUSED)).collect();
            append(dir.path(), LogStream::Events, &format!("{end}{later}"));
            let expected: Vec<i64> = before.iter().copied().chain(3..20).collect();
            assert_eq!(seconds(&mut reader), expected, "{tail}");
        }
    }

    #[test]
    fn only_events_count_and_not_lines_that_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let of = |second| line(second, &PAUSED);
        // As two more runs of the VM, a killed supervisor and a later version leave it.
        let text = format!(
            "\n{}{}\n{}{{\"time\":1\n{}{{\"type\":\"new\"}}\n\n",
            of(1),
            of(2),
            of(3),
            of(4)
        );
        append(dir.path(), LogStream::Events, &text);
        append(dir.path(), LogStream::Network, "\n\n");
        let mut reader = EventReader::at("vm-00000001", dir.path(), Some(3)).unwrap();
        assert_eq!(seconds(&mut reader), [2, 3, 4]);
    }

    #[test]
    fn half_a_line_before_a_gap_is_no_begin_of_what_is_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LogStream::Events.file_name());
        append(dir.path(), LogStream::Events, "{\"time\":");
        let mut reader = EventReader::at("vm-00000001", dir.path(), None).unwrap();
        assert_eq!(seconds(&mut reader), [0; 0]);
        for second in [1, 2] {
            std::fs::rename(&path, old(&path)).unwrap();
            write(dir.path(), LogStream::Events, &[second]);
        }
        let lost = reader.available().unwrap().unwrap();
        assert!(matches!(lost.kind, LoggedKind::Lost { .. }), "{lost:?}");
        assert_eq!(seconds(&mut reader), [1, 2]);
    }
}
