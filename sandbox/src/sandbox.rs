//! A VM and the handle to it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::agent::{EXEC_PORT, ExecOutput, GuestConfig, HostMessage, MAX_FRAME};
use flashpan_protocol::control::{BootFailureKind, Stats};
use flashpan_protocol::frame::{self, FrameError};
use flashpan_protocol::phase::Phase;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

use crate::agent::BootLink;
use crate::config::{ConsoleSink, Root, SandboxBuilder};
use crate::console;
use crate::driver::{Command, ConsoleTap, Driver, DriverHandle, Ended, Shared};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::exec::ExecOptions;
use crate::exit::{Exit, ExitReason};
use crate::frames::FrameReader;
use crate::process::Process;
use crate::pump::{MAX_OUTPUT_FRAME, Task, broken, lost};
use crate::text::one_line;
use crate::timeline::{Report, now_ns};
use crate::vmm_process::VmmProcess;

/// How long the guest may take to start a program.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the VMM may take to answer.
const VMM_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a guest may take to sync and unmount after its programs ended, if its
/// owner does not say.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(10);

/// Chunks of console output that wait for a slow sink.
const CONSOLE_CHUNKS: usize = 4;

/// A running micro-VM. Dropping it kills the VM.
///
/// It needs a tokio runtime with I/O and time enabled. A runtime that is
/// dropped first takes the VM with it, and waits for its process to be gone, but
/// no longer than 10 seconds for each.
#[derive(Debug)]
pub struct Sandbox {
    commands: mpsc::Sender<Command>,
    kill: mpsc::Sender<()>,
    ended: Ended,
    shared: Arc<Shared>,
    boot_writer: Mutex<OwnedWriteHalf>,
    _listener: Task,
}

impl Sandbox {
    /// Describes a VM that boots `kernel` (an uncompressed ELF or a bzImage)
    /// and runs programs from `root`.
    pub fn builder(kernel: impl Into<PathBuf>, root: Root) -> SandboxBuilder {
        SandboxBuilder::new(kernel.into(), root)
    }

    /// Runs a program.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for options that no guest could obey,
    /// [`Error::StartFailed`] if the guest could not start the program,
    /// [`Error::VmEnded`] and [`Error::NotRunning`] if there is no guest.
    pub async fn exec(&self, options: ExecOptions) -> Result<Process> {
        let wants = (options.wants_stdin(), options.wants_terminal());
        let start = options.into_frame()?;
        let started = timeout(START_TIMEOUT, self.start_program(&start)).await;
        let (pid, reader, writer) = started.map_err(|_| Error::Timeout {
            what: "start the program",
            after: START_TIMEOUT,
        })??;
        let shared = Arc::clone(&self.shared);
        Ok(Process::new(
            pid,
            reader,
            writer,
            wants,
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
                Err(lost(self.ended.clone()).await)
            }
            Err(e) => Err(broken(e.to_string())),
        }
    }

    /// Connects to `port` of the guest's agent and sends it the frame `first`;
    /// whether that was taken is the last of the results.
    pub(crate) async fn dial(
        &self,
        port: u32,
        first: &[u8],
    ) -> Result<(OwnedReadHalf, OwnedWriteHalf, io::Result<()>)> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::host("make a guest connection"))?;
        let theirs: OwnedFd = theirs
            .into_std()
            .map_err(Error::host("make a guest connection"))?
            .into();
        let (reader, mut writer) = ours.into_split();
        let (reply, accepted) = oneshot::channel();
        self.command(Command::Connect {
            port,
            stream: theirs,
            reply,
        })
        .await?;
        // The request is written while the guest is still accepting: it waits
        // in the socket, and that saves a wake-up.
        let (accepted, written) = tokio::join!(accepted, writer.write_all(first));
        match accepted {
            Ok(true) => {}
            Ok(false) => return Err(Error::AgentRefused { port }),
            Err(_) => return Err(lost(self.ended.clone()).await),
        }
        Ok((reader, writer, written))
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
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let request = frame::encode(&HostMessage::Shutdown { grace_ms }, MAX_FRAME);
        let orderly = async {
            if let Ok(frame) = request {
                // A guest that cannot be told is about to end, or is killed.
                let _ = self.boot_writer.lock().await.write_all(&frame).await;
            }
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
        // If the driver no longer listens the VM is ending already; if there is
        // no room it was told.
        let _ = self.kill.try_send(());
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

    /// What happens in the VM from now on: every program that starts and that ends.
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared.events.subscribe()
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

    async fn command(&self, command: Command) -> Result<()> {
        self.commands
            .send(command)
            .await
            .map_err(|_| match self.exit() {
                Some(exit) => Error::VmEnded(exit.reason.clone()),
                None => Error::NotRunning,
            })
    }
}

