//! Where the value of a secret is: in no memory, disk or traffic of its guest, in no memory of
//! the VMM, in no file. Whoever looks for it looks for something else beside it that is there,
//! and has to find that.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flashpan_tests::internet::{self, NAME_SERVER};
use flashpan_tests::{Flashpan, Home, fixtures};
use serde_json::{Value, json};

/// How long anything here may take, even emulated.
const PATIENCE: Duration = Duration::from_secs(600);

const SEARCH: &str = include_str!("secret/search.py");
const CLIENT: &str = include_str!("secret/client.py");

/// MiB of memory of the guest.
const MEMORY: u64 = 160;

/// Half of the memory of a guest in bytes: who has looked at less has not looked.
const ENOUGH: u64 = MEMORY << 19;

/// What nobody has seen before.
fn random() -> String {
    let bytes = fs::read("/proc/sys/kernel/random/uuid").unwrap();
    String::from_utf8(bytes).unwrap().trim().replace('-', "")
}

/// What a text looks like in the encodings that somebody would think of, by their names.
fn forms(name: &str, text: &str) -> BTreeMap<String, Vec<u8>> {
    let bytes = text.as_bytes();
    // With so many bytes before it, without the digits that depend on what is around it.
    let base64 = |before: usize| {
        let digits = BASE64
            .encode([&vec![0; before], bytes].concat())
            .into_bytes();
        let whole = (before + bytes.len()) * 8 / 6;
        digits[(before * 8).div_ceil(6)..whole].to_vec()
    };
    let hexadecimal: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let escaped = |byte: &u8| match byte {
        b if b.is_ascii_alphanumeric() || b"-._~".contains(b) => char::from(*b).to_string(),
        b => format!("%{b:02X}"),
    };
    [
        ("as it is", bytes.to_vec()),
        ("reversed", bytes.iter().rev().copied().collect()),
        ("hexadecimal", hexadecimal.to_uppercase().into_bytes()),
        ("hexadecimal, small", hexadecimal.into_bytes()),
        (
            "percent-encoded",
            bytes.iter().map(escaped).collect::<String>().into_bytes(),
        ),
        ("base64", base64(0)),
        ("base64, after one", base64(1)),
        ("base64, after two", base64(2)),
    ]
    .map(|(form, bytes)| (format!("{name} {form}"), bytes))
    .into()
}

/// The line that the searching program reads.
fn asked(sequences: &BTreeMap<String, Vec<u8>>, places: &[String]) -> Vec<u8> {
    let mask = |bytes: &Vec<u8>| bytes.iter().map(|byte| byte ^ 0xa5).collect::<Vec<_>>();
    let masked: BTreeMap<_, _> = sequences
        .iter()
        .map(|(name, bytes)| (name, BASE64.encode(mask(bytes))))
        .collect();
    format!("{}\n", json!({"masked": masked, "places": places})).into_bytes()
}

/// What the searching program found in one place.
#[derive(Debug)]
struct Found {
    place: String,
    bytes: u64,
    names: Vec<String>,
}

impl Found {
    /// All that it says, which is shown as a table.
    fn all(said: &[u8]) -> Vec<Self> {
        let said: BTreeMap<String, Value> = serde_json::from_slice(said).unwrap();
        let found = |(place, what): (String, Value)| {
            let names = what["found"].as_object().unwrap().keys().cloned().collect();
            let bytes = what["bytes"].as_u64().unwrap();
            // Past what the harness keeps back.
            writeln!(
                std::io::stderr(),
                "{place:<44} {bytes:>12} bytes: {names:?}"
            )
            .unwrap();
            Self {
                place,
                bytes,
                names,
            }
        };
        said.into_iter().map(found).collect()
    }

    fn has(&self, of: &str) -> bool {
        self.names.iter().any(|name| name.starts_with(of))
    }
}

/// Looks in places of this host.
fn search(sequences: &BTreeMap<String, Vec<u8>>, places: &[String]) -> Vec<Found> {
    let mut python = Command::new("python3")
        .args(["-S", "-c", SEARCH])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(&asked(sequences, places)).unwrap();
    drop(stdin);
    let ended = python.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    Found::all(&ended.stdout)
}

