use super::*;
use std::ffi::OsString;

const DIFF: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

fn parsed(config: &str) -> RunConfig {
    let json = format!(r#"{{"config": {config}, "rootfs": {{"diff_ids": ["{DIFF}"]}}}}"#);
    ImageConfig::parse(json.as_bytes()).unwrap().run
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn os(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(n, v)| (n.into(), v.into())).collect()
}

#[test]
fn a_whole_configuration() {
    let json = format!(
        r#"{{"created": "2024-05-06T07:08:09Z", "architecture": "arm64", "os": "linux",
            "variant": "v8", "unknown": [1, 2],
            "config": {{"User": "app:app", "ExposedPorts": {{"80/tcp": {{}}, "443/tcp": {{}}}},
              "Env": ["PATH=/bin", "A=b=c", "NOVALUE", "=x"], "Entrypoint": ["/init", "-q"],
              "Cmd": ["serve"], "Volumes": {{"/data": {{}}}}, "WorkingDir": "/srv",
              "Labels": {{"a": "b"}}, "StopSignal": "SIGQUIT", "Healthcheck": {{"Test": []}}}},
            "rootfs": {{"type": "layers", "diff_ids": ["{DIFF}"]}}, "history": []}}"#
    );
    let config = ImageConfig::parse(json.as_bytes()).unwrap();
    assert_eq!(config.platform(), "linux/arm64/v8");
    assert_eq!(config.created.as_deref(), Some("2024-05-06T07:08:09Z"));
    assert_eq!(config.diff_ids, [DIFF]);
    let run = config.run;
    assert_eq!(run.env, ["PATH=/bin", "A=b=c"]);
    assert_eq!(run.entrypoint, ["/init", "-q"]);
    assert_eq!(run.cmd, ["serve"]);
    assert_eq!(run.exposed_ports, ["443/tcp", "80/tcp"]);
    assert_eq!(run.volumes, ["/data"]);
    assert_eq!(run.labels["a"], "b");
    assert_eq!(
        (run.user.as_str(), run.working_dir.as_str()),
        ("app:app", "/srv")
    );
    assert_eq!(run.stop_signal(), 3);
}

#[test]
fn absent_and_null_are_empty_and_a_word_is_a_list_of_one() {
    assert_eq!(parsed("null"), RunConfig::default());
    assert_eq!(parsed("{}"), RunConfig::default());
    let nulls = r#"{"User": null, "Env": null, "Cmd": null, "Entrypoint": null, "Labels": null,
                    "Volumes": null, "ExposedPorts": null, "WorkingDir": null, "StopSignal": null}"#;
    assert_eq!(parsed(nulls), RunConfig::default());
    let word = parsed(r#"{"Cmd": "a b", "Entrypoint": "/x"}"#);
    assert_eq!(
        (word.cmd, word.entrypoint),
        (strings(&["a b"]), strings(&["/x"]))
    );
}

#[test]
fn what_we_write_is_what_we_read() {
    let run = parsed(
        r#"{"Env": ["A=b"], "Cmd": ["x"], "Volumes": {"/v": {}}, "ExposedPorts": {"1/udp": {}},
            "StopSignal": "9", "Labels": {"k": "v"}}"#,
    );
    let written = serde_json::to_string(&run).unwrap();
    assert_eq!(serde_json::from_str::<RunConfig>(&written).unwrap(), run);
}

