//! Requests in the clear.

use super::*;
use crate::policy::Basis;
use crate::report::Scheme;

#[tokio::test]
async fn what_is_allowed_passes_as_it_is_and_what_is_not_is_told_why() {
    let mut world = World::new(policy(&["api.test:80"], &[]));
    let (address, seen) = server(|_| ok("hello")).await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    let got = ask(
        &mut guest,
        "GET /a?b=c HTTP/1.1\r\nHost: api.test\r\nX-OdD: 1\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n",
    )
    .await;
    assert_eq!((got.status, got.body.as_str()), (200, "hello"));
    // Not a header more, and none in another case.
    assert_eq!(got.head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(
        seen.requests(),
        ["GET /a?b=c HTTP/1.1\r\nHost: api.test\r\nX-OdD: 1\r\n\r\n"]
    );
    let report = world.report().await;
    assert_eq!(report.scheme, Scheme::Http);
    assert_eq!(report.host, "api.test:80");
    assert_eq!(report.method, "GET");
    assert_eq!(report.url, "http://api.test/a?b=c");
    assert_eq!((report.status, report.sent, report.received), (200, 0, 5));
    let allowed = Outcome::Allowed(Basis::Rule("api.test:80".to_owned()));
    assert_eq!(report.outcome, allowed);

    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
    assert_eq!((got.status, got.code().as_str()), (403, "host_not_allowed"));
    assert!(
        got.body.contains("--allow-host evil.test:80"),
        "{}",
        got.body
    );
    assert_eq!(world.refused().await, Code::NotAllowed);
    // The connection goes on.
    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: API.test.\r\n\r\n").await;
    assert_eq!(got.status, 200);
    assert!(seen.requests()[1].contains("Host: api.test\r\n"));
    assert_eq!(seen.connections(), 1, "one connection was used for both");
    assert_eq!(world.dialled(), ["api.test"]);
}

#[tokio::test]
async fn a_policy_that_changes_changes_the_next_request() {
    let world = World::new(policy(&["api.test"], &[]));
    let (address, seen) = server(|_| ok("x")).await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    let request = "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n";
    assert_eq!(ask(&mut guest, request).await.status, 200);
    world
        .policy
        .send_replace(Arc::new(policy(&["b.test"], &[])));
    assert_eq!(ask(&mut guest, request).await.code(), "host_not_allowed");
    world
        .policy
        .send_replace(Arc::new(policy(&["api.test"], &["deny GET api.test"])));
    assert_eq!(ask(&mut guest, request).await.code(), "rule_denied");
    world
        .policy
        .send_replace(Arc::new(policy(&["api.test"], &[])));
    assert_eq!(ask(&mut guest, request).await.status, 200);
    assert_eq!(seen.requests().len(), 2);
}

#[tokio::test]
async fn a_path_is_judged_as_it_is_sent_or_not_at_all() {
    let mut world = World::new(policy(
        &[],
        &["deny GET api.test/admin/**", "allow GET,POST api.test/**"],
    ));
    let (address, seen) = server(|_| ok("x")).await;
    world.lead("api.test", address);
    for path in [
        "/../admin",
        "/api/%2e%2e/admin",
        "//admin",
        "/api/..;/admin",
        "/x%2f..%2fadmin",
        "/admin%00",
        "/\\admin",
        "/.%2e/admin",
        "/%2e/admin",
        "/api/..%2fadmin",
        "/a%5cb",
        "/a%zz",
        "/;x/admin",
        "*",
    ] {
        let (mut guest, _) = world.plain(80).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: api.test\r\n\r\n");
        let got = ask(&mut guest, &request).await;
        assert_eq!(got.status, 400, "{path}");
        if path != "*" {
            assert_eq!(got.code(), "ambiguous_request", "{path}");
        }
        world.report().await;
    }
    for path in [
        "/admin",
        "/api/../admin",
        "/./admin",
        "/x/./../admin/./y",
        "/%61dmin/x",
        "/admin/?q=/api",
        "http://api.test/admin",
    ] {
        let (mut guest, _) = world.plain(80).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: api.test\r\n\r\n");
        assert_eq!(
            ask(&mut guest, &request).await.code(),
            "rule_denied",
            "{path}"
        );
    }
    for method in ["DELETE", "post", "get", "BREW", "TRACE"] {
        let (mut guest, _) = world.plain(80).await;
        let request = format!("{method} /x HTTP/1.1\r\nHost: api.test\r\n\r\n");
        let got = ask(&mut guest, &request).await;
        assert!(matches!(got.status, 400 | 403 | 405), "{method}");
    }
    let (mut guest, _) = world.plain(80).await;
    let request = "POST /%61/c/.././b%c3%a4?x=/../%2e HTTP/1.1\r\nHost: api.test\r\nX-HTTP-Method-Override: DELETE\r\n\
                   X-Method-Override: PUT\r\nX-HTTP-Method: PUT\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(ask(&mut guest, request).await.status, 200);
    assert_eq!(
        seen.requests(),
        ["POST /a/b%C3%A4?x=/../%2e HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n"]
    );
}

/// Where no rule is of paths, a path is nobody's business.
#[tokio::test]
async fn a_path_that_nobody_judges_stays_what_it_is() {
    let world = World::new(policy(&["api.test"], &[]));
    let (address, seen) = server(|_| ok("x")).await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    for path in ["//a/../b%2f;x?y=%zz", "/%61", "*"] {
        let method = if path == "*" { "OPTIONS" } else { "GET" };
        let request = format!("{method} {path} HTTP/1.1\r\nHost: api.test\r\n\r\n");
        assert_eq!(ask(&mut guest, &request).await.status, 200);
        assert_eq!(seen.requests().last(), Some(&request));
    }
}

#[tokio::test]
async fn tunnels_are_refused() {
    let mut world = World::new(policy(&["api.test"], &[]));
    let (mut guest, _) = world.plain(80).await;
    let request = "CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n";
    let got = ask(&mut guest, request).await;
    assert_eq!((got.status, got.code().as_str()), (405, "host_denied"));
    assert_eq!(world.refused().await, Code::Denied);
    assert_eq!(world.dialled(), [""; 0]);
}

#[tokio::test]
async fn each_request_of_a_connection_goes_to_its_own_host() {
    let world = World::new(policy(&["*.test"], &[]));
    for host in ["a.test", "b.test"] {
        let (address, _) = server(move |_| ok(host)).await;
        world.lead(host, address);
    }
    let (mut guest, _) = world.plain(80).await;
    for host in ["a.test", "b.test", "a.test", "b.test"] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(ask(&mut guest, &request).await.body, host);
    }
    assert_eq!(world.dialled(), ["a.test", "b.test"]);
}

