//! The network of a real guest, against servers on the host's loopback interface.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod guest;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use flashpan::{ExecOptions, Network};
use flashpan_tests::{Flashpan, Home};
use guest::{PATIENCE, builder, script};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// The host, for a guest that may reach it.
const HOST: &str = "198.18.0.1";

/// A network that leads to the host as well.
const OPEN: [&str; 3] = ["--network", "open", "--allow-private-ips"];

/// A server on the host that does this with each connection; its port.
fn server(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (serve, stream) = (serve.clone(), stream.unwrap());
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Answers with what was sent, backwards, once all of it is there.
fn backwards(mut stream: TcpStream) {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all.reverse();
    stream.write_all(&all).unwrap();
}

fn python(home: &Home, options: &[&str], program: &str) -> Flashpan {
    let debian = flashpan_tests::fixtures::debian();
    let root = ["--rootfs", debian.to_str().unwrap()];
    let options = root.iter().chain(options).copied();
    Flashpan::run(home, options, ["python3", "-S", "-c", program])
}

#[test]
fn without_a_network_there_is_no_card() {
    let home = Home::new();
    let options = ["--network", "none"];
    let script = "ls /sys/class/net; grep . /etc/resolv.conf; true";
    let run = Flashpan::run(&home, &options, ["sh", "-c", script]);
    assert_eq!(run.finish().expect_status(0).text(), "lo\n");
}

#[test]
fn a_guest_finds_addresses_routes_and_its_gateway() {
    let home = Home::new();
    let script = "ip -4 -o addr show eth0; ip -6 -o addr show eth0; ip route; ip -6 route; \
                  cat /etc/resolv.conf; cat /sys/class/net/eth0/mtu; \
                  ping -c 1 198.18.0.1 >/dev/null && echo pong; \
                  ping -6 -c 1 fdf1:a5f1:a5f1::1 >/dev/null && echo pong6";
    let options = ["--network", "open", "--mtu", "1400"];
    let run = Flashpan::run(&home, options, ["sh", "-c", script]).finish();
    let text = run.expect_status(0).text();
    for part in [
        "198.18.0.2/30",
        "fdf1:a5f1:a5f1::2/64",
        "default via 198.18.0.1 dev eth0",
        "default via fdf1:a5f1:a5f1::1 dev eth0",
        "nameserver 198.18.0.1\n",
        "\n1400\n",
        "pong\n",
        "pong6\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_link_whose_packets_are_too_small_for_ipv6_has_ipv4() {
    let home = Home::new();
    let script = "cat /sys/class/net/eth0/mtu; ip -6 -o addr show eth0; \
                  ping -c 1 -s 1100 198.18.0.1 >/dev/null && echo pong";
    let options = ["--network", "open", "--mtu", "1200"];
    let run = Flashpan::run(&home, options, ["sh", "-c", script]).finish();
    run.expect_status(0).expect_stdout("1200\npong\n");
}

#[test]
fn megabytes_pass_both_ways_and_each_half_ends_by_itself() {
    let home = Home::new();
    let port = server(backwards);
    let program = format!(
        "
import os, socket, threading
data = os.urandom(16 << 20)
stream = socket.create_connection(('{HOST}', {port}))
stream.sendall(data)
stream.shutdown(socket.SHUT_WR)
answer = b''.join(iter(lambda: stream.recv(1 << 20), b''))
print(answer == data[::-1], len(answer))
"
    );
    let run = python(&home, &OPEN, &program).finish();
    run.expect_status(0).expect_stdout("True 16777216\n");
}

/// More than descriptors that a process has at first.
#[test]
fn many_connections_at_once() {
    let home = Home::new();
    let port = server(backwards);
    let program = format!(
        "
import socket
streams = [socket.create_connection(('{HOST}', {port})) for _ in range(600)]
for number, stream in enumerate(streams):
    stream.sendall(b'%d ' % number)
    stream.shutdown(socket.SHUT_WR)
answers = [stream.makefile('rb').read() for stream in streams]
print(all(answer == (b'%d ' % number)[::-1] for number, answer in enumerate(answers)))
"
    );
    let run = python(&home, &OPEN, &program).finish();
    run.expect_status(0).expect_stdout("True\n");
}

#[test]
fn datagrams_are_answered() {
    let home = Home::new();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            buffer[..len].reverse();
            socket.send_to(&buffer[..len], from).unwrap();
        }
    });
    let program = format!(
        "
import socket
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.settimeout(60)
peer.connect(('{HOST}', {port}))
for text in [b'one', b'', b'x' * 1472]:
    peer.send(text)
    assert peer.recv(2048) == text[::-1]
print('answered')
"
    );
    let run = python(&home, &OPEN, &program).finish();
    run.expect_status(0).expect_stdout("answered\n");
}

