use super::*;

fn config(json: &str) -> Config {
    Config::from_json(json.as_bytes()).unwrap().config
}

/// An image with everything set.
fn image() -> RunConfig {
    RunConfig {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["serve".into()],
        env: vec!["A=image".into(), "B=image".into(), "PATH=/image".into()],
        working_dir: "/srv/".into(),
        user: "app".into(),
        ..RunConfig::default()
    }
}

fn defaults(json: &str) -> ExecDefaults {
    ExecDefaults::new(&config(json), "box", Some(image()))
}

fn wishes(command: &[&str]) -> Overrides {
    Overrides {
        command: command.iter().map(OsString::from).collect(),
        ..Overrides::default()
    }
}

/// What reaches the guest: arguments, variables as they count, directory, user.
fn seen(exec: ExecOptions) -> (Vec<String>, BTreeMap<String, String>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let request = exec.into_request().unwrap();
    let flashpan_protocol::agent::Command::Argv(argv) = &request.command else {
        panic!("a script")
    };
    let env = request.env.iter();
    (
        argv.iter().map(|word| text(word.as_slice())).collect(),
        env.map(|(name, value)| (text(name), text(value))).collect(),
        request
            .working_dir
            .map(|dir| text(&dir))
            .unwrap_or_default(),
        request.user.unwrap_or_default(),
    )
}

fn argv(defaults: &ExecDefaults, wishes: &Overrides) -> Vec<String> {
    seen(defaults.program(wishes).unwrap()).0
}

#[test]
fn the_configuration_goes_before_the_image_and_the_caller_before_both() {
    let defaults = defaults(r#"{"env":{"A":"config","C":"config"}}"#);
    let mut wishes = wishes(&["x"]);
    wishes.env = vec![("C".into(), "caller".into())];
    let (argv, env, dir, user) = seen(defaults.program(&wishes).unwrap());
    assert_eq!(argv, ["/entry", "x"]);
    for (name, value) in [
        ("A", "config"),
        ("B", "image"),
        ("C", "caller"),
        ("HOSTNAME", "box"),
        ("PATH", "/image"),
    ] {
        assert_eq!(env[name], value, "{name}");
    }
    assert_eq!((dir.as_str(), user.as_str()), ("/srv", "app"));

    // The same without an entrypoint for a program of its own.
    let exec = ExecOptions::argv(["x"]).env("C", "caller");
    let (argv, env, dir, user) = seen(defaults.apply_to(exec));
    assert_eq!(argv, ["x"]);
    for (name, value) in [
        ("A", "config"),
        ("B", "image"),
        ("C", "caller"),
        ("HOSTNAME", "box"),
        ("PATH", "/image"),
    ] {
        assert_eq!(env[name], value, "{name}");
    }
    assert_eq!((dir.as_str(), user.as_str()), ("/srv/", "app"));
    let own = ExecOptions::argv(["x"]).working_dir("/own").user("me");
    let (_, _, dir, user) = seen(defaults.apply_to(own));
    assert_eq!((dir.as_str(), user.as_str()), ("/own", "me"));
}

#[test]
fn what_image_config_sets_counts_in_place_of_what_the_image_says() {
    for (json, command) in [
        (r#"{"image_config":{}}"#, vec!["/entry", "serve"]),
        (
            r#"{"image_config":{"cmd":["other"]}}"#,
            vec!["/entry", "other"],
        ),
        (r#"{"image_config":{"cmd":[]}}"#, vec!["/entry"]),
        (r#"{"image_config":{"entrypoint":[]}}"#, vec!["serve"]),
        (
            r#"{"image_config":{"entrypoint":["sh","-c"],"cmd":["id"]}}"#,
            vec!["sh", "-c", "id"],
        ),
    ] {
        assert_eq!(argv(&defaults(json), &wishes(&[])), command, "{json}");
    }
    let nothing = defaults(r#"{"image_config":{"entrypoint":[],"cmd":[]}}"#);
    let error = nothing.program(&wishes(&[])).unwrap_err();
    assert_eq!(error.code(), crate::api::ErrorCode::CommandMissing);
    let over = r#"{"image_config":{"user":"0:0","working_dir":"/w","env":{"Z":"1"}}}"#;
    let (_, env, dir, user) = seen(defaults(over).program(&wishes(&[])).unwrap());
    assert_eq!((dir.as_str(), user.as_str()), ("/w", "0:0"));
    assert_eq!(env["Z"], "1");
    assert!(!env.contains_key("A"), "the image's variables are replaced");
}

#[test]
fn an_entrypoint_that_is_launched_is_not_run_again() {
    let launched = defaults(r#"{"launch_entrypoint":true}"#);
    let entrypoint = launched.entrypoint().unwrap().unwrap();
    assert_eq!(seen(entrypoint).0, ["/entry", "serve"]);
    // A command beside it is one of its own.
    assert_eq!(argv(&launched, &wishes(&["ls", "-l"])), ["ls", "-l"]);
    // Without one, it is what runs.
    assert_eq!(argv(&launched, &wishes(&[])), ["/entry", "serve"]);
    assert!(defaults("{}").entrypoint().unwrap().is_none());
    let bare = ExecDefaults::new(&config(r#"{"launch_entrypoint":true}"#), "box", None);
    assert!(bare.entrypoint().is_err());
}

#[test]
fn without_an_image_nothing_is_added() {
    let bare = ExecDefaults::new(&config("{}"), "box", None);
    let (argv, env, dir, user) = seen(bare.program(&wishes(&["x"])).unwrap());
    assert_eq!(argv, ["x"]);
    assert_eq!(env.keys().collect::<Vec<_>>(), ["PATH"]);
    assert_eq!((dir.as_str(), user.as_str()), ("/", ""));
    assert!(bare.program(&wishes(&[])).is_err());
}

#[test]
fn they_come_back_as_they_were_stored() {
    let all = defaults(r#"{"env":{"A":"1"},"launch_entrypoint":true}"#);
    let json = serde_json::to_string(&all).unwrap();
    assert_eq!(serde_json::from_str::<ExecDefaults>(&json).unwrap(), all);
}
