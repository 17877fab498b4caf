//! Secrets on their way through the proxy: where they arrive, and where they do not.

use tokio::io::AsyncWriteExt as _;
use zeroize::Zeroizing;

use super::bodies::{head, stepwise};
use super::http2::{ask2, get, http2, http2_server};
use super::*;
use crate::edit::{Edits, Options, Secret, Secrets};

/// What the guest has of a secret for api.test.
const KEY: &str = "PLACEHOLDER_KEY_";
/// Its value.
const VALUE: &str = "hunter2hunter2";
/// What the guest has of a secret for other.test.
const OTHER: &str = "PLACEHOLDER_OTHER_";

fn world() -> World {
    let secret = |name: &str, value: &str, placeholder: &str, host: &str| {
        let value = Zeroizing::new(value.to_owned());
        Secret::new(name, value, placeholder, vec![host.parse().unwrap()])
    };
    let secrets = Secrets::new(vec![
        secret("KEY", VALUE, KEY, "api.test"),
        secret("OTHER", "swordfish", OTHER, "other.test"),
    ]);
    let secrets = Arc::new(secrets.unwrap());
    let edits = Edits::new(Vec::new(), secrets, Options::default());
    World::with_editor(policy(&["api.test"], &[]), Arc::new(edits))
}

/// The same with the first of the secrets in bodies as well.
fn world_of_bodies(value: &str) -> World {
    let host = "api.test".parse().unwrap();
    let mut secret = Secret::new("KEY", Zeroizing::new(value.to_owned()), KEY, vec![host]);
    secret.places.body = true;
    secret.plain_http = true;
    let secrets = Arc::new(Secrets::new(vec![secret]).unwrap());
    let edits = Edits::new(Vec::new(), secrets, Options::default());
    World::with_editor(policy(&["api.test"], &[]), Arc::new(edits))
}

fn post(headers: &str, body: &str) -> String {
    let len = body.len();
    format!("POST /p HTTP/1.1\r\nHost: api.test\r\n{headers}Content-Length: {len}\r\n\r\n{body}")
}

#[tokio::test]
async fn the_host_gets_the_value_and_the_guest_never_does() {
    let mut world = world();
    let seen = tls_server(&world, "api.test", |request| {
        // An echo of all that it got, and in trailers.
        let len = request.len();
        let head =
            "HTTP/1.1 200 hunter2hunter2\r\nTrailer: x-t\r\nTransfer-Encoding: chunked\r\n\r\n";
        format!("{head}{len:x}\r\n{request}\r\n0\r\nx-t: {VALUE}\r\n\r\n").into_bytes()
    })
    .await;
    let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
    let request = post(
        "Authorization: Bearer PLACEHOLDER_KEY_\r\nTE: trailers\r\nConnection: TE\r\n",
        "a body",
    );
    guest.write_all(request.as_bytes()).await.unwrap();
    guest.flush().await.unwrap();
    let got = within(read_until(&mut guest, "x-t: PLACEHOLDER_KEY_\r\n\r\n")).await;
    let got = got.unwrap().unwrap();
    assert!(!got.contains(VALUE), "a value came back");
    assert!(
        got.to_lowercase()
            .contains("authorization: bearer placeholder_key_\r\n")
    );
    let request = seen.requests()[0].clone();
    assert!(
        request.contains(&format!("Bearer {VALUE}\r\n")),
        "no value came"
    );
    // That somebody watches the body does not change it.
    assert!(request.to_lowercase().contains("content-length: 6\r\n"));
    assert!(request.ends_with("\r\n\r\na body"));
    let report = world.report().await;
    assert_eq!(report.secrets.substituted, ["KEY"]);
    assert_eq!(report.secrets.scrubbed, 2);
    assert!(
        !format!("{report:?}").contains(VALUE),
        "a report has a value"
    );
}

/// Not every host takes a body of which it is not told how long it is.
#[tokio::test]
async fn a_short_body_with_a_value_has_its_length() {
    let world = world_of_bodies(VALUE);
    let seen = tls_server(&world, "api.test", |_| ok("hello")).await;
    let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
    assert_eq!(ask(&mut guest, &post("", KEY)).await.status, 200);
    let request = seen.requests()[0].clone();
    let len = VALUE.len();
    let length = format!("content-length: {len}\r\n");
    assert!(request.to_lowercase().contains(&length), "{request}");
    assert!(request.ends_with(&format!("\r\n\r\n{VALUE}")), "{request}");
    // A long one is passed on as it comes.
    let long = format!("{KEY}{}", "x".repeat(64 << 10));
    assert_eq!(ask(&mut guest, &post("", &long)).await.status, 200);
    let request = seen.requests()[1].to_lowercase();
    assert!(request.contains("transfer-encoding: chunked\r\n"));
    assert!(!request.contains("content-length"));
}

