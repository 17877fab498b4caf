//! However a run ends, nothing of it is left a second later. The check itself
//! is in [`Home`], at the end of each round.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::thread;
use std::time::{Duration, Instant};

use flashpan_tests::{Flashpan, Home};
use nix::sys::signal::Signal;

/// A guest that would run for long.
const LONG: &str = "echo running; sleep 1000";

/// Moments at which runs are cut short.
const MOMENTS: u32 = 50;

#[test]
fn the_supervisor_killed_at_any_moment() {
    // From before the VMM starts until well after the command does.
    let home = Home::new();
    let begun = Instant::now();
    Flashpan::script(&home, "true").finish().expect_status(0);
    let span = begun.elapsed() * 3 / 2;
    let mut seed = u64::from(std::process::id()) | 1;
    println!("seed {seed}, moments within {span:?}");
    for _ in 0..MOMENTS {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let moment = span.mul_f64(f64::from((seed >> 32) as u32) / f64::from(u32::MAX));
        let run = Flashpan::script(&home, LONG).start();
        // The moment is the test: there is no event to wait for.
        thread::sleep(moment);
        run.signal(Signal::SIGKILL);
        let run = run.finish();
        assert_eq!(run.status, None, "killed after {moment:?}\n{run}");
        home.assert_nothing_left();
    }
}

#[test]
fn an_interrupt_while_booting() {
    let home = Home::new();
    // The kernel says which it is among the first things that it does.
    let mut run = Flashpan::run(&home, ["--console"], ["sh", "-c", LONG]).start();
    run.wait_for_stderr("Linux version");
    run.signal(Signal::SIGINT);
    let run = run.finish();
    run.expect_status(130).expect_stdout("");
    // Whoever interrupts it knows why it ended.
    assert!(!run.stderr.contains("flashpan:"), "{run}");
}

#[test]
fn signals_go_to_the_command() {
    let home = Home::new();
    let script = "trap 'echo terminated; exit 7' TERM; echo ready; while :; do sleep 0.1; done";
    let mut run = Flashpan::script(&home, script).start();
    run.wait_for_stdout("ready\n");
    run.signal(Signal::SIGTERM);
    run.finish()
        .expect_status(7)
        .expect_stdout("ready\nterminated\n");
}

#[test]
fn twenty_at_once() {
    let home = Home::new();
    let patience = Duration::from_secs(600);
    let options = ["--boot-timeout", "9m"];
    let runs: Vec<_> = (0..20)
        .map(|number| {
            let script = format!("echo {number}; exit {number}");
            let run = Flashpan::run(&home, options, ["sh", "-c", &script]);
            (number, run.patience(patience).start())
        })
        .collect();
    for (number, run) in runs {
        run.finish()
            .expect_status(number)
            .expect_stdout(&format!("{number}\n"));
    }
}
