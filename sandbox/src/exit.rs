//! How a VM ended.

use std::fmt;
use std::time::Duration;

use flashpan_protocol::control::{self, BootFailure, BootFailureKind, ExitReport, Stats};
use flashpan_protocol::phase::ExitRequest;
use serde::{Deserialize, Serialize};

use crate::console;
use crate::spawn::{ChildStatus, KILLED_WITHIN};
use crate::text::one_line;

/// Longest text of the VMM that a message quotes, in characters.
const QUOTED: usize = 300;

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest shut itself down in order.
    PowerOff,
    /// The guest asked for a restart, which ends a VM.
    Reboot,
    /// A program in the guest asked its PID 1 for the end, as `poweroff` does.
    AskedByProgram {
        /// Whether it asked for a restart, which ends a VM.
        reboot: bool,
    },
    /// The guest's PID 1 could not go on.
    GuestFailed {
        /// What it was doing.
        what: String,
        /// Why it failed.
        why: String,
    },
    /// The guest's kernel panicked.
    KernelPanic {
        /// What the kernel printed, on one line, free of control characters.
        message: String,
    },
    /// The guest reset its CPU, and its console does not say why.
    Reset,
    /// The guest's CPU faulted while delivering a fault, and the console does
    /// not say why.
    TripleFault,
    /// [`crate::Sandbox::kill`], or the last handle was dropped.
    Killed,
    /// The VM has run for as long as it may ([`crate::SandboxBuilder::time_limit`]).
    TimedOut {
        /// The limit.
        after: Duration,
        /// Whether the guest had its disks written and unmounted before it ended.
        orderly: bool,
    },
    /// KVM could not go on.
    Kvm {
        /// What the VMM reported.
        message: String,
    },
    /// A part of the VMM failed and said so.
    Vmm {
        /// What the VMM reported.
        message: String,
    },
    /// The VM could not be built.
    BootFailed {
        /// The class of failure.
        #[serde(skip, default = "unknown_class")]
        class: BootFailureKind,
        /// What the VMM reported.
        message: String,
    },
    /// The VMM process went away without a report.
    VmmDied {
        /// How, e.g. `killed by signal 9`.
        status: String,
        /// The last line it wrote to its standard error, if any.
        stderr: Option<String>,
    },
    /// The VMM process was killed and did not end: the host's kernel waits in it
    /// for a disk or a file system. What it has open stays in use, its locks too.
    VmmStuck {
        /// The process.
        pid: i32,
        /// What else would be the reason.
        message: String,
    },
    /// The supervisor of a VM that others attach to went away, and the VM with it.
    SupervisorDied,
    /// The VM of a supervisor did not come up, or ended in a way that is known in
    /// words only.
    Other {
        /// What the supervisor reported.
        message: String,
    },
}

/// The class of a failure that was written down without it.
fn unknown_class() -> BootFailureKind {
    BootFailureKind::Host
}

impl ExitReason {
    /// Whether the guest had its disks written and unmounted before it ended.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::PowerOff
                | Self::Reboot
                | Self::AskedByProgram { .. }
                | Self::TimedOut { orderly: true, .. }
        )
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "guest powered off"),
            Self::Reboot => write!(f, "guest restarted, which ends a VM"),
            Self::AskedByProgram { reboot: false } => {
                write!(f, "a program in the guest powered it off")
            }
            Self::AskedByProgram { reboot: true } => {
                write!(f, "a program in the guest restarted it, which ends a VM")
            }
            Self::GuestFailed { what, why } => write!(f, "guest could not {what}: {why}"),
            Self::KernelPanic { message } if console::is_out_of_memory(message) => {
                write!(
                    f,
                    "guest ran out of memory and its kernel panicked: {message}; give it more memory"
                )
            }
            Self::KernelPanic { message } => write!(f, "guest kernel panic: {message}"),
            Self::Reset => write!(f, "guest reset its CPU without a word on its console"),
            Self::TripleFault => write!(
                f,
                "guest CPU shut down (triple fault); is the kernel built for x86-64 and this VMM?"
            ),
            Self::Killed => write!(f, "VM was killed"),
            Self::TimedOut { after, .. } => {
                write!(
                    f,
                    "VM was ended because it had run for {after:?}, its time limit"
                )
            }
            Self::Kvm { message } => write!(f, "KVM stopped the VM: {message}"),
            Self::Vmm { message } => write!(f, "VMM failed: {message}"),
            Self::BootFailed { message, .. } => write!(f, "{message}"),
            Self::VmmDied {
                status,
                stderr: None,
            } => write!(f, "VMM process {status}"),
            Self::VmmDied {
                status,
                stderr: Some(line),
            } => {
                write!(f, "VMM process {status}; it said: {line}")
            }
            Self::VmmStuck { pid, message } => write!(
                f,
                "VMM process {pid} does not end, {KILLED_WITHIN:?} after it was killed ({message}); \
                 it ends when the disk or file system of the host answers that it waits for"
            ),
            Self::SupervisorDied => {
                write!(f, "the VM's supervisor died, and the VM with it")
            }
            Self::Other { message } => write!(f, "{message}"),
        }
    }
}

/// The end of a VM: why, and what is left of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// The last console output of the guest (at most 64 KiB), as it wrote it:
    /// not fit for a terminal.
    pub console: Vec<u8>,
    /// The VMM's counters, if it lived to report them.
    pub stats: Option<Stats>,
}

/// What the VMM said last.
#[derive(Debug)]
pub(crate) enum LastWord {
    Exited(Box<ExitReport>),
    BootFailed(BootFailure),
    /// It broke the protocol; the text says how.
    Broken(String),
    Nothing,
}

