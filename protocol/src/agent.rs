//! Supervisor to guest agent, over vsock streams in the framing of
//! [`crate::frame`].
//!
//! **The boot connection.** The guest's PID 1 connects to the host (CID 2,
//! [`BOOT_PORT`]) as soon as it can and sends [`GuestMessage::Hello`]. The
//! supervisor answers with [`HostMessage::Hello`] and
//! [`HostMessage::Configure`]; the guest sets itself up and sends
//! [`GuestMessage::Ready`] or [`GuestMessage::Failed`]. The connection stays
//! open for the life of the VM: the guest powers off when it closes.
//!
//! **An exec connection** (host to guest, [`EXEC_PORT`]) runs one program. The
//! supervisor sends [`ExecInput::Start`]; the agent answers
//! [`ExecOutput::Started`] or [`ExecOutput::StartFailed`]. Output flows as
//! frames and is held back by vsock's own credit when the supervisor does not
//! read. Input flows only within a window that the agent grants
//! ([`ExecOutput::StdinCredit`]), so that signals and resizes never wait behind
//! input that the program does not read. The last frame is
//! [`ExecOutput::Exited`]. If the supervisor closes the connection early, the
//! agent ends the program: SIGTERM to its process group, then SIGKILL to
//! everything in its cgroup.
//!
//! **A file connection** (host to guest, [`crate::file::FILE_PORT`]) does one
//! operation on the guest's files; see [`crate::file`]. **A forwarded
//! connection** (host to guest, [`crate::forward::FORWARD_PORT`]) leads to a
//! port in the guest; see [`crate::forward`].

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::network::Link;
use crate::privilege::Confinement;

/// Version of this protocol; both hellos carry it and must agree.
pub const VERSION: u32 = 6;

/// First bytes of the guest's hello, to tell a stray connection from an agent.
pub const MAGIC: [u8; 8] = *b"flashpan";

/// Context identifier of the host on vsock.
pub const HOST_CID: u32 = 2;

/// Context identifier of the guest on vsock.
pub const GUEST_CID: u32 = 3;

/// Port on the host to which the guest's PID 1 connects.
pub const BOOT_PORT: u32 = 1024;

/// Port in the guest on which the agent accepts exec connections.
pub const EXEC_PORT: u32 = 1025;

/// What the lines begin with that PID 1 writes to the kernel's log, and so to
/// the console, when it cannot go on and has nobody else to tell.
pub const INIT_LOG: &str = "flashpan-init: ";

/// Longest frame body. Arguments and environment are the longest messages:
/// Linux itself refuses more than 2 MiB of them.
pub const MAX_FRAME: usize = 2 * 1024 * 1024 + 64 * 1024;

/// Most bytes of input or output in one frame.
pub const MAX_DATA: usize = 64 * 1024;

/// Input window that a program starts with, in bytes.
pub const STDIN_WINDOW: u32 = 256 * 1024;

/// From the guest on the boot connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestMessage {
    /// The first message.
    Hello {
        /// [`MAGIC`].
        magic: [u8; 8],
        /// [`VERSION`].
        version: u32,
        /// `uname -r` of the guest, for reports.
        kernel_release: String,
    },
    /// The root file system is in place and exec connections are accepted.
    Ready,
    /// The guest could not be set up; it powers off after this.
    Failed {
        /// What was being done, e.g. `mount the root image /dev/vda`.
        what: String,
        /// Why it failed, as text.
        why: String,
        /// The error number, 0 if there is none.
        errno: i32,
    },
    /// Something went wrong that does not prevent programs from running.
    Warning(String),
    /// A program in the guest asked PID 1 to end the VM.
    ShuttingDown {
        /// Whether it asked for a restart.
        reboot: bool,
    },
    /// A program was started.
    ProgramStarted(Box<ProgramStarted>),
    /// A program has ended; [`GuestMessage::ProgramStarted`] came before, if it
    /// was not lost.
    ProgramEnded(ProgramEnded),
    /// So many of the two before this were not sent, because the supervisor did
    /// not read.
    ProgramsLost(u64),
}

