//! Programs on a pseudo-terminal.

use super::*;

#[test]
fn a_terminal_has_its_size_echoes_and_can_be_resized() {
    let mut asked = shell(
        "tty >/dev/null && stty size; trap 'stty size; exit 9' WINCH; echo ready; while :; do sleep 0.01; done",
    );
    asked.terminal = Some(TerminalSize {
        rows: 31,
        columns: 97,
    });
    asked.stdin = true;
    let mut session = Session::start(asked);
    session.until("31 97\r\nready\r\n");
    session.send(&ExecInput::Resize(TerminalSize {
        rows: 50,
        columns: 132,
    }));
    let outcome = session.finish();
    assert_eq!(String::from_utf8(outcome.stdout).unwrap(), "50 132\r\n");
    assert_eq!(outcome.status, Some(ExitStatus::Code(9)));
}

#[test]
fn a_terminal_turns_keys_into_signals_and_its_end_into_end_of_file() {
    let terminal = |line: &str| {
        let mut asked = shell(line);
        asked.terminal = Some(TerminalSize {
            rows: 24,
            columns: 80,
        });
        asked.stdin = true;
        Session::start(asked)
    };
    let mut interrupted = terminal("echo ready; exec sleep 1000");
    interrupted.until("ready");
    interrupted.send(&ExecInput::Stdin(vec![3]));
    assert_eq!(interrupted.finish().status, Some(ExitStatus::Signal(2)));

    for input in ["", "line\n", "half a line"] {
        let mut ended = terminal("stty -echo; echo ready; cat; echo end");
        ended.until("ready\r\n");
        if !input.is_empty() {
            ended.send(&ExecInput::Stdin(input.into()));
        }
        ended.send(&ExecInput::StdinEof);
        let output = ended.finish().stdout;
        let expected = format!("{}end\r\n", input.replace('\n', "\r\n"));
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }
}

#[test]
fn cancelling_an_interactive_shell_hangs_its_terminal_up() {
    let mut asked = argv(&["sh", "-i"]);
    asked.terminal = Some(TerminalSize {
        rows: 24,
        columns: 80,
    });
    asked.stdin = true;
    asked.env = vec![(bytes("PS1"), bytes("pro"))];
    let mut session = Session::start(asked);
    session.send(&ExecInput::Stdin(b"echo mpt$((1+1))\n".to_vec()));
    session.until("mpt2");
    session.send(&ExecInput::Cancel {
        grace_ms: 3_600_000,
    });
    assert_eq!(session.finish().status, Some(ExitStatus::Signal(1)));
}
