//! Ports of a real guest, reached from the host.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod guest;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use flashpan::api::PortForward;
use flashpan::{
    Error, ExecOptions, Forward, ForwardFailureKind, ForwardOptions, Network, PortForwarding,
    Privilege, Process, Sandbox,
};
use flashpan_tests::Home;
use guest::{PATIENCE, builder, script};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Answers each connection with what it was sent, backwards, once it has all of
/// it.
const TCP_SERVER: &str = "
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read()[::-1])
class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 128
    daemon_threads = True
with Server(('127.0.0.1', 8000), Handler) as server:
    print('ready', flush=True)
    server.serve_forever()
";

/// On the address that it is given: tells each client who it is, and then answers with all
/// that it was sent, while it comes.
const ECHO_SERVER: &str = "
import socketserver, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.client_address[0].encode() + b'\\n')
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
with Server((HOST, 8100), Handler) as server:
    print('ready', flush=True)
    server.serve_forever()
";

/// Of the gateway, and of the guest itself.
const GATEWAY: &str = "198.18.0.1";
const LOOPBACK: &str = "127.0.0.1";

const UDP_SERVER: &str = "
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('127.0.0.1', 5353))
print('ready', flush=True)
while True:
    datagram, client = server.recvfrom(65536)
    server.sendto(datagram[::-1], client)
";

/// Starts a server in the guest and waits until it listens.
async fn server(sandbox: &Sandbox, program: &str) -> Process {
    let argv = ["python3", "-S", "-c", program];
    let mut server = sandbox.exec(ExecOptions::argv(argv)).await.unwrap();
    let mut ready = [0; 6];
    let stdout = server.stdout.as_mut().unwrap();
    let read = timeout(PATIENCE, stdout.read_exact(&mut ready)).await;
    read.unwrap().unwrap();
    assert_eq!(&ready, b"ready\n");
    server
}

fn to(remote_port: u16) -> PortForward {
    PortForward {
        local_port: 0,
        remote_port,
    }
}

async fn forward(sandbox: &Sandbox, forward: Forward) -> (PortForwarding, SocketAddr) {
    let forwarding = sandbox
        .port_forward(&[forward], ForwardOptions::new())
        .await;
    let forwarding = forwarding.unwrap();
    let address = forwarding.bindings()[0].address;
    (forwarding, address)
}

/// Sends everything, ends its half, and returns the answer.
async fn ask(address: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut client = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    let asked = async {
        client.write_all(question).await?;
        client.shutdown().await?;
        client.read_to_end(&mut answer).await
    };
    timeout(PATIENCE, asked).await.unwrap()?;
    Ok(answer)
}

#[tokio::test]
async fn a_half_that_has_ended_leaves_the_other_open() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let _server = server(&sandbox, TCP_SERVER).await;
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(8000))).await;
    assert_eq!(ask(address, b"question").await.unwrap(), b"noitseuq");
    // More than anything on the way holds.
    let long: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut answer = ask(address, &long).await.unwrap();
    answer.reverse();
    assert!(answer == long);
    assert_eq!(forwarding.counts().failed, 0);
    drop(forwarding);
    sandbox.kill().await;
}

#[tokio::test]
async fn a_hundred_connections_at_once() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let _server = server(&sandbox, TCP_SERVER).await;
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(8000))).await;
    // All are open before the first has sent its question.
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(TcpStream::connect(address).await.unwrap());
    }
    let all = clients
        .into_iter()
        .zip(0_u32..)
        .map(|(mut client, number)| {
            tokio::spawn(async move {
                let question = format!("{number:08}");
                client.write_all(question.as_bytes()).await.unwrap();
                client.shutdown().await.unwrap();
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.unwrap();
                assert!(answer.chars().rev().eq(question.chars()), "{answer}");
            })
        });
    for client in all.collect::<Vec<_>>() {
        timeout(PATIENCE, client).await.unwrap().unwrap();
    }
    let counts = forwarding.counts();
    assert_eq!((counts.total, counts.failed), (100, 0));
    sandbox.kill().await;
}

