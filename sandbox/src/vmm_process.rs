//! The VMM process: starting it and telling it what to build.
//!
//! The process gets a control socket and descriptors, never paths; see
//! [`flashpan_protocol::control`]. A VM in the foreground has no file of its
//! own anywhere: when the supervisor goes away, however it goes, the control
//! socket closes, the VMM ends, and there is nothing left to clean up.

use std::ffi::CStr;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flashpan_kernel::image::{self, ImageError, ImageProblem};
use flashpan_protocol::control::{CONTROL_FD, Console, Request, VERSION, VmSpec};
use flashpan_rootfs::initramfs;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;
use tokio::net::unix::pipe;

use crate::config::SandboxBuilder;
use crate::control::{Channel, Packet};
use crate::disk::Upper;
use crate::error::{Error, Result};
use crate::host_cgroup::HostCgroup;
use crate::locate;
use crate::spawn::Child;

/// Argument that makes the VMM ask for SIGKILL when the thread that started it
/// ends (`PR_SET_PDEATHSIG`).
const DIE_WITH_PARENT: &CStr = c"--die-with-parent";

/// A VMM process that was just started, and what has to be sent to it.
#[derive(Debug)]
pub(crate) struct VmmProcess {
    pub(crate) child: Child,
    /// What the host holds it to, where it can.
    pub(crate) held: Option<HostCgroup>,
    pub(crate) control: Channel,
    pub(crate) stderr: pipe::Receiver,
    pub(crate) console: Option<pipe::Receiver>,
    /// Hello and Boot. They are sent without waiting for an answer in between:
    /// a VMM of another version says so in its hello.
    pub(crate) opening: [Packet; 2],
}

impl VmmProcess {
    /// Starts the VMM, and while it starts gathers what it needs.
    pub(crate) fn start(config: &mut SandboxBuilder, spec: VmSpec) -> Result<Self> {
        let program = match &config.vmm {
            Some(path) => path.clone(),
            None => locate::find(locate::VMM)?,
        };
        let (control, theirs) = Channel::pair().map_err(Error::host("make the control socket"))?;
        let (stderr, stderr_writer) =
            pipe2(OFlag::O_CLOEXEC).map_err(Error::host("make a pipe for the VMM's errors"))?;
        let arguments: &[&CStr] = match config.end_with_thread {
            true => &[DIE_WITH_PARENT],
            false => &[],
        };
        let child = Child::spawn(
            &program,
            arguments,
            stderr_writer.as_fd(),
            theirs.as_fd(),
            CONTROL_FD,
        )
        .map_err(|source| Error::Spawn {
            path: program.clone(),
            source,
        })?;
        drop((theirs, stderr_writer));
        // Before it is told what to build.
        let quota = config.cpu_quota();
        let held = quota.and_then(|share| HostCgroup::hold(child.pid(), share));

        let mut fds = vec![kernel(&config.kernel)?, initramfs(config)?];
        let console = match spec.console {
            Console::Off => None,
            Console::Panic | Console::Full => {
                // Non-blocking for the writer: a console that nobody reads
                // loses output, it never stops the guest.
                let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
                    .map_err(Error::host("make a pipe for the console"))?;
                fds.push(writer);
                Some(receiver(reader)?)
            }
        };
        fds.push(match &config.root.file {
            Some(file) => duplicate(file)?,
            None => open_root(&config.root.path)?,
        });
        match std::mem::take(&mut config.upper) {
            Upper::Memory | Upper::ReadOnly => {}
            Upper::Scratch(file) | Upper::Disk(file) => fds.push(file.into()),
        }
        fds.extend(config.disks.drain(..).map(|disk| disk.file.into()));
        let opening = [
            Packet::new(&Request::Hello { version: VERSION }, Vec::new())?,
            Packet::new(&Request::Boot(Box::new(spec)), fds)?,
        ];
        Ok(Self {
            child,
            held,
            control,
            stderr: receiver(stderr)?,
            console,
            opening,
        })
    }
}

fn duplicate(file: &File) -> Result<OwnedFd> {
    file.try_clone()
        .map(Into::into)
        .map_err(Error::host("duplicate a descriptor"))
}

fn receiver(reader: OwnedFd) -> Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(reader).map_err(Error::host("watch a pipe"))
}

/// The kernel as ELF: the file itself, or what a bzImage holds.
fn kernel(path: &Path) -> Result<OwnedFd> {
    match image::open(path) {
        Ok(file) => Ok(file.into()),
        Err(ImageError { path, problem }) => Err(Error::Open {
            what: "kernel",
            path,
            source: match problem {
                ImageProblem::Open(source) => source,
                problem => io::Error::new(io::ErrorKind::InvalidData, problem),
            },
        }),
    }
}

/// Opens a root image of the caller for reading, locked against whoever writes to
/// it: the VMM has the same open file, and with it the lock. A FIFO is refused
/// rather than waited for, and nothing becomes our controlling terminal.
fn open_root(path: &Path) -> Result<OwnedFd> {
    let failed = |source| Error::Open {
        what: "root image",
        path: path.to_owned(),
        source,
    };
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits() | OFlag::O_NOCTTY.bits())
        .open(path)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )));
    }
    match file.try_lock_shared() {
        Ok(()) => Ok(file.into()),
        Err(TryLockError::WouldBlock) => Err(failed(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "it is in use: a VM or a command writes to it; wait until that has ended",
        ))),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// The initramfs with the guest's PID 1, as a memory file that can no longer
/// be changed.
fn initramfs(config: &SandboxBuilder) -> Result<OwnedFd> {
    let path = match &config.guest_init {
        Some(path) => path.clone(),
        None => locate::find(locate::INIT)?,
    };
    let failed = |source| Error::Open {
        what: "guest init",
        path: path.clone(),
        source,
    };
    let init = std::fs::read(&path).map_err(failed)?;
    let archive = initramfs::build(&init).map_err(|e| failed(io::Error::other(e)))?;
    let fd = memfd_create(
        "initramfs",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )
    .map_err(Error::host("make a memory file"))?;
    let mut file = File::from(fd);
    // The limit of file sizes is for those in memory, too.
    file.write_all(&archive)
        .map_err(|e| match e.kind() == io::ErrorKind::FileTooLarge {
            true => io::Error::new(
                e.kind(),
                format!("{e}; allow files of {} bytes (ulimit -f)", archive.len()),
            ),
            false => e,
        })
        .map_err(Error::host("fill a memory file with the guest's init"))?;
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(Error::host("seal a memory file"))?;
    Ok(file.into())
}
