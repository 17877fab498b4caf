//! Images made with the distribution's tools, and a registry with them.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

/// Runs a program that has to succeed.
pub fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} (`cargo xtask setup` installs it): {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

/// Copies an image between places that skopeo knows.
pub fn skopeo(options: &[&str], from: &str, to: &str) {
    let mut arguments = vec!["--insecure-policy", "copy", "--quiet"];
    arguments.extend(["--src-tls-verify=false", "--dest-tls-verify=false"]);
    arguments.extend(options);
    arguments.extend([from, to]);
    tool("skopeo", &arguments);
}

/// The distribution's registry on a port of its own. It ends with the test.
pub struct Registry {
    process: Child,
    port: u16,
    requests: PathBuf,
    log: Option<JoinHandle<()>>,
}

impl Registry {
    /// A registry in plain HTTP that keeps everything in this directory.
    pub fn start(directory: &Path) -> Self {
        let at = |name: &str| directory.join(name).display().to_string();
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0'}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n",
            at("data")
        );
        fs::write(at("config.yml"), config).unwrap();
        let requests = directory.join("requests");
        // The kernel kills it when the thread of the test ends, however it ends.
        let words = ["--pdeathsig", "KILL", "docker-registry", "serve"];
        let mut process = Command::new("setpriv")
            .args(words)
            .arg(at("config.yml"))
            .stdout(fs::File::create(&requests).unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("setpriv: {error}"));
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut all = String::new();
        let port = loop {
            let begin = all.len();
            let read = log.read_line(&mut all).unwrap();
            assert!(
                read > 0,
                "docker-registry (`cargo xtask setup` installs it) does not run:\n{all}"
            );
            if let Some((_, rest)) = all[begin..].split_once("listening on 127.0.0.1:") {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break digits.parse().unwrap();
            }
        };
        // It must not stop because nobody reads what it says.
        let log = std::thread::spawn(move || {
            let _ = std::io::copy(&mut log, &mut std::io::sink());
        });
        Self {
            process,
            port,
            requests,
            log: Some(log),
        }
    }

    /// `HOST:PORT`.
    pub fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The full name of an image in it.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.name())
    }

    /// The digests of all blobs that were asked for, as often as they were.
    pub fn blobs_served(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.requests).unwrap();
        let of_line = |line: &str| {
            let (_, path) = line.split_once("\"GET ")?;
            let (_, rest) = path.split_once("/blobs/")?;
            rest.split([' ', '?']).next().map(str::to_owned)
        };
        log.lines().filter_map(of_line).collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(log) = self.log.take() {
            let _ = log.join();
        }
    }
}

/// Makes an image of these layers (tar files) with umoci, in a new layout.
pub fn make_layout(layout: &Path, tag: &str, layers: &[PathBuf], config: &[&str]) {
    let path = layout.display().to_string();
    let image = format!("{path}:{tag}");
    tool("umoci", &["init", "--layout", &path]);
    tool("umoci", &["new", "--image", &image]);
    for layer in layers {
        let layer = layer.display().to_string();
        tool("umoci", &["raw", "add-layer", "--image", &image, &layer]);
    }
    let mut words = vec!["config", "--image", &image];
    words.extend(config);
    tool("umoci", &words);
}

/// Archives what is in a directory, owned by root.
pub fn tar(directory: &Path, archive: &Path) {
    let (directory, archive) = (
        directory.display().to_string(),
        archive.display().to_string(),
    );
    tool(
        "tar",
        &[
            "--owner=0",
            "--group=0",
            "--sort=name",
            "-C",
            &directory,
            "-cf",
            &archive,
            ".",
        ],
    );
}

/// Bytes that do not compress, always the same for a seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