/// A guest cannot have more kept by that than it sends.
#[tokio::test]
async fn a_short_body_that_becomes_long_is_not_kept() {
    let value = "v".repeat(1000);
    let world = world_of_bodies(&value);
    let seen = tls_server(&world, "api.test", |_| ok("hello")).await;
    let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
    let body = KEY.repeat(1000);
    assert_eq!(ask(&mut guest, &post("", &body)).await.status, 200);
    let request = seen.requests()[0].clone();
    assert!(
        request
            .to_lowercase()
            .contains("transfer-encoding: chunked\r\n")
    );
    assert_eq!(request.matches('v').count(), 1000 * 1000);
}

#[tokio::test]
async fn a_short_body_that_takes_its_time_is_not_waited_for() {
    let world = world_of_bodies(VALUE);
    let server = stepwise(&world, "api.test").await;
    let (mut guest, served) = world.plain(80).await;
    let begin = "POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 10\r\n\r\nhello";
    guest.write_all(begin.as_bytes()).await.unwrap();
    let mut host = within(server).await.unwrap();
    let head = head(&mut host).await.to_lowercase();
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    let begun = within(read_until(&mut host, "hello\r\n")).await;
    assert_eq!(begun.unwrap().unwrap(), "5\r\nhello\r\n");
    drop((guest, served));
}

#[tokio::test]
async fn what_is_for_another_host_does_not_leave() {
    let mut world = world();
    let seen = tls_server(&world, "api.test", |_| ok("hello")).await;
    let header = format!("X: {OTHER}\r\n");
    let hex: String = OTHER.bytes().map(|byte| format!("{byte:02x}")).collect();
    for (headers, body) in [(header.as_str(), "x"), ("", OTHER), ("", &hex)] {
        let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
        let got = ask(&mut guest, &post(headers, body)).await;
        assert_eq!(
            (got.status, got.code().as_str()),
            (403, "secret_leak"),
            "{body}"
        );
        let report = world.report().await;
        assert_eq!(report.secrets.leaked, ["OTHER"]);
        assert!(matches!(report.outcome, Outcome::Refused(_)));
    }
    assert!(seen.requests().is_empty());
}

#[tokio::test]
async fn no_value_goes_to_whoever_cannot_prove_who_it_is() {
    let mut world = world();
    let seen = tls_server(&world, "evil.test", |_| ok("hello")).await;
    let evil = world.proxy.dial.hosts.lock().unwrap()["evil.test"];
    world.lead("api.test", evil);
    let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
    let got = ask(&mut guest, &post("X: PLACEHOLDER_KEY_\r\n", "")).await;
    assert_eq!(got.code(), "upstream_certificate");
    assert!(seen.requests().is_empty());
    world.report().await;
    // Nor does one go in the clear.
    let (address, seen) = server(|_| ok("hello")).await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    let got = ask(&mut guest, &post("X: PLACEHOLDER_KEY_\r\n", "")).await;
    assert_eq!(got.status, 200);
    assert!(seen.requests()[0].contains("PLACEHOLDER_KEY_\r\n"));
    assert_eq!(world.report().await.secrets.missed, ["KEY"]);
}

#[tokio::test]
async fn streams_of_http2_are_no_other_way() {
    let mut world = world();
    let seen = http2_server(&world, "api.test").await;
    let mut guest = http2(&world, "api.test").await;
    let post = |target: &str, body: String| {
        let mut post = get(&format!("https://api.test{target}"));
        *post.method_mut() = http::Method::POST;
        *post.body_mut() = body.into();
        post
    };
    // The host says back what it gets.
    let answer = ask2(&mut guest, post("/?k=PLACEHOLDER_KEY_", KEY.to_owned())).await;
    assert_eq!(answer, (200, KEY.to_owned()));
    assert!(seen.requests()[0].contains(VALUE), "no value came");
    assert_eq!(world.report().await.secrets.substituted, ["KEY"]);
    // However long it is on its way before.
    for before in [0, 1, 300_000] {
        let body = format!("{}{OTHER}", "x".repeat(before));
        let answer = ask2(&mut guest, post("/", body)).await;
        assert_eq!(answer, (403, "secret_leak".to_owned()), "{before}");
        let report = world.report().await;
        assert_eq!(report.secrets.leaked, ["OTHER"]);
        assert!(matches!(report.outcome, Outcome::Refused(_)));
    }
    let answer = ask2(&mut guest, post("/", "hello".to_owned())).await;
    assert_eq!(answer, (200, "hello".to_owned()));
}

/// So does gRPC tell of an error: with a status in a head that ends the stream.
#[tokio::test]
async fn a_response_without_a_body_ends_with_its_head() {
    let world = world();
    tls_server(&world, "api.test", |_| {
        b"HTTP/1.1 200 OK\r\nGrpc-Status: 9\r\nGrpc-Message: hunter2hunter2\r\n\
          Content-Length: 0\r\n\r\n"
            .to_vec()
    })
    .await;
    let mut guest = http2(&world, "api.test").await;
    let mut post = get("https://api.test/pkg.Service/Call");
    *post.method_mut() = http::Method::POST;
    *post.body_mut() = "call".into();
    within(guest.ready()).await.unwrap();
    let response = within(guest.send_request(post)).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "9");
    assert_eq!(response.headers()["grpc-message"], KEY);
    assert!(http_body::Body::is_end_stream(response.body()));
}
