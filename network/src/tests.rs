//! Flows against servers on the loopback interface.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod looked_into;
mod names;

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
use crate::policy::{Basis, Code, Policy};
use crate::report::{Outcome, Report, Reporter, Scheme};
use crate::script::Script;
use crate::{Answer, Gateway, Settings, dns, report};

const PATIENCE: Duration = Duration::from_secs(30);

fn policy(private: bool) -> Policy {
    Policy {
        private,
        ..Policy::open()
    }
}

fn settings(policy: Policy, reporter: Reporter) -> Settings {
    Settings {
        link: Link::standard(1500),
        policy,
        dns: dns::Settings::default(),
        inspection: None,
        reporter,
    }
}

fn gateway(private: bool) -> Arc<Gateway> {
    Arc::new(Gateway::new(settings(
        policy(private),
        report::channel(64).0,
    )))
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

/// A flow, what the guest hears of it, and what is told.
struct Asked {
    guest: UnixStream,
    answers: mpsc::Receiver<(u64, Answer)>,
    reports: report::Reports,
    gateway: Arc<Gateway>,
}

fn ask_under(policy: Policy, destination: SocketAddr) -> Asked {
    let (guest, host) = StdStream::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    let (sender, answers) = mpsc::channel(4);
    let (reporter, reports) = report::channel(64);
    let gateway = Arc::new(Gateway::new(settings(policy, reporter)));
    let _ = gateway.begin(7, Protocol::Tcp, to(destination), host.into(), sender);
    Asked {
        guest: UnixStream::from_std(guest).unwrap(),
        answers,
        reports,
        gateway,
    }
}

impl Asked {
    async fn report(&mut self) -> Report {
        timeout(PATIENCE, self.reports.next())
            .await
            .unwrap()
            .unwrap()
            .1
    }
}

#[tokio::test]
async fn a_flow_is_told_of_when_it_has_ended() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let mut asked = ask_under(policy(true), address);
    assert_eq!(next(&mut asked.answers).await, Answer::Accept);
    let (mut outside, _) = server.accept().await.unwrap();
    asked.guest.write_all(b"hello").await.unwrap();
    asked.guest.shutdown().await.unwrap();
    let mut got = Vec::new();
    outside.read_to_end(&mut got).await.unwrap();
    outside.write_all(b"good day").await.unwrap();
    drop(outside);
    let report = asked.report().await;
    assert_eq!(report.scheme, Scheme::Tcp);
    assert_eq!(report.host, address.to_string());
    assert_eq!((report.sent, report.received), (5, 8));
    assert_eq!(report.outcome, Outcome::Allowed(Basis::Open));
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason() {
    let closed = Closed::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sealed = Policy::default();
    for (policy, destination, code) in [
        (
            sealed,
            "93.184.216.34:443".parse().unwrap(),
            Code::NotAllowed,
        ),
        (policy(false), closed, Code::Private),
        (policy(true), closed, Code::Connect),
    ] {
        let mut asked = ask_under(policy, destination);
        let refused = Answer::Refuse(Refusal::Reset);
        assert_eq!(next(&mut asked.answers).await, refused);
        let Outcome::Refused(denial) = asked.report().await.outcome else {
            panic!("{code}");
        };
        assert_eq!((denial.code, denial.host), (code, destination.to_string()));
    }
}

#[tokio::test]
async fn a_flow_ends_when_it_may_not_be_any_more() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let allow = |pattern: &str| Policy {
        allow: vec![pattern.parse().unwrap()],
        ..Policy::default()
    };
    let mut asked = ask_under(allow("127.0.0.0/8"), address);
    assert_eq!(next(&mut asked.answers).await, Answer::Accept);
    let (mut outside, _) = server.accept().await.unwrap();
    // What does not concern it does nothing to it.
    asked.gateway.change(|policy| policy.open = true);
    asked.guest.write_all(b"x").await.unwrap();
    assert_eq!(outside.read_u8().await.unwrap(), b'x');
    asked.gateway.change(|policy| *policy = Policy::default());
    assert_eq!(next(&mut asked.answers).await, Answer::Close);
    let error = outside.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let report = asked.report().await;
    assert!(matches!(report.outcome, Outcome::Refused(denial) if denial.code == Code::NotAllowed));
    assert_eq!(report.sent, 1);
}

