//! `flashpan run` with a configuration file, variables of the environment, and the
//! options that become fields of a configuration, against the fake VMM. No KVM is
//! needed.
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

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Output;
use std::time::{Duration, Instant};

use fake::{World, complaint};

/// `flashpan run -f FILE OPTIONS -- COMMAND`, with this in the file.
fn with_file(world: &World, name: &str, text: &str, options: &[&str], command: &[&str]) -> Output {
    let file = world.path(name);
    std::fs::write(&file, text).unwrap();
    let options = [&["-f", file.to_str().unwrap()], options].concat();
    world.output(&options, command)
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn options_go_before_the_file_field_by_field() {
    let world = World::new("normal");
    let file = "env = { A = 'file', B = 'file' }\n\
                image_config = { user = '5', working_dir = '/file' }\n";
    let shown = with_file(&world, "s.toml", file, &[], &["show"]);
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n";
    assert_eq!(
        stdout(&shown),
        format!("A=file\nB=file\n{path}in /file as 5\n")
    );
    let options = ["-e", "B=option", "-u", "6"];
    let shown = with_file(&world, "s.toml", file, &options, &["show"]);
    assert_eq!(
        stdout(&shown),
        format!("A=file\nB=option\n{path}in /file as 6\n")
    );
    // The command may be the file's.
    let file = "image_config = { entrypoint = ['exit'], cmd = ['9'] }";
    let nine = with_file(&world, "s.toml", file, &[], &[]);
    assert_eq!(nine.status.code(), Some(9), "{nine:?}");
    let eight = with_file(&world, "s.toml", file, &[], &["8"]);
    assert_eq!(eight.status.code(), Some(8), "{eight:?}");
}

#[test]
fn a_mistake_in_the_file_is_one_line_that_says_where() {
    let world = World::new("normal");
    for (name, text, reason) in [
        (
            "s.toml",
            "[resources]\nmemroy_mb = 512\n",
            "s.toml: configuration: line 2, column 1: resources.memroy_mb: unknown field",
        ),
        (
            "s.toml",
            "[network]\nmtu = 'big'\n",
            "s.toml: configuration: line 2, column 7: network.mtu: found string, expected a whole number",
        ),
        (
            "s.toml",
            "image = \n",
            "s.toml: configuration is not TOML: line 1, column 9: ",
        ),
        (
            "s.toml",
            "[resources]\nmemory_mb = -1\n",
            "s.toml: configuration: line 2, column 13: resources.memory_mb: must be 0 or more",
        ),
        (
            "s.toml",
            "launch_entrypoint = true\n",
            "launch_entrypoint: neither the image nor image_config names a command to launch",
        ),
        (
            // What is wrong is not besides without effect.
            "s.json",
            r#"{"vfs":{"workspace":"/w","mounts":{"/w":{"type":"memory"}},"interception":{"rules":[
                {"name":"a","action":"nope"},{"name":"b","action":"exec_after"}]}}}"#,
            "vfs.interception.rules[0].action",
        ),
        (
            "s.toml",
            "id = 'vm-01234567'\n",
            "s.toml: id is internal-only and cannot be set",
        ),
        (
            "s.json",
            "{\n\"image\": }",
            "s.json: configuration is not JSON: line 2, column 10: ",
        ),
        (
            "s.toml",
            "resources = { memory_mb = 1 }\nnetwork = { mtu = 1 }\n",
            "network.mtu: 1 is not between 576 and 65520; resources.memory_mb: 1 MiB is too little",
        ),
        (
            "s.json",
            r#"{"vfs":{"workspace":"/w","mounts":{"/w":{"type":"memory"}}}}"#,
            "s.json: vfs.workspace: not supported by this version: guests see no files of the \
             host; use a disk; vfs.mounts: not supported by this version: ",
        ),
    ] {
        let output = with_file(&world, name, text, &[], &["true"]);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let complaint = complaint(&output);
        assert!(complaint.contains(reason), "{text}: {complaint}");
        assert!(
            !String::from_utf8_lossy(&output.stderr).contains("warning: "),
            "{output:?}"
        );
        assert!(!world.path("cache").exists(), "{text}");
    }
    let output = world.output(&["-f", "/nowhere/s.toml"], &["true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(complaint(&output).contains("cannot read the configuration /nowhere/s.toml: "));
}

#[test]
fn what_does_not_hold_of_a_policy_is_told_as_json() {
    let world = World::new("normal");
    let cases = world.path("cases");
    std::fs::write(&cases, "# two\nallow https://a.test/\n\ndeny a.test:22\n").unwrap();
    let words = ["policy", "test", "--json", "--allow-host", "a.test"];
    let mut test = world.flashpan(&words);
    let output = test.arg(&cases).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["cases"], 2);
    let wrong = told["wrong"].as_array().unwrap();
    assert_eq!(wrong.len(), 1, "{told}");
    assert_eq!(
        (&wrong[0]["line"], &wrong[0]["expected"]),
        (&4.into(), &"deny".into())
    );
    assert_eq!(wrong[0]["allowed"], true);
}