/// Whom a server takes its client for.
async fn seen_as(address: SocketAddr) -> String {
    let seen = ask(address, b"").await.unwrap();
    String::from_utf8(seen).unwrap().trim_end().to_owned()
}

async fn echo_server(sandbox: &Sandbox, host: &str) -> Process {
    server(sandbox, &ECHO_SERVER.replace("HOST", &format!("'{host}'"))).await
}

#[tokio::test]
async fn a_service_on_all_addresses_is_reached_without_the_agent() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let _server = echo_server(&sandbox, "0.0.0.0").await;
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(8100))).await;
    assert_eq!(seen_as(address).await, GATEWAY);
    // 16 MiB, both ways at once.
    let long: Vec<u8> = (0..4 << 20_u32).flat_map(u32::to_le_bytes).collect();
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = client.split();
    let mut answer = Vec::new();
    let both = async {
        tokio::join!(reader.read_to_end(&mut answer), async {
            writer.write_all(&long).await.unwrap();
            writer.shutdown().await.unwrap();
        })
    };
    timeout(PATIENCE, both).await.unwrap().0.unwrap();
    let greeting = GATEWAY.len() + 1;
    assert!(answer[greeting..] == long);
    let counts = forwarding.counts();
    assert_eq!((counts.total, counts.failed), (2, 0));
    // By its address the agent is asked for.
    let options = ForwardOptions::new().guest_address(LOOPBACK.parse().unwrap());
    let forwards = [Forward::tcp(to(8100))];
    let by_agent = sandbox.port_forward(&forwards, options).await.unwrap();
    assert_eq!(seen_as(by_agent.bindings()[0].address).await, LOOPBACK);
    sandbox.kill().await;
}

#[tokio::test]
async fn a_service_of_the_loopback_interface_is_reached_by_the_agent() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let _server = echo_server(&sandbox, LOOPBACK).await;
    let (_forwarding, address) = forward(&sandbox, Forward::tcp(to(8100))).await;
    assert_eq!(seen_as(address).await, LOOPBACK);
    sandbox.kill().await;
}

#[tokio::test]
async fn without_a_card_the_agent_reaches_all() {
    let _home = Home::new();
    let sandbox = builder().network(Network::None).boot().await.unwrap();
    let _server = echo_server(&sandbox, "0.0.0.0").await;
    let (_forwarding, address) = forward(&sandbox, Forward::tcp(to(8100))).await;
    assert_eq!(seen_as(address).await, LOOPBACK);
    sandbox.kill().await;
}

#[tokio::test]
async fn a_card_that_does_not_answer_leaves_the_port_to_the_agent() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let _server = echo_server(&sandbox, "0.0.0.0").await;
    let (_forwarding, address) = forward(&sandbox, Forward::tcp(to(8100))).await;
    assert_eq!(seen_as(address).await, GATEWAY);
    // SIOCSIFFLAGS, without IFF_UP.
    let down = "python3 -S -c '
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack(\"16sh14x\", b\"eth0\", 0x1002))
'";
    script(&sandbox, down).await;
    assert_eq!(seen_as(address).await, LOOPBACK);
    assert_eq!(seen_as(address).await, LOOPBACK);
    sandbox.kill().await;
}

#[tokio::test]
async fn halves_and_resets_are_passed_on_without_the_agent() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    // Says all and ends its half, tells what it hears after that, and resets the next one.
    let program = "
import socket, struct
server = socket.create_server(('0.0.0.0', 7100))
print('ready', flush=True)
client, peer = server.accept()
client.sendall(peer[0].encode())
client.shutdown(socket.SHUT_WR)
heard = b''
while data := client.recv(65536):
    heard += data
