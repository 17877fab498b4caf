use super::super::{Client, Login, Secret};
use super::*;

#[test]
fn proxies_come_from_the_environment() {
    let from = |variables: &[(&str, &str)]| {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Proxies::from_variables(&|name| variables.get(name).map(OsString::from))
    };
    let proxies = from(&[
        ("HTTP_PROXY", "http://one:1"),
        ("http_proxy", "http://two:2"),
        ("https_proxy", "http://three:3"),
        ("HTTPS_PROXY", ""),
        ("ALL_PROXY", "socks5h://four:4"),
        ("NO_PROXY", "a,.b"),
    ]);
    assert_eq!(proxies.http.as_deref(), Some("http://one:1"));
    assert_eq!(proxies.https.as_deref(), Some("http://three:3"));
    assert_eq!(proxies.all.as_deref(), Some("socks5h://four:4"));
    assert_eq!(proxies.none.as_deref(), Some("a,.b"));
    // A header of a request to a CGI program is no configuration.
    let cgi = from(&[("HTTP_PROXY", "http://evil"), ("REQUEST_METHOD", "GET")]);
    assert!(cgi == Proxies::default());
}

#[test]
fn passwords_of_proxies_are_not_shown() {
    let proxies = Proxies {
        https: Some("http://me:hunter2@proxy".to_owned()),
        ..Proxies::default()
    };
    let options = Options {
        proxies,
        ..Options::default()
    };
    let shown = format!("{options:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    let wrong = Options {
        proxies: Proxies {
            https: Some("http://me:hunter2@".to_owned()),
            ..Proxies::default()
        },
        ..Options::default()
    };
    let error = Client::new(wrong).unwrap_err().to_string();
    assert!(error.contains("the proxy for HTTPS"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn registries_are_insecure_only_by_name() {
    let options = Options {
        insecure: ["Localhost:5000", "plain.example", "[::1]"]
            .map(str::to_owned)
            .to_vec(),
        ..Options::default()
    };
    let options = options.checked().unwrap();
    for (registry, is) in [
        ("localhost:5000", true),
        ("localhost:5001", false),
        ("localhost", false),
        ("127.0.0.1:5000", false),
        ("plain.example", true),
        ("plain.example:8080", true),
        ("not-plain.example", false),
        ("[::1]", true),
        ("[::1]:5000", true),
        ("[::2]", false),
    ] {
        assert_eq!(options.is_insecure(registry), is, "{registry}");
    }
}

/// Redirects and token servers have addresses, where the port of a scheme is
/// left out.
#[test]
fn plain_addresses_are_those_of_the_hosts_named_insecure() {
    let options = Options {
        insecure: [
            "eighty.example:80",
            "Other.example:5000",
            "all.example",
            "[::1]:80",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..Options::default()
    };
    let options = options.checked().unwrap();
    for (address, may) in [
        ("http://eighty.example/v2/", true),
        ("http://EIGHTY.example:80/v2/", true),
        ("http://eighty.example:8080/", false),
        ("http://not-eighty.example/", false),
        ("http://eighty.example.evil/", false),
        ("http://eighty.example:80@evil.example/", false),
        ("http://other.example:5000/", true),
        ("http://other.example/", false),
        ("http://all.example/", true),
        ("http://all.example:1234/", true),
        ("http://[::1]/", true),
        ("http://[::1]:5000/", false),
    ] {
        let url = Url::parse(address).unwrap();
        assert_eq!(options.may_be_plain(&url), may, "{address}");
    }
}

#[test]
fn what_is_no_registry_is_refused() {
    let mirror = |registry: &str, mirror: &str| Options {
        mirrors: [(registry.to_owned(), vec![mirror.to_owned()])].into(),
        ..Options::default()
    };
    let insecure = |registry: &str| Options {
        insecure: vec![registry.to_owned()],
        ..Options::default()
    };
    let login = Login::Identity(Secret::new("x".to_owned()));
    let login = Options {
        credentials: Credentials::default().add("a b", login),
        ..Options::default()
    };
    for (options, what) in [
        (insecure("http://x"), "insecure registry"),
        (insecure("10.0.0.0/8"), "insecure registry"),
        (mirror("docker.io", "https://x"), "mirror"),
        (mirror("docker.io", "x.example/Up"), "mirror x.example/Up"),
        (
            mirror("docker.io/library", "x.example"),
            "registry with mirrors",
        ),
        (login, "credentials"),
    ] {
        let error = options.checked().unwrap_err().to_string();
        assert!(error.starts_with(what), "{error}");
    }
    let fine = mirror("Docker.io", "Mirror.example:80/hub/")
        .checked()
        .unwrap();
    assert_eq!(fine.mirrors["docker.io"], ["mirror.example:80/hub"]);
}
