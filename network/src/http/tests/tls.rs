//! Requests in TLS, and TLS that is passed on.

use super::http2::{ask2, get, http2};
use super::*;
use crate::report::Scheme;
use crate::tls::hello::WITHIN;

#[tokio::test]
async fn http1_in_tls_is_judged_request_by_request() {
    let mut world = World::new(policy(
        &["api.test", "other.test"],
        &["deny POST api.test/x/**"],
    ));
    let seen = tls_server(&world, "api.test", |_| ok("hi")).await;
    let mut guest = world.tls("api.test", &["h2", "http/1.1"]).await;
    // Whoever offers both gets the later one.
    assert_eq!(
        guest.as_ref().unwrap().get_ref().1.alpn_protocol(),
        Some(&b"h2"[..])
    );
    guest = world.tls("api.test", &["http/1.1"]).await;
    let mut guest = guest.unwrap();
    // The first one has asked for nothing.
    assert_eq!(world.refused().await, Code::GivenUp);
    let got = ask(&mut guest, "GET /x/y HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    assert_eq!((got.status, got.body.as_str()), (200, "hi"));
    let report = world.report().await;
    assert_eq!(
        (report.scheme, report.url.as_str()),
        (Scheme::Https, "https://api.test/x/y")
    );
    let got = ask(&mut guest, "POST /x/y HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    assert_eq!((got.status, got.code().as_str()), (403, "rule_denied"));
    assert!(got.body.contains("deny POST api.test/x/**"));
    // Fronting: one name in TLS, another inside.
    for host in ["other.test", "evil.test", "api.test:444", "192.0.2.1"] {
        let got = ask(
            &mut guest,
            &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        )
        .await;
        assert_eq!(
            (got.status, got.code().as_str()),
            (403, "host_mismatch"),
            "{host}"
        );
    }
    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: api.test:443\r\n\r\n").await;
    assert_eq!(got.status, 200);
    assert_eq!(seen.requests().len(), 2);
    assert_eq!(seen.connections(), 1);
}

#[tokio::test]
async fn a_host_that_is_not_allowed_is_told_of_in_http() {
    let mut world = World::new(policy(&["api.test"], &[]));
    let mut guest = world.tls("evil.test", &["http/1.1"]).await.unwrap();
    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
    assert_eq!((got.status, got.code().as_str()), (403, "host_not_allowed"));
    assert_eq!(rest(&mut guest).await.0, "", "it ends with that");
    assert_eq!(world.refused().await, Code::NotAllowed);
    let mut guest = http2(&world, "evil.test").await;
    let answer = ask2(&mut guest, get("https://evil.test/")).await;
    assert_eq!(answer, (403, "host_not_allowed".to_owned()));
    let closed = within(async {
        while guest.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    closed.await;
    // No name, and an address that nothing allows.
    let (guest, _) = world.encrypted(true).await;
    let mut guest = connect(guest, "192.0.2.1", &["http/1.1"], &world.proxy.authority)
        .await
        .unwrap();
    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n").await;
    assert_eq!((got.status, got.code().as_str()), (403, "no_server_name"));
    assert_eq!(world.dialled(), [""; 0]);
}

#[tokio::test]
async fn an_address_that_is_allowed_may_be_connected_to_without_a_name() {
    let world = World::new(policy(&["192.0.2.1"], &[]));
    tls_server(&world, "192.0.2.1", |_| ok("by address")).await;
    let mut guest = world.tls("192.0.2.1", &["http/1.1"]).await.unwrap();
    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n").await;
    assert_eq!((got.status, got.body.as_str()), (200, "by address"));
}

#[tokio::test]
async fn what_need_not_be_opened_is_passed_on() {
    let mut world = World::new(policy(&["api.test"], &[]));
    tls_server(&world, "api.test", |_| ok("own certificate")).await;
    let (guest, served) = world.encrypted(true).await;
    // The guest sees the certificate of the server, and trusts none of ours.
    let mut guest = connect(guest, "api.test", &["http/1.1"], &world.servers)
        .await
        .unwrap();
    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    assert_eq!(got.body, "own certificate");
    guest.shutdown().await.unwrap();
    assert_eq!(rest(&mut guest).await.0, "");
    within(served).await.unwrap().unwrap();
    let report = world.report().await;
    assert_eq!(
        (report.scheme, report.host.as_str()),
        (Scheme::Tls, "api.test:443")
    );
    assert!(report.sent > 200 && report.received > 500, "{report:?}");
}

#[tokio::test]
async fn what_is_passed_on_ends_when_it_may_not_be_any_more() {
    let mut world = World::new(policy(&["api.test"], &[]));
    tls_server(&world, "api.test", |_| ok("x")).await;
    let (guest, served) = world.encrypted(true).await;
    let mut guest = connect(guest, "api.test", &["http/1.1"], &world.servers)
        .await
        .unwrap();
    ask(&mut guest, "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    world
        .policy
        .send_replace(Arc::new(policy(&["b.test"], &[])));
    within(served).await.unwrap().unwrap_err();
    assert_eq!(world.refused().await, Code::NotAllowed);
}

#[tokio::test]
async fn rules_for_requests_have_tls_opened() {
    let world = World::new(policy(&["api.test"], &["deny GET api.test/no"]));
    tls_server(&world, "api.test", |_| ok("x")).await;
    let (guest, _) = world.encrypted(true).await;
    let mut guest = connect(guest, "api.test", &[], &world.proxy.authority)
        .await
        .unwrap();
    let got = ask(&mut guest, "GET /no HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    assert_eq!(got.code(), "rule_denied");
}

#[tokio::test]
async fn a_host_that_cannot_prove_who_it_is_gets_nothing() {
    let mut world = World::new(policy(
        &[
            "api.test",
            "wrong.test",
            "plain.test",
            "gone.test",
            "nowhere.test",
        ],
        &[],
    ));
    // Of an authority that nobody trusts.
    let stranger = Authority::new().unwrap();
    let stranger = acceptor(&stranger, "api.test", &["http/1.1"]);
    let (address, seen) = serve(Some(stranger), Arc::new(|_: &str| ok("x"))).await;
    world.lead("api.test", address);
    // Of another host.
    let other = acceptor(&world.servers, "other.test", &["http/1.1"]);
    let (address, wrong) = serve(Some(other), Arc::new(|_: &str| ok("x"))).await;
    world.lead("wrong.test", address);
    // Of nobody.
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.lead("plain.test", plain.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .unwrap();
        }
    });
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.lead("gone.test", gone.local_addr().unwrap());
    drop(gone);
    for (host, code) in [
        ("api.test", "upstream_certificate"),
        ("wrong.test", "upstream_certificate"),
        ("plain.test", "upstream_unreachable"),
        ("gone.test", "upstream_unreachable"),
        ("nowhere.test", "name_not_resolved"),
    ] {
        let mut guest = world.tls(host, &["http/1.1"]).await.unwrap();
        let request = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello");
        let got = ask(&mut guest, &request).await;
        assert_eq!((got.status, got.code().as_str()), (502, code), "{host}");
        let report = world.report().await;
        assert_eq!((report.status, report.sent), (502, 0));
        let mut guest = http2(&world, host).await;
        let answer = ask2(&mut guest, get(&format!("https://{host}/"))).await;
        assert_eq!(answer, (502, code.to_owned()));
        world.report().await;
    }
    assert_eq!(
        (seen.requests(), wrong.requests()),
        (Vec::new(), Vec::new())
    );
}

#[tokio::test]
async fn a_client_certificate_is_for_its_hosts_alone() {
    let world = World::new(policy(&["api.test", "other.test"], &[]));
    let (client, certificate) = crate::tls::ClientCertificate::made_up(&["api.test"]);
    let trusted = world.servers.pem().as_bytes();
    let upstream = Upstream::with_roots(RootCertStore::empty(), trusted, vec![client]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::new(rustls::crypto::ring::default_provider()),
    );
    let verifier = verifier.allow_unauthenticated().build().unwrap();
    for (host, is_shown) in [("api.test", true), ("other.test", false)] {
        let leaf = world.servers.leaf(&host.parse().unwrap()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ));
        let config = config
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_cert_resolver(Arc::new(crate::tls::Only(leaf)));
        let (near, far) = pair().await;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let host = host.parse().unwrap();
        let (client, server) = tokio::join!(
            upstream.connect(&host, 443, crate::tls::Alpn::Http1, near),
            acceptor.accept(far),
        );
        client.unwrap();
        let server = server.unwrap();
        let shown = server.get_ref().1.peer_certificates();
        assert_eq!(shown.is_some(), is_shown, "{host}");
    }
}

#[tokio::test]
async fn what_is_not_tls_is_refused_at_once() {
    let mut world = World::new(policy(&["api.test"], &[]));
    for bytes in [
        "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
        "SSH-2.0-x\r\n",
        "\x15\x03\x01\0\x02\x02\x28",
    ] {
        let (mut guest, served) = world.encrypted(true).await;
        guest.write_all(bytes.as_bytes()).await.unwrap();
        within(served).await.unwrap().unwrap_err();
        assert_eq!(world.refused().await, Code::UnknownProtocol);
    }
    assert_eq!(world.dialled(), [""; 0]);
}

#[tokio::test]
async fn a_name_that_is_none_or_two_is_refused() {
    let mut world = World::new(policy(&["*.test", "192.0.2.1"], &[]));
    for hello in [
        include_bytes!("../../../../tests/fuzz/corpus/hello/nul").as_slice(),
        include_bytes!("../../../../tests/fuzz/corpus/hello/two-names"),
        include_bytes!("../../../../tests/fuzz/corpus/hello/address"),
    ] {
        let (mut guest, served) = world.encrypted(true).await;
        guest.write_all(hello).await.unwrap();
        within(served).await.unwrap().unwrap_err();
        assert_eq!(world.refused().await, Code::Ambiguous);
    }
    assert_eq!(world.dialled(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_says_whom_it_wants_is_dropped() {
    let mut world = World::new(policy(&["api.test"], &[]));
    let (mut guest, side) = tokio::io::duplex(1024);
    guest.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
    let destination = SocketAddr::from(([192, 0, 2, 1], 443));
    let began = tokio::time::Instant::now();
    let served = world.proxy.serve_tls(side, destination, |_| true).await;
    served.unwrap_err();
    assert_eq!(began.elapsed(), WITHIN);
    assert_eq!(world.refused().await, Code::UnknownProtocol);
}

#[tokio::test]
async fn old_versions_of_tls_are_refused() {
    let world = World::new(policy(&["api.test"], &[]));
    let (mut guest, served) = world.encrypted(false).await;
    // A hello of TLS 1.0, with one suite and a name.
    let name = b"\x00\x00\x00\x0d\x00\x0b\x00\x00\x08api.test";
    let mut body = b"\x03\x01".to_vec();
    body.extend([7; 32]);
    body.extend(b"\x00\x00\x02\x00\x2f\x01\x00\x00\x11");
    body.extend(name);
    let mut hello = vec![22, 3, 1, 0, u8::try_from(body.len() + 4).unwrap(), 1, 0, 0];
    hello.push(u8::try_from(body.len()).unwrap());
    hello.extend(body);
    guest.write_all(&hello).await.unwrap();
    within(served).await.unwrap().unwrap_err();
    // An alert, and nothing else.
    let mut answer = Vec::new();
    let _ = guest.read_to_end(&mut answer).await;
    assert_eq!(answer.first(), Some(&21));
}

#[tokio::test]
async fn an_unread_certificate_of_the_guest_does_not_pass() {
    // A guest that trusts only the server's authority (one that pins) gets nowhere, and it
    // is told of.
    let mut world = World::new(policy(&["api.test"], &[]));
    tls_server(&world, "api.test", |_| ok("x")).await;
    let (guest, served) = world.encrypted(false).await;
    connect(guest, "api.test", &[], &world.servers)
        .await
        .unwrap_err();
    within(served).await.unwrap().unwrap_err();
    let report = world.report().await;
    assert_eq!(
        (report.scheme, report.host.as_str()),
        (Scheme::Tls, "api.test:443")
    );
    assert_eq!(world.dialled(), [""; 0]);
}

/// A hello in a hello may be for another host than the one that can be read.
#[tokio::test]
async fn what_is_hidden_is_not_passed_on() {
    let hello = include_bytes!("../../../../tests/fuzz/corpus/hello/encrypted");
    for (allowed, is_told) in [("front.test", false), ("other.test", true)] {
        let mut world = World::new(policy(&[allowed], &[]));
        tls_server(&world, "front.test", |_| ok("x")).await;
        let (mut guest, _) = world.encrypted(true).await;
        guest.write_all(hello).await.unwrap();
        // We answer, as the host that can be read.
        assert_eq!(within(guest.read_u8()).await.unwrap(), 22);
        drop(guest);
        let code = world.refused().await;
        assert_eq!(code == Code::NotAllowed, is_told);
        assert_eq!(world.dialled(), [""; 0]);
    }
}