/// What the guest's PID 1 said last on the boot connection, after it was ready.
#[derive(Debug, Clone)]
pub(crate) enum GuestWord {
    /// It ends because a program asked it to.
    ShuttingDown { reboot: bool },
    /// It cannot go on.
    Failed { what: String, why: String },
}

impl ExitReason {
    /// An end in order, with what PID 1 said of it.
    pub(crate) fn explained_by(self, word: Option<GuestWord>) -> Self {
        match (self, word) {
            (Self::PowerOff | Self::Reboot, Some(GuestWord::ShuttingDown { reboot })) => {
                Self::AskedByProgram { reboot }
            }
            (Self::PowerOff | Self::Reboot, Some(GuestWord::Failed { what, why })) => {
                Self::GuestFailed { what, why }
            }
            (reason, _) => reason,
        }
    }

    /// An end that came of the limit of the VM's life, if that was reached.
    pub(crate) fn at_its_limit(self, limit: Option<Duration>) -> Self {
        match (limit, self.is_orderly() || self == Self::Killed) {
            (Some(after), true) => Self::TimedOut {
                after,
                orderly: self.is_orderly(),
            },
            _ => self,
        }
    }
}

/// Everything that is known at the end, made into one reason.
pub(crate) fn classify(
    last_word: &LastWord,
    killed: bool,
    status: &ChildStatus,
    console: &[u8],
    stderr: &[u8],
) -> ExitReason {
    let quote = |text: &str| one_line(text, QUOTED);
    match last_word {
        LastWord::Exited(report) => from_report(&report.reason, console),
        LastWord::BootFailed(failure) => ExitReason::BootFailed {
            class: failure.kind,
            message: quote(&failure.message),
        },
        LastWord::Broken(why) => ExitReason::Vmm {
            message: format!("its control connection broke: {}", quote(why)),
        },
        LastWord::Nothing if killed => ExitReason::Killed,
        LastWord::Nothing => ExitReason::VmmDied {
            status: status.to_string(),
            stderr: console::last_line(stderr),
        },
    }
}

fn from_report(reason: &control::ExitReason, console: &[u8]) -> ExitReason {
    let panic =
        || console::panic_message(console).map(|message| ExitReason::KernelPanic { message });
    match reason {
        control::ExitReason::Requested(ExitRequest::PowerOff) => ExitReason::PowerOff,
        control::ExitReason::Requested(ExitRequest::Reboot) => ExitReason::Reboot,
        control::ExitReason::Reset => panic().unwrap_or(ExitReason::Reset),
        control::ExitReason::TripleFault => panic().unwrap_or(ExitReason::TripleFault),
        control::ExitReason::KvmError(message) => ExitReason::Kvm {
            message: one_line(message, QUOTED),
        },
        control::ExitReason::VmmError(message) => ExitReason::Vmm {
            message: one_line(message, QUOTED),
        },
        control::ExitReason::Killed => ExitReason::Killed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(reason: control::ExitReason) -> LastWord {
        LastWord::Exited(Box::new(ExitReport {
            reason,
            at_ns: 1,
            stats: Stats::default(),
        }))
    }

    fn reason(last_word: &LastWord, console: &[u8]) -> ExitReason {
        classify(last_word, false, &ChildStatus::Exited(0), console, b"")
    }

    #[test]
    fn a_reset_after_a_panic_message_is_a_kernel_panic() {
        let console = b"[ 0.1] Kernel panic - not syncing: Attempted to kill init!\n";
        for ended in [control::ExitReason::Reset, control::ExitReason::TripleFault] {
            let reason = reason(&exited(ended), console);
            assert_eq!(
                reason.to_string(),
                "guest kernel panic: Attempted to kill init!"
            );
        }
    }

    #[test]
    fn a_power_off_is_never_a_panic() {
        let word = exited(control::ExitReason::Requested(ExitRequest::PowerOff));
        let reason = reason(&word, b"Kernel panic - not syncing: forged\n");
        assert_eq!(reason, ExitReason::PowerOff);
    }

    #[test]
    fn a_panic_for_want_of_memory_says_what_to_do() {
        let console = b"Kernel panic - not syncing: System is deadlocked on memory\n";
        let text = reason(&exited(control::ExitReason::Reset), console).to_string();
        assert!(
            text.contains("ran out of memory") && text.contains("more memory"),
            "{text}"
        );
    }

    #[test]
    fn a_vmm_that_vanishes_is_reported_with_its_status_and_last_line() {
        let status = ChildStatus::Signaled(11);
        let reason = classify(
            &LastWord::Nothing,
            false,
            &status,
            b"",
            b"a\nthread panicked\n",
        );
        assert_eq!(
            reason.to_string(),
            "VMM process was killed by signal 11 (SIGSEGV); it said: thread panicked"
        );
    }

    #[test]
    fn an_end_at_the_limit_is_told_from_one_of_another_cause() {
        let after = Duration::from_secs(3);
        for (reason, orderly) in [(ExitReason::PowerOff, true), (ExitReason::Killed, false)] {
            assert_eq!(reason.clone().at_its_limit(None), reason);
            let ended = reason.at_its_limit(Some(after));
            assert_eq!(ended, ExitReason::TimedOut { after, orderly });
            assert_eq!(ended.is_orderly(), orderly);
        }
        let crash = ExitReason::TripleFault;
        assert_eq!(crash.clone().at_its_limit(Some(after)), crash);
    }

    #[test]
    fn a_vmm_that_was_killed_on_purpose_is_not_a_failure() {
        let status = ChildStatus::Signaled(9);
        assert_eq!(
            classify(&LastWord::Nothing, true, &status, b"", b""),
            ExitReason::Killed
        );
    }
}
