//! `cargo xtask fuzz`: the targets of `tests/fuzz`, built and run without more
//! than the toolchain that builds everything else.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{setup, step};

const HELP: &str = "\
Fuzzes what reads what strangers made.

  cargo xtask fuzz [TARGET] [--seconds N]

  TARGET     one of these; all of them, one after the other, if none is named
               tar, convert, decompress, archive: images and their layers
               frames: messages of all protocols
               tree: a tree that is copied out of a guest, or into one
               forward: a forwarded connection, as the guest's agent takes it
               attached: a VM's supervisor and guest, as a client hears them
               texts, config: words of a command line, and configurations
               records: what is on disk of a VM
               network: frames of a guest's network card
               dns: a guest's questions for names
               hello: what a guest says first in TLS
               edit: heads and bodies of HTTP that rules and secrets change
  --seconds  how long to run each; 600 if not given

What is found is in target/fuzz/artifacts; put it into tests/fuzz/corpus with
the fix, where `cargo test` runs it ever after. New inputs are kept in
target/fuzz/corpus.
";

const TARGETS: [&str; 15] = [
    "tar",
    "convert",
    "decompress",
    "archive",
    "frames",
    "tree",
    "forward",
    "attached",
    "texts",
    "config",
    "records",
    "network",
    "dns",
    "hello",
    "edit",
];
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What cargo-fuzz passes as well, but for the sanitizers, which need another
/// toolchain: our own code is safe Rust, which panics where C would corrupt.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1";

/// Runs `cargo xtask fuzz` with these arguments.
pub(crate) fn fuzz(arguments: &[OsString]) -> Result<u8> {
    let mut seconds = "600".to_owned();
    let mut chosen = Vec::new();
    let mut words = arguments.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        match word.as_ref() {
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(0);
            }
            "--seconds" => {
                let value = words.next().context("--seconds takes a number")?;
                value.parse::<u32>().context("--seconds takes a number")?;
                seconds = value.into_owned();
            }
            target if TARGETS.contains(&target) => chosen.push(target.to_owned()),
            other => bail!("`fuzz {other}` is not known; see fuzz --help"),
        }
    }
    if chosen.is_empty() {
        chosen = TARGETS.map(str::to_owned).into();
    }
    setup::setup()?;
    let place = step::root().join("target/fuzz");
    let source = step::root().join("tests/fuzz");
    let mut build = step::cargo();
    build
        .args(["build", "--locked", "--release", "--target", TRIPLE])
        .arg("--manifest-path")
        .arg(source.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&place)
        .env("RUSTFLAGS", FLAGS);
    step::run("the fuzz targets", &mut build)?;
    for target in chosen {
        let program: PathBuf = place.join(TRIPLE).join("release").join(&target);
        let corpus = place.join("corpus").join(&target);
        let artifacts = place.join("artifacts").join(&target);
        std::fs::create_dir_all(&corpus)?;
        std::fs::create_dir_all(&artifacts)?;
        let mut run = Command::new(program);
        run.arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args([
                "-max_len=32768",
                "-timeout=20",
                "-rss_limit_mb=1024",
                "-print_final_stats=1",
            ])
            .arg(&corpus)
            .arg(source.join("corpus").join(&target));
        step::run(&format!("fuzzing {target} for {seconds} s"), &mut run)?;
    }
    Ok(0)
}
