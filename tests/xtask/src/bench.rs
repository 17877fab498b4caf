//! `cargo xtask bench boot|image|exec|forward|iperf|net|tls`: figures as JSON lines, against budgets.

mod image;
mod tls;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use flashpan_lab::packages;

use crate::setup::{self, Guest, Place};
use crate::{peer, step};

const HELP: &str = "\
How much a boot takes, beside QEMU's microvm machine and, where it can be
installed, microsandbox in the same run; and how long the layers of an image of
500 MiB take to become a root, beside umoci.

  cargo xtask bench boot [--runs N | --short]
  cargo xtask bench image [--runs N | --short]
  cargo xtask bench image --size SIZE     (5G, 512M)
  cargo xtask bench exec
  cargo xtask bench forward
  cargo xtask bench iperf
  cargo xtask bench tls
  cargo xtask bench net [--runs N | --short]

Prints JSON lines {name, value, unit, peer?, ratio?, budget?} on standard output
and fails if a budget of tests/bench/budgets.toml is broken. In the lab, time is
a count of instructions; on a host whose KVM runs guests it is nanoseconds. An
image needs no VM, and its time is always that of this machine; so is that of exec,
of which in the lab the ratio counts: a program in a VM that is there, beside ssh
into the same VM. iperf is what one connection of iperf3 carries from a guest to
its host and back, beside QEMU's user networking with the same kernel, root and
program; of that too the ratio counts, and of forward: what connections to a
forwarded port do, beside those of a VM without a network. net is what one connection of Linux's TCP in a network namespace
carries through our network card and its stack, beside passt and slirp4netns; it needs
no VM, and root. tls is of requests in TLS that is opened on the way, beside mitmproxy,
which is installed for it; it needs no VM either. --short is three runs of each instead of
five.
With --size an image of that many bytes is made up and converted once, for the
memory that it takes; on disk it needs three times its size meanwhile.
";

/// Runs of each where time is short.
pub(crate) const SHORT: &str = "3";

/// Seconds for all runs; counting instructions is slow.
const PATIENCE: &str = "1200";

/// Runs `cargo xtask bench` with these arguments.
pub(crate) fn bench(arguments: &[OsString]) -> Result<u8> {
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    if words == ["exec"] {
        setup::setup()?;
        exec(&Guest::prepare(&[])?)?;
        return Ok(0);
    }
    if words == ["forward"] {
        setup::setup()?;
        forward(&Guest::prepare(&[])?)?;
        return Ok(0);
    }
    if words == ["iperf"] {
        setup::setup()?;
        packages::ensure(packages::IPERF)?;
        iperf(&Guest::prepare(&[])?)?;
        return Ok(0);
    }
    if words == ["tls"] {
        setup::setup()?;
        return tls::bench();
    }
    if let ["image", "--size", size] = words.as_slice() {
        setup::setup()?;
        return image::large(size);
    }
    let runs = match words.as_slice() {
        ["boot" | "image" | "net"] => "5",
        ["boot" | "image" | "net", "--short"] => SHORT,
        ["boot" | "image" | "net", "--runs", runs] => runs,
        [] | ["--help" | "-h"] | ["boot" | "image" | "net", "--help" | "-h"] => {
            print!("{HELP}");
            return Ok(0);
        }
        _ => bail!("`bench {}` is not known; see bench --help", words.join(" ")),
    };
    if words.first() == Some(&"net") {
        packages::ensure(packages::NETWORKS)?;
        return net(runs);
    }
    setup::setup()?;
    if words.first() == Some(&"image") {
        return image::bench(runs);
    }
    boot(&Guest::prepare(&[])?, runs)?;
    Ok(0)
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

/// Prints the figures of connections, each the best of so many runs.
fn net(runs: &str) -> Result<u8> {
    let mut command = Command::new(build()?("flashpan-bench")?);
    command.args(["net", "--runs", runs, "--budgets"]);
    command.arg(step::root().join("tests/bench/budgets.toml"));
    step::run("the benchmark", &mut command)
        .context("a budget of tests/bench/budgets.toml is broken: see above")?;
    Ok(0)
}

/// Prints the figures of programs in a VM that is there.
fn exec(guest: &Guest) -> Result<()> {
    let program = build()?;
    let (_, rootfs) = setup::debian("ssh", "openssh-server")?;
    let budgets = step::root().join("tests/bench/budgets.toml");
    let words: [OsString; 8] = [
        program("flashpan-bench")?.into(),
        "exec".into(),
        "--flashpan".into(),
        guest.flashpan.clone().into(),
        "--rootfs".into(),
        rootfs.into(),
        "--budgets".into(),
        budgets.into(),
    ];
    step::run("the benchmark", &mut guest.command(1200, words)?)
        .context("a budget of tests/bench/budgets.toml is broken: see above")
}

/// Prints the figures of connections to a guest.
fn forward(guest: &Guest) -> Result<()> {
    let program = build()?;
    connections(guest, program("flashpan-bench")?, "forward", &guest.debian)
}

/// Prints the figures of connections of a guest.
fn iperf(guest: &Guest) -> Result<()> {
    let program = build()?;
    let (_, rootfs) = setup::debian("iperf", "iperf3,iproute2")?;
    connections(guest, program("flashpan-bench")?, "iperf", &rootfs)
}

fn connections(guest: &Guest, bench: PathBuf, which: &str, rootfs: &Path) -> Result<()> {
    let budgets = step::root().join("tests/bench/budgets.toml");
    let mut words: Vec<OsString> = vec![bench.into(), which.into()];
    for (name, value) in [
        ("--flashpan", guest.flashpan.as_path()),
        ("--kernel", &guest.kernel),
        ("--rootfs", rootfs),
        ("--budgets", &budgets),
    ] {
        words.extend([name.into(), value.into()]);
    }
    step::run("the benchmark", &mut guest.command(1200, words)?)
        .context("a budget of tests/bench/budgets.toml is broken: see above")
}

/// Prints the figures of boots, each the least of so many runs.
///
/// # Errors
/// A budget is broken, or something could not be measured.
pub(crate) fn boot(guest: &Guest, runs: &str) -> Result<()> {
    let program = build()?;
    let unit = match guest.place {
        Place::Lab => "instructions",
        Place::Here => "ns",
    };
    let mut words: Vec<OsString> = vec![program("flashpan-bench")?.into(), "boot".into()];
    let budgets = step::root().join("tests/bench/budgets.toml");
    let mut options: Vec<(&str, OsString)> = vec![
        ("--kernel", guest.kernel.clone().into()),
        ("--init", program("flashpan-bench-init")?.into()),
        ("--flashpan", guest.flashpan.clone().into()),
        ("--budgets", budgets.into()),
        ("--unit", unit.into()),
        ("--runs", runs.into()),
    ];
    if let Some(bundle) = peer::microsandbox() {
        options.push(("--microsandbox", bundle.into()));
    }
    for (name, value) in options {
        words.push(name.into());
        words.push(value);
    }
    let mut command = match guest.place {
        Place::Lab => {
            let lab = ["lab", "--icount", "--timeout", PATIENCE, "--"];
            step::ourselves(lab.map(OsString::from).into_iter().chain(words))?
        }
        Place::Here => {
            let mut command = std::process::Command::new(words.remove(0));
            command.args(words);
            command
        }
    };
    step::run("the benchmark", &mut command).context(
        "a budget of tests/bench/budgets.toml is broken, or a figure is missing: see above",
    )
}
