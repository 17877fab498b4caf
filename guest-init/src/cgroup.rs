//! Control groups (v2): one for all programs, with a limit that keeps memory
//! and process ids for PID 1, and in it one for each program, so that
//! everything a program started can be found and ended.
//!
//! PID 1 stays in the root group. Moving it to a leaf of its own would cost a
//! grace period of RCU (milliseconds, at boot) and bring nothing: the root
//! group is exempt from the rule that processes live in leaves only.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{mkdir, read, write};

use crate::sys;

/// Memory that programs cannot take from PID 1 and the kernel: a sixteenth,
/// but not less than this…
const RESERVE_MIN: u64 = 8 << 20;
/// … and not more than this.
const RESERVE_MAX: u64 = 64 << 20;

/// Most processes of all programs, below the least `kernel.pid_max`.
const PROCESSES_MAX: u64 = 31_000;

/// How deep groups that a program made inside its own are removed.
const DEPTH_MAX: usize = 32;

/// The group in which all programs run.
#[derive(Debug)]
pub(crate) struct Tree {
    path: PathBuf,
    next: u64,
}

impl Tree {
    /// Makes the group `exec` in the hierarchy mounted at `root` and limits it.
    ///
    /// Limits that cannot be set are returned as warnings.
    pub(crate) fn create(root: &Path) -> nix::Result<(Self, Vec<String>)> {
        let path = root.join("exec");
        make_directory(&path)?;
        let mut warnings = Vec::new();
        let mut set = |file: PathBuf, value: &str| {
            if let Err(errno) = write_file(&file, value) {
                warnings.push(format!(
                    "write {value} to {}: {}",
                    file.display(),
                    errno.desc()
                ));
            }
        };
        // Only what is used here: every controller costs time at boot, and
        // whoever needs others, such as a container engine, enables them. Now,
        // while there is no process in the group: enabling a controller for an
        // empty group migrates nothing and so waits for nothing.
        set(root.join("cgroup.subtree_control"), "+memory +pids");
        let total = sys::total_memory();
        let reserve = (total / 16).clamp(RESERVE_MIN, RESERVE_MAX);
        let most = total.saturating_sub(reserve);
        set(path.join("memory.max"), &most.to_string());
        set(path.join("pids.max"), &process_limit().to_string());
        Ok((Self { path, next: 0 }, warnings))
    }

    /// A new, empty group for one program, and its directory to start the
    /// program in.
    pub(crate) fn new_run(&mut self) -> nix::Result<(RunGroup, OwnedFd)> {
        let path = self.path.join(self.next.to_string());
        self.next = self.next.wrapping_add(1);
        make_directory(&path)?;
        let directory = open_directory(&path)?;
        Ok((RunGroup { path }, directory))
    }

    /// Ends every process of every program.
    pub(crate) fn kill(&self) -> nix::Result<()> {
        write_file(&self.path.join("cgroup.kill"), "1")
    }
}

/// Three quarters of the threads that the kernel allows for its memory
/// (`kernel.threads-max`, of which it gives init half as RLIMIT_NPROC).
fn process_limit() -> u64 {
    let half = getrlimit(Resource::RLIMIT_NPROC).map_or(PROCESSES_MAX, |(soft, _)| soft);
    half.saturating_add(half / 2).clamp(64, PROCESSES_MAX)
}

/// What became of a group that should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is gone: no process of it was left.
    Removed,
    /// There are still processes in it.
    Busy,
}

/// The group of one program.
#[derive(Debug)]
pub(crate) struct RunGroup {
    path: PathBuf,
}

impl RunGroup {
    /// Ends everything in the group, groups in it included.
    pub(crate) fn kill(&self) -> nix::Result<()> {
        write_file(&self.path.join("cgroup.kill"), "1")
    }

    /// Removes the group if no process is left in it.
    pub(crate) fn remove(&self) -> Removal {
        match remove_tree(&self.path, DEPTH_MAX) {
            Ok(()) | Err(Errno::ENOENT) => Removal::Removed,
            Err(_) => Removal::Busy,
        }
    }

    /// A descriptor that has an exceptional condition (`EPOLLPRI`) when the
    /// group becomes empty; `None` if it is already.
    pub(crate) fn watch_empty(&self) -> nix::Result<Option<OwnedFd>> {
        let events = open_file(&self.path.join("cgroup.events"), OFlag::O_RDONLY)?;
        // Reading arms the event: changes count from here.
        let mut buffer = [0_u8; 256];
        let length = read(&events, &mut buffer)?;
        let text = buffer.get(..length).unwrap_or_default();
        let empty = text
            .split(|b| *b == b'\n')
            .any(|line| line == b"populated 0");
        Ok((!empty).then_some(events))
    }
}

fn remove_tree(path: &Path, depth: usize) -> nix::Result<()> {
    match rmdir(path) {
        // Busy: with processes, or with groups in it.
        Err(Errno::EBUSY) if depth > 0 => {}
        result => return result,
    }
    let mut removed = false;
    for entry in std::fs::read_dir(path)
        .map_err(|error| to_errno(&error))?
        .flatten()
    {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path(), depth.saturating_sub(1))?;
            removed = true;
        }
    }
    if removed {
        rmdir(path)
    } else {
        Err(Errno::EBUSY)
    }
}

fn rmdir(path: &Path) -> nix::Result<()> {
    std::fs::remove_dir(path).map_err(|error| to_errno(&error))
}

fn to_errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn make_directory(path: &Path) -> nix::Result<()> {
    match mkdir(path, Mode::from_bits_truncate(0o755)) {
        Err(Errno::EEXIST) => Ok(()),
        result => result,
    }
}

fn open_file(path: &Path, access: OFlag) -> nix::Result<OwnedFd> {
    open(path, access | OFlag::O_CLOEXEC, Mode::empty())
}

fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    open_file(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

fn write_file(path: &Path, value: &str) -> nix::Result<()> {
    write(open_file(path, OFlag::O_WRONLY)?, value.as_bytes()).map(drop)
}
