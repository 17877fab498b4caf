//! `cargo xtask bench image`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use flashpan_lab::packages;

use super::build;
use crate::step;

/// The release and the packages of the image: about 500 MiB unpacked.
const DEBIAN: &str = "bookworm";
const INCLUDE: &str = "python3,python3-numpy,vim,gcc,git";
/// Changes when the image is made in another way.
const VERSION: u32 = 1;
/// Its name in the layout.
const TAG: &str = "bench";

/// Archives of the layers, lowest first, by what tar takes into them.
const LAYERS: [(&str, &[&str]); 3] = [
    (
        "base",
        &[
            "--exclude=./usr/lib",
            "--exclude=./usr/share",
            "--exclude=./var",
            ".",
        ],
    ),
    ("lib", &["./usr/lib"]),
    ("share", &["./usr/share", "./var"]),
];

/// A layer on top that takes away what nobody needs, as Dockerfiles do.
const WHITEOUTS: [&str; 3] = [
    "usr/share/.wh.doc",
    "usr/share/man/.wh..wh..opq",
    "var/cache/.wh.apt",
];

/// Measures and judges.
pub(super) fn bench(runs: &str) -> Result<u8> {
    let layout = layout()?;
    let program = build()?("flashpan-bench")?;
    // Both write to the file system that the layout is on.
    let work = layout.with_extension("work");
    let words: [OsString; 11] = [
        "image".into(),
        "--layout".into(),
        layout.into(),
        "--tag".into(),
        TAG.into(),
        "--work".into(),
        work.into(),
        "--budgets".into(),
        step::root().join("tests/bench/budgets.toml").into(),
        "--runs".into(),
        runs.into(),
    ];
    step::run("the benchmark", Command::new(program).args(words))?;
    Ok(0)
}

/// Measures the memory that an image of this size takes.
pub(super) fn large(size: &str) -> Result<u8> {
    let program = build()?("flashpan-bench")?;
    let cache = flashpan_lab::cache_directory()?.join("lab");
    fs::create_dir_all(&cache)?;
    let words: [OsString; 7] = [
        "large".into(),
        "--size".into(),
        size.into(),
        "--work".into(),
        cache.join("bench-large.work").into(),
        "--budgets".into(),
        step::root().join("tests/bench/budgets.toml").into(),
    ];
    step::run("the benchmark", Command::new(program).args(words))?;
    Ok(0)
}

/// The image as an OCI layout in the user's cache.
fn layout() -> Result<PathBuf> {
    let cache = flashpan_lab::cache_directory()?.join("lab");
    let layout = cache.join(format!("bench-image-{VERSION}"));
    if layout.is_dir() {
        return Ok(layout);
    }
    let work = cache.join("bench-image.new");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    let root = work.join("root");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--quiet", "--variant=minbase"]);
    mmdebstrap
        .arg(format!("--include={INCLUDE}"))
        .arg(DEBIAN)
        .arg(&root);
    mmdebstrap.args(packages::mirror(DEBIAN));
    step::run("a Debian root file system with mmdebstrap", &mut mmdebstrap)?;

    let made = work.join("layout");
    umoci(&["init", "--layout"], &made, "", &[])?;
    umoci(&["new", "--image"], &made, TAG, &[])?;
    for (name, arguments) in LAYERS {
        let archive = work.join(name);
        let mut tar = Command::new("tar");
        tar.args([
            "--format=pax",
            "--numeric-owner",
            "--xattrs",
            "--sort=name",
            "-C",
        ]);
        tar.arg(&root).arg("-cf").arg(&archive).args(arguments);
        step::run("a layer", &mut tar)?;
        umoci(&["raw", "add-layer", "--image"], &made, TAG, &[&archive])?;
    }
    let top = work.join("top");
    for path in WHITEOUTS {
        let path = top.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&top))?;
        fs::write(path, "")?;
    }
    let archive = work.join("whiteouts");
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(&top)
        .arg("-cf")
        .arg(&archive)
        .args(["usr", "var"]);
    step::run("a layer of whiteouts", &mut tar)?;
    umoci(&["raw", "add-layer", "--image"], &made, TAG, &[&archive])?;
    // In one step: where the layout is, all is well.
    fs::rename(&made, &layout)?;
    fs::remove_dir_all(&work)?;
    Ok(layout)
}

fn umoci(words: &[&str], layout: &Path, tag: &str, rest: &[&Path]) -> Result<()> {
    let mut image = OsString::from(layout);
    if !tag.is_empty() {
        image.push(":");
        image.push(tag);
    }
    step::run(
        "umoci",
        Command::new("umoci").args(words).arg(image).args(rest),
    )
}