/// A server may end a connection that waits for a request at any time.
#[tokio::test]
async fn a_connection_that_has_ended_is_made_anew_where_that_is_safe() {
    let world = World::new(policy(&["api.test"], &[]));
    let served = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.lead("api.test", listener.local_addr().unwrap());
    let of_server = Arc::clone(&served);
    tokio::spawn(async move {
        // Each connection answers once, takes the next request, and ends.
        while let Ok((mut stream, _)) = listener.accept().await {
            read_until(&mut stream, "\r\n\r\n").await.unwrap();
            stream.write_all(&ok("x")).await.unwrap();
            of_server.fetch_add(1, Ordering::Relaxed);
            read_until(&mut stream, "\r\n\r\n").await.unwrap();
        }
    });
    let (mut guest, _) = world.plain(80).await;
    let request = "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n";
    assert_eq!(ask(&mut guest, request).await.status, 200);
    assert_eq!(ask(&mut guest, request).await.status, 200);
    // What may not be done twice is not.
    let request = "POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(
        ask(&mut guest, request).await.code(),
        "upstream_unreachable"
    );
    assert_eq!(served.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn headers_of_one_connection_do_not_pass() {
    let world = World::new(policy(&["api.test"], &[]));
    let (address, seen) = server(|_| {
        b"HTTP/1.1 200 Fine\r\nConnection: keep-alive, X-Own\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\n\
          Alt-Svc: h3=\":443\"\r\nUpgrade: h2c\r\nX-Kept: 1\r\nContent-Length: 0\r\n\r\n"
            .to_vec()
    })
    .await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    let request = "GET / HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade, HTTP2-Settings, Host, X-A\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nX-A: 1\r\nKeep-Alive: 1\r\n\
                   Proxy-Connection: x\r\nProxy-Authorization: x\r\nTE: gzip, trailers\r\n\r\n";
    let got = ask(&mut guest, request).await;
    assert_eq!(
        got.head,
        "HTTP/1.1 200 Fine\r\nX-Kept: 1\r\nContent-Length: 0\r\n\r\n"
    );
    let seen = seen.requests()[0].to_lowercase();
    let mut lines: Vec<_> = seen.lines().filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "connection: te",
            "get / http/1.1",
            "host: api.test",
            "te: trailers"
        ]
    );
}