#[test]
fn what_is_no_configuration_is_refused() {
    let refused = |json: &str| ImageConfig::parse(json.as_bytes()).unwrap_err();
    assert!(matches!(refused("{"), Error::Json(_)));
    assert!(matches!(refused("7"), Error::Json(_)));
    assert!(matches!(refused("[]"), Error::NoRootfs));
    assert!(matches!(refused("{}"), Error::NoRootfs));
    for id in [
        "sha256:00",
        "sha512:00",
        "",
        "sha256:../../../etc/passwd",
        &DIFF.replace('0', "G"),
    ] {
        let json = format!(r#"{{"rootfs": {{"diff_ids": ["{id}"]}}}}"#);
        assert!(matches!(refused(&json), Error::DiffId(_)), "{id}");
    }
    let many = vec![format!("{DIFF:?}"); LAYERS_MAX + 1].join(",");
    let json = format!(r#"{{"rootfs": {{"diff_ids": [{many}]}}}}"#);
    assert!(matches!(refused(&json), Error::Layers(_)));
    let odd = format!(r#"{{"os": "\u001b[2J", "rootfs": {{"diff_ids": ["{DIFF}"]}}}}"#);
    assert!(matches!(refused(&odd), Error::Platform(_)));
    let long = " ".repeat(CONFIG_MAX + 1);
    assert!(matches!(refused(&long), Error::TooLong(_)));
}

#[test]
fn signals_by_name_and_number() {
    for (text, number) in [
        ("SIGTERM", Some(15)),
        ("term", Some(15)),
        ("9", Some(9)),
        ("SIGRTMIN+3", Some(37)),
        ("RTMIN", Some(34)),
        ("SIGRTMAX-2", Some(62)),
        ("SIGSYS", Some(31)),
        ("0", None),
        ("65", None),
        ("SIGRTMIN+99", None),
        ("SIGRTMIN+2147483647", None),
        ("SIGNOPE", None),
        ("", None),
    ] {
        assert_eq!(signal(text), number, "{text}");
    }
    assert_eq!(RunConfig::default().stop_signal(), 15);
}

#[test]
fn entrypoint_and_command_as_docker_combines_them() {
    // (image's entrypoint, image's command, --entrypoint, arguments, result)
    type Row<'a> = (
        &'a [&'a str],
        &'a [&'a str],
        Option<&'a str>,
        &'a [&'a str],
        &'a [&'a str],
    );
    let none: &[&str] = &[];
    let shell: &[&str] = &["/bin/sh", "-c", "echo $HOME"];
    let rows: [Row<'_>; 20] = [
        (none, none, None, none, none),
        (none, none, None, &["a", "b"], &["a", "b"]),
        (none, &["c"], None, none, &["c"]),
        (none, &["c"], None, &["a"], &["a"]),
        (&["e"], none, None, none, &["e"]),
        (&["e"], none, None, &["a"], &["e", "a"]),
        (&["e", "f"], &["c"], None, none, &["e", "f", "c"]),
        (&["e"], &["c"], None, &["a"], &["e", "a"]),
        // The shell form is a list by the time it is in an image.
        (none, shell, None, none, shell),
        (
            shell,
            &["c"],
            None,
            none,
            &["/bin/sh", "-c", "echo $HOME", "c"],
        ),
        (none, none, Some("x"), none, &["x"]),
        (none, none, Some("x"), &["a"], &["x", "a"]),
        (none, &["c"], Some("x"), none, &["x"]),
        (&["e"], &["c"], Some("x"), none, &["x"]),
        (&["e"], &["c"], Some("x"), &["a"], &["x", "a"]),
        // One word however it looks.
        (&["e"], &["c"], Some("x y"), none, &["x y"]),
        (none, none, Some(""), none, none),
        (&["e"], &["c"], Some(""), none, none),
        (&["e"], &["c"], Some(""), &["a"], &["a"]),
        (none, &["c"], Some(""), &["a", "b"], &["a", "b"]),
    ];
    for (entrypoint, cmd, asked, arguments, result) in rows {
        let image = RunConfig {
            entrypoint: strings(entrypoint),
            cmd: strings(cmd),
            ..RunConfig::default()
        };
        let user = Overrides {
            entrypoint: asked.map(OsString::from),
            command: os(arguments),
            ..Overrides::default()
        };
        let row = format!("{entrypoint:?} {cmd:?} {asked:?} {arguments:?}");
        match compose(&image, &user) {
            Ok(command) => assert_eq!(command.argv, os(result), "{row}"),
            Err(error) => {
                assert!(result.is_empty(), "{row}");
                let expected = match asked {
                    Some(_) => ComposeError::NoCommandAfterEntrypoint,
                    None => ComposeError::NoCommand,
                };
                assert_eq!(error, expected, "{row}");
            }
        }
    }
}

#[test]
fn the_users_variables_come_first_and_replace_the_images() {
    let image = RunConfig {
        cmd: strings(&["x"]),
        env: strings(&["PATH=/image", "A=1", "B=2", "A=3"]),
        ..RunConfig::default()
    };
    let env = |user: &[(&str, &str)]| {
        let user = Overrides {
            env: pairs(user),
            ..Overrides::default()
        };
        compose(&image, &user).unwrap().env
    };
    assert_eq!(
        env(&[]),
        pairs(&[("PATH", "/image"), ("A", "3"), ("B", "2")])
    );
    assert_eq!(
        env(&[("C", "4"), ("A", ""), ("C", "5")]),
        pairs(&[("C", "5"), ("A", ""), ("PATH", "/image"), ("B", "2")])
    );
}

#[test]
fn directory_and_user() {
    let composed = |image_dir: &str, dir: Option<&str>, image_user: &str, user: Option<&str>| {
        let image = RunConfig {
            cmd: strings(&["x"]),
            working_dir: image_dir.to_owned(),
            user: image_user.to_owned(),
            ..RunConfig::default()
        };
        let wishes = Overrides {
            working_dir: dir.map(OsString::from),
            user: user.map(str::to_owned),
            ..Overrides::default()
        };
        compose(&image, &wishes).map(|command| (command.working_dir, command.user))
    };
    for (image_dir, dir, result) in [
        ("", None, "/"),
        ("/srv", None, "/srv"),
        ("srv/../app/", None, "/app"),
        ("/../..", None, "/"),
        ("/srv", Some("/a//b/./c/.."), "/a/b"),
        ("/srv", Some("/"), "/"),
        ("/srv", Some(""), "/srv"),
    ] {
        let (directory, _) = composed(image_dir, dir, "", None).unwrap();
        assert_eq!(directory, result, "{image_dir} {dir:?}");
    }
    assert!(matches!(
        composed("/", Some("a/b"), "", None),
        Err(ComposeError::RelativeDirectory(_))
    ));
    for (image_user, user, result) in [
        ("", None, None),
        ("app", None, Some("app")),
        ("app:", None, Some("app")),
        (":5", None, Some("0:5")),
        (":", None, None),
        ("app", Some("1000:1000"), Some("1000:1000")),
        ("app", Some("0"), Some("0")),
        ("app", Some(""), Some("app")),
    ] {
        let (_, resolved) = composed("", None, image_user, user).unwrap();
        assert_eq!(resolved.as_deref(), result, "{image_user} {user:?}");
    }
}

#[test]
fn a_complaint_about_a_configuration_is_not_as_long_as_it() {
    let long = format!(r#"{{"rootfs": "{}"}}"#, "x".repeat(1 << 20));
    let error = ImageConfig::parse(long.as_bytes()).unwrap_err().to_string();
    assert!(error.len() < 400, "{}", error.len());
}
