//! Ports that lead into a guest, against a fake VMM whose guest has the network of
//! this machine, and the real agent.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "fake/world.rs"]
#[allow(dead_code)] // Other tests need more of it.
mod world;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use flashpan::api::PortForward;
use flashpan::{
    Error, Forward, ForwardFailureKind, ForwardOptions, Network, PortForwarding, RateLimit,
    Sandbox, SandboxBuilder,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use world::{LONG, World};

fn to(remote_port: u16) -> PortForward {
    PortForward {
        local_port: 0,
        remote_port,
    }
}

/// A listener that plays the program in the guest, and its port.
async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn forward(sandbox: &Sandbox, forward: Forward) -> (PortForwarding, SocketAddr) {
    let forwarding = sandbox
        .port_forward(&[forward], ForwardOptions::new())
        .await
        .unwrap();
    let address = forwarding.bindings()[0].address;
    assert!(address.ip().is_loopback() && address.port() != 0);
    (forwarding, address)
}

/// Reads to the end.
async fn all(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    timeout(LONG, stream.read_to_end(&mut all)).await.unwrap()?;
    Ok(all)
}

#[tokio::test]
async fn each_half_of_a_connection_ends_for_itself() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (server, port) = listener().await;
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(port))).await;
    let (client, server) = tokio::join!(TcpStream::connect(address), server.accept());
    let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(all(&mut server).await.unwrap(), b"request");
    server.write_all(b"answer").await.unwrap();
    assert_eq!(forwarding.counts().active, 1);
    drop(server);
    assert_eq!(all(&mut client).await.unwrap(), b"answer");
    idle(&forwarding).await;
    let counts = forwarding.counts();
    assert_eq!((counts.active, counts.total, counts.failed), (0, 1, 0));
}

/// Where the card of the fake guest is.
const CARD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A listener that plays a program which listens on all addresses of the guest: the agent
/// connects to the first of the two, the card leads to the second.
async fn listeners() -> (TcpListener, TcpListener, u16) {
    loop {
        let (agent, port) = listener().await;
        // Unless somebody else has that port there.
        if let Ok(card) = TcpListener::bind((CARD, port)).await {
            return (agent, card, port);
        }
    }
}

#[tokio::test]
async fn a_program_that_listens_on_the_card_is_reached_without_the_agent() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (_agent, card, port) = listeners().await;
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(port))).await;
    for client_first in [true, false] {
        let (client, server) = tokio::join!(TcpStream::connect(address), card.accept());
        let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
        let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
        let (first, second) = match client_first {
            true => (&mut client, &mut server),
            false => (&mut server, &mut client),
        };
        // The first says all and ends its half; the second goes on after that.
        let said = async {
            first.write_all(&content).await.unwrap();
            first.shutdown().await.unwrap();
        };
        let (heard, ()) = tokio::join!(all(second), said);
        assert!(heard.unwrap() == content);
        second.write_all(b"answer").await.unwrap();
        second.shutdown().await.unwrap();
        assert_eq!(all(first).await.unwrap(), b"answer");
        idle(&forwarding).await;
    }
    let counts = forwarding.counts();
    assert_eq!((counts.total, counts.failed), (2, 0));
}

