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