#[tokio::test]
async fn responses_without_a_body_end_where_they_do() {
    let world = World::new(policy(&["api.test"], &[]));
    let (address, _) = server(|request| match &request[..6] {
        "HEAD /" => b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_vec(),
        "PUT / " => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 10\r\n\r\n".to_vec(),
    })
    .await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    for (method, end) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        ("PUT", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"),
    ] {
        let request = format!("{method} / HTTP/1.1\r\nHost: api.test\r\n\r\n");
        guest.write_all(request.as_bytes()).await.unwrap();
        let head = within(read_until(&mut guest, "\r\n\r\n"))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(head, end);
    }
    assert_eq!(world.dialled().len(), 1);
}

#[tokio::test]
async fn http_1_0_is_served_as_what_it_is() {
    let world = World::new(policy(&["api.test", "192.0.2.1"], &[]));
    let (address, seen) = server(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec()
    })
    .await;
    world.lead("api.test", address);
    world.lead("192.0.2.1", address);
    for (head, host) in [("Host: api.test\r\n", "api.test"), ("", "192.0.2.1")] {
        let (mut guest, served) = world.plain(80).await;
        let request = format!("GET / HTTP/1.0\r\n{head}\r\n");
        guest.write_all(request.as_bytes()).await.unwrap();
        let (text, ended) = rest(&mut guest).await;
        ended.unwrap();
        // No chunks for who does not know of them.
        assert!(
            text.starts_with("HTTP/1.0 200 OK\r\n") && text.ends_with("\r\n\r\nhello"),
            "{text}"
        );
        within(served).await.unwrap().unwrap();
        let seen = seen.requests();
        assert!(
            seen.last()
                .unwrap()
                .to_lowercase()
                .contains(&format!("host: {host}\r\n"))
        );
    }
}

/// A guest cannot have any number of connections looked into.
#[tokio::test]
async fn connections_that_are_looked_into_wait_for_room() {
    let mut world = World::new(policy(&["api.test"], &[]));
    let (address, _) = server(|_| ok("x")).await;
    world.lead("api.test", address);
    let room = Arc::clone(&world.proxy.room);
    let all = room.acquire_many(16).await.unwrap();
    tokio::time::pause();
    for tls in [false, true] {
        let (_guest, served) = match tls {
            false => world.plain(80).await,
            true => {
                let (guest, served) = world.encrypted(false).await;
                let authority = Arc::clone(&world.proxy.authority);
                let _ = connect(guest, "api.test", &[], &authority).await;
                (pair().await.0, served)
            }
        };
        assert!(served.await.unwrap().is_err(), "{tls}");
        assert_eq!(world.refused().await, Code::Crowded);
    }
    tokio::time::resume();
    drop(all);
    let (mut guest, _) = world.plain(80).await;
    let request = "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n";
    assert_eq!(ask(&mut guest, request).await.status, 200);
    assert_eq!(room.available_permits(), 15);
}
