//! Policies that are scripts, asked for each request.

use zeroize::Zeroizing;

use super::http2::{ask2, get, http2, http2_server};
use super::upgrades::{WEBSOCKET, echo};
use super::*;
use crate::edit::{Edits, Options, Secret, Secrets};
use crate::script::Script;

/// A script denies what has no header, and what has the value of a secret.
const SCRIPT: &str = r#"
fn request(req) {
    let key = req.header("X-Key");
    if key == () { deny("no key"); }
    if key != "PLACEHOLDER_KEY_" { throw "it is " + key; }
    if req.method != "GET" && req.path_is("/repos/**") { deny("read only") }
}
"#;

fn scripted(script: &str) -> Policy {
    Policy {
        script: Some(Script::new(script).unwrap()),
        ..policy(&["api.test", "other.test"], &[])
    }
}

#[tokio::test]
async fn a_script_judges_what_the_policy_allows_and_sees_no_secret() {
    let secret = Secret::new(
        "KEY",
        Zeroizing::new("hunter2hunter2".to_owned()),
        "PLACEHOLDER_KEY_",
        vec!["api.test".parse().unwrap()],
    );
    let secrets = Arc::new(Secrets::new(vec![secret]).unwrap());
    let edits = Edits::new(Vec::new(), secrets, Options::default());
    let mut world = World::with_editor(scripted(SCRIPT), Arc::new(edits));
    let seen = tls_server(&world, "api.test", |_| ok("hi")).await;
    let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
    let request = |line: &str, key: &str| format!("{line} HTTP/1.1\r\nHost: api.test\r\n{key}\r\n");
    let got = ask(
        &mut guest,
        &request("GET /repos/a", "X-Key: PLACEHOLDER_KEY_\r\n"),
    )
    .await;
    assert_eq!(got.status, 200);
    assert!(seen.requests()[0].contains("X-Key: hunter2hunter2\r\n"));
    assert_eq!(world.report().await.secrets.substituted, ["KEY"]);

    let got = ask(&mut guest, &request("GET /repos/a", "")).await;
    assert_eq!((got.status, got.code().as_str()), (403, "script_denied"));
    assert!(got.body.contains("policy_script:4: no key"), "{}", got.body);
    let Outcome::Refused(denial) = world.report().await.outcome else {
        panic!("it was allowed");
    };
    assert_eq!(denial.rule.as_deref(), Some("policy_script:4: no key"));
    assert_eq!(denial.host, "api.test:443");

    let got = ask(&mut guest, &request("GET /", "X-Key: x\r\n")).await;
    assert_eq!((got.status, got.code().as_str()), (403, "script_failed"));
    assert!(
        got.body.contains("policy_script:5: threw it is x"),
        "{}",
        got.body
    );

    // The connection goes on, and a path and a method have one form, as where rules are.
    for (line, code) in [
        ("POST /repos/a", "script_denied"),
        ("POST /%72epos/a", "script_denied"),
        ("POST /x/../repos/a", "script_denied"),
        ("post /repos/a", "ambiguous_request"),
    ] {
        let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
        let got = ask(&mut guest, &request(line, "X-Key: PLACEHOLDER_KEY_\r\n")).await;
        assert_eq!(got.code(), code, "{line}");
    }
    let got = ask(&mut guest, &request("GET /", "X-Key: PLACEHOLDER_KEY_\r\n")).await;
    assert_eq!(got.status, 200);
    assert_eq!(seen.requests().len(), 2);
}

#[tokio::test]
async fn a_script_allows_nothing_by_itself() {
    let world = World::new(scripted("fn request(req) { true }"));
    let (mut guest, _) = world.plain(80).await;
    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
    assert_eq!(got.code(), "host_not_allowed");
}

