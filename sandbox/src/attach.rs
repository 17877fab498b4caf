//! The way to a VM that another process supervises: its control socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::frame;
use flashpan_protocol::supervisor::{
    Answer, MAGIC, MAX_ANSWER, MAX_REQUEST, Refusal, RefusalKind, Request, VERSION,
};
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::driver::Ended;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::exit::{Exit, ExitReason};
use crate::state::{
    EventReader, ExitRecord, LogReader, LogStream, StateError, Vm, last_exit, marked,
    wait_until_free,
};
use crate::text::one_line;

/// How long a supervisor may take for an answer that it has at once.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How long a supervisor may take to kill its VM before it is killed itself.
pub(crate) const KILL_WITHIN: Duration = Duration::from_secs(10);

/// Name of the socket in a VM's directory.
pub(crate) const SOCKET: &str = "control.sock";

/// Longest text of a supervisor that a message quotes, in characters.
const QUOTED: usize = 500;

/// Who is to blame in error messages.
const PEER: &str = "the VM's supervisor";

/// Where a supervisor listens.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    id: String,
    directory: PathBuf,
}

/// A connection on which a request was sent.
pub(crate) struct Asked {
    stream: UnixStream,
}

impl Attachment {
    pub(crate) fn to(vm: &Vm) -> Self {
        Self::at(vm.id(), vm.directory().to_owned())
    }

    pub(crate) fn at(id: &str, directory: PathBuf) -> Self {
        Self {
            id: id.to_owned(),
            directory,
        }
    }

    /// What happens from now on, as the supervisor writes it down.
    pub(crate) fn events(&self, ended: Ended) -> Result<Events, StateError> {
        let reader = EventReader::at(&self.id, &self.directory, Some(0))?;
        Ok(Events::written(reader, ended))
    }

    /// What the supervisor writes down, from its beginning on.
    pub(crate) fn log(&self, stream: LogStream) -> Result<LogReader, StateError> {
        let path = self.directory.join(stream.file_name());
        LogReader::at(path, &self.directory, None)
    }

