//! What comes over the socket of a VM that stays, from clients that are broken, slow, of
//! another version or too many.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/fake.rs"]
mod fake;
#[path = "support/vms.rs"]
mod vms;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use flashpan_protocol::agent::{EXEC_PORT, ExecOutput, MAX_FRAME};
use flashpan_protocol::frame::{self, Decoder};
use flashpan_protocol::privilege::Confinement;
use flashpan_protocol::supervisor::{
    Activity, Answer, MAGIC, MAX_ANSWER, MAX_REQUEST, RefusalKind, Request, VERSION,
};
use nix::sys::signal::{Signal, kill};
use vms::{LONG, Vms};

const HELLO: Request = Request::Hello {
    magic: MAGIC,
    version: VERSION,
};

struct Client {
    stream: UnixStream,
    decoder: Decoder,
}

impl Client {
    fn connect(vms: &Vms, id: &str) -> Self {
        let socket = vms.state().join("vms").join(id).join("control.sock");
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let decoder = Decoder::new(MAX_ANSWER);
        Self { stream, decoder }
    }

    /// One that closes before it has read everything is no reason to fail.
    fn say(&mut self, requests: &[Request]) {
        for request in requests {
            let frame = frame::encode(request, MAX_REQUEST).unwrap();
            let _ = self.stream.write_all(&frame);
        }
    }

    fn hear(&mut self) -> Option<Answer> {
        self.decoder.read_message(&mut self.stream).unwrap_or(None)
    }

