//! What scripts may do, and what becomes of those that do not end.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use flashpan_protocol::network::Protocol;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Connection, MAX_SOURCE, Request, Script, ScriptError};
use crate::policy::{Code, Denial};

fn request(method: &str, path: &str) -> Request {
    let host = "api.a.test".parse().unwrap();
    Request::new(host, 443, true, method, path, "q=1")
}

fn to(host: &str, port: u16) -> Connection {
    let address = "192.0.2.1".parse().unwrap();
    Connection::new(Protocol::Tcp, host.parse().unwrap(), Some(address), port)
}

/// What a body of `request(req)` says of a request.
fn judged(body: &str, request: Request) -> Result<(), Denial> {
    let script = Script::new(&format!("fn request(req) {{ {body} }}"));
    script.unwrap().request_now(request)
}

/// Whether an expression is true of a request.
fn holds(expression: &str, request: Request) {
    assert_eq!(judged(expression, request), Ok(()), "{expression}");
}

/// Why a body of `request(req)` denies, or fails.
fn refused(body: &str) -> (Code, String) {
    let denial = judged(body, request("GET", "/x")).unwrap_err();
    (denial.code, denial.rule.unwrap())
}

fn error(source: &str) -> String {
    Script::new(source).unwrap_err().to_string()
}

#[test]
fn a_script_denies_with_its_reason_and_the_line() {
    let script = Script::new(
        "fn request(req) {\n  if req.method == \"DELETE\" {\n    deny(\"nothing is\\ndeleted\");\n  }\n}",
    )
    .unwrap();
    assert!(script.judges_requests() && !script.judges_connections());
    assert_eq!(script.request_now(request("GET", "/x")), Ok(()));
    let denial = script.request_now(request("DELETE", "/x")).unwrap_err();
    assert_eq!(denial.code, Code::ScriptDenied);
    assert_eq!(denial.host, "api.a.test:443");
    assert_eq!(
        denial.rule.as_deref(),
        Some("policy_script:3: nothing is deleted")
    );
    // What it has no function for is none of its business.
    assert_eq!(script.connection_now(to("a.test", 22)), Ok(()));
}

#[test]
fn a_denial_cannot_be_forgotten() {
    let denied = |body| assert_eq!(refused(body).0, Code::ScriptDenied, "{body}");
    denied("deny(\"x\"); true");
    denied("try { deny(\"x\") } catch { true }");
    denied("let list = [1]; list.map(|one| deny()); true");
    denied("false");
    let nested = "fn no() { deny(\"here\") }\nfn request(req) {\n no(); true }";
    let denial = Script::new(nested)
        .unwrap()
        .request_now(request("GET", "/x"));
    assert_eq!(denial.unwrap_err().rule.unwrap(), "policy_script:1: here");
}

#[test]
fn what_is_neither_yes_nor_no_is_no() {
    for body in ["\"yes\"", "1", "[]", "req", "req.header(\"x\") == 1; 0"] {
        assert_eq!(refused(body).0, Code::ScriptFailed, "{body}");
    }
    for body in ["", "true", "return", "return true", "if false { true }"] {
        assert_eq!(judged(body, request("GET", "/x")), Ok(()), "{body}");
    }
}

#[test]
fn what_fails_is_refused_and_says_where() {
    for (body, why) in [
        ("throw \"no\"", "policy_script:1: threw no"),
        (
            "nothing()",
            "policy_script:1: Function not found: nothing ()",
        ),
        ("1 / 0", "policy_script:1: Division by zero: 1 / 0"),
        ("[1][7]", "policy_script:1: Array index 7"),
        ("req.methods", "policy_script:1: "),
        (
            "req.header(\"x\").len()",
            "policy_script:1: Function not found",
        ),
        ("req.host_is(\"a b\")", "policy_script:1: "),
        ("req.path_is(\"x\")", "policy_script:1: "),
        ("req.method = \"GET\"", "policy_script:1: "),
    ] {
        let (code, rule) = refused(body);
        assert_eq!(code, Code::ScriptFailed, "{body}: {rule}");
        assert!(rule.starts_with(why), "{body}: {rule}");
    }
    // Control characters and length are not the script's to choose.
    let (_, rule) = refused("let s = \"\\x1b[31m\"; s.pad(9000, \"y\"); throw s");
    assert!(rule.len() < 300 && !rule.contains('\x1b'), "{rule}");
}

