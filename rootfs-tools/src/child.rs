//! Programs of the host, started so that locks go on meaning what they say.
//!
//! A lock (flock(2)) lasts until the last copy of its descriptor is closed. A
//! child has copies of all that its parent has open until it has executed its
//! program. So for an instant a lock may be found taken that its owner has let
//! go of: `try_lock` looks again when no child of ours is in that state.

use std::fs::{File, TryLockError};
use std::io;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// Held from before a child is there until its copies are closed.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts a child, by a `spawn` that returns when the child is about to execute
/// its program, as those of the standard library and posix_spawn(3) do. The kernel
/// closes the copies a moment later; a child that closes them itself before
/// leaves no gap. Whoever has VMs in a process that starts others should start
/// them so.
pub fn start<T>(spawn: impl FnOnce() -> T) -> T {
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    spawn()
}

/// Runs a program to its end; what it says on its output and error streams. One at
/// a time: that it has ended is how to know for certain that it has no copies.
pub(crate) fn output(command: &mut Command) -> io::Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    start(|| command.spawn()?.wait_with_output())
}

/// Takes the lock of a file, or a share in it, without waiting.
pub(crate) fn try_lock(file: &File, shared: bool) -> Result<(), TryLockError> {
    surely(|| match shared {
        true => file.try_lock_shared(),
        false => file.try_lock(),
    })
}

fn surely(mut attempt: impl FnMut() -> Result<(), TryLockError>) -> Result<(), TryLockError> {
    match attempt() {
        Err(TryLockError::WouldBlock) => start(attempt),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_child_that_is_being_started_does_not_keep_a_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let owner = File::open(file.path()).unwrap();
        try_lock(&owner, false).unwrap();
        let (tell, started) = mpsc::channel();
        let (go_on, told) = mpsc::channel::<()>();
        let copy = owner.try_clone().unwrap();
        let starting = thread::spawn(move || {
            // As between fork(2) and execve(2): the copy is closed by the latter.
            start(|| {
                tell.send(()).unwrap();
                told.recv().unwrap();
                drop(copy);
            });
        });
        started.recv().unwrap();
        drop(owner);
        let other = File::open(file.path()).unwrap();
        let mut attempts = Vec::new();
        let taken = surely(|| {
            let attempt = other.try_lock();
            attempts.push(attempt.is_ok());
            // The first time; later nobody listens.
            let _ = go_on.send(());
            attempt
        });
        taken.unwrap();
        assert_eq!(attempts, [false, true]);
        starting.join().unwrap();
    }

    #[test]
    fn a_lock_that_somebody_has_is_not_had() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let owner = File::open(file.path()).unwrap();
        try_lock(&owner, true).unwrap();
        let other = File::open(file.path()).unwrap();
        assert!(matches!(
            try_lock(&other, false),
            Err(TryLockError::WouldBlock)
        ));
        try_lock(&other, true).unwrap();
    }
}
