//! Secrets: where they come, where they do not, and what becomes of what comes back.

use super::*;

/// G2, G4, G5: values come where they may be, and are told of.
#[tokio::test]
async fn values_come_in_headers_and_the_query() {
    let edits = edits(vec![], secrets());
    let headers = [
        ("host", "a.test"),
        ("authorization", "Bearer PLACEHOLDER_KEY_"),
        ("x-two", "PLACEHOLDER_KEY_ PLACEHOLDER_KEY_"),
        ("x-two", "again=PLACEHOLDER_KEY_;"),
        ("cookie", "a=1; k=PLACEHOLDER_KEY_"),
        ("accept", "*/*"),
    ];
    let target = "/p?k=PLACEHOLDER_KEY_&l=%50LACEHOLDER%5fKEY_&b=1;&m";
    let cx = to("A.TEST.", true);
    let (parts, edit) = sent(&edits, &cx, request("GET", target, &headers))
        .await
        .unwrap();
    let header = |name: &str| {
        let values = parts.headers.get_all(name).iter();
        let values: Vec<_> = values.map(HeaderValue::as_bytes).collect();
        values.join(&b'|')
    };
    same(
        &header("authorization"),
        format!("Bearer {VALUE}"),
        "authorization",
    );
    same(
        &header("x-two"),
        format!("{VALUE} {VALUE}|again={VALUE};"),
        "a header that is there twice",
    );
    same(&header("cookie"), format!("a=1; k={VALUE}"), "cookie");
    same(&header("accept"), "*/*", "a header without");
    assert!(parts.headers[AUTHORIZATION].is_sensitive());
    // A value with `&` and `=` is one value.
    let value = "v%26%3D%22%2F%20%2B1%2541%5Cx";
    let query = format!("/p?k={value}&l={value}&b=1;&m");
    same(parts.uri.to_string().as_bytes(), query, "the query");
    assert_eq!(edit.secrets.substituted, ["KEY"]);
    assert!(edit.secrets.missed.is_empty() && edit.secrets.leaked.is_empty());
}

/// G8: credentials are decoded, and encoded again.
#[tokio::test]
async fn values_come_in_basic_credentials() {
    let edits = edits(vec![], secrets());
    for (scheme, credentials) in [
        ("Basic ", STANDARD.encode("user:PLACEHOLDER_KEY_")),
        (
            "basic ",
            STANDARD.encode("user:PLACEHOLDER_KEY_").replace('=', ""),
        ),
    ] {
        let header = format!("{scheme}{credentials}");
        let parts = request("GET", "/", &[("authorization", &header)]);
        let (parts, edit) = sent(&edits, &to("a.test", true), parts).await.unwrap();
        let expected = format!("{scheme}{}", STANDARD.encode(format!("user:{VALUE}")));
        same(
            parts.headers[AUTHORIZATION].as_bytes(),
            expected,
            "credentials",
        );
        assert_eq!(edit.secrets.substituted, ["KEY"]);
    }
}

