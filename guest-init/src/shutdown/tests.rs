//! Which signal to PID 1 means what.

use flashpan_protocol::phase::ExitRequest;
use nix::libc;

use super::asked_by;

mod privileged;

fn meaning(signal: i32) -> Option<ExitRequest> {
    asked_by(signal.unsigned_abs())
}

#[test]
fn the_tools_of_busybox_systemd_and_power_supplies_are_understood() {
    let rt = libc::SIGRTMIN();
    for signal in [
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGPWR,
        rt + 3,
        rt + 4,
        rt + 13,
        rt + 14,
    ] {
        assert_eq!(
            meaning(signal),
            Some(ExitRequest::PowerOff),
            "signal {signal}"
        );
    }
    for signal in [libc::SIGTERM, libc::SIGINT, rt + 5, rt + 15] {
        assert_eq!(
            meaning(signal),
            Some(ExitRequest::Reboot),
            "signal {signal}"
        );
    }
}

#[test]
fn other_signals_do_not_end_the_vm() {
    let rt = libc::SIGRTMIN();
    for signal in [
        libc::SIGCHLD,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGALRM,
        rt,
        rt + 6,
    ] {
        assert_eq!(meaning(signal), None, "signal {signal}");
    }
    assert_eq!(asked_by(u32::MAX), None);
}
