//! A VM and the handle to it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::agent::{EXEC_PORT, ExecOutput, HostMessage, MAX_FRAME};
use flashpan_protocol::control::Stats;
use flashpan_protocol::frame::{self, FrameError};
use flashpan_protocol::phase::Phase;
use flashpan_protocol::supervisor::Request;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::api::Config;
use crate::attach::{Attachment, KILL_WITHIN};
use crate::config::{Root, SandboxBuilder};
use crate::dial::Dialer;
use crate::driver::{Command, Ended};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::exec::ExecOptions;
use crate::exit::{Exit, ExitReason};
use crate::frames::FrameReader;
use crate::logs::Kept;
use crate::process::Process;
use crate::pump::{MAX_OUTPUT_FRAME, Task, broken, lost};
use crate::shared::Shared;
use crate::surroundings::Surroundings;
use crate::text::one_line;
use crate::timeline::Report;

/// How long the guest may take to start a program.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the VMM may take to answer.
pub(crate) const VMM_TIMEOUT: Duration = Duration::from_secs(5);

/// When a supervisor that could not be asked is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// How long a guest may take to sync and unmount after its programs ended, if its
/// owner does not say.
pub(crate) const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(10);

/// How long programs may take to end when the time of their VM is up.
pub(crate) const LIMIT_GRACE: Duration = Duration::from_secs(5);

/// A running micro-VM. Dropping it kills the VM, unless another process supervises it
/// ([`Sandbox::attach`]).
///
/// It needs a tokio runtime with I/O and time enabled. A runtime that is
/// dropped first takes the VM with it, and waits for its process to be gone, but
/// no longer than 10 seconds for each.
#[derive(Debug)]
pub struct Sandbox {
    pub(crate) way: Way,
    pub(crate) ended: Ended,
    pub(crate) shared: Arc<Shared>,
    /// What it was made from, if it was made from a configuration.
    pub(crate) config: Option<Arc<Config>>,
    /// What its programs have in common.
    pub(crate) surroundings: Surroundings,
    /// Programs that run as long as the VM does.
    pub(crate) kept: std::sync::Mutex<Vec<Kept>>,
    /// Listens to the guest's PID 1, or for the news of the end.
    pub(crate) _listener: Task,
    pub(crate) _time_limit: Option<Task>,
}

/// How this process reaches the VM.
#[derive(Debug)]
pub(crate) enum Way {
    /// The VMM is its child.
    Own {
        commands: mpsc::Sender<Command>,
        kill: mpsc::Sender<()>,
        boot_writer: Arc<Mutex<OwnedWriteHalf>>,
        pid: i32,
        vcpus: u32,
        memory_mib: u64,
    },
    /// Another process supervises it.
    Attached(Attachment),
}

impl Sandbox {
    /// Describes a VM that boots `kernel` (an uncompressed ELF or a bzImage)
    /// and runs programs from `root`.
    pub fn builder(kernel: impl Into<PathBuf>, root: Root) -> SandboxBuilder {
        SandboxBuilder::new(kernel.into(), root)
    }

