//! Requests in TLS, of HTTP/1 and 2, and TLS that is passed on.

use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;
use crate::report::Scheme;
use crate::tls::hello::WITHIN;

type Sender = http2::SendRequest<Full<bytes::Bytes>>;

/// A connection of HTTP/2 in TLS.
async fn http2(world: &World, host: &str) -> Sender {
    let stream = world.tls(host, &["h2"]).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn get(uri: &str) -> Request<Full<bytes::Bytes>> {
    let mut request = Request::new(Full::default());
    *request.uri_mut() = uri.parse().unwrap();
    *request.version_mut() = Version::HTTP_2;
    request
}

/// A response: its status, and the code of a refusal or the body.
async fn ask2(sender: &mut Sender, request: Request<Full<bytes::Bytes>>) -> (u16, String) {
    within(sender.ready()).await.unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    let status = response.status().as_u16();
    let denied = response.headers().get("x-flashpan-denied").cloned();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let Some(code) = denied else {
        return (status, String::from_utf8_lossy(&body).into_owned());
    };
    let told: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(told["code"].as_str(), code.to_str().ok());
    (status, code.to_str().unwrap().to_owned())
}

/// A server of HTTP/2 that tells what it got.
async fn http2_server(world: &World, host: &str) -> Seen {
    let acceptor = acceptor(&world.servers, host, &["h2"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.lead(host, listener.local_addr().unwrap());
    let seen = Seen::default();
    let of_server = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            of_server.connections.fetch_add(1, Ordering::Relaxed);
            let (seen, acceptor) = (of_server.clone(), acceptor.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(move |request: Request<Incoming>| {
                    let text = format!(
                        "{} {} {:?}",
                        request.method(),
                        request.uri(),
                        request.headers()
                    );
                    seen.requests.lock().unwrap().push(text);
                    async move {
                        let body = request.into_body().collect().await?;
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        trailers.insert("authorization", "x".parse().unwrap());
                        let sent = body.trailers().map_or(0, http::HeaderMap::len);
                        trailers.insert("sent", sent.into());
                        let body =
                            Full::new(body.to_bytes()).with_trailers(async { Some(Ok(trailers)) });
                        Ok::<_, hyper::Error>(http::Response::new(body))
                    }
                });
                let io = TokioIo::new(stream);
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(io, service).await;
            });
        }
    });
    seen
}

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
    let got = ask(&mut guest, "GET /x/y HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    assert_eq!((got.status, got.body.as_str()), (200, "hi"));
    let report = world.report().await;
    assert_eq!(
        (report.scheme, report.url.as_str()),
        (Scheme::Https, "https://api.test/x/y")
    );
    let got = ask(&mut guest, "POST /x/y HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    assert_eq!((got.status, got.code().as_str()), (403, "host_denied"));
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
async fn a_stream_of_http2_that_is_refused_leaves_the_others_alone() {
    let world = World::new(policy(
        &["api.test", "other.test"],
        &["deny GET api.test/no"],
    ));
    let seen = http2_server(&world, "api.test").await;
    let mut guest = http2(&world, "api.test").await;
    let mut post = get("https://api.test/echo");
    *post.method_mut() = Method::POST;
    *post.body_mut() = Full::from("body");
    let mut second = guest.clone();
    let (allowed, denied) = tokio::join!(
        ask2(&mut guest, post),
        ask2(&mut second, get("https://api.test/no")),
    );
    assert_eq!(allowed, (200, "body".to_owned()));
    assert_eq!(denied, (403, "host_denied".to_owned()));
    // Another host on the same connection, whether it may be reached or not.
    for host in ["other.test", "evil.test", "api.test:444"] {
        let answer = ask2(&mut guest, get(&format!("https://{host}/"))).await;
        assert_eq!(answer, (421, "host_mismatch".to_owned()), "{host}");
    }
    let mut two = get("https://api.test/");
    two.headers_mut()
        .insert("host", "evil.test".parse().unwrap());
    assert_eq!(
        ask2(&mut guest, two).await,
        (421, "host_mismatch".to_owned())
    );
    let mut connect = get("https://api.test/");
    *connect.method_mut() = Method::CONNECT;
    *connect.uri_mut() = "evil.test:443".parse().unwrap();
    assert_eq!(
        ask2(&mut guest, connect).await,
        (405, "host_denied".to_owned())
    );
    assert_eq!(ask2(&mut guest, get("https://api.test/last")).await.0, 200);
    let requests = seen.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(
        requests[1].starts_with("GET https://api.test/last {}"),
        "{requests:?}"
    );
    assert_eq!(seen.connections(), 1, "all of them on one connection");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let world = World::new(policy(&["api.test"], &[]));
    http2_server(&world, "api.test").await;
    let stream = world.tls("api.test", &["h2"]).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-checksum", "1".parse().unwrap());
    trailers.insert("host", "evil.test".parse().unwrap());
    let body = Full::new(bytes::Bytes::from("call"));
    let body = body.with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut request = Request::new(body);
    *request.uri_mut() = "https://api.test/pkg.Service/Call".parse().unwrap();
    *request.method_mut() = Method::POST;
    request
        .headers_mut()
        .insert("te", "trailers".parse().unwrap());
    let response = within(sender.send_request(request)).await.unwrap();
    let body = within(response.into_body().collect()).await.unwrap();
    let trailers = body.trailers().unwrap().clone();
    assert_eq!(body.to_bytes(), "call");
    assert_eq!(trailers["grpc-status"], "0");
    // What has no place there did not pass, in either direction.
    assert_eq!(trailers["sent"], "1");
    assert!(!trailers.contains_key("authorization"));
}

/// Streams of HTTP/2 to a server that has HTTP/1 alone do not wait for each other.
#[tokio::test]
async fn a_server_of_http1_serves_guests_of_http2() {
    let world = World::new(policy(&["api.test"], &[]));
    let seen = tls_server(&world, "api.test", |request| {
        match request.contains("/slow") {
            // More is to come.
            true => b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nslow".to_vec(),
            false => ok("fast"),
        }
    })
    .await;
    let mut guest = http2(&world, "api.test").await;
    let slow = within(guest.send_request(get("https://api.test/slow")))
        .await
        .unwrap();
    assert_eq!(slow.status(), StatusCode::OK);
    for _ in 0..3 {
        let answer = ask2(&mut guest, get("https://api.test/fast")).await;
        assert_eq!(answer, (200, "fast".to_owned()));
    }
    assert!(
        seen.requests()[0]
            .to_lowercase()
            .contains("host: api.test\r\n")
    );
    assert_eq!(seen.connections(), 2, "one is used again");
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
    assert_eq!(got.code(), "host_denied");
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
    let clients = Authority::new().unwrap();
    // Any certificate with its key will do.
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["client.test".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    let pem = |kind: &str, der: &[u8]| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
    };
    drop(clients);
    let client = crate::tls::ClientCertificate::from_pem(
        vec!["api.test".parse().unwrap()],
        pem("CERTIFICATE", certificate.der()).as_bytes(),
        pem("PRIVATE KEY", &key.serialize_der()).as_bytes(),
    )
    .unwrap();
    let trusted = world.servers.pem().as_bytes();
    let upstream = Upstream::with_roots(RootCertStore::empty(), trusted, vec![client]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
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
