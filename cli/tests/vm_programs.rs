//! Programs in VMs that outlive the commands of a test, and what they write, against
//! the fake VMM of the library's tests. No KVM is needed.
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

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use flashpan::ExecOptions;
use nix::sys::signal::{Signal, kill};
use vms::Vms;

#[test]
fn streams_and_signals_of_a_program_are_those_of_exec() {
    let vms = Vms::new("normal");
    vms.run(&["--name", "web"], &["sleep"]);
    let output = vms.output(&["exec", "web", "both"]);
    assert_eq!(
        (&output.stdout[..], &output.stderr[..]),
        (&b"out"[..], &b"err"[..])
    );

    let mut exec = vms.0.flashpan(&["exec", "-i", "web", "cat"]);
    let mut child = exec.stdin(Stdio::piped()).spawn().unwrap();
    let data: Vec<u8> = (0..6_000_000_u32)
        .map(|n| n.to_le_bytes()[(n % 3) as usize])
        .collect();
    let mut stdin = child.stdin.take().unwrap();
    let sent = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.stdout == data, "{} bytes", output.stdout.len());

    let mut child = vms
        .0
        .flashpan(&["exec", "web", "announce-and-sleep"])
        .spawn()
        .unwrap();
    fake::wait_until_ready(&mut child);
    fake::signal(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));

    // Whoever goes takes its own program along, and nothing else.
    let note = vms.0.path("note");
    nix::unistd::mkfifo(&note, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut flood = vms
        .0
        .flashpan(&["exec", "web", "flood", note.to_str().unwrap()]);
    let mut child = flood.spawn().unwrap();
    let mut flooded = child.stdout.take().unwrap();
    flooded.read_exact(&mut [0]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(std::fs::read_to_string(note).unwrap(), "cancelled");
    assert_eq!(
        vms.output(&["exec", "web", "exit", "5"]).status.code(),
        Some(5)
    );

    // Nobody listens to this one, nor ends it by going.
    vms.ok(&["exec", "-d", "web", "sleep"]);
    let missing = vms.output(&["exec", "-d", "web", "missing"]);
    assert_eq!(missing.status.code(), Some(127));
    vms.ok(&["rm", "-f", "web"]);
    vms.assert_nothing_left();
}

#[test]
fn what_became_of_a_program_and_what_it_wrote_are_told_as_json() {
    let vms = Vms::new("normal");
    let id = vms.run(&["--name", "web"], &["both"]);
    vms.ok(&["wait", "web"]);
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let output = vms.output(&["exec", "--json", "web", "both"]);
    assert_eq!(output.status.code(), Some(0));
    let result = json(std::str::from_utf8(&output.stdout).unwrap());
    assert_eq!(result["exit_code"], 0);
    assert_eq!(result["stdout"], "b3V0");
    assert_eq!(result["stderr"], "ZXJy");
    assert!(result["duration_ms"].is_u64());
    let output = vms.output(&["exec", "--json", "web", "exit", "5"]);
    assert_eq!(output.status.code(), Some(5));
    let result = json(std::str::from_utf8(&output.stdout).unwrap());
    assert_eq!(result["exit_code"], 5);
    // One that cannot be started has the exit code that a shell gives it.
    let missing = vms.output(&["exec", "--json", "web", "missing"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(fake::complaint(&missing).contains("missing"), "{missing:?}");
    let result = json(std::str::from_utf8(&missing.stdout).unwrap());
    assert_eq!(result["exit_code"], 127);
    assert_eq!(result.get("stdout"), None, "{result}");
    // Of one whose time is up, what it had written.
    let late = [
        "exec",
        "--json",
        "--timeout",
        "3s",
        "web",
        "announce-and-sleep",
    ];
    let late = vms.output(&late);
    assert_eq!(late.status.code(), Some(124), "{late:?}");
    let result = json(std::str::from_utf8(&late.stdout).unwrap());
    assert_eq!(result["exit_code"], -1);
    assert_eq!(result["timed_out"], true);
    assert_eq!(result["stdout"], "cmVhZHk=", "{result}");
    assert!(result["duration_ms"].as_u64().unwrap() >= 3000, "{result}");
    let refused = vms.refused(&["exec", "--json", "-d", "web", "both"]);
    assert!(refused.contains("cannot be used with"), "{refused}");

    let plain = vms.ok(&["logs", "web"]);
    let lines = vms.ok(&["logs", "--json", "web"]);
    let lines: Vec<_> = lines.lines().map(json).collect();
    let text: String = lines
        .iter()
        .map(|of| of["line"].as_str().unwrap())
        .collect();
    assert_eq!(text, plain);
    assert!(lines.iter().all(|of| of["stream"] == "output"), "{lines:?}");

    vms.ok(&["stop", "web"]);
    let pruned = json(&vms.ok(&["prune", "--json"]));
    assert_eq!(pruned, serde_json::json!({"id": id, "name": "web"}));
}

#[test]
fn a_program_has_a_time_of_its_own() {
    let vms = Vms::new("normal");
    vms.run(&["--name", "web"], &["sleep"]);
    let output = vms.output(&["exec", "--timeout", "50ms", "web", "sleep"]);
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    let text = fake::complaint(&output);
    assert!(text.contains("50ms"), "{text}");
    let refused = vms.refused(&["exec", "-d", "--timeout", "1s", "web", "sleep"]);
    assert!(refused.contains("--timeout"), "{refused}");
}

#[test]
fn fifty_programs_at_once() {
    let vms = Vms::new("normal");
    vms.run(&["--name", "web"], &["sleep"]);
    let children: Vec<_> = (0..50)
        .map(|code: u32| {
            let code = code.to_string();
            let mut exec = vms.0.flashpan(&["exec", "web", "exit", &code]);
            (code, exec.spawn().unwrap())
        })
        .collect();
    for (code, child) in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), code.parse().ok(), "{output:?}");
    }
}

