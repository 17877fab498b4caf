//! The two locks of the state directory.
//!
//! **The lock of a life** is that of the file `lock` in a VM's directory. It is held
//! as long as the VM's supervisor lives, and nothing else says whether it does. It
//! is a lock of the open file description (fcntl(2), `F_OFD_SETLK`) and not that of
//! flock(2): both are let go of by the kernel when a process ends, however it ends,
//! but only this one can be asked about without being taken. So who lists VMs never
//! looks like a supervisor and is never in the way of one.
//!
//! Supervisors have it exclusively. Who waits for the end of one waits for a share.
//! The first byte of the file says what the VM does. Before a supervisor takes the lock
//! it puts there that a run begins, and until it says something else `run.json` is that
//! of the run before.
//!
//! **The mark of a supervisor** is a lock of the file `supervisor` beside it, by which
//! the kernel tells the process id of who has it. So a supervisor that answers nobody
//! can be found and ended. This one is of the process and not of the open file, and
//! lost when the process closes the file: nothing else in a supervisor opens it.
//!
//! **The lock of the list** is a flock(2) of the directory of VMs itself, so it needs
//! no file. It is held for the moments in which directories appear, disappear and
//! get or lose names, and in which a supervisor takes the lock of a life.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use flashpan_protocol::supervisor::Activity;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::state::error::{StateError, failed};

/// How long a command waits for the lock of the list.
const LIST_WITHIN: Duration = Duration::from_secs(30);

/// Name of the file of the mark.
const MARK: &str = "supervisor";

/// Who has the lock of a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    Nobody,
    /// Somebody who waited for its end, for a moment.
    Waiter,
    Supervisor,
}

/// What the file says before the first word of a supervisor.
const BEGINS: u8 = b'b';

/// The lock of a life, held.
#[derive(Debug)]
pub(crate) struct LifeLock(File);

impl LifeLock {
    /// Makes the file and takes its lock, in a directory that nobody else knows yet.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .read(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        match set(&file, libc::F_WRLCK, false)? {
            true => Ok(Self(file)),
            false => Err(io::ErrorKind::ResourceBusy.into()),
        }
    }

    /// Takes the lock; `None` if a supervisor has it. The caller has the lock of the
    /// list, so no supervisor can come meanwhile. `before` is what is done before anybody
    /// can see that there is a supervisor, and not if there is another.
    pub(crate) fn take(
        path: &Path,
        before: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        if query(&file)? == Holder::Supervisor {
            return Ok(None);
        }
        before()?;
        // What the supervisor before said last is said of no other run.
        file.write_all_at(&[BEGINS], 0)?;
        // Who waited for a share lets go of it at once.
        set(&file, libc::F_WRLCK, true)?;
        Ok(Some(Self(file)))
    }

    /// Lets go of it, although the file stays open.
    pub(crate) fn release(&self) -> io::Result<()> {
        set(&self.0, libc::F_UNLCK, false).map(drop)
    }

    /// Says what the VM does: one byte in place, which is never half there and needs
    /// no room on the disk.
    pub(crate) fn say(&self, activity: Activity) -> io::Result<()> {
        self.0.write_all_at(&[letter(activity)], 0)
    }
}

/// Who has the lock of the life that `path` is the file of, and what the supervisor
/// says that the VM does; `None` as long as `run.json` may be that of the run before.
pub(crate) fn look(path: &Path) -> io::Result<(Holder, Option<Activity>)> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Holder::Nobody, None)),
        Err(error) => return Err(error),
    };
    let holder = query(&file)?;
    let mut said = [0];
    let activity = match file.read_exact_at(&mut said, 0) {
        Ok(()) => activity(said),
        Err(_) => None,
    };
    Ok((holder, activity))
}

/// Waits until no supervisor has the lock; whether that was `within` this time.
pub(crate) fn wait_until_free(path: &Path, within: Duration) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        // Removed with its VM.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    if set(&file, libc::F_RDLCK, false)? {
        return Ok(true);
    }
    let waited = in_time(within, move || set(&file, libc::F_RDLCK, true))?;
    waited.unwrap_or(Ok(false))
}

/// The mark of a supervisor, as long as the process lives.
#[derive(Debug)]
pub(crate) struct Mark {
    _file: File,
}

impl Mark {
    /// Marks this process as the supervisor of the VM in a directory. The caller has the
    /// lock of its life.
    pub(crate) fn leave(directory: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join(MARK))?;
        fcntl(&file, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK)))?;
        Ok(Self { _file: file })
    }
}

