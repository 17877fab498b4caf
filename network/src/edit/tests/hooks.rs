//! Rules, and whom they ask.

use super::*;

/// All rules that match act, in their order, before values come in.
#[tokio::test]
async fn rules_act_in_order() {
    let hooks = vec![
        before(|spec| spec.set_headers = map(&[("x", "1"), ("auth", KEY)])),
        before(|spec| {
            spec.path = "/from".to_owned();
            spec.rewrite_path = "/to".to_owned();
        }),
        before(|spec| {
            spec.path = "/to".to_owned();
            spec.set_headers = map(&[("x", "2")]);
            spec.set_query = map(&[("k", KEY)]);
        }),
        before(|spec| {
            spec.path = "/from".to_owned();
            spec.action = Action::Block;
        }),
    ];
    let edits = edits(hooks, secrets());
    let cx = to("a.test", true);
    let (parts, edit) = sent(&edits, &cx, request("GET", "/from", &[]))
        .await
        .unwrap();
    assert_eq!(parts.headers["x"], "2");
    same(
        parts.headers["auth"].as_bytes(),
        VALUE,
        "a header of a rule",
    );
    assert!(parts.uri.path() == "/to" && parts.uri.query().unwrap().starts_with("k=v%26"));
    assert_eq!(edit.secrets.substituted, ["KEY"]);
    // A rule can no more send a placeholder to another host than the guest can.
    let denied = refused(&edits, &to("c.test", true), request("GET", "/x", &[])).await;
    assert_eq!(denied.denial.code, Code::SecretLeak);
}

#[tokio::test]
async fn a_rule_that_blocks_is_named() {
    let block = |name: &str, phase| HookSpec {
        name: name.to_owned(),
        phase,
        methods: strings(&["post"]),
        action: Action::Block,
        ..HookSpec::default()
    };
    let edits = edits(
        vec![block("no posts", Phase::Before), block("", Phase::After)],
        vec![],
    );
    let cx = to("a.test", true);
    let denied = refused(&edits, &cx, request("POST", "/", &[])).await;
    assert_eq!(denied.denial.code, Code::Rule);
    assert_eq!(denied.denial.rule.as_deref(), Some("no posts"));
    // F14: nor by another way to say the method.
    let headers = [("x-http-method-override", "POST"), ("x", "1")];
    let (parts, _) = sent(&edits, &cx, request("GET", "/", &headers))
        .await
        .unwrap();
    assert_eq!(parts.headers.len(), 1);
    let after = Edits::new(edits.hooks[1..].to_vec(), edits.secrets, edits.options);
    let denied = answered_with(&after, &cx, "POST", &[], b"", 1)
        .await
        .unwrap_err();
    assert_eq!(denied.denial.code, Code::Rule);
    assert_eq!(denied.denial.rule, None);
}

/// F13: no other way to write a path goes past a rule.
#[tokio::test]
async fn a_path_is_judged_as_it_is_sent_or_not_at_all() {
    let block = |hosts: &[&str]| HookSpec {
        hosts: strings(hosts),
        path: "/admin".to_owned(),
        action: Action::Block,
        ..HookSpec::default()
    };
    let edits = edits(vec![block(&["a.test"])], vec![]);
    for (path, code) in [
        ("/admin", Code::Rule),
        ("/%61dmin", Code::Rule),
        ("/x/../admin", Code::Rule),
        ("/x/./../admin", Code::Rule),
        ("/x/%2e%2e/admin", Code::Ambiguous),
        ("//admin", Code::Ambiguous),
        ("/admin%00", Code::Ambiguous),
    ] {
        let denied = refused(&edits, &to("a.test", true), request("GET", path, &[])).await;
        assert_eq!(denied.denial.code, code, "{path}");
    }
    let passed = async |host: &str, target: &str| {
        let parts = request("GET", target, &[]);
        let (parts, _) = sent(&edits, &to(host, true), parts).await.unwrap();
        parts.uri.to_string()
    };
    assert_eq!(passed("a.test", "/%62?q=%62").await, "/b?q=%62");
    assert_eq!(passed("b.test", "/x//%62/../x").await, "/x//%62/../x");
}