/// G4, G12, G15: elsewhere the placeholder stays, and that is told.
#[tokio::test]
async fn placeholders_stay_where_values_may_not_be() {
    let none = Places {
        headers: false,
        basic: false,
        query: false,
        path: false,
        body: false,
    };
    let basic = format!("Basic {}", STANDARD.encode("u:PLACEHOLDER_KEY_"));
    let api_key = Some(vec![HeaderName::from_static("x-api-key")]);
    type Change = fn(&mut Secret, Places, Option<Vec<HeaderName>>);
    type Case<'a> = (&'a str, bool, Change, &'a str, (&'a str, &'a str));
    let cases: [Case<'_>; 6] = [
        ("path", true, |_, _, _| {}, "/PLACEHOLDER_KEY_", ("a", "b")),
        (
            "plain HTTP",
            false,
            |_, _, _| {},
            "/?PLACEHOLDER_KEY_",
            ("a", KEY),
        ),
        (
            "header",
            true,
            |s, none, _| s.places = none,
            "/",
            ("a", KEY),
        ),
        (
            "basic",
            true,
            |s, none, _| s.places = none,
            "/",
            ("authorization", &basic),
        ),
        (
            "query",
            true,
            |s, none, _| s.places = none,
            "/?q=PLACEHOLDER_KEY_",
            ("a", "b"),
        ),
        (
            "another header",
            true,
            |s, _, named| s.headers = named,
            "/",
            ("authorization", KEY),
        ),
    ];
    for (what, tls, change, target, header) in cases {
        let mut all = secrets();
        change(&mut all[0], none, api_key.clone());
        let edits = edits(vec![], all);
        let before = request("GET", target, &[header]);
        let sent = sent(&edits, &to("a.test", tls), before.clone()).await;
        let (parts, edit) = sent.unwrap();
        assert!(parts.uri == before.uri, "{what}");
        assert!(
            parts.headers[header.0] == before.headers[header.0],
            "{what}"
        );
        assert_eq!(edit.secrets.missed, ["KEY"], "{what}");
        assert!(edit.secrets.substituted.is_empty(), "{what}");
    }
    // Said otherwise, they come.
    let mut all = secrets();
    all[0].plain_http = true;
    all[0].places.path = true;
    all[0].headers = api_key;
    let edits = edits(vec![], all);
    let parts = request("GET", "/x/PLACEHOLDER_KEY_/y", &[("x-api-key", KEY)]);
    let (parts, edit) = sent(&edits, &to("a.test", false), parts).await.unwrap();
    same(parts.headers["x-api-key"].as_bytes(), VALUE, "the header");
    let path = "/x/v%26%3D%22%2F%20%2B1%2541%5Cx/y";
    same(parts.uri.to_string().as_bytes(), path, "the path");
    assert_eq!(edit.secrets.substituted, ["KEY"]);
}

/// G3, G7, G14: a placeholder for another host does not pass, however it is written.
#[tokio::test]
async fn a_placeholder_for_another_host_is_a_leak() {
    let edits = edits(vec![], secrets());
    let twice = "%2550LACEHOLDER_OTHER_";
    for (what, target, header) in [
        ("header", "/", OTHER.to_owned()),
        ("in a header", "/", format!("Bearer x{OTHER}y")),
        ("percent-encoded", "/", "%50LACEHOLDER_%4fTHER_".to_owned()),
        ("encoded twice", "/", twice.to_owned()),
        (
            "basic",
            "/",
            format!("Basic {}", STANDARD.encode(format!("u:{OTHER}"))),
        ),
        ("base64", "/", URL_SAFE.encode(format!("xx{OTHER}"))),
        ("query", "/?q=PLACEHOLDER_OTHER_", String::new()),
        (
            "query, encoded",
            "/?q=PLACEHOLDER%5FOTHER%5F",
            String::new(),
        ),
        (
            "query, encoded twice",
            "/?q=PLACEHOLDER%255fOTHER_",
            String::new(),
        ),
        ("path", "/x/PLACEHOLDER_OTHER_", String::new()),
        ("path, encoded", "/x/PLACEHOLDER%5FOTHER_", String::new()),
        (
            "with one that may be",
            "/?k=PLACEHOLDER_KEY_",
            OTHER.to_owned(),
        ),
    ] {
        for tls in [true, false] {
            let parts = request("GET", target, &[("x", &header)]);
            let refused = refused(&edits, &to("a.test", tls), parts).await;
            assert_eq!(refused.denial.code, Code::SecretLeak, "{what}");
            assert_eq!(
                refused.denial.rule.as_deref(),
                Some("secret OTHER"),
                "{what}"
            );
            assert_eq!(refused.secrets.leaked, ["OTHER"], "{what}");
            assert!(refused.secrets.substituted.is_empty(), "{what}");
        }
    }
    // G19: a placeholder of somebody else is a text like any other.
    let parts = request("GET", "/", &[("x", "PLACEHOLDER_ELSE_")]);
    assert!(sent(&edits, &to("a.test", true), parts).await.is_ok());
    // G15: on another port as well.
    let mut all = secrets();
    all[0].hosts = vec!["a.test:443".parse().unwrap()];
    let edits = self::edits(vec![], all);
    let parts = request("GET", "/", &[("x", KEY)]);
    let cx = RequestContext {
        port: 8443,
        ..to("a.test", true)
    };
    let refused = refused(&edits, &cx, parts).await;
    assert_eq!(refused.denial.code, Code::SecretLeak);
}

