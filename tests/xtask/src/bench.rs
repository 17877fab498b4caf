//! `cargo xtask bench boot|image`: figures as JSON lines, against budgets.

mod image;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Guest, Place};
use crate::step;

const HELP: &str = "\
How much a boot takes, beside QEMU's microvm machine in the same run; and how
long the layers of an image of 500 MiB take to become a root, beside umoci.

  cargo xtask bench boot [--runs N | --short]
  cargo xtask bench image [--runs N | --short]

Prints JSON lines {name, value, unit, peer?, ratio?, budget?} on standard output
and fails if a budget of tests/bench/budgets.toml is broken. In the lab, time is
a count of instructions; on a host whose KVM runs guests it is nanoseconds. The
image needs no VM and its time is always that of this machine. --short is three runs of each instead of five.
";

/// Seconds for all runs; counting instructions is slow.
const PATIENCE: &str = "1200";

/// Runs `cargo xtask bench` with these arguments.
pub(crate) fn bench(arguments: &[OsString]) -> Result<u8> {
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let runs = match words.as_slice() {
        ["boot" | "image"] => "5",
        ["boot" | "image", "--short"] => "3",
        ["boot" | "image", "--runs", runs] => runs,
        [] | ["--help" | "-h"] | ["boot" | "image", "--help" | "-h"] => {
            print!("{HELP}");
            return Ok(0);
        }
        _ => bail!("`bench {}` is not known; see bench --help", words.join(" ")),
    };
    setup::setup()?;
    match words.first() {
        Some(&"image") => image::bench(runs),
        _ => boot(runs),
    }
}

/// Builds the benchmark; its programs by their names.
fn build() -> Result<impl Fn(&str) -> Result<PathBuf>> {
    let built = step::build(
        "the benchmark, with all optimisations",
        &["build", "--release", "--package", "flashpan-bench"],
    )?;
    Ok(move |name: &str| {
        let found = built.iter().find(|(built, _)| built == name);
        let (_, path) = found.with_context(|| format!("cargo built no program `{name}`"))?;
        Ok(path.clone())
    })
}

fn boot(runs: &str) -> Result<u8> {
    let guest = Guest::prepare()?;
    let program = build()?;
    let (lab, unit): (&[&str], &str) = match guest.place {
        Place::Lab => (
            &["lab", "--icount", "--timeout", PATIENCE, "--"],
            "instructions",
        ),
        Place::Here => (&[], "ns"),
    };
    let mut words: Vec<OsString> = lab.iter().map(OsString::from).collect();
    words.push(program("flashpan-bench")?.into());
    words.push("boot".into());
    let options: [(&str, OsString); 6] = [
        ("--kernel", guest.kernel.clone().into()),
        ("--init", program("flashpan-bench-init")?.into()),
        ("--flashpan", guest.flashpan.clone().into()),
        (
            "--budgets",
            step::root().join("tests/bench/budgets.toml").into(),
        ),
        ("--unit", unit.into()),
        ("--runs", runs.into()),
    ];
    for (name, value) in options {
        words.push(name.into());
        words.push(value);
    }
    let mut command = match guest.place {
        Place::Lab => step::ourselves(words)?,
        Place::Here => {
            let (head, rest) = words.split_first().context("no command")?;
            let mut command = std::process::Command::new(head);
            command.args(rest);
            command
        }
    };
    step::run("the benchmark", &mut command)?;
    Ok(0)
}
