//! What is measured, and how.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::budgets::Budgets;
use crate::deadline::{DEADLINE, run_for};
use crate::figure::{Figure, Figures};
use crate::microsandbox::Microsandbox;
use crate::tree::Tree;
use crate::{MEMORY_MIB, Options, qemu, vmm};

/// The name of the tree's image in our store.
const IMAGE: &str = "tree";

/// What the program in the tree prints.
const GREETING: &str = "hello";

/// The programs and files of a VM, where all of them are read from: copied, so
/// that one file system serves every program that is compared.
struct Inputs {
    kernel: PathBuf,
    initramfs: PathBuf,
    flashpan: PathBuf,
}

/// Measures everything in `directory`, which is empty.
pub(crate) fn all(options: &Options, directory: &Path, budgets: &Budgets) -> Result<Vec<Figure>> {
    let inputs = Inputs::copy(options, directory)?;
    let mut figures = Figures::new(budgets);
    boots(options, &inputs, directory, &mut figures)?;
    same_tree(options, &inputs, directory, &mut figures)?;
    let init = inputs.flashpan.with_file_name("flashpan-guest-init");
    let size = fs::metadata(&init).with_context(|| format!("look at {}", init.display()))?;
    // Exact: no program is that large.
    #[allow(clippy::cast_precision_loss)]
    figures.add("size/guest-init", size.len() as f64, "bytes");
    Ok(figures.list)
}

impl Inputs {
    fn copy(options: &Options, directory: &Path) -> Result<Self> {
        let copy = |from: &Path, name: &str| {
            let to = directory.join(name);
            let copied = fs::copy(from, &to);
            copied.with_context(|| format!("copy {}", from.display()))?;
            Ok::<_, anyhow::Error>(to)
        };
        for helper in ["flashpan-vmm", "flashpan-guest-init"] {
            copy(&options.flashpan.with_file_name(helper), helper)?;
        }
        let init = fs::read(&options.init)
            .with_context(|| format!("read the bench's PID 1, {}", options.init.display()))?;
        let initramfs = directory.join("initramfs");
        fs::write(&initramfs, flashpan_rootfs::initramfs::build(&init)?)?;
        Ok(Self {
            kernel: copy(&options.kernel, "vmlinux")?,
            initramfs,
            flashpan: copy(&options.flashpan, "flashpan")?,
        })
    }

    /// `flashpan run` of this command with these options.
    fn run<O: AsRef<OsStr>>(&self, options: &[O], words: &[&str]) -> Command {
        let mut run = Command::new(&self.flashpan);
        run.args(["run", "--memory", &format!("{MEMORY_MIB}M"), "--kernel"])
            .arg(&self.kernel);
        run.args(options).arg("--").args(words);
        run
    }
}

/// From nothing to PID 1, and a whole run, beside QEMU's microvm.
fn boots(options: &Options, inputs: &Inputs, directory: &Path, to: &mut Figures<'_>) -> Result<()> {
    let Inputs {
        kernel, initramfs, ..
    } = inputs;
    let (bare, output) = least(
        "the VMM alone",
        options.runs,
        vmm::command(kernel, initramfs)?,
        ended_well,
    )?;
    let name = qemu::name()?;
    // Some of its boots wait for a timer, several in a row at worst.
    let runs = 2 * options.runs;
    let (peer, _) = least(&name, runs, qemu::command(kernel, initramfs), |output| {
        output.status.code() == Some(qemu::STATUS_OF_EXIT_PORT)
    })?;
    let peer = (name.as_str(), peer);

    let timeline = directory.join("timeline.json");
    let run = inputs.run(&["--timeline".as_ref(), timeline.as_os_str()], &["true"]);
    let (whole, _) = least("flashpan run", options.runs, run, ended_well)?;
    let report: Value = serde_json::from_slice(&fs::read(&timeline)?)?;
    let stats: Value = serde_json::from_slice(&output.stdout).context("the VMM's own report")?;

    let time = options.unit.as_str();
    to.add("boot/peer-exec-to-init-ready", peer.1, time);
    to.beside("boot/vmm-exec-to-init-ready", bare, time, peer);
    let ready = phase(&report, "init_ready")?;
    to.beside("boot/run-start-to-init-ready", ready, time, peer);
    to.beside("boot/run-exec-to-exit", whole, time, peer);
    let exits = "exits/bare-init";
    to.add(exits, number(&stats, "exits")?, "exits");
    for (name, count) in by_reason(exits, stats.get("by_reason"))? {
        to.add(&name, count, "exits");
    }
    let exits = "exits/run-true";
    to.add(exits, number(&report, "exits_total")?, "exits");
    for (name, count) in by_reason(exits, report.get("exits"))? {
        to.add(&name, count, "exits");
    }
    let resident = number(&report, "vmm_resident_kib")?;
    to.add("memory/vmm-resident", resident, "KiB");
    Ok(())
}