/// A program that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramStarted {
    /// Its number: no other program of the VM has it.
    pub id: u64,
    /// Its process id in the guest; 0 if it could not be started.
    pub pid: u32,
    /// The program and its arguments, together at most [`EVENT_ARGV`] bytes.
    pub argv: Vec<Bytes>,
    /// Whether `argv` was longer.
    pub truncated: bool,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Working directory; at most [`EVENT_DIRECTORY`] bytes of it.
    pub working_dir: Bytes,
}

/// A program that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramEnded {
    /// [`ProgramStarted::id`].
    pub id: u64,
    /// Its process id in the guest, which may be another process's by now; 0 if it could
    /// not be started.
    pub pid: u32,
    /// How it ended: with 127 if there is no such program, 126 if it cannot be executed,
    /// 125 if it could not be started otherwise.
    pub status: ExitStatus,
    /// Microseconds from its start to its end.
    pub duration_us: u64,
}

/// Most bytes of arguments in [`ProgramStarted`], counting one more for each.
pub const EVENT_ARGV: usize = 4096;

/// Most bytes of a working directory in [`ProgramStarted`]: Linux's `PATH_MAX`.
pub const EVENT_DIRECTORY: usize = 4096;

/// To the guest on the boot connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// The first message.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// How to set the guest up; sent once.
    Configure(Box<GuestConfig>),
    /// End all programs, sync, unmount and power off.
    Shutdown {
        /// Milliseconds between SIGTERM and SIGKILL for what still runs.
        grace_ms: u32,
    },
}

/// How PID 1 sets the guest up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// Host name; 1 to 64 bytes.
    pub hostname: String,
    /// The root file system.
    pub root: RootConfig,
    /// What else is mounted, in this order; at most [`MAX_MOUNTS`].
    pub mounts: Vec<MountConfig>,
    /// More lines for `/etc/hosts`; at most [`MAX_HOSTS`]. They need a root that
    /// can be written to.
    pub hosts: Vec<HostEntry>,
    /// What all programs together may use of the processors, in thousandths of
    /// one; as much as there is if `None`.
    pub cpu_quota: Option<u32>,
    /// How many processes and threads all programs together may have; as many as
    /// the guest's memory allows if `None`.
    pub pids_limit: Option<u32>,
    /// The network card's addresses; `None` if there is no card.
    pub network: Option<Link>,
    /// The certificate, in PEM, of an authority that programs are to trust; at most
    /// [`MAX_AUTHORITY`] bytes.
    pub authority: Option<String>,
    /// Variables of every program, in place of what it is given; at most
    /// [`MAX_VARIABLES`].
    pub variables: Vec<(Bytes, Bytes)>,
}

/// Most of [`GuestConfig::variables`].
pub const MAX_VARIABLES: usize = 256;

/// The longest certificate of [`GuestConfig::authority`], in bytes.
pub const MAX_AUTHORITY: usize = 16 * 1024;

/// A name that the guest resolves to an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// The name: 1 to 253 visible characters without `#` and `:`.
    pub name: String,
    /// The address.
    pub address: IpAddr,
}

/// Most lines of [`GuestConfig::hosts`].
pub const MAX_HOSTS: usize = 1024;

/// Least of [`GuestConfig::cpu_quota`]: Linux's own.
pub const MIN_CPU_QUOTA: u32 = 10;

/// Most file systems that are mounted besides the root.
pub const MAX_MOUNTS: usize = 16;

/// A disk with an ext4 file system that the guest sees somewhere below its root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountConfig {
    /// Block device, e.g. `vdc`.
    pub device: String,
    /// Absolute path in the guest. Directories that are missing are made.
    pub path: String,
    /// Whether programs may not write to it.
    pub read_only: bool,
}

/// The root file system of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootConfig {
    /// Block device of the root image, e.g. `vda`. Always mounted read-only.
    pub device: String,
    /// Its file system.
    pub fs_type: FsType,
    /// What takes the writes.
    pub upper: Upper,
}

