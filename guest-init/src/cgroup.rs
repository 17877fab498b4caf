//! Control groups (v2): one for all programs, with a limit that keeps memory
//! and process ids for PID 1, and in it one for each program, so that
//! everything a program started can be found and ended.
//!
//! PID 1 stays in the root group. Moving it to a leaf of its own would cost a
//! grace period of RCU (milliseconds, at boot) and bring nothing: the root
//! group is exempt from the rule that processes live in leaves only.
//!
//! Groups are reached by descriptors alone. A program that is root may mount
//! something over the hierarchy, or on a group in it; that changes nothing for
//! PID 1 (see `anchors`).
//!
//! Groups are not made boundaries (`nsdelegate` and a cgroup namespace for each
//! program), though a program that is root can move to another group so. In a
//! namespace of its own it would see no controller but those that were enabled
//! for it beforehand, each at a price at every start, and a container engine
//! would find its processes where none may be. And it would bind nobody: root
//! enters the namespaces of PID 1. Instead, what has left its group is ended
//! when the last program has (`Shared::run_ended`).

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use flashpan_protocol::agent::MIN_CPU_QUOTA;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::uio::pread;
use nix::unistd::{UnlinkatFlags, unlinkat, write};

use crate::anchors::open_at;
use crate::sys;

/// Memory that programs cannot take from PID 1 and the kernel: a sixteenth,
/// but not less than this…
const RESERVE_MIN: u64 = 8 << 20;
/// … and not more than this.
const RESERVE_MAX: u64 = 64 << 20;

/// Most processes of all programs, below the least `kernel.pid_max`.
const PROCESSES_MAX: u64 = 31_000;

/// Most groups that a program made inside its own of which one removal gets rid.
/// What is left is empty and does no harm.
const REMOVED_AT_ONCE: usize = 4096;

/// How many names are tried for a new group: programs may have taken some.
const NAMES_TRIED: usize = 64;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);

/// The group in which all programs run.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    directory: Arc<OwnedFd>,
    /// `cgroup.kill` of it.
    kill: OwnedFd,
    next: u64,
}

impl Tree {
    /// Makes the group `exec` in the hierarchy mounted at `root` and limits it.
    ///
    /// Limits that cannot be set are returned as warnings.
    pub(crate) fn create(root: &Path) -> nix::Result<(Self, Vec<String>)> {
        let root = open(root, DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        match make_directory(&root, "exec") {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        let directory = open_at(&root, "exec", DIRECTORY)?;
        let mut warnings = Vec::new();
        let mut set = |group: BorrowedFd<'_>, file: &str, value: &str| {
            if let Err(errno) = write_file(group, file, value) {
                let why = errno.desc();
                warnings.push(format!("write {value} to {file} of a control group: {why}"));
            }
        };
        // Only what is used here: every controller costs time at boot, and
        // whoever needs others, such as a container engine, enables them. Now,
        // while there is no process in the group: enabling a controller for an
        // empty group migrates nothing and so waits for nothing.
        set(root.as_fd(), "cgroup.subtree_control", "+memory +pids");
        let total = sys::total_memory();
        let reserve = (total / 16).clamp(RESERVE_MIN, RESERVE_MAX);
        let most = total.saturating_sub(reserve);
        let exec = directory.as_fd();
        set(exec, "memory.max", &most.to_string());
        set(exec, "pids.max", &process_limit().to_string());
        let tree = Self {
            kill: open_at(&directory, "cgroup.kill", OFlag::O_WRONLY)?,
            directory: Arc::new(directory),
            root,
            next: 0,
        };
        Ok((tree, warnings))
    }

    /// Lets all programs together use so many thousandths of a processor. Before
    /// there are any.
    pub(crate) fn limit_processors(&self, thousandths: u32) -> nix::Result<()> {
        write_file(&self.root, "cgroup.subtree_control", "+cpu")?;
        let quota = u64::from(thousandths.max(MIN_CPU_QUOTA)) * u64::from(PERIOD) / 1000;
        write_file(&*self.directory, "cpu.max", &format!("{quota} {PERIOD}"))
    }

    /// Lets all programs together have so many processes and threads, but not more
    /// than the kernel has room for.
    pub(crate) fn limit_processes(&self, most: u32) -> nix::Result<()> {
        let most = u64::from(most).min(process_limit());
        write_file(&*self.directory, "pids.max", &most.to_string())
    }

    /// A new, empty group for one program.
    pub(crate) fn new_run(&mut self) -> nix::Result<RunGroup> {
        for _ in 0..NAMES_TRIED {
            let name = self.next.to_string();
            self.next = self.next.wrapping_add(1);
            match make_directory(&*self.directory, &name) {
                Ok(()) => return RunGroup::open(&self.directory, name),
                // A program has made it: what is in there is not ours.
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EEXIST)
    }

    /// Ends every process of every program.
    pub(crate) fn kill(&self) -> nix::Result<()> {
        write(&self.kill, b"1").map(drop)
    }
}

/// The period of [`Tree::limit_processors`], Linux's own, in microseconds.
const PERIOD: u32 = 100_000;

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
    parent: Arc<OwnedFd>,
    name: String,
    directory: OwnedFd,
    /// `cgroup.kill` and `cgroup.events` of it.
    kill: OwnedFd,
    events: OwnedFd,
}

impl RunGroup {
    fn open(parent: &Arc<OwnedFd>, name: String) -> nix::Result<Self> {
        let directory = open_at(&**parent, &name, DIRECTORY)?;
        Ok(Self {
            kill: open_at(&directory, "cgroup.kill", OFlag::O_WRONLY)?,
            events: open_at(&directory, "cgroup.events", OFlag::O_RDONLY)?,
            parent: Arc::clone(parent),
            name,
            directory,
        })
    }