/// What is run in the tree.
const WORDS: [&str; 2] = ["echo", GREETING];

fn greeted(output: &Output) -> bool {
    output.status.success() && String::from_utf8_lossy(&output.stdout).trim() == GREETING
}

/// A program of one tree: as a root image, out of our store, and by microsandbox.
fn same_tree(
    options: &Options,
    inputs: &Inputs,
    directory: &Path,
    to: &mut Figures<'_>,
) -> Result<()> {
    let tree = Tree::make(directory)?;
    let run = inputs.run(&["--rootfs".as_ref(), tree.image.as_os_str()], &WORDS);
    let (ours, _) = least("flashpan run --rootfs", options.runs, run, greeted)?;
    let archive = tree.oci_archive(directory)?;
    stored(options, inputs, directory, &archive, ours, to)?;
    beside_microsandbox(options, directory, &archive, ours, to)
}

/// The same tree out of the store, beside `run --rootfs` which took `rootfs`.
fn stored(
    options: &Options,
    inputs: &Inputs,
    directory: &Path,
    archive: &Path,
    rootfs: f64,
    to: &mut Figures<'_>,
) -> Result<()> {
    let time = options.unit.as_str();
    // Its first run is over when the second counts.
    let cache = directory.join("cache");
    let mut import = Command::new(&inputs.flashpan);
    import
        .args(["image", "import", "--quiet", IMAGE])
        .arg(archive);
    let output = import.env("XDG_CACHE_HOME", &cache).output()?;
    if !output.status.success() {
        bail!("{import:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for (figure, upper, budgeted) in [
        ("boot/run-image-echo", &["--ephemeral"][..], true),
        ("boot/run-image-disk-echo", &[], false),
    ] {
        let mut run = inputs.run(&[&["--image", IMAGE], upper].concat(), &WORDS);
        run.env("XDG_CACHE_HOME", &cache);
        let what = format!("flashpan run --image {}", upper.concat());
        let (took, _) = least(what.trim(), options.runs, run, greeted)?;
        if budgeted {
            to.beside(figure, took, time, ("flashpan run --rootfs", rootfs));
        } else {
            to.add(figure, took, time);
        }
    }
    Ok(())
}

/// The same tree by microsandbox, if that is there, beside which `run --rootfs`
/// took `ours`.
fn beside_microsandbox(
    options: &Options,
    directory: &Path,
    archive: &Path,
    ours: f64,
    to: &mut Figures<'_>,
) -> Result<()> {
    let (name, time) = ("boot/run-rootfs-echo", options.unit.as_str());
    let Some(bundle) = &options.microsandbox else {
        eprintln!("flashpan-bench: no microsandbox, so {name} has nothing beside it");
        to.unjudged(name, ours, time);
        return Ok(());
    };
    // It is not ours to repair: without it the others are as good.
    let peer = Microsandbox::set_up(bundle, archive, directory).and_then(|peer| {
        let (least, _) = least(&peer.name, options.runs, peer.run(&WORDS), greeted)?;
        Ok((least, peer.name))
    });
    match peer {
        Ok((peer, peer_name)) => {
            to.add("boot/microsandbox-run-echo", peer, time);
            to.beside(name, ours, time, (&peer_name, peer));
        }
        Err(error) => {
            eprintln!("flashpan-bench: microsandbox is left out: {error:#}");
            to.unjudged(name, ours, time);
        }
    }
    Ok(())
}

fn ended_well(output: &Output) -> bool {
    output.status.success()
}

/// Runs a command some times; the least of its wall times in nanoseconds, and
/// the output of the last run. Each has to be good.
fn least(
    what: &str,
    runs: usize,
    mut command: Command,
    good: impl Fn(&Output) -> bool,
) -> Result<(f64, Output)> {
    command.stdin(Stdio::null());
    let mut run = || {
        let begun = flashpan_vmm::vm::now_ns();
        let output =
            run_for(&mut command, DEADLINE).with_context(|| format!("start {command:?}"))?;
        let took = flashpan_vmm::vm::now_ns().saturating_sub(begun);
        let output =
            output.with_context(|| format!("{command:?} did not end within {DEADLINE:?}"))?;
        if !good(&output) {
            let said = [output.stderr.as_slice(), output.stdout.as_slice()].concat();
            let said = String::from_utf8_lossy(&said);
            bail!("{command:?} ended with {}: {}", output.status, said.trim());
        }
        Ok((took, output))
    };
    eprintln!("flashpan-bench: {what}, {runs} times");
    // The first run fills caches and does not count.
    run()?;
    let (mut least, mut last) = run()?;
    for _ in 1..runs {
        let (took, output) = run()?;
        // Whatever else happens on the host only ever adds.
        least = least.min(took);
        last = output;
    }
    // Exact for a hundred days.
    #[allow(clippy::cast_precision_loss)]
    Ok((least as f64, last))
}

/// The parts of a total of VM exits, named after it, the reason, and the device
/// and register.
fn by_reason(total: &str, exits: Option<&Value>) -> Result<Vec<(String, f64)>> {
    let exits = exits
        .and_then(Value::as_array)
        .with_context(|| format!("the report has no list of exits for {total}"))?;
    exits
        .iter()
        .map(|exit| {
            let word = |key| exit.get(key).and_then(Value::as_str).unwrap_or_default();
            let name = [total, word("reason"), word("detail")].join("/");
            Ok((
                name.trim_end_matches('/').to_owned(),
                number(exit, "count")?,
            ))
        })
        .collect()
}

/// Nanoseconds from the start of the program to a phase.
fn phase(report: &Value, name: &str) -> Result<f64> {
    let stamps = report.get("stamps").and_then(Value::as_array);
    let stamp = stamps
        .into_iter()
        .flatten()
        .find(|s| s.get("phase").is_some_and(|p| p == name));
    number(
        stamp.with_context(|| format!("the timeline has no phase {name}"))?,
        "since_start_ns",
    )
}

fn number(value: &Value, name: &str) -> Result<f64> {
    let number = value.get(name).and_then(Value::as_f64);
    number.with_context(|| format!("the report has no number `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn exits_are_named_by_reason_and_register() {
        let exits = json!([
            {"reason": "mmio_write", "detail": "blk0 QueueSel", "count": 3},
            {"reason": "interrupted", "detail": "", "count": 1},
        ]);
        let parts = by_reason("exits/run-true", Some(&exits)).unwrap();
        assert_eq!(
            parts,
            [
                ("exits/run-true/mmio_write/blk0 QueueSel".to_owned(), 3.0),
                ("exits/run-true/interrupted".to_owned(), 1.0),
            ]
        );
    }

    #[test]
    fn a_report_without_exits_is_an_error() {
        let error = by_reason("exits/run-true", None).unwrap_err();
        assert!(error.to_string().contains("exits/run-true"), "{error}");
        assert!(by_reason("x", Some(&json!([{"reason": "hlt"}]))).is_err());
    }
}
