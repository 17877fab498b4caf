//! From events to rules.

use flashpan_network::policy::{Policy, Rule, Target};

use super::*;

fn seen(scheme: &str, host: &str) -> NetworkActivity {
    let mut activity = NetworkActivity::default();
    scheme.clone_into(&mut activity.scheme);
    host.clone_into(&mut activity.network.host);
    activity
}

fn request(method: &str, url: &str) -> NetworkActivity {
    let (scheme, rest) = url.split_once("://").unwrap();
    let host = rest.split(['/', ':']).next().unwrap();
    let mut activity = seen(scheme, host);
    method.clone_into(&mut activity.network.method);
    url.clone_into(&mut activity.network.url);
    activity
}

fn refused(mut activity: NetworkActivity, code: &str, blocked: bool) -> NetworkActivity {
    activity.code = Some(code.to_owned());
    activity.hint = Some("a hint".to_owned());
    activity.network.blocked = blocked;
    activity
}

fn learned(of: impl IntoIterator<Item = NetworkActivity>) -> Learned {
    let mut learner = Learner::new();
    for activity in of {
        learner.see(&activity);
    }
    learner.learned()
}

/// The rules for requests to a.test, which allow each of them.
fn rules(requests: &[(&str, &str)]) -> Vec<String> {
    let url = |path: &str| format!("https://a.test{path}");
    let learned = learned(
        requests
            .iter()
            .map(|(method, path)| request(method, &url(path))),
    );
    let policy = Policy {
        rules: learned
            .rules
            .iter()
            .map(|rule| rule.parse::<Rule>().unwrap())
            .collect(),
        ..Policy::default()
    };
    for (method, path) in requests {
        let target: Target = url(path).parse().unwrap();
        let explained = policy.explain(&target, method);
        assert!(
            explained.decision.is_ok(),
            "{method} {path}: {:?}",
            learned.rules
        );
    }
    assert_eq!(learned.allowed_hosts, [""; 0]);
    learned.rules
}

#[test]
fn requests_become_rules_with_their_methods() {
    assert_eq!(
        rules(&[
            ("GET", "/repos/our/app"),
            ("HEAD", "/repos/our/app?x=1"),
            ("GET", "/"),
            ("GET", "/"),
            ("POST", "/graphql"),
        ]),
        [
            "allow GET a.test/",
            "allow POST a.test/graphql",
            "allow GET,HEAD a.test/repos/our/app",
        ]
    );
}

