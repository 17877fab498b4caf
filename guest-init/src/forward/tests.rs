//! What a supervisor gets on a forwarded connection, from the real agent, over
//! a socket pair instead of vsock.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use nix::sys::epoll::EpollEvent;

use super::*;
use crate::agent::Agent;
use crate::anchors::Anchors;
use crate::poller::Poller;
use crate::spawn::Privileges;

/// No test takes this long unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The supervisor's end of a flow, and the agent that serves it.
struct Session {
    stream: UnixStream,
    agent: JoinHandle<()>,
}

fn agent() -> (Poller, Agent) {
    let (poller, anchors) = (Poller::new().unwrap(), Anchors::take().unwrap());
    let agent = Agent::new(&poller, anchors, None, None, Privileges::Keep);
    (poller, agent)
}

fn pair() -> (UnixStream, OwnedFd) {
    let (stream, guest) = UnixStream::pair().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    guest.set_nonblocking(true).unwrap();
    (stream, guest.into())
}

fn run_until_idle(poller: &Poller, agent: &mut Agent) {
    let mut events = [EpollEvent::empty(); 16];
    while !agent.forwards_nothing() {
        let deadline = Instant::now() + PATIENCE;
        let count = poller.wait(&mut events, Some(deadline)).unwrap();
        assert!(count > 0, "a flow hangs");
        for event in &events[..count] {
            agent.handle(event.data(), event.events());
        }
    }
}

impl Session {
    fn start(transport: Transport, address: SocketAddr) -> Self {
        let (stream, guest) = pair();
        let agent = std::thread::spawn(move || {
            let (poller, mut agent) = agent();
            agent.connect_forward(guest);
            run_until_idle(&poller, &mut agent);
        });
        let mut session = Self { stream, agent };
        let start = ForwardStart {
            transport,
            address: address.ip(),
            port: address.port(),
        };
        frame::write(&mut session.stream, &start, MAX_FORWARD_FRAME).unwrap();
        session
    }

    fn answer(&mut self) -> ForwardAnswer {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix).unwrap();
        let mut body = vec![0; u32::from_le_bytes(prefix).try_into().unwrap()];
        self.stream.read_exact(&mut body).unwrap();
        frame::from_bytes(&body).unwrap()
    }

    fn open(transport: Transport, address: SocketAddr) -> Self {
        let mut session = Self::start(transport, address);
        assert_eq!(session.answer(), ForwardAnswer::Connected);
        session
    }

    fn failure(mut self) -> ForwardFailure {
        let ForwardAnswer::Failed(failure) = self.answer() else {
            panic!("it connected");
        };
        assert_eq!(self.chunk(), None);
        self.agent.join().unwrap();
        failure
    }

    fn send(&mut self, content: &[u8]) {
        // In one piece: the agent may close at the first byte that is not as it should be.
        let mut chunk = u16::try_from(content.len()).unwrap().to_le_bytes().to_vec();
        chunk.extend_from_slice(content);
        self.stream.write_all(&chunk).unwrap();
    }

    /// The next chunk, `None` if the connection is closed instead.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut prefix = [0; 2];
        match self.stream.read(&mut prefix).unwrap() {
            0 => return None,
            1 => self.stream.read_exact(&mut prefix[1..]).unwrap(),
            _ => {}
        }
        let mut content = vec![0; u16::from_le_bytes(prefix).into()];
        self.stream.read_exact(&mut content).unwrap();
        Some(content)
    }

    /// All content to the end of the stream; the agent must not have closed
    /// before that.
    fn whole(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.chunk() {
                Some(chunk) if chunk.is_empty() => return all,
                Some(chunk) => all.extend(chunk),
                None => panic!("reset after {} bytes", all.len()),
            }
        }
    }

    /// The agent closes, and has nothing more to do.
    fn closed(mut self) {
        assert_eq!(self.chunk(), None);
        self.agent.join().unwrap();
    }
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn bytes_go_both_ways_and_each_half_ends_for_itself() {
    let (listener, address) = listener();
    let mut session = Session::open(Transport::Tcp, address);
    let mut server = accept(&listener);
    session.send(b"request");
    session.send(b"");
    // The server reads to the end before it answers.
    let mut request = Vec::new();
    server.read_to_end(&mut request).unwrap();
    assert_eq!(request, b"request");
    server.write_all(b"answer").unwrap();
    drop(server);
    assert_eq!(session.whole(), b"answer");
    session.closed();

    // And the other way round.
    let mut session = Session::open(Transport::Tcp, address);
    let mut server = accept(&listener);
    server.write_all(b"greeting").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(session.whole(), b"greeting");
    session.send(b"thanks");
    session.send(b"");
    let mut thanks = String::new();
    server.read_to_string(&mut thanks).unwrap();
    assert_eq!(thanks, "thanks");
    session.closed();
}

