//! Requests that could be read in more than one way.

use super::*;

/// What came of bytes that a guest has sent: the status of each response.
async fn sent(world: &World, bytes: &[u8]) -> Vec<u16> {
    let (mut guest, _) = world.plain(80).await;
    guest.write_all(bytes).await.unwrap();
    guest.shutdown().await.unwrap();
    let (text, _) = rest(&mut guest).await;
    text.split("HTTP/1.1 ")
        .skip(1)
        .map(|response| response[..3].parse().unwrap())
        .collect()
}

async fn world() -> (World, Seen) {
    let world = World::new(policy(&["api.test", "other.test"], &[]));
    let (address, seen) = server(|_| ok("x")).await;
    world.lead("api.test", address);
    world.lead("other.test", address);
    (world, seen)
}

#[tokio::test]
async fn what_has_two_framings_or_none_is_refused_and_nothing_of_it_is_sent() {
    let (mut world, seen) = world().await;
    let post = "POST / HTTP/1.1\r\nHost: api.test\r\n";
    for (what, bytes) in [
        (
            "CL.TE",
            format!("{post}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"),
        ),
        (
            "TE.CL",
            format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG"),
        ),
        (
            "two lengths",
            format!("{post}Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ),
        (
            "the same twice",
            format!("{post}Content-Length: 1\r\nContent-Length: 1\r\n\r\na"),
        ),
        ("a list", format!("{post}Content-Length: 1, 1\r\n\r\na")),
        ("plus", format!("{post}Content-Length: +5\r\n\r\nabcde")),
        ("hex", format!("{post}Content-Length: 0x5\r\n\r\nabcde")),
        ("minus", format!("{post}Content-Length: -5\r\n\r\nabcde")),
        (
            "huge",
            format!("{post}Content-Length: 18446744073709551616\r\n\r\na"),
        ),
        ("no number", format!("{post}Content-Length:\r\n\r\na")),
        (
            "xchunked",
            format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "identity",
            format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ),
        (
            "gzip",
            format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "twice",
            format!(
                "{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
        ),
        (
            "a control",
            format!("{post}Transfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n"),
        ),
        (
            "1.0",
            "POST / HTTP/1.0\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
        ),
        (
            "obs-fold",
            format!("{post}X: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        (
            "a folded host",
            "GET / HTTP/1.1\r\nHost: api.test\r\n\t.evil.test\r\n\r\n".to_owned(),
        ),
        (
            "a blank before the colon",
            format!("{post}Content-Length : 5\r\n\r\nabcde"),
        ),
        (
            "a blank in a name",
            format!("{post}Content Length: 5\r\n\r\nabcde"),
        ),
        (
            "line feeds",
            "POST / HTTP/1.1\r\nHost: api.test\nContent-Length: 5\r\n\r\nabcde".to_owned(),
        ),
        ("a line feed at the end", format!("{post}X: y\r\n\n")),
        (
            "a carriage return",
            format!("{post}X: a\rContent-Length: 5\r\n\r\nabcde"),
        ),
        ("a NUL", format!("{post}X: a\0b\r\n\r\n")),
        ("no name", format!("{post}: x\r\n\r\n")),
        ("no colon", format!("{post}Content-Length\r\n\r\n")),
        (
            "a length of WebSocket",
            format!(
                "{post}Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nabcde"
            ),
        ),
    ] {
        assert_eq!(sent(&world, bytes.as_bytes()).await, [400], "{what}");
        let report = world.report().await;
        assert_eq!(report.host, "192.0.2.1:80", "{what}");
        assert_eq!((report.status, report.url.as_str()), (400, ""), "{what}");
        let Outcome::Refused(denial) = report.outcome else {
            panic!("{what} was allowed");
        };
        assert_eq!(denial.code, Code::Ambiguous, "{what}");
    }
    assert_eq!(seen.requests(), [""; 0]);
}

#[tokio::test]
async fn what_does_not_say_whom_it_is_for_is_refused() {
    let (mut world, seen) = world().await;
    let long = format!("{}.test", "a".repeat(300));
    for head in [
        "GET / HTTP/1.1\r\n",
        "GET http://api.test/ HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nHost: api.test\r\nHost: api.test\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n",
        "GET / HTTP/1.1\r\nHost: api.test, other.test\r\n",
        "GET / HTTP/1.1\r\nHost: api.test:443@evil.test\r\n",
        "GET / HTTP/1.1\r\nHost: api.test:\r\n",
        "GET / HTTP/1.1\r\nHost: user@api.test\r\n",
        "GET / HTTP/1.1\r\nHost: api.test#.evil.test\r\n",
        "GET / HTTP/1.1\r\nHost: api.test/\r\n",
        "GET / HTTP/1.1\r\nHost: api%2etest\r\n",
        "GET / HTTP/1.1\r\nHost: 2130706433\r\n",
        "GET / HTTP/1.1\r\nHost: 127.1\r\n",
        "GET http://user@api.test/ HTTP/1.1\r\nHost: api.test\r\n",
        "GET https://api.test/ HTTP/1.1\r\nHost: api.test\r\n",
        "GET http://[/ HTTP/1.1\r\nHost: api.test\r\n",
        "GET api.test HTTP/1.1\r\nHost: api.test\r\n",
        "GET api.test/x HTTP/1.1\r\nHost: api.test\r\n",
        "GET \\x HTTP/1.1\r\nHost: api.test\r\n",
        &format!("GET / HTTP/1.1\r\nHost: {long}\r\n"),
    ] {
        let statuses = sent(&world, format!("{head}\r\n").as_bytes()).await;
        assert_eq!(statuses, [400], "{head}");
        assert_eq!(world.refused().await, Code::Ambiguous, "{head}");
    }
    for head in [
        "GET http://other.test/ HTTP/1.1\r\nHost: api.test\r\n",
        "GET http://api.test/ HTTP/1.1\r\nHost: other.test\r\n",
        "GET http://api.test:81/ HTTP/1.1\r\nHost: api.test\r\n",
        "GET / HTTP/1.1\r\nHost: api.test:22\r\n",
    ] {
        let statuses = sent(&world, format!("{head}\r\n").as_bytes()).await;
        assert_eq!(statuses, [403], "{head}");
        assert_eq!(world.refused().await, Code::HostMismatch, "{head}");
    }
    assert_eq!(seen.requests(), [""; 0]);
    // What says it twice, and the same, is well.
    let head = "GET http://API.test:80/x HTTP/1.1\r\nHost: api.test\r\n\r\n";
    assert_eq!(sent(&world, head.as_bytes()).await, [200]);
    assert_eq!(
        seen.requests(),
        ["GET /x HTTP/1.1\r\nHost: api.test:80\r\n\r\n"]
    );
}

#[tokio::test]
async fn what_is_not_http_is_refused_at_once() {
    let (mut world, seen) = world().await;
    for bytes in [
        b"SSH-2.0-OpenSSH_9.9\r\n".as_slice(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"*1\r\n$4\r\nPING\r\n",
        b"NICK guest\r\nUSER guest 0 * :x\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"\x05\x01\x00",
        b"\x10\x10\x00\x04MQTT",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 80\r\nGET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n",
        b"GET / HTTP/1.1 x\r\n",
        b"GET / HTTP/3.0\r\n\r\n",
    ] {
        // The guest waits for an answer.
        let (mut guest, _) = world.plain(80).await;
        guest.write_all(bytes).await.unwrap();
        let got = got(&mut guest).await;
        assert_eq!((got.status, got.code().as_str()), (400, "unknown_protocol"));
        assert_eq!(rest(&mut guest).await.0, "");
        assert_eq!(world.refused().await, Code::UnknownProtocol);
    }
    assert_eq!(seen.requests(), [""; 0]);
}

#[tokio::test]
async fn what_is_too_long_is_refused() {
    let (world, seen) = world().await;
    let head = "GET / HTTP/1.1\r\nHost: api.test\r\n";
    let headers = "X: y\r\n".repeat(10_000);
    for bytes in [
        format!("{head}X: {}\r\n\r\n", "a".repeat(1 << 20)),
        format!("{head}{headers}\r\n"),
        format!("{head}{}\r\n", "X: y\r\n".repeat(100)),
        format!(
            "GET /{} HTTP/1.1\r\nHost: api.test\r\n\r\n",
            "a".repeat(100_000)
        ),
    ] {
        let (mut guest, _) = world.plain(80).await;
        let (mut read, mut write) = guest.split();
        let writing = async {
            // Nobody need take all of it.
            let _ = write.write_all(bytes.as_bytes()).await;
        };
        let (got, ()) = tokio::join!(got(&mut read), writing);
        assert_eq!(got.status, 431);
    }
    assert_eq!(seen.requests(), [""; 0]);
}

/// Who sends all of it before it listens.
#[tokio::test]
async fn the_answer_to_what_is_refused_is_not_lost_with_the_rest() {
    let (world, seen) = world().await;
    let head = "GET / HTTP/1.1\r\nHost: api.test\r\n";
    for (bytes, status) in [
        (format!("{head}X: {}\r\n\r\n", "a".repeat(3 << 20)), 431),
        (format!("{head}\nX: {}\r\n\r\n", "a".repeat(1 << 20)), 400),
    ] {
        let (mut guest, served) = world.plain(80).await;
        within(guest.write_all(bytes.as_bytes())).await.unwrap();
        assert_eq!(got(&mut guest).await.status, status);
        drop(guest);
        drop(within(served).await);
    }
    assert_eq!(seen.requests(), [""; 0]);
}

#[tokio::test]
async fn chunks_that_are_none_end_the_connection() {
    let (world, seen) = world().await;
    let head = "POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let hidden = "GET /hidden HTTP/1.1\r\nHost: other.test\r\n\r\n";
    for body in [
        "5;ext=\"\r\nabcde\r\n0\r\n\r\n",
        "5;\nabcde\r\n0\r\n\r\n",
        "5\nabcde\r\n0\r\n\r\n",
        "0x5\r\nabcde\r\n0\r\n\r\n",
        "+5\r\nabcde\r\n0\r\n\r\n",
        " 5\r\nabcde\r\n0\r\n\r\n",
        "\r\nabcde\r\n0\r\n\r\n",
        "5\r\nabcdeX\r\n0\r\n\r\n",
        "5\r\nabcde\n0\r\n\r\n",
        "10000000000000005\r\nabcde\r\n0\r\n\r\n",
        "0\r\nX y\r\n\r\n",
        "0\r\n X: y\r\n\r\n",
        "0\r\nX: y\n\r\n",
    ] {
        let (mut guest, served) = world.plain(80).await;
        let bytes = format!("{head}{body}{hidden}");
        guest.write_all(bytes.as_bytes()).await.unwrap();
        let (text, _) = rest(&mut guest).await;
        let is_refused = text.is_empty() || text.starts_with("HTTP/1.1 400 ");
        assert!(is_refused && !text.contains(" 200 "), "{body:?}: {text}");
        drop(within(served).await);
    }
    // What a request was begun with stays a part of one.
    assert!(
        seen.requests()
            .iter()
            .all(|request| !request.contains("hidden"))
    );
}

#[tokio::test]
async fn requests_in_one_segment_are_judged_each_alone() {
    let (mut world, seen) = world().await;
    let bytes = "POST /1 HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n\r\nGET /\
                 GET /2 HTTP/1.1\r\nHost: evil.test\r\n\r\n\
                 POST /3 HTTP/1.1\r\nHost: other.test\r\nTransfer-Encoding: chunked\r\n\r\n\
                 5\r\nGET /\r\n0\r\n\r\n\
                 GET /4 HTTP/1.1\r\nHost: api.test\r\nHost: api.test\r\n\r\n\
                 GET /5 HTTP/1.1\r\nHost: api.test\r\n\r\n";
    assert_eq!(sent(&world, bytes.as_bytes()).await, [200, 403, 200, 400]);
    let lines: Vec<_> = seen
        .requests()
        .iter()
        .map(|text| text[..7].to_owned())
        .collect();
    assert_eq!(lines, ["POST /1", "POST /3"]);
    assert!(seen.requests()[0].ends_with("\r\n\r\nGET /"));
    for allowed in [true, false, true, false] {
        let outcome = world.report().await.outcome;
        assert_eq!(matches!(outcome, Outcome::Allowed(_)), allowed);
    }
}

/// Whatever a guest's bytes come in, what is seen of them is the same.
#[tokio::test]
async fn bytes_may_come_one_by_one() {
    let (world, seen) = world().await;
    let bytes = "\r\nPOST /1 HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n\
                 5\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n\
                 PUT /2 HTTP/1.1\r\nHost: api.test\r\nContent-Length: 3\r\n\r\nabc";
    let (mut guest, _) = world.plain(80).await;
    guest.set_nodelay(true).unwrap();
    for byte in bytes.bytes() {
        guest.write_u8(byte).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(got(&mut guest).await.status, 200);
    assert_eq!(got(&mut guest).await.status, 200);
    let requests = seen.requests();
    assert!(
        requests[0]
            .to_lowercase()
            .contains("transfer-encoding: chunked\r\n")
    );
    assert!(requests[1].ends_with("\r\n\r\nabc"));
}

/// A request that is not there yet is not waited for for ever.
#[tokio::test(start_paused = true)]
async fn a_head_has_to_come_in_time() {
    let world = World::new(policy(&["api.test"], &[]));
    let (mut guest, side) = tokio::io::duplex(1024);
    guest
        .write_all(b"GET / HTTP/1.1\r\nHost: api")
        .await
        .unwrap();
    let destination = SocketAddr::from(([192, 0, 2, 1], 80));
    let began = tokio::time::Instant::now();
    world.proxy.serve_plain(side, destination).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 30);
}

/// Nor is one that may never come.
#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_is_asked_ends() {
    let world = World::new(policy(&["api.test"], &[]));
    let (mut guest, side) = tokio::io::duplex(1024);
    let destination = SocketAddr::from(([192, 0, 2, 1], 80));
    let served = tokio::spawn({
        let proxy = world.proxy();
        async move { proxy.serve_plain(side, destination).await }
    });
    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
    assert_eq!(got.status, 403);
    let began = tokio::time::Instant::now();
    served.await.unwrap().unwrap();
    assert_eq!(began.elapsed().as_secs(), 30);
}