#[test]
fn what_differs_each_time_is_a_star() {
    for (path, pattern) in [
        ("/users/1234/x", "/users/*/x"),
        ("/c/3f786850e387550fdab836ed7e6dc881de23001b", "/c/*"),
        ("/c/3f78685", "/c/*"),
        (
            "/blobs/sha256:9f86d081884c7d659a2feaa0c55ad015",
            "/blobs/sha256:*",
        ),
        ("/o/123e4567-e89b-12d3-a456-426614174000.json", "/o/*.json"),
        ("/t/eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "/t/*"),
        ("/t/AKIA1234abcdEFGHijkl", "/t/*"),
        // Words, versions and names stay.
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/api/2/items", "/api/2/items"),
        ("/lodash/-/lodash-4.17.21.tgz", "/lodash/-/lodash-4.*.*.tgz"),
        ("/feedface/decade", "/feedface/decade"),
        ("/internationalization", "/internationalization"),
        ("/simple/requests/", "/simple/requests/"),
        ("/a%20b/~me", "/a%20b/~me"),
    ] {
        assert_eq!(
            rules(&[("GET", path)]),
            [format!("allow GET a.test{pattern}")]
        );
    }
}

/// What is a pattern in a rule is a guest's text in a path.
#[test]
fn a_star_of_a_guest_is_none_of_a_rule() {
    let paths = ["/**", "/a/*", "/a/b*?x=1", "/a/%2A", "/a/b"];
    let seen = paths.map(|path| request("GET", &format!("https://a.test{path}")));
    let learned = learned(seen.into_iter().chain([seen_name("a.test")]));
    assert_eq!(
        learned.rules,
        ["allow GET a.test/a/%2A", "allow GET a.test/a/b"]
    );
    let left_out = ["/**", "/a/*", "/a/b*"].map(|path| format!("GET https://a.test{path}"));
    assert_eq!(learned.left_out, left_out);
    assert_eq!(learned.allowed_hosts, [""; 0]);
    // There was a connection.
    assert_eq!(learned.names_only, [""; 0]);
    let only = self::learned([request("GET", "https://a.test/**")]);
    assert_eq!((only.rules.len(), only.left_out.len()), (0, 1));
}

fn seen_name(name: &str) -> NetworkActivity {
    seen("dns", name)
}

#[test]
fn what_a_star_means_is_not_written_out_again() {
    let all = rules(&[
        ("GET", "/u/12"),
        ("GET", "/u/345"),
        ("GET", "/u/me"),
        ("PUT", "/u/me"),
    ]);
    assert_eq!(all, ["allow GET a.test/u/*", "allow PUT a.test/u/me"]);
    let below = rules(&[("GET", "/u/12/x"), ("GET", "/u/me")]);
    assert_eq!(below, ["allow GET a.test/u/*/x", "allow GET a.test/u/me"]);
}

#[test]
fn of_many_siblings_all_are_meant() {
    let paths: Vec<String> = (0..6)
        .map(|n| format!("/pkg/{}/x", "abcdef".split_at(n).0.len()))
        .collect();
    let names = ["one", "two", "three", "four", "five", "six"].map(|name| format!("/pkg/{name}/x"));
    let requests = |paths: &[String], count| {
        let paths: Vec<_> = paths
            .iter()
            .take(count)
            .map(|path| ("GET", path.as_str()))
            .collect();
        rules(&paths)
    };
    assert_eq!(requests(&names, 5).len(), 5);
    assert_eq!(requests(&names, 6), ["allow GET a.test/pkg/**"]);
    assert_eq!(requests(&paths, 6), ["allow GET a.test/pkg/**"]);
    // One method does not open a directory to another.
    let mut both: Vec<_> = names.iter().map(|path| ("GET", path.as_str())).collect();
    both.push(("PUT", "/pkg/one/x"));
    assert_eq!(
        rules(&both),
        ["allow GET a.test/pkg/**", "allow PUT a.test/pkg/one/x"]
    );
    let many: Vec<_> = (0..20_000).map(|n| format!("/{}/{n}x", n % 7)).collect();
    let many: Vec<_> = many.iter().map(|path| ("GET", path.as_str())).collect();
    assert_eq!(rules(&many), ["allow GET a.test/**"]);
}

#[test]
fn what_no_rule_can_mean_is_a_whole_host() {
    for odd in [
        request("get", "https://a.test/x"),
        request("GET", "https://a.test/x/%2e%2e/y"),
        request("GET", "https://a.test/x;y"),
        request("GET", &format!("https://a.test/{}", "long/".repeat(300))),
    ] {
        let learned = learned([request("GET", "https://a.test/x"), odd]);
        assert_eq!(learned.rules, [""; 0]);
        assert_eq!(learned.allowed_hosts, ["a.test:443"]);
    }
}

#[test]
fn hosts_have_one_form_and_ports_that_are_not_of_http() {
    let learned = learned([
        request("GET", "https://A.Test./x"),
        request("GET", "https://a.test:443/x"),
        request("GET", "http://a.test:8080/x"),
        request("GET", "https://[2606:4700::1111]/"),
        seen("tcp", "db.internal:5432"),
        seen("tcp", "db.internal:5432"),
        seen("udp", "ntp.test:123"),
        seen("tls", "pinned.test:443"),
        seen("tcp", "[2606:4700::1111]:22"),
    ]);
    assert_eq!(
        learned.rules,
        [
            "allow GET [2606:4700::1111]/",
            "allow GET a.test/x",
            "allow GET a.test:8080/x"
        ]
    );
    assert_eq!(
        learned.allowed_hosts,
        [
            "[2606:4700::1111]:22",
            "db.internal:5432",
            "pinned.test:443",
            "udp:ntp.test:123"
        ]
    );
    for rule in &learned.rules {
        assert!(rule.parse::<Rule>().is_ok(), "{rule}");
    }
}

#[test]
fn what_was_allowed_already_is_kept_as_it_is() {
    let by = |mut activity: NetworkActivity, rule: &str| {
        activity.rule = Some(rule.to_owned());
        activity
    };
    let learned = learned([
        by(request("GET", "https://x.own.test/y"), "*.own.test"),
        by(request("GET", "https://r.test/y"), "allow GET r.test/**"),
        by(seen("tcp", "10.0.0.1:5432"), "10.0.0.0/24:5432"),
        by(seen("dns", "x.own.test"), "*.own.test"),
    ]);
    assert_eq!(learned.allowed_hosts, ["*.own.test", "10.0.0.0/24:5432"]);
    assert_eq!(learned.rules, ["allow GET r.test/**"]);
    assert_eq!(learned.names_only, [""; 0]);
}

#[test]
fn what_was_refused_is_told_and_not_allowed() {
    let private = refused(seen("tcp", "10.0.0.1:80"), "private_address", true);
    let pinned = refused(seen("tls", "pinned.test:443"), "unknown_protocol", true);
    let down = refused(seen("tcp", "down.test:22"), "upstream_unreachable", false);
    let unknown = refused(seen("dns", "nobody.test"), "name_not_resolved", false);
    let mut learned = learned([private.clone(), private, pinned, down, unknown]);
    // What only failed has to be allowed to fail so again.
    assert_eq!(learned.allowed_hosts, ["down.test:22"]);
    learned.refused.sort_by(|a, b| a.code.cmp(&b.code));
    let told: Vec<_> = (learned.refused.iter())
        .map(|of| (of.target.as_str(), of.code.as_str(), of.times))
        .collect();
    assert_eq!(
        told,
        [
            ("nobody.test", "name_not_resolved", 1),
            ("10.0.0.1:80", "private_address", 2),
            ("pinned.test:443", "unknown_protocol", 1),
            ("down.test:22", "upstream_unreachable", 1),
        ]
    );
    assert!(
        learned.refused[2]
            .hint
            .contains("--allow-host pinned.test:443")
    );
    assert_eq!(learned.refused[1].hint, "a hint");
}

#[test]
fn names_that_led_nowhere_are_told_apart() {
    let learned = learned([
        seen("dns", "a.test"),
        seen("dns", "b.test"),
        seen("dns", "db.internal"),
        request("GET", "https://a.test/"),
        seen("tcp", "db.internal:5432"),
    ]);
    assert_eq!(learned.names_only, ["b.test"]);
}

/// A guest can do what it likes; what is kept of it has a size.
#[test]
fn what_a_guest_does_without_end_is_bounded() {
    let mut learner = Learner::new();
    for n in 0..5_000 {
        learner.see(&request("GET", &format!("https://h{n}.test/")));
        learner.see(&request(&"M".repeat(n % 500 + 1), "https://h1.test/x"));
        learner.see(&seen("dns", &format!("n{n}.test")));
        learner.see(&refused(
            seen("tcp", &format!("r{n}.test:1")),
            "host_denied",
            true,
        ));
        learner.see(&{
            let mut odd = request("GET", "https://x/");
            odd.network.url = "no url".to_owned();
            odd
        });
    }
    learner.lose(7);
    let learned = learner.learned();
    assert!(learned.rules.len() <= MAX_HOSTS && learned.allowed_hosts.len() <= MAX_HOSTS + 1);
    assert_eq!(
        (learned.names_only.len(), learned.refused.len()),
        (MAX_KEPT, MAX_KEPT)
    );
    assert_eq!(learned.lost, 7);
}

/// As the network tells it.
#[test]
fn what_is_reported_is_what_is_learned() {
    use flashpan_network::policy::{Basis, Code, Denial};
    use flashpan_network::report::{Outcome, Report, Scheme};

    let report =
        |scheme, host: &str| Report::new(scheme, host.to_owned(), Outcome::Allowed(Basis::Open));
    let mut request = report(Scheme::Https, "a.test:443");
    request.method = "GET".to_owned();
    request.url = "https://A.test/items/123?key=x".to_owned();
    let mut direct = report(Scheme::Udp, "ntp.test:123");
    direct.destination = "192.0.2.1:123".parse().ok();
    let denial = Denial {
        code: Code::Metadata,
        host: "169.254.169.254:80".to_owned(),
        rule: None,
    };
    let denied = Report::refused(Scheme::Tcp, denial);
    let learned = learned([request.into(), direct.into(), denied.into()]);
    assert_eq!(learned.rules, ["allow GET a.test/items/*"]);
    assert_eq!(learned.allowed_hosts, ["udp:ntp.test:123"]);
    assert_eq!(learned.refused[0].code, "metadata_address");
    assert!(learned.refused[0].hint.contains("--allow-host"));
}
