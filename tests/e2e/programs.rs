//! Programs of a distribution in a real guest whose network is looked into, against
//! servers on addresses of the host's loopback interface.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flashpan_tests::{Flashpan, Home, fixtures};
use serde_json::Value;

/// The value of the secret. What may be done to it on its way makes another text of it.
const VALUE: &str = "tok/Rm9Ah2uQ+e81Zx==";

/// It as it is, percent-encoded, and what is certain of it in base64, where it may begin at
/// any of three places.
const FORMS: [&str; 6] = [
    VALUE,
    "tok%2FRm9Ah2uQ%2Be81Zx",
    "tok%2fRm9Ah2uQ%2be81Zx",
    "dG9rL1JtOUFoMnVRK2U4MVp4PT",
    "Rvay9SbTlBaDJ1UStlODFaeD09",
    "0b2svUm05QWgydVErZTgxWng9P",
];

/// Where the servers' name server is.
const RESOLVER: &str = "127.209.113.1";

/// Programs take long where a processor is emulated.
const PATIENCE: Duration = Duration::from_secs(1200);

/// The servers, as long as this is there.
struct Servers {
    child: Child,
    authority: PathBuf,
}

impl Servers {
    fn start(home: &Home) -> Self {
        let directory = home.file("servers");
        fs::create_dir(&directory).unwrap();
        let program = directory.join("servers.py");
        fs::write(&program, include_str!("programs/servers.py")).unwrap();
        let grpc = include_str!("programs/grpc_echo.py");
        fs::write(directory.join("grpc_echo.py"), grpc).unwrap();
        let mut child = Command::new("python3")
            .arg(program)
            .arg(&directory)
            .env("VALUE", VALUE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n", "the servers did not come up");
        Self {
            child,
            authority: directory.join("ca.pem"),
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Runs a test where its ports and addresses can be had: as root, or in a network of its
/// own.
fn with_a_network(test: &str, run: impl FnOnce()) {
    if nix::unistd::geteuid().is_root() {
        return run();
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .status();
    assert!(status.unwrap().success(), "see above");
}

/// The files at or below these paths that have one of these texts in them.
fn having(texts: &[&str], paths: &[PathBuf]) -> String {
    let texts = texts.iter().flat_map(|text| ["-e", text]);
    let found = Command::new("grep")
        .args(["-r", "-l", "-F"])
        .args(texts)
        .arg("--")
        .args(paths)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&found.stderr);
    assert!(errors.is_empty(), "{errors}");
    String::from_utf8_lossy(&found.stdout).into_owned()
}

/// A table of what the guest's program told; the lines of what failed.
fn failures(report: &str) -> Vec<&str> {
    println!("{report}");
    let lines = report.lines();
    lines.filter(|line| !line.starts_with("ok ")).collect()
}

#[test]
fn programs_work_through_interception_and_the_secret_stays_out() {
    with_a_network(
        "programs_work_through_interception_and_the_secret_stays_out",
        programs,
    );
}

fn programs() {
    let home = Home::new();
    let servers = Servers::start(&home);
    let cache = home.file("cache");
    let flashpan = |words: &[&str]| {
        let run = Flashpan::new(&home, words).env("XDG_CACHE_HOME", &cache);
        run.env("KEY", VALUE).patience(PATIENCE)
    };
    let rootfs = fixtures::programs().display().to_string();
    let authority = servers.authority.display().to_string();
    let run = flashpan(&[
        "run",
        "-d",
        "--rootfs",
        &rootfs,
        "--memory",
        "768M",
        "--disk-size",
        "512M",
        "--dns-servers",
        RESOLVER,
        "--allow-private-ips",
        "--upstream-ca",
        &authority,
        "--secret",
        "KEY@api.test,grpc.test",
        "--allow-host",
        "open.test,mirror.test",
        "--tcp",
        "ssh.test:22,raw.test:5432,db.test:5432",
        "--rule",
        "deny POST api.test/denied/**",
        "--rule",
        "deny POST grpc.test/test.Echo/Denied",
        "--rule",
        "deny POST mirror.test/**/git-receive-pack",
    ]);
    let run = run.finish();
    run.expect_status(0);
    let vm = run.text().trim().to_owned();

    let program = include_str!("programs/guest.py").as_bytes();
    let checks = flashpan(&["exec", "-i", &vm, "python3", "-"]).input(program.to_vec());
    let checks = checks.finish();
    let report = checks.expect_status(0).text();
    let failed = failures(&report);

    let placeholder = flashpan(&["exec", &vm, "printenv", "KEY"]).finish();
    let placeholder = placeholder.expect_status(0).text();
    // What a guest can look at of itself, and what it wrote.
    let script = "cat /proc/*/environ /proc/*/cmdline; env; dmesg; \
                  find /dev/flashpan /etc /run /tmp -type f -exec cat {} +; true";
    let look = [
        "exec",
        "--privileged",
        "--pid",
        "vm",
        &vm,
        "sh",
        "-c",
        script,
    ];
    let seen = home.file("seen");
    fs::write(
        &seen,
        flashpan(&look).finish().expect_status(0).stdout.clone(),
    )
    .unwrap();
    let told = flashpan(&["events", "--json", &vm]).finish();
    let told = told.expect_status(0).text();
    let events = home.file("events");
    fs::write(&events, &told).unwrap();
    let form = ["events", "--format", "{{.Type}} {{.What}}", &vm];
    let lines = flashpan(&form).finish().expect_status(0).text();
    flashpan(&["stop", &vm]).finish().expect_status(0);
    let mut places = home.environment().map(|(_, path)| path).to_vec();
    places.extend([seen, events]);
    if cache.exists() {
        places.push(cache.clone());
    }
    let with_value = having(&FORMS, &places);
    let with_placeholder = having(&[placeholder.trim()], &places);
    flashpan(&["rm", &vm]).finish().expect_status(0);

    assert_eq!(with_value, "", "files with the value");
    // They are looked into: a repository has its URL in its configuration.
    for name in ["/seen", "upper.ext4"] {
        assert!(with_placeholder.contains(name), "{with_placeholder}");
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(report.lines().count() > 30, "{report}");
    let events: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|event: &Value| event["type"] == "network")
        .collect();
    let is_told = |what: &str, of: &dyn Fn(&Value) -> bool| {
        assert!(events.iter().any(of), "no event of {what}: {told}");
    };
    is_told("the value put in", &|event| {
        event["network"]["url"] == "https://api.test/who"
            && event["network"]["method"] == "GET"
            && event["network"]["status_code"] == 200
            && event["secrets_substituted"] == serde_json::json!(["KEY"])
    });
    let line = "network https GET https://api.test/who 200 ";
    let is_shown = |line: &str| lines.lines().any(|shown| shown.starts_with(line));
    assert!(is_shown(line), "{line}: {lines}");
    is_told("a rule that refused", &|event| {
        event["code"] == "rule_denied"
            && event["rule"] == "deny POST mirror.test/**/git-receive-pack"
            && event["network"]["block_reason"] == "request blocked by policy"
    });
    is_told("a placeholder for another host", &|event| {
        event["code"] == "secret_leak"
            && event["network"]["host"] == "open.test"
            && event["secrets_leaked"] == serde_json::json!(["KEY"])
    });
    is_told("TCP by name", &|event| {
        event["scheme"] == "tcp"
            && event["destination"] == "10.209.113.5:5432"
            && event["network"]["response_bytes"] == 100_000
    });
    is_told("a name that may not be looked up", &|event| {
        event["scheme"] == "dns" && event["network"]["blocked"] == true
    });
    drop(servers);
}