impl SandboxBuilder {
    /// Boots the VM and waits until its guest can run programs. If the future
    /// is dropped the VM is killed.
    ///
    /// A kernel that is a bzImage is unpacked first, on the calling thread; that
    /// takes up to a second. An uncompressed ELF kernel is passed on as it is.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], or what prevented the guest from coming up.
    pub async fn boot(mut self) -> Result<Sandbox> {
        let start = self.process_start_ns.unwrap_or_else(now_ns);
        let spec = self.vm_spec()?;
        let shared = Arc::clone(&self.shared);
        shared.timeline().mark(Phase::ProcessStart, start);
        let guest = self.guest_config();
        shared.set_disks(self.disk_roles());
        let vmm = VmmProcess::start(&mut self, spec)?;
        let tap = self.console_sink.take().map(console_thread).transpose()?;
        let driver = Driver::start(vmm, Arc::clone(&shared), tap);
        match timeout(self.boot_timeout, come_up(&self, guest, driver, &shared)).await {
            Ok(result) => result,
            Err(_) => Err(Error::BootTimeout {
                after: self.boot_timeout,
                reached: shared
                    .timeline()
                    .latest()
                    .filter(|phase| *phase > Phase::ProcessStart),
                console: console::last_line(&shared.console()),
            }),
        }
    }
}

/// Waits for the guest's PID 1 and gets it ready.
async fn come_up(
    config: &SandboxBuilder,
    guest: GuestConfig,
    driver: DriverHandle,
    shared: &Arc<Shared>,
) -> Result<Sandbox> {
    let DriverHandle {
        commands,
        kill,
        ended,
        boot,
    } = driver;
    let establish = async {
        // The driver drops its end when the VM ends before PID 1 called.
        let Ok(stream) = boot.await else {
            return Ok(None);
        };
        BootLink::establish(stream, guest, Arc::clone(shared)).await
    };
    let link = tokio::select! {
        biased;
        link = establish => match link? {
            Some(link) => link,
            None => {
                let exit = wait(ended).await;
                return Err(boot_failure(config, shared, &exit));
            }
        },
        exit = wait(ended.clone()) => return Err(boot_failure(config, shared, &exit)),
    };
    let (writer, listen) = link.serve();
    Ok(Sandbox {
        commands,
        kill,
        ended,
        shared: Arc::clone(shared),
        boot_writer: Mutex::new(writer),
        _listener: Task::spawn(listen),
    })
}

/// Why there is no guest. Names the file that the VMM, which was given a
/// descriptor, knows nothing of; and what a guest that shut itself down left on
/// its console.
fn boot_failure(config: &SandboxBuilder, shared: &Shared, exit: &Exit) -> Error {
    let (class, message) = match &exit.reason {
        ExitReason::BootFailed { class, message } => (class, message),
        ExitReason::PowerOff | ExitReason::Reboot => {
            return Error::GaveUp {
                message: console::init_message(&exit.console),
                console: console::last_line(&exit.console),
                connected: shared.timeline().has(Phase::AgentConnected),
            };
        }
        reason => return Error::VmEnded(reason.clone()),
    };
    let file = match *class {
        BootFailureKind::Kernel => Some(("kernel", &config.kernel)),
        BootFailureKind::Disk => Some(("root image", &config.root.path)),
        _ => None,
    };
    let message = match file {
        Some((what, path)) => format!("{what} {}: {message}", path.display()),
        None => message.clone(),
    };
    Error::BootFailed { message }
}

async fn wait(mut ended: Ended) -> Arc<Exit> {
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

/// Starts the thread that writes console output to a sink.
fn console_thread(mut sink: ConsoleSink) -> Result<ConsoleTap> {
    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(CONSOLE_CHUNKS);
    let (done_sender, done) = oneshot::channel();
    std::thread::Builder::new()
        .name("console".to_owned())
        .spawn(move || {
            while let Some(chunk) = chunks.blocking_recv() {
                if sink.write_all(&chunk).and_then(|()| sink.flush()).is_err() {
                    break;
                }
            }
            let _ = done_sender.send(());
        })
        .map_err(Error::host("start the console's thread"))?;
    Ok(ConsoleTap { sender, done })
}
