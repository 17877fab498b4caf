use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

/// `user:password` in base64.
fn auth(user: &str, password: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
}

fn password(user: &str, password: &str) -> Option<Login> {
    Some(Login::Password {
        user: user.to_owned(),
        password: Secret::new(password.to_owned()),
    })
}

fn find(credentials: &Credentials, registry: &str, repository: &str) -> Found {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .unwrap()
        .block_on(credentials.find(registry, repository, Duration::from_secs(20)))
}

/// What a file with this content has.
fn in_file(content: &str, registry: &str, repository: &str) -> Found {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    fs::write(&path, content).unwrap();
    find(&Credentials::default().add_file(path), registry, repository)
}

#[test]
fn files_are_those_of_docker_and_podman_in_order() {
    let files = |variables: &[(&str, &str)]| {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        let found = Credentials::from_variables(&|name| variables.get(name).map(OsString::from));
        let texts = found.files.iter().map(|path| path.display().to_string());
        texts.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        files(&[("HOME", "/h")]),
        "/h/.config/containers/auth.json /h/.docker/config.json"
    );
    assert_eq!(
        files(&[
            ("HOME", "/h"),
            ("XDG_RUNTIME_DIR", "/r"),
            ("XDG_CONFIG_HOME", "/c"),
            ("DOCKER_CONFIG", "/d"),
            ("REGISTRY_AUTH_FILE", "/a.json"),
        ]),
        "/a.json /r/containers/auth.json /c/containers/auth.json /d/config.json"
    );
    // Relative directories mean nothing (XDG base directories).
    assert_eq!(files(&[("XDG_RUNTIME_DIR", "r"), ("HOME", "")]), "");
}

