//! The end of the VM.

use std::time::{Duration, Instant};

use flashpan_protocol::phase::ExitRequest;
use nix::errno::Errno;
use nix::libc;
use nix::sys::reboot::{RebootMode, reboot};

use crate::agent::Agent;
use crate::disks::Writable;
use crate::ports;
use crate::sys::{self, Children};

/// Between SIGTERM and SIGKILL when a program in the guest asked for the end.
pub(crate) const GUEST_GRACE: Duration = Duration::from_secs(5);

/// How long processes may take to die of SIGKILL, and the supervisor to take
/// their last output.
const KILL_WITHIN: Duration = Duration::from_secs(2);

/// What a signal to PID 1 asks for, in the conventions of busybox (USR1 halt,
/// USR2 power-off, TERM reboot), of systemd (RTMIN+3, +4, +5, and +13, +14, +15
/// for at once, INT for Ctrl-Alt-Del) and of power supplies (PWR).
pub(crate) fn asked_by(signal: u32) -> Option<ExitRequest> {
    let signal = i32::try_from(signal).ok()?;
    let real_time = signal.saturating_sub(libc::SIGRTMIN());
    match (signal, real_time) {
        (libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGPWR, _) | (_, 3 | 4 | 13 | 14) => {
            Some(ExitRequest::PowerOff)
        }
        (libc::SIGTERM | libc::SIGINT, _) | (_, 5 | 15) => Some(ExitRequest::Reboot),
        _ => None,
    }
}

/// An end that is under way: SIGTERM was sent to every process.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) request: ExitRequest,
    deadline: Instant,
    killed: bool,
}

impl Ending {
    /// Asks every process to end.
    pub(crate) fn start(request: ExitRequest, grace: Duration, agent: &mut Agent) -> Self {
        agent.cancel_all(grace);
        // Those that were left behind by their programs, too.
        let _ = sys::kill(-1, libc::SIGTERM);
        let _ = sys::kill(-1, libc::SIGCONT);
        let now = Instant::now();
        Self {
            request,
            deadline: now.checked_add(grace).unwrap_or(now),
            killed: false,
        }
    }

    /// When [`Ending::is_over`] has something new to say.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether nothing runs any more, or is given up. Kills what still runs
    /// after the grace period.
    pub(crate) fn is_over(&mut self, agent: &mut Agent) -> bool {
        // Every process descends from PID 1: without children there is none.
        let alone = sys::wait(Children::Any, false) == Err(Errno::ECHILD);
        if alone && agent.is_idle() {
            return true;
        }
        if Instant::now() < self.deadline {
            return false;
        }
        if self.killed {
            return true;
        }
        agent.kill_all();
        self.killed = true;
        self.deadline = Instant::now() + KILL_WITHIN;
        false
    }
}

/// Writes everything to the disks and ends the VM.
///
/// Writable disks are frozen rather than unmounted: the one under the root is in
/// use to the last, and freezing leaves the same clean file system whoever still
/// has files open.
pub(crate) fn power_off(request: ExitRequest, writable: &[Writable]) -> ! {
    nix::unistd::sync();
    for disk in writable {
        let _ = sys::freeze(disk);
    }
    leave(request)
}

/// Ends the VM as things are.
pub(crate) fn leave(request: ExitRequest) -> ! {
    ports::exit(request);
    // Not our VMM, then, or a kernel that lets nobody use ports.
    reset()
}

/// The end whatever was asked for: without ACPI there is no power to switch
/// off, and a kernel that cannot do that halts for ever.
fn reset() -> ! {
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    sys::halt()
}

#[cfg(test)]
mod tests;
