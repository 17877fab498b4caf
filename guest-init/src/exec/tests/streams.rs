//! Input and output: windows, back-pressure, and peers that break the rules.

use super::*;

#[test]
fn input_is_empty_unless_asked_for() {
    assert_eq!(stdout(argv(&["cat"])), "");
}

#[test]
fn sixty_four_mebibytes_pass_through_cat_unchanged_within_the_windows() {
    let total = 64 << 20;
    let mut asked = argv(&["cat"]);
    asked.stdin = true;
    let mut session = Session::start(asked);
    session.started();
    let pattern = |position: usize| (position.wrapping_mul(31) >> 3).to_le_bytes()[0];
    let (mut sent, mut window, mut received) = (0, STDIN_WINDOW as usize, 0);
    let mut status = None;
    let mut stop_at = 8 << 20;
    while status.is_none() {
        while sent < total && window > 0 {
            // Pieces of all sizes, up to the longest.
            let length = (sent % MAX_DATA + 1).min(window).min(total - sent);
            let piece: Vec<u8> = (sent..sent + length).map(pattern).collect();
            session.send(&ExecInput::Stdin(piece));
            sent += length;
            window -= length;
            if sent == total {
                session.send(&ExecInput::StdinEof);
            }
        }
        if received >= stop_at {
            // A reader that falls behind now and then.
            std::thread::yield_now();
            stop_at += 8 << 20;
        }
        match session.next().unwrap() {
            ExecOutput::Stdout(piece) => {
                assert!(piece.len() <= MAX_DATA);
                for (offset, byte) in piece.iter().enumerate() {
                    assert_eq!(
                        *byte,
                        pattern(received + offset),
                        "at {}",
                        received + offset
                    );
                }
                received += piece.len();
            }
            ExecOutput::StdinCredit(credit) => window += credit as usize,
            ExecOutput::Exited(ended) => status = Some(ended),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((received, status), (total, Some(ExitStatus::Code(0))));
    assert_eq!(
        window, STDIN_WINDOW as usize,
        "all of the window comes back"
    );
    assert!(session.finish().status.is_none());
}

#[test]
fn a_supervisor_that_does_not_read_holds_the_program_back() {
    let mut session = Session::start(shell("head -c 20000000 /dev/zero; echo done >&2"));
    let pid = session.started();
    // It can only sleep in a write to its full pipe: the queue and the socket
    // together hold far less than it has to say.
    let blocked = || {
        let children = format!("/proc/{pid}/task/{pid}/children");
        let child = std::fs::read_to_string(children).unwrap_or_default();
        let path = format!("/proc/{}/wchan", child.trim());
        std::fs::read_to_string(path).is_ok_and(|at| at.contains("pipe_write"))
    };
    let start = Instant::now();
    while !blocked() {
        assert!(start.elapsed() < PATIENCE, "it never blocked");
        std::thread::yield_now();
    }
    let outcome = session.finish();
    assert_eq!(
        (outcome.stdout.len(), outcome.stderr.as_slice()),
        (20_000_000, &b"done\n"[..])
    );
}

#[test]
fn input_that_the_program_does_not_want_is_said_to_be_unwanted() {
    let mut asked = shell("exec <&-; kill -STOP $$");
    asked.stdin = true;
    let mut session = Session::start(asked);
    session.started();
    assert_eq!(session.next(), Some(ExecOutput::StdinClosed));
    // In flight when the word came; it does no harm.
    session.send(&ExecInput::Stdin(vec![0; 1000]));
    session.send(&ExecInput::Signal(9));
    assert_eq!(session.finish().status, Some(ExitStatus::Signal(9)));
}

#[test]
fn a_peer_that_breaks_the_rules_is_cut_off_and_its_program_killed() {
    let sleeper = || {
        let mut asked = shell("trap '' TERM HUP; echo ready; while :; do sleep 1000; done");
        asked.stdin = true;
        asked
    };
    // The pipe to the program takes some, for which credit comes back; a second
    // window is more than it can take.
    let too_much = |session: &mut Session| {
        for _ in 0..2 * (STDIN_WINDOW as usize / MAX_DATA) {
            let piece = ExecInput::Stdin(vec![0; MAX_DATA]);
            let _ = frame::write(&mut session.stream, &piece, MAX_FRAME);
        }
    };
    let breaches: [fn(&mut Session); 5] = [
        |session| session.send(&ExecInput::Start(Box::new(argv(&["true"])))),
        |session| session.send(&ExecInput::Signal(0)),
        |session| session.send(&ExecInput::Stdin(vec![0; MAX_DATA + 1])),
        |session| {
            session.send(&ExecInput::StdinEof);
            session.send(&ExecInput::Stdin(vec![0]));
        },
        |session| std::io::Write::write_all(&mut session.stream, &[0xff; 64]).unwrap(),
    ];
    for (number, breach) in breaches.into_iter().map(Some).chain([None]).enumerate() {
        let mut session = Session::start(sleeper());
        let pid = session.started();
        session.until("ready");
        match breach {
            Some(breach) => breach(&mut session),
            None => too_much(&mut session),
        }
        let mut rest = Vec::new();
        // Cut off with input unread, the stream may end in an error.
        if let Err(error) = session.stream.read_to_end(&mut rest) {
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset,
                "breach {number}"
            );
        }
        session.agent.join().unwrap();
        assert!(!exists(pid), "breach {number}: the program lives on");
    }
}

#[test]
fn a_request_must_come_first() {
    let mut session = Session::connect((None, None));
    session.send(&ExecInput::StdinEof);
    assert_eq!(session.finish().status, None);
}