    /// Sends a request and waits until the supervisor has shown who it is.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Asked> {
        timeout(ANSWER_WITHIN, self.begin(request))
            .await
            .map_err(|_| silent())?
    }

    async fn begin(&self, request: &Request) -> Result<Asked> {
        let mut stream = self.connect().await?;
        let hello = Request::Hello {
            magic: MAGIC,
            version: VERSION,
        };
        let mut frames = frame::encode(&hello, MAX_REQUEST)?;
        frames.append(&mut frame::encode(request, MAX_REQUEST)?);
        // One that refuses closes at once, and has said why.
        let _ = stream.write_all(&frames).await;
        let mut asked = Asked { stream };
        let hello = asked.next().await.map_err(|error| match error {
            // One that listens says who it is; this one has just ended.
            Error::Supervisor { .. } => Error::NotRunning,
            error => error,
        });
        match hello? {
            Answer::Hello { version: VERSION } => Ok(asked),
            Answer::Hello { version } => Err(Error::Incompatible {
                peer: PEER,
                theirs: version,
                ours: VERSION,
            }),
            Answer::Refused(refusal) => Err(refused(refusal)),
            _ => Err(broken("it did not begin with a hello")),
        }
    }

    async fn connect(&self) -> Result<UnixStream> {
        let failed = Error::host("reach the VM's supervisor");
        let directory = open_directory(&self.directory);
        let connected = match &directory {
            Ok(directory) => UnixStream::connect(through(directory)).await,
            Err(error) => Err(error.kind().into()),
        };
        let stream = match connected {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Err(Error::NotRunning);
            }
            Err(error) => return Err(failed(error)),
        };
        let peer = stream
            .peer_cred()
            .map_err(Error::host("see who supervises the VM"))?;
        match peer.uid() == nix::unistd::geteuid().as_raw() {
            true => Ok(stream),
            false => Err(broken("it belongs to another user")),
        }
    }

    /// Asks for the end of the VM, and ends a supervisor that does not do it.
    pub(crate) async fn kill(&self) -> Result<()> {
        let asked = async {
            let mut asked = self.ask(&Request::Kill).await?;
            asked.next().await
        };
        match timeout(KILL_WITHIN, asked).await {
            Ok(Ok(Answer::Ended { .. })) => Ok(()),
            Ok(Err(Error::NotRunning)) => self.kill_unless_gone().await,
            // It is stuck, has no room for another client, or went away.
            _ => self.kill_supervisor().await,
        }
    }

    /// SIGKILL to a supervisor that takes no connections any more, unless it ends by itself
    /// as one does whose VM has ended.
    async fn kill_unless_gone(&self) -> Result<()> {
        let lock = self.directory.join("lock");
        let waited = move || wait_until_free(&lock, KILL_WITHIN);
        let waited = tokio::task::spawn_blocking(waited).await;
        let is_gone = waited.unwrap_or(Ok(false));
        match is_gone.map_err(Error::host("wait for the VM's supervisor"))? {
            true => Ok(()),
            false => self.kill_marked(),
        }
    }

    /// SIGKILL to the supervisor, however busy it is.
    async fn kill_supervisor(&self) -> Result<()> {
        match self.connect().await {
            Ok(stream) => kill_listener(&stream),
            Err(Error::NotRunning) => self.kill_unless_gone().await,
            // So many wait for it already that there is no room for another.
            Err(Error::Host { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                self.kill_marked()
            }
            Err(error) => Err(error),
        }
    }

    /// SIGKILL to the process that has marked itself as the supervisor.
    fn kill_marked(&self) -> Result<()> {
        let look = || marked(&self.directory).map_err(Error::host("find the VM's supervisor"));
        let Some(pid) = look()? else {
            // It may have ended since.
            let is_gone = wait_until_free(&self.directory.join("lock"), Duration::ZERO);
            if is_gone.map_err(Error::host("look for the VM's supervisor"))? {
                return Ok(());
            }
            return Err(Error::Supervisor {
                message: "it takes no connection, and which process it is cannot be told; \
                          end it by `kill -9`"
                    .to_owned(),
            });
        };
        // Still marked after it was opened, it is the one that was.
        kill_process(pid, || Ok(look()? == Some(pid)))
    }
}

/// SIGKILL to the process that listens on the socket. Its id is the kernel's word on
/// the connection, and while that is open it is no other's.
fn kill_listener(stream: &UnixStream) -> Result<()> {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let pid = pid.ok_or_else(|| kill_failed(rustix::io::Errno::SRCH))?;
    kill_process(pid, || Ok(!has_hung_up(stream)))
}

fn kill_failed(errno: rustix::io::Errno) -> Error {
    Error::host("end the VM's supervisor")(errno)
}

/// SIGKILL to a process, if `is_it` says so once it is held.
fn kill_process(pid: i32, is_it: impl FnOnce() -> Result<bool>) -> Result<()> {
    use rustix::io::Errno;
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let pid = Pid::from_raw(pid).ok_or_else(|| kill_failed(Errno::SRCH))?;
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        pidfd => pidfd.map_err(kill_failed)?,
    };
    if !is_it()? {
        return Ok(());
    }
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(kill_failed(errno)),
    }
}

impl Attachment {
    /// Listens for the end of the VM from now on.
    pub(crate) async fn watch(
        &self,
    ) -> Result<(
        watch::Receiver<Option<Arc<Exit>>>,
        impl Future<Output = ()> + Send + 'static,
    )> {
        let mut asked = self.ask(&Request::Wait).await?;
        let (sender, ended) = watch::channel(None);
        let directory = self.directory.clone();
        let listen = async move {
            let reason = match asked.next().await {
                Ok(Answer::Ended { record }) => reason_in(&record),
                // One that had no time for an answer has written it down before.
                _ => written_down(&directory).unwrap_or(ExitReason::SupervisorDied),
            };
            sender.send_replace(Some(Arc::new(Exit {
                reason,
                console: Vec::new(),
                stats: None,
            })));
        };
        Ok((ended, listen))
    }
}

