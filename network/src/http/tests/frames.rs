//! HTTP/2 as nobody sends it who means well.

use super::*;

/// A connection in TLS that takes frames.
struct Raw(tokio_rustls::client::TlsStream<TcpStream>);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl Raw {
    async fn new(world: &World) -> Self {
        let mut stream = world.tls("api.test", &["h2"]).await.unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut raw = Self(stream);
        raw.send(4, 0, 0, b"").await.unwrap();
        raw
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = len[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await?;
        self.0.flush().await
    }

    /// A request with these headers besides those that it needs, and no body.
    async fn request(&mut self, stream: u32, headers: &[(&str, &str)]) -> io::Result<()> {
        let block = block(headers);
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &block)
            .await
    }

    /// The next frame: its kind, its flags, its stream, and what is in it.
    async fn frame(&mut self) -> io::Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        within(self.0.read_exact(&mut head)).await?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; len as usize];
        within(self.0.read_exact(&mut payload)).await?;
        Ok((head[3], head[4], stream, payload))
    }

    /// The next frame of this stream.
    async fn frame_of(&mut self, of: u32) -> (u8, u8, u32, Vec<u8>) {
        loop {
            let frame = self.frame().await.unwrap();
            if frame.2 == of && frame.0 != WINDOW_UPDATE {
                return frame;
            }
        }
    }

    /// The answer to a refused request: its code, and whether the stream ends with it.
    async fn denied(&mut self, of: u32) -> (String, bool) {
        let mut told = Vec::new();
        loop {
            let (kind, flags, _, data) = self.frame_of(of).await;
            assert_ne!(kind, RESET);
            if kind == DATA {
                told.extend(data);
            }
            if let Ok(told) = serde_json::from_slice::<serde_json::Value>(&told) {
                let code = told["code"].as_str().unwrap().to_owned();
                return (code, flags & END_STREAM != 0);
            }
        }
    }

    /// How a stream ended: with a response, a reset, or with its connection.
    async fn end(&mut self, of: u32) -> &'static str {
        loop {
            match self.frame().await {
                Ok((HEADERS, _, stream, _)) if stream == of => return "response",
                Ok((RESET, _, stream, _)) if stream == of => return "reset",
                Ok((GOAWAY, ..)) | Err(_) => return "gone",
                Ok(_) => {}
            }
        }
    }
}

