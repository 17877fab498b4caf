//! What is shown of VMs that outlive the commands of a test, against the fake VMM of
//! the library's tests. No KVM is needed.
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
#[path = "support/vms.rs"]
mod vms;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use vms::Vms;

#[test]
fn lists_are_printed_as_they_are_asked_for() {
    let vms = Vms::new("normal");
    let id = vms.create(&["--name", "one"], &["exit", "0"]);
    assert_eq!(vms.ok(&["ls", "-q"]), format!("{id}\n"));
    assert_eq!(vms.ok(&["ls", "--running", "-q"]), "");
    let table = vms.ok(&["ls"]);
    let mut lines = table.lines();
    let titles: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        titles,
        ["ID", "STATUS", "IMAGE", "CREATED", "PORTS", "NAME"]
    );
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with(&format!("{id}  created  -"))
    );
    assert_eq!(
        vms.ok(&["ls", "--format", "table {{.Name}}\\t{{.Command}}"]),
        "NAME  COMMAND\none   exit 0\n"
    );
    let json: serde_json::Value = serde_json::from_str(&vms.ok(&["ls", "--json"])).unwrap();
    assert_eq!(json[0]["status"], "created");
    let words = vms.ok(&["__complete"]);
    assert_eq!(words, format!("one\n{id}\n"));
    assert_eq!(vms.ok(&["ls", "--format", "table"]), table);
    let object = vms.ok(&["ls", "--format", "json"]);
    let object: serde_json::Value = serde_json::from_str(&object).unwrap();
    assert_eq!(object, json[0]);
    let inspected = vms.ok(&["inspect", "--format", "json", "one"]);
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["id"], *id);
    for words in [&["ls", "--format", "ID"][..], &["stats", "--format", "ID"]] {
        let wrong = vms.refused(words);
        assert!(wrong.contains("`ID` names no field"), "{wrong}");
    }
    for words in [&["inspect", "one"][..], &["events"]] {
        let wrong = vms.refused(&[words, &["--format", "table"]].concat());
        assert!(wrong.contains("table"), "{wrong}");
    }
    let wrong = vms.refused(&["ls", "--format", "{{.Pid}}"]);
    assert!(wrong.contains("there is no field Pid"), "{wrong}");
    let renamed = vms.ok(&["rename", "one", "two"]);
    assert_eq!(renamed, "");
    assert_eq!(vms.ok(&["inspect", "--format", "{{.Name}}", &id]), "two\n");
}

