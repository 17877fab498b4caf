//! What was allowed, and is not any more.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_rustls::server::TlsStream;

use super::http2::{ask2, get, http2};
use super::upgrades::WEBSOCKET;
use super::*;

/// A connection to a server, as the server has it.
async fn accept(world: &World, host: &str) -> (TcpListener, TlsAcceptor) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.lead(host, listener.local_addr().unwrap());
    (listener, acceptor(&world.servers, host, &["http/1.1"]))
}

async fn arrived(listener: &TcpListener, acceptor: &TlsAcceptor) -> TlsStream<TcpStream> {
    let (stream, _) = within(listener.accept()).await.unwrap();
    within(acceptor.accept(stream)).await.unwrap()
}

/// Why what is under way may not be any more, and with what code it is told.
const CHANGES: [(&str, Code); 3] = [
    ("", Code::NotAllowed),
    ("rule", Code::RuleDenied),
    ("address", Code::Denied),
];

fn change(world: &World, what: &str) {
    let mut now = Policy::clone(&world.policy.borrow());
    match what {
        "rule" => now.rules = vec!["deny GET,POST api.test".parse().unwrap()],
        "address" => now.deny = vec!["127.0.0.0/8".parse().unwrap()],
        _ => now.allow.clear(),
    }
    world.policy.send_replace(Arc::new(now));
}

/// What does not concern a request does nothing to it.
fn change_another(world: &World) {
    let mut now = Policy::clone(&world.policy.borrow());
    now.deny.push("other.test".parse().unwrap());
    world.policy.send_replace(Arc::new(now));
}

async fn is_reset<S: AsyncRead + Unpin>(stream: &mut S) -> bool {
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).await.is_err()
}

#[tokio::test]
async fn a_response_under_way_is_broken_off() {
    for (what, code) in CHANGES {
        let mut world = World::new(policy(&["api.test"], &[]));
        let (listener, acceptor) = accept(&world, "api.test").await;
        let (guest, served) = world.encrypted(false).await;
        let mut guest = connect(guest, "api.test", &["http/1.1"], &world.proxy.authority)
            .await
            .unwrap();
        let request = "GET /x HTTP/1.1\r\nHost: api.test\r\n\r\n";
        guest.write_all(request.as_bytes()).await.unwrap();
        let mut host = arrived(&listener, &acceptor).await;
        within(read_until(&mut host, "\r\n\r\n")).await.unwrap();
        let begin = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfirst";
        host.write_all(begin.as_bytes()).await.unwrap();
        host.flush().await.unwrap();
        within(read_until(&mut guest, "first")).await.unwrap();
        change_another(&world);
        host.write_all(b"second").await.unwrap();
        host.flush().await.unwrap();
        within(read_until(&mut guest, "second")).await.unwrap();
        change(&world, what);
        // Neither side takes it for an end in order.
        assert!(is_reset(&mut host).await, "{what}");
        assert!(within(served).await.unwrap().is_err(), "{what}");
        assert!(is_reset(&mut guest).await, "{what}");
        assert_eq!(world.refused().await, code, "{what}");
    }
}

/// A guest that takes nothing more of a response does not keep it.
#[tokio::test]
async fn a_response_that_nobody_takes_is_broken_off() {
    let mut world = World::new(policy(&["api.test"], &[]));
    let (address, _) = server(|_| ok(&"x".repeat(64 << 20))).await;
    world.lead("api.test", address);
    let (mut guest, served) = world.plain(80).await;
    let request = "GET /x HTTP/1.1\r\nHost: api.test\r\n\r\n";
    guest.write_all(request.as_bytes()).await.unwrap();
    within(read_until(&mut guest, "xxx")).await.unwrap();
    change(&world, "");
    assert!(within(served).await.unwrap().is_err());
    assert_eq!(world.refused().await, Code::NotAllowed);
}

#[tokio::test]
async fn an_upload_under_way_is_broken_off() {
    for (what, code) in CHANGES {
        let mut world = World::new(policy(&["api.test"], &[]));
        let (listener, acceptor) = accept(&world, "api.test").await;
        let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
        let request = "POST /x HTTP/1.1\r\nHost: api.test\r\nContent-Length: 100\r\n\r\nfirst";
        guest.write_all(request.as_bytes()).await.unwrap();
        let mut host = arrived(&listener, &acceptor).await;
        within(read_until(&mut host, "first")).await.unwrap();
        change(&world, what);
        assert!(is_reset(&mut host).await, "{what}");
        // There was no response yet: this is one.
        let got = got(&mut guest).await;
        assert_eq!((got.status, got.code().as_str()), (403, code.as_str()));
        let report = world.report().await;
        assert_eq!((report.status, report.sent), (403, 5));
        assert!(matches!(report.outcome, Outcome::Refused(denial) if denial.code == code));
    }
}

