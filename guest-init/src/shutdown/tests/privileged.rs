//! The end of a PID 1, of a process namespace that only root can make.

use std::os::unix::process::ExitStatusExt;

use nix::libc;

use super::super::reset;

#[test]
#[ignore = "needs root: reboots a process namespace"]
fn what_the_exit_port_cannot_end_is_reset_rather_than_halted() {
    const INSIDE: &str = "GUEST_INIT_TEST_RESET";
    if std::env::var_os(INSIDE).is_some() {
        reset();
    }
    let name =
        "shutdown::tests::privileged::what_the_exit_port_cannot_end_is_reset_rather_than_halted";
    let status = std::process::Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--include-ignored"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    // How the kernel tells what the PID 1 of a namespace asked for: SIGHUP is a
    // restart, SIGINT power-off or halt (reboot(2)).
    assert_eq!(status.signal(), Some(libc::SIGHUP), "{status}");
}
