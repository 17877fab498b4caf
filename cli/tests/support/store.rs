//! A user's store of images, and an image to fill it with.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::registry::{Registry, make_layout, noise, skopeo, tar};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_flashpan");

/// An image of three layers, the second of which takes something away, as an
/// OCI layout; made once.
pub fn layout() -> &'static Path {
    static LAYOUT: OnceLock<PathBuf> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        // Kept for all tests of this program, so it cannot go with one of them.
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME"));
        let _ = fs::remove_dir_all(&dir);
        let file = |layer: &str, name: &str, bytes: &[u8]| {
            let path = dir.join(layer).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        file("1", "etc/hostname", b"one\n");
        file("1", "usr/noise", &noise(3 << 20, 1));
        file("1", "usr/gone", b"x");
        file("2", "usr/.wh.gone", b"");
        file("2", "usr/zeros", &vec![0; 4 << 20]);
        file("3", "usr/more", &noise(2 << 20, 3));
        let layers = ["1", "2", "3"].map(|layer| {
            let archive = dir.join(layer).with_extension("tar");
            tar(&dir.join(layer), &archive);
            archive
        });
        let layout = dir.join("layout");
        let config = ["--config.cmd", "true", "--config.env", "A=b"];
        make_layout(&layout, "app", &layers, &config);
        layout
    })
}

pub fn from_layout() -> String {
    format!("oci:{}:app", layout().display())
}

/// A user with a store and, perhaps, a registry.
pub struct World {
    pub dir: TempDir,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The registry with the image, as `app` (gzip) and `zstd`.
    pub fn registry(&self) -> Registry {
        let registry = Registry::start(self.dir.path());
        let to = |name: &str| format!("docker://{}", registry.image(name));
        skopeo(&[], &from_layout(), &to("app"));
        registry
    }

    pub fn command(&self, cache: &str, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.dir.path())
            .env("XDG_CACHE_HOME", self.path(cache))
            .env("FLASHPAN_INSECURE_REGISTRIES", "127.0.0.1")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, cache: &str, words: &[&str]) -> Output {
        self.command(cache, words).output().unwrap()
    }

    /// Standard output of a command that has to succeed.
    #[track_caller]
    pub fn ok(&self, cache: &str, words: &[&str]) -> String {
        let output = self.run(cache, words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command that has to fail says, in one line.
    #[track_caller]
    pub fn complaint(&self, cache: &str, words: &[&str]) -> String {
        complaint(&self.run(cache, words))
    }

    #[track_caller]
    pub fn inspect(&self, cache: &str, image: &str) -> serde_json::Value {
        let text = self.ok(cache, &["image", "inspect", image]);
        let images: serde_json::Value = serde_json::from_str(&text).unwrap();
        images[0].clone()
    }

    /// Runs a shell script in which `sized` is a file system of this size, mounted
    /// at a directory of that name; it sees the environment of a command.
    pub fn with_little_room(&self, sized: &str, size: &str, script: &str) -> Output {
        let at = self.path(sized);
        fs::create_dir_all(&at).unwrap();
        let at = at.display();
        let script = format!("mount -t tmpfs -o size={size} none {at} && {script}");
        let mut unshare = Command::new("unshare");
        unshare.env_clear();
        for (name, value) in self.command("c", &[]).get_envs() {
            unshare.env(name, value.unwrap());
        }
        unshare.args(["-r", "-m", "sh", "-c", &script]);
        unshare.current_dir(self.dir.path()).output().unwrap()
    }

    /// All files of a store but its list and its lock.
    pub fn files(&self, cache: &str) -> Vec<String> {
        let images = self.path(cache).join("flashpan/images");
        let mut found = Vec::new();
        for folder in ["blobs/sha256", "roots", "work"] {
            for entry in fs::read_dir(images.join(folder)).into_iter().flatten() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                found.push(format!("{folder}/{name}"));
            }
        }
        found.sort();
        found
    }
}

#[track_caller]
pub fn complaint(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{errors}");
    // Nothing else but progress.
    let is_progress = |line: &&str| {
        !line.starts_with("flashpan: error: ") && (line.contains(": layer ") || line.contains(" %"))
    };
    let lines: Vec<&str> = errors.lines().filter(|line| !is_progress(line)).collect();
    assert_eq!(lines.len(), 1, "{errors}");
    let last = lines[0];
    assert!(last.starts_with("flashpan: error: "), "{errors}");
    assert!(output.stdout.is_empty(), "{output:?}");
    last.to_owned()
}