/// Reads the first piece of a body.
async fn first(body: &mut Incoming) -> Option<Bytes> {
    let frame = within(body.frame()).await?.ok()?;
    frame.into_data().ok()
}

#[tokio::test]
async fn a_stream_under_way_is_reset_and_others_are_not() {
    let mut world = World::new(policy(&["api.test"], &[]));
    let (listener, acceptor) = accept(&world, "api.test").await;
    let mut guest = http2(&world, "api.test").await;
    let mut under_way = Vec::new();
    for path in ["one", "two"] {
        let mut sender = guest.clone();
        let request = get(&format!("https://api.test/{path}"));
        let asked = tokio::spawn(async move { sender.send_request(request).await });
        let mut host = arrived(&listener, &acceptor).await;
        within(read_until(&mut host, "\r\n\r\n")).await.unwrap();
        let begin = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst";
        host.write_all(begin.as_bytes()).await.unwrap();
        host.flush().await.unwrap();
        let mut body = within(asked).await.unwrap().unwrap().into_body();
        assert_eq!(first(&mut body).await.unwrap(), "first");
        under_way.push((host, body));
    }
    let (mut two, mut second) = under_way.pop().unwrap();
    let (mut one, mut body) = under_way.pop().unwrap();
    let mut now = Policy::clone(&world.policy.borrow());
    now.rules = vec!["deny GET api.test/one".parse().unwrap()];
    world.policy.send_replace(Arc::new(now));
    assert!(within(body.frame()).await.unwrap().is_err());
    assert!(is_reset(&mut one).await);
    let report = world.report().await;
    assert_eq!(report.url, "https://api.test/one");
    assert!(matches!(report.outcome, Outcome::Refused(denial) if denial.code == Code::RuleDenied));
    two.write_all(b"after").await.unwrap();
    two.flush().await.unwrap();
    assert_eq!(first(&mut second).await.unwrap(), "after");
    assert!(matches!(world.report().await.outcome, Outcome::Allowed(_)));
    let answer = ask2(&mut guest, get("https://api.test/one")).await;
    assert_eq!(answer, (403, "rule_denied".to_owned()));
}

/// A guest that leaves no room for more of a stream does not keep it.
#[tokio::test]
async fn a_stream_that_nobody_takes_is_reset() {
    let mut world = World::new(policy(&["api.test"], &[]));
    tls_server(&world, "api.test", |_| ok(&"x".repeat(64 << 20))).await;
    let mut guest = http2(&world, "api.test").await;
    let response = within(guest.send_request(get("https://api.test/"))).await;
    let mut body = response.unwrap().into_body();
    first(&mut body).await.unwrap();
    change(&world, "");
    assert_eq!(world.refused().await, Code::NotAllowed);
    loop {
        match within(body.frame()).await {
            Some(Ok(_)) => {}
            Some(Err(_)) => break,
            None => panic!("it ended in order"),
        }
    }
}

/// A body that comes piece by piece.
struct Fed(mpsc::Receiver<Bytes>);

impl Body for Fed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0
            .poll_recv(cx)
            .map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