#[test]
fn logs_are_followed_until_the_vm_ends() {
    let vms = Vms::new("normal");
    vms.run(&["--name", "web"], &["both"]);
    let mut follow = vms.0.flashpan(&["logs", "-f", "web"]).spawn().unwrap();
    let mut six = [0; 6];
    follow
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut six)
        .unwrap();
    let mut six: Vec<_> = six.to_vec();
    six.sort_unstable();
    assert_eq!(six, b"eorrtu");
    vms.ok(&["stop", "web"]);
    let rest = follow.wait_with_output().unwrap();
    assert!(rest.status.success() && rest.stdout.is_empty(), "{rest:?}");
    assert_eq!(vms.ok(&["logs", "-f", "--tail", "1", "web"]).len(), 6);
    assert_eq!(vms.ok(&["logs", "--tail", "0", "web"]), "");
}

#[test]
fn what_the_image_s_own_command_writes_is_in_the_log_beside_the_command() {
    let vms = Vms::new("normal");
    let file = vms.0.path("sandbox.toml");
    let launched = "launch_entrypoint = true\nimage_config = { entrypoint = ['both'] }";
    std::fs::write(&file, launched).unwrap();
    vms.run(&["-f", file.to_str().unwrap(), "--name", "web"], &["sleep"]);
    let mut follow = vms.0.flashpan(&["logs", "-f", "web"]).spawn().unwrap();
    let mut six = [0; 6];
    let stdout = follow.stdout.as_mut().unwrap();
    stdout.read_exact(&mut six).unwrap();
    six.sort_unstable();
    assert_eq!(&six, b"eorrtu");
    vms.ok(&["stop", "web"]);
    let rest = follow.wait_with_output().unwrap();
    assert!(rest.status.success() && rest.stdout.is_empty(), "{rest:?}");
}

#[test]
fn a_program_with_the_library_reaches_a_vm_of_the_command_line() {
    let vms = Vms::new("normal");
    let options = [
        "--name",
        "web",
        "-e",
        "A=1",
        "--workdir",
        "/w",
        "--user",
        "7",
    ];
    vms.run(&options, &["both"]);
    let vm = flashpan::state::Vms::at(vms.state()).find("web").unwrap();
    let sandbox = flashpan::blocking::Sandbox::attach(&vm).unwrap();
    let shown = |options: ExecOptions| {
        let shown = sandbox.exec(options).unwrap().collect(4096).unwrap();
        String::from_utf8(shown.stdout).unwrap()
    };
    // Without a word of its own a program is run as those of `exec` are.
    let show = ExecOptions::argv(["show"]);
    let path = format!("PATH={}\n", flashpan::DEFAULT_PATH);
    assert_eq!(shown(show.clone()), format!("A=1\n{path}in /w as 7\n"));
    assert_eq!(shown(show.bare()), format!("{path}in  as \n"));
    let mut logs = sandbox.logs().unwrap();
    let mut written = Vec::new();
    while written.len() < 6 {
        written.extend(logs.next().unwrap().unwrap());
    }
    written.sort_unstable();
    assert_eq!(written, b"eorrtu");
    vms.ok(&["stop", "web"]);
    assert!(logs.next().is_none());
}