/// Headers in HPACK, all of them literal.
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let needed = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/"),
        (":authority", "api.test"),
    ];
    let is_given = |name: &str| headers.iter().any(|(of, _)| *of == name);
    let needed = needed.iter().filter(|(name, _)| !is_given(name));
    let (pseudo, plain): (Vec<_>, Vec<_>) =
        headers.iter().partition(|(name, _)| name.starts_with(':'));
    for (name, value) in needed.chain(pseudo).chain(plain) {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

async fn world() -> (World, Seen) {
    let world = World::new(policy(&["api.test"], &[]));
    let seen = tls_server(&world, "api.test", |_| ok("x")).await;
    (world, seen)
}

#[tokio::test]
async fn what_http1_would_read_otherwise_is_not_translated() {
    let (good, seen) = world().await;
    let mut raw = Raw::new(&good).await;
    raw.request(1, &[("x-a", "1")]).await.unwrap();
    assert_eq!(raw.end(1).await, "response");
    assert_eq!(seen.requests().len(), 1);
    for (what, headers) in [
        (
            "a chunked body",
            [("transfer-encoding", "chunked")].as_slice(),
        ),
        ("a header of the connection", &[("connection", "x-a")]),
        ("an upgrade", &[("upgrade", "websocket")]),
        ("capitals", &[("X-Capitals", "1")]),
        ("a line in a value", &[("x-a", "1\r\nhost: evil.test")]),
        ("a NUL", &[("x-a", "1\x002")]),
        ("a line in a name", &[("x-a\r\nb", "1")]),
        (
            "a line in a path",
            &[(":path", "/ HTTP/1.1\r\nhost: evil.test\r\n\r\n")],
        ),
        ("a blank in a path", &[(":path", "/a b")]),
        ("a blank in a method", &[(":method", "GET /x HTTP/1.1")]),
        ("no path", &[(":path", "")]),
        ("a pseudo-header that is none", &[(":protocol-x", "1")]),
        ("two paths", &[(":path", "/a"), (":path", "/b")]),
        ("a length of nothing", &[("content-length", "5")]),
        (
            "two lengths",
            &[("content-length", "0"), ("content-length", "5")],
        ),
        ("no length", &[("content-length", "x")]),
        ("te", &[("te", "gzip")]),
    ] {
        let (world, seen) = world().await;
        let mut raw = Raw::new(&world).await;
        raw.request(1, headers).await.unwrap();
        let end = raw.end(1).await;
        assert_ne!(end, "response", "{what}");
        assert_eq!(seen.requests(), [""; 0], "{what}");
    }
}

#[tokio::test]
async fn a_request_that_says_two_hosts_is_refused() {
    let (mut world, seen) = world().await;
    for headers in [
        [(":authority", "evil.test"), ("host", "api.test")].as_slice(),
        &[("host", "evil.test")],
        &[("host", "api.test"), ("host", "api.test")],
        &[(":authority", "api.test:444")],
        &[(":authority", "user@api.test")],
        &[(":authority", ""), ("host", "")],
        &[(":method", "CONNECT"), (":protocol", "websocket")],
    ] {
        let mut raw = Raw::new(&world).await;
        raw.request(1, headers).await.unwrap();
        let end = raw.end(1).await;
        if end == "response" {
            let code = world.refused().await;
            assert!(code.is_policy(), "{headers:?} {code}");
        }
    }
    assert_eq!(seen.requests(), [""; 0]);
}

/// What ends early is not passed on as a whole, and what comes too much not at all.
#[tokio::test]
async fn a_body_is_as_long_as_it_says() {
    for body in ["abc", "abcdefgh"] {
        let (world, seen) = world().await;
        let mut raw = Raw::new(&world).await;
        let headers = block(&[(":method", "POST"), ("content-length", "5")]);
        raw.send(HEADERS, END_HEADERS, 1, &headers).await.unwrap();
        raw.send(0, END_STREAM, 1, body.as_bytes()).await.unwrap();
        assert_ne!(raw.end(1).await, "response", "{body}");
        assert_eq!(seen.requests(), [""; 0], "{body}");
    }
}

#[tokio::test]
async fn floods_end_the_connection() {
    // Streams that are begun and reset at once.
    let (world, seen) = world().await;
    let mut raw = Raw::new(&world).await;
    let flood = async {
        for stream in (1..20_001).step_by(2) {
            raw.request(stream, &[]).await?;
            raw.send(RESET, 0, stream, &8_u32.to_be_bytes()).await?;
        }
        Ok::<_, io::Error>(())
    };
    let flooded = within(flood).await;
    assert!(flooded.is_err() || raw.end(u32::MAX).await == "gone");
    assert!(seen.connections() < 1000, "{}", seen.connections());
    // Headers that never end.
    let mut raw = Raw::new(&world).await;
    raw.send(HEADERS, END_STREAM, 1, &block(&[])).await.unwrap();
    let flood = async {
        let more = block(&[("x-a", &"a".repeat(100))]);
        for _ in 0..100_000 {
            raw.send(9, 0, 1, &more).await?;
        }
        Ok::<_, io::Error>(())
    };
    within(flood).await.unwrap_err();
}

/// Some clients take a stream that is reset for a broken one, though its answer is there.
#[tokio::test]
async fn the_answer_to_an_upload_that_is_refused_ends_after_it() {
    let world = World::new(policy(&["api.test"], &["deny POST api.test"]));
    let mut raw = Raw::new(&world).await;
    let head = block(&[(":method", "POST")]);
    let denied = |is_ended| ("rule_denied".to_owned(), is_ended);
    raw.send(HEADERS, END_HEADERS, 1, &head).await.unwrap();
    assert_eq!(raw.denied(1).await, denied(false));
    raw.send(DATA, 0, 1, b"x=").await.unwrap();
    raw.send(DATA, END_STREAM, 1, b"1").await.unwrap();
    let (kind, flags, _, payload) = raw.frame_of(1).await;
    assert_eq!((kind, flags, payload), (DATA, END_STREAM, Vec::new()));
    // One that never ends is cut off, and told of before.
    raw.send(HEADERS, END_HEADERS, 3, &head).await.unwrap();
    assert_eq!(raw.denied(3).await, denied(false));
    let (kind, flags, ..) = raw.frame_of(3).await;
    assert_eq!((kind, flags), (DATA, END_STREAM));
    let (kind, _, _, reason) = raw.frame_of(3).await;
    assert_eq!(
        (kind, reason),
        (RESET, vec![0; 4]),
        "reset, but for no error"
    );
    // There is nothing to wait for.
    raw.send(HEADERS, END_HEADERS | END_STREAM, 5, &head)
        .await
        .unwrap();
    assert_eq!(raw.denied(5).await, denied(true));
}