/// Who is asked about a request is asked about what the host gets, whatever the rule says
/// whom it is for.
#[tokio::test]
async fn a_callback_sees_the_request_as_the_host_does() {
    let judge = || {
        on_request(|seen: RequestSeen| async move {
            Ok(RequestAnswer {
                block: seen.path == "/admin" || seen.method == "POST",
                ..RequestAnswer::default()
            })
        })
    };
    let edits = edits(vec![before(|spec| spec.ask = asks(judge(), false))], vec![]);
    let cx = to("a.test", true);
    for (method, path, code) in [
        ("GET", "/admin", Code::Rule),
        ("GET", "/x/../%61dmin", Code::Rule),
        ("GET", "//admin", Code::Ambiguous),
        ("GET", "/admin;x", Code::Ambiguous),
        ("GET", "/x/%2e%2e/admin", Code::Ambiguous),
        ("POST", "/", Code::Rule),
        ("post", "/", Code::Ambiguous),
    ] {
        let denied = refused(&edits, &cx, request(method, path, &[])).await;
        assert_eq!(denied.denial.code, code, "{method} {path}");
    }
    for name in [
        "x-http-method-override",
        "x_http_method_override",
        "X-Original_URL",
    ] {
        let parts = request("GET", "/", &[(name, "POST"), ("x", "1")]);
        let (parts, _) = sent(&edits, &cx, parts).await.unwrap();
        assert_eq!(parts.headers.len(), 1, "{name}");
    }
    // So is a rule that only changes something.
    let change = edits_of(|spec| {
        spec.path = "/admin".to_owned();
        spec.delete_headers = strings(&["x"]);
    });
    let denied = refused(&change, &cx, request("GET", "//admin", &[])).await;
    assert_eq!(denied.denial.code, Code::Ambiguous);
}

fn edits_of(change: impl FnOnce(&mut HookSpec)) -> Edits {
    edits(vec![before(change)], vec![])
}

/// It is told what became of a callback.
#[tokio::test]
async fn a_callback_that_fails_is_told_of() {
    let failed = on_request(|_| async { Err(CallbackError::Failed("no".to_owned())) });
    let edits = edits_of(|spec| {
        spec.name = "mine".to_owned();
        spec.ask = asks(failed, false);
    });
    let denied = refused(&edits, &to("a.test", true), request("GET", "/", &[])).await;
    let why = "mine: the callback failed: no";
    assert_eq!(denied.denial.rule.as_deref(), Some(why));
    assert!(denied.denial.hint().contains(why));
}

/// Rules for responses see the path that the request was sent with.
#[tokio::test]
async fn responses_are_changed() {
    let hooks = vec![
        before(|spec| spec.rewrite_path = "/to".to_owned()),
        after(|spec| {
            spec.path = "/to".to_owned();
            spec.set_response_headers = map(&[("x", "1"), ("y", "2"), ("Content-Length", "0")]);
            spec.delete_response_headers = strings(&["Y", "z", "content-length"]);
            spec.body_replacements = vec![
                ("cat".to_owned(), "dog".to_owned()),
                ("dogs".to_owned(), "mice".to_owned()),
            ];
        }),
        after(|spec| {
            spec.path = "/".to_owned();
            spec.action = Action::Block;
        }),
        after(|spec| spec.body_replacements = vec![("mice".to_owned(), String::new())]),
    ];
    let edits = edits(hooks, vec![]);
    let cx = to("a.test", true);
    let text = b"cats and dogs, cat";
    let coded = gzip(text);
    for (coding, body) in [("identity", &text[..]), ("gzip", &coded)] {
        for step in [1, 2, 5, 100] {
            let headers = [
                ("z", "3"),
                ("content-length", "18"),
                ("content-encoding", coding),
            ];
            let out = answered_with(&edits, &cx, "GET", &headers, body, step).await;
            let (parts, out, _) = out.unwrap();
            assert_eq!(String::from_utf8_lossy(&out), " and , dog");
            assert_eq!(parts.headers["x"], "1");
            assert_eq!(parts.headers["content-length"], "18");
            assert_eq!(parts.headers.len(), 2);
        }
    }
    let events = b"event: cat\ndata: cat\r\n\r\ndata: cats";
    let headers = [("content-type", "Text/Event-Stream; charset=utf-8")];
    let out = answered_with(&edits, &cx, "GET", &headers, events, 3)
        .await
        .unwrap()
        .1;
    assert_eq!(out, b"event: cat\ndata: dog\r\n\r\ndata: ");
    let odd = answered_with(&edits, &cx, "GET", &[("content-encoding", "x")], b"", 1).await;
    assert_eq!(odd.unwrap_err().denial.code, Code::Rule);
}

fn asks(callback: Arc<dyn Callback>, fail_open: bool) -> Option<Ask> {
    Some(Ask {
        fail_open,
        ..Ask::new(callback)
    })
}