#[tokio::test]
async fn tls_is_not_passed_on_past_a_script_for_requests() {
    let mut world = World::new(scripted("fn request(req) { req.method == \"GET\" }"));
    let seen = http2_server(&world, "api.test").await;
    // Nothing else asks for it to be opened.
    let (guest, _) = world.encrypted(true).await;
    let opened = connect(guest, "api.test", &["http/1.1"], &world.proxy.authority).await;
    let got = ask(
        &mut opened.unwrap(),
        "DELETE / HTTP/1.1\r\nHost: api.test\r\n\r\n",
    )
    .await;
    assert_eq!(got.code(), "script_denied");
    assert_eq!(world.refused().await, Code::ScriptDenied);
    // In both versions.
    let mut guest = http2(&world, "api.test").await;
    assert_eq!(ask2(&mut guest, get("https://api.test/")).await.0, 200);
    let mut request = get("https://api.test/");
    *request.method_mut() = http::Method::DELETE;
    let answer = ask2(&mut guest, request).await;
    assert_eq!(answer, (403, "script_denied".to_owned()));
    assert_eq!(seen.requests().len(), 1);
}

/// A script that does not end holds up the request it was asked about, for a while.
#[tokio::test]
async fn a_script_that_does_not_end_is_a_refusal_within_a_second() {
    let world = World::new(scripted(
        "fn request(req) { if req.path == \"/loop\" { loop {} } }",
    ));
    let (address, _) = server(|_| ok("hi")).await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    let begin = std::time::Instant::now();
    let got = ask(&mut guest, "GET /loop HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    assert_eq!(got.code(), "script_failed");
    assert!(begin.elapsed() < Duration::from_secs(1));
    let got = ask(&mut guest, "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    assert_eq!(got.status, 200);
}

#[tokio::test]
async fn a_script_is_shown_what_becomes_a_websocket() {
    let mut world = World::new(scripted(
        "fn request(req) { if req.upgrade == \"websocket\" { deny(\"no sockets\") } }",
    ));
    let (address, seen) = server(|_| ok("hi")).await;
    world.lead("api.test", address);
    let (mut guest, _) = world.plain(80).await;
    let got = ask(&mut guest, WEBSOCKET).await;
    assert_eq!(got.code(), "script_denied");
    assert_eq!(world.refused().await, Code::ScriptDenied);
    // What only looks like one is none, and becomes none.
    for request in [
        WEBSOCKET.replace("websocket", "h2c"),
        WEBSOCKET.replace("keep-alive, Upgrade", "keep-alive"),
    ] {
        let (mut guest, _) = world.plain(80).await;
        assert_eq!(ask(&mut guest, &request).await.status, 200, "{request}");
    }
    assert_eq!(seen.requests().len(), 2);
}

/// What another script has not seen does not go on past it.
#[tokio::test]
async fn another_script_ends_requests_that_are_under_way() {
    const NOW: &str = "fn request(req) { req.path != \"/ws\" }";
    for (then, now, ends) in [
        ("fn request(req) {}", Some(NOW), true),
        ("fn connection(conn) {}", Some(NOW), true),
        ("fn request(req) {}", Some("fn request(req) {}"), false),
        ("fn request(req) {}", Some("fn connection(conn) {}"), false),
        ("fn request(req) {}", None, false),
    ] {
        let mut world = World::new(scripted(then));
        let agreed =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        echo(&world, agreed).await;
        let mut guest = world.tls("api.test", &["http/1.1"]).await.unwrap();
        guest.write_all(WEBSOCKET.as_bytes()).await.unwrap();
        within(read_until(&mut guest, "\r\n\r\n")).await.unwrap();
        let mut policy = Policy::clone(&world.policy.borrow());
        policy.script = now.map(|now| Script::new(now).unwrap());
        // Which hosts there are may change at any time.
        policy.allow.push("more.test".parse().unwrap());
        world.policy.send_replace(Arc::new(policy));
        if ends {
            drop(rest(&mut guest).await);
            assert_eq!(world.refused().await, Code::ScriptFailed, "{then} {now:?}");
            continue;
        }
        guest.write_all(b"x").await.unwrap();
        let mut echoed = [0; 2];
        within(guest.read_exact(&mut echoed)).await.unwrap();
        assert_eq!(&echoed, b"xx", "{then} {now:?}");
    }
}
