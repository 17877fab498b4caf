//! The fake agent on exec connections: its programs are named after what they do.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use flashpan_protocol::agent::{
    Command, ExecInput, ExecOutput, ExecRequest, ExitStatus, GuestMessage, MAX_DATA, MAX_FRAME,
    ProgramEnded, ProgramStarted, StartFailure, StartFailureKind,
};
use flashpan_protocol::control::{CONTROL_FD, ExitReason};
use flashpan_protocol::frame::{self, Decoder};
use flashpan_protocol::phase::ExitRequest;
use flashpan_protocol::privilege::Confinement;

use super::{BOOT, Control};

/// One connection.
pub(crate) fn agent(mut stream: UnixStream) {
    let mut decoder = Decoder::new(MAX_FRAME);
    let Ok(Some(ExecInput::Start(request))) = decoder.read_message(&mut stream) else {
        panic!("no Start")
    };
    let ExecRequest {
        command: Command::Argv(argv),
        terminal,
        env,
        working_dir,
        user,
        confinement,
        ..
    } = *request
    else {
        panic!("no argv")
    };
    let argv: Vec<&str> = argv
        .iter()
        .map(|a| std::str::from_utf8(a).unwrap())
        .collect();
    let mut say = {
        let mut stream = stream.try_clone().unwrap();
        move |message: &ExecOutput| frame::write(&mut stream, message, MAX_FRAME).is_ok()
    };
    if argv[0] == "missing" {
        let message = "missing: not found in PATH".into();
        let kind = StartFailureKind::NotFound;
        say(&ExecOutput::StartFailed(StartFailure { kind, message }));
        return;
    }
    say(&ExecOutput::Started { pid: 42 });
    let mut hear = move || {
        decoder
            .read_message::<ExecInput>(&mut stream)
            .ok()
            .flatten()
    };
    match argv.as_slice() {
        ["exit", code] => {
            say(&ExecOutput::Exited(ExitStatus::Code(code.parse().unwrap())));
        }
        ["both"] => {
            say(&ExecOutput::Stdout(b"out".to_vec()));
            say(&ExecOutput::Stderr(b"err".to_vec()));
            say(&ExecOutput::Exited(ExitStatus::Code(0)));
        }
        ["cat"] => {
            while let Some(ExecInput::Stdin(bytes)) = hear() {
                let credit = u32::try_from(bytes.len()).unwrap();
                say(&ExecOutput::Stdout(bytes));
                say(&ExecOutput::StdinCredit(credit));
            }
            say(&ExecOutput::Exited(ExitStatus::Code(0)));
        }
        // Reads no input, but obeys signals.
        ["sleep"] => loop {
            match hear() {
                Some(ExecInput::Signal(signal)) => {
                    say(&ExecOutput::Exited(ExitStatus::Signal(signal)));
                    return;
                }
                Some(ExecInput::Stdin(_)) => {}
                other => panic!("unexpected {other:?}"),
            }
        },
        // Ends when it is cancelled, as programs do that obey SIGTERM.
        ["until-cancelled"] => {
            let Some(ExecInput::Cancel { .. }) = hear() else {
                panic!("no cancel")
            };
            say(&ExecOutput::Exited(ExitStatus::Signal(15)));
        }
        // What surrounds it: variables as they count, its directory, its user, and
        // whether it may do everything.
        ["show"] => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let env: std::collections::BTreeMap<_, _> = env
                .iter()
                .map(|(name, value)| (text(name), text(value)))
                .collect();
            let mut shown: String = env.iter().map(|(n, v)| format!("{n}={v}\n")).collect();
            shown += &format!(
                "in {} as {}{}\n",
                working_dir.map(|dir| text(&dir)).unwrap_or_default(),
                user.unwrap_or_default(),
                match confinement == Confinement::PRIVILEGED {
                    true => " privileged",
                    false => "",
                }
            );
            say(&ExecOutput::Stdout(shown.into_bytes()));
            say(&ExecOutput::Exited(ExitStatus::Code(0)));
        }
        ["announce-and-sleep"] => {
            say(&ExecOutput::Stdout(b"ready".to_vec()));
            let Some(ExecInput::Signal(signal)) = hear() else {
                panic!("no signal")
            };
            say(&ExecOutput::Exited(ExitStatus::Signal(signal)));
        }
        ["announce-and-ignore"] => loop {
            say(&ExecOutput::Stdout(b"ready".to_vec()));
            if hear().is_none() {
                return;
            }
        },
        ["size"] => {
            let size = terminal.map(|size| format!("{}x{}", size.rows, size.columns));
            say(&ExecOutput::Stdout(format!("{size:?}").into_bytes()));
            say(&ExecOutput::Exited(ExitStatus::Code(0)));
        }
        ["deaf"] => std::thread::sleep(Duration::MAX),
        ["until-one-column"] => loop {
            match hear() {
                Some(ExecInput::Resize(size)) if size.columns == 1 => {
                    say(&ExecOutput::Exited(ExitStatus::Code(0)));
                    return;
                }
                Some(ExecInput::Resize(_)) => {}
                other => panic!("unexpected {other:?}"),
            }
        },
        ["closes-input"] => {
            say(&ExecOutput::StdinClosed);
            assert_eq!(hear(), Some(ExecInput::StdinEof));
            say(&ExecOutput::Exited(ExitStatus::Code(0)));
        }
        // Writes until nobody listens, and notes it in a file.
        ["flood", note] => {
            while say(&ExecOutput::Stdout(vec![b'x'; MAX_DATA])) {}
            std::fs::write(note, "cancelled").unwrap();
        }
        ["flood-then-obey"] => {
            let mut stopped = false;
            std::thread::spawn(move || {
                while !stopped {
                    stopped = !say(&ExecOutput::Stdout(vec![b'x'; MAX_DATA]));
                }
            });
            let Some(ExecInput::Signal(2)) = hear() else {
                panic!("no signal")
            };
            std::process::exit(77)
        }
        ["too-much-credit"] => {
            say(&ExecOutput::StdinCredit(1));
            std::thread::sleep(Duration::MAX);
        }
        ["too-long-output"] => {
            say(&ExecOutput::Stdout(vec![0; MAX_DATA + 1]));
            std::thread::sleep(Duration::MAX);
        }
        ["power-off"] => {
            // SAFETY: the descriptor stays open until the process ends.
            let control = Control(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) });
            control.exit(ExitReason::Requested(ExitRequest::PowerOff))
        }
        // What PID 1 says of programs by itself.
        ["tells", argument] => {
            let bytes = |text: &str| text.as_bytes().to_vec().into();
            let started = ProgramStarted {
                id: 9,
                pid: 42,
                argv: vec![bytes("tells"), bytes(argument)],
                truncated: false,
                uid: 1000,
                gid: 100,
                working_dir: bytes("/srv"),
            };
            let ended = ProgramEnded {
                id: 9,
                pid: 42,
                status: ExitStatus::Code(5),
                duration_us: 2_000_000,
            };
            let mut boot = BOOT.lock().unwrap();
            for message in [
                GuestMessage::ProgramStarted(Box::new(started)),
                GuestMessage::ProgramsLost(3),
                GuestMessage::ProgramEnded(ended),
            ] {
                frame::write(boot.as_mut().unwrap(), &message, MAX_FRAME).unwrap();
            }
            say(&ExecOutput::Exited(ExitStatus::Code(5)));
        }
        // As busybox does it: PID 1 is asked, says so and ends the VM.
        [program @ ("ask-for-power-off" | "make-init-fail")] => {
            let message = match *program {
                "make-init-fail" => GuestMessage::Failed {
                    what: "wait for events".into(),
                    why: "Bad file\x1b descriptor".into(),
                    errno: 9,
                },
                _ => GuestMessage::ShuttingDown { reboot: false },
            };
            let mut boot = BOOT.lock().unwrap();
            frame::write(boot.as_mut().unwrap(), &message, MAX_FRAME).unwrap();
            // SAFETY: the descriptor stays open until the process ends.
            let control = Control(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) });
            control.exit(ExitReason::Requested(ExitRequest::PowerOff))
        }
        ["hang-up"] => {}
        ["crash-the-vmm"] => std::process::exit(9),
        other => panic!("no such program {other:?}"),
    }
}
