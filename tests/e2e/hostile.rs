//! Guests that misbehave: each ends with a clear reason, in bounded time and
//! memory, and leaves no process, file or socket behind ([`Home`] sees to that).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use flashpan_tests::{Flashpan, Home};

/// A script with all the rights of the guest's root.
fn privileged(home: &Home, script: &str) -> Flashpan {
    Flashpan::run(home, ["--privileged"], ["sh", "-c", script])
}

#[test]
fn a_kernel_panic_is_reported() {
    let home = Home::new();
    let run = privileged(&home, "echo c > /proc/sysrq-trigger; sleep 100").finish();
    run.expect_status(125).expect_complaint(&["kernel panic"]);
}

#[test]
fn a_guest_that_powers_off_under_its_command_is_reported() {
    let home = Home::new();
    // By way of the kernel, around PID 1.
    let run = privileged(&home, "echo o > /proc/sysrq-trigger; sleep 100").finish();
    assert_eq!(run.status, Some(125), "{run}");
    let run = privileged(&home, "echo b > /proc/sysrq-trigger; sleep 100").finish();
    assert_eq!(run.status, Some(125), "{run}");
    assert_eq!(run.stderr.lines().count(), 1, "{run}");
}

#[test]
fn a_program_that_asks_for_the_end_is_named_as_the_one() {
    let home = Home::new();
    // As busybox's poweroff does it.
    let script = "kill -USR2 1; sleep 100";
    let run = Flashpan::run(&home, ["--pid", "vm"], ["sh", "-c", script]).finish();
    // The command is ended like all others, in order.
    run.expect_status(128 + 15);
    assert!(
        run.stderr.contains("a program powers the guest off"),
        "{run}"
    );
}

#[test]
fn a_command_that_takes_all_memory_is_killed_and_not_the_host() {
    let home = Home::new();
    let script = "tail /dev/zero; echo status $?";
    let run = Flashpan::run(&home, ["--memory", "128M"], ["sh", "-c", script]).finish();
    // The guest's kernel kills the command, or panics: both are in order.
    match run.status {
        Some(0) => assert_eq!(run.text(), "status 137\n", "{run}"),
        _ => drop(run.expect_status(125).expect_complaint(&["memory"])),
    }
}

#[test]
fn forks_without_end_are_ended_by_the_time_limit() {
    let home = Home::new();
    let bomb = "echo lit; f() { f | f & }; f; sleep 1000";
    let run = Flashpan::run(&home, ["--timeout", "20s"], ["sh", "-c", bomb]).finish();
    run.expect_status(124).expect_stdout("lit\n");
    assert!(run.stderr.contains("while running the command"), "{run}");
    assert!(run.elapsed < Duration::from_secs(60), "{run}");
}

#[test]
fn a_gibibyte_on_the_console_fills_nothing() {
    let home = Home::new();
    let script =
        "exec 3>/dev/console || exit 7; echo open; yes x | head -c 1073741824 >&3; echo end";
    let options = ["--console", "--timeout", "30s", "--privileged"];
    let run = Flashpan::run(&home, options, ["sh", "-c", script]).finish();
    // All of it comes out, byte by byte, as far as it gets in that time.
    run.expect_status(124).expect_stdout("open\n");
    assert!(run.stderr.matches("x\r\n").count() > 100, "{run}");
    assert!(run.stderr.contains("while running the command"), "{run}");
}

#[test]
fn without_a_console_there_is_none_to_write_to() {
    let home = Home::new();
    let script = "echo x >/dev/console";
    let run = privileged(&home, script).finish();
    assert_ne!(run.status, Some(0), "{run}");
}

#[test]
fn a_daemon_does_not_outlive_its_command() {
    let home = Home::new();
    let run = Flashpan::script(&home, "setsid sleep 1000 >/dev/null 2>&1 & echo done").finish();
    run.expect_status(0).expect_stdout("done\n");
}

#[test]
fn output_that_nobody_takes_ends_the_command_as_a_pipe_would() {
    let home = Home::new();
    let flashpan = flashpan_tests::fixtures::flashpan();
    let script = format!("{} run -- yes | head -n 1", flashpan.display());
    let run = Flashpan::program(&home, "sh", ["-c", &script]).finish();
    run.expect_status(0).expect_stdout("y\n");
}
