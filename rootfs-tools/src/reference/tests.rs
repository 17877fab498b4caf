//! What docker makes of names (its `TestParseRepositoryInfo` and
//! `TestReferenceParse` have the same cases), and where we differ.

use proptest::prelude::*;

use super::*;

const HEX: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

fn parse(text: &str) -> Reference {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn why(text: &str) -> String {
    match text.parse::<Reference>() {
        Ok(reference) => panic!("{text} is taken for {reference}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_spelling_has_one_canonical_and_one_short_text() {
    let sha = format!("sha256:{HEX}");
    for (spellings, canonical, short) in [
        (
            &[
                "alpine",
                "alpine:latest",
                "library/alpine",
                "docker.io/alpine",
                "docker.io/library/alpine",
                "index.docker.io/alpine:latest",
                "Docker.IO/library/alpine:latest",
            ][..],
            "docker.io/library/alpine:latest",
            "alpine:latest",
        ),
        (
            &["alpine:3.20", "docker.io/library/alpine:3.20"],
            "docker.io/library/alpine:3.20",
            "alpine:3.20",
        ),
        (
            &["user/app", "docker.io/user/app:latest"],
            "docker.io/user/app:latest",
            "user/app:latest",
        ),
        (
            &["test.com", "docker.io/library/test.com"],
            "docker.io/library/test.com:latest",
            "test.com:latest",
        ),
        // Not a port: there is no slash after it.
        (
            &["test.com:5000", "localhost:5000"][..1],
            "docker.io/library/test.com:5000",
            "test.com:5000",
        ),
        (
            &["localhost/x", "LOCALHOST/x:latest"],
            "localhost/x:latest",
            "localhost/x:latest",
        ),
        (
            &["localhost:5000/x", "localhost:05000/x:latest"],
            "localhost:5000/x:latest",
            "localhost:5000/x:latest",
        ),
        (
            &["host.tld/x", "Host.TLD/x"],
            "host.tld/x:latest",
            "host.tld/x:latest",
        ),
        (
            &["test:5000/repo"],
            "test:5000/repo:latest",
            "test:5000/repo:latest",
        ),
        (
            &["10.1.2.3:80/a/b/c:T.a_g-1"],
            "10.1.2.3:80/a/b/c:T.a_g-1",
            "10.1.2.3:80/a/b/c:T.a_g-1",
        ),
        (
            &["[::1]:5000/x", "[0:0:0:0:0:0:0:1]:5000/x"],
            "[::1]:5000/x:latest",
            "[::1]:5000/x:latest",
        ),
        (
            &["[2001:DB8::a]/x:1"],
            "[2001:db8::a]/x:1",
            "[2001:db8::a]/x:1",
        ),
        (
            &["xn--n3h.com/a__b/c---d/e.f:xn--n3h.com"],
            "xn--n3h.com/a__b/c---d/e.f:xn--n3h.com",
            "xn--n3h.com/a__b/c---d/e.f:xn--n3h.com",
        ),
        (
            &[&*format!("alpine@{sha}"), &format!("alpine:3.20@{sha}")],
            &format!("docker.io/library/alpine@{sha}"),
            &format!("alpine@{sha}"),
        ),
        // Their short forms would mean something else.
        (
            &["docker.io/library/a/b"],
            "docker.io/library/a/b:latest",
            "library/a/b:latest",
        ),
        (
            &["docker.io/a.b/c"],
            "docker.io/a.b/c:latest",
            "docker.io/a.b/c:latest",
        ),
        (
            &["docker.io/localhost/c"],
            "docker.io/localhost/c:latest",
            "docker.io/localhost/c:latest",
        ),
    ] {
        for spelling in spellings {
            let reference = parse(spelling);
            assert_eq!(reference.canonical(), canonical, "{spelling}");
            assert_eq!(reference.short(), short, "{spelling}");
            assert_eq!(reference, parse(canonical), "{spelling}");
            assert_eq!(reference, parse(short), "{spelling}");
        }
    }
}

#[test]
fn the_parts_of_a_name() {
    let reference = parse("localhost:5000/a/b:1");
    assert_eq!(reference.registry(), "localhost:5000");
    assert_eq!(reference.repository(), "a/b");
    assert_eq!(reference.tag(), Some("1"));
    assert_eq!(reference.digest(), None);
    let digest: Digest = format!("sha512:{HEX}{HEX}").parse().unwrap();
    let reference = reference.with_digest(&digest);
    assert_eq!(reference.tag(), None);
    assert_eq!(reference.digest(), Some(digest));
}

#[test]
fn what_is_no_name_is_refused_with_a_reason() {
    for (text, reason) in [
        ("", "empty"),
        ("Alpine", "lower case (`alpine`)"),
        ("docker/Docker", "lower case (`docker/docker`)"),
        ("docker.io/docker/Docker", "lower case"),
        ("https://docker.io/alpine", "leave out `https://`"),
        ("docker://alpine", "leave out `docker://` (`alpine`)"),
        (HEX, "write NAME@sha256:ffff"),
        ("-alpine", "begin and end"),
        ("alpine-", "begin and end"),
        ("a//b", "empty"),
        ("/a", "empty"),
        ("a/", "empty"),
        ("docker.io/", "empty"),
        ("a___b", "underscores"),
        ("a..b", "one dot"),
        ("a_-b", "hyphens"),
        ("a b", "' ' cannot be in a path"),
        ("a\nb", "cannot be in a path"),
        ("ä", "cannot be in a path"),
        ("a:", "no tag"),
        ("a:-1", "no tag"),
        ("a:.1", "no tag"),
        ("a:b:c", "no tag"),
        ("a:../../x", "no registry"),
        ("host.tld/a:../../x", "no tag"),
        ("a@", "no digest"),
        ("a@sha256:12", "no digest"),
        (&format!("a@sha256:{}", HEX.to_uppercase()), "no digest"),
        (&format!("a@md5:{HEX}"), "no digest"),
        (&format!("a@sha256:{HEX}@sha256:{HEX}"), "no digest"),
        ("host.tld:0/a", "port"),
        ("host.tld:99999/a", "port"),
        ("host.tld:/a", "port"),
        ("host.tld:+80/a", "port"),
        ("-host.tld/a", "no registry"),
        ("host..tld/a", "no registry"),
        ("foo_bar.com:8080/a", "no registry"),
        ("user@host.tld/a", "no digest"),
        ("[::1/a", "bracket"),
        ("[::1]x/a", "only a port"),
        ("[host]/a", "no IPv6 address"),
        ("::1/a", "goes in []"),
        (&"a".repeat(256), "longer than 255"),
        (&format!("a:{}", "b".repeat(129)), "longer than 128"),
        (&format!("{}.tld/a", "b".repeat(300)), "too long"),
    ] {
        let why = why(text);
        assert!(why.contains(reason), "{text}: {why}");
        assert!(!why.contains('\n'), "{why}");
    }
}

proptest! {
    #[test]
    fn a_name_is_what_its_texts_are(
        host in proptest::option::of("[a-z0-9]{1,8}(\\.[a-z0-9]{1,8}){1,2}(:[1-9][0-9]{0,3})?"),
        path in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,6})?(/[a-z0-9]{1,6}){0,3}",
        tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        digest in proptest::option::of("sha256:[a-f0-9]{64}"),
    ) {
        let mut text = host.clone().map(|host| format!("{host}/")).unwrap_or_default();
        text.push_str(&path);
        if let Some(tag) = &tag {
            text = format!("{text}:{tag}");
        }
        if let Some(digest) = &digest {
            text = format!("{text}@{digest}");
        }
        let reference = parse(&text);
        // Without a host, the first of several components can look like one.
        let (registry, rest) = match (&host, path.split_once('/')) {
            (Some(host), _) => (host.as_str(), path.as_str()),
            (None, Some((first, rest))) if first.contains('.') || first == "localhost" => {
                (first, rest)
            }
            (None, _) => ("docker.io", path.as_str()),
        };
        prop_assert_eq!(reference.registry(), registry);
        prop_assert!(reference.repository().ends_with(rest));
        prop_assert_eq!(reference.version(), digest.or(tag).unwrap_or("latest".to_owned()));
        prop_assert_eq!(&parse(&reference.canonical()), &reference);
        prop_assert_eq!(&parse(&reference.short()), &reference);
    }

    /// Whatever is taken for a name can be put into a URL and a file name's hash
    /// as it is, and is stable.
    #[test]
    fn nothing_strange_becomes_a_name(text in "[a-zA-Z0-9:/@.\\[\\]_%?#\\\\ \\-]{0,40}|\\PC{0,20}") {
        if let Ok(reference) = text.parse::<Reference>() {
            let canonical = reference.canonical();
            let fine = |c: char| c.is_ascii_alphanumeric() || "./:@_-[]".contains(c);
            prop_assert!(canonical.chars().all(fine), "{canonical}");
            prop_assert!(!canonical.contains(".."), "{canonical}");
            prop_assert_eq!(&parse(&canonical), &reference);
            prop_assert_eq!(&parse(&reference.short()), &reference);
        }
    }
}
