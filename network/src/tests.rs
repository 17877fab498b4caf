//! Flows against servers on the loopback interface.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::{SocketAddr, TcpListener as Closed};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::network::{Link, Protocol, Refusal, Tuple};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::message::Messages;
use crate::policy::Policy;
use crate::{Answer, Gateway};

const PATIENCE: Duration = Duration::from_secs(30);

fn policy(private: bool) -> Policy {
    Policy {
        private,
        ..Policy::open()
    }
}

fn gateway(private: bool) -> Arc<Gateway> {
    Arc::new(Gateway::new(policy(private), Link::standard(1500)))
}

fn to(destination: SocketAddr) -> Tuple {
    Tuple {
        source: "198.18.0.2:40000".parse().unwrap(),
        destination,
    }
}

/// A stream that the guest asks for; its end, and the answers.
fn ask(private: bool, destination: SocketAddr) -> (UnixStream, mpsc::Receiver<(u64, Answer)>) {
    let (guest, host) = StdStream::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    let (sender, answers) = mpsc::channel(4);
    let (protocol, tuple) = (Protocol::Tcp, to(destination));
    let _ = gateway(private).begin(7, protocol, tuple, host.into(), sender);
    (UnixStream::from_std(guest).unwrap(), answers)
}

async fn next(answers: &mut mpsc::Receiver<(u64, Answer)>) -> Answer {
    let (id, answer) = timeout(PATIENCE, answers.recv()).await.unwrap().unwrap();
    assert_eq!(id, 7);
    answer
}

#[tokio::test]
async fn a_stream_passes_both_ways_and_each_half_ends_by_itself() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut guest, mut answers) = ask(true, server.local_addr().unwrap());
    assert_eq!(next(&mut answers).await, Answer::Accept);
    let (mut outside, _) = server.accept().await.unwrap();
    guest.write_all(b"question").await.unwrap();
    guest.shutdown().await.unwrap();
    let mut text = String::new();
    outside.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "question");
    outside.write_all(b"answer").await.unwrap();
    drop(outside);
    text.clear();
    guest.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "answer");
    // In order: there is no other answer.
    assert_eq!(timeout(PATIENCE, answers.recv()).await.unwrap(), None);
}

#[tokio::test]
async fn nobody_there_is_told_as_it_is() {
    let closed = Closed::bind("127.0.0.1:0").unwrap();
    let destination = closed.local_addr().unwrap();
    drop(closed);
    let (_guest, mut answers) = ask(true, destination);
    let refused = Answer::Refuse(Refusal::Reset);
    assert_eq!(next(&mut answers).await, refused);
}

#[tokio::test]
async fn a_connection_that_breaks_is_reset() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_guest, mut answers) = ask(true, server.local_addr().unwrap());
    assert_eq!(next(&mut answers).await, Answer::Accept);
    let (outside, _) = server.accept().await.unwrap();
    outside.set_zero_linger().unwrap();
    drop(outside);
    assert_eq!(next(&mut answers).await, Answer::Close);
}

#[tokio::test]
async fn what_is_not_the_internet_is_out_of_reach() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    for address in [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
    ] {
        let destination = format!("{address}:{port}").parse().unwrap();
        let (_guest, mut answers) = ask(false, destination);
        let refused = Answer::Refuse(Refusal::Reset);
        assert_eq!(next(&mut answers).await, refused, "{address}");
    }
    // The gateway is the host.
    for (private, answer) in [
        (false, Answer::Refuse(Refusal::Reset)),
        (true, Answer::Accept),
    ] {
        let gateway = SocketAddr::from(([198, 18, 0, 1], port));
        let (_guest, mut answers) = ask(private, gateway);
        assert_eq!(next(&mut answers).await, answer);
    }
}

#[tokio::test]
async fn datagrams_pass_one_for_one() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let kind = SockType::SeqPacket;
    let (guest, host) =
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let (sender, mut answers) = mpsc::channel(4);
    let tuple = to(server.local_addr().unwrap());
    let flow = gateway(true).begin(7, Protocol::Udp, tuple, host, sender);
    assert_eq!(next(&mut answers).await, Answer::Accept);
    let guest = Messages::new(guest).unwrap();
    let mut buffer = [0; 64];
    for sent in [&b"one"[..], b"", b"three"] {
        guest.send(sent).await.unwrap();
        let (len, from) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], sent);
        server.send_to(sent, from).await.unwrap();
        let len = guest.receive(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], sent);
    }
    flow.abort();
    assert_eq!(timeout(PATIENCE, answers.recv()).await.unwrap(), None);
}

/// Names are the one service of the gateway; whatever else has port 53 is as anything is.
#[test]
fn the_gateway_leads_to_the_resolver_of_the_host() {
    let resolver = "10.0.0.53".parse().unwrap();
    let with = |resolver| Gateway {
        policy: policy(false),
        link: Link::standard(1500),
        resolver,
    };
    let ask = |gateway: &Gateway, address: &str, protocol| {
        gateway.target(protocol, &to(address.parse().unwrap()))
    };
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let named = with(Some(resolver));
        let led = SocketAddr::new(resolver, 53);
        assert_eq!(ask(&named, "198.18.0.1:53", protocol), Ok(led));
        let other = "1.1.1.1:53";
        assert_eq!(ask(&named, other, protocol), Ok(other.parse().unwrap()));
        assert!(ask(&named, "10.0.0.53:53", protocol).is_err());
        assert!(ask(&with(None), "198.18.0.1:53", protocol).is_err());
    }
}
