use super::*;

fn parsed(values: &[&str]) -> Option<Challenge> {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
    }
    parse(&headers)
}

#[test]
fn challenges_are_understood() {
    let bearer = |realm: &str, service: Option<&str>| {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        })
    };
    for (values, is) in [
        (&[][..], None),
        (&["Basic realm=\"x\""], Some(Challenge::Basic)),
        (&["basic realm=x"], Some(Challenge::Basic)),
        (
            &["Bearer realm=\"https://a/token\",service=\"a\",scope=\"repository:x:pull\""],
            bearer("https://a/token", Some("a")),
        ),
        (&["bearer Realm=\"https://a\""], bearer("https://a", None)),
        // The better of two, in one header or two.
        (
            &["Basic realm=\"x\", Bearer realm=\"y\""],
            bearer("y", None),
        ),
        (
            &["Basic realm=\"x\"", "Bearer realm=\"y\""],
            bearer("y", None),
        ),
        (&["Negotiate", "Basic realm=\"x\""], Some(Challenge::Basic)),
        (&["Bearer service=\"a\""], None),
        (&["Digest realm=\"x\", nonce=\"y\""], None),
        (&["Basic realm=\"x", ""], None),
        (&["=,\"\\", "Basic realm=\"x\""], Some(Challenge::Basic)),
    ] {
        assert_eq!(parsed(values), is, "{values:?}");
    }
}

#[test]
fn grants_do_not_show_what_they_hold() {
    let grant = bearer(&Secret::new("hunter2".to_owned()), None).unwrap();
    assert_eq!(grant.header().unwrap().to_str().unwrap(), "Bearer hunter2");
    assert!(!format!("{grant:?}").contains("hunter2"));
}

#[test]
fn a_token_is_not_used_after_its_end() {
    let secret = Secret::new("t".to_owned());
    let long = bearer(&secret, Some(Duration::from_secs(60))).unwrap();
    assert!(long.header().is_some());
    assert!(
        bearer(&secret, Some(TOKEN_MARGIN))
            .unwrap()
            .header()
            .is_none()
    );
}

fn realm(registry: &str, insecure: &[&str], realm: &str, secret: bool) -> Result<Url, Error> {
    let options = Options {
        insecure: insecure.iter().map(|&name| name.to_owned()).collect(),
        ..Options::default()
    };
    let image = format!("{registry}/app").parse().unwrap();
    let endpoint = Endpoint::of(&image, &options).unwrap().remove(0);
    realm_url(&options, &endpoint, "app", realm, secret)
}

/// A password goes to the registry's own host, or to whom it named where nobody
/// else can have answered.
#[test]
fn secrets_go_to_the_registry_or_to_whom_it_named_over_tls() {
    for (registry, insecure, to, anonymous, with_secret) in [
        (
            "tls.example",
            &[][..],
            "https://tls.example/token",
            true,
            true,
        ),
        ("tls.example", &[], "https://auth.example/token", true, true),
        ("tls.example", &[], "http://tls.example/token", false, false),
        // Named insecure by the user, and by the registry over TLS.
        (
            "tls.example",
            &["auth.example"],
            "http://auth.example/",
            true,
            true,
        ),
        (
            "plain.example:80",
            &["plain.example:80"],
            "http://plain.example/token",
            true,
            true,
        ),
        (
            "plain.example:80",
            &["plain.example:80"],
            "https://plain.example/token",
            true,
            true,
        ),
        (
            "plain.example:80",
            &["plain.example:80"],
            "http://plain.example:81/",
            false,
            false,
        ),
        (
            "plain.example:80",
            &["plain.example:80"],
            "https://evil.example/token",
            true,
            false,
        ),
        (
            "plain.example:80",
            &["plain.example:80"],
            "http://evil.example/token",
            false,
            false,
        ),
        (
            "plain.example",
            &["plain.example", "b.example"],
            "http://b.example/",
            true,
            false,
        ),
        (
            "plain.example",
            &["plain.example"],
            "https://plain.example@evil.example/",
            true,
            false,
        ),
    ] {
        let anonymously = realm(registry, insecure, to, false);
        assert_eq!(anonymously.is_ok(), anonymous, "{registry} {to}");
        let secretly = realm(registry, insecure, to, true);
        assert_eq!(secretly.is_ok(), with_secret, "{registry} {to}");
        if let Err(error) = secretly {
            assert!(matches!(error, Error::Redirect { .. }), "{error}");
        }
    }
}
