//! What the two ends of a lab say to each other, over one virtio-serial port.
//!
//! A frame is a kind (one byte), a length (little-endian `u32`) and a payload.
//! Standard input is the only thing the host sends without being asked, so it
//! is the only thing with credit: the agent grants bytes as the command reads
//! them, and signals and pings are never stuck behind input nobody reads.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The name of the virtio-serial port, as the guest sees it in sysfs.
pub(crate) const PORT_NAME: &str = "flashpan.lab";

/// Longest payload accepted from the other side, in bytes. The environment
/// travels in one frame and is bounded by the kernel's own limit on `execve`.
const MAX_PAYLOAD: u32 = 4 << 20;

/// Standard input in flight towards the command, in bytes.
pub(crate) const STDIN_WINDOW: u32 = 256 << 10;

/// The meaning of a frame. Host to lab: `Start` to `Ping`; lab to host: the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A [`Start`] record: run this command.
    Start = 1,
    /// One byte: a signal number for the command's process group.
    Signal,
    /// Two `u16`: rows and columns of the terminal.
    Resize,
    /// Bytes for standard input; an empty payload is its end.
    Stdin,
    /// Are you alive?
    Ping,
    /// The agent runs and waits for `Start`.
    Hello = 16,
    /// Bytes from the command's standard output.
    Stdout,
    /// Bytes from the command's standard error.
    Stderr,
    /// A `u32`: that many bytes more of standard input may be sent.
    Credit,
    /// A line about the run for the person watching.
    Note,
    /// One byte: the exit status, as a shell would report it.
    Exit,
    /// The answer to `Ping`.
    Pong,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 12] = [
            Kind::Start,
            Kind::Signal,
            Kind::Resize,
            Kind::Stdin,
            Kind::Ping,
            Kind::Hello,
            Kind::Stdout,
            Kind::Stderr,
            Kind::Credit,
            Kind::Note,
            Kind::Exit,
            Kind::Pong,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Writes one frame with a single call, so that writers which share a port
/// under a lock never interleave.
///
/// # Errors
/// The write failed, or the payload is longer than a frame may be.
pub(crate) fn send(port: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|length| *length <= MAX_PAYLOAD)
        .ok_or_else(|| io::Error::other("the arguments and environment exceed 4 MiB"))?;
    let mut frame = Vec::with_capacity(payload.len() + 5);
    frame.push(kind as u8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(payload);
    port.write_all(&frame)?;
    port.flush()
}

/// Reads one frame; `None` when the other side has gone.
///
/// # Errors
/// The read failed, or what came is not a frame.
pub(crate) fn receive(port: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut head = [0u8; 5];
    match port.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let [kind, length @ ..] = head;
    let length = u32::from_le_bytes(length);
    let kind = Kind::from_byte(kind)
        .filter(|_| length <= MAX_PAYLOAD)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a lab frame"))?;
    let mut payload = Vec::new();
    port.take(u64::from(length)).read_to_end(&mut payload)?;
    Ok(Some((kind, payload)))
}

/// What to run, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    /// Rows and columns of the terminal to give the command; without, pipes.
    pub(crate) terminal: Option<(u16, u16)>,
    /// How many times in a row; the first failure ends it.
    pub(crate) repeat: u32,
    /// The working directory.
    pub(crate) directory: PathBuf,
    /// The whole environment.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// The command and its arguments, never empty.
    pub(crate) command: Vec<OsString>,
}

impl Start {
    /// The payload of a `Start` frame: strings with a NUL after each, which
    /// none of them can contain.
    #[must_use]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (rows, columns) = self.terminal.unwrap_or((0, 0));
        let head = format!("{rows} {columns} {} {}", self.repeat, self.command.len());
        let mut out = Vec::from(head.as_bytes());
        let mut push = |parts: &[&[u8]]| {
            out.push(0);
            parts.iter().for_each(|part| out.extend_from_slice(part));
        };
        push(&[self.directory.as_os_str().as_bytes()]);
        self.command
            .iter()
            .for_each(|word| push(&[word.as_bytes()]));
        for (name, value) in &self.environment {
            push(&[name.as_bytes(), b"=", value.as_bytes()]);
        }
        out
    }

    /// The reverse of [`Start::encode`]; `None` when it is no such record.
    #[must_use]
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let mut parts = payload.split(|byte| *byte == 0);
        let head = str::from_utf8(parts.next()?).ok()?;
        let mut numbers = head.split(' ').map(|number| number.parse::<u32>().ok());
        let mut number = || numbers.next().flatten();
        let rows = u16::try_from(number()?).ok()?;
        let columns = u16::try_from(number()?).ok()?;
        let repeat = number()?;
        let words = usize::try_from(number()?).ok()?;
        let mut text = || parts.next().map(|part| OsString::from_vec(part.to_vec()));
        let directory = PathBuf::from(text()?);
        let command: Vec<OsString> = std::iter::from_fn(&mut text).take(words).collect();
        if command.is_empty() || command.len() != words {
            return None;
        }
        let environment = parts
            .filter_map(|part| {
                // The first byte may be `=` and belong to the name.
                let split = part.iter().skip(1).position(|byte| *byte == b'=')? + 1;
                let (name, value) = part.split_at_checked(split)?;
                let value = value.get(1..)?;
                Some((
                    OsString::from_vec(name.to_vec()),
                    OsString::from_vec(value.to_vec()),
                ))
            })
            .collect();
        let terminal = (rows > 0).then_some((rows, columns));
        Some(Self {
            terminal,
            repeat,
            directory,
            environment,
            command,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_record_survives_the_journey() {
        let start = Start {
            terminal: Some((24, 80)),
            repeat: 3,
            directory: "/tmp/with space".into(),
            environment: vec![
                ("PATH".into(), "/bin".into()),
                ("EMPTY".into(), "".into()),
                ("EQUALS".into(), "a=b".into()),
            ],
            command: vec![
                "sh".into(),
                "".into(),
                OsString::from_vec(vec![0xff, b'\n']),
            ],
        };
        assert_eq!(Start::decode(&start.encode()), Some(start));
    }

    #[test]
    fn a_cut_start_record_is_refused() {
        assert_eq!(Start::decode(b""), None);
        assert_eq!(Start::decode(b"0 0 1 2\0/\0only-one"), None);
        assert_eq!(Start::decode(b"0 0 1 0\0/"), None);
    }

    #[test]
    fn frames_come_out_as_they_went_in_and_rubbish_is_an_error() {
        let mut pipe = Vec::new();
        send(&mut pipe, Kind::Stdout, b"abc").unwrap();
        send(&mut pipe, Kind::Pong, b"").unwrap();
        let mut reader = pipe.as_slice();
        assert_eq!(
            receive(&mut reader).unwrap(),
            Some((Kind::Stdout, b"abc".to_vec()))
        );
        assert_eq!(
            receive(&mut reader).unwrap(),
            Some((Kind::Pong, Vec::new()))
        );
        assert_eq!(receive(&mut reader).unwrap(), None);
        assert!(receive(&mut [99u8, 0, 0, 0, 0].as_slice()).is_err());
        assert!(receive(&mut [17u8, 255, 255, 255, 255].as_slice()).is_err());
    }
}