/// A file system that a root image can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// Read-only images made by flashpan.
    Erofs,
    /// Images brought by the user.
    Ext4,
}

impl FsType {
    /// The name that `mount(2)` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }
}

/// Where writes to the root file system go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upper {
    /// Nowhere: the root is read-only.
    None,
    /// To guest memory, lost at the end.
    Tmpfs,
    /// To an ext4 file system on this block device, e.g. `vdb`.
    Disk(String),
}

/// To the agent on an exec connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecInput {
    /// The first message.
    Start(Box<ExecRequest>),
    /// Bytes for standard input; at most [`MAX_DATA`] and within the window.
    Stdin(#[serde(with = "serde_bytes")] Vec<u8>),
    /// No more input: the program reads end of file.
    StdinEof,
    /// Send this signal to the program's process group.
    Signal(i32),
    /// The terminal has this size now.
    Resize(TerminalSize),
    /// End the program: SIGTERM to its process group, SIGKILL to its whole
    /// cgroup after the grace period.
    Cancel {
        /// Milliseconds between the two.
        grace_ms: u32,
    },
}

/// From the agent on an exec connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecOutput {
    /// The program was started; `execve` succeeded.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// The program was not started. The last frame.
    StartFailed(StartFailure),
    /// Bytes of standard output, or of the terminal.
    Stdout(#[serde(with = "serde_bytes")] Vec<u8>),
    /// Bytes of standard error.
    Stderr(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The program took this many bytes of input: the window grows by them.
    StdinCredit(u32),
    /// The program does not read its input any more: send no more of it.
    StdinClosed,
    /// The program has ended and all its output was sent. The last frame.
    Exited(ExitStatus),
}

/// What to run and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The program.
    pub command: Command,
    /// Environment, in order; later entries win. No NUL in any, no `=` in names.
    pub env: Vec<(Bytes, Bytes)>,
    /// Working directory; `/` (or the user's choice of the image) if `None`.
    pub working_dir: Option<Bytes>,
    /// Make the working directory if it is missing, as root with mode 755,
    /// as container runtimes do for images.
    pub make_working_dir: bool,
    /// `name`, `uid`, `name:group` or `uid:gid`, looked up in the guest; root
    /// if `None`.
    pub user: Option<String>,
    /// Whether input will be sent; `/dev/null` otherwise.
    pub stdin: bool,
    /// Run on a pseudo-terminal of this size.
    pub terminal: Option<TerminalSize>,
    /// Let processes that the program leaves behind live on.
    pub linger: bool,
    /// What the program may do, and what it sees.
    pub confinement: Confinement,
}

/// A byte string: arguments and paths of Unix need not be UTF-8.
pub type Bytes = serde_bytes::ByteBuf;

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Program and arguments; no shell is involved. A program without a slash
    /// is looked up in the `PATH` of the request's environment.
    Argv(Vec<Bytes>),
    /// One string for `/bin/sh -c`.
    Shell(Bytes),
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// How a program ended, exactly as the guest's kernel told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It returned this code, 0 to 255.
    Code(u8),
    /// This signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// The status in a shell's convention: the code, or 128 plus the signal.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(signal)
                .ok()
                .and_then(|signal| 128_u8.checked_add(signal))
                .unwrap_or(255),
        }
    }
}

/// Why a program was not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// The class of failure; decides the exit code on the command line.
    pub kind: StartFailureKind,
    /// One line: what was tried, on what, and why it failed.
    pub message: String,
}

/// Classes of [`StartFailure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFailureKind {
    /// No such program (127 on the command line).
    NotFound,
    /// The file is there but cannot be executed (126).
    NotExecutable,
    /// The request itself is wrong: no such user, no such directory, an
    /// argument with a NUL, too long a list (125).
    BadRequest,
    /// The guest could not: out of memory, too many processes (125).
    Resources,
}
