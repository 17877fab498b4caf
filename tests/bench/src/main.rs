//! `flashpan-bench boot`: how much it takes from nothing to a guest's PID 1, and
//! to a program's end, beside QEMU's microvm machine in the same run.
//! `flashpan-bench image`: how long the layers of an image take to become a root.
//!
//! Prints one JSON object per line: `name`, `value`, `unit`, and where they
//! apply `peer`, `ratio` and `budget`. Ends with status 1 if a budget is
//! broken. Under `-icount` in the lab a nanosecond is an instruction.

mod budgets;
mod image;
mod peer;
mod vmm;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use budgets::Budgets;
use serde::Serialize;
use serde_json::Value;

const USAGE: &str = "usage: flashpan-bench boot --kernel FILE --init FILE --flashpan FILE \
                     --budgets FILE --unit instructions|ns [--runs N]\n   or: \
                     flashpan-bench image --layout DIRECTORY --tag TAG --work DIRECTORY \
                     --budgets FILE --runs N";

/// Memory of every guest, in MiB.
const MEMORY_MIB: u32 = 128;

/// What `boot` is given.
#[derive(Debug, Default)]
struct Options {
    kernel: PathBuf,
    init: PathBuf,
    flashpan: PathBuf,
    budgets: PathBuf,
    unit: String,
    runs: usize,
}

/// One line of output.
#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((command, rest)) if command == "boot" => parse(rest).and_then(|o| boot(&o)),
        Some((command, rest)) if command == "image" => {
            image::ImageOptions::parse(rest).and_then(|o| image::image(&o))
        }
        Some((command, [layout, tag, image])) if command == "convert" => {
            image::convert(layout.as_ref(), tag, image.as_ref()).map(|()| true)
        }
        Some((command, [layout, tag])) if command == "decompress" => {
            image::decompress(layout.as_ref(), tag).map(|()| true)
        }
        Some((command, [kernel, initramfs])) if command == "vmm" => {
            vmm::run(kernel.as_ref(), initramfs.as_ref()).map(|()| true)
        }
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("flashpan-bench: error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn parse(words: &[String]) -> Result<Options> {
    let mut options = Options {
        runs: 5,
        ..Options::default()
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words
            .next()
            .with_context(|| format!("{word} needs a value; {USAGE}"))?;
        match word.as_str() {
            "--kernel" => options.kernel = value.into(),
            "--init" => options.init = value.into(),
            "--flashpan" => options.flashpan = value.into(),
            "--budgets" => options.budgets = value.into(),
            "--unit" => options.unit.clone_from(value),
            "--runs" => options.runs = value.parse().context("--runs takes a number")?,
            _ => bail!("{word} is not known; {USAGE}"),
        }
    }
    if options.runs == 0 {
        bail!("--runs 0 measures nothing");
    }
    Ok(options)
}

/// Measures everything; false if a budget is broken.
fn boot(options: &Options) -> Result<bool> {
    let budgets = Budgets::read(&options.budgets)?;
    let directory = env::temp_dir().join(format!("flashpan-bench-{}", std::process::id()));
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let figures = measure(options, &directory, &budgets);
    // Whatever was measured, nothing is left behind.
    let cleaned = fs::remove_dir_all(&directory);
    let figures = figures?;
    cleaned.with_context(|| format!("remove {}", directory.display()))?;
    print(figures)
}

/// Prints figures; false if one is over its budget.
fn print(figures: Vec<Figure>) -> Result<bool> {
    let mut kept = true;
    for figure in figures {
        println!("{}", serde_json::to_string(&figure)?);
        let judged = figure.ratio.unwrap_or(figure.value);
        if figure.budget.is_some_and(|budget| judged > budget) {
            eprintln!("flashpan-bench: {} is over its budget", figure.name);
            kept = false;
        }
    }
    Ok(kept)
}

fn measure(
    options: &Options,
    directory: &std::path::Path,
    budgets: &Budgets,
) -> Result<Vec<Figure>> {
    // All programs read the same files from the same place.
    let kernel = directory.join("vmlinux");
    fs::copy(&options.kernel, &kernel)
        .with_context(|| format!("copy the kernel {}", options.kernel.display()))?;
    let init = fs::read(&options.init)
        .with_context(|| format!("read the bench's PID 1, {}", options.init.display()))?;
    let initramfs = directory.join("initramfs");
    fs::write(&initramfs, flashpan_rootfs::initramfs::build(&init)?)?;

    let ours = vmm::command(&kernel, &initramfs)?;
    let (bare, output) = least(options.runs, ours, |status| status == Some(0))?;
    let peer_name = peer::name()?;
    let (qemu, _) = least(options.runs, peer::command(&kernel, &initramfs), |status| {
        status == Some(peer::STATUS_OF_EXIT_PORT)
    })?;

    let timeline = directory.join("timeline.json");
    let mut run = Command::new(&options.flashpan);
    run.args(["run", "--memory", &format!("{MEMORY_MIB}M"), "--kernel"])
        .arg(&kernel);
    run.arg("--timeline").arg(&timeline).args(["--", "true"]);
    let (whole, _) = least(options.runs, run, |status| status == Some(0))?;
    let report: Value = serde_json::from_slice(&fs::read(&timeline)?)?;
    let ready = phase(&report, "init_ready")?;

    let stats: Value = serde_json::from_slice(&output).context("the VMM's own report")?;
    let figure = |name: &str, value: f64, unit: &str, against: Option<f64>| Figure {
        name: name.to_owned(),
        value,
        unit: unit.to_owned(),
        peer: against.map(|_| peer_name.clone()),
        ratio: against.map(|peer| value / peer),
        budget: budgets.of(name),
    };
    let time = options.unit.as_str();
    let mut figures = vec![
        figure("boot/peer-exec-to-init-ready", qemu, time, None),
        figure("boot/vmm-exec-to-init-ready", bare, time, Some(qemu)),
        figure("boot/run-start-to-init-ready", ready, time, Some(qemu)),
        figure("boot/run-exec-to-exit", whole, time, Some(qemu)),
        figure("exits/bare-init", number(&stats, "exits")?, "exits", None),
        figure(
            "exits/run-true",
            number(&report, "exits_total")?,
            "exits",
            None,
        ),
        figure(
            "memory/vmm-resident",
            number(&report, "vmm_resident_kib")?,
            "KiB",
            None,
        ),
    ];
    for (total, exits) in [
        ("exits/bare-init", stats.get("by_reason")),
        ("exits/run-true", report.get("exits")),
    ] {
        for (name, count) in by_reason(total, exits)? {
            figures.push(figure(&name, count, "exits", None));
        }
    }
    Ok(figures)
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

/// Runs a command some times; the least of its wall times in nanoseconds, and
/// the standard output of the last run.
fn least(
    runs: usize,
    mut command: Command,
    good: impl Fn(Option<i32>) -> bool,
) -> Result<(f64, Vec<u8>)> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut times = Vec::new();
    let mut last = Vec::new();
    // The first run fills caches and does not count.
    for run in 0..=runs {
        let begun = flashpan_vmm::vm::now_ns();
        let output = command
            .output()
            .with_context(|| format!("start {command:?}"))?;
        let took = flashpan_vmm::vm::now_ns().saturating_sub(begun);
        if !good(output.status.code()) {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!("{command:?} ended with {}: {}", output.status, why.trim());
        }
        if run > 0 {
            times.push(Duration::from_nanos(took));
        }
        last = output.stdout;
    }
    // Whatever else happens on the host only ever adds.
    let least = times.iter().min().copied().unwrap_or_default();
    Ok((least.as_secs_f64() * 1e9, last))
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
