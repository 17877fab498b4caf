//! Policies that a person writes, learns or changes, of real guests in an internet that writes
//! down all that it sees.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use flashpan_tests::internet::{self, Internet, NAME_SERVER};
use flashpan_tests::{Flashpan, Home, fixtures};
use nix::sys::signal::Signal;

/// How long anything here may take, even emulated.
const PATIENCE: Duration = Duration::from_secs(180);

/// Asks for each of its arguments, `METHOD URL` or `tcp ADDRESS PORT`, and prints what comes
/// of it in a line.
const ASK: &str = r#"
import json, socket, sys, urllib.error, urllib.request

def ask(method, url, port=None):
    try:
        if port:
            with socket.create_connection((url, int(port)), 60) as stream:
                return stream.makefile().readline().strip()
        request = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        told = json.load(error)
        return f"{error.code} {told['code']} {told.get('rule')}"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return type(reason).__name__

for words in sys.argv[1:]:
    print(ask(*words.split()), flush=True)
"#;

/// Sends a secret again and again on one connection, as a header.
const SEND: &str = r#"
import http.client, os

connection = http.client.HTTPConnection("web.test")
headers = {"Authorization": "Bearer " + os.environ["TOKEN"]}
while True:
    connection.request("GET", "/", headers=headers)
    connection.getresponse().read()
"#;

/// Servers of HTTP and TCP at each address, and names for some of them.
fn prepare(internet: &Internet) {
    internet.name("web.test", &[&["93.184.216.60"]]);
    internet.name("raw.test", &[&["93.184.216.61"]]);
    internet.name("other.test", &[&["93.184.216.62"]]);
    internet.serve_http(80);
    internet.serve_tcp(7000);
}

