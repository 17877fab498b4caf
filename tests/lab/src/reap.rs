//! Children that have ended.
//!
//! By the system call itself: nix takes a process that a real-time signal ended for
//! an error, and then nobody knows any more which process it was.
#![allow(unsafe_code)]

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::unistd::Pid;

/// Whichever child ends next.
pub(crate) const ANY: Pid = Pid::from_raw(-1);

/// Waits until a child has ended; which one, and how.
pub(crate) fn reap(which: Pid) -> Result<(Pid, ExitStatus), Errno> {
    let mut status = 0;
    // SAFETY: the status is ours, and is written to before the call returns.
    let ended = Errno::result(unsafe { libc::waitpid(which.as_raw(), &raw mut status, 0) })?;
    Ok((Pid::from_raw(ended), ExitStatus::from_raw(status)))
}

/// As shells have it: the process's own status, or 128 plus the signal's number.
pub(crate) fn exit_status(status: ExitStatus) -> u8 {
    let by_signal = || Some(128_i32.saturating_add(status.signal()?));
    let number = status.code().or_else(by_signal);
    number
        .and_then(|number| u8::try_from(number).ok())
        .unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn every_signal_has_its_status() {
        for (script, expected) in [
            ("exit 0", 0),
            ("exit 77", 77),
            ("exit 255", 255),
            ("kill -9 $$", 137),
            ("kill -34 $$", 162),
            ("kill -64 $$", 192),
        ] {
            let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
            let pid = Pid::from_raw(child.id().cast_signed());
            let (ended, status) = reap(pid).unwrap();
            assert_eq!((ended, exit_status(status)), (pid, expected), "{script}");
            // Nothing of it is left.
            child.wait().unwrap_err();
        }
    }
}