/// G21: what a head may become has a limit.
#[tokio::test]
async fn a_head_does_not_become_what_it_likes() {
    let long = secret("KEY", &"x".repeat(1024), &["a.test"]);
    let edits = edits(vec![], vec![long]);
    let many = |count: usize| vec![KEY; count].join(" ");
    let parts = request("GET", "/", &[("x", &many(100))]);
    let (parts, _) = sent(&edits, &to("a.test", true), parts).await.unwrap();
    assert_eq!(parts.headers["x"].len(), 100 * 1024 + 99);
    let query = format!("/?{}", vec![KEY; 100].join("&"));
    for (target, header) in [("/", many(1000)), (query.as_str(), many(1))] {
        let parts = request("GET", target, &[("x", &header)]);
        let refused = refused(&edits, &to("a.test", true), parts).await;
        assert_eq!(refused.denial.code, Code::Rule);
        assert!(!refused.denial.to_string().contains("xxxx"));
    }
}

/// G18: the next request has the new value, or none.
#[tokio::test]
async fn values_change_while_requests_run() {
    let edits = edits(vec![], secrets());
    let cx = to("a.test", true);
    let parts = || request("GET", "/", &[("x", KEY)]);
    let value = |text: &str| Zeroizing::new(text.to_owned());
    edits.secrets.set("KEY", value("another one")).unwrap();
    let (sent_parts, _) = sent(&edits, &cx, parts()).await.unwrap();
    same(
        sent_parts.headers["x"].as_bytes(),
        "another one",
        "the new value",
    );
    // The old one may still come back.
    let body = format!("{VALUE} another one");
    let out = answered_with(&edits, &cx, "GET", &[], body.as_bytes(), 3).await;
    let (_, out, count) = out.unwrap();
    same(&out, format!("{KEY} {KEY}"), "both values");
    assert_eq!(count, 2);
    edits.secrets.revoke("KEY").unwrap();
    let refused = refused(&edits, &cx, parts()).await;
    assert_eq!(refused.denial.code, Code::SecretLeak);
    assert_eq!(refused.secrets.leaked, ["KEY"]);
    // It may be valid still, and come back from where it was put.
    let parts = request("GET", "/", &[]);
    let (_, edit) = sent(&edits, &cx, parts).await.unwrap();
    drop(edit);
    let out = answered_with(&edits, &cx, "GET", &[], b"another one", 3).await;
    same(&out.unwrap().1, KEY, "the value that was taken away");
}

/// G23
#[tokio::test]
async fn no_trace_where_a_secret_may_be() {
    let edits = edits(vec![], secrets());
    let denied = refused(&edits, &to("a.test", true), request("TRACE", "/", &[])).await;
    assert_eq!(denied.denial.code, Code::Rule);
    let other = request("TRACE", "/", &[]);
    assert!(sent(&edits, &to("c.test", true), other).await.is_ok());
}

/// All that comes out of a body in pieces of `step`, or how it broke.
fn through(transform: &mut dyn Transform, body: &[u8], step: usize) -> Result<Vec<u8>, Vec<u8>> {
    let mut out = Vec::new();
    for piece in body.chunks(step) {
        if transform.push(piece, &mut out).is_err() {
            return Err(out);
        }
    }
    match transform.finish(&mut out) {
        Ok(()) => Ok(out),
        Err(_) => Err(out),
    }
}