#[tokio::test]
async fn an_upload_of_http2_is_reset_at_the_host_and_answered() {
    for (what, code) in CHANGES {
        let mut world = World::new(policy(&["api.test"], &[]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.lead("api.test", listener.local_addr().unwrap());
        let acceptor = acceptor(&world.servers, "api.test", &["h2"]);
        let (told, mut news) = mpsc::channel(4);
        tokio::spawn(async move {
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await;
            let service = service_fn(move |request: Request<Incoming>| {
                let told = told.clone();
                async move {
                    let mut body = request.into_body();
                    while let Some(frame) = body.frame().await {
                        let is_there = frame.is_ok();
                        told.send(frame.is_ok()).await.unwrap();
                        if !is_there {
                            break;
                        }
                    }
                    Ok::<_, hyper::Error>(http::Response::new(String::new()))
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let io = TokioIo::new(stream.unwrap());
            let _ = builder.serve_connection(io, service).await;
        });
        let stream = world.tls("api.test", &["h2"]).await.unwrap();
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let (feed, fed) = mpsc::channel(4);
        let mut request = Request::new(Fed(fed));
        *request.uri_mut() = "https://api.test/".parse().unwrap();
        *request.method_mut() = Method::POST;
        let asked = tokio::spawn(async move { sender.send_request(request).await });
        feed.send("first".into()).await.unwrap();
        assert_eq!(within(news.recv()).await, Some(true));
        change(&world, what);
        assert_eq!(within(news.recv()).await, Some(false), "{what}");
        let response = within(asked).await.unwrap().unwrap();
        assert_eq!(response.headers()["x-flashpan-denied"], code.as_str());
        drop(response);
        assert_eq!(world.refused().await, code, "{what}");
    }
}

#[tokio::test]
async fn websocket_ends_for_a_rule_or_an_address() {
    for (what, code) in CHANGES {
        let mut world = World::new(policy(&["api.test"], &[]));
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\n\r\nfirst";
        super::upgrades::echo(&world, agreed).await;
        let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
        guest.write_all(WEBSOCKET.as_bytes()).await.unwrap();
        within(read_until(&mut guest, "first")).await.unwrap();
        change_another(&world);
        guest.write_all(b"x").await.unwrap();
        within(read_until(&mut guest, "xx")).await.unwrap();
        change(&world, what);
        assert!(is_reset(&mut guest).await, "{what}");
        assert_eq!(world.refused().await, code, "{what}");
    }
}

/// A connection that waits for the next request is for an address that may be denied.
#[tokio::test]
async fn a_pooled_connection_to_a_denied_address_is_dropped() {
    for alpn in ["http/1.1", "h2"] {
        let world = World::new(policy(&["api.test"], &[]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.lead("api.test", listener.local_addr().unwrap());
        let first = acceptor(&world.servers, "api.test", &[alpn]);
        let (told, mut news) = mpsc::channel(1);
        tokio::spawn(async move {
            let stream = first
                .accept(listener.accept().await.unwrap().0)
                .await
                .unwrap();
            let service = service_fn(async |_: Request<Incoming>| {
                Ok::<_, hyper::Error>(http::Response::new("first".to_owned()))
            });
            let io = TokioIo::new(stream);
            let _ = match alpn {
                "h2" => {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    builder.serve_connection(io, service).await
                }
                _ => {
                    let builder = hyper::server::conn::http1::Builder::new();
                    builder.serve_connection(io, service).await
                }
            };
            told.send(()).await.unwrap();
        });
        let ask =
            async |guest: &mut super::http2::Sender| ask2(guest, get("https://api.test/")).await;
        let mut guest = http2(&world, "api.test").await;
        assert_eq!(ask(&mut guest).await, (200, "first".to_owned()));
        let other = TcpListener::bind("127.0.0.2:0").await.unwrap();
        world.lead("api.test", other.local_addr().unwrap());
        let second = acceptor(&world.servers, "api.test", &["http/1.1"]);
        tokio::spawn(async move {
            let mut host = arrived(&other, &second).await;
            read_until(&mut host, "\r\n\r\n").await.unwrap();
            host.write_all(&ok("second")).await.unwrap();
            host.flush().await.unwrap();
            std::future::pending::<()>().await;
        });
        assert_eq!(ask(&mut guest).await, (200, "first".to_owned()));
        let mut now = Policy::clone(&world.policy.borrow());
        now.deny = vec!["127.0.0.1".parse().unwrap()];
        world.policy.send_replace(Arc::new(now));
        // Nobody has to ask for it to end.
        within(news.recv()).await.unwrap();
        assert_eq!(ask(&mut guest).await, (200, "second".to_owned()));
    }
}

#[tokio::test]
async fn tls_that_is_passed_on_ends_for_an_address() {
    let mut world = World::new(policy(&["api.test"], &[]));
    let (listener, acceptor) = accept(&world, "api.test").await;
    let (guest, served) = world.encrypted(true).await;
    let servers = Arc::clone(&world.servers);
    let (guest, host) = tokio::join!(
        connect(guest, "api.test", &[], &servers),
        arrived(&listener, &acceptor)
    );
    let (mut guest, mut host) = (guest.unwrap(), host);
    guest.write_all(b"x").await.unwrap();
    assert_eq!(within(host.read_u8()).await.unwrap(), b'x');
    change(&world, "address");
    assert!(is_reset(&mut host).await);
    assert!(within(served).await.unwrap().is_err());
    assert_eq!(world.refused().await, Code::Denied);
}
