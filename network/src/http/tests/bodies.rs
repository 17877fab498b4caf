//! Bodies: as they come, as long as they are, and cut off where they were.

use std::io;

use bytes::Bytes;
use http::{request, response};

use super::*;
use crate::host::Host;
use crate::http::{
    BodyEdit, Editor, Later, Refused, RequestContext, RequestEdit, ResponseEdit, State, Transform,
};

/// A server of one connection, to be told step by step what to do.
pub(super) async fn stepwise(world: &World, host: &str) -> tokio::task::JoinHandle<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.lead(host, listener.local_addr().unwrap());
    tokio::spawn(async move { listener.accept().await.unwrap().0 })
}

pub(super) async fn head(stream: &mut TcpStream) -> String {
    within(read_until(stream, "\r\n\r\n"))
        .await
        .unwrap()
        .unwrap()
}

async fn exactly(stream: &mut TcpStream, len: usize) -> String {
    let mut bytes = vec![0; len];
    within(stream.read_exact(&mut bytes)).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn an_event_arrives_before_the_response_ends() {
    let world = World::new(policy(&["api.test"], &[]));
    let server = stepwise(&world, "api.test").await;
    let (mut guest, _) = world.plain(80).await;
    guest
        .write_all(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        .await
        .unwrap();
    let mut server = within(server).await.unwrap();
    head(&mut server).await;
    let answer =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    server.write_all(answer).await.unwrap();
    assert!(head(&mut guest).await.contains("text/event-stream"));
    for event in ["data: one\n\n", "data: two\n\n"] {
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        server.write_all(chunk.as_bytes()).await.unwrap();
        // It is there, and nothing else is: the server waits for us.
        assert_eq!(exactly(&mut guest, chunk.len()).await.to_lowercase(), chunk);
    }
}

#[tokio::test]
async fn a_body_is_not_asked_for_before_the_host_is_there_and_wants_it() {
    let world = World::new(policy(&["api.test"], &[]));
    let (mut guest, _) = world.plain(80).await;
    let request =
        "POST / HTTP/1.1\r\nHost: api.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    // The host is not there.
    let got = ask(&mut guest, request).await;
    assert_eq!(
        (got.status, got.code().as_str()),
        (502, "name_not_resolved")
    );
    // The host does not want it.
    let server = stepwise(&world, "api.test").await;
    let (mut guest, _) = world.plain(80).await;
    guest.write_all(request.as_bytes()).await.unwrap();
    let mut server = within(server).await.unwrap();
    assert!(head(&mut server).await.contains("Expect: 100-continue\r\n"));
    server
        .write_all(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    assert!(head(&mut guest).await.starts_with("HTTP/1.1 417 No\r\n"));
    // The host wants it.
    let server = stepwise(&world, "api.test").await;
    let (mut guest, _) = world.plain(80).await;
    guest.write_all(request.as_bytes()).await.unwrap();
    let mut server = within(server).await.unwrap();
    head(&mut server).await;
    server
        .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(head(&mut guest).await, "HTTP/1.1 100 Continue\r\n\r\n");
    guest.write_all(b"hello").await.unwrap();
    assert_eq!(exactly(&mut server, 5).await, "hello");
    server.write_all(&ok("x")).await.unwrap();
    assert_eq!(super::got(&mut guest).await.status, 200);
}

#[tokio::test]
async fn a_host_that_knows_nothing_of_expectations_gets_the_body_all_the_same() {
    let world = World::new(policy(&["api.test"], &[]));
    let (address, seen) = server(|_| ok("x")).await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    let request =
        "POST / HTTP/1.1\r\nHost: api.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    guest.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(head(&mut guest).await, "HTTP/1.1 100 Continue\r\n\r\n");
    guest.write_all(b"hello").await.unwrap();
    assert_eq!(super::got(&mut guest).await.status, 200);
    assert!(seen.requests()[0].ends_with("\r\n\r\nhello"));
}

#[tokio::test]
async fn a_large_upload_arrives_whole_and_is_not_kept() {
    const LEN: usize = 100 << 20;
    let mut world = World::new(policy(&["api.test"], &[]));
    let server = stepwise(&world, "api.test").await;
    let (guest, _) = world.plain(80).await;
    let (mut read, mut write) = guest.into_split();
    let request = format!(
        "PUT / HTTP/1.1\r\nHost: api.test\r\nExpect: 100-continue\r\nContent-Length: {LEN}\r\n\r\n"
    );
    write.write_all(request.as_bytes()).await.unwrap();
    let mut server = within(server).await.unwrap();
    head(&mut server).await;
    server
        .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        .await
        .unwrap();
    let answer = within(read_until(&mut read, "\r\n\r\n"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, "HTTP/1.1 100 Continue\r\n\r\n");
    let block: Vec<u8> = (0..=255_u8).cycle().take(1 << 20).collect();
    // The host takes nothing: so soon nobody takes anything.
    let mut written = 0;
    while let Ok(len) = timeout(
        Duration::from_millis(300),
        write.write(&block[written % 256..]),
    )
    .await
    {
        written += len.unwrap();
        assert!(written < LEN / 2, "it is kept somewhere");
    }
    let uploading = async {
        while written < LEN {
            let from = written % block.len();
            let most = (LEN - written).min(block.len() - from);
            written += write.write(&block[from..from + most]).await.unwrap();
        }
    };
    let taking = async {
        let mut taken = 0;
        let mut buffer = vec![0; 1 << 16];
        while taken < LEN {
            let len = server.read(&mut buffer).await.unwrap();
            assert_ne!(len, 0);
            for (at, byte) in buffer[..len].iter().enumerate().step_by(251) {
                assert_eq!(usize::from(*byte), (taken + at) % 256);
            }
            taken += len;
        }
        server.write_all(&ok("whole")).await.unwrap();
    };
    within(async { tokio::join!(uploading, taking) }).await;
    assert_eq!(super::got(&mut read).await.body, "whole");
    assert_eq!(world.report().await.sent, LEN as u64);
}

#[tokio::test]
async fn a_response_that_was_cut_off_is_not_taken_for_whole() {
    for (head, is_chunked) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", false),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            true,
        ),
    ] {
        let world = World::new(policy(&["api.test"], &[]));
        let server = stepwise(&world, "api.test").await;
        let (mut guest, served) = world.plain(80).await;
        guest
            .write_all(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
            .await
            .unwrap();
        let mut server = within(server).await.unwrap();
        super::bodies::head(&mut server).await;
        server.write_all(head.as_bytes()).await.unwrap();
        drop(server);
        let (text, _) = rest(&mut guest).await;
        assert!(text.contains("hello"), "{text}");
        assert!(!(is_chunked && text.contains("0\r\n\r\n")), "{text}");
        within(served).await.unwrap().unwrap_err();
    }
}

/// In TLS an end without a word is none: whoever is between could have made it.
#[tokio::test]
async fn a_body_that_ends_with_its_connection_has_to_end_in_order() {
    for is_in_order in [true, false] {
        let world = World::new(policy(&["api.test"], &[]));
        let acceptor = acceptor(&world.servers, "api.test", &["http/1.1"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        world.lead("api.test", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            read_until(&mut stream, "\r\n\r\n").await.unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\n\r\nhello")
                .await
                .unwrap();
            stream.flush().await.unwrap();
            match is_in_order {
                true => stream.shutdown().await.unwrap(),
                false => stream.into_inner().0.shutdown().await.unwrap(),
            }
        });
        let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
        guest
            .write_all(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
            .await
            .unwrap();
        let head = within(read_until(&mut guest, "\r\n\r\n"))
            .await
            .unwrap()
            .unwrap();
        assert!(head.to_lowercase().contains("transfer-encoding: chunked"));
        assert_eq!(
            within(read_until(&mut guest, "hello\r\n"))
                .await
                .unwrap()
                .unwrap(),
            "5\r\nhello\r\n"
        );
        guest
            .write_all(b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
            .await
            .unwrap();
        let (text, ended) = match is_in_order {
            true => (
                within(read_until(&mut guest, "0\r\n\r\n"))
                    .await
                    .unwrap()
                    .unwrap(),
                Ok(()),
            ),
            false => rest(&mut guest).await,
        };
        assert_eq!(text, if is_in_order { "0\r\n\r\n" } else { "" });
        assert_eq!(ended.is_ok(), is_in_order);
    }
}

/// A guest that goes away in the middle of an upload does not leave half of it as a whole.
#[tokio::test]
async fn a_request_that_was_cut_off_is_not_taken_for_whole() {
    let world = World::new(policy(&["api.test"], &[]));
    let server = stepwise(&world, "api.test").await;
    let (mut guest, served) = world.plain(80).await;
    let request =
        "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    guest.write_all(request.as_bytes()).await.unwrap();
    let mut server = within(server).await.unwrap();
    head(&mut server).await;
    assert_eq!(exactly(&mut server, 10).await, "5\r\nhello\r\n");
    drop(guest);
    let (text, _) = rest(&mut server).await;
    assert_eq!(text, "");
    let _ = within(served).await;
}

/// What is dropped leaves no connection to a host.
#[tokio::test]
async fn a_flow_that_is_ended_ends_its_connections() {
    let world = World::new(policy(&["api.test"], &[]));
    let server = stepwise(&world, "api.test").await;
    let (mut guest, served) = world.plain(80).await;
    guest
        .write_all(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        .await
        .unwrap();
    let mut server = within(server).await.unwrap();
    head(&mut server).await;
    served.abort();
    drop(rest(&mut server).await);
    drop(rest(&mut guest).await);
}

/// Puts what it is given in capitals, and says at the end how much it was.
struct Shout(usize);

impl Transform for Shout {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        self.0 += input.len();
        if input.contains(&b'!') {
            return Err(io::ErrorKind::InvalidData.into());
        }
        out.extend(input.to_ascii_uppercase());
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        out.extend(format!(" ({})", self.0).into_bytes());
        Ok(())
    }

    fn scrubbed(&self) -> u64 {
        7
    }
}

/// Changes what it can.
#[derive(Debug)]
struct Loud;

impl Editor for Loud {
    fn needs(&self, _: &Host, _: u16) -> bool {
        true
    }

    fn request<'a>(
        &'a self,
        cx: &'a RequestContext,
        parts: &'a mut request::Parts,
    ) -> Later<'a, Result<RequestEdit, Refused>> {
        Box::pin(async move {
            assert_eq!(
                (cx.host.to_string().as_str(), cx.port, cx.tls),
                ("api.test", 80, false)
            );
            if parts.uri.path() == "/refused" {
                return Err(Denial {
                    code: Code::SecretLeak,
                    host: cx.host.to_string(),
                    rule: None,
                }
                .into());
            }
            let state: State = Box::new(parts.uri.path().to_owned());
            parts.uri = "/changed?x".parse().unwrap();
            // Neither is for it to say.
            parts.headers.insert("host", "evil.test".parse().unwrap());
            parts
                .headers
                .insert("connection", "x-added".parse().unwrap());
            parts.headers.insert("x-put", "1".parse().unwrap());
            Ok(RequestEdit {
                body: Some(Box::new(Shout(0))),
                state: Some(state),
                ..RequestEdit::default()
            })
        })
    }

    fn response<'a>(
        &'a self,
        _: &'a RequestContext,
        state: Option<State>,
        parts: &'a mut response::Parts,
    ) -> Later<'a, Result<ResponseEdit, Refused>> {
        Box::pin(async move {
            let path = state.unwrap().downcast::<String>().unwrap();
            parts.headers.insert("x-path", path.parse().unwrap());
            let body = match path.as_str() {
                "/replaced" => BodyEdit::Replace(Bytes::from_static(b"other")),
                "/kept" => BodyEdit::Keep,
                _ => BodyEdit::Transform(Box::new(Shout(0))),
            };
            Ok(ResponseEdit { body, scrubbed: 1 })
        })
    }
}

#[tokio::test]
async fn an_editor_changes_heads_and_bodies_and_lengths_stay_right() {
    let mut world = World::with_editor(policy(&["api.test"], &[]), Arc::new(Loud));
    let (address, seen) = server(|_| ok("hello")).await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    let post = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\n\r\nabc")
    };
    let got = ask(&mut guest, &post("/kept")).await;
    assert_eq!(got.body, "hello");
    assert!(got.head.contains("x-path: /kept\r\n"));
    let seen = seen.requests()[0].clone();
    assert!(seen.starts_with("POST /changed?x HTTP/1.1\r\n"), "{seen}");
    assert!(
        seen.contains("Host: api.test\r\n") && seen.contains("x-put: 1\r\n"),
        "{seen}"
    );
    assert!(
        !seen.contains("evil") && seen.to_lowercase().contains("content-length: 7\r\n"),
        "{seen}"
    );
    assert!(seen.contains("ABC") && seen.contains(" (3)"), "{seen}");
    let report = world.report().await;
    assert_eq!(
        (report.url.as_str(), report.secrets.scrubbed),
        ("http://api.test/kept", 1)
    );
    let got = ask(&mut guest, &post("/replaced")).await;
    assert_eq!(got.body, "other");
    assert!(got.head.to_lowercase().contains("content-length: 5\r\n"));
    world.report().await;
    let got = ask(&mut guest, &post("/changed")).await;
    assert_eq!(got.body, "5\r\nHELLO\r\n4\r\n (5)\r\n0\r\n\r\n");
    assert_eq!(world.report().await.secrets.scrubbed, 8);
    let got = ask(&mut guest, &post("/refused")).await;
    assert_eq!((got.status, got.code().as_str()), (403, "secret_leak"));
    // A body that an editor breaks off is broken off.
    let broken = post("/kept").replace("abc", "a!c");
    guest.write_all(broken.as_bytes()).await.unwrap();
    let (text, _) = rest(&mut guest).await;
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
}

#[tokio::test]
async fn trailers_of_http1_pass_when_they_are_announced_and_wanted() {
    let world = World::new(policy(&["api.test"], &[]));
    let server = stepwise(&world, "api.test").await;
    let (mut guest, _) = world.plain(80).await;
    let request = "POST / HTTP/1.1\r\nHost: api.test\r\nTE: trailers\r\nTrailer: X-Sum, Host\r\n\
                   Transfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n0\r\nX-Sum: 1\r\nHost: evil.test\r\n\r\n";
    guest.write_all(request.as_bytes()).await.unwrap();
    let mut server = within(server).await.unwrap();
    assert!(head(&mut server).await.contains("TE: trailers\r\n"));
    let body = "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n";
    assert_eq!(exactly(&mut server, body.len()).await.to_lowercase(), body);
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                  5\r\nhello\r\n0\r\nX-Sum: 2\r\n\r\n";
    server.write_all(answer.as_bytes()).await.unwrap();
    assert!(head(&mut guest).await.contains("Trailer: X-Sum\r\n"));
    let body = "5\r\nhello\r\n0\r\nx-sum: 2\r\n\r\n";
    assert_eq!(exactly(&mut guest, body.len()).await.to_lowercase(), body);
}

/// A host need not take all of a body to answer.
#[tokio::test]
async fn an_answer_before_the_end_of_an_upload_arrives() {
    let world = World::new(policy(&["api.test"], &[]));
    let server = stepwise(&world, "api.test").await;
    let (guest, _) = world.plain(80).await;
    let (mut read, mut write) = guest.into_split();
    let head_of_request = format!(
        "POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: {}\r\n\r\n",
        1_u64 << 40
    );
    write.write_all(head_of_request.as_bytes()).await.unwrap();
    let uploading = tokio::spawn(async move {
        let block = vec![0; 1 << 16];
        while write.write_all(&block).await.is_ok() {}
    });
    let mut server = within(server).await.unwrap();
    head(&mut server).await;
    let answer = b"HTTP/1.1 413 Too Much\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig";
    server.write_all(answer).await.unwrap();
    let got = super::got(&mut read).await;
    assert_eq!((got.status, got.body.as_str()), (413, "big"));
    drop(server);
    // Nobody takes the rest.
    within(uploading).await.unwrap();
}