#[tokio::test]
async fn resets_are_passed_on_both_ways_without_the_agent() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (_agent, card, port) = listeners().await;
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(port))).await;
    for of_server in [true, false] {
        let (client, accepted) = tokio::join!(TcpStream::connect(address), card.accept());
        let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap().0);
        client.write_all(b"x").await.unwrap();
        accepted.read_exact(&mut [0]).await.unwrap();
        let (dropped, mut left) = match of_server {
            true => (accepted, client),
            false => (client, accepted),
        };
        dropped.set_zero_linger().unwrap();
        drop(dropped);
        let error = all(&mut left).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    idle(&forwarding).await;
    assert_eq!(forwarding.counts().failed, 1);
    // And so are those of a handle that is dropped.
    let (client, accepted) = tokio::join!(TcpStream::connect(address), card.accept());
    let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap().0);
    client.write_all(b"x").await.unwrap();
    accepted.read_exact(&mut [0]).await.unwrap();
    drop(forwarding);
    for left in [&mut client, &mut accepted] {
        let error = all(left).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

/// Whether the next connection reaches the agent's listener.
async fn reaches_the_agent(address: SocketAddr, agent: &TcpListener, card: &TcpListener) -> bool {
    let _client = TcpStream::connect(address).await.unwrap();
    let reached = async {
        tokio::select! {
            agent = agent.accept() => agent.map(|_| true).unwrap(),
            card = card.accept() => card.map(|_| false).unwrap(),
        }
    };
    timeout(LONG, reached).await.unwrap()
}

#[tokio::test]
async fn the_agent_is_there_for_what_the_card_does_not_reach() {
    // Refused: whoever listens on the card later is reached by it.
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (agent, card, port) = listeners().await;
    drop(card);
    let (_forwarding, address) = forward(&sandbox, Forward::tcp(to(port))).await;
    let elsewhere = TcpListener::bind((CARD, 0)).await.unwrap();
    assert!(reaches_the_agent(address, &agent, &elsewhere).await);
    let card = TcpListener::bind((CARD, port)).await.unwrap();
    assert!(!reaches_the_agent(address, &agent, &card).await);

    // No answer: it is not waited for again so soon.
    let world = World::new("silent-card");
    let sandbox = world.boot().await;
    let (agent, card, port) = listeners().await;
    drop(card);
    let (_forwarding, address) = forward(&sandbox, Forward::tcp(to(port))).await;
    assert!(reaches_the_agent(address, &agent, &elsewhere).await);
    let card = TcpListener::bind((CARD, port)).await.unwrap();
    assert!(reaches_the_agent(address, &agent, &card).await);
}

#[tokio::test]
async fn the_agent_is_used_where_the_caller_or_the_vm_wants_it() {
    let (agent, card, port) = listeners().await;
    // An address that was given is kept to.
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let options = ForwardOptions::new().guest_address(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let forwards = [Forward::tcp(to(port))];
    let forwarding = sandbox.port_forward(&forwards, options).await.unwrap();
    let address = forwarding.bindings()[0].address;
    assert!(reaches_the_agent(address, &agent, &card).await);
    // A limit is for what the guest does.
    let mut limit = RateLimit::default();
    limit.bytes_per_second = Some(1 << 20);
    let limited = |builder: SandboxBuilder| builder.network_rate(limit);
    // And where there is no card, it leads nowhere.
    let without = |builder: SandboxBuilder| builder.network(Network::None);
    let kinds: [&dyn Fn(SandboxBuilder) -> SandboxBuilder; 2] = [&limited, &without];
    for kind in kinds {
        let world = World::new("normal");
        let sandbox = kind(world.builder()).boot().await.unwrap();
        let (_forwarding, address) = forward(&sandbox, Forward::tcp(to(port))).await;
        assert!(reaches_the_agent(address, &agent, &card).await);
    }
}

/// Waits until nothing is under way.
async fn idle(forwarding: &PortForwarding) {
    let idle = async {
        while forwarding.counts().active > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, idle).await.unwrap();
}

#[tokio::test]
async fn much_goes_both_ways_at_once() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (server, port) = listener().await;
    let (_forwarding, address) = forward(&sandbox, Forward::tcp(to(port))).await;
    let echo = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap()
    });
    let content: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = client.split();
    let mut back = Vec::new();
    let sent = async {
        writer.write_all(&content).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let both = async { tokio::join!(reader.read_to_end(&mut back), sent) };
    timeout(LONG, both).await.unwrap().0.unwrap();
    assert!(back == content);
    assert_eq!(echo.await.unwrap(), 8_000_000);
}

