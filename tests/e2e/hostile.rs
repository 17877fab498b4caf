//! Guests that misbehave: each ends with a clear reason, in bounded time and
//! memory, and leaves no process, file or socket behind ([`Home`] sees to that).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use flashpan_tests::{Flashpan, Home};

#[test]
fn a_kernel_panic_is_reported() {
    let home = Home::new();
    let run = Flashpan::script(&home, "echo c > /proc/sysrq-trigger; sleep 100").finish();
    run.expect_status(125).expect_complaint(&["kernel panic"]);
}

#[test]
fn a_guest_that_powers_off_under_its_command_is_reported() {
    let home = Home::new();
    // By way of the kernel, around PID 1.
    let run = Flashpan::script(&home, "echo o > /proc/sysrq-trigger; sleep 100").finish();
    assert_eq!(run.status, Some(125), "{run}");
    let run = Flashpan::script(&home, "echo b > /proc/sysrq-trigger; sleep 100").finish();
    assert_eq!(run.status, Some(125), "{run}");
    assert_eq!(run.stderr.lines().count(), 1, "{run}");
}

#[test]
fn a_program_that_asks_for_the_end_is_named_as_the_one() {
    let home = Home::new();
    // As busybox's poweroff does it.
    let run = Flashpan::script(&home, "kill -USR2 1; sleep 100").finish();
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
    let bomb = "f() { f | f & }; f; sleep 1000";
    let run = Flashpan::run(&home, ["--timeout", "10s"], ["sh", "-c", bomb]).finish();
    run.expect_status(124);
    assert!(run.stderr.contains("time is up"), "{run}");
    assert!(run.elapsed < Duration::from_secs(60), "{run}");
}

#[test]
fn a_gibibyte_on_the_console_fills_nothing() {
    let home = Home::new();
    let script = "dd if=/dev/zero of=/dev/console bs=64k count=16384 2>/dev/null; echo $?";
    let run = Flashpan::run(&home, ["--timeout", "20s"], ["sh", "-c", script]).finish();
    // It ends if the console drops what nobody reads, or the time is up. Either
    // way our own memory and output stay small.
    assert!(matches!(run.status, Some(0 | 124)), "{run}");
    assert!(run.stdout.len() + run.stderr.len() < 4096, "{run}");
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