fn judge(body: &str) -> Option<Script> {
    let script = Script::new(&format!("fn connection(conn) {{ {body} }}"));
    Some(script.unwrap())
}

#[tokio::test]
async fn a_script_is_asked_before_a_connection_is_made() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let under = |body: &str| Policy {
        script: judge(body),
        ..policy(true)
    };
    let body = format!(
        "if conn.port == {} {{ deny(conn.address) }}",
        address.port()
    );
    for (body, code, rule) in [
        (
            body.as_str(),
            Code::ScriptDenied,
            "policy_script:1: 127.0.0.1",
        ),
        ("conn.host.none()", Code::ScriptFailed, "policy_script:1: "),
    ] {
        let mut asked = ask_under(under(body), address);
        let answer = next(&mut asked.answers).await;
        assert_eq!(answer, Answer::Refuse(Refusal::Reset));
        let Outcome::Refused(denial) = asked.report().await.outcome else {
            panic!("it was allowed");
        };
        assert_eq!((denial.code, denial.host), (code, address.to_string()));
        assert!(denial.rule.unwrap().starts_with(rule));
    }
    let mut asked = ask_under(under("conn.protocol == \"tcp\""), address);
    assert_eq!(next(&mut asked.answers).await, Answer::Accept);
    // Of those that were refused none was made.
    server.accept().await.unwrap();
    let more = timeout(Duration::ZERO, server.accept()).await;
    assert!(more.is_err());
    // What the policy denies is not the script's to allow.
    let sealed = Policy {
        script: judge("true"),
        ..Policy::default()
    };
    let mut asked = ask_under(sealed, address);
    let answer = next(&mut asked.answers).await;
    assert_eq!(answer, Answer::Refuse(Refusal::Reset));
}

/// What ICMP says of one datagram is not the end of the others.
#[tokio::test]
async fn a_datagram_that_nobody_takes_does_not_end_its_flow() {
    let address = {
        let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        closed.local_addr().unwrap()
    };
    let kind = SockType::SeqPacket;
    let (guest, host) =
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let (sender, mut answers) = mpsc::channel(4);
    let flow = gateway(true).begin(7, Protocol::Udp, to(address), host, sender);
    assert_eq!(next(&mut answers).await, Answer::Accept);
    let guest = Messages::new(guest).unwrap();
    for _ in 0..3 {
        guest.send(b"nobody").await.unwrap();
    }
    let server = UdpSocket::bind(address).await.unwrap();
    let mut buffer = [0; 64];
    // What was sent before may still arrive.
    loop {
        guest.send(b"somebody").await.unwrap();
        let (len, from) = timeout(PATIENCE, server.recv_from(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        if &buffer[..len] == b"somebody" {
            server.send_to(b"here", from).await.unwrap();
            break;
        }
    }
    let len = timeout(PATIENCE, guest.receive(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&buffer[..len], b"here");
    flow.abort();
}

/// A flow of TCP through a gateway.
fn begin(
    gateway: &Arc<Gateway>,
    destination: SocketAddr,
) -> (UnixStream, mpsc::Receiver<(u64, Answer)>, crate::Flow) {
    let (guest, host) = StdStream::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    let (sender, answers) = mpsc::channel(4);
    let flow = gateway.begin(7, Protocol::Tcp, to(destination), host.into(), sender);
    (UnixStream::from_std(guest).unwrap(), answers, flow)
}

#[tokio::test]
async fn a_flow_that_was_given_up_before_it_was_one_is_told_as_that() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for gives_up in [true, false] {
        let (reporter, mut reports) = report::channel(64);
        let gateway = Arc::new(Gateway::new(settings(policy(true), reporter)));
        let (_guest, mut answers, flow) = begin(&gateway, server.local_addr().unwrap());
        assert_eq!(next(&mut answers).await, Answer::Accept);
        match gives_up {
            true => flow.give_up(),
            false => flow.abort(),
        }
        let (_, report) = timeout(PATIENCE, reports.next()).await.unwrap().unwrap();
        let code = match report.outcome {
            Outcome::Refused(denial) => Some(denial.code),
            Outcome::Allowed(_) => None,
        };
        assert_eq!(code, gives_up.then_some(Code::GivenUp));
        gateway.all_told().await;
    }
}