/// Each of these would go on for ever, or take all memory.
#[test]
fn what_does_not_end_is_ended() {
    let begin = Instant::now();
    for (body, why) in [
        ("loop {}", "steps"),
        ("while true { }", "steps"),
        ("let n = 0; for i in 0..9000000000 { n += i; }", "steps"),
        ("let n = 0; do { n += 1; } while true;", "steps"),
        ("request(req)", "called one another"),
        ("let s = \"xx\"; loop { s += s; }", "Length of string"),
        (
            "let s = \"\"; s.pad(1000000000, \"x\");",
            "Length of string",
        ),
        ("let l = [1]; loop { l += l; }", "Size of array"),
        ("let l = [1]; loop { l = [l, l]; }", "Size of array"),
        ("let l = []; l.pad(1000000000, 1);", "Size of array"),
        ("try { loop {} } catch { true }", "steps"),
        (
            "let s = \"x\"; s.pad(60000, \"x\"); loop { let t = s + \"a\"; t.replace(\"x\", \"y\"); t.to_upper(); }",
            "",
        ),
        (
            "let l = []; l.pad(1000, \"x\"); loop { l.sort(); l.reverse(); l.dedup(); }",
            "",
        ),
    ] {
        let (code, rule) = refused(body);
        assert_eq!(code, Code::ScriptFailed, "{body}");
        // Whichever limit comes first on a machine that does much else.
        let is_limit = rule.contains(why) || rule.contains("took more than 500 ms");
        assert!(is_limit, "{body}: {rule}");
    }
    assert!(begin.elapsed() < Duration::from_secs(30));
    // Deep in functions that are deep in themselves.
    let deep = format!("{}request(req){}", "(1 + ".repeat(28), ")".repeat(28));
    assert_eq!(refused(&deep).0, Code::ScriptFailed);
}

#[test]
fn what_costs_much_for_each_step_has_a_time_limit() {
    let body = "let s = \"x\"; s.pad(65000, \"x\"); \
        loop { let t = s + \"a\"; t.replace(\"x\", \"y\"); t.index_of(\"zz\"); }";
    let begin = Instant::now();
    let (code, rule) = refused(body);
    assert_eq!(code, Code::ScriptFailed);
    let late = "policy_script: request() took more than 500 ms";
    assert_eq!(rule, late);
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn nothing_of_the_host_is_there() {
    for source in [
        "fn request(req) { eval(\"true\") }",
        "fn request(req) { print(1) }",
        "fn request(req) { import \"x\" as y; }",
        "import \"x\" as y; fn request(req) {}",
        "fn request(req) { missing }",
        "fn request(req) { let m = #{}; }",
        "fn request(req) { let f = |x| x; f.curry(1) }",
        "fn request(req) { x => 1 }",
    ] {
        assert!(error(source).starts_with("line 1, column "), "{source}");
    }
    for body in [
        "timestamp()",
        "sleep(1)",
        "exit()",
        "rand()",
        "open_file(\"/etc/passwd\")",
    ] {
        let (code, rule) = refused(body);
        assert!(
            code == Code::ScriptFailed && rule.contains("Function not found"),
            "{rule}"
        );
    }
}

#[test]
fn a_text_that_is_no_script_says_where() {
    let text = error("fn request(req) {\n  if {\n}");
    assert!(text.starts_with("line 2, column "), "{text}");
    assert_eq!(
        Script::new(&" ".repeat(MAX_SOURCE + 1)).unwrap_err(),
        ScriptError::TooLong(MAX_SOURCE + 1)
    );
    for source in ["", "// nothing", "fn other(req) {}"] {
        assert_eq!(Script::new(source).unwrap_err(), ScriptError::Judges);
    }
    for (source, line) in [
        ("fn request(req) {}\nlet x = 1;", 2),
        ("deny(\"x\");\nfn request(req) {}", 1),
        ("fn request(req) {}\n\nif true { loop {} }", 3),
    ] {
        let at = match Script::new(source).unwrap_err() {
            ScriptError::Statement { line, .. } => line,
            other => panic!("{source}: {other}"),
        };
        assert_eq!(at, line, "{source}");
    }
    assert_eq!(
        Script::new("fn request() {}").unwrap_err(),
        ScriptError::Parameters("request", 0)
    );
    assert_eq!(
        Script::new("fn connection(a, b) {}").unwrap_err(),
        ScriptError::Parameters("connection", 2)
    );
    // The compiler has its limits too.
    for deep in [
        format!(
            "fn request(req) {{ {}1{} }}",
            "(".repeat(20_000),
            ")".repeat(20_000)
        ),
        format!("fn request(req) {{ {} }}", "[".repeat(60_000)),
        format!("fn request(req) {{ {} }}", "if true { ".repeat(6_000)),
        (0..1000).map(|n| format!("fn f{n}() {{}}\n")).collect(),
    ] {
        assert!(Script::new(&deep).is_err());
    }
}

#[test]
fn a_request_is_shown_as_it_was_sent() {
    let mut headers = HeaderMap::new();
    let mut add = |name: &'static str, value: &[u8]| {
        let value = HeaderValue::from_bytes(value).unwrap();
        headers.append(HeaderName::from_static(name), value);
    };
    add("x-tag", b"one");
    add("x-tag", b"two");
    add("cookie", b"a=1");
    add("cookie", b"b=2");
    add("x-bytes", b"a\xff");
    let request = request("GET", "/repos/a").with_headers(&headers);
    for expression in [
        "req.method == \"GET\" && req.scheme == \"https\"",
        "req.host == \"api.a.test\" && req.port == 443",
        "req.path == \"/repos/a\" && req.query == \"q=1\"",
        "req.url == \"https://api.a.test/repos/a?q=1\"",
        "req.header(\"X-Tag\") == \"one, two\"",
        "req.header(\"x-tag\").split(\", \").contains(\"two\")",
        "req.header(\"cookie\") == \"a=1; b=2\"",
        "req.header(\"x-bytes\").starts_with(\"a\")",
        "req.header(\"none\") == () && !req.header_names.contains(\"none\")",
        "req.upgrade == \"\"",
        "req.host_is(\"*.a.test\") && req.host_is(\"api.a.test:443\")",
        "!req.host_is(\"a.test\") && !req.host_is(\"api.a.test:80\")",
        "req.path_is(\"/repos/**\") && !req.path_is(\"/*\")",
        "req.path in [\"/x\", \"/repos/a\"]",
        "switch req.method { \"GET\" | \"HEAD\" => true, _ => false }",
    ] {
        holds(expression, request.clone());
    }
    let plain = Request::new("[::1]".parse().unwrap(), 8080, false, "GET", "/", "");
    holds(
        "req.url == \"http://[::1]:8080/\" && req.host == \"::1\"",
        plain,
    );
}

