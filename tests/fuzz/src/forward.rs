//! What a supervisor sends on a forwarded connection, as the guest's agent takes
//! it. The same runs over the corpus in `sandbox/tests/fuzz_corpus.rs`.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use flashpan_guest_init::serve::{Service, serve};
use flashpan_protocol::forward::{ForwardAnswer, ForwardStart, MAX_FORWARD_FRAME, Transport};
use flashpan_protocol::frame::{self, Decoder};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// More than anything here takes: waiting this long is a hang.
const PATIENCE: Duration = Duration::from_secs(15);

/// The first byte says what is forwarded, the second in pieces of which length the
/// rest is sent.
pub fn forward(data: &[u8]) {
    let [kind, step, rest @ ..] = data else {
        return;
    };
    let step = usize::from(*step) * 16 + 1;
    match kind % 3 {
        0 => start(rest, step),
        1 => stream(rest, step),
        _ => datagrams(rest, step),
    }
}

/// An agent for one connection, and the other end of that.
fn agent() -> (UnixStream, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let agent = spawn(move || serve(Service::Forward, theirs.into()).unwrap());
    (ours, agent)
}

/// Sends what it takes; an agent that has heard enough takes no more.
fn send(stream: &mut UnixStream, bytes: &[u8], step: usize) {
    for part in bytes.chunks(step) {
        if stream.write_all(part).is_err() {
            return;
        }
    }
}

/// Anything in place of the first message: it is answered if it is one and nothing
/// follows, and otherwise the connection ends without a word.
fn start(bytes: &[u8], step: usize) {
    let mut decoder = Decoder::new(MAX_FORWARD_FRAME);
    decoder.extend(bytes);
    match decoder.next_message::<ForwardStart>() {
        // Nobody but this test is to be connected to.
        Ok(Some(start)) if start.port != 0 => return,
        Ok(Some(_)) | Ok(None) | Err(_) => {}
    }
    let (mut host, agent) = agent();
    send(&mut host, bytes, step);
    // An agent that waits for more sees the end.
    let _ = host.shutdown(Shutdown::Write);
    let mut answers = Decoder::new(MAX_FORWARD_FRAME);
    match answers.read_message(&mut host) {
        Ok(Some(ForwardAnswer::Connected)) => panic!("connected to nowhere"),
        Ok(Some(ForwardAnswer::Failed(failure))) => {
            assert!(!failure.message.contains(char::is_control));
            let more = answers.read_message::<ForwardAnswer>(&mut host);
            assert!(!matches!(more, Ok(Some(_))), "two answers");
        }
        Ok(None) => {}
        // It closed with something unread.
        Err(frame::FrameError::Io(error)) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        Err(error) => panic!("{error}"),
    }
    agent.join().unwrap();
}

/// A connection to `port` of this machine.
fn connected(transport: Transport, port: u16) -> (UnixStream, JoinHandle<()>) {
    let (mut host, agent) = agent();
    let start = ForwardStart {
        transport,
        address: LOCALHOST,
        port,
    };
    frame::write(&mut host, &start, MAX_FORWARD_FRAME).unwrap();
    let mut byte = [0];
    let mut decoder = Decoder::new(MAX_FORWARD_FRAME);
    // Not a byte more than the answer: chunks follow.
    loop {
        host.read_exact(&mut byte).unwrap();
        decoder.extend(&byte);
        if let Some(answer) = decoder.next_message::<ForwardAnswer>().unwrap() {
            assert_eq!(answer, ForwardAnswer::Connected);
            return (host, agent);
        }
    }
}

/// Chunks as they are in `bytes`, and what is left that is none.
fn chunks(mut bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut chunks = Vec::new();
    while let Some((prefix, rest)) = bytes.split_first_chunk::<2>()
        && let Some((content, rest)) = rest.split_at_checked(u16::from_le_bytes(*prefix).into())
    {
        chunks.push(content);
        bytes = rest;
    }
    (chunks, bytes)
}

/// A stream: the other side gets what the chunks hold and its end if they have one,
/// and what it answers comes back. What breaks off is never taken for an end.
fn stream(bytes: &[u8], step: usize) {
    let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (mut host, agent) = connected(Transport::Tcp, port);
    let (mut local, _) = listener.accept().unwrap();
    local.set_read_timeout(Some(PATIENCE)).unwrap();
    let (all, mut rest) = chunks(bytes);
    let end = all.iter().position(|chunk| chunk.is_empty());
    let content = all[..end.unwrap_or(all.len())].concat();
    send(&mut host, bytes, step);
    if end.is_some_and(|end| end + 1 == all.len()) && rest.is_empty() {
        let mut heard = Vec::new();
        local.read_to_end(&mut heard).expect("an end in order");
        assert!(heard == content, "what was sent in chunks");
        local.write_all(&heard).unwrap();
        drop(local);
        let mut back = Vec::new();
        host.read_to_end(&mut back).unwrap();
        let (back, nothing) = chunks(&back);
        assert!(nothing.is_empty(), "a part of a chunk");
        let (last, back) = back.split_last().expect("an end");
        assert!(last.is_empty() && back.iter().all(|chunk| !chunk.is_empty()));
        assert!(back.concat() == content, "what was answered");
    } else {
        drop(host);
        let mut heard = Vec::new();
        let ended = local.read_to_end(&mut heard);
        if end.is_none() {
            // The last chunk may have been begun.
            rest = rest.get(2..).unwrap_or_default();
            let possible = [&content, rest].concat();
            assert!(possible.starts_with(&heard), "what was sent in chunks");
            assert!(ended.is_err(), "what broke off seems to be complete");
        } else {
            assert!(content.starts_with(&heard), "nothing follows the end");
        }
    }
    agent.join().unwrap();
}

/// Datagrams: each arrives as it is or not at all, and in their order.
fn datagrams(bytes: &[u8], step: usize) {
    let local = UdpSocket::bind((LOCALHOST, 0)).unwrap();
    let port = local.local_addr().unwrap().port();
    let (mut host, agent) = connected(Transport::Udp, port);
    send(&mut host, bytes, step);
    drop(host);
    agent.join().unwrap();
    local.set_nonblocking(true).unwrap();
    let (sent, _) = chunks(bytes);
    let mut sent = sent.into_iter();
    let mut buffer = vec![0; 65536];
    while let Ok(length) = local.recv(&mut buffer) {
        let heard = &buffer[..length];
        assert!(
            sent.any(|datagram| datagram == heard),
            "a datagram that was not sent"
        );
    }
}
