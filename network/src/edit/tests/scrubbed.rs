//! What hosts send back of secrets, and what is told of it.

use super::*;

/// A secret for a.test whose value could be the name of a header.
fn token() -> Vec<Secret> {
    vec![secret("KEY", "Hunter22Token", &["a.test"])]
}

async fn out(edits: &Edits, headers: &[(&str, &str)], body: &str) -> (response::Parts, String) {
    let cx = to("a.test", true);
    let answered = answered_with(edits, &cx, "GET", headers, body.as_bytes(), 3).await;
    let (parts, out, _) = answered.unwrap();
    (parts, String::from_utf8(out).unwrap())
}

/// Names have lost their upper case, which does not make them another value.
#[tokio::test]
async fn a_header_that_is_named_after_a_value_is_gone() {
    let edits = edits(vec![], token());
    let headers = [
        ("x-hunter22token-x", "1"),
        ("hunter22token", "2"),
        ("y", "3"),
    ];
    let (parts, _) = out(&edits, &headers, "").await;
    assert_eq!(parts.headers.len(), 1);
    assert_eq!(parts.headers["y"], "3");
}

/// Hosts may have kept any of them.
#[tokio::test]
async fn values_that_were_are_taken_out() {
    let mut edits = edits(vec![], token());
    let values: Vec<_> = (0..17)
        .map(|number| format!("Hunter-{number:02}-Token"))
        .collect();
    for value in &values {
        let set = edits.secrets.set("KEY", Zeroizing::new(value.clone()));
        set.unwrap();
    }
    let (_, body) = out(&edits, &[], &values.join(" ")).await;
    assert_eq!(body, vec!["PLACEHOLDER_KEY_"; 17].join(" "));
    // There is an end to it.
    let (_, body) = out(&edits, &[], "Hunter22Token").await;
    assert_eq!(body, "Hunter22Token");
    edits.options.scrub = false;
    let (_, body) = out(&edits, &[], &values[16]).await;
    assert_eq!(body, values[16]);
}

/// Nobody looks into the messages of gRPC, each of which may have a coding.
#[tokio::test]
async fn messages_have_no_coding_of_their_own() {
    let edits = edits(vec![], token());
    let asked = [("grpc-accept-encoding", "gzip"), ("te", "trailers")];
    let cx = to("a.test", true);
    let (parts, _) = sent(&edits, &cx, request("POST", "/", &asked))
        .await
        .unwrap();
    assert_eq!(parts.headers["grpc-accept-encoding"], "identity");
    let (parts, _) = out(&edits, &[("grpc-encoding", "identity")], "x").await;
    assert_eq!(parts.headers["grpc-encoding"], "identity");
    let coded = [("grpc-encoding", "gzip")];
    let refused = answered_with(&edits, &cx, "POST", &coded, b"x", 1).await;
    let refused = refused.unwrap_err().denial;
    assert_eq!(refused.code, Code::Rule);
    assert!(refused.hint().contains("gzip"), "{refused}");
}

/// G11
#[tokio::test]
async fn no_header_asks_for_a_part() {
    let mut edits = edits(vec![], token());
    edits.options.forbid_range = true;
    let cx = to("a.test", true);
    for name in ["range", "request-range", "x-ms-range"] {
        let parts = request("GET", "/", &[(name, "bytes=1-1")]);
        let (parts, _) = sent(&edits, &cx, parts).await.unwrap();
        assert!(!parts.headers.contains_key(name), "{name}");
    }
}

/// What values come in, and what placeholders stay, is told of bodies as well.
#[tokio::test]
async fn secrets_in_bodies_are_told_of() {
    for (is_place, substituted, missed) in [(true, &["KEY"][..], &[][..]), (false, &[], &["KEY"])] {
        let mut secrets = token();
        secrets[0].places.body = is_place;
        let edits = edits(vec![], secrets);
        let cx = to("a.test", true);
        let (_, edit) = sent(&edits, &cx, request("POST", "/", &[])).await.unwrap();
        let mut body = edit.body.unwrap();
        let mut out = Vec::new();
        body.push(b"a PLACEHOLDER_", &mut out).unwrap();
        assert!(edit.noted.so_far().substituted.is_empty());
        body.push(b"KEY_", &mut out).unwrap();
        body.finish(&mut out).unwrap();
        let told = edit.noted.so_far();
        assert_eq!(told.substituted, substituted);
        assert_eq!(told.missed, missed);
    }
}
