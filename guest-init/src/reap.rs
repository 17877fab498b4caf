//! Children that have ended: leaders of programs, and orphans.

use crate::agent::Agent;
use crate::sys::{self, Children};

/// Most children that are reaped before other events have their turn. Programs can
/// make orphans as fast as they are reaped.
const PER_TURN: usize = 64;

/// Reaps children; returns whether there may be more. Programs learn of their
/// leader's end; the rest are orphans.
pub(crate) fn some(agent: &mut Agent) -> bool {
    let mut orphans = false;
    let mut more = true;
    for _ in 0..PER_TURN {
        let Ok(Some(ended)) = sys::wait(Children::Any, false) else {
            more = false;
            break;
        };
        if !agent.child_ended(ended.pid) {
            orphans = true;
            if !matches!(sys::wait(Children::One(ended.pid), true), Ok(Some(_))) {
                more = false;
                break;
            }
        }
    }
    if orphans {
        agent.orphans_ended();
    }
    more
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use nix::unistd::Pid;

    use super::*;
    use crate::anchors::Anchors;
    use crate::poller::Poller;
    use crate::spawn::Privileges;

    #[test]
    fn orphans_without_end_do_not_keep_other_events_waiting() {
        const NAME: &str = "reap::tests::orphans_without_end_do_not_keep_other_events_waiting";
        const ALONE: &str = "GUEST_INIT_TEST_REAPS";
        // In a process whose children are no other test's.
        if std::env::var_os(ALONE).is_none() {
            let mut alone = Command::new(std::env::current_exe().unwrap());
            let alone = alone.args(["--exact", NAME]).env(ALONE, "1");
            let output = alone.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && text.contains("1 passed"),
                "{text}"
            );
            return;
        }
        let start = |_| Command::new("true").spawn().unwrap();
        let children: Vec<Child> = (0..=PER_TURN).map(start).collect();
        for child in &children {
            let id = Id::Pid(Pid::from_raw(child.id().cast_signed()));
            let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            waitid(id, ended).unwrap();
        }
        let (poller, anchors) = (Poller::new().unwrap(), Anchors::take().unwrap());
        let mut agent = Agent::new(&poller, anchors, None, None, Privileges::Keep);
        assert!(some(&mut agent), "they were all reaped at once");
        let left = sys::wait(Children::Any, false);
        assert!(matches!(left, Ok(Some(_))), "{left:?}");
        assert!(!some(&mut agent));
        let left = sys::wait(Children::Any, false);
        assert_eq!(left, Err(nix::errno::Errno::ECHILD));
    }
}