impl Asked {
    /// The next answer. Not cancel safe: the connection is of no use any more then.
    pub(crate) async fn next(&mut self) -> Result<Answer> {
        // Not a byte more than the answer: what follows may be the guest's.
        let mut prefix = [0; 4];
        let lost = |_| Error::Supervisor {
            message: "it closed the connection".to_owned(),
        };
        self.stream.read_exact(&mut prefix).await.map_err(lost)?;
        let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
        if length > MAX_ANSWER {
            return Err(broken("its answer is too long"));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.map_err(lost)?;
        frame::from_bytes(&body).map_err(|error| broken(&error.to_string()))
    }

    /// The next answer, which is there at once.
    pub(crate) async fn answer(&mut self) -> Result<Answer> {
        match timeout(ANSWER_WITHIN, self.next()).await {
            Ok(Ok(Answer::Refused(refusal))) => Err(refused(refusal)),
            Ok(answer) => answer,
            Err(_) => Err(silent()),
        }
    }

    /// `Ok` if it was done.
    pub(crate) async fn done(&mut self) -> Result<()> {
        match self.answer().await? {
            Answer::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// The connection, once it leads to the guest.
    pub(crate) fn into_stream(self) -> UnixStream {
        self.stream
    }
}

pub(crate) fn unexpected() -> Error {
    broken("it gave another answer than was asked for")
}

/// Why a VM ended whose supervisor has closed the connection, if it has said so in the
/// VM's files: they are of the last run.
fn written_down(directory: &Path) -> Option<ExitReason> {
    let record = last_exit(directory).ok().flatten()?;
    Some(reason_of(record))
}

/// Why a VM ended, from its `exit.json`.
fn reason_in(record: &str) -> ExitReason {
    match serde_json::from_str::<ExitRecord>(record) {
        Ok(record) => reason_of(record),
        Err(_) => ExitReason::Other {
            message: "the VM has ended; its supervisor did not say why".to_owned(),
        },
    }
}

fn reason_of(record: ExitRecord) -> ExitReason {
    record.reason.unwrap_or_else(|| ExitReason::Other {
        message: one_line(&record.message, QUOTED),
    })
}

/// What a refusal is to who asked.
fn refused(Refusal { kind, message }: Refusal) -> Error {
    let message = one_line(&message, QUOTED);
    match kind {
        RefusalKind::Starting => Error::Starting,
        RefusalKind::Paused => Error::Paused,
        RefusalKind::NotPaused => Error::NotPaused,
        RefusalKind::Ending => Error::NotRunning,
        RefusalKind::ProgramNotFound => Error::StartFailed {
            kind: flashpan_protocol::agent::StartFailureKind::NotFound,
            message,
        },
        RefusalKind::ProgramNotExecutable => Error::StartFailed {
            kind: flashpan_protocol::agent::StartFailureKind::NotExecutable,
            message,
        },
        RefusalKind::Busy | RefusalKind::BadRequest | RefusalKind::Failed => {
            Error::Supervisor { message }
        }
    }
}

fn silent() -> Error {
    Error::Supervisor {
        message: format!(
            "it has not answered for {ANSWER_WITHIN:?}; `flashpan kill` ends it and the VM"
        ),
    }
}

fn broken(why: &str) -> Error {
    Error::Protocol {
        peer: PEER,
        why: why.to_owned(),
    }
}

/// A directory as something to begin paths at.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The socket in an open directory. An address of a socket has room for 107 bytes,
/// and paths of directories are longer.
pub(crate) fn through(directory: &OwnedFd) -> PathBuf {
    let number = directory.as_fd().as_raw_fd();
    PathBuf::from(format!("/proc/self/fd/{number}/{SOCKET}"))
}

/// Whether the other side of a connection is gone.
fn has_hung_up(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let fd = stream.as_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::RDHUP)];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let polled = poll(&mut fds, Some(&now));
    let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    polled.is_ok() && fds.iter().any(|fd| fd.revents().intersects(gone))
}
