//! How programs end.

use super::*;

#[test]
fn signals_reach_the_whole_process_group() {
    let mut session = Session::start(shell(
        "trap 'wait; exit 5' USR1; (trap 'echo child; exit' USR1; echo ready; while :; do sleep 0.01; done) & wait",
    ));
    session.until("ready");
    session.send(&ExecInput::Signal(10));
    let outcome = session.finish();
    assert_eq!(outcome.stdout, b"child\n");
    assert_eq!(outcome.status, Some(ExitStatus::Code(5)));
}

#[test]
fn cancel_asks_first_and_kills_after_the_grace_period() {
    let mut polite = Session::start(shell(
        "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done",
    ));
    polite.until("ready");
    polite.send(&ExecInput::Cancel { grace_ms: 60_000 });
    let outcome = polite.finish();
    assert_eq!(
        (outcome.stdout.as_slice(), outcome.status),
        (&b"bye\n"[..], Some(ExitStatus::Code(7)))
    );

    let mut stubborn = Session::start(shell(
        "trap '' TERM; echo ready; while :; do sleep 0.01; done",
    ));
    stubborn.until("ready");
    stubborn.send(&ExecInput::Cancel { grace_ms: 50 });
    assert_eq!(stubborn.finish().status, Some(ExitStatus::Signal(9)));
}

#[test]
fn a_stopped_program_can_be_cancelled() {
    let mut session = Session::start(shell(
        "trap 'exit 7' TERM; echo ready; kill -STOP $$; exit 1",
    ));
    session.until("ready");
    session.send(&ExecInput::Cancel { grace_ms: 60_000 });
    // It was asked before it stopped, or while it was stopped.
    assert_eq!(session.finish().status, Some(ExitStatus::Code(7)));
}

#[test]
fn a_supervisor_that_goes_away_takes_its_program_along() {
    let mut session = Session::start(shell("echo ready; exec sleep 1000"));
    let pid = session.started();
    session.until("ready");
    drop(session.stream);
    session.agent.join().unwrap();
    assert!(!exists(pid));
}

#[test]
fn nothing_is_left_of_a_program_that_has_ended() {
    let mut session = Session::start(argv(&["true"]));
    let pid = session.started();
    session.finish();
    assert!(!exists(pid), "a zombie is left");
}

#[test]
fn a_background_process_with_the_output_open_does_not_delay_the_end() {
    for linger in [false, true] {
        let mut asked = shell("sleep 1000 & echo $!; exit 4");
        asked.linger = linger;
        let start = Instant::now();
        let outcome = run(asked);
        assert!(start.elapsed() < PATIENCE);
        assert_eq!(outcome.status, Some(ExitStatus::Code(4)));
        let pid: u32 = String::from_utf8(outcome.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(lives(pid), linger);
        if linger {
            crate::sys::kill(pid.try_into().unwrap(), 9).unwrap();
        }
    }
}

#[test]
fn output_written_just_before_the_end_is_never_lost() {
    for terminal in [
        None,
        Some(TerminalSize {
            rows: 24,
            columns: 80,
        }),
    ] {
        for _ in 0..50 {
            let mut asked = shell("head -c 30000 /dev/zero | tr '\\0' x");
            asked.terminal = terminal;
            assert_eq!(run(asked).stdout.len(), 30_000);
        }
    }
}
