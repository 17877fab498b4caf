//! One build per key: a lock that another process may hold, awaited without
//! polling and given up when the build is cancelled.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;

use crate::cancel::{Cancel, Event};

/// An exclusive lock on a file, released when dropped or when the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock if it is free.
    pub(crate) fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Waits for the lock; `None` when cancelled.
    pub(crate) fn take(path: &Path, cancel: &Cancel) -> io::Result<Option<Self>> {
        let file = open(path)?;
        let waiting = file.try_clone()?;
        let (send, receive) = sync_channel(2);
        cancel.attach(send.clone());
        // A thread that still waits after a cancellation holds nothing but its
        // descriptor: if it ever gets the lock, it drops it at once.
        thread::spawn(move || {
            let locked = waiting.lock();
            let _ = send.send(Event::Locked(locked));
        });
        let event = receive.recv();
        cancel.detach();
        match event {
            Ok(Event::Locked(Ok(()))) => Ok(Some(Self { _file: file })),
            Ok(Event::Locked(Err(error))) => Err(error),
            _ => Ok(None),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_waited_for_and_a_waiter_can_be_cancelled() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("locks/a");
        let held = Lock::try_take(&path).unwrap().unwrap();
        assert!(Lock::try_take(&path).unwrap().is_none());

        let cancel = Cancel::default();
        cancel.cancel();
        assert!(Lock::take(&path, &cancel).unwrap().is_none());

        let waiter = {
            let path = path.clone();
            thread::spawn(move || Lock::take(&path, &Cancel::default()).unwrap().is_some())
        };
        drop(held);
        assert!(waiter.join().unwrap());
    }
}