#[test]
fn a_connection_is_shown_with_where_it_leads() {
    let script = Script::new(
        "fn connection(conn) {
            if conn.address_is(\"192.0.2.0/24\") && !conn.host_is(\"*.a.test:22\") {
                deny(`${conn.protocol} to ${conn.host} at ${conn.address}, port ${conn.port}`);
            }
        }",
    )
    .unwrap();
    assert!(!script.judges_requests());
    assert_eq!(script.connection_now(to("db.a.test", 22)), Ok(()));
    let denial = script.connection_now(to("db.a.test", 5432)).unwrap_err();
    assert_eq!(denial.host, "db.a.test:5432");
    let rule = denial.rule.unwrap();
    assert!(
        rule.ends_with("tcp to db.a.test at 192.0.2.1, port 5432"),
        "{rule}"
    );
    // What has an address only has that for its host.
    let literal = Connection::new(Protocol::Udp, "192.0.2.7".parse().unwrap(), None, 53);
    let denial = script.connection_now(literal).unwrap_err();
    assert_eq!(denial.host, "udp:192.0.2.7:53");
}

/// What is long without being deep is no matter.
#[test]
fn long_conditions_are_no_deep_ones() {
    let any: Vec<_> = (0..40).map(|n| format!("req.path == \"/{n}\"")).collect();
    holds(&any.join(" || "), request("GET", "/39"));
    let chain: Vec<_> = (0..40)
        .map(|n| format!("if req.path == \"/{n}\" {{ {} }}", n == 39))
        .collect();
    holds(&chain.join(" else "), request("GET", "/39"));
    let many: String = (0..500)
        .map(|n| format!("if req.port == {n} {{ deny() }}\n"))
        .collect();
    assert!(judged(&many, request("GET", "/")).is_err());
}

