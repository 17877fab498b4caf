//! `flashpan bench boot`: where the time of many boots goes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;

use clap::{Args, Subcommand};
use flashpan::api::Config;
use flashpan::timeline::{Report, phase_name};
use flashpan::{Console, ExecOptions, ExitStatus, Launch, Phase};
use serde::Serialize;

use crate::failure::{Failure, print, print_json};
use crate::progress::Progress;
use crate::run::RunArgs;
use crate::runtime;
use crate::signals::Signals;
use crate::vm::VmArgs;

/// Version of the JSON form.
const VERSION: u32 = 1;

/// Most bytes of output of the command; nothing is done with them.
const MAX_OUTPUT: usize = 1 << 20;

/// Most lines of VM exits in the table.
const EXIT_LINES: usize = 12;

pub(crate) const BOOT_EXAMPLES: &str = "\
Examples:
  flashpan bench boot
  flashpan bench boot -n 100 --kernel ./vmlinux --json > boot.json
  flashpan bench boot --rootfs ./debian -- python3 -c pass

Each boot is a VM of its own, in its own process. Times are since the VM was
asked for; the command runs once in each and has to succeed.";

/// Measures
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flashpan bench boot -n 20")]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    Boot(Box<BootArgs>),
}

/// Boots VMs one after the other and shows how long each phase takes
#[derive(Debug, Args)]
#[command(after_help = BOOT_EXAMPLES)]
struct BootArgs {
    /// Number of boots that count.
    #[arg(short, value_name = "N", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    n: u32,

    /// Number of boots before them that do not count.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(0..=1000))]
    warmup: u32,

    /// As JSON.
    #[arg(long)]
    json: bool,

    /// The command to run in each VM; `true` otherwise.
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    vm: VmArgs,
}

pub(crate) fn bench(args: &BenchArgs) -> Result<u8, Failure> {
    let BenchCommand::Boot(args) = &args.command;
    boot(args)
}

fn boot(args: &BootArgs) -> Result<u8, Failure> {
    let command = match args.command.as_slice() {
        [] => vec![OsString::from("true")],
        command => command.to_vec(),
    };
    let exec = ExecOptions::argv(command);
    exec.validate()?;
    let mut wanted = args.vm.wanted(Config::default(), None, false)?;
    wanted.options.console = Console::Panic;
    RunArgs::check_config(&wanted)?;
    let template = args.vm.resolve(wanted)?;
    let reports = runtime(async {
        let mut signals =
            Signals::watch().map_err(|e| Failure::new(format!("cannot watch signals: {e}")))?;
        tokio::select! {
            reports = all(args, &template, &exec) => reports,
            signal = signals.ending() => Err(Failure::signalled(signal)),
        }
    })?;
    let summary = Summary::of(&reports);
    if args.json {
        print_json(&summary)?;
    } else {
        print(&summary.table())?;
    }
    Ok(0)
}

async fn all(
    args: &BootArgs,
    template: &Launch,
    exec: &ExecOptions,
) -> Result<Vec<Report>, Failure> {
    let boots = args.warmup.saturating_add(args.n);
    let mut progress = Progress::steps("boots", boots.into());
    let mut reports = Vec::new();
    for boot in 0..boots {
        let report = one(template, exec.clone()).await?;
        if boot >= args.warmup {
            reports.push(report);
        }
        progress.set(u64::from(boot) + 1);
    }
    Ok(reports)
}

/// Boots one VM, runs the command, ends the VM.
async fn one(template: &Launch, exec: ExecOptions) -> Result<Report, Failure> {
    let sandbox = template.builder()?.boot().await?;
    let status = sandbox.exec(exec).await?.collect(MAX_OUTPUT).await?.status;
    sandbox.kill().await;
    match status {
        ExitStatus::Code(0) => Ok(sandbox.timeline()),
        ExitStatus::Code(code) => Err(Failure::new(format!(
            "the command failed in the guest with exit code {code}"
        ))),
        ExitStatus::Signal(signal) => Err(Failure::new(format!(
            "signal {signal} ended the command in the guest"
        ))),
    }
}

/// What many values of one thing have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Spread {
    median: u64,
    p90: u64,
    min: u64,
    max: u64,
}

impl Spread {
    /// `None` of no values at all.
    fn of(mut values: Vec<u64>) -> Option<Self> {
        values.sort_unstable();
        // Nearest rank: the smallest value that at least this share reaches.
        let rank = |percent: usize| {
            values
                .get((values.len() * percent).div_ceil(100).saturating_sub(1))
                .copied()
        };
        Some(Self {
            median: rank(50)?,
            p90: rank(90)?,
            min: *values.first()?,
            max: *values.last()?,
        })
    }
}

