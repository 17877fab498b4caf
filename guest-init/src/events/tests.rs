//! What the supervisor learns of programs, fast or slow.

use std::os::unix::net::UnixStream;

use flashpan_protocol::agent::{Command, ExecRequest, ExitStatus, MAX_FRAME};
use flashpan_protocol::frame::Decoder;
use flashpan_protocol::privilege::Confinement;
use nix::sys::epoll::EpollFlags;

use super::*;
use crate::poller::Poller;
use crate::users::Accounts;

fn plan(argv: &[&str], directory: &str) -> Plan {
    let bytes = |text: &str| Bytes::from(text.as_bytes().to_vec());
    let request = ExecRequest {
        command: Command::Argv(argv.iter().map(|argument| bytes(argument)).collect()),
        env: Vec::new(),
        working_dir: Some(bytes(directory)),
        make_working_dir: false,
        user: Some("12:34".to_owned()),
        stdin: false,
        terminal: None,
        linger: false,
        confinement: Confinement::CONFINED,
    };
    Plan::new(request, &Accounts::default()).unwrap()
}

#[test]
fn a_start_is_told_with_what_matters() {
    let event = started(7, &plan(&["echo", "", "a b"], "/tmp"));
    assert_eq!(
        event.argv,
        ["echo", "", "a b"].map(|a| Bytes::from(a.as_bytes().to_vec()))
    );
    assert!(!event.truncated);
    assert_eq!((event.id, event.uid, event.gid), (7, 12, 34));
    assert_eq!(event.working_dir.as_slice(), b"/tmp");
}

#[test]
fn long_commands_are_cut_and_said_to_be() {
    let long = "x".repeat(EVENT_ARGV);
    let cut = started(1, &plan(&["a", &long, "b"], "/"));
    assert!(cut.truncated);
    // "a" and its end, the end of the second, and what fits of that.
    let lengths: Vec<usize> = cut.argv.iter().map(|argument| argument.len()).collect();
    assert_eq!(lengths, [1, EVENT_ARGV - 3]);
    let many = vec![""; EVENT_ARGV + 1];
    let cut = started(1, &plan(&many, "/"));
    assert_eq!((cut.argv.len(), cut.truncated), (EVENT_ARGV, true));
    let exact = started(1, &plan(&["x".repeat(EVENT_ARGV - 1).as_str()], "/"));
    assert!(!exact.truncated);
    let directory = format!("/{long}{long}");
    assert_eq!(
        started(1, &plan(&["a"], &directory)).working_dir.len(),
        EVENT_DIRECTORY
    );
}

#[test]
fn a_slow_supervisor_learns_how_much_it_lost() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut connection = Connection::new(&Poller::new().unwrap(), theirs.into(), 0);
    let mut events = Events::default();
    let ended = |id| ProgramEnded {
        id,
        pid: 1,
        status: ExitStatus::Code(0),
        duration_us: 1,
    };
    let argument = "x".repeat(4000);
    let mut sent = 0;
    while connection.queued() < QUEUE_HIGH {
        events.started(Box::new(started(sent, &plan(&[&argument], "/"))));
        events.send(&mut connection);
        sent += 1;
    }
    // Nothing of this is kept.
    for id in 0..1000 {
        events.ended(ended(id));
        events.send(&mut connection);
    }
    assert!(events.waiting.is_empty());
    let reader = std::thread::spawn(move || {
        let mut decoder = Decoder::new(MAX_FRAME);
        let mut stream = ours;
        let mut next = move || decoder.read_message::<GuestMessage>(&mut stream).unwrap();
        for id in 0..sent {
            let Some(GuestMessage::ProgramStarted(program)) = next() else {
                panic!("not a start")
            };
            assert_eq!(program.id, id);
        }
        assert_eq!(next(), Some(GuestMessage::ProgramsLost(1000)));
        assert_eq!(next(), Some(GuestMessage::ProgramEnded(ended(5000))));
        assert_eq!(next(), None);
    });
    let poller = Poller::new().unwrap();
    poller.add(&connection, EpollFlags::EPOLLOUT, 1).unwrap();
    let mut ready = [nix::sys::epoll::EpollEvent::empty(); 1];
    while connection.queued() > 0 {
        poller.wait(&mut ready, None).unwrap();
        connection.flush();
    }
    events.ended(ended(5000));
    events.send(&mut connection);
    drop(connection);
    reader.join().unwrap();
}