#[test]
fn all_kinds_of_entries_are_understood() {
    let token = |text: &str| Secret::new(text.to_owned());
    for (entry, is) in [
        (
            format!(r#"{{"auth":"{}"}}"#, auth("me", "a:b")),
            password("me", "a:b"),
        ),
        (
            format!(
                r#"{{"auth":"{}","identitytoken":"it"}}"#,
                auth("<token>", "")
            ),
            Some(Login::Identity(token("it"))),
        ),
        (
            format!(r#"{{"auth":"{}"}}"#, auth("<token>", "it")),
            Some(Login::Identity(token("it"))),
        ),
        (
            r#"{"registrytoken":"rt"}"#.to_owned(),
            Some(Login::Access(token("rt"))),
        ),
        (
            r#"{"username":"me","password":"pw","email":"x@y"}"#.to_owned(),
            password("me", "pw"),
        ),
        ("{}".to_owned(), None),
        (r#"{"auth":""}"#.to_owned(), None),
    ] {
        let content = format!(r#"{{"auths":{{"reg.example":{entry}}},"HttpHeaders":{{}}}}"#);
        let found = in_file(&content, "reg.example", "a");
        assert_eq!(found.login, is, "{entry}");
        assert!(found.problems.is_empty(), "{entry}");
    }
}

#[test]
fn the_key_that_names_most_counts() {
    let entry = |key: &str| format!(r#""{key}":{{"auth":"{}"}}"#, auth(key, "p"));
    let all = |keys: &[&str]| {
        let entries: Vec<_> = keys.iter().map(|key| entry(key)).collect();
        format!(r#"{{"auths":{{{}}}}}"#, entries.join(","))
    };
    let podman = &[
        "reg.example",
        "reg.example/a",
        "reg.example/a/b",
        "reg.example:5000",
    ][..];
    for (keys, registry, repository, is) in [
        (podman, "reg.example", "a/b", Some("reg.example/a/b")),
        (podman, "reg.example", "a/b/c", Some("reg.example/a/b")),
        (podman, "reg.example", "a/x", Some("reg.example/a")),
        (podman, "reg.example", "ab/x", Some("reg.example")),
        (podman, "reg.example:5000", "a/b", Some("reg.example:5000")),
        (podman, "reg.example:5001", "a/b", None),
        (podman, "other.example", "reg.example/a", None),
        (&["reg.example/a"], "reg.example", "b", None),
        (
            &["https://reg.example/v1/"],
            "reg.example",
            "a",
            Some("https://reg.example/v1/"),
        ),
        (
            &["https://reg.example"],
            "reg.example",
            "a",
            Some("https://reg.example"),
        ),
        (&["https://reg.example.evil/"], "reg.example", "a", None),
        (
            &["https://index.docker.io/v1/"],
            "docker.io",
            "library/a",
            Some("https://index.docker.io/v1/"),
        ),
        (&["docker.io"], "docker.io", "library/a", Some("docker.io")),
        (&["docker.io/library"], "docker.io", "me/a", None),
    ] {
        let found = in_file(&all(keys), registry, repository).login;
        let user = match &found {
            Some(Login::Password { user, .. }) => Some(user.as_str()),
            _ => None,
        };
        assert!(found.is_none() || user.is_some());
        // Names with a colon in them: the user ends there.
        let is = is.map(|key| key.split(':').next().unwrap());
        assert_eq!(user, is, "{registry}/{repository} in {keys:?}");
    }
}

#[test]
fn files_that_cannot_be_used_are_named_and_nothing_of_them() {
    for content in [
        r#"{"auths":{"reg.example":{"auth":"hunter2"}}}"#,
        r#"{"auths":{"reg.example":"hunter2"}}"#,
        r#"{"auths": hunter2"#,
        r#"{"credHelpers":{"reg.example":"../hunter/2"}}"#,
    ] {
        let found = in_file(content, "reg.example", "a");
        assert_eq!(found.login, None);
        assert_eq!(found.problems.len(), 1, "{content}");
        let problem = &found.problems[0];
        assert!(!problem.contains("hunter"), "{problem}");
        assert!(
            problem.contains("config.json") || problem.contains("helper"),
            "{problem}"
        );
    }
    // Too large.
    let found = in_file(&" ".repeat(2 << 20), "reg.example", "a");
    assert!(found.problems[0].contains("larger"), "{found:?}");
}

#[test]
fn secrets_are_not_shown() {
    let credentials = Credentials::default().add("reg.example", password("me", "hunter2").unwrap());
    let found = find(&credentials, "reg.example", "a");
    assert_eq!(found.login, password("me", "hunter2"));
    let shown = format!(
        "{credentials:?} {found:?} {:?}",
        Login::Access(Secret::new("hunter2".into()))
    );
    assert!(!shown.contains("hunter2"), "{shown}");
}

/// A helper program that is this script.
fn helper(directory: &Path, name: &str, script: &str) {
    let path = directory.join(format!("docker-credential-{name}"));
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What credentials with these helpers and this file find for a registry.
fn with_helpers(helpers: &[(&str, &str)], content: &str, registry: &str, wait: Duration) -> Found {
    let directory = tempfile::tempdir().unwrap();
    for (name, script) in helpers {
        helper(directory.path(), name, script);
    }
    let path = directory.path().join("config.json");
    fs::write(&path, content).unwrap();
    let credentials = Credentials::default()
        .add_file(path)
        .helpers_in(directory.path());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .unwrap()
        .block_on(credentials.find(registry, "a", wait))
}

const LONG: Duration = Duration::from_secs(20);

/// Answers with what it was asked.
const ECHO: &str = r#"read -r server; printf '{"ServerURL":"%s","Username":"%s","Secret":"%s"}' "$server" "$1" "$server""#;

#[test]
fn helpers_are_asked_for_the_registry() {
    let store = r#"{"auths":{"reg.example":{}},"credsStore":"echo"}"#;
    let found = with_helpers(&[("echo", ECHO)], store, "reg.example", LONG);
    assert_eq!(found.login, password("get", "reg.example"), "{found:?}");
    // docker.io has another name there.
    let found = with_helpers(&[("echo", ECHO)], store, "docker.io", LONG);
    assert_eq!(
        found.login,
        password("get", "https://index.docker.io/v1/"),
        "{found:?}"
    );
    // A helper of its own counts before the one for all.
    let own = r#"{"credHelpers":{"reg.example":"echo"},"credsStore":"fails"}"#;
    let found = with_helpers(
        &[("echo", ECHO), ("fails", "exit 1")],
        own,
        "reg.example",
        LONG,
    );
    assert_eq!(found.login, password("get", "reg.example"), "{found:?}");
    let token = r#"echo '{"ServerURL":"","Username":"<token>","Secret":"it"}'"#;
    let found = with_helpers(&[("echo", token)], store, "reg.example", LONG);
    assert_eq!(
        found.login,
        Some(Login::Identity(Secret::new("it".to_owned())))
    );
}

#[test]
fn a_helper_that_has_nothing_leaves_it_to_the_file() {
    let content = format!(
        r#"{{"auths":{{"reg.example":{{"auth":"{}"}}}},"credsStore":"none"}}"#,
        auth("me", "pw")
    );
    let none = "echo 'credentials not found in native keychain'; exit 1";
    let found = with_helpers(&[("none", none)], &content, "reg.example", LONG);
    assert_eq!(found.login, password("me", "pw"));
    assert!(found.problems.is_empty(), "{found:?}");
}

#[test]
fn helpers_that_misbehave_are_named_and_passed_over() {
    let content = format!(
        r#"{{"auths":{{"reg.example":{{"auth":"{}"}}}},"credsStore":"bad"}}"#,
        auth("me", "pw")
    );
    let cases = [
        (Some("echo hunter2; exit 1"), "failed", LONG),
        (Some("echo hunter2"), "not as agreed", LONG),
        (Some("exec cat /dev/zero"), "longer than", LONG),
        // Ends when its standard output is closed or it is killed.
        (
            Some("exec tail -f /dev/null"),
            "no answer",
            Duration::from_millis(50),
        ),
        (None, "not in PATH", LONG),
    ];
    for (script, problem, wait) in cases {
        let helpers: Vec<_> = script.map(|script| ("bad", script)).into_iter().collect();
        let found = with_helpers(&helpers, &content, "reg.example", wait);
        assert_eq!(found.login, password("me", "pw"), "{problem}");
        assert_eq!(found.problems.len(), 1, "{problem}");
        let said = &found.problems[0];
        assert!(
            said.contains("docker-credential-bad") && said.contains(problem),
            "{said}"
        );
        assert!(!said.contains("hunter2"), "{said}");
    }
}
