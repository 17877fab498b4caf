//! What holds for all connections together.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use flashpan_protocol::agent::{ExecOutput, MAX_FRAME, StartFailureKind};
use flashpan_protocol::frame::Decoder;

use super::{Agent, EXECS_MAX, SOURCES, token};
use crate::anchors::Anchors;
use crate::poller::Poller;
use crate::spawn::Privileges;

fn agent() -> Agent {
    let (poller, anchors) = (Poller::new().unwrap(), Anchors::take().unwrap());
    Agent::new(&poller, anchors, None, None, Privileges::Keep)
}

fn connect(agent: &mut Agent) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    agent.connect(theirs.into());
    ours
}

#[test]
fn one_connection_too_many_is_told_so_and_the_others_stay() {
    let mut agent = agent();
    let others: Vec<UnixStream> = (0..EXECS_MAX).map(|_| connect(&mut agent)).collect();
    let mut last = connect(&mut agent);
    let mut decoder = Decoder::new(MAX_FRAME);
    let Some(ExecOutput::StartFailed(failure)) = decoder.read_message(&mut last).unwrap() else {
        panic!("it was not turned down");
    };
    assert_eq!(failure.kind, StartFailureKind::Resources);
    assert!(failure.message.contains("256 programs"), "{failure:?}");
    assert_eq!(decoder.read_message::<ExecOutput>(&mut last).unwrap(), None);
    assert_eq!((agent.execs.len(), others.len()), (EXECS_MAX, EXECS_MAX));
}

#[test]
fn a_connection_that_never_says_what_it_wants_is_closed() {
    let mut agent = agent();
    let mut silent = connect(&mut agent);
    let deadline = agent.deadline().expect("it may stay for ever");
    agent.expire(deadline - Duration::from_millis(1));
    assert!(!agent.is_idle());
    agent.expire(deadline);
    assert!(agent.is_idle());
    assert!(deadline < Instant::now() + Duration::from_secs(11));
    assert_eq!(std::io::Read::read(&mut silent, &mut [0]).unwrap(), 0);
}

#[test]
fn tokens_name_a_connection_and_a_part_of_it() {
    for (number, source) in SOURCES.into_iter().enumerate() {
        assert_eq!(
            SOURCES[usize::try_from(token(5, source) & 7).unwrap()],
            source
        );
        assert_eq!(token(5, source), 40 + u64::try_from(number).unwrap());
    }
}

#[test]
fn events_of_connections_that_are_gone_are_ignored() {
    let mut agent = agent();
    agent.handle(token(77, SOURCES[0]), nix::sys::epoll::EpollFlags::EPOLLIN);
    agent.handle(u64::MAX, nix::sys::epoll::EpollFlags::EPOLLIN);
    assert!(!agent.child_ended(i32::MAX));
}
