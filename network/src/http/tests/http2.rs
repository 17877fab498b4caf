//! Requests of HTTP/2.

use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

pub(super) type Sender = http2::SendRequest<Full<bytes::Bytes>>;

/// A connection of HTTP/2 in TLS.
pub(super) async fn http2(world: &World, host: &str) -> Sender {
    let stream = world.tls(host, &["h2"]).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

pub(super) fn get(uri: &str) -> Request<Full<bytes::Bytes>> {
    let mut request = Request::new(Full::default());
    *request.uri_mut() = uri.parse().unwrap();
    *request.version_mut() = Version::HTTP_2;
    request
}

/// A response: its status, and the code of a refusal or the body.
pub(super) async fn ask2(
    sender: &mut Sender,
    request: Request<Full<bytes::Bytes>>,
) -> (u16, String) {
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
pub(super) async fn http2_server(world: &World, host: &str) -> Seen {
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
    assert_eq!(denied, (403, "rule_denied".to_owned()));
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

/// A host that does not take a body holds up nothing but that body.
/// Nobody takes the body of what is refused, and the guest learns why all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_refused_is_told_why() {
    let world = World::new(policy(&["api.test"], &["deny POST api.test"]));
    for _ in 0..20 {
        let mut guest = http2(&world, "api.test").await;
        for len in [1, 100_000, 8 << 20] {
            let mut request = get("https://api.test/");
            *request.method_mut() = Method::POST;
            *request.body_mut() = Full::from(vec![b'x'; len]);
            let answer = ask2(&mut guest, request).await;
            assert_eq!(answer, (403, "rule_denied".to_owned()), "{len}");
        }
    }
}

#[tokio::test]
async fn uploads_do_not_wait_for_each_other() {
    let world = World::new(policy(&["api.test"], &[]));
    tls_server(&world, "api.test", |_| {
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\ntaken".to_vec()
    })
    .await;
    let mut guest = http2(&world, "api.test").await;
    let post = |len: usize| {
        let mut request = get("https://api.test/");
        *request.method_mut() = Method::POST;
        *request.body_mut() = Full::from(vec![b'x'; len]);
        request
    };
    let taken = (200, "taken".to_owned());
    assert_eq!(ask2(&mut guest, post(1)).await, taken);
    let (sender, mut receiver) = mpsc::channel(1);
    *world.proxy.dial.waiting.lock().unwrap() = Some(sender);
    let mut waiting = Vec::new();
    for _ in 0..8 {
        waiting.push(tokio::spawn(guest.send_request(post(64 << 20))));
        within(receiver.recv()).await.unwrap();
    }
    *world.proxy.dial.waiting.lock().unwrap() = None;
    for _ in 0..8 {
        assert_eq!(ask2(&mut guest, post(1_000_000)).await, taken);
    }
    assert!(waiting.iter().all(|request| !request.is_finished()));
}

/// Many at once, on several threads: all are answered, each with its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_are_answered_each_with_its_own() {
    let mut world = World::new(policy(&["api.test"], &[]));
    let seen = http2_server(&world, "api.test").await;
    let guest = http2(&world, "api.test").await;
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..64_usize {
        let mut guest = guest.clone();
        asking.spawn(async move {
            let mut request = get("https://api.test/echo");
            *request.method_mut() = Method::POST;
            let body = number.to_string().repeat(100_000);
            *request.body_mut() = Full::from(body.clone());
            assert!(ask2(&mut guest, request).await == (200, body), "{number}");
        });
    }
    within(asking.join_all()).await;
    assert_eq!(seen.requests().len(), 64);
    assert_eq!(seen.connections(), 1);
    for _ in 0..64 {
        assert_eq!(world.report().await.status, 200);
    }
}

/// What has no body has none, whatever the host sends: nobody has looked at it.
#[tokio::test]
async fn a_response_without_a_body_has_none() {
    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED] {
        let mut world = World::new(policy(&["api.test"], &[]));
        let acceptor = acceptor(&world.servers, "api.test", &["h2"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.lead("api.test", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await;
            let service = service_fn(move |_: Request<Incoming>| async move {
                let mut trailers = http::HeaderMap::new();
                trailers.insert("x-trailer", "s3cr3t".parse().unwrap());
                let body = Full::new(bytes::Bytes::from("s3cr3t"));
                let body = body.with_trailers(async { Some(Ok(trailers)) });
                let mut response = http::Response::new(body);
                *response.status_mut() = status;
                Ok::<_, hyper::Error>(response)
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let io = TokioIo::new(stream.unwrap());
            let _ = builder.serve_connection(io, service).await;
        });
        let mut guest = http2(&world, "api.test").await;
        for _ in 0..2 {
            let response = within(guest.send_request(get("https://api.test/"))).await;
            let response = response.unwrap();
            assert_eq!(response.status(), status);
            let body = within(response.into_body().collect()).await.unwrap();
            assert!(body.trailers().is_none(), "{status}");
            assert_eq!(body.to_bytes(), "", "{status}");
            assert_eq!(world.report().await.received, 0);
        }
    }
}

/// A guest that goes away while its host is connected to has reached nobody.
#[tokio::test]
async fn what_is_given_up_before_there_is_an_answer_is_told_as_that() {
    for protocol in ["http/1.1", "h2", "tls"] {
        let mut world = World::new(policy(&["api.test"], &[]));
        let (sender, mut waits) = mpsc::channel(1);
        *world.proxy.dial.waiting.lock().unwrap() = Some(sender);
        let (guest, served) = world.encrypted(protocol == "tls").await;
        let authority = Arc::clone(&world.proxy.authority);
        let asked = tokio::spawn(async move {
            let mut stream = connect(guest, "api.test", &[protocol], &authority).await?;
            if protocol == "h2" {
                let (mut sender, connection) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                        .await
                        .unwrap();
                tokio::spawn(connection);
                drop(sender.send_request(get("https://api.test/")).await);
                return Ok(());
            }
            let request = "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n";
            stream.write_all(request.as_bytes()).await?;
            stream.read_u8().await.map(drop)
        });
        within(waits.recv()).await.unwrap();
        asked.abort();
        if protocol != "h2" {
            served.abort();
        }
        let report = world.report().await;
        let Outcome::Refused(denial) = report.outcome else {
            panic!("{protocol}: it was allowed");
        };
        assert_eq!(
            (denial.code, denial.host.as_str()),
            (Code::GivenUp, "api.test:443")
        );
    }
}