client.close()
client, _ = server.accept()
client.sendall(heard[:4])
client.recv(1)
client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
client.close()
";
    let _server = server(&sandbox, program).await;
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(7100))).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let mut all = Vec::new();
    let read = timeout(PATIENCE, client.read_to_end(&mut all)).await;
    read.unwrap().unwrap();
    assert_eq!(all, GATEWAY.as_bytes());
    client.write_all(b"more").await.unwrap();
    drop(client);
    let mut client = TcpStream::connect(address).await.unwrap();
    let mut heard = [0; 4];
    let read = timeout(PATIENCE, client.read_exact(&mut heard)).await;
    read.unwrap().unwrap();
    assert_eq!(&heard, b"more");
    client.write_all(b"x").await.unwrap();
    let read = timeout(PATIENCE, client.read(&mut heard)).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(forwarding.counts().total, 2);
    sandbox.kill().await;
}

#[tokio::test]
async fn a_refusal_and_a_reset_of_the_guest_are_resets() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(9))).await;
    let error = ask(address, b"").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let errors = forwarding.take_errors();
    assert!(
        matches!(
            errors[0].error,
            Error::Forward {
                kind: ForwardFailureKind::Refused,
                ..
            }
        ),
        "{errors:?}"
    );
    let resetting = "
import socket, struct
server = socket.create_server(('127.0.0.1', 7000))
print('ready', flush=True)
client, _ = server.accept()
client.recv(1)
client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
client.close()
";
    let _server = server(&sandbox, resetting).await;
    let (_forwarding, address) = forward(&sandbox, Forward::tcp(to(7000))).await;
    let error = ask(address, b"x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    // The guest is none the worse.
    assert_eq!(script(&sandbox, "echo alive").await, "alive\n");
    sandbox.kill().await;
}

#[tokio::test]
async fn datagrams_are_answered() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let _server = server(&sandbox, UDP_SERVER).await;
    let (forwarding, address) = forward(&sandbox, Forward::udp(to(5353))).await;
    for _ in 0..3 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(address).await.unwrap();
        let mut buffer = vec![0; 65_536];
        for length in [1, 1400, 30_000] {
            let datagram: Vec<u8> = (0..=255).cycle().take(length).collect();
            client.send(&datagram).await.unwrap();
            let n = timeout(PATIENCE, client.recv(&mut buffer)).await;
            buffer[..n.unwrap().unwrap()].reverse();
            assert!(buffer[..length] == datagram);
        }
    }
    assert_eq!(forwarding.counts().active, 3);
    sandbox.kill().await;
}

#[tokio::test]
async fn programs_of_the_guest_cannot_use_the_agents_port() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    // Whatever address stands for this guest: nobody answers, or closes at once.
    // A confined program may not even make such a socket.
    let knock = "
import socket
for cid in (1, 3, 0xffffffff):
    client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    client.settimeout(10)
    try:
        client.connect((cid, 1027))
        client.sendall(bytes([9, 0, 0, 0, 0, 0, 127, 0, 0, 1, 0x90, 0x4e]))
        assert client.recv(1) == b'', cid
    except OSError:
        pass
print('closed')
";
    let argv = ["python3", "-S", "-c", knock];
    let privileged = ExecOptions::argv(argv).privilege(Privilege::privileged());
    let program = sandbox.exec(privileged).await.unwrap();
    let ended = program.collect(4096).await.unwrap();
    assert_eq!(ended.stdout, b"closed\n", "{ended:?}");
    sandbox.kill().await;
}

#[tokio::test]
async fn an_orderly_end_does_not_wait_for_connections() {
    let _home = Home::new();
    let sandbox = builder().boot().await.unwrap();
    let _server = server(&sandbox, TCP_SERVER).await;
    let (_forwarding, address) = forward(&sandbox, Forward::tcp(to(8000))).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"half a question").await.unwrap();
    let grace = Duration::from_secs(150);
    let exit = timeout(PATIENCE, sandbox.shutdown(grace)).await.unwrap();
    assert!(exit.reason.is_orderly(), "{exit:?}");
    let mut answer = Vec::new();
    let end = timeout(PATIENCE, client.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}
