//! A program whose output is data, not lines for a log.

use std::io::{self, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::{Group, die_with_parent, forward};
use crate::cancel::{Cancel, Event};

/// Bytes that are taken from the program at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks and lines in flight. When the consumer is slow, the program waits.
const QUEUE: usize = 8;

/// What a program says.
#[derive(Debug)]
pub(crate) enum Output<'a> {
    /// Bytes of its standard output.
    Data(&'a [u8]),
    /// A line of its standard error.
    Line(&'a str),
}

/// Why a program did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError<E> {
    #[error("cannot run it: {0}")]
    Start(io::Error),
    #[error("stopped")]
    Cancelled,
    /// The consumer wants no more.
    #[error("{0}")]
    Consumer(E),
}

/// Runs `command` to its end and hands everything that it writes to `consume`.
/// On any early return its process group is killed.
pub(crate) fn stream<E>(
    mut command: Command,
    cancel: &Cancel,
    consume: &mut dyn FnMut(Output<'_>) -> Result<(), E>,
) -> Result<ExitStatus, StreamError<E>> {
    let (data, data_writer) = io::pipe().map_err(StreamError::Start)?;
    let (lines, lines_writer) = io::pipe().map_err(StreamError::Start)?;
    command
        .stdin(Stdio::null())
        .stdout(data_writer)
        .stderr(lines_writer)
        .process_group(0);
    die_with_parent(&mut command);
    let mut group = Group {
        child: command.spawn().map_err(StreamError::Start)?,
        ended: false,
    };
    // Its copies of the writing ends would keep the readers from their end.
    drop(command);

    let (send, receive) = sync_channel(QUEUE);
    cancel.attach(send.clone());
    let readers = [
        {
            let send = send.clone();
            thread::spawn(move || forward(lines, &send))
        },
        thread::spawn(move || forward_data(data, &send)),
    ];
    let consumed = take_all(&receive, cancel, readers.len(), consume);
    cancel.detach();
    let result = match consumed {
        Ok(()) => group.wait().map_err(StreamError::Start),
        Err(error) => Err(error),
    };
    // The readers end with the pipes, whose writers are dead, or with the queue.
    drop(group);
    drop(receive);
    for reader in readers {
        let _ = reader.join();
    }
    result
}

/// Takes events until all of the readers are at their end.
fn take_all<E>(
    receive: &Receiver<Event>,
    cancel: &Cancel,
    mut readers: usize,
    consume: &mut dyn FnMut(Output<'_>) -> Result<(), E>,
) -> Result<(), StreamError<E>> {
    while readers > 0 {
        let event = receive.recv();
        if cancel.is_cancelled() {
            return Err(StreamError::Cancelled);
        }
        let output = match event {
            Ok(Event::Data(bytes)) => consume(Output::Data(&bytes)),
            Ok(Event::Line(line)) => consume(Output::Line(&line)),
            Ok(Event::End) => {
                readers -= 1;
                Ok(())
            }
            Ok(Event::Locked(_) | Event::Cancelled) => Ok(()),
            Err(_) => return Ok(()),
        };
        output.map_err(StreamError::Consumer)?;
    }
    Ok(())
}

/// Sends what comes out of the pipe until it or the listener ends.
fn forward_data(mut reader: PipeReader, send: &SyncSender<Event>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Ok(length) if length > 0 => {
                let chunk = buffer.get(..length).unwrap_or_default().to_vec();
                if send.send(Event::Data(chunk)).is_err() {
                    return;
                }
            }
            Ok(_) | Err(_) => break,
        }
    }
    let _ = send.send(Event::End);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn data_and_lines_arrive_apart_and_the_status_is_known() {
        let (mut data, mut lines) = (Vec::new(), Vec::new());
        let status = stream::<()>(
            shell("printf 'a\\0\\nb'; echo why >&2; exit 7"),
            &Cancel::default(),
            &mut |output| {
                match output {
                    Output::Data(bytes) => data.extend_from_slice(bytes),
                    Output::Line(line) => lines.push(line.to_owned()),
                }
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!(
            (data.as_slice(), lines),
            (&b"a\0\nb"[..], vec!["why".into()])
        );
    }

    #[test]
    fn a_program_without_end_ends_when_the_consumer_has_enough() {
        // The grandchild would hold the pipes open for longer than any test may take.
        let error = stream(
            shell("sleep 1000 & cat /dev/zero"),
            &Cancel::default(),
            &mut |_| Err("enough"),
        )
        .unwrap_err();
        assert!(matches!(error, StreamError::Consumer("enough")));
    }

    #[test]
    fn cancelling_kills_what_the_program_started() {
        let cancel = Cancel::default();
        let error = stream::<()>(shell("echo up; sleep 1000 & wait"), &cancel, &mut |_| {
            cancel.cancel();
            Ok(())
        })
        .unwrap_err();
        assert!(matches!(error, StreamError::Cancelled));
    }
}
