//! Programs that a build runs: output line by line, and an end that takes the
//! whole process group along.
#![allow(unsafe_code)] // One `pre_exec`, so that make cannot outlive us.

mod stream;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getppid};

use crate::cancel::{Cancel, Event};

pub(crate) use stream::{Output, StreamError, stream};

/// Lines kept for the message of a failure.
const TAIL_LINES: usize = 25;
/// Longest line that is looked at; compilers print no longer ones on purpose.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// Lines in flight between reader and consumer.
const QUEUE_LINES: usize = 256;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("cannot run `{program}`: {source}")]
    Start { program: String, source: io::Error },
    #[error("`{program}` failed ({status})")]
    Failed {
        program: String,
        status: String,
        tail: Vec<String>,
    },
    #[error("stopped")]
    Cancelled,
}

/// Runs `command` to its end. Every line of its output and errors goes to `log`
/// and to `on_line`. When `cancel` fires, or on any early return, the program's
/// process group is killed; when this process dies, the program gets SIGTERM.
pub(crate) fn run(
    mut command: Command,
    cancel: &Cancel,
    log: &mut File,
    on_line: &mut dyn FnMut(&str),
) -> Result<(), RunError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = |source| RunError::Start {
        program: program.clone(),
        source,
    };
    let (reader, writer) = io::pipe().map_err(start)?;
    let errors = writer.try_clone().map_err(start)?;
    command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(errors)
        .process_group(0);
    die_with_parent(&mut command);
    let mut group = Group {
        child: command.spawn().map_err(start)?,
        ended: false,
    };
    // Its copies of the pipe's writing end would keep the reader from its end.
    drop(command);

    let (send, receive) = sync_channel(QUEUE_LINES);
    cancel.attach(send.clone());
    let lines = thread::spawn(move || forward(reader, &send));
    let read = consume(&receive, cancel, log, on_line);
    cancel.detach();
    if read.is_none() {
        drop(group);
        // The reader ends with the pipe, whose writers are dead, or with the queue.
        drop(receive);
        let _ = lines.join();
        return Err(RunError::Cancelled);
    }
    let status = group.wait().map_err(start)?;
    let _ = lines.join();
    match read {
        Some(tail) if !status.success() => Err(RunError::Failed {
            program,
            status: status.to_string(),
            tail: tail.into(),
        }),
        _ => Ok(()),
    }
}

/// Sends lines until the pipe or the listener ends.
fn forward(reader: PipeReader, send: &SyncSender<Event>) {
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        match reader
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => break,
            Ok(_) => {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if send.send(Event::Line(line)).is_err() {
                    return;
                }
            }
        }
    }
    let _ = send.send(Event::End);
}

/// Takes lines until the end; `None` when cancelled.
fn consume(
    receive: &Receiver<Event>,
    cancel: &Cancel,
    log: &mut File,
    on_line: &mut dyn FnMut(&str),
) -> Option<VecDeque<String>> {
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    loop {
        let event = receive.recv();
        if cancel.is_cancelled() {
            return None;
        }
        match event {
            Ok(Event::Line(line)) => {
                // A log that cannot be written must not end a good build.
                let _ = writeln!(log, "{line}");
                on_line(&line);
                if tail.len() == TAIL_LINES {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Ok(Event::Cancelled) => return None,
            Ok(Event::Locked(_) | Event::Data(_)) => (),
            Ok(Event::End) | Err(_) => return Some(tail),
        }
    }
}

/// make passes SIGTERM on to what it runs and removes half-written targets.
fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let arm = move || {
        set_pdeathsig(Signal::SIGTERM)?;
        // The parent may have died before the line above.
        if getppid() == parent {
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    };
    // SAFETY: between fork and exec only two system calls are made, both
    // async-signal-safe; nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(arm);
    }
}

/// A child that leads a process group, which ends with this value.
struct Group {
    child: Child,
    ended: bool,
}

impl Group {
    fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        let status = self.child.wait()?;
        self.ended = true;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Not yet waited for, so the id is still that of our child. All it makes
        // is in a scratch directory: nothing to end gently.
        if let Ok(id) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    fn log() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn lines_of_output_and_errors_arrive_in_order() {
        let mut lines = Vec::new();
        run(
            shell("echo a; echo b >&2; echo c"),
            &Cancel::default(),
            &mut log(),
            &mut |line| {
                lines.push(line.to_owned());
            },
        )
        .unwrap();
        assert_eq!(lines, ["a", "b", "c"]);
    }

    #[test]
    fn a_failure_carries_the_last_lines_only() {
        let script = "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done; exit 3";
        let error = run(shell(script), &Cancel::default(), &mut log(), &mut |_| ()).unwrap_err();
        let RunError::Failed { status, tail, .. } = error else {
            panic!("{error}")
        };
        assert!(status.contains('3'), "{status}");
        assert_eq!(tail.len(), TAIL_LINES);
        assert_eq!(tail.last().unwrap(), "line 99");
    }

    #[test]
    fn cancelling_kills_what_the_program_started() {
        // The grandchild holds the pipe open for longer than any test may take: the
        // run ends only when it is dead too.
        let cancel = Cancel::default();
        let error = run(
            shell("sleep 1000 & echo up; wait"),
            &cancel,
            &mut log(),
            &mut |line| {
                assert_eq!(line, "up");
                cancel.cancel();
            },
        )
        .unwrap_err();
        assert!(matches!(error, RunError::Cancelled));
    }

    #[test]
    fn a_cancelled_step_takes_no_more_lines_though_many_wait() {
        let (send, receive) = sync_channel(10);
        for _ in 0..10 {
            send.send(Event::Line("one of many".into())).unwrap();
        }
        let cancel = Cancel::default();
        let mut seen = 0;
        let tail = consume(&receive, &cancel, &mut log(), &mut |_| {
            seen += 1;
            cancel.cancel();
        });
        assert_eq!((tail, seen), (None, 1));
    }

    #[test]
    fn a_cancelled_build_starts_nothing_more() {
        let cancel = Cancel::default();
        cancel.cancel();
        let error = run(shell("sleep 1000"), &cancel, &mut log(), &mut |_| ()).unwrap_err();
        assert!(matches!(error, RunError::Cancelled));
    }

    #[test]
    fn a_missing_program_is_named() {
        let command = Command::new("/nonexistent/make");
        let error = run(command, &Cancel::default(), &mut log(), &mut |_| ()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot run `/nonexistent/make`"),
            "{error}"
        );
    }
}
