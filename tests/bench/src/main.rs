//! `flashpan-bench boot`: how much it takes from nothing to a guest's PID 1, and
//! to a program's end, beside QEMU's microvm machine and, where it is installed,
//! microsandbox in the same run.
//! `flashpan-bench image`: how long the layers of an image take to become a root.
//! `flashpan-bench exec`: how long a program takes in a VM that is there, beside ssh.
//! `flashpan-bench tls`: requests in TLS that is opened on the way, beside mitmproxy.
//! `flashpan-bench net`: what a connection carries, beside passt and slirp4netns.
//! `flashpan-bench iperf`: what a guest's connection carries, beside QEMU's slirp.
//! `flashpan-bench forward`: what forwarded connections do, beside those by the agent.
//! `flashpan-bench large`: how much memory that takes, for an image of any size.
//!
//! Prints one JSON object per line: `name`, `value`, `unit`, and where they
//! apply `peer`, `ratio` and `budget`. Ends with status 1 if a budget is
//! broken. Under `-icount` in the lab a nanosecond is an instruction.

mod budgets;
mod deadline;
mod exec;
mod figure;
mod forward;
mod image;
mod iperf;
mod large;
mod lines;
mod measure;
mod microsandbox;
mod net;
mod options;
mod qemu;
mod tls;
mod tree;
mod vmm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use budgets::Budgets;
use figure::Figure;

const USAGE: &str = "usage: flashpan-bench boot --kernel FILE --init FILE --flashpan FILE \
                     --budgets FILE --unit instructions|ns [--runs N] [--microsandbox DIR]\n   or: \
                     flashpan-bench image --layout DIRECTORY --tag TAG --work DIRECTORY \
                     --budgets FILE --runs N\n   or: flashpan-bench large --size SIZE --work \
                     DIRECTORY --budgets FILE\n   or: flashpan-bench exec --flashpan FILE --rootfs \
                     IMAGE --budgets FILE [--runs N]\n   or: flashpan-bench tls --budgets FILE \
                     [--mitmdump FILE]\n   or: flashpan-bench net --budgets FILE [--runs N] \
                     [--milliseconds N] [--peers none]\n   or: \
                     flashpan-bench iperf --flashpan FILE --kernel FILE --rootfs IMAGE --budgets \
                     FILE [--runs N]\n   or: flashpan-bench forward --flashpan FILE --kernel \
                     FILE --rootfs IMAGE --budgets FILE [--runs N]";

/// Names of the figures of `image` and `large`; all others are those of `boot`.
const IMAGE: &str = "image/";

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
    /// Where microsandbox's programs are: the optional peer.
    microsandbox: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((command, rest)) if command == "boot" => parse(rest).and_then(|o| boot(&o)),
        Some((command, rest)) if command == "image" => {
            image::ImageOptions::parse(rest).and_then(|o| image::image(&o))
        }
        Some((command, rest)) if command == "exec" => {
            exec::ExecOptions::parse(rest).and_then(|o| exec::exec(&o))
        }
        Some((command, rest)) if command == "iperf" => {
            iperf::IperfOptions::parse(rest).and_then(|o| iperf::iperf(&o))
        }
        Some((command, rest)) if command == "forward" => {
            forward::ForwardOptions::parse(rest).and_then(|o| forward::forward(&o))
        }
        Some((command, rest)) if command == "tls" => {
            tls::TlsOptions::parse(rest).and_then(|o| tls::tls(&o))
        }
        Some((command, [server, trusted, authority])) if command == "tls-opened" => {
            tls::serve(server, trusted, authority).map(|()| true)
        }
        Some((command, rest)) if command == "net" => {
            net::NetOptions::parse(rest).and_then(|o| net::net(&o))
        }
        Some((command, [])) if command == "net-silent" => net::server::silent().map(|()| true),
        Some((command, [address, port, count])) if command == "net-idle" => {
            net::server::idle(address, port, count).map(|()| true)
        }
        Some((command, rest)) if command == "large" => {
            large::LargeOptions::parse(rest).and_then(|o| large::large(&o))
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
    options::read(words, |word, value| {
        match word {
            "--kernel" => options.kernel = value.into(),
            "--init" => options.init = value.into(),
            "--flashpan" => options.flashpan = value.into(),
            "--budgets" => options.budgets = value.into(),
            "--unit" => value.clone_into(&mut options.unit),
            "--microsandbox" => options.microsandbox = Some(value.into()),
            "--runs" => options.runs = value.parse().context("--runs takes a number")?,
            _ => return Ok(false),
        }
        Ok(true)
    })
    .context(USAGE)?;
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
    let figures = measure::all(options, &directory, &budgets);
    // Whatever was measured, nothing is left behind.
    let cleaned = fs::remove_dir_all(&directory);
    let figures = figures?;
    cleaned.with_context(|| format!("remove {}", directory.display()))?;
    let names = budgets.names().filter(|name| {
        ![
            IMAGE,
            exec::EXEC,
            forward::FORWARD,
            iperf::IPERF,
            net::NET,
            tls::TLS,
        ]
        .iter()
        .any(|of| name.starts_with(of))
    });
    print(&figures, names)
}

/// Prints figures; false if one is over its budget. Each of `budgeted` has to be
/// among them.
fn print<'a>(figures: &[Figure], budgeted: impl Iterator<Item = &'a str>) -> Result<bool> {
    for name in budgeted {
        if !figures.iter().any(|figure| figure.name == name) {
            bail!("there is a budget for {name}, and no such figure");
        }
    }
    let mut kept = true;
    for figure in figures {
        println!("{}", serde_json::to_string(&figure)?);
        if let Some(excess) = figure.excess() {
            eprintln!("flashpan-bench: {excess}");
            kept = false;
        }
    }
    Ok(kept)
}
