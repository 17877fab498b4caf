//! `flashpan policy`, and policies as scripts on the command line. Nothing boots.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/fake.rs"]
mod fake;

use std::process::{Command, Output};

use fake::World;

fn flashpan(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flashpan"));
    command.env_clear().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// `flashpan policy learn OPTIONS -- COMMAND`, with the fake VMM.
fn learn(world: &World, options: &[&str], command: &[&str]) -> Output {
    let root = world.path("root");
    let root = ["--hostname", "fake", "--rootfs", root.to_str().unwrap()];
    let arguments = [&["policy", "learn"], &root[..], options, &["--"], command].concat();
    world.flashpan(&arguments).output().unwrap()
}

#[test]
fn what_was_learned_comes_after_the_command() {
    let world = World::new("normal");
    let learned = learn(&world, &[], &["exit", "3"]);
    assert_eq!(learned.status.code(), Some(3), "{learned:?}");
    assert_eq!(text(&learned.stdout), "# nothing has to be allowed\n");
    let file = world.path("learned.toml");
    let options = ["--format", "toml", "-o", file.to_str().unwrap()];
    let learned = learn(&world, &options, &["exit", "0"]);
    assert_eq!(learned.status.code(), Some(0), "{learned:?}");
    assert_eq!(text(&learned.stdout), "");
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(written, "# nothing has to be allowed\n[network]\n");
    world.assert_nothing_left();
}

#[test]
fn nothing_is_learned_without_a_network_or_of_what_stays() {
    let world = World::new("normal");
    for (options, why) in [
        (&["--network", "none"][..], "there is nothing to be learned"),
        (&["--no-network"], "there is nothing to be learned"),
        (&["-d"], "leave out -d"),
        (&["-o", "/none/such"], "cannot write /none/such: "),
    ] {
        let failed = learn(&world, options, &["exit", "0"]);
        assert_eq!(failed.status.code(), Some(125), "{failed:?}");
        assert!(text(&failed.stderr).contains(why), "{failed:?}");
    }
}

const SCRIPT: &str = r#"
fn request(req) {
    if req.method == "POST" && req.path_is("/x/**") { deny("read only") }
}
fn connection(conn) { conn.port != 22 }
"#;

#[test]
fn a_script_is_asked_by_explain_and_test() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("p.rhai");
    std::fs::write(&script, SCRIPT).unwrap();
    let script = script.to_str().unwrap();
    let options = ["--network", "open", "--policy-script", script];
    let explain = |more: &[&str]| {
        let arguments = [&["policy", "explain"][..], &options, more].concat();
        flashpan(&arguments)
    };
    let allowed = explain(&["https://a.test/x/y"]);
    assert_eq!(allowed.status.code(), Some(0), "{allowed:?}");
    let denied = explain(&["--method", "POST", "https://a.test/x/y"]);
    assert_eq!(denied.status.code(), Some(1), "{denied:?}");
    let told = text(&denied.stdout);
    assert!(
        told.contains("refused (script_denied), by \"policy_script:3: read only\""),
        "{told}"
    );
    let denied = explain(&["--json", "a.test:22"]);
    let json: serde_json::Value = serde_json::from_slice(&denied.stdout).unwrap();
    assert_eq!(json["code"], "script_denied");

    let cases = dir.path().join("cases");
    std::fs::write(
        &cases,
        "deny POST https://a.test/x/y\nallow https://a.test/x/y\nallow a.test:22\n",
    )
    .unwrap();
    let arguments = [
        &["policy", "test"][..],
        &options,
        &[cases.to_str().unwrap()],
    ]
    .concat();
    let tested = flashpan(&arguments);
    assert_eq!(tested.status.code(), Some(1), "{tested:?}");
    let wrong = text(&tested.stdout);
    assert_eq!(wrong.lines().count(), 1, "{wrong}");
    assert!(wrong.contains("cases:3: expected allow: "), "{wrong}");
}

#[test]
fn name_servers_are_explained_as_what_they_are() {
    let explained = flashpan(&["policy", "explain", "udp:8.8.8.8:53"]);
    assert_eq!(explained.status.code(), Some(0), "{explained:?}");
    let told = text(&explained.stdout);
    assert!(
        told.starts_with("udp:8.8.8.8:53: allowed, flashpan answers there itself"),
        "{told}"
    );
    let json = flashpan(&["policy", "explain", "--json", "udp:8.8.8.8:53"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["code"], "name_server");
    assert_eq!(json["allowed"], true);
    // Nobody speaks HTTP there.
    let denied = flashpan(&[
        "policy",
        "explain",
        "--network",
        "open",
        "http://a.test:53/",
    ]);
    assert_eq!(denied.status.code(), Some(1), "{denied:?}");
}

#[test]
fn without_a_network_nothing_is_said_to_be_missing_in_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s.toml");
    std::fs::write(&file, "[network]\nno_network = true\n").unwrap();
    let file = file.to_str().unwrap();
    for options in [
        &["--network", "none"][..],
        &["--no-network"],
        &["--file", file],
    ] {
        for target in ["udp:8.8.8.8:53", "a.test"] {
            let none = flashpan(&[&["policy", "explain"], options, &[target]].concat());
            assert_eq!(none.status.code(), Some(1), "{none:?}");
            let told = text(&none.stdout);
            let why = "refused (no_network), there is no network; ";
            assert!(told.contains(why), "{told}");
            assert!(!told.contains("--allow-host"), "{told}");
        }
    }
}

#[test]
fn a_script_that_is_none_is_refused_before_anything_boots() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("p.rhai");
    std::fs::write(&script, "fn request(req) {\n  if\n}").unwrap();
    let script = script.to_str().unwrap();
    let failed = flashpan(&["run", "--policy-script", script, "--", "true"]);
    assert_eq!(failed.status.code(), Some(125), "{failed:?}");
    let told = text(&failed.stderr);
    assert!(
        told.contains("--policy-script: line 3, column 1: "),
        "{told}"
    );
    let toml = dir.path().join("s.toml");
    std::fs::write(
        &toml,
        "[network]\npolicy_script = '''\nfn request() {}\n'''\n",
    )
    .unwrap();
    let failed = flashpan(&["run", "-f", toml.to_str().unwrap(), "--", "true"]);
    assert_eq!(failed.status.code(), Some(125), "{failed:?}");
    let told = text(&failed.stderr);
    assert!(
        told.contains("network.policy_script: the function request has 0 parameters"),
        "{told}"
    );
    let missing = flashpan(&[
        "policy",
        "explain",
        "--policy-script",
        "/none/such",
        "a.test",
    ]);
    assert!(
        text(&missing.stderr).contains("cannot read /none/such: "),
        "{missing:?}"
    );
}
