//! Connections that become another protocol.

use super::*;
use crate::report::Scheme;

pub(super) const WEBSOCKET: &str = "GET /ws HTTP/1.1\r\nHost: api.test\r\nConnection: keep-alive, Upgrade\r\n\
                         Upgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// A server that agrees, and says everything twice.
pub(super) async fn echo(world: &World, answer: &'static str) -> Seen {
    let acceptor = acceptor(&world.servers, "api.test", &["http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.lead("api.test", listener.local_addr().unwrap());
    let seen = Seen::default();
    let of_server = seen.clone();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let head = read_until(&mut stream, "\r\n\r\n").await.unwrap().unwrap();
        of_server.requests.lock().unwrap().push(head);
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        while let Ok(byte) = stream.read_u8().await {
            stream.write_all(&[byte, byte]).await.unwrap();
            stream.flush().await.unwrap();
        }
        let _ = stream.shutdown().await;
    });
    seen
}

#[tokio::test]
async fn websocket_is_relayed_after_the_host_has_agreed() {
    let mut world = World::new(policy(&["api.test"], &[]));
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: y\r\n\r\nfirst";
    let seen = echo(&world, agreed).await;
    let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
    // What looks like a request, and comes before anybody has agreed, is none.
    let early = "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    guest
        .write_all(format!("{WEBSOCKET}{early}").as_bytes())
        .await
        .unwrap();
    let head = within(read_until(&mut guest, "\r\n\r\n"))
        .await
        .unwrap()
        .unwrap();
    assert!(
        head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
        "{head}"
    );
    let lower = head.to_lowercase();
    assert!(lower.contains("connection: upgrade\r\n") && lower.contains("upgrade: websocket\r\n"));
    assert!(head.contains("Sec-WebSocket-Accept: y\r\n"));
    let expected: String = early.chars().flat_map(|c| [c, c]).collect();
    let mut echoed = vec![0; 5 + expected.len()];
    within(guest.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&echoed), format!("first{expected}"));
    guest.write_all(b"\x81\x00\xff").await.unwrap();
    let mut echoed = [0; 6];
    within(guest.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"\x81\x81\x00\x00\xff\xff");
    guest.shutdown().await.unwrap();
    assert_eq!(rest(&mut guest).await.0, "");
    let seen = seen.requests()[0].to_lowercase();
    assert!(seen.contains("connection: upgrade\r\n") && seen.contains("upgrade: websocket\r\n"));
    let report = world.report().await;
    assert_eq!((report.scheme, report.status), (Scheme::Https, 101));
    let sent = early.len() as u64 + 3;
    assert_eq!((report.sent, report.received), (sent, 5 + 2 * sent));
}

/// A host that does not agree answers, and the next request is one.
#[tokio::test]
async fn a_host_may_decline() {
    let world = World::new(policy(&["api.test"], &[]));
    let (address, seen) = server(|_| ok("no")).await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    guest
        .write_all(format!("{WEBSOCKET}{hidden}").as_bytes())
        .await
        .unwrap();
    assert_eq!(got(&mut guest).await.body, "no");
    assert_eq!(got(&mut guest).await.code(), "host_not_allowed");
    assert_eq!(
        ask(&mut guest, "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
            .await
            .status,
        200
    );
    assert_eq!(seen.requests().len(), 2);
}

#[tokio::test]
async fn a_host_that_may_not_be_reached_is_not_upgraded_to() {
    let world = World::new(policy(&["other.test"], &[]));
    let (mut guest, _) = world.plain(80).await;
    assert_eq!(ask(&mut guest, WEBSOCKET).await.code(), "host_not_allowed");
    // The connection goes on as what it was.
    assert_eq!(
        ask(&mut guest, "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
            .await
            .status,
        403
    );
}

/// A host that changes the protocol without having been asked to is not believed.
#[tokio::test]
async fn nothing_is_upgraded_that_was_not_asked_for() {
    for request in [
        "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n".to_owned(),
        WEBSOCKET.replace("websocket", "h2c"),
        WEBSOCKET.replace("websocket", "evil"),
        WEBSOCKET.replace("websocket", "websocket, h2c"),
        WEBSOCKET.replace("keep-alive, Upgrade", "keep-alive"),
        WEBSOCKET.replace("GET", "POST"),
    ] {
        let world = World::new(policy(&["api.test"], &[]));
        let agreed =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let seen = echo(&world, agreed).await;
        let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
        let got = ask(&mut guest, &request).await;
        assert_eq!(
            (got.status, got.code().as_str()),
            (502, "upstream_unreachable"),
            "{request}"
        );
        assert!(
            !seen.requests()[0].to_lowercase().contains("upgrade"),
            "{request}"
        );
    }
}

/// A host that agrees to another protocol than the one that was asked for is not believed.
#[tokio::test]
async fn what_was_agreed_on_is_what_was_asked_for() {
    let world = World::new(policy(&["api.test"], &[]));
    echo(
        &world,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    )
    .await;
    let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
    assert_eq!(ask(&mut guest, WEBSOCKET).await.status, 502);
}

#[tokio::test]
async fn a_websocket_ends_when_its_host_may_not_be_reached_any_more() {
    let mut world = World::new(policy(&["api.test"], &[]));
    let agreed =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    echo(&world, agreed).await;
    let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
    guest.write_all(WEBSOCKET.as_bytes()).await.unwrap();
    within(read_until(&mut guest, "\r\n\r\n"))
        .await
        .unwrap()
        .unwrap();
    world.policy.send_replace(Arc::new(policy(&[], &[])));
    drop(rest(&mut guest).await);
    assert_eq!(world.refused().await, Code::NotAllowed);
}