/// `flashpan COMMAND… -- python3 -c PROGRAM WORDS…` with Debian's root.
fn python(home: &Home, command: &[&str], program: &str, words: &[&str]) -> Flashpan {
    let debian = fixtures::debian();
    let options = ["--rootfs", debian.to_str().unwrap()];
    let resolver = ["--dns-servers", NAME_SERVER];
    let run = ["--", "python3", "-S", "-c", program];
    let all = [command, &options, &resolver, &run, words].concat();
    Flashpan::new(home, all).patience(PATIENCE)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_was_learned_allows_what_was_seen_and_no_more() {
    internet::run(|internet| {
        prepare(&internet);
        let home = Home::new();
        let learned = home.file("learned.toml");
        let seen = [
            "GET http://web.test/items/17",
            "HEAD http://web.test/",
            "tcp raw.test 7000",
        ];
        let item = "93.184.216.60 for web.test\n";
        let hello = "hello 93.184.216.61:7000\n";
        let learn = ["policy", "learn", "--format", "toml", "-o", text(&learned)];
        let learn = python(&home, &learn, ASK, &seen).finish();
        learn
            .expect_status(0)
            .expect_stdout(&format!("{item}\n{hello}"));
        let policy = fs::read_to_string(&learned).unwrap();

        let mark = internet.mark();
        let more = [
            // Another one of the same kind, which nobody has asked for yet.
            "GET http://web.test/items/18",
            "POST http://web.test/items/17",
            "GET http://web.test/admin",
            "tcp 93.184.216.62 7000",
            "GET http://other.test/",
        ];
        let all = [&seen[..], &more[..]].concat();
        let run = python(&home, &["run", "-f", text(&learned)], ASK, &all).finish();
        run.expect_status(0);
        let expected = format!(
            "{item}\n{hello}{item}403 host_not_allowed None\n403 host_not_allowed None\n\
             ConnectionRefusedError\ngaierror\n"
        );
        assert_eq!(run.text(), expected, "{policy}\n{run}");
        let contacts = internet.contacts(mark);
        let is_other =
            |contact: &&String| contact.contains("93.184.216.62") || contact.contains("other.test");
        assert_eq!(contacts.iter().find(is_other), None, "{contacts:?}");
        fs::remove_file(learned).unwrap();
    });
}

#[test]
fn a_script_denies_what_all_else_allows() {
    internet::run(|internet| {
        prepare(&internet);
        let home = Home::new();
        let script = home.file("policy.rhai");
        let rules = r#"
            fn request(req) {
                if req.method != "GET" && !req.path_is("/inbox/**") {
                    deny("only to be read");
                }
            }
            fn connection(conn) {
                !(conn.port == 7000 && conn.address_is("93.184.216.62"))
            }
        "#;
        fs::write(&script, rules).unwrap();
        let command = ["run", "--network", "open", "--policy-script", text(&script)];
        let words = [
            "GET http://web.test/",
            "POST http://web.test/inbox/1",
            "POST http://web.test/",
            "tcp raw.test 7000",
            "tcp 93.184.216.62 7000",
        ];
        let run = python(&home, &command, ASK, &words).finish();
        let web = "93.184.216.60 for web.test\n";
        let denied = "403 script_denied policy_script:4: only to be read\n";
        let hello = "hello 93.184.216.61:7000\n";
        run.expect_status(0).expect_stdout(&format!(
            "{web}{web}{denied}{hello}ConnectionRefusedError\n"
        ));
        let contacts = internet.contacts(0);
        assert!(!contacts.contains("tcp 93.184.216.62:7000"), "{contacts:?}");

        fs::write(&script, "fn request(req) { req.method = }").unwrap();
        let run = python(&home, &command, ASK, &words).finish();
        run.expect_complaint(&["--policy-script", "line 1"]);
        assert_eq!(run.status, Some(125), "{run}");
        fs::remove_file(script).unwrap();
    });
}

#[test]
fn a_secret_whose_file_is_replaced_has_another_value_while_the_guest_runs() {
    internet::run(|internet| {
        prepare(&internet);
        let home = Home::new();
        let file = home.file("token");
        fs::write(&file, "first-of-the-values\n").unwrap();
        let source = format!("TOKEN={}", text(&file));
        let command = [
            "run",
            "--secret",
            "TOKEN@web.test",
            "--secret-file",
            &source,
            "--secret-plain-http",
            "TOKEN",
        ];
        let run = python(&home, &command, SEND, &[]).start();
        internet.wait_for(b"Authorization: Bearer first-of-the-values", PATIENCE);
        let next = home.file("token.next");
        fs::write(&next, "second-of-the-values\n").unwrap();
        fs::rename(next, &file).unwrap();
        internet.wait_for(b"Authorization: Bearer second-of-the-values", PATIENCE);
        let mark = internet.mark();
        run.signal(Signal::SIGTERM);
        let run = run.finish();
        assert_eq!(run.status, Some(143), "{run}");
        assert!(!internet.has_seen(mark, b"first-of-the-values"));
        fs::remove_file(file).unwrap();
    });
}

#[test]
fn a_host_that_asks_for_a_certificate_gets_it_and_the_guest_has_none() {
    internet::run(|mut internet| {
        internet.name("client.allowed.test", &[&["93.184.216.73"]]);
        internet.serve_web(&["nothing"]);
        let home = Home::new();
        let authority = internet.authority().unwrap();
        let file = |name: &str| text(&authority.with_file_name(name)).to_owned();
        let (certificate, key) = (file("client.pem"), file("client.key"));
        let command = [
            "run",
            "--allow-host",
            "client.allowed.test",
            "--network-intercept",
            "--upstream-ca",
            text(&authority),
        ];
        let words = ["GET https://client.allowed.test/"];
        let without = python(&home, &command, ASK, &words).finish();
        without.expect_status(0);
        assert!(without.text().starts_with("502 upstream_"), "{without}");
        // Nothing but the certificate asks for a look into it.
        let (before, after) = (&command[..3], &command[4..]);
        let with = |what: &str| {
            let option = ["--client-cert", what];
            let command = [before, &option, after].concat();
            python(&home, &command, ASK, &words).finish()
        };
        let got = with(&format!("client.allowed.test={certificate},{key}"));
        got.expect_status(0);
        assert!(
            got.text().contains(r#""host": "client.allowed.test""#),
            "{got}"
        );
        for wrong in [certificate.as_str(), "/nowhere.pem"] {
            let refused = with(&format!("client.allowed.test={wrong}"));
            refused.expect_complaint(&["--client-cert", wrong]);
            assert_eq!(refused.status, Some(125), "{refused}");
        }
        drop(internet);
    });
}
