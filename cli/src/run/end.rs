//! The end of a VM in the foreground that is not just killed.

use std::time::Duration;

use flashpan::launch::Launch;
use flashpan::{ExitReason, Sandbox};

use crate::failure::{Failure, say};
use crate::program::time_is_up;
use crate::signals::{Asked, Signals};

/// How long programs that the command left behind may take to end, where a disk
/// has to be left in order.
const GRACE: Duration = Duration::from_secs(5);

/// How long a guest may write its disks before the user is told what is waited for.
const LONG: Duration = Duration::from_secs(10);

/// How a VM is ended that is not just killed.
pub(super) struct End {
    /// For programs, to end on SIGTERM.
    grace: Duration,
    /// For the guest, to write its disks.
    within: Duration,
    /// Whether it has disks that are kept.
    keeps: bool,
}

impl End {
    /// How the VM is to be ended, if not at once.
    pub(super) fn of(launch: &Launch, grace: Option<Duration>) -> Option<Self> {
        let grace = grace.filter(|grace| !grace.is_zero());
        if launch.keeps_something() {
            // Nobody else has what is not written then, so it takes as long as it
            // takes.
            return Some(Self {
                grace: grace.unwrap_or(GRACE),
                within: Duration::MAX,
                keeps: true,
            });
        }
        grace.map(|grace| Self {
            grace,
            within: Duration::ZERO,
            keeps: false,
        })
    }

    /// Only the programs that are left are ended in order.
    pub(super) fn with_programs() -> Self {
        Self {
            grace: GRACE,
            within: Duration::ZERO,
            keeps: false,
        }
    }

    /// Ends a VM in order. With disks that are kept its guest writes them first,
    /// which takes as long as it takes, unless the VM's time is up.
    pub(super) async fn in_order(
        self,
        sandbox: &Sandbox,
        mut result: Result<u8, Failure>,
        signals: &mut Signals,
    ) -> Result<u8, Failure> {
        let shutdown = sandbox.shutdown_within(self.grace, self.within);
        let mut shutdown = std::pin::pin!(shutdown);
        let mut long = std::pin::pin!(tokio::time::sleep(LONG));
        let mut told = false;
        let exit = loop {
            tokio::select! {
                exit = &mut shutdown => break exit,
                asked = signals.next() => match asked {
                    Asked::GiveUp(signal) => {
                        // What came first counts: time may have been up before.
                        result = result.and(Err(Failure::given_up(signal)));
                        break sandbox.kill().await;
                    }
                    Asked::Deliver(_) | Asked::Resize => {}
                },
                () = &mut long, if !told && self.keeps => {
                    told = true;
                    say("note", "waiting for the guest to write its disks; three interrupts end it now");
                }
            }
        };
        if exit.reason.is_orderly() || !self.keeps {
            return result;
        }
        if let ExitReason::TimedOut { after, .. } = exit.reason {
            result = result.and_then(|_| Err(time_is_up(after, "writing its disks")));
        }
        let lost = format!(
            "the guest did not shut down in order ({}); what it wrote last to its disks may be lost",
            exit.reason
        );
        match result {
            Ok(_) => Err(Failure::new(lost)),
            Err(failure) => {
                say("warning", &lost);
                Err(failure)
            }
        }
    }
}