/// Whatever a guest sends, what a script makes of it has a size before it is made.
#[test]
fn what_is_replaced_is_no_longer_than_a_text_may_be() {
    let mut headers = HeaderMap::new();
    let slashes = HeaderValue::from_str(&"/".repeat(60_000)).unwrap();
    headers.insert("x-find", slashes);
    headers.insert(
        "x-with",
        HeaderValue::from_str(&"w".repeat(60_000)).unwrap(),
    );
    let begin = Instant::now();
    for replace in [
        "s.replace(\"/\", req.header(\"x-with\"))",
        "s.replace('/', req.header(\"x-with\"))",
        "s.replace(\"\", req.header(\"x-with\"))",
        "s.replace(\"/\", \"ab\")",
    ] {
        let body = format!("let s = req.header(\"x-find\"); {replace};");
        let denial = judged(&body, request("GET", "/x").with_headers(&headers)).unwrap_err();
        assert_eq!(denial.code, Code::ScriptFailed, "{replace}");
        let rule = denial.rule.unwrap();
        assert!(rule.contains("Length of string too large"), "{rule}");
    }
    // It would be gigabytes otherwise.
    assert!(begin.elapsed() < Duration::from_secs(10));
    for (replace, text) in [
        ("\"a\", \"bb\"", "bbxbb"),
        ("'a', \"\"", "x"),
        ("\"ax\", 'y'", "ya"),
        ("'x', 'a'", "aaa"),
        ("\"\", \"-\"", "-a-x-a-"),
    ] {
        let holds_it = format!("let s = \"axa\"; s.replace({replace}); s == \"{text}\"");
        holds(&holds_it, request("GET", "/x"));
    }
    holds(
        "let s = \"\"; s.replace(\"\", \"x\"); s == \"\"",
        request("GET", "/"),
    );
}

#[test]
fn a_function_that_compares_may_fail_deny_and_contradict_itself() {
    for call in ["sort", "sort_by", "order", "order_by", "dedup"] {
        let with = |by: &str| refused(&format!("let l = [2, 1, 3]; l.{call}({by}); true"));
        assert_eq!(with("|a, b| deny(\"x\")").1, "policy_script:1: x", "{call}");
        let (code, rule) = with("|a, b| a.none()");
        assert_eq!(code, Code::ScriptFailed, "{call}");
        assert!(rule.contains("Function not found"), "{call}: {rule}");
        assert_eq!(with("|a, b| \"no\"").0, Code::ScriptFailed, "{call}");
        assert_eq!(with("|a, b| { loop {} }").0, Code::ScriptFailed, "{call}");
    }
    // Of a guest's.
    let mut headers = HeaderMap::new();
    let values: Vec<_> = (0..100).map(|n| (n * 7919 % 1000).to_string()).collect();
    headers.insert("x", HeaderValue::from_str(&values.join(",")).unwrap());
    let shown = || request("GET", "/x").with_headers(&headers);
    for by in [
        "true",
        "false",
        "1",
        "-1",
        "(a.len() * 7 + b.len() * 3) % 3 - 1",
    ] {
        for call in ["sort", "order"] {
            let body = format!("let l = req.header(\"x\").split(\",\"); l.{call}(|a, b| {by});");
            let said = judged(&format!("{body} l.len() == 100"), shown());
            assert_eq!(said, Ok(()), "{call} by {by}");
        }
    }
    for expression in [
        "let l = [3, 1, 2]; l.sort(|a, b| a - b); l == [1, 2, 3]",
        "let l = [3, 1, 2]; l.sort_by(|a, b| a > b); l == [3, 2, 1]",
        "let l = [3, 1, 2]; l.order(|a, b| a - b) == [1, 2, 3] && l == [3, 1, 2]",
        "let l = [[1, 1], [0, 2], [1, 3]]; l.sort(|a, b| a[0] - b[0]); l == [[0, 2], [1, 1], [1, 3]]",
        "let l = [3, 1, 2]; l.sort(); l == [1, 2, 3]",
        "let l = [1, 2, 2, 1]; l.dedup(|a, b| a == b); l == [1, 2, 1]",
        "let l = [1, 2, 2, 1]; l.dedup(); l == [1, 2, 1]",
    ] {
        holds(expression, request("GET", "/x"));
    }
}