#[tokio::test]
async fn a_hundred_connections_at_once_are_a_hundred_connections() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (server, port) = listener().await;
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(port))).await;
    let serving = tokio::spawn(async move {
        let mut all = Vec::new();
        for _ in 0..100 {
            all.push(server.accept().await.unwrap().0);
        }
        // Nobody is served before all are there.
        for stream in &mut all {
            let mut number = [0; 4];
            stream.read_exact(&mut number).await.unwrap();
            stream.write_all(&number).await.unwrap();
        }
    });
    let clients: Vec<_> = (0..100_u32)
        .map(|number| {
            tokio::spawn(async move {
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(&number.to_le_bytes()).await.unwrap();
                assert_eq!(all(&mut client).await.unwrap(), number.to_le_bytes());
            })
        })
        .collect();
    for client in clients {
        timeout(LONG, client).await.unwrap().unwrap();
    }
    serving.await.unwrap();
    idle(&forwarding).await;
    assert_eq!(forwarding.counts().total, 100);
    assert_eq!(forwarding.counts().failed, 0);
}

#[tokio::test]
async fn a_port_on_which_nobody_listens_resets_the_client_and_is_told() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (server, port) = listener().await;
    drop(server);
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(port))).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let error = all(&mut client).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    idle(&forwarding).await;
    assert_eq!(forwarding.counts().failed, 1);
    let errors = forwarding.take_errors();
    assert!(
        matches!(
            errors[0].error,
            Error::Forward {
                kind: ForwardFailureKind::Refused,
                errno: 111,
                ..
            }
        ),
        "{}",
        errors[0]
    );
    assert_eq!(errors[0].client, Some(client.local_addr().unwrap()));
    let text = format!("127.0.0.1:{port} in the guest (tcp): connect: Connection refused");
    assert!(errors[0].to_string().ends_with(&text), "{}", errors[0]);
    assert!(forwarding.take_errors().is_empty());
}

#[tokio::test]
async fn resets_are_passed_on_both_ways() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (server, port) = listener().await;
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(port))).await;
    for of_server in [true, false] {
        let (client, accepted) = tokio::join!(TcpStream::connect(address), server.accept());
        let (mut client, mut accepted) = (client.unwrap(), accepted.unwrap().0);
        client.write_all(b"x").await.unwrap();
        accepted.read_exact(&mut [0]).await.unwrap();
        let (dropped, mut left) = match of_server {
            true => (accepted, client),
            false => (client, accepted),
        };
        dropped.set_zero_linger().unwrap();
        drop(dropped);
        let error = all(&mut left).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    idle(&forwarding).await;
    // What a client does is its own affair.
    assert_eq!(forwarding.counts().failed, 1);
    assert_eq!(forwarding.take_errors().len(), 1);
}

#[tokio::test]
async fn connections_over_the_limit_wait_and_those_of_a_dropped_handle_are_reset() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (server, port) = listener().await;
    let options = ForwardOptions::new().connections(1);
    let forwards = [Forward::tcp(to(port))];
    let forwarding = sandbox.port_forward(&forwards, options).await.unwrap();
    let address = forwarding.bindings()[0].address;
    let mut first = TcpStream::connect(address).await.unwrap();
    let (mut accepted, _) = server.accept().await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(b"second").await.unwrap();
    accepted.write_all(b"first").await.unwrap();
    first.read_exact(&mut [0; 5]).await.unwrap();
    assert_eq!(forwarding.counts().total, 1);
    drop(accepted);
    assert_eq!(all(&mut first).await.unwrap(), b"");
    drop(first);
    let (mut accepted, _) = timeout(LONG, server.accept()).await.unwrap().unwrap();
    accepted.read_exact(&mut [0; 6]).await.unwrap();

    drop(forwarding);
    let error = all(&mut second).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = all(&mut accepted).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    timeout(LONG, refused).await.unwrap();
}