    /// The VM's id, `vm-` and 8 hexadecimal digits, if it was made from a
    /// configuration ([`Sandbox::create`], [`crate::Launch`]).
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.config.as_ref().map(|config| config.id.as_str())
    }

    /// The configuration that the VM was made from, if it was made from one.
    #[must_use]
    pub fn config(&self) -> Option<&Config> {
        self.config.as_deref()
    }

    /// Runs a program. What its options leave open (variables, working directory, user,
    /// privileges) is as the VM's configuration and image say, or on an attached handle
    /// as they said when the VM was made, unless the options are
    /// [`ExecOptions::bare`]: as `docker exec` would run it, without the image's
    /// entrypoint. A VM from a builder has neither.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for options that no guest could obey,
    /// [`Error::StartFailed`] if the guest could not start the program,
    /// [`Error::Paused`] if the VM stands still, [`Error::VmEnded`] and
    /// [`Error::NotRunning`] if there is no guest.
    pub async fn exec(&self, options: ExecOptions) -> Result<Process> {
        let wants = (options.wants_stdin(), options.wants_terminal());
        let limit = options.time_limit();
        let began = Instant::now();
        let start = self.surroundings.around(options).into_frame()?;
        self.exec_frame(&start, wants, limit, began).await
    }

    /// Runs the program that the first frame of a connection describes, for so long at
    /// most from a moment on.
    pub(crate) async fn exec_frame(
        &self,
        start: &[u8],
        wants: (bool, bool),
        limit: Option<Duration>,
        began: Instant,
    ) -> Result<Process> {
        let within = limit.map_or(START_TIMEOUT, |limit| limit.min(START_TIMEOUT));
        let started = timeout(within, self.start_program(start)).await;
        let (pid, reader, writer) = started.map_err(|_| match limit {
            Some(after) if after == within => Error::ProgramTimeout { after },
            _ => Error::Timeout {
                what: "start the program",
                after: START_TIMEOUT,
            },
        })??;
        // One that is beyond the clock is none.
        let limit = limit.and_then(|after| Some((after, began.checked_add(after)?)));
        let shared = Arc::clone(&self.shared);
        Ok(Process::new(
            (pid, began),
            reader,
            writer,
            wants,
            limit,
            shared,
            self.ended.clone(),
        ))
    }

    async fn start_program(
        &self,
        start: &[u8],
    ) -> Result<(u32, FrameReader<OwnedReadHalf>, OwnedWriteHalf)> {
        let (reader, writer, written) = self.dial(EXEC_PORT, start).await?;
        let mut reader = FrameReader::new(reader, MAX_OUTPUT_FRAME, MAX_OUTPUT_FRAME);
        match reader.next().await {
            Ok(Some(ExecOutput::Started { pid })) => {
                self.shared.mark(Phase::CommandStarted);
                written.map_err(Error::host("send the request to the guest"))?;
                Ok((pid, reader, writer))
            }
            Ok(Some(ExecOutput::StartFailed(failure))) => {
                let message = one_line(&failure.message, 500);
                Err(Error::StartFailed {
                    kind: failure.kind,
                    message,
                })
            }
            Ok(Some(_)) => Err(broken(
                "it did not say whether the program started".to_owned(),
            )),
            Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated) => {
                Err(self.why_closed(EXEC_PORT).await)
            }
            Err(e) => Err(broken(e.to_string())),
        }
    }

    /// Why a connection to the guest was closed before anything came over it.
    async fn why_closed(&self, port: u32) -> Error {
        match &self.way {
            // Its supervisor hands connections over before the guest has accepted them.
            Way::Attached(_) if self.activity().await.is_ok() => Error::AgentRefused { port },
            _ => lost(self.ended.clone()).await,
        }
    }

    /// Connects to `port` of the guest's agent and sends it the frame `first`;
    /// whether that was taken is the last of the results.
    pub(crate) async fn dial(
        &self,
        port: u32,
        first: &[u8],
    ) -> Result<(OwnedReadHalf, OwnedWriteHalf, io::Result<()>)> {
        self.dialer().dial(port, first).await
    }

    /// For a task that needs connections.
    pub(crate) fn dialer(&self) -> Dialer {
        let shared = Arc::clone(&self.shared);
        match &self.way {
            Way::Own { commands, .. } => Dialer::new(commands, shared, self.ended.clone()),
            Way::Attached(attachment) => {
                Dialer::attached(attachment.clone(), shared, self.ended.clone())
            }
        }
    }

    /// Makes a stream socket the host end of a connection to `port` of the guest;
    /// whether the guest accepts it is told later.
    pub(crate) async fn hand_over(
        &self,
        port: u32,
        stream: OwnedFd,
    ) -> Result<oneshot::Receiver<bool>> {
        self.dialer().hand_over(port, stream).await
    }

    /// News of the end of the VM.
    pub(crate) fn ended(&self) -> Ended {
        self.ended.clone()
    }

    /// [`Self::shutdown_within`] 10 seconds after `grace`: for guests that have
    /// little to write, or nothing that is kept.
    pub async fn shutdown(&self, grace: Duration) -> Arc<Exit> {
        self.shutdown_within(grace, POWER_OFF_TIMEOUT).await
    }

    /// Asks the guest to end its programs (SIGTERM, and SIGKILL after `grace`),
    /// sync, unmount and power off, and waits for it; a guest that is not done
    /// `within` this time after `grace` is killed, and then what it wrote last to
    /// its disks is lost. How long that takes depends on how much it has written,
    /// and on the host's disk. Only [`crate::ExitReason::is_orderly`] tells that all is
    /// there. Dropped before the end, the guest goes on shutting down.
    pub async fn shutdown_within(&self, grace: Duration, within: Duration) -> Arc<Exit> {
        let boot_writer = match &self.way {
            Way::Own { boot_writer, .. } => boot_writer,
            Way::Attached(attachment) => {
                let request = Request::Stop {
                    grace_ms: milliseconds(grace),
                    within_ms: milliseconds(within),
                };
                let orderly = async {
                    // Held to the end: it is how the supervisor knows that somebody waits.
                    let _asked = loop {
                        match attachment.ask(&request).await {
                            Ok(asked) => break Some(asked),
                            // It ends already.
                            Err(Error::NotRunning) => break None,
                            // It has no room for another client, or this process none for
                            // another descriptor: nothing tells when that is over.
                            Err(_) => tokio::time::sleep(ASK_AGAIN).await,
                        }
                    };
                    self.wait().await
                };
                // The supervisor has the same limit, and may take a moment more.
                let all = grace.saturating_add(within).saturating_add(KILL_WITHIN);
                return match timeout(all, orderly).await {
                    Ok(exit) => exit,
                    Err(_) => self.kill().await,
                };
            }
        };
        // A guest that stands still hears nothing.
        let _ = self.resume().await;
        let orderly = async {
            ask_to_end(boot_writer, grace).await;
            self.wait().await
        };
        match timeout(grace.saturating_add(within), orderly).await {
            Ok(exit) => exit,
            Err(_) => self.kill().await,
        }
    }

    /// Ends the VM at once, whatever the guest is doing, and waits until its
    /// process is gone, or does not end ([`ExitReason::VmmStuck`]). Nothing that the
    /// guest has not synced is saved.
    pub async fn kill(&self) -> Arc<Exit> {
        match &self.way {
            // If the driver no longer listens the VM is ending already; if there is
            // no room it was told.
            Way::Own { kill, .. } => drop(kill.try_send(())),
            // The end is told in any case: also that of the supervisor.
            Way::Attached(attachment) => drop(attachment.kill().await),
        }
        self.wait().await
    }

    /// Waits until the VM has ended and its process is gone, or does not end
    /// although it was killed ([`ExitReason::VmmStuck`]). Cancel safe.
    pub async fn wait(&self) -> Arc<Exit> {
        wait(self.ended.clone()).await
    }

    /// How the VM ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<Arc<Exit>> {
        self.ended.borrow().clone()
    }

    /// Waits until the VM has run for as long as it may, and is being ended for
    /// that; returns the limit. For ever if there is none. Cancel safe.
    pub async fn time_is_up(&self) -> Duration {
        self.shared.until_time_is_up().await
    }

    /// When which phase was reached so far.
    #[must_use]
    pub fn timeline(&self) -> Report {
        self.shared.timeline().report()
    }

    /// The VMM's counters.
    ///
    /// # Errors
    /// [`Error::NotRunning`] if the VM has ended, [`Error::Timeout`] if the
    /// VMM does not answer.
    pub async fn stats(&self) -> Result<Stats> {
        if let Way::Attached(_) = &self.way {
            return Ok(Box::pin(self.usage()).await?.vmm);
        }
        let (reply, stats) = oneshot::channel();
        self.command(Command::Stats(reply)).await?;
        match timeout(VMM_TIMEOUT, stats).await {
            Ok(stats) => stats.map_err(|_| Error::NotRunning),
            Err(_) => Err(Error::Timeout {
                what: "report its counters",
                after: VMM_TIMEOUT,
            }),
        }
    }

    /// What happens in the VM from now on: every program that starts and that ends. Of a
    /// VM that was launched with its image's own command, whoever asks first is also told
    /// what happened since, at most 16 events of it. An
    /// attached handle reads what the VM's supervisor writes down
    /// ([`crate::state::EventReader`]), and needs a tokio runtime for it.
    ///
    /// # Errors
    /// [`Error::State`] on an attached handle if that cannot be read.
    pub fn events(&self) -> Result<Events> {
        match &self.way {
            Way::Own { .. } => Ok(self.shared.events.subscribe()),
            Way::Attached(attachment) => Ok(attachment.events(self.ended())?),
        }
    }

    /// The last console output, at most 64 KiB, as the guest wrote it: not fit
    /// for a terminal.
    #[must_use]
    pub fn console(&self) -> Vec<u8> {
        self.shared.console()
    }

    /// What went wrong in the guest without preventing it from working, one
    /// line each, free of control characters. Each is returned once.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<String> {
        self.shared.take_warnings()
    }

    pub(crate) async fn command(&self, command: Command) -> Result<()> {
        self.dialer().command(command).await
    }
}

