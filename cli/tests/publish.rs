//! `flashpan run -p`, against the fake VMM of the library's tests and the real
//! agent: a port of this machine plays one of the guest.
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

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use fake::{World, complaint, signal};
use nix::sys::signal::Signal;
use vms::Vms;

const PATIENCE: Duration = Duration::from_secs(60);

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn ports_lead_into_the_guest_while_the_command_runs() {
    let world = World::new("normal");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let (remote, udp_remote) = (
        server.local_addr().unwrap().port(),
        udp.local_addr().unwrap().port(),
    );
    let (local, udp_local) = (free_port(), free_port());
    let tcp_spec = format!("{local}:{remote}");
    let udp_spec = format!("{udp_local}:{udp_remote}/udp");
    let options = [
        "-p",
        &tcp_spec,
        "--publish",
        &udp_spec,
        "--address",
        "localhost",
    ];
    let mut child = world
        .run(&options, &["announce-and-sleep"])
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let said: Vec<_> = stderr.by_ref().take(2).map(Result::unwrap).collect();
    assert_eq!(
        said,
        [
            format!("Forwarding 127.0.0.1:{local} -> sandbox:{remote}"),
            format!("Forwarding 127.0.0.1:{udp_local}/udp -> sandbox:{udp_remote}/udp"),
        ]
    );
    let mut client = TcpStream::connect(("127.0.0.1", local)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    let mut request = String::new();
    accepted.read_to_string(&mut request).unwrap();
    assert_eq!(request, "request");
    accepted.write_all(b"answer").unwrap();
    drop(accepted);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client
        .send_to(b"datagram", ("127.0.0.1", udp_local))
        .unwrap();
    let mut buffer = [0; 16];
    assert_eq!(udp.recv(&mut buffer).unwrap(), 8);

    // One that nobody takes is told at the end, when the ports are gone.
    drop(server);
    let mut refused = TcpStream::connect(("127.0.0.1", local)).unwrap();
    refused.read(&mut buffer).unwrap_err();
    fake::wait_until_ready(&mut child);
    signal(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let rest: Vec<_> = stderr.map(Result::unwrap).collect();
    let warning = format!("127.0.0.1:{remote} in the guest (tcp): connect: Connection refused");
    assert!(
        rest.iter().any(|line| line
            .starts_with("flashpan: warning: a forwarded connection failed: ")
            && line.ends_with(&warning)),
        "{rest:?}"
    );
    TcpStream::connect(("127.0.0.1", local)).unwrap_err();
    world.assert_nothing_left();
}

#[test]
fn a_port_that_is_taken_or_none_is_one_line_and_125() {
    let world = World::new("normal");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = world.output(&["-p", &format!("{port}:80")], &["exit", "0"]);
    assert_eq!(output.status.code(), Some(125));
    let text = format!(
        "flashpan: error: cannot listen on 127.0.0.1:{port} (tcp): Address already in use \
         (os error 98); choose another port, or end what listens there"
    );
    assert_eq!(complaint(&output), text);
    world.assert_nothing_left();
    for (options, expected) in [
        (&["-p", "0"][..], "must be in range 1-65535"),
        (&["-p", "1:2:3"], "invalid address \"1\""),
        (&["-p", "::1:8080:80"], "127.0.0.1:8080:80 or [::1]:8080:80"),
        (&["-p", "127.0.0.1:80"], "needs both ports; write e.g. 80"),
        (&["-p", "80/sctp"], "must be tcp or udp"),
        (
            &["-p", "80", "--address", "example.org"],
            "is not an IP address",
        ),
        (&["--address", "::1"], "--publish"),
        (
            &[
                "-p",
                "127.0.0.1:8080:80",
                "-p",
                "[::ffff:127.0.0.1]:8080:81",
            ],
            "127.0.0.1:8080/tcp is given twice",
        ),
    ] {
        let output = world.output(options, &["exit", "0"]);
        assert_eq!(output.status.code(), Some(125), "{options:?}");
        let complaint = complaint(&output);
        assert!(complaint.contains(expected), "{complaint}");
    }
}

#[test]
fn a_port_may_have_an_address_of_its_own() {
    let world = World::new("normal");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = server.local_addr().unwrap().port();
    let (first, second, third) = (free_port(), free_port(), free_port());
    let specs = [
        format!("127.0.0.2:{first}:{remote}"),
        format!("{second}:{remote}"),
        // One of IPv4, as IPv6 has them.
        format!("[::ffff:127.0.0.4]:{third}:{remote}"),
    ];
    let address = ["--address", "::ffff:127.0.0.3"];
    let ports = ["-p", &specs[0], "-p", &specs[1], "-p", &specs[2]];
    let options = [&ports[..], &address].concat();
    let mut child = world
        .run(&options, &["announce-and-sleep"])
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let said: Vec<_> = stderr.by_ref().take(3).map(Result::unwrap).collect();
    assert_eq!(
        said,
        [
            format!("Forwarding 127.0.0.2:{first} -> sandbox:{remote}"),
            format!("Forwarding 127.0.0.3:{second} -> sandbox:{remote}"),
            format!("Forwarding 127.0.0.4:{third} -> sandbox:{remote}"),
        ]
    );
    let mut client = TcpStream::connect(("127.0.0.2", first)).unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    accepted.write_all(b"answer").unwrap();
    drop(accepted);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    TcpStream::connect(("127.0.0.3", first)).unwrap_err();
    fake::wait_until_ready(&mut child);
    signal(&child, Signal::SIGTERM);
    child.wait().unwrap();
}

#[test]
fn a_port_that_is_taken_is_known_before_the_boot() {
    // This VMM would not come up.
    let vms = Vms::new("boot-failed");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let spec = format!("{port}:80");
    let says = format!("cannot listen on 127.0.0.1:{port} (tcp): Address already in use");
    let output = vms.0.output(&["-p", &spec], &["exit", "0"]);
    assert!(complaint(&output).contains(&says), "{output:?}");
    for mode in [&["run", "-d"][..], &["run", "--rm=false"]] {
        let output = vms.making(mode, &["-p", &spec], &["sleep"]).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(complaint(&output).contains(&says), "{output:?}");
        vms.assert_nothing_left();
    }
    // Taken when it is started.
    let id = vms.create(&["-p", &spec], &["sleep"]);
    let refused = vms.refused(&["start", &id]);
    assert!(refused.contains(&says), "{refused}");
    assert_eq!(vms.status(&id), "stopped");
}
