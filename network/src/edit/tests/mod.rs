//! What becomes of requests and responses. No value of a secret is ever in what a test
//! prints.

mod hooks;
mod scrubbed;
mod secrets;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderMap, request, response};
use zeroize::Zeroizing;

use super::hook::tests::{map, request, strings};
use super::secret::tests::secret;
use super::*;
use crate::http::Transform;

/// The value of `KEY`, for a.test, with what has to be encoded in a URL and in JSON.
const VALUE: &str = "v&=\"/ +1%41\\x";
/// What the guest has.
const KEY: &str = "PLACEHOLDER_KEY_";
/// What the guest has of a secret for b.test.
const OTHER: &str = "PLACEHOLDER_OTHER_";

fn secrets() -> Vec<Secret> {
    vec![
        secret("KEY", VALUE, &["a.test"]),
        secret("OTHER", "swordfish", &["b.test"]),
    ]
}

fn edits(hooks: Vec<HookSpec>, secrets: Vec<Secret>) -> Edits {
    let hooks = hooks
        .into_iter()
        .filter_map(|spec| Hook::new(spec).unwrap());
    let secrets = Arc::new(Secrets::new(secrets).unwrap());
    Edits::new(hooks.collect(), secrets, Options::default())
}

fn to(host: &str, tls: bool) -> RequestContext {
    RequestContext {
        host: host.parse().unwrap(),
        port: if tls { 443 } else { 80 },
        tls,
    }
}

async fn sent(
    edits: &Edits,
    cx: &RequestContext,
    mut parts: request::Parts,
) -> Result<(request::Parts, RequestEdit), Refused> {
    let edit = edits.request(cx, &mut parts).await?;
    Ok((parts, edit))
}

async fn refused(edits: &Edits, cx: &RequestContext, parts: request::Parts) -> Refused {
    match sent(edits, cx, parts).await {
        Ok(_) => panic!("the request passed"),
        Err(refused) => refused,
    }
}

/// Compares what may have a value in it, which is not shown.
fn same(actual: &[u8], expected: impl AsRef<[u8]>, what: &str) {
    assert!(actual == expected.as_ref(), "{what}");
}

/// What a response with this body becomes: its head and its body.
async fn answered_with(
    edits: &Edits,
    cx: &RequestContext,
    method: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    step: usize,
) -> Result<(response::Parts, Vec<u8>, u64), Refused> {
    let request = request(method, "/", &[("host", "a.test")]);
    let (_, edit) = sent(edits, cx, request).await?;
    let mut builder = http::Response::builder();
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let mut parts = builder.body(()).unwrap().into_parts().0;
    let edit = edits.response(cx, edit.state, &mut parts).await?;
    let mut out = Vec::new();
    let mut count = edit.scrubbed;
    match edit.body {
        BodyEdit::Keep => out.extend_from_slice(body),
        BodyEdit::Replace(body) => out.extend_from_slice(&body),
        BodyEdit::Transform(mut transform) => {
            for piece in body.chunks(step) {
                transform.push(piece, &mut out).unwrap();
            }
            transform.finish(&mut out).unwrap();
            count += transform.scrubbed();
        }
    }
    Ok((parts, out, count))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn before(change: impl FnOnce(&mut HookSpec)) -> HookSpec {
    let mut spec = HookSpec::default();
    change(&mut spec);
    spec
}

fn after(change: impl FnOnce(&mut HookSpec)) -> HookSpec {
    let mut spec = HookSpec {
        phase: Phase::After,
        ..HookSpec::default()
    };
    change(&mut spec);
    spec
}

#[test]
fn what_has_to_be_looked_at() {
    let needs = |edits: &Edits, host: &str| edits.needs(&host.parse().unwrap(), 443);
    let hook = || {
        before(|spec| {
            spec.hosts = strings(&["h.test"]);
            spec.action = Action::Block;
        })
    };
    let mut with_rule = edits(vec![hook()], vec![]);
    assert!(needs(&with_rule, "h.test") && !needs(&with_rule, "a.test"));
    with_rule.options.all = true;
    assert!(needs(&with_rule, "a.test"));
    // A placeholder can be sent anywhere.
    let mut with_secrets = edits(vec![hook()], secrets());
    assert!(needs(&with_secrets, "a.test") && needs(&with_secrets, "c.test"));
    with_secrets.options.splice = true;
    assert!(needs(&with_secrets, "a.test") && needs(&with_secrets, "h.test"));
    assert!(!needs(&with_secrets, "c.test"));
    assert!(needs(
        &edits(vec![before(|spec| spec.action = Action::Block)], vec![]),
        "c.test"
    ));
    assert!(!needs(&edits(vec![], vec![]), "c.test"));
}

/// Without rules and secrets all passes as it is.
#[tokio::test]
async fn what_nobody_changes_stays() {
    let edits = edits(vec![], vec![]);
    let cx = to("a.test", false);
    let before = request(
        "TRACE",
        "/a?b=;",
        &[("accept-encoding", "x"), ("range", "y")],
    );
    let (parts, edit) = sent(&edits, &cx, before.clone()).await.unwrap();
    assert_eq!((&parts.uri, &parts.headers), (&before.uri, &before.headers));
    assert!(edit.body.is_none());
    let headers = [("content-encoding", "x")];
    let (parts, out, count) = answered_with(&edits, &cx, "GET", &headers, b"x", 1)
        .await
        .unwrap();
    let mut expected = HeaderMap::new();
    expected.insert("content-encoding", HeaderValue::from_static("x"));
    assert_eq!((parts.headers, out, count), (expected, b"x".to_vec(), 0));
}