/// Asks PID 1 to end the guest in order.
async fn ask_to_end(boot_writer: &Mutex<OwnedWriteHalf>, grace: Duration) {
    let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
    if let Ok(frame) = frame::encode(&HostMessage::Shutdown { grace_ms }, MAX_FRAME) {
        // A guest that cannot be told is about to end, or is killed.
        let _ = boot_writer.lock().await.write_all(&frame).await;
    }
}

/// Ends a VM when its time is up, in order if its guest cares to.
pub(crate) async fn end_after(
    after: Duration,
    (grace, within): (Duration, Duration),
    boot_writer: Arc<Mutex<OwnedWriteHalf>>,
    shared: Arc<Shared>,
    commands: mpsc::WeakSender<Command>,
    kill: mpsc::WeakSender<()>,
) {
    tokio::time::sleep(after).await;
    shared.set_time_up(after);
    let in_order = async {
        // A guest that stands still hears nothing.
        if shared.set_paused(false)
            && let Some(commands) = commands.upgrade()
        {
            let (reply, done) = oneshot::channel();
            let _ = commands.send(Command::Pause(false, reply)).await;
            drop(commands);
            let _ = done.await;
        }
        ask_to_end(&boot_writer, grace).await;
        // The VM's end is the end of this task.
        std::future::pending::<()>().await;
    };
    let _ = timeout(grace.saturating_add(within), in_order).await;
    if let Some(kill) = kill.upgrade() {
        // If there is no room it was told already.
        let _ = kill.try_send(());
    }
}

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

pub(crate) async fn wait(mut ended: Ended) -> Arc<Exit> {
    let exit = match ended.wait_for(Option::is_some).await {
        Ok(exit) => exit.clone(),
        Err(_) => None,
    };
    // The driver ends without a word only when its runtime is dropped, and
    // then it kills the VM.
    exit.unwrap_or_else(|| {
        Arc::new(Exit {
            reason: ExitReason::Killed,
            console: Vec::new(),
            stats: None,
        })
    })
}

/// Waits for the end of the VM.
pub(crate) async fn reason_of_end(ended: Ended) -> ExitReason {
    wait(ended).await.reason.clone()
}