/// What a program is told is what is so, and at once.
#[test]
fn what_cannot_be_reached_is_told_as_it_is() {
    let home = Home::new();
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let reset = server(|stream| {
        // What is not read when a socket is closed is answered with a reset.
        stream.peek(&mut [0]).unwrap();
        drop(stream);
    });
    let program = format!(
        "
import errno, socket
def attempt(address, port):
    try:
        stream = socket.create_connection((address, port), timeout=60)
        stream.sendall(b'x' * 100000)
        return 'end' if stream.recv(1) == b'' else 'data'
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
print(attempt('{HOST}', {port}))
print(attempt('{HOST}', {reset}))
"
    );
    let run = python(&home, &OPEN, &program).finish();
    run.expect_status(0)
        .expect_stdout("ECONNREFUSED\nECONNRESET\n");
}

#[test]
fn an_open_network_does_not_lead_to_the_host_and_its_networks() {
    let home = Home::new();
    let port = server(backwards);
    let program = format!(
        "
import errno, socket
for address in ['{HOST}', '10.0.0.1', '169.254.169.254', '192.168.1.1', '100.64.0.1',
                '::ffff:127.0.0.1', 'fd00:ec2::254', '64:ff9b::7f00:1', '2002:7f00:1::']:
    try:
        socket.create_connection((address, {port}), timeout=60)
        print(address, 'reached')
    except OSError as error:
        print(address, errno.errorcode.get(error.errno, str(error)))
"
    );
    let run = python(&home, &["--network", "open"], &program).finish();
    let text = run.expect_status(0).text();
    for line in text.lines() {
        assert!(line.ends_with(" ECONNREFUSED"), "{line}");
    }
    assert_eq!(text.lines().count(), 9, "{text}");
}

#[tokio::test]
async fn a_vm_that_is_paused_keeps_its_connections() {
    let port = server(|mut stream| {
        let mut buffer = [0; 64];
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..len]).unwrap();
        }
    });
    let sandbox = builder()
        .network(Network::Open)
        .block_private_ips(false)
        .boot()
        .await
        .unwrap();
    let routes = script(&sandbox, "cat /proc/net/route").await;
    assert!(routes.contains("eth0"), "{routes}");
    let program = format!(
        "
import socket, sys
stream = socket.create_connection(('{HOST}', {port}))
for line in sys.stdin.buffer:
    stream.sendall(line)
    sys.stdout.buffer.write(stream.recv(100))
    sys.stdout.buffer.flush()
"
    );
    let talk = ExecOptions::argv(["python3", "-S", "-c", &program]).stdin(true);
    let mut talk = sandbox.exec(talk).await.unwrap();
    for line in [b"before\n", b"behind\n"] {
        talk.stdin.as_mut().unwrap().write_all(line).await.unwrap();
        let mut answer = [0; 7];
        let answered = talk.stdout.as_mut().unwrap().read_exact(&mut answer);
        timeout(PATIENCE, answered).await.unwrap().unwrap();
        assert_eq!(&answer, line);
        sandbox.pause().await.unwrap();
        sandbox.resume().await.unwrap();
    }
    sandbox.kill().await;
}