/// A panic would end the supervisor: whatever numbers and texts a guest sends, there is none.
#[test]
fn no_argument_of_the_language_s_functions_is_a_panic() {
    const NUMBERS: [&str; 6] = [
        "0",
        "-1",
        "3",
        "64",
        "9223372036854775807",
        "(-9223372036854775807 - 1)",
    ];
    const ON_ONE: [&str; 26] = [
        "s[N]",
        "l[N]",
        "i[N]",
        "s.get(N)",
        "s.set(N, 'x')",
        "s.truncate(N)",
        "s.pop(N)",
        "s.index_of('ß', N)",
        "s.index_of(\"\u{df}\", N)",
        "s.sub_string(N)",
        "s.crop(N)",
        "s.split(N)",
        "s.pad(N, '\u{df}')",
        "s.pad(N, \"\u{df}x\")",
        "l.get(N)",
        "l.set(N, 1)",
        "l.insert(N, 1)",
        "l.remove(N)",
        "l.truncate(N)",
        "l.chop(N)",
        "l.extract(N)",
        "l.split(N)",
        "l.index_of(1, N)",
        "l.pad(N, 1)",
        "-(N)",
        "parse_int(\"zz\", N)",
    ];
    const ON_TWO: [&str; 34] = [
        "s[N..M]",
        "s[N..=M]",
        "i[N..M]",
        "i[N..=M]",
        "i[N] = M > 0",
        "i[N..M] = N",
        "s.sub_string(N, M)",
        "s.sub_string(N..M)",
        "s.sub_string(N..=M)",
        "s.crop(N, M)",
        "s.crop(N..M)",
        "s.crop(N..=M)",
        "s.split(\"\", M)",
        "s.split_rev('x', M)",
        "l.extract(N, M)",
        "l.extract(N..M)",
        "l.extract(N..=M)",
        "l.splice(N, M, [1])",
        "l.splice(N..M, [1])",
        "l.splice(N..=M, [1])",
        "l.drain(N, M)",
        "l.drain(N..M)",
        "l.retain(N..=M)",
        "for c in s.chars(N, M) { break }",
        "for c in s.chars(N..M) { break }",
        "for c in s.chars(N..=M) { break }",
        "for c in range(N, M) { break }",
        "for c in range(N, M, N) { break }",
        "for c in bits(N, M) { break }",
        "for c in N..=M { break }",
        "N / M + N % M",
        "N ** M",
        "(N << M) + (N >> M)",
        "abs(N) + sign(M) - N * M",
    ];
    let calls = ON_ONE.iter().chain(&ON_TWO);
    for call in calls {
        for first in NUMBERS {
            for second in NUMBERS.iter().filter(|_| call.contains('M')) {
                run(&call.replace('N', first).replace('M', second));
            }
            if !call.contains('M') {
                run(&call.replace('N', first));
            }
        }
    }
    fn run(call: &str) {
        for (text, list) in [("\u{df}x\u{1f600}", "[1, 2, 3]"), ("", "[]")] {
            let body = format!("let s = \"{text}\"; let l = {list}; let i = 5; {call}; true");
            // A thread that panics is told of as one that broke.
            if let Err(denial) = judged(&body, request("GET", "/x")) {
                let rule = denial.rule.unwrap();
                assert!(!rule.contains("it broke"), "{call}: {rule}");
            }
        }
    }
    // Lists in lists as deep as may be.
    for end in [
        "l == [l]",
        "`${l}`",
        "l.to_debug()",
        "l.contains(l)",
        "l.dedup()",
        "l + l",
    ] {
        let body =
            format!("let l = []; let n = 0; while n < 1000 {{ l = [l]; n += 1; }} {end}; true");
        if let Err(denial) = judged(&body, request("GET", "/x")) {
            assert!(!denial.rule.unwrap().contains("it broke"), "{end}");
        }
    }
}

/// One call leaves nothing to the next, and the runtime goes on meanwhile.
#[tokio::test]
async fn scripts_run_beside_the_runtime() {
    let script = Script::new(
        "fn request(req) { if req.method == \"POST\" { loop {} } let n = 0; n += 1; n == 1 }",
    )
    .unwrap();
    for _ in 0..3 {
        assert_eq!(script.request(request("GET", "/x")).await, Ok(()));
    }
    let mut ticks = 0;
    let slow = script.request(request("POST", "/x"));
    tokio::pin!(slow);
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut slow => break answer,
            () = tokio::task::yield_now() => ticks += 1,
        }
    };
    assert_eq!(answer.unwrap_err().code, Code::ScriptFailed);
    assert!(ticks > 0);
    // Whoever does not wait for an answer does no harm.
    for _ in 0..3 {
        let gone = tokio::time::timeout(Duration::ZERO, script.request(request("POST", "/x")));
        // It may have been quicker.
        let _ = gone.await;
    }
    assert_eq!(script.request(request("GET", "/x")).await, Ok(()));
}