#[test]
fn much_more_than_any_buffer_holds_arrives_as_it_was() {
    const LENGTH: usize = 20 << 20;
    let content: Vec<u8> = (0..=250_u8).cycle().take(LENGTH).collect();
    let (listener, address) = listener();
    let mut session = Session::open(Transport::Tcp, address);
    let mut server = accept(&listener);
    // An echo that begins when it has read everything cannot be what this is:
    // both sides have to be read while they are written.
    let echo = std::thread::spawn(move || {
        std::io::copy(&mut server.try_clone().unwrap(), &mut server).unwrap();
    });
    let mut writer = Session {
        stream: session.stream.try_clone().unwrap(),
        agent: std::thread::spawn(|| {}),
    };
    let sent = content.clone();
    let writing = std::thread::spawn(move || {
        // Pieces that are no multiple of anything.
        for piece in sent.chunks(60_013) {
            writer.send(piece);
        }
        writer.send(b"");
    });
    assert!(session.whole() == content);
    writing.join().unwrap();
    echo.join().unwrap();
    session.closed();
}

#[test]
fn a_side_that_reads_nothing_holds_the_other_up_and_not_the_agent() {
    let (listener, address) = listener();
    let (mut streams, mut guests) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (mut stream, guest) = pair();
        let start = ForwardStart {
            transport: Transport::Tcp,
            address: address.ip(),
            port: address.port(),
        };
        frame::write(&mut stream, &start, MAX_FORWARD_FRAME).unwrap();
        guests.push(guest);
        streams.push(stream);
    }
    let serving = std::thread::spawn(move || {
        let (poller, mut agent) = agent();
        for guest in guests {
            agent.connect_forward(guest);
        }
        run_until_idle(&poller, &mut agent);
    });
    let mut servers: Vec<_> = (0..2).map(|_| accept(&listener)).collect();
    let mut sessions: Vec<_> = streams
        .into_iter()
        .map(|stream| Session {
            stream,
            agent: std::thread::spawn(|| {}),
        })
        .collect();
    for session in &mut sessions {
        assert_eq!(session.answer(), ForwardAnswer::Connected);
    }
    // Nobody reads what goes into the first: it is full at some point.
    let full = &mut sessions[0].stream;
    full.set_nonblocking(true).unwrap();
    let chunk = [&u16::MAX.to_le_bytes()[..], &[b'x'; 65535]].concat();
    while full.write(&chunk).is_ok() {}
    // Whichever of the two servers that is not, the second works.
    sessions[1].send(b"alive?");
    let mut word = [0; 6];
    let second = if servers[1].peek(&mut word).unwrap() == 6 && &word == b"alive?" {
        1
    } else {
        0
    };
    servers[second].read_exact(&mut word).unwrap();
    assert_eq!(&word, b"alive?");
    servers[second].write_all(b"yes").unwrap();
    assert_eq!(sessions[1].chunk(), Some(b"yes".to_vec()));
    // The agent holds what waits, and lets go of it with the supervisor.
    drop(sessions);
    serving.join().unwrap();
}