    fn refusal(&mut self) -> RefusalKind {
        match self.hear() {
            Some(Answer::Refused(refusal)) => refusal.kind,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_hurts_nobody_else() {
    let vms = Vms::new("normal");
    let id = vms.run(&[], &["sleep"]);
    // Without a hello, with one that is none, with garbage, with a length of 4 GiB.
    for first in [
        Request::Kill,
        Request::Hello {
            magic: *b"flashpan",
            version: VERSION,
        },
    ] {
        let mut client = Client::connect(&vms, &id);
        client.say(&[first, Request::Kill]);
        assert_eq!(client.hear(), None);
    }
    for bytes in [&[0xff; 64][..], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut client = Client::connect(&vms, &id);
        client.stream.write_all(bytes).unwrap();
        assert_eq!(client.hear(), None);
    }
    // Another version is told ours, and does nothing.
    let mut client = Client::connect(&vms, &id);
    client.say(&[
        Request::Hello {
            magic: MAGIC,
            version: VERSION + 1,
        },
        Request::Kill,
    ]);
    assert_eq!(client.hear(), Some(Answer::Hello { version: VERSION }));
    assert_eq!(client.hear(), None);
    // Two hellos, two requests, half a request.
    for (requests, kind) in [
        (&[HELLO, HELLO][..], RefusalKind::BadRequest),
        (
            &[HELLO, Request::Dial { port: EXEC_PORT }, Request::Kill],
            RefusalKind::BadRequest,
        ),
    ] {
        let mut client = Client::connect(&vms, &id);
        let mut all = Vec::new();
        for request in requests {
            all.append(&mut frame::encode(request, MAX_REQUEST).unwrap());
        }
        client.stream.write_all(&all).unwrap();
        assert_eq!(client.hear(), Some(Answer::Hello { version: VERSION }));
        assert_eq!(client.refusal(), kind);
    }
    let mut client = Client::connect(&vms, &id);
    client.say(&[HELLO]);
    client.stream.write_all(&[9, 0, 0, 0, 1]).unwrap();
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.hear(), Some(Answer::Hello { version: VERSION }));
    assert_eq!(client.refusal(), RefusalKind::BadRequest);

    let mut client = Client::connect(&vms, &id);
    client.say(&[HELLO, Request::Status]);
    client.hear();
    assert_eq!(client.hear(), Some(Answer::Status(Activity::Running)));
    assert_eq!(vms.ok(&["exec", &id, "both"]), "out");
}

#[test]
fn a_connection_to_the_guest_is_the_guests_from_the_answer_on() {
    let vms = Vms::new("normal");
    let id = vms.run(&[], &["sleep"]);
    let mut client = Client::connect(&vms, &id);
    client.say(&[HELLO, Request::Dial { port: EXEC_PORT }]);
    client.hear();
    assert_eq!(client.hear(), Some(Answer::Accepted));
    let options = flashpan_protocol::agent::ExecRequest {
        command: flashpan_protocol::agent::Command::Argv(vec![
            b"exit".to_vec().into(),
            b"6".to_vec().into(),
        ]),
        env: Vec::new(),
        working_dir: None,
        make_working_dir: false,
        user: None,
        stdin: false,
        terminal: None,
        linger: false,
        confinement: Confinement::CONFINED,
    };
    let start = flashpan_protocol::agent::ExecInput::Start(Box::new(options));
    frame::write(&mut client.stream, &start, MAX_FRAME).unwrap();
    let mut decoder = Decoder::new(MAX_FRAME);
    let mut next = || {
        decoder
            .read_message::<ExecOutput>(&mut client.stream)
            .unwrap()
    };
    assert_eq!(next(), Some(ExecOutput::Started { pid: 42 }));
    assert!(matches!(next(), Some(ExecOutput::Exited(_))));
    // A guest that refuses closes it.
    let vms = Vms::new("refuse");
    let id = vms.run(&[], &[]);
    let mut client = Client::connect(&vms, &id);
    client.say(&[HELLO, Request::Dial { port: EXEC_PORT }]);
    client.hear();
    assert_eq!(client.hear(), Some(Answer::Accepted));
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    let refused = vms.refused(&["exec", &id, "both"]);
    assert!(
        refused.contains("guest refused the connection"),
        "{refused}"
    );
}

#[test]
fn a_command_that_waits_for_a_supervisor_that_hangs_can_be_ended() {
    let vms = Vms::new("normal");
    let id = vms.run(&["--name", "web"], &["sleep"]);
    let supervisor = vms.supervisor(&id);
    kill(supervisor, Signal::SIGSTOP).unwrap();
    // Less than they wait without a limit.
    let soon = Duration::from_secs(25);
    let file = vms.0.path("init");
    let file = file.to_str().unwrap();
    for command in [
        &["cp", "--timeout", "300ms", file, "web:/"][..],
        &["exec", "--timeout", "300ms", "web", "both"],
    ] {
        let began = Instant::now();
        let output = vms.output(command);
        assert_eq!(output.status.code(), Some(124), "{command:?}: {output:?}");
        assert!(began.elapsed() < soon, "{command:?}");
        let told = fake::complaint(&output);
        assert!(told.contains("did not answer within 300ms"), "{told}");
    }
    for command in [
        &["cp", file, "web:/"][..],
        &["exec", "web", "both"],
        &["port-forward", "web", "8080:80"],
    ] {
        let mut child = vms.0.flashpan(command).spawn().unwrap();
        wait_until_interruptible(&mut child);
        let began = Instant::now();
        fake::signal(&child, Signal::SIGINT);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{command:?}");
        assert!(began.elapsed() < soon, "{command:?}");
    }
    kill(supervisor, Signal::SIGCONT).unwrap();
}

/// Returns when a command watches for signals: from then on they do not kill it.
fn wait_until_interruptible(child: &mut Child) {
    let deadline = Instant::now() + LONG;
    let status = format!("/proc/{}/status", child.id());
    let catches = || {
        let status = std::fs::read_to_string(&status).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
        caught & (1 << (Signal::SIGINT as i32 - 1)) != 0
    };
    while !catches() {
        assert_eq!(child.try_wait().unwrap(), None, "it has ended");
        assert!(Instant::now() < deadline, "{status}");
        std::thread::yield_now();
    }
}

#[test]
fn too_many_clients_are_told_and_the_others_served() {
    let vms = Vms::new("normal");
    let id = vms.run(&[], &["sleep"]);
    // They wait for the end, so they stay.
    let mut clients: Vec<_> = (0..256)
        .map(|_| {
            let mut client = Client::connect(&vms, &id);
            client.say(&[HELLO, Request::Wait]);
            assert_eq!(client.hear(), Some(Answer::Hello { version: VERSION }));
            client
        })
        .collect();
    let mut one_more = Client::connect(&vms, &id);
    assert_eq!(one_more.refusal(), RefusalKind::Busy);
    let refused = vms.refused(&["exec", &id, "both"]);
    assert!(refused.contains("256 clients"), "{refused}");
    // One goes, another comes; it may take a moment to be noticed.
    clients.pop();
    let deadline = std::time::Instant::now() + LONG;
    loop {
        let mut client = Client::connect(&vms, &id);
        client.say(&[HELLO, Request::Kill]);
        match client.hear() {
            Some(Answer::Hello { .. }) => break,
            _ => assert!(std::time::Instant::now() < deadline),
        }
    }
    for mut client in clients {
        assert!(matches!(client.hear(), Some(Answer::Ended { .. })));
    }
    assert_eq!(vms.inspect(&id)["exit"]["reason"]["kind"], "killed");
}
