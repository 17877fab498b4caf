//! A program in a guest that the user watches: its streams are ours, our signals are
//! its.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flashpan::{ExecOptions, ExitReason, ExitStatus, Process, Sandbox};
use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::signals::{Asked, Signals};
use crate::stdio::{self, Input, Stopped};
use crate::terminal::{self, RawMode};

/// How a program is attended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attended {
    pub(crate) interactive: bool,
    pub(crate) tty: bool,
    /// What ends when the user wants out: the VM, or the program.
    pub(crate) what: &'static str,
}

impl Attended {
    pub(crate) fn check_terminal(self) -> Result<(), Failure> {
        if self.tty && self.interactive && !terminal::stdin_is_terminal() {
            return Err(Failure::new(
                "-it needs a terminal on standard input, and it is none; leave -t out",
            ));
        }
        Ok(())
    }

    /// Runs the command to its end; the exit code.
    pub(crate) async fn run(
        self,
        sandbox: &Sandbox,
        mut exec: ExecOptions,
        signals: &mut Signals,
        failed: impl Fn(flashpan::Error) -> Failure,
    ) -> Result<u8, Failure> {
        signals.command_begins().await;
        if self.tty {
            // Now: a change from here on is a signal.
            exec = exec.terminal(terminal::size());
        }
        let mut process = tokio::select! {
            process = sandbox.exec(exec) => process.map_err(&failed)?,
            signal = signals.ending() => return Err(Failure::signalled(signal)),
            failure = time_up(sandbox, "starting the command") => return Err(failure),
        };
        // Not before there is a command to get the keys: until then Ctrl-C ends the
        // run. Without -i they are never the command's, or nothing could end it.
        let (_raw, input) = match self.tty && self.interactive {
            true => {
                let raw = RawMode::enter().map_err(|e| {
                    Failure::new(format!("cannot set the terminal to raw mode: {e}"))
                })?;
                (Some(raw), Input::Keys)
            }
            false => (None, Input::Data),
        };
        let streams = |e| Failure::new(format!("cannot serve a standard stream: {e}"));
        let stdin = process.stdin.take().map(|to| stdio::copy_in(to, input));
        let mut stdin = stdin.transpose().map_err(streams)?;
        let stdout = process
            .stdout
            .take()
            .map(|o| stdio::copy_out(o, io::stdout()));
        let stderr = process
            .stderr
            .take()
            .map(|o| stdio::copy_out(o, io::stderr()));
        let mut stdout = Copy::new(stdout.transpose().map_err(streams)?);
        let mut stderr = Copy::new(stderr.transpose().map_err(streams)?);
        let mut status = None;
        loop {
            tokio::select! {
                ended = process.wait(), if status.is_none() => match ended {
                    Ok(ended) => status = Some(ended),
                    Err(flashpan::Error::VmEnded(reason)) => return Err(ended_early(&reason)),
                    Err(flashpan::Error::VmTimeout { after }) => {
                        return Err(time_is_up(after, RUNNING));
                    }
                    Err(e) => return Err(failed(e)),
                },
                result = &mut stdout, if !stdout.done => result?,
                result = &mut stderr, if !stderr.done => result?,
                stopped = stopped(&mut stdin) => return Err(match stopped {
                    Stopped::Broken { error, .. } => {
                        Failure::new(format!("cannot read standard input: {error}"))
                    }
                    Stopped::Escaped => Failure::escaped(self.what),
                }),
                asked = signals.next() => self.obey(asked, &process)?,
                failure = time_up(sandbox, RUNNING) => return Err(failure),
            }
            if let Some(status) = status
                && stdout.done
                && stderr.done
            {
                return Ok(ExitStatus::shell_code(status));
            }
        }
    }

    fn obey(self, asked: Asked, process: &Process) -> Result<(), Failure> {
        // A command that has just ended takes no more requests, and its end is
        // the news that counts.
        match asked {
            Asked::Deliver(signal) => drop(process.signal(signal)),
            Asked::Resize if self.tty => drop(process.resize(terminal::size())),
            Asked::Resize => {}
            Asked::GiveUp(signal) => return Err(Failure::given_up(signal)),
        }
        Ok(())
    }
}

/// Waits for the news that standard input is no longer copied. Cancel safe.
async fn stopped(stdin: &mut Option<oneshot::Receiver<Stopped>>) -> Stopped {
    if let Some(news) = stdin {
        if let Ok(why) = news.await {
            return why;
        }
        // It was read to its end, or as far as anybody wanted it.
        *stdin = None;
    }
    std::future::pending().await
}

/// What to say when the VM ended under the command.
fn ended_early(reason: &ExitReason) -> Failure {
    match reason {
        ExitReason::PowerOff | ExitReason::Reboot | ExitReason::AskedByProgram { .. } => {
            Failure::new(format!("{reason} before the command ended"))
        }
        ExitReason::TimedOut { after, .. } => time_is_up(*after, RUNNING),
        reason => Failure::new(reason),
    }
}

/// One of our output streams, until all is written.
struct Copy {
    result: Option<oneshot::Receiver<io::Result<()>>>,
    done: bool,
}

impl Copy {
    fn new(result: Option<oneshot::Receiver<io::Result<()>>>) -> Self {
        Self {
            done: result.is_none(),
            result,
        }
    }
}

impl Future for Copy {
    type Output = Result<(), Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(receiver) = &mut self.result else {
            return Poll::Ready(Ok(()));
        };
        let result = ready!(Pin::new(receiver).poll(cx));
        self.done = true;
        Poll::Ready(match result {
            Ok(Err(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
                // Whoever read it has had enough: end as a program of this
                // machine would.
                Err(Failure::signalled(nix::libc::SIGPIPE))
            }
            Ok(Err(e)) => Err(Failure::new(format!(
                "cannot write the command's output: {e}"
            ))),
            Ok(Ok(())) | Err(_) => Ok(()),
        })
    }
}

/// What a run does for most of its time.
const RUNNING: &str = "running the command";

/// Waits until the VM's time is up, for ever if it has no limit. Cancel safe.
pub(crate) async fn time_up(sandbox: &Sandbox, doing: &str) -> Failure {
    time_is_up(sandbox.time_is_up().await, doing)
}

pub(crate) fn time_is_up(after: Duration, doing: &str) -> Failure {
    Failure::timed_out(format!(
        "time is up: {after:?} have passed since the VM was ready (--timeout, timeout_seconds) while {doing}"
    ))
}