#[test]
fn a_port_on_which_nobody_listens_is_refused() {
    let (listener, address) = listener();
    drop(listener);
    let failure = Session::start(Transport::Tcp, address).failure();
    assert_eq!(failure.kind, ForwardFailureKind::Refused);
    assert_eq!(failure.errno, Errno::ECONNREFUSED as i32);
    assert_eq!(failure.message, "connect: Connection refused");

    let zero = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let failure = Session::start(Transport::Tcp, zero).failure();
    assert_eq!(failure.kind, ForwardFailureKind::BadRequest);
}

#[test]
fn a_reset_in_the_guest_is_no_end() {
    let (listener, address) = listener();
    let mut session = Session::open(Transport::Tcp, address);
    let mut server = accept(&listener);
    server.write_all(b"half of").unwrap();
    assert_eq!(session.chunk(), Some(b"half of".to_vec()));
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&server, nix::sys::socket::sockopt::Linger, &at_once).unwrap();
    drop(server);
    session.closed();

    // Nor is what comes after an end in order.
    let mut session = Session::open(Transport::Tcp, address);
    drop(accept(&listener));
    assert_eq!(session.whole(), b"");
    // The server is gone: this is refused, and the agent closes.
    session.send(b"more");
    session.closed();
}

#[test]
fn a_supervisor_that_goes_away_resets_the_connection() {
    let (listener, address) = listener();
    for ended in [false, true] {
        let mut session = Session::open(Transport::Tcp, address);
        let mut server = accept(&listener);
        session.send(b"half of");
        let mut half = [0; 7];
        server.read_exact(&mut half).unwrap();
        if ended {
            session.send(b"");
            assert_eq!(server.read(&mut half).unwrap(), 0);
        }
        drop(session.stream);
        session.agent.join().unwrap();
        let error = match ended {
            false => server.read(&mut half).unwrap_err(),
            // The end was in order; that nobody takes the answer is told.
            true => server.write(b"answer").unwrap_err(),
        };
        assert!(
            matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ),
            "{error}"
        );
    }
}

#[test]
fn what_is_no_request_ends_the_connection() {
    for garbage in [&[0xff; 64][..], &2000_u32.to_le_bytes(), &[1, 0, 0, 0, 9]] {
        let (mut stream, guest) = pair();
        let (poller, mut agent) = agent();
        agent.connect_forward(guest);
        stream.write_all(garbage).unwrap();
        run_until_idle(&poller, &mut agent);
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    }
    // More than the request before the answer, and more after the end.
    let (listener, address) = listener();
    let mut session = Session::open(Transport::Tcp, address);
    let _server = accept(&listener);
    session.send(b"");
    session.send(b"more");
    assert_eq!(session.chunk(), None);
    session.agent.join().unwrap();
}

#[test]
fn a_connection_that_says_nothing_or_is_not_answered_is_given_up() {
    let (poller, mut agent) = agent();
    let (mut stream, guest) = pair();
    agent.connect_forward(guest);
    let deadline = agent.deadline().unwrap();
    assert!(deadline <= Instant::now() + START_WITHIN);
    agent.expire(deadline);
    assert!(agent.forwards_nothing());
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);

    // A listener that accepts nothing: its queue is full after some.
    let listener = nix::sys::socket::socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        None,
    )
    .unwrap();
    let any = SockaddrStorage::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    nix::sys::socket::bind(listener.as_raw_fd(), &any).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let listener = TcpListener::from(listener);
    let address = listener.local_addr().unwrap();
    let mut streams = Vec::new();
    for _ in 0..8 {
        let (mut stream, guest) = pair();
        agent.connect_forward(guest);
        let start = ForwardStart {
            transport: Transport::Tcp,
            address: address.ip(),
            port: address.port(),
        };
        frame::write(&mut stream, &start, MAX_FORWARD_FRAME).unwrap();
        streams.push(stream);
        let mut events = [EpollEvent::empty(); 16];
        let count = poller
            .wait(&mut events, Some(Instant::now() + PATIENCE))
            .unwrap();
        for event in &events[..count] {
            agent.handle(event.data(), event.events());
        }
    }
    let deadline = agent.deadline().expect("all were accepted");
    agent.expire(deadline + CONNECT_WITHIN);
    assert_eq!(agent.deadline(), None);
    let late = streams.iter_mut().map(|stream| {
        let mut answer = [0; 200];
        let n = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..n]).contains("no answer within 10s")
    });
    assert!(late.filter(|late| *late).count() > 0);
}