/// G22: callbacks see placeholders, and what they give to the guest has no value in it.
#[tokio::test]
async fn callbacks_decide_and_change() {
    let on_request = on_request(|seen: RequestSeen| async move {
        assert_eq!((seen.host.as_str(), seen.path.as_str()), ("a.test", "/p q"));
        let mut headers = seen.headers;
        headers.insert("X-Key".to_owned(), strings(&[KEY]));
        Ok(RequestAnswer {
            headers: Some(headers),
            ..RequestAnswer::default()
        })
    });
    let on_response = on_response(|request: RequestSeen, response: ResponseSeen| async move {
        assert_eq!(request.headers["X-Key"], [KEY]);
        assert_eq!((response.status, response.is_events), (200, false));
        assert_eq!(response.headers["Echo"], [KEY]);
        Ok(ResponseAnswer {
            headers: Some([("X".to_owned(), strings(&[VALUE]))].into()),
            replacements: vec![("one".to_owned(), "two".to_owned())],
            body: Some(format!("one {VALUE}").into()),
            ..ResponseAnswer::default()
        })
    });
    let hooks = vec![
        before(|spec| spec.ask = asks(on_request, false)),
        after(|spec| spec.ask = asks(on_response, false)),
    ];
    let edits = edits(hooks, secrets());
    let cx = to("a.test", true);
    let parts = request("GET", "/p%20q", &[("host", "a.test")]);
    let (parts, edit) = sent(&edits, &cx, parts).await.unwrap();
    same(
        parts.headers["x-key"].as_bytes(),
        VALUE,
        "a header of a callback",
    );
    let headers = [("content-encoding", "dcb"), ("y", "1"), ("echo", VALUE)];
    let mut builder = http::Response::builder();
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    let mut parts = builder.body(()).unwrap().into_parts().0;
    let edit = edits.response(&cx, edit.state, &mut parts).await.unwrap();
    let BodyEdit::Replace(body) = edit.body else {
        panic!("the body is another one");
    };
    same(&body, format!("two {KEY}"), "the body");
    same(parts.headers["x"].as_bytes(), KEY, "a header");
    assert_eq!((parts.headers.len(), edit.scrubbed), (1, 2));
}

/// Without an answer nothing passes, unless it was said that it may.
#[tokio::test(start_paused = true)]
async fn callbacks_fail_closed() {
    let failed = || on_request(|_| async { Err(CallbackError::Failed("no".to_owned())) });
    let silent = || on_request(|_| std::future::pending());
    let senseless = || {
        on_request(|_| async {
            Ok(RequestAnswer {
                path: Some("x".to_owned()),
                headers: Some(Headers::new()),
                ..RequestAnswer::default()
            })
        })
    };
    let blocks = || {
        on_request(|_| async {
            Ok(RequestAnswer {
                block: true,
                ..RequestAnswer::default()
            })
        })
    };
    let cx = to("a.test", true);
    let begun = tokio::time::Instant::now();
    for (callback, closed, open) in [
        (failed(), Some(Code::Callback), None),
        (silent(), Some(Code::Callback), None),
        (senseless(), Some(Code::Callback), None),
        (blocks(), Some(Code::Rule), Some(Code::Rule)),
    ] {
        for (fail_open, code) in [(false, closed), (true, open)] {
            let ask = asks(Arc::clone(&callback), fail_open);
            let edits = edits(vec![before(|spec| spec.ask = ask)], vec![]);
            let sent = sent(&edits, &cx, request("GET", "/", &[("x", "1")])).await;
            let refused = sent.as_ref().err().map(|refused| refused.denial.code);
            assert_eq!(refused, code, "{fail_open}");
            if let Ok((parts, _)) = sent {
                assert_eq!(parts.headers["x"], "1");
            }
        }
    }
    assert_eq!(begun.elapsed(), 2 * CALLBACK_DEADLINE);
    let silent = on_response(|_, _| std::future::pending());
    let ask = Some(Ask {
        deadline: Duration::from_millis(10),
        ..Ask::new(silent)
    });
    let edits = edits(vec![after(|spec| spec.ask = ask)], vec![]);
    let out = answered_with(&edits, &cx, "GET", &[], b"", 1).await;
    assert_eq!(out.unwrap_err().denial.code, Code::Callback);
}

/// Nothing is locked while a callback thinks.
#[tokio::test]
async fn a_callback_may_change_secrets() {
    let secrets = Arc::new(Secrets::new(secrets()).unwrap());
    let kept = Arc::clone(&secrets);
    let change = on_request(move |_| {
        let changed = kept.set("KEY", Zeroizing::new("another one".to_owned()));
        async move {
            changed.map_err(|error| CallbackError::Failed(error.to_string()))?;
            Ok(RequestAnswer::default())
        }
    });
    let hook = Hook::new(before(|spec| spec.ask = asks(change, false)));
    let hooks = vec![hook.unwrap().unwrap()];
    let edits = Edits::new(hooks, secrets, Options::default());
    let sent = sent(
        &edits,
        &to("a.test", true),
        request("GET", "/", &[("x", KEY)]),
    )
    .await;
    same(
        sent.unwrap().0.headers["x"].as_bytes(),
        "another one",
        "the value",
    );
}