#[derive(Debug, Serialize)]
struct PhaseSummary {
    phase: Phase,
    /// Nanoseconds since the VM was asked for.
    since_start_ns: Spread,
    /// Nanoseconds since the phase before.
    step_ns: Spread,
}

#[derive(Debug, Serialize)]
struct ExitSummary {
    reason: String,
    detail: String,
    count: Spread,
}

/// The result as it is written to JSON.
#[derive(Debug, Serialize)]
struct Summary {
    version: u32,
    boots: usize,
    unit: &'static str,
    phases: Vec<PhaseSummary>,
    exits_total: Option<Spread>,
    exits: Vec<ExitSummary>,
    vmm_resident_kib: Option<Spread>,
}

impl Summary {
    fn of(reports: &[Report]) -> Self {
        let mut phases: BTreeMap<Phase, (Vec<u64>, Vec<u64>)> = BTreeMap::new();
        let mut exits: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
        for report in reports {
            for stamp in &report.stamps {
                let (since_start, step) = phases.entry(stamp.phase).or_default();
                since_start.push(stamp.since_start_ns);
                step.push(stamp.step_ns);
            }
            for exit in &report.exits {
                exits
                    .entry((&exit.reason, &exit.detail))
                    .or_default()
                    .push(exit.count);
            }
        }
        let phases = phases
            .into_iter()
            .filter_map(|(phase, (since_start, step))| {
                let since_start_ns = Spread::of(since_start)?;
                Some(PhaseSummary {
                    phase,
                    since_start_ns,
                    step_ns: Spread::of(step)?,
                })
            });
        let exits = exits
            .into_iter()
            .filter_map(|((reason, detail), mut counts)| {
                // A boot without this exit had none of it.
                counts.resize(reports.len(), 0);
                let count = Spread::of(counts)?;
                Some(ExitSummary {
                    reason: reason.to_owned(),
                    detail: detail.to_owned(),
                    count,
                })
            });
        let mut exits: Vec<_> = exits.collect();
        exits.sort_by_key(|exit| std::cmp::Reverse(exit.count.median));
        Self {
            version: VERSION,
            boots: reports.len(),
            unit: "ns",
            phases: phases.collect(),
            exits_total: Spread::of(reports.iter().map(|r| r.exits_total).collect()),
            exits,
            vmm_resident_kib: Spread::of(
                reports.iter().filter_map(|r| r.vmm_resident_kib).collect(),
            ),
        }
    }

    fn table(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, cells: [String; 4]| {
            let [a, b, c, d] = cells;
            // Writing to a String cannot fail.
            let line = format!("{name:<32} {a:>12} {b:>12} {c:>12} {d:>12}");
            let _ = writeln!(out, "{}", line.trim_end());
        };
        let times = |s: &Spread| [s.median, s.p90, s.min, s.max].map(millis);
        let counts = |s: &Spread| [s.median, s.p90, s.min, s.max].map(|n| n.to_string());
        let head = ["median", "p90", "min", "max"].map(str::to_owned);
        line(
            &format!("{} boots, ms since start", self.boots),
            head.clone(),
        );
        for phase in &self.phases {
            line(phase_name(phase.phase), times(&phase.since_start_ns));
        }
        line("", [const { String::new() }; 4]);
        line("ms since the phase before", head.clone());
        for phase in &self.phases {
            line(phase_name(phase.phase), times(&phase.step_ns));
        }
        line("", [const { String::new() }; 4]);
        line("VM exits that reach the VMM", head);
        for exit in self.exits.iter().take(EXIT_LINES) {
            line(
                format!("{} {}", exit.reason, exit.detail).trim(),
                counts(&exit.count),
            );
        }
        if let Some(total) = &self.exits_total {
            line("all", counts(total));
        }
        if let Some(resident) = &self.vmm_resident_kib {
            line("VMM resident, KiB", counts(resident));
        }
        out
    }
}

fn millis(ns: u64) -> String {
    format!("{}.{:03}", ns / 1_000_000, ns / 1000 % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let spread = Spread::of((1..=10).rev().collect()).unwrap();
        assert_eq!(
            spread,
            Spread {
                median: 5,
                p90: 9,
                min: 1,
                max: 10
            }
        );
        let one = Spread::of(vec![7]).unwrap();
        assert_eq!(
            one,
            Spread {
                median: 7,
                p90: 7,
                min: 7,
                max: 7
            }
        );
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn milliseconds_have_three_decimals() {
        assert_eq!(millis(1_234_567), "1.234");
        assert_eq!(millis(0), "0.000");
    }
}