#[test]
fn one_more_than_there_is_room_for_is_told() {
    let (_poller, mut agent) = agent();
    let mut streams = Vec::new();
    for _ in 0..FORWARDS_MAX {
        let (stream, guest) = pair();
        agent.connect_forward(guest);
        streams.push(stream);
    }
    let (stream, guest) = pair();
    agent.connect_forward(guest);
    let mut session = Session {
        stream,
        agent: std::thread::spawn(|| {}),
    };
    let ForwardAnswer::Failed(failure) = session.answer() else {
        panic!("it was taken");
    };
    assert_eq!(failure.kind, ForwardFailureKind::Resources);
    session.closed();
}

#[test]
fn datagrams_keep_their_boundaries_and_may_be_empty() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut session = Session::open(Transport::Udp, server.local_addr().unwrap());
    let long = vec![b'x'; 60_000];
    let mut buffer = vec![0; 65_536];
    for datagram in [&b"one"[..], b"", &long] {
        session.send(datagram);
        let (n, client) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], datagram);
        server.send_to(datagram, client).unwrap();
        assert_eq!(session.chunk().as_deref(), Some(datagram));
    }
    // One that no network carries is lost, and the next arrives.
    session.send(&[0; flashpan_protocol::forward::MAX_CHUNK]);
    session.send(b"after");
    let (n, _) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"after");
    drop(session.stream);
    session.agent.join().unwrap();
}

/// Splits a datagram over many reads of the agent.
#[test]
fn a_datagram_in_pieces_is_one_datagram() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let (poller, mut agent) = agent();
    let (mut stream, guest) = pair();
    agent.connect_forward(guest);
    let address = server.local_addr().unwrap();
    let start = ForwardStart {
        transport: Transport::Udp,
        address: address.ip(),
        port: address.port(),
    };
    frame::write(&mut stream, &start, MAX_FORWARD_FRAME).unwrap();
    let step = |agent: &mut Agent| {
        let mut events = [EpollEvent::empty(); 16];
        let count = poller
            .wait(&mut events, Some(Instant::now() + PATIENCE))
            .unwrap();
        assert!(count > 0);
        for event in &events[..count] {
            agent.handle(event.data(), event.events());
        }
    };
    step(&mut agent);
    for byte in [5, 0, b'h', b'e', b'l', b'l', b'o'] {
        stream.write_all(&[byte]).unwrap();
        step(&mut agent);
    }
    let mut buffer = [0; 16];
    assert_eq!(server.recv(&mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"hello");
}

#[test]
fn a_udp_server_that_comes_later_is_reached() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = server.local_addr().unwrap();
    drop(server);
    let mut session = Session::open(Transport::Udp, address);
    session.send(b"nobody");
    let server = UdpSocket::bind(address).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    session.send(b"somebody");
    let mut buffer = [0; 16];
    let n = server.recv(&mut buffer).unwrap();
    assert!(matches!(&buffer[..n], b"nobody" | b"somebody"));
    drop(session.stream);
    session.agent.join().unwrap();
}

#[test]
fn a_server_that_vanishes_is_found_out_within_two_minutes() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = server.local_addr().unwrap();
    let start = ForwardStart {
        transport: Transport::Tcp,
        address: address.ip(),
        port: address.port(),
    };
    let (socket, _) = begin(&start).unwrap();
    assert!(getsockopt(&socket, KeepAlive).unwrap());
    let idle = getsockopt(&socket, TcpKeepIdle).unwrap();
    let interval = getsockopt(&socket, TcpKeepInterval).unwrap();
    let count = getsockopt(&socket, TcpKeepCount).unwrap();
    assert!(idle + interval * count <= 120, "{idle} {interval} {count}");
    // One lost packet is no vanished server.
    assert!(count > 1, "{count}");
}