#[test]
fn a_file_that_is_no_text_is_told_with_its_line() {
    let world = World::new("normal");
    let file = world.path("s.toml");
    std::fs::write(&file, b"image = 'a'\n\nenv.A = '\xff'\n").unwrap();
    let output = world.output(&["-f", file.to_str().unwrap()], &["true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let told = complaint(&output);
    assert!(
        told.ends_with("is not TOML: line 3: it is not UTF-8"),
        "{told}"
    );
}

#[test]
fn a_field_that_nobody_knows_is_a_warning_in_json() {
    let world = World::new("normal");
    let output = with_file(&world, "s.JSON", r#"{"new":1}"#, &[], &["exit", "3"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("warning: ") && text.contains("s.JSON: new: unknown field; it has no effect"),
        "{text}"
    );
}

#[test]
fn paths_in_the_file_count_from_its_directory() {
    let world = World::new("normal");
    let file = "extra_disks = [{ host_path = 'no.ext4', guest_mount = '/d' }]";
    let output = with_file(&world, "s.toml", file, &[], &["true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let expected = world.path("no.ext4").display().to_string();
    assert!(complaint(&output).contains(&expected), "{output:?}");
    let file = "extra_disks = [{ host_path = '@none', guest_mount = '/d' }]";
    let output = with_file(&world, "s.toml", file, &[], &["true"]);
    assert!(complaint(&output).ends_with("named volume not found: none"));
}

#[test]
fn the_time_limit_of_the_file_counts_and_that_of_the_option_before_it() {
    let world = World::new("normal");
    let file = "resources = { timeout_seconds = 1 }";
    let output = with_file(&world, "s.toml", file, &[], &["sleep"]);
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert!(complaint(&output).contains("time is up: 1s"), "{output:?}");
    let options = ["--timeout", "200ms"];
    let output = with_file(&world, "s.toml", file, &options, &["sleep"]);
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert!(complaint(&output).contains("time is up: 200ms"));
    world.assert_nothing_left();
}

#[test]
fn what_needs_a_network_or_mounts_is_refused_by_the_name_of_its_option() {
    let world = World::new("normal");
    let (none, no) = (
        "the VM is to have no network; leave one",
        "not supported by this version",
    );
    for (options, option, why) in [
        (&["--allow-host", "a.com,b.com"][..], "--allow-host", none),
        (&["--secret", "K=hunter2@a.com,b.com"], "--secret", none),
        (&["--network-intercept"], "--network-intercept", none),
        (&["-v", "/:src", "--workspace", "/w"], "--workspace", no),
    ] {
        let options = [&["--network", "none"], options].concat();
        let output = world.output(&options, &["true"]);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let complaint = complaint(&output);
        let expected = format!("error: {option}: {why}");
        assert!(complaint.contains(&expected), "{complaint}");
        assert!(!complaint.contains("hunter2"), "{complaint}");
        assert!(!world.path("cache").exists(), "{options:?}");
    }
    // That there is no network is so anyway.
    let options = ["--no-network", "--mtu", "1400", "--dns-servers", "1.1.1.1"];
    let output = world.output(&options, &["exit", "0"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // A secret that is written wrongly is not shown either.
    let output = world.output(&["--secret", "K=hunter2"], &["true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(complaint(&output).contains("missing @hosts"));
    assert!(
        !String::from_utf8(output.stderr)
            .unwrap()
            .contains("hunter2")
    );
}

#[test]
fn the_environment_stands_in_for_options_unless_it_is_empty() {
    let world = World::new("normal");
    let run = |name: &str, value: &str, options: &[&str]| {
        let mut run = world.run(options, &["show"]);
        run.env(name, value).output().unwrap()
    };
    for (name, bad, option) in [
        ("FLASHPAN_MEMORY", "1M", ["--memory", "64M"]),
        ("FLASHPAN_CPUS", "many", ["--cpus", "1"]),
        ("FLASHPAN_CPUS", "99", ["--cpus", "1"]),
        ("FLASHPAN_ALLOW_HOST", "a b", ["--no-network", "--console"]),
        ("FLASHPAN_ALLOW_HOST", "a b", ["--network", "none"]),
        ("FLASHPAN_NETWORK", "some", ["--network", "none"]),
        ("FLASHPAN_TIMEOUT", "soon", ["--timeout", "60s"]),
        ("FLASHPAN_BOOT_TIMEOUT", "0", ["--boot-timeout", "60s"]),
        ("FLASHPAN_WORKDIR", "relative", ["-w", "/"]),
        ("FLASHPAN_FILE", "/nowhere/s.toml", ["-u", "0"]),
        ("FLASHPAN_ENV_FILE", "/nowhere/env", ["-u", "0"]),
        ("FLASHPAN_DISK_SIZE", "1M", ["-u", "0"]),
    ] {
        let refused = run(name, bad, &[]);
        assert_eq!(refused.status.code(), Some(125), "{name}: {refused:?}");
        let told = complaint(&refused);
        assert!(told.contains(name) || name.ends_with("FILE"), "{told}");
        assert!(
            !told.contains("--") || told.ends_with("see --help"),
            "{told}"
        );
        let empty = run(name, "", &[]);
        assert_eq!(empty.status.code(), Some(0), "{name}: {empty:?}");
        if option[0] != "-u" {
            let given = run(name, bad, &option);
            assert_eq!(given.status.code(), Some(0), "{name}: {given:?}");
        }
    }
    // An option decides between those that exclude each other.
    let ephemeral = run("FLASHPAN_DISK_SIZE", "1M", &["--ephemeral"]);
    assert_eq!(ephemeral.status.code(), Some(0), "{ephemeral:?}");
    let rootfs = run("FLASHPAN_IMAGE", "no-such:image", &[]);
    assert_eq!(rootfs.status.code(), Some(0), "{rootfs:?}");
    let user = run("FLASHPAN_USER", "12", &[]);
    assert!(stdout(&user).ends_with("in / as 12\n"));
}

#[test]
fn a_network_of_a_variable_gives_way_to_options_that_say_the_opposite() {
    let world = World::new("normal");
    let run = |network: &str, options: &[&str]| {
        let mut run = world.run(options, &["exit", "0"]);
        run.env("FLASHPAN_NETWORK", network).output().unwrap()
    };
    for (network, options) in [
        ("open", &["--no-network"][..]),
        ("none", &["--allow-host", "a.com"]),
        ("none", &["--tcp", "a.com:1"]),
        ("none", &["--rule", "allow GET a.com"]),
        ("none", &["--secret", "K=v@a.com"]),
        ("none", &["--network-intercept"]),
        // No opposites.
        ("open", &["--allow-host", "a.com"]),
        ("none", &["--no-network"]),
    ] {
        let output = run(network, options);
        assert_eq!(output.status.code(), Some(0), "{options:?}: {output:?}");
    }
    let mut none = world.run(&["--network", "none"], &["exit", "0"]);
    let output = none.env("FLASHPAN_ALLOW_HOST", "a.com").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // Options stay what they are to each other.
    let output = run("none", &["--network", "open", "--no-network"]);
    let told = complaint(&output);
    assert!(told.contains("error: --no-network: the VM is"), "{told}");
}

#[test]
fn a_variable_that_does_not_go_with_the_file_is_named() {
    let world = World::new("normal");
    let (hosts, none) = (world.path("ah.toml"), world.path("nn.toml"));
    std::fs::write(&hosts, "network.allowed_hosts = ['a.com']\n").unwrap();
    std::fs::write(&none, "network.no_network = true\n").unwrap();
    let [hosts, none] = [&hosts, &none].map(|path| path.to_str().unwrap());
    for (variables, file, expected) in [
        (
            &[("FLASHPAN_NETWORK", "none")][..],
            Some(hosts),
            format!(
                "FLASHPAN_NETWORK beside network.allowed_hosts of {hosts}: the VM is to have no \
                 network; leave one of them out"
            ),
        ),
        (
            &[("FLASHPAN_NETWORK", "open")],
            Some(none),
            format!(
                "FLASHPAN_NETWORK beside network.no_network of {none}: the VM is to have a \
                 network; leave one of them out"
            ),
        ),
        (
            &[("FLASHPAN_ALLOW_HOST", "a.com")],
            Some(none),
            format!("FLASHPAN_ALLOW_HOST: cannot be combined with network.no_network of {none}"),
        ),
        (
            &[
                ("FLASHPAN_NETWORK", "none"),
                ("FLASHPAN_ALLOW_HOST", "a.com"),
            ],
            None,
            "FLASHPAN_NETWORK beside FLASHPAN_ALLOW_HOST: the VM is to have no network; leave \
             one of them out"
                .to_owned(),
        ),
    ] {
        let options: Vec<_> = file.iter().flat_map(|file| ["-f", *file]).collect();
        let mut run = world.run(&options, &["exit", "0"]);
        let output = run.envs(variables.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let told = complaint(&output);
        assert_eq!(told, format!("flashpan: error: {expected}"));
    }
    // As the option.
    let options = ["-f", none, "--allow-host", "b.com"];
    let output = world.output(&options, &["exit", "0"]);
    let expected = format!("--allow-host: cannot be combined with network.no_network of {none}");
    assert!(complaint(&output).ends_with(&expected), "{output:?}");
}

#[test]
fn a_variable_that_is_not_utf_8_is_named() {
    let world = World::new("normal");
    let bytes = OsStr::from_bytes(b"/\xff");
    let run = |variables: &[&str]| {
        let mut run = world.run(&[], &["exit", "0"]);
        // A path and a directory of the guest need not be.
        for path in ["FLASHPAN_ENV_FILE", "FLASHPAN_WORKDIR"] {
            run.env(path, bytes);
        }
        let run = run.envs(variables.iter().map(|name| (name, bytes)));
        let output = run.output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        complaint(&output)
    };
    assert_eq!(
        run(&["FLASHPAN_USER"]),
        "flashpan: error: FLASHPAN_USER: it is not UTF-8; see --help"
    );
    let told = run(&["FLASHPAN_USER", "FLASHPAN_MEMORY"]);
    let (names, _) = told.split_once(": they are not UTF-8").unwrap();
    assert!(names.contains("FLASHPAN_USER"), "{told}");
    assert!(names.contains("FLASHPAN_MEMORY"), "{told}");
    assert!(!names.contains("FILE"), "{told}");
}

#[test]
fn nothing_to_launch_is_refused_with_the_file_that_asks_for_it() {
    let world = World::new("normal");
    let file = world.path("le.toml");
    std::fs::write(&file, "launch_entrypoint = true\n").unwrap();
    let expected = format!(
        "flashpan: error: {}: launch_entrypoint: neither the image nor image_config names a \
         command to launch",
        file.display()
    );
    for verb in [&["create"][..], &["run", "-d"], &["run"]] {
        for command in [&[][..], &["--", "true"]] {
            let mut make = world.flashpan(verb);
            make.arg("--rootfs").arg(world.path("root"));
            let output = make.arg("-f").arg(&file).args(command).output().unwrap();
            assert_eq!(output.status.code(), Some(125), "{make:?}: {output:?}");
            assert_eq!(complaint(&output), expected);
        }
    }
    let left = world.flashpan(&["ls", "-q"]).output().unwrap();
    assert_eq!(left.stdout, b"", "{left:?}");
}

#[test]
fn an_image_without_a_name_is_no_built_in_root() {
    let world = World::new("normal");
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_flashpan"));
    run.env("FLASHPAN_KERNEL", world.path("vmlinux"));
    let output = run
        .args(["run", "--image", "", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(
        complaint(&output).contains("--image is empty"),
        "{output:?}"
    );
}

#[test]
fn variables_come_from_files_and_options_go_before_them() {
    let world = World::new("normal");
    let (one, two) = (world.path("one"), world.path("two"));
    std::fs::write(&one, "# first\nA=1\nB=1\n\nC=1\n").unwrap();
    std::fs::write(&two, " B=2\nC=2\n").unwrap();
    let [one, two] = [&one, &two].map(|path| path.to_str().unwrap());
    let options = ["--env-file", one, "--env-file", two, "-e", "C=3"];
    let shown = stdout(&world.output(&options, &["show"]));
    assert!(shown.starts_with("A=1\nB=2\nC=3\n"), "{shown}");
    std::fs::write(two, "B=1\n=x\n").unwrap();
    let output = world.output(&["--env-file", two], &["show"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let expected = format!("parse env file line {two}:2: ");
    assert!(complaint(&output).contains(&expected), "{output:?}");
}

#[test]
fn the_image_s_own_command_is_launched_beside_the_command() {
    let world = World::new("normal");
    let file = |command: &str| {
        format!("launch_entrypoint = true\nimage_config = {{ entrypoint = ['{command}'] }}")
    };
    let beside = with_file(&world, "s.toml", &file("sleep"), &[], &["exit", "5"]);
    assert_eq!(beside.status.code(), Some(5), "{beside:?}");
    let missing = with_file(&world, "s.toml", &file("missing"), &[], &["exit", "5"]);
    assert_eq!(missing.status.code(), Some(125), "{missing:?}");
    assert!(
        complaint(&missing).ends_with("start image entrypoint: missing: not found in PATH"),
        "{missing:?}"
    );
    // Without a command it is what runs.
    let alone = with_file(&world, "s.toml", &file("both"), &[], &[]);
    assert_eq!(stdout(&alone), "out");
    world.assert_nothing_left();
}

#[test]
fn a_graceful_shutdown_takes_no_longer_than_it_may() {
    let world = World::new("stubborn");
    let began = Instant::now();
    let output = world.output(&["--graceful-shutdown", "1s"], &["exit", "4"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(began.elapsed() >= Duration::from_secs(1));
    world.assert_nothing_left();
    let output = world.output(&["--graceful-shutdown", "0"], &["exit", "4"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

#[test]
fn a_message_names_the_option_or_the_field_that_was_written() {
    let world = World::new("normal");
    for (option, value, says) in [
        ("--cpus", "33", "--cpus: 33 is more than 32"),
        (
            "--memory",
            "99999999M",
            "--memory: 99999999 MiB is more than",
        ),
        ("--pids-limit", "0", "--pids-limit: 0 leaves no room"),
        ("--disk-iops", "0", "--disk-iops: 0 is not from 1"),
        (
            "--mtu",
            "66000",
            "--mtu: 66000 is not between 576 and 65520",
        ),
    ] {
        let output = world.output(&[option, value], &["exit", "0"]);
        let line = complaint(&output);
        let begin = format!("flashpan: error: {says}");
        assert!(line.starts_with(&begin), "{line}");
        // Nothing is said of a field that its user did not write.
        assert!(
            !line.contains("resources.") && !line.contains("network."),
            "{line}"
        );
    }
    let file = "resources = { cpus = 33 }\n";
    let line = complaint(&with_file(&world, "s.toml", file, &[], &["exit", "0"]));
    assert!(
        line.contains("resources.cpus: 33 is more than 32"),
        "{line}"
    );
    let options = ["--cpus", "34"];
    let line = complaint(&with_file(&world, "s.toml", file, &options, &["exit", "0"]));
    assert!(
        line.starts_with("flashpan: error: --cpus: 34 is more"),
        "{line}"
    );
}

#[test]
fn an_entry_is_of_the_option_or_of_the_file_that_has_it() {
    let world = World::new("normal");
    let file = "env = { \"A=\" = 'file', B = 'file' }\n\
                extra_disks = [{ host_path = 'a', guest_mount = '/proc' }]\n";
    let run = |options: &[&str]| {
        let output = with_file(&world, "s.toml", file, options, &["exit", "0"]);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        complaint(&output)
    };
    let path = world.path("s.toml").display().to_string();
    let disk = "extra_disks[0].guest_mount: \"/proc\": the guest's kernel has /proc";
    let variable = "env[\"A=\"]: the name of a variable contains `=` or a NUL";
    let both = format!("flashpan: error: {path}: {disk}; {variable}");
    assert_eq!(run(&[]), both);
    // Options for other entries are not blamed, and one for all entries replaces them.
    assert_eq!(run(&["-e", "B=option"]), both);
    let disk = run(&["--disk", "b:/d", "--disk", "c:/d"]);
    let option = "--disk c:/d: is the same path as that of --disk b:/d";
    let says = format!("flashpan: error: {option}; {path}: {variable}");
    assert_eq!(disk, says);
}