#[test]
fn the_value_of_a_secret_is_in_the_memory_of_its_supervisor_and_nowhere_else() {
    internet::run(|mut internet| {
        // Something that is not the same in all encodings.
        let (value, decoy) = (format!("v/{}==", random()), format!("d/{}==", random()));
        internet.name("api.allowed.test", &[&["93.184.216.10"]]);
        internet.serve_web(&[&value]);
        let home = Home::new();
        let begun = Instant::now();
        let flashpan = |words: &[&str]| Flashpan::new(&home, words).patience(PATIENCE);
        let (debian, authority) = (fixtures::debian(), internet.authority().unwrap());
        let memory = format!("{MEMORY}M");
        let run = [
            &["run", "-d", "--name", "kept", "--memory", &memory][..],
            &[
                "--rootfs",
                text(&debian),
                "--disk-size",
                "64M",
                "--privileged",
            ],
            &[
                "--secret",
                "KEY@api.allowed.test",
                "--secret-plain-http",
                "KEY",
            ],
            &["--secret-in", "KEY=headers,basic,query,body"],
            &[
                "--upstream-ca",
                text(&authority),
                "--dns-servers",
                NAME_SERVER,
            ],
        ]
        .concat();
        let made = flashpan(&run).env("KEY", &value).finish();
        made.expect_status(0);

        let python = [
            "exec",
            "kept",
            "--privileged",
            "-i",
            "--",
            "python3",
            "-S",
            "-c",
        ];
        let client = [&python[..], &[CLIENT, &decoy]].concat();
        let mut client = flashpan(&client).hold_input().start();
        let seen = client.wait_for_line("all seen");
        // The host has had it in every place, and the guest what stands for it.
        for place in ["authorization", "target", "body"] {
            assert!(seen.contains(&format!("\"{place}\"")), "{seen}");
        }
        assert!(!seen.contains(&value), "{seen}");

        let both = [forms("value", &value), forms("decoy", &decoy)];
        let sequences = both.into_iter().flatten().collect();
        // Those that a kernel has; `cargo xtask test --fragment debug` takes one with all.
        let has = |path: &str| {
            let test = ["exec", "kept", "--", "test", "-e", path];
            flashpan(&test).finish().status == Some(0)
        };
        let mut places = vec!["processes".to_owned(), "devices".to_owned()];
        for (place, path) in [("physical", "/dev/mem"), ("kernel", "/proc/kcore")] {
            if has(path) {
                places.push(place.to_owned());
            }
        }
        let inside = flashpan(&[&python[..], &[SEARCH]].concat());
        let inside = inside.input(asked(&sequences, &places)).finish();
        inside.expect_status(0);
        for found in Found::all(&inside.stdout) {
            assert!(!found.has("value"), "in the guest: {found:?}");
            assert!(found.has("decoy as it is"), "in the guest: {found:?}");
            assert!(
                found.bytes
                    >= if found.place == "processes" {
                        1
                    } else {
                        ENOUGH / 8
                    }
            );
        }

        // What the guest has as memory is memory of the VMM.
        let vmm = home.process("flashpan-vmm");
        let status = fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let supervisor: i32 = parent.unwrap().trim().parse().unwrap();
        let process = |pid| format!("process {pid}");
        for found in search(&sequences, &[process(vmm), process(supervisor)]) {
            let is_vmm = found.place == process(vmm);
            assert_eq!(found.has("value as it is"), !is_vmm, "{found:?}");
            assert_eq!(found.has("value"), !is_vmm, "{found:?}");
            // Where it has to be, it is found.
            let is_searched = found.has("decoy as it is") && found.bytes >= ENOUGH;
            assert!(!is_vmm || is_searched, "{found:?}");
        }

        client.close_input();
        client.finish().expect_status(0);
        flashpan(&["stop", "kept"]).finish().expect_status(0);
        let cache = env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
        let cache =
            cache.unwrap_or_else(|| Path::new(&env::var_os("HOME").unwrap()).join(".cache"));
        let directories = home.environment().map(|(_, path)| path);
        let directories = directories.iter().chain([&cache]);
        // It was made up after all that is older.
        let since = begun.elapsed().as_secs() + 60;
        let places: Vec<_> = directories
            .map(|path| format!("files {since} {}", path.display()))
            .collect();
        let found = search(&sequences, &places);
        assert!(found.iter().all(|found| !found.has("value")), "{found:?}");
        // The disk of the VM, in which the guest has written.
        assert!(
            found.iter().any(|found| found.has("decoy as it is")),
            "{found:?}"
        );
        flashpan(&["rm", "kept"]).finish().expect_status(0);
        // Its server is a child of ours, and nothing that was left behind.
        drop(internet);
    });
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