/// G6: where bodies are asked for, a value is written as the body writes its texts.
#[tokio::test]
async fn values_come_in_bodies_if_they_are_to() {
    let mut all = secrets();
    all[0].places.body = true;
    let edits = edits(vec![], all);
    let json = r#"v&=\"/ +1%41\\x"#;
    for (media, body, expected) in [
        (
            "application/json",
            r#"{"k":"PLACEHOLDER_KEY_"}"#,
            format!(r#"{{"k":"{json}"}}"#),
        ),
        (
            "Application/X+JSON; a=b",
            "PLACEHOLDER_KEY_",
            json.to_owned(),
        ),
        (
            "application/x-www-form-urlencoded",
            "a=PLACEHOLDER_KEY_&b=1",
            "a=v%26%3D%22%2F%20%2B1%2541%5Cx&b=1".to_owned(),
        ),
        (
            "text/plain",
            "PLACEHOLDER_KEYPLACEHOLDER_KEY_",
            format!("PLACEHOLDER_KEY{VALUE}"),
        ),
        ("", "xPLACEHOLDER_KEY_", format!("x{VALUE}")),
    ] {
        for step in 1..20 {
            let parts = request("POST", "/", &[("content-type", media)]);
            let (_, edit) = sent(&edits, &to("a.test", true), parts).await.unwrap();
            let mut transform = edit.body.unwrap();
            assert!(!transform.keeps_length());
            let out = through(&mut *transform, body.as_bytes(), step).unwrap();
            same(&out, &expected, media);
        }
    }
    // Not in the clear, and not where it cannot be found.
    for (tls, header) in [(false, ("a", "b")), (true, ("content-encoding", "gzip"))] {
        let parts = request("POST", "/", &[header]);
        let (_, edit) = sent(&edits, &to("a.test", tls), parts).await.unwrap();
        let out = through(&mut *edit.body.unwrap(), KEY.as_bytes(), 5).unwrap();
        same(&out, KEY, header.0);
    }
}

/// A body for another host breaks off, before the whole placeholder has passed.
#[tokio::test]
async fn a_placeholder_in_a_body_for_another_host_is_a_leak() {
    let edits = edits(vec![], secrets());
    let cx = to("a.test", true);
    for placeholder in [
        OTHER.to_owned(),
        STANDARD.encode(format!("x{OTHER}")),
        OTHER.bytes().map(|byte| format!("{byte:02x}")).collect(),
    ] {
        let body = format!("some text, {placeholder}, and more");
        for step in [1, 2, 7, 1000] {
            let (_, edit) = sent(&edits, &cx, request("POST", "/", &[])).await.unwrap();
            let mut transform = edit.body.unwrap();
            assert!(transform.keeps_length());
            let passed = through(&mut *transform, body.as_bytes(), step).unwrap_err();
            assert!(passed.len() < body.len() - ", and more".len(), "{step}");
        }
    }
    let (_, edit) = sent(&edits, &cx, request("POST", "/", &[])).await.unwrap();
    let mut transform = edit.body.unwrap();
    let error = transform
        .push(OTHER.as_bytes(), &mut Vec::new())
        .unwrap_err();
    let why = error.get_ref().and_then(|why| why.downcast_ref());
    assert_eq!(why, Some(&Broken::Leak(vec!["OTHER".to_owned()])));
    // That of this host is worth something here, and may be written about.
    let (_, edit) = sent(&edits, &cx, request("POST", "/", &[])).await.unwrap();
    let out = through(&mut *edit.body.unwrap(), KEY.as_bytes(), 3);
    assert_eq!(out.unwrap(), KEY.as_bytes());
}

/// G9, G10: what a host says back has placeholders in it, not values.
#[tokio::test]
async fn values_are_taken_out_of_responses() {
    let edits = edits(vec![], secrets());
    let cx = to("a.test", true);
    let basic = STANDARD.encode(format!("user:{VALUE}"));
    let location = "/?k=v%26%3D%22%2F%20%2B1%2541%5Cx";
    let body = format!(
        r#"{{"a":"{VALUE}","b":"v&=\"/ +1%41\\x","c":"v%26%3d%22%2f%20%2b1%2541%5cx","d":"{basic}"}}"#
    );
    let coded = gzip(body.as_bytes());
    for (coding, body) in [("identity", body.as_bytes()), ("gzip", &coded)] {
        for step in [1, 2, 3, 5, 8, 1000] {
            let headers = [
                ("location", location),
                ("set-cookie", VALUE),
                ("content-encoding", coding),
            ];
            let out = answered_with(&edits, &cx, "GET", &headers, body, step).await;
            let (parts, out, count) = out.unwrap();
            let cookie = parts.headers["set-cookie"].as_bytes();
            same(cookie, KEY, "set-cookie");
            let location = parts.headers["location"].as_bytes();
            same(location, "/?k=PLACEHOLDER_KEY_", "location");
            assert!(!parts.headers.contains_key("content-encoding"));
            let out = String::from_utf8(out).unwrap();
            let start =
                r#"{"a":"PLACEHOLDER_KEY_","b":"PLACEHOLDER_KEY_","c":"PLACEHOLDER_KEY_","d":""#;
            assert!(out.starts_with(start), "{coding} {step}");
            assert!(
                !out.contains(&basic) && out.matches(KEY).count() == 4,
                "{step}"
            );
            assert_eq!(count, 6);
        }
    }
    let head = answered_with(&edits, &cx, "HEAD", &[("content-encoding", "x")], b"", 1).await;
    assert!(head.unwrap().0.headers.contains_key("content-encoding"));
    // Fail closed.
    let odd = answered_with(&edits, &cx, "GET", &[("content-encoding", "dcb")], b"", 1).await;
    let odd = odd.unwrap_err();
    assert_eq!(odd.denial.code, Code::Rule);
    assert!(odd.denial.hint().contains("dcb"));
    let echo = [("content-encoding", VALUE)];
    let odd = answered_with(&edits, &cx, "GET", &echo, b"", 1).await;
    let told = format!("{:?}", odd.unwrap_err());
    assert!(told.contains(KEY) && !told.contains("v&="), "a value");
    // Of another host nothing is taken, and on it nothing depends.
    let c = to("c.test", true);
    let odd = answered_with(&edits, &c, "GET", &[("content-encoding", "dcb")], b"x", 1).await;
    assert_eq!(odd.unwrap().1, b"x");
    let mut edits = edits;
    edits.options.scrub = false;
    let out = answered_with(&edits, &cx, "GET", &[("x", VALUE)], VALUE.as_bytes(), 3).await;
    let (parts, out, count) = out.unwrap();
    same(parts.headers["x"].as_bytes(), VALUE, "a header");
    same(&out, VALUE, "a body");
    assert_eq!(count, 0);
}

/// G10, G11
#[tokio::test]
async fn a_host_is_asked_for_what_can_be_looked_into() {
    let mut edits = edits(vec![], secrets());
    let headers = [
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("range", "bytes=3-3"),
        ("if-range", "\"x\""),
    ];
    let heads = async |edits: &Edits, host: &str, headers: &[(&str, &str)]| {
        let parts = request("GET", "/", headers);
        let (parts, _) = sent(edits, &to(host, true), parts).await.unwrap();
        let text = |name: &str| {
            let value = parts.headers.get(name);
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        (text("accept-encoding"), text("range"), text("if-range"))
    };
    let some = |text: &str| Some(text.to_owned());
    let (coding, ..) = heads(&edits, "a.test", &headers[..1]).await;
    assert_eq!(coding, some("gzip, br"));
    let all = (some("identity"), some("bytes=3-3"), some("\"x\""));
    assert_eq!(heads(&edits, "a.test", &headers).await, all);
    let (coding, ..) = heads(&edits, "c.test", &headers).await;
    assert_eq!(coding, some("gzip, deflate, br, zstd"));
    edits.options.forbid_range = true;
    let none = (some("gzip, br"), None, None);
    assert_eq!(heads(&edits, "a.test", &headers).await, none);
    assert_eq!(heads(&edits, "c.test", &headers).await.1, all.1);
}