/// The process that supervises the VM in a directory, by the kernel's word; `None` if
/// there is none, or none that this process could name.
pub(crate) fn marked(directory: &Path) -> io::Result<Option<i32>> {
    let file = match File::open(directory.join(MARK)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut lock = whole_file(libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_GETLK(&mut lock))?;
    let held = libc::c_int::from(lock.l_type) != libc::F_UNLCK;
    Ok(Some(lock.l_pid).filter(|pid| held && *pid > 0))
}

fn letter(activity: Activity) -> u8 {
    match activity {
        Activity::Starting => b's',
        Activity::Running => b'r',
        Activity::Paused => b'p',
        Activity::Stopping => b'e',
    }
}

fn activity([letter]: [u8; 1]) -> Option<Activity> {
    match letter {
        b's' => Some(Activity::Starting),
        b'r' => Some(Activity::Running),
        b'p' => Some(Activity::Paused),
        b'e' => Some(Activity::Stopping),
        _ => None,
    }
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Takes the lock of an open file description; whether it was to be had.
fn set(file: &File, kind: libc::c_int, wait: bool) -> io::Result<bool> {
    let lock = whole_file(kind);
    loop {
        let result = match wait {
            true => fcntl(file, FcntlArg::F_OFD_SETLKW(&lock)),
            false => fcntl(file, FcntlArg::F_OFD_SETLK(&lock)),
        };
        match result {
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Asks who would be in the way of a supervisor. Takes nothing.
fn query(file: &File) -> io::Result<Holder> {
    let mut lock = whole_file(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(match libc::c_int::from(lock.l_type) {
        libc::F_UNLCK => Holder::Nobody,
        libc::F_RDLCK => Holder::Waiter,
        _ => Holder::Supervisor,
    })
}

/// The lock of the list, held.
#[derive(Debug)]
pub(crate) struct ListLock {
    _directory: File,
}

impl ListLock {
    /// Takes it, waiting if need be.
    pub(crate) fn take(directory: &Path) -> Result<Self, StateError> {
        let file = File::open(directory).map_err(failed("open", directory))?;
        match file.try_lock() {
            Ok(()) => return Ok(Self { _directory: file }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => return Err(failed("lock", directory)(source)),
        }
        let locked = in_time(LIST_WITHIN, move || file.lock().map(|()| file));
        match locked.map_err(failed("lock", directory))? {
            Some(Ok(file)) => Ok(Self { _directory: file }),
            Some(Err(source)) => Err(failed("lock", directory)(source)),
            None => Err(StateError::Busy {
                path: directory.to_owned(),
                seconds: LIST_WITHIN.as_secs(),
            }),
        }
    }
}

/// Does something that blocks, in a thread that is left to itself when it takes too
/// long; `None` then.
fn in_time<T: Send + 'static>(
    within: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (sender, done) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name("lock".to_owned())
        .spawn(move || drop(sender.send(work())))?;
    Ok(done.recv_timeout(within).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_sees_the_supervisor_and_is_not_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(look(&path).unwrap(), (Holder::Nobody, None));
        let life = LifeLock::create(&path).unwrap();
        life.say(Activity::Paused).unwrap();
        for _ in 0..2 {
            let paused = Some(Activity::Paused);
            assert_eq!(look(&path).unwrap(), (Holder::Supervisor, paused));
        }
        assert!(LifeLock::take(&path, || Ok(())).unwrap().is_none());
        assert!(!wait_until_free(&path, Duration::from_millis(10)).unwrap());
        drop(life);
        // Who waited in vain may still get its share, for a moment.
        assert_ne!(look(&path).unwrap().0, Holder::Supervisor);
        assert!(LifeLock::take(&path, || Ok(())).unwrap().is_some());
    }

    #[test]
    fn who_waits_hears_of_the_end_and_is_not_in_the_way_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let life = LifeLock::create(&path).unwrap();
        let waiting = {
            let path = path.clone();
            thread::spawn(move || wait_until_free(&path, Duration::from_secs(60)).unwrap())
        };
        drop(life);
        assert!(waiting.join().unwrap());
        // A share that is held for a moment.
        let share = File::open(&path).unwrap();
        assert!(set(&share, libc::F_RDLCK, false).unwrap());
        assert_eq!(look(&path).unwrap().0, Holder::Waiter);
        let next = {
            let path = path.clone();
            thread::spawn(move || LifeLock::take(&path, || Ok(())).unwrap().is_some())
        };
        drop(share);
        assert!(next.join().unwrap());
    }

    #[test]
    fn the_list_is_changed_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = ListLock::take(dir.path()).unwrap();
        let (tell, told) = mpsc::channel();
        let path = dir.path().to_owned();
        let second = thread::spawn(move || {
            let lock = ListLock::take(&path).unwrap();
            tell.send(()).unwrap();
            drop(lock);
        });
        assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(held);
        told.recv_timeout(Duration::from_secs(60)).unwrap();
        second.join().unwrap();
    }
}