    /// Ends everything in the group, groups in it included.
    pub(crate) fn kill(&self) -> nix::Result<()> {
        write(&self.kill, b"1").map(drop)
    }

    /// Removes the group if no process is left in it or in groups in it.
    pub(crate) fn remove(&self) -> Removal {
        match self.unlink() {
            // A program has removed it, which it can only when it is empty.
            Ok(()) | Err(Errno::ENOENT) => return Removal::Removed,
            Err(_) if self.is_populated() => return Removal::Busy,
            Err(_) => {}
        }
        // Groups without processes are in it. What cannot be removed, for
        // instance because something is mounted on it, is empty as well.
        let _ = remove_inner(&self.directory);
        let _ = self.unlink();
        Removal::Removed
    }

    fn unlink(&self) -> nix::Result<()> {
        remove_directory(&*self.parent, self.name.as_str())
    }

    /// Whether there are processes in it. Reading arms the event of
    /// [`RunGroup::watch_empty`]: changes count from here.
    fn is_populated(&self) -> bool {
        let mut buffer = [0_u8; 256];
        // It cannot be read when the group is gone.
        let length = pread(&self.events, &mut buffer, 0).unwrap_or(0);
        let text = buffer.get(..length).unwrap_or_default();
        text.split(|b| *b == b'\n')
            .any(|line| line == b"populated 1")
    }

    /// A descriptor that has an exceptional condition (`EPOLLPRI`) when the
    /// group has become empty since [`RunGroup::remove`] found that it was
    /// busy, and until that is asked again.
    pub(crate) fn watch_empty(&self) -> nix::Result<OwnedFd> {
        self.events
            .try_clone()
            .map_err(|error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw))
    }
}

impl AsFd for RunGroup {
    /// The directory of the group, to start a process in it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Removes the groups in the one at `directory`, however deep they are, as far
/// as that goes.
fn remove_inner(directory: &OwnedFd) -> nix::Result<()> {
    let mut left = REMOVED_AT_ONCE;
    let mut path: Vec<CString> = Vec::new();
    let mut current = open_at(directory, ".", DIRECTORY)?;
    loop {
        current = match busy_child(&current, &mut left)? {
            Some(child) => {
                let inner = open_at(&current, OsStr::from_bytes(child.to_bytes()), DIRECTORY)?;
                path.push(child);
                inner
            }
            None => {
                let Some(name) = path.pop() else {
                    return Ok(());
                };
                let parent = open_at(&current, "..", DIRECTORY)?;
                remove_directory(&parent, name.as_c_str())?;
                parent
            }
        };
    }
}

/// Removes the groups directly in `directory`; stops at the first that has
/// groups in it. `left` counts what may still be tried.
fn busy_child(directory: &OwnedFd, left: &mut usize) -> nix::Result<Option<CString>> {
    // A descriptor of its own: closing it ends the listing.
    let mut listing = Dir::from_fd(open_at(directory, ".", DIRECTORY)?)?;
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() != Some(Type::Directory) || matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        *left = left.checked_sub(1).ok_or(Errno::EAGAIN)?;
        if remove_directory(directory, name).is_err() {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

fn remove_directory<P: ?Sized + nix::NixPath>(parent: impl AsFd, name: &P) -> nix::Result<()> {
    unlinkat(parent, name, UnlinkatFlags::RemoveDir)
}

fn make_directory(parent: impl AsFd, name: &str) -> nix::Result<()> {
    mkdirat(parent, name, Mode::from_bits_truncate(0o755))
}

fn write_file(directory: impl AsFd, name: &str, value: &str) -> nix::Result<()> {
    let file = open_at(directory, name, OFlag::O_WRONLY)?;
    write(file, value.as_bytes()).map(drop)
}