#[tokio::test]
async fn datagrams_find_their_way_back_to_each_client() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port();
    let options = ForwardOptions::new().udp_idle(Duration::from_millis(300));
    let forwards = [Forward::udp(to(port))];
    let forwarding = sandbox.port_forward(&forwards, options).await.unwrap();
    let address = forwarding.bindings()[0].address;
    let echo = tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        loop {
            let (n, from) = server.recv_from(&mut buffer).await.unwrap();
            buffer[..n].reverse();
            server.send_to(&buffer[..n], from).await.unwrap();
        }
    });
    let mut buffer = vec![0; 65_536];
    let mut clients = Vec::new();
    for number in 0..3_u8 {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        client.connect(address).await.unwrap();
        for length in [0, 2, 60_000] {
            let mut datagram = vec![number; length];
            client.send(&datagram).await.unwrap();
            let n = timeout(LONG, client.recv(&mut buffer))
                .await
                .unwrap()
                .unwrap();
            datagram.reverse();
            assert!(buffer[..n] == datagram);
        }
        clients.push(client);
    }
    assert_eq!(forwarding.counts().total, 3);
    // Clients that say nothing are forgotten, and welcome again.
    idle(&forwarding).await;
    clients[0].send(b"ab").await.unwrap();
    let n = timeout(LONG, clients[0].recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&buffer[..n], b"ba");
    assert_eq!(forwarding.counts().total, 4);
    assert_eq!(forwarding.counts().failed, 0);
    echo.abort();
}

#[tokio::test]
async fn several_addresses_and_ports_are_listened_on_and_told() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let addresses = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ];
    let mut options = ForwardOptions::new();
    for address in addresses.iter().chain(&addresses) {
        options = options.address(*address);
    }
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let local_port = free.local_addr().unwrap().port();
    drop(free);
    let ports = PortForward {
        local_port,
        remote_port: 80,
    };
    let forwards = [Forward::tcp(ports), Forward::udp(ports)];
    let forwarding = sandbox.port_forward(&forwards, options).await.unwrap();
    let told: Vec<_> = forwarding
        .bindings()
        .iter()
        .map(|binding| binding.address)
        .collect();
    let expected = addresses.map(|address| SocketAddr::new(address, local_port));
    assert_eq!(told, [expected, expected].concat());
    let api = forwarding.bindings()[0].to_api();
    assert_eq!((api.address.as_str(), api.remote_port), ("0.0.0.0", 80));

    let error = sandbox
        .port_forward(&forwards, ForwardOptions::new())
        .await
        .unwrap_err();
    let text = format!("cannot listen on 127.0.0.1:{local_port} (tcp): Address already in use");
    assert!(error.to_string().starts_with(&text), "{error}");
    let elsewhere = ForwardOptions::new().address([192, 0, 2, 1].into());
    let error = sandbox
        .port_forward(&[Forward::tcp(to(80))], elsewhere)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("name an address of this machine"),
        "{error}"
    );
    for (port, connections) in [(0, 1), (80, 0), (80, 257)] {
        let options = ForwardOptions::new().connections(connections);
        let error = sandbox
            .port_forward(&[Forward::tcp(to(port))], options)
            .await;
        assert!(
            matches!(error, Err(Error::InvalidConfig { .. })),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn the_end_of_the_vm_ends_connections_and_a_handle_does_not_keep_it_alive() {
    let world = World::new("normal");
    let sandbox = world.boot().await;
    let (server, port) = listener().await;
    let (forwarding, address) = forward(&sandbox, Forward::tcp(to(port))).await;
    let (client, accepted) = tokio::join!(TcpStream::connect(address), server.accept());
    let (mut client, _accepted) = (client.unwrap(), accepted.unwrap());
    drop(sandbox);
    world.vmm_is_gone().await;
    let error = all(&mut client).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let mut late = TcpStream::connect(address).await.unwrap();
    assert!(all(&mut late).await.is_err());
    idle(&forwarding).await;
    assert_eq!(forwarding.counts().failed, 2);
    let sandbox = world.boot().await;
    sandbox.kill().await;
    let error = sandbox
        .port_forward(&[Forward::tcp(to(80))], ForwardOptions::new())
        .await;
    assert!(matches!(error, Err(Error::VmEnded(_))), "{error:?}");
}