#[test]
fn programs_and_their_use_are_listed() {
    let vms = Vms::new("normal");
    let id = vms.run(&["--name", "web"], &["sleep"]);
    // The fake guest has the files of this machine.
    let programs = vms.ok(&["ps", "--format", "{{.PID}} {{.Command}}", "web"]);
    let own = programs
        .lines()
        .find(|line| line.ends_with("flashpan supervise"))
        .unwrap_or_else(|| panic!("{programs}"));
    assert!(own.split_once(' ').unwrap().0.parse::<u32>().is_ok());
    let stats = vms.ok(&["stats", "--no-stream", "--json", "web"]);
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats[0]["id"], id.as_str());
    assert_eq!(stats[0]["memory_bytes"], 256 << 20);
    assert!(stats[0]["resident_bytes"].as_u64().unwrap() > 0, "{stats}");
    assert!(stats[0]["uptime_ns"].as_u64().unwrap() > 0, "{stats}");
    let all = vms.ok(&["stats", "--no-stream", "--format", "{{.Name}}"]);
    assert_eq!(all, "web\n");
}

#[test]
fn a_vm_that_hangs_is_left_out_of_the_use_of_all() {
    let vms = Vms::new("normal");
    let stuck = vms.run(&["--name", "stuck"], &["sleep"]);
    // Each fake VMM locks its kernel.
    let kernel = vms.0.path("vmlinux-of-web");
    std::fs::copy(vms.0.path("vmlinux"), &kernel).unwrap();
    let kernel = kernel.to_str().unwrap();
    vms.run(&["--name", "web", "--kernel", kernel], &["sleep"]);
    let supervisor = vms.supervisor(&stuck);
    kill(supervisor, Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    let all = vms.output(&["stats", "--no-stream", "--format", "{{.Name}}"]);
    // Less than an answer may take otherwise.
    assert!(began.elapsed() < Duration::from_secs(25), "{all:?}");
    kill(supervisor, Signal::SIGCONT).unwrap();
    assert_eq!(all.status.code(), Some(0), "{all:?}");
    assert_eq!(all.stdout, b"web\n", "{all:?}");
    let told = String::from_utf8(all.stderr).unwrap();
    let left_out = format!("warning: the VM {stuck} is left out: its supervisor did not answer");
    assert_eq!(told.matches(&left_out).count(), 1, "{told}");
}

#[test]
fn the_use_of_a_vm_is_told_until_it_is_gone() {
    let vms = Vms::new("normal");
    for options in [&["--name", "web"][..], &["--rm", "--name", "gone"]] {
        let id = vms.run(options, &["sleep"]);
        let name = options.last().unwrap();
        let mut stats = vms.0.flashpan(&["stats", "--json", name]).spawn().unwrap();
        let mut lines = BufReader::new(stats.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        assert!(first.contains(&id), "{first}");
        vms.ok(&["stop", &id]);
        let last = lines.last().unwrap().unwrap();
        assert_eq!(last, "[]");
        let output = stats.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

#[test]
fn a_command_at_a_terminal_is_waited_for_there_and_not_by_others() {
    let vms = Vms::new("normal");
    let run = vms.making(&["run"], &["--rm=false", "--name", "web"], &["exit", "4"]);
    let output = { run }.output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let wait = vms
        .0
        .flashpan(&["wait", "web"])
        .stdout(Stdio::piped())
        .spawn();
    vms.ok(&["stop", "web"]);
    // What is left to wait for is the VM.
    let waited = wait.unwrap().wait_with_output().unwrap();
    assert_eq!(waited.stdout, b"0\n", "{waited:?}");
    // Started again, the command is the VM's own.
    vms.ok(&["start", "web"]);
    assert_eq!(vms.ok(&["wait", "web"]), "4\n");
}
