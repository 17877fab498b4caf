//! Bodies and heads, as rules and secrets change them. The same runs over the corpus in
//! `network/tests/fuzz_corpus.rs`.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use flashpan_network::edit::{Edits, Hook, HookSpec, Options, Phase, Places, Secret, Secrets};
use flashpan_network::http::{BodyEdit, Editor, RequestContext, Transform};
use http::{Request, Response};
use zeroize::Zeroizing;

const VALUE: &str = "hunter2/&\"x";
const CODINGS: [&str; 8] = [
    "identity",
    "gzip",
    "deflate",
    "br",
    "zstd",
    "gzip, br",
    "zstd, deflate",
    "other",
];

/// What a future without a wait gives.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("nobody is asked"),
    }
}

fn edits() -> Edits {
    let secret = |name: &str, value: &str, host: &str| {
        let value = Zeroizing::new(value.to_owned());
        let placeholder = format!("PLACEHOLDER_{name}_");
        let mut secret = Secret::new(name, value, placeholder, vec![host.parse().unwrap()]);
        secret.places = Places {
            headers: true,
            basic: true,
            query: true,
            path: true,
            body: true,
        };
        secret
    };
    let secrets = vec![
        secret("KEY", VALUE, "a.test"),
        secret("OTHER", "swordfish", "b.test"),
    ];
    let hook = |phase| {
        let spec = HookSpec {
            phase,
            path: "/[a-c]*/?".to_owned(),
            rewrite_path: "/to".to_owned(),
            set_query: [("q".to_owned(), "1".to_owned())].into(),
            ..HookSpec::default()
        };
        Hook::new(spec).unwrap()
    };
    let replaced = HookSpec {
        phase: Phase::After,
        body_replacements: vec![
            ("cat".to_owned(), "dog".to_owned()),
            ("dogs".to_owned(), "hunter2".to_owned()),
        ],
        ..HookSpec::default()
    };
    let hooks = [hook(Phase::Before), Hook::new(replaced).unwrap()];
    let secrets = Arc::new(Secrets::new(secrets).unwrap());
    Edits::new(
        hooks.into_iter().flatten().collect(),
        secrets,
        Options::default(),
    )
}

/// All that comes out in pieces of this size, if it does not break.
fn through(mut transform: Box<dyn Transform>, body: &[u8], step: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for piece in body.chunks(step) {
        transform.push(piece, &mut out).ok()?;
    }
    transform.finish(&mut out).ok()?;
    assert!(!transform.keeps_length() || out.len() == body.len());
    Some(out)
}

/// The first byte says of what the rest is the body or head.
pub fn edit(data: &[u8]) {
    let [choice, data @ ..] = data else {
        return;
    };
    let edits = edits();
    let cx = RequestContext {
        host: "a.test".parse().unwrap(),
        port: 443,
        tls: true,
    };
    match choice & 3 {
        0 => head(&edits, &cx, data),
        1 => request(&edits, &cx, *choice, data),
        _ => response(&edits, &cx, *choice, data),
    }
}

/// A target and headers, one in each line.
fn head(edits: &Edits, cx: &RequestContext, data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut builder = Request::builder().uri(lines.next().unwrap_or_default());
    for line in lines.take(32) {
        builder = builder.header("authorization", line);
    }
    let Ok(request) = builder.body(()) else {
        return;
    };
    let (mut parts, ()) = request.into_parts();
    match now(edits.request(cx, &mut parts)) {
        Ok(edit) => {
            assert!(edit.secrets.leaked.is_empty());
            // Whom it is for was decided before, and is not taken from there.
            let text = format!("{:?} {:?}", parts.uri.path_and_query(), parts.headers);
            assert!(!text.contains("PLACEHOLDER_OTHER_"), "it was sent");
        }
        Err(refused) => {
            assert!(refused.secrets.substituted.is_empty());
            assert!(!format!("{refused:?}").contains(VALUE));
        }
    }
}

fn request(edits: &Edits, cx: &RequestContext, choice: u8, data: &[u8]) {
    let media = [
        "application/json",
        "application/x-www-form-urlencoded",
        "text/plain",
        "",
    ];
    let body = |step| {
        let media = media[usize::from(choice >> 2 & 3)];
        let request = Request::post("/").header("content-type", media).body(());
        let (mut parts, ()) = request.unwrap().into_parts();
        let edit = now(edits.request(cx, &mut parts)).unwrap();
        let out = through(edit.body.unwrap(), data, step);
        // Why it broke is told, and it breaks for no other reason.
        assert_eq!(out.is_none(), edit.why.unwrap().get().is_some());
        out
    };
    let whole = body(usize::MAX);
    for step in [1, 7, 100] {
        assert!(body(step) == whole, "in pieces of {step}");
    }
    let other = b"PLACEHOLDER_OTHER_";
    let sent = whole.unwrap_or_default();
    assert!(!sent.windows(other.len()).any(|window| window == other));
}

fn response(edits: &Edits, cx: &RequestContext, choice: u8, data: &[u8]) {
    let body = |step| {
        let (mut parts, ()) = Request::new(()).into_parts();
        let state = now(edits.request(cx, &mut parts)).unwrap().state;
        let media = match choice & 1 {
            0 => "text/event-stream",
            _ => "text/plain",
        };
        let coding = CODINGS[usize::from(choice >> 2 & 7)];
        let response = Response::builder()
            .header("content-type", media)
            .header("content-encoding", coding)
            .body(());
        let (mut parts, ()) = response.unwrap().into_parts();
        match now(edits.response(cx, state, &mut parts)) {
            Ok(edit) => match edit.body {
                BodyEdit::Transform(transform) => through(transform, data, step),
                other => panic!("{other:?} of a body that has to be looked into"),
            },
            Err(_) => None,
        }
    };
    let whole = body(usize::MAX);
    // How much a body may become grows with it, so that one that becomes more in its first
    // pieces is refused there.
    let is_large = whole.as_ref().is_some_and(|whole| whole.len() >= 1 << 20);
    for step in [1, 7, 100].into_iter().filter(|_| !is_large) {
        assert!(body(step) == whole, "in pieces of {step}");
    }
    let value = VALUE.as_bytes();
    let got = whole.unwrap_or_default();
    assert!(
        !got.windows(value.len()).any(|window| window == value),
        "a value came back"
    );
    assert!(got.len() <= (data.len() * 257 + (1 << 20)) * 8 * 257);
}