#[test]
fn a_shell_completes_names_of_vms() {
    let vms = Vms::new("normal");
    let id = vms.create(&["--name", "web-server"], &["both"]);
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_flashpan"));
    let complete = |words: &str| {
        let mut bash = std::process::Command::new("bash");
        for (name, value) in vms.0.flashpan(&[]).get_envs() {
            bash.env(name, value.unwrap());
        }
        let script = format!(
            "PATH={}:$PATH; eval \"$(flashpan completion bash)\"; COMP_WORDS=({words}); \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _flashpan_or_vm flashpan; \
             printf '%s ' \"${{COMPREPLY[@]}}\"",
            program.parent().unwrap().display()
        );
        let output = bash.args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(complete("flashpan stop w"), "web-server");
    assert_eq!(complete("flashpan stop vm-"), id);
    assert_eq!(complete("flashpan cp w"), "web-server:");
    // Files of that name besides, and files alone are the shell's own.
    assert!(complete("flashpan cp ''").starts_with("web-server: vm-"));
    assert!(complete("flashpan cp ''").contains("Cargo.toml"));
    assert!(complete("flashpan cp --arch").contains("--archive"));
    assert!(complete("flashpan stop --t").contains("--time"));
    assert!(complete("flashpan sto").contains("stop"));
}

#[test]
fn ports_are_reachable_while_the_vm_runs_and_are_listed() {
    let vms = Vms::new("normal");
    // It was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = format!("{}:80", free.local_addr().unwrap().port());
    drop(free);
    let started = vms
        .making(&["run", "-d"], &["--name", "web", "-p", &ports], &["sleep"])
        .output()
        .unwrap();
    let told = String::from_utf8(started.stderr).unwrap();
    let listed = vms.ok(&["ls", "--format", "{{.Ports}}"]);
    let address = listed.trim().strip_suffix("->80/tcp").unwrap();
    let line = format!("Forwarding {address} -> sandbox:80\n");
    assert!(told.ends_with(&line), "{told}");
    std::net::TcpStream::connect(address).unwrap();
    vms.ok(&["stop", "web"]);
    assert_eq!(vms.ok(&["ls", "--format", "{{.Ports}}"]), "\n");
    std::net::TcpStream::connect(address).unwrap_err();
    // What is taken is told, and nothing is left.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("{}:80", taken.local_addr().unwrap().port());
    let output = vms
        .making(&["run", "-d"], &["-p", &port], &["sleep"])
        .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(fake::complaint(&output).contains("in use"), "{output:?}");
    assert_eq!(vms.ok(&["ls", "--format", "{{.Name}}"]), "web\n");
}

#[test]
fn a_port_that_is_given_twice_is_refused_before_there_is_a_vm() {
    let vms = Vms::new("normal");
    for verb in [&["create"][..], &["run", "-d"], &["run"]] {
        let publish = ["-p", "18123:80", "-p", "127.0.0.1:18123:81"];
        let output = vms.making(verb, &publish, &["true"]).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let text = fake::complaint(&output);
        assert!(
            text.contains("127.0.0.1:18123/tcp is given twice"),
            "{text}"
        );
    }
    vms.assert_nothing_left();
    // Every address has those that stand for all of them.
    let publish = ["-p", "0.0.0.0:18123:80", "-p", "18123:81"];
    let output = vms
        .making(&["create"], &publish, &["true"])
        .output()
        .unwrap();
    assert!(
        fake::complaint(&output).contains("given twice"),
        "{output:?}"
    );
    // Other addresses and protocols are others.
    let publish = [
        "-p",
        "18123:80/udp",
        "-p",
        "[::1]:18123:80/udp",
        "-p",
        "18123:80",
    ];
    let id = vms.create(&publish, &["true"]);
    vms.ok(&["rm", &id]);
}

#[test]
fn a_template_reaches_everything_that_inspect_prints() {
    let vms = Vms::new("normal");
    let id = vms.create(&["--name", "web", "--memory", "300M"], &["exit", "0"]);
    let shown = |template: &str| vms.ok(&["inspect", "--format", template, "web"]);
    let all = vms.inspect("web");
    for (template, says) in [
        ("{{.Config.Resources.MemoryMB}}", "300"),
        ("{{.launch.config.resources.memory_mb}}", "300"),
        ("{{.Programs.Command.1}} {{.ID}}", &format!("0 {id}")),
        ("{{.Status}} {{.Name}}", "created web"),
        ("{{json .Name}}", "\"web\""),
        // What is not set, whether its parent is or not.
        ("<{{.Exit.Reason.Kind}}>", "<>"),
        ("<{{.Config.Resources.CPUs}}>", "<>"),
        ("<{{.Config.Network.Interception.CallbackSocket}}>", "<>"),
        ("<{{.Config.VFS.Workspace}} {{.Config.Env.HOME}}>", "< >"),
        ("<{{.Config.ExtraDisks.0.HostPath}}>", "<>"),
        ("{{json .Exit.Reason}}", "null"),
        (
            r"table {{.Name}}\t{{.Config.Resources.MemoryMB}}",
            "NAME  MEMORYMB\nweb   300",
        ),
    ] {
        assert_eq!(shown(template), format!("{says}\n"), "{template}");
    }
    for (template, value) in [
        ("{{json .}}", &all),
        ("{{json .Config}}", &all["launch"]["config"]),
        ("{{.Launch.Options}}", &all["launch"]["options"]),
    ] {
        let shown: serde_json::Value = serde_json::from_str(&shown(template)).unwrap();
        assert_eq!(shown, *value, "{template}");
    }
    for (template, says) in [
        (
            "{{.Pid}}",
            format!("there is no field Pid of {id}; there are "),
        ),
        (
            "{{json .Config.Resources.Cpu.X}}",
            format!("there is no field Config.Resources.Cpu of {id}; there are "),
        ),
        // Misspelt, below what is set and below what is not.
        (
            "{{.Config.Network.Xyz}}",
            format!("there is no field Config.Network.Xyz of {id}; there are add_hosts, "),
        ),
        (
            "{{.Exit.Reson.Kind}}",
            format!("there is no field Exit.Reson of {id}; there are command, ended_at, "),
        ),
        (
            "{{.Programs.Command.2}}",
            format!("there is no field Programs.Command.2 of {id}; there are 0 to 1"),
        ),
    ] {
        let refused = vms.refused(&["inspect", "--format", template, "web"]);
        assert!(refused.contains(&says), "{refused}");
    }
}

#[test]
fn what_was_done_to_vms_is_told_as_json() {
    let vms = Vms::new("normal");
    let line = |output: String| -> serde_json::Value {
        assert_eq!(output.lines().count(), 1, "{output}");
        serde_json::from_str(&output).unwrap()
    };
    let made = |verb: &[&str]| {
        let options = ["--name", "web", "--json"];
        let output = vms.making(verb, &options, &["exit", "3"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        line(String::from_utf8(output.stdout).unwrap())
    };
    let running = made(&["run", "-d"]);
    let id = running["id"].as_str().unwrap();
    let web = serde_json::json!({"id": id, "name": "web"});
    assert_eq!(running, web);
    let ended = serde_json::json!({"id": id, "name": "web", "exit_code": 3});
    assert_eq!(line(vms.ok(&["wait", "--json", "web"])), ended);
    for command in ["pause", "unpause", "stop", "start", "restart", "kill"] {
        assert_eq!(
            line(vms.ok(&[command, "--json", &id[..8]])),
            web,
            "{command}"
        );
    }
    assert_eq!(line(vms.ok(&["rename", "--json", "web", "web"])), web);
    assert_eq!(line(vms.ok(&["rm", "--json", "web"])), web);

    let created = made(&["create"]);
    let id = created["id"].as_str().unwrap();
    assert_eq!(created["name"], "web");
    vms.ok(&["start", id]);
    vms.ok(&["stop", id]);
    let pruned = serde_json::json!({ "id": id, "name": "web" });
    assert_eq!(line(vms.ok(&["prune", "--json"])), pruned);
    assert_eq!(vms.ok(&["prune", "--json"]), "");

    // What a command writes is not ours to put into JSON.
    for options in [&["--json"][..], &["--json", "--rm=false"]] {
        let run = vms.making(&["run"], options, &["both"]).output().unwrap();
        assert_eq!(run.status.code(), Some(125), "{run:?}");
        let told = fake::complaint(&run);
        assert!(told.contains("use it with -d"), "{told}");
    }
    vms.assert_nothing_left();
}

#[test]
fn events_are_printed_by_a_template() {
    let vms = Vms::new("normal");
    let id = vms.run(&["--name", "web"], &["sleep"]);
    vms.ok(&["stop", "web"]);
    let shown = vms.ok(&["events", "--format", "{{.VM}} {{.Type}}: {{.What}}", "web"]);
    assert!(
        shown.starts_with(&format!("{id} vm: starting\n")),
        "{shown}"
    );
    assert!(shown.contains(&format!("\n{id} vm: stopped: ")), "{shown}");
    let all = vms.ok(&["events", "--format", "{{json .}}", "web"]);
    assert_eq!(all, vms.ok(&["events", "--json", "web"]));
    for (template, says) in [
        (
            "{{.Pid}}",
            "there is no field Pid; there are Time, VM, Type, What",
        ),
        (r"table {{.VM}}\t{{.What}}", "events have no table"),
    ] {
        let refused = vms.refused(&["events", "--format", template]);
        assert!(refused.contains(says), "{refused}");
    }
}

#[test]
fn ports_that_are_forwarded_are_told_as_json() {
    let vms = Vms::new("normal");
    vms.run(&["--name", "web"], &["sleep"]);
    // It was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = format!("{}:80", free.local_addr().unwrap().port());
    drop(free);
    let mut forward = vms.0.flashpan(&["port-forward", "--json", "web", &ports]);
    let mut child = forward.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    let port: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(port["remote_port"], 80);
    let address: std::net::SocketAddr = port["address"].as_str().unwrap().parse().unwrap();
    std::net::TcpStream::connect(address).unwrap();
    fake::signal(&child, nix::sys::signal::Signal::SIGTERM);
    child.wait().unwrap();
}
