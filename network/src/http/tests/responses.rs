//! Responses of hosts that are not what they seem, and what is told of them.

use super::http2::{ask2, get, http2};
use super::*;
use crate::edit::{Edits, Options, Secret, Secrets};
use zeroize::Zeroizing;

fn world() -> World {
    let value = Zeroizing::new("hunter2hunter2".to_owned());
    let hosts = vec!["api.test".parse().unwrap()];
    let secret = Secret::new("KEY", value, "PLACEHOLDER_KEY_", hosts);
    let secrets = Arc::new(Secrets::new(vec![secret]).unwrap());
    let edits = Edits::new(Vec::new(), secrets, Options::default());
    World::with_editor(policy(&["api.test"], &[]), Arc::new(edits))
}

fn get1(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: api.test\r\n\r\n")
}

async fn refusal(world: &mut World) -> (Code, String) {
    match world.report().await.outcome {
        Outcome::Refused(denial) => (denial.code, denial.rule.unwrap_or_default()),
        Outcome::Allowed(_) => panic!("it was allowed"),
    }
}

/// A guest that guesses the begin of a value is not told by how its guess comes back.
#[tokio::test]
async fn what_could_be_the_begin_of_a_value_looks_like_anything_else() {
    let world = world();
    tls_server(&world, "api.test", |request| {
        let guess = request.split(' ').nth(1).unwrap().trim_start_matches('/');
        match guess.strip_prefix("long-") {
            Some(guess) => ok(&format!("a {guess}")),
            None => {
                let body = format!("a {guess}");
                let len = body.len();
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                format!("{head}{len:x}\r\n{body}\r\n0\r\n\r\n").into_bytes()
            }
        }
    })
    .await;
    for way in ["/", "/long-"] {
        let mut shapes = Vec::new();
        for guess in ["hunter2", "hunterX", "xxxxxxx"] {
            let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
            let got = ask(&mut guest, &get1(&format!("{way}{guess}"))).await;
            assert!(got.body.contains(guess), "{got:?}");
            shapes.push(got.body.replace(guess, "guess"));
        }
        assert_eq!(shapes[0], shapes[1], "{way}");
        assert_eq!(shapes[1], shapes[2], "{way}");
    }
}

/// What is in a coding that nobody undoes nobody has looked into.
#[tokio::test]
async fn a_transfer_coding_does_not_hide_anything() {
    let mut world = world();
    tls_server(&world, "api.test", |_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n".to_vec()
    })
    .await;
    let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
    let got = ask(&mut guest, &get1("/")).await;
    assert_eq!(
        (got.status, got.code().as_str()),
        (502, "upstream_unreachable")
    );
    let (code, why) = refusal(&mut world).await;
    assert_eq!(code, Code::Connect);
    assert!(why.contains("gzip, chunked"), "{why}");
}

/// `Connection` cannot take away what says how a body is to be read.
#[tokio::test]
async fn a_content_coding_is_not_of_one_connection() {
    let mut world = world();
    tls_server(&world, "api.test", |_| {
        b"HTTP/1.1 200 OK\r\nConnection: content-encoding\r\nContent-Encoding: dcb\r\n\
          Content-Length: 1\r\n\r\nx"
            .to_vec()
    })
    .await;
    let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
    assert_eq!(ask(&mut guest, &get1("/")).await.code(), "blocked_by_rule");
    assert_eq!(refusal(&mut world).await.0, Code::Rule);
}

/// Neither was allowed and well.
#[tokio::test]
async fn a_response_that_breaks_off_is_told_of() {
    let mut world = world();
    tls_server(&world, "api.test", |request| {
        let (header, len) = match request.contains(" /coded ") {
            true => ("Content-Encoding: gzip", 15),
            false => ("Connection: close", 16),
        };
        format!("HTTP/1.1 200 OK\r\n{header}\r\nContent-Length: {len}\r\n\r\nthis is no gzip")
            .into_bytes()
    })
    .await;
    for (path, code, text) in [
        ("/coded", Code::Rule, "no valid gzip"),
        ("/short", Code::Connect, "broke its response off"),
    ] {
        let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
        guest.write_all(get1(path).as_bytes()).await.unwrap();
        drop(rest(&mut guest).await);
        let (told, why) = refusal(&mut world).await;
        assert_eq!(told, code, "{path} {why}");
        assert!(why.contains(text), "{path} {why}");
    }
}

/// HTTP/2 has cookies in several headers, HTTP/1 in one.
#[tokio::test]
async fn cookies_are_one_header_in_http1() {
    let world = world();
    let seen = tls_server(&world, "api.test", |_| ok("hello")).await;
    let mut guest = http2(&world, "api.test").await;
    let mut request = get("https://api.test/");
    for cookie in ["a=1", "b=PLACEHOLDER_KEY_"] {
        request
            .headers_mut()
            .append("cookie", cookie.parse().unwrap());
    }
    assert_eq!(ask2(&mut guest, request).await, (200, "hello".to_owned()));
    let request = seen.requests()[0].to_lowercase();
    assert!(request.contains("cookie: a=1; b=hunter2hunter2\r\n"));
    assert_eq!(request.matches("cookie:").count(), 1);
}

/// Why a host cannot be used is told to those who have to do something about it.
#[tokio::test]
async fn reasons_are_told() {
    let mut world = world();
    tls_server(&world, "other.test", |_| ok("hello")).await;
    let other = world.proxy.dial.hosts.lock().unwrap()["other.test"];
    world.lead("api.test", other);
    let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
    let got = ask(&mut guest, &get1("/")).await;
    assert_eq!(got.code(), "upstream_certificate");
    assert!(got.body.contains("other.test"), "{}", got.body);
    let (_, why) = refusal(&mut world).await;
    assert!(why.contains("not valid for"), "{why}");
    // A guest that does not trust us is told of as that.
    let (guest, _) = world.encrypted(false).await;
    let stranger = Authority::new().unwrap();
    let refused = connect(guest, "api.test", &["http/1.1"], &stranger).await;
    refused.map(drop).unwrap_err();
    assert_eq!(world.refused().await, Code::Distrust);
}

/// Nobody learns of a connection by nothing else.
#[tokio::test]
async fn a_connection_without_a_request_is_told_of() {
    let mut world = world();
    // It goes before it says anything, and after the handshake, to who may be reached and not.
    let (guest, _) = world.plain(80).await;
    drop(guest);
    assert_eq!(world.refused().await, Code::GivenUp);
    let (guest, _) = world.encrypted(false).await;
    drop(guest);
    assert_eq!(world.refused().await, Code::GivenUp);
    for alpn in ["http/1.1", "h2"] {
        for (host, code) in [("api.test", Code::GivenUp), ("evil.test", Code::NotAllowed)] {
            drop(world.tls(host, &[alpn]).await.unwrap());
            let report = world.report().await;
            assert_eq!(report.host, format!("{host}:443"));
            let Outcome::Refused(denial) = report.outcome else {
                panic!("it was allowed");
            };
            assert_eq!(denial.code, code, "{host} {alpn}");
        }
    }
}
