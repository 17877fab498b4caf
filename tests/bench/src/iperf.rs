//! `flashpan-bench iperf`: what one connection carries between a real guest and its host,
//! beside QEMU's user networking with the same kernel, root and program.
//!
//! The host's end tells what it was: a guest whose clock is off tells nothing. Each run has a
//! VM of its own, which ends with it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::budgets::Budgets;
use crate::deadline::Running;
use crate::figure::Figures;
use crate::lines::Lines;
use crate::options;
use crate::qemu;

/// Names of the figures.
pub(crate) const IPERF: &str = "iperf/";

/// Seconds that a connection carries as much as it can.
const SECONDS: &str = "8";

/// The port of the host's end.
const PORT: &str = "5201";

/// Where each guest finds its host.
const OUR_HOST: &str = "198.18.0.1";
const SLIRP_HOST: &str = "10.0.2.2";

/// What `iperf` is given.
#[derive(Debug, Default)]
pub(crate) struct IperfOptions {
    flashpan: PathBuf,
    kernel: PathBuf,
    /// A Debian with iperf3 and iproute2.
    rootfs: PathBuf,
    budgets: PathBuf,
    runs: usize,
}

impl IperfOptions {
    /// Reads pairs of options and values.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            runs: 3,
            ..Self::default()
        };
        options::read(words, |word, value| {
            match word {
                "--flashpan" => options.flashpan = value.into(),
                "--kernel" => options.kernel = value.into(),
                "--rootfs" => options.rootfs = value.into(),
                "--budgets" => options.budgets = value.into(),
                "--runs" => options.runs = value.parse().context("--runs is a number")?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(options)
    }

    /// Our VM, whose only program is the guest's end.
    fn ours(&self, home: &Path, client: &[&str]) -> Command {
        let mut command = Command::new(&self.flashpan);
        command.args(["run", "--network", "open", "--allow-private-ips"]);
        command.args(["-m", "512M", "--rootfs"]).arg(&self.rootfs);
        command.arg("--kernel").arg(&self.kernel).arg("--");
        command.args(client).env("XDG_STATE_HOME", home);
        command
    }
}

/// Measures; false if a budget is broken.
pub(crate) fn iperf(options: &IperfOptions) -> Result<bool> {
    let budgets = Budgets::read(&options.budgets)?;
    let home = tempfile::tempdir().context("make a directory")?;
    let mut figures = Figures::new(&budgets);
    for way in [Way::Upload, Way::Download] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..options.runs {
            let client = way.client(OUR_HOST);
            ours.push(carried(way, options.ours(home.path(), &client))?);
            let client = way.client(SLIRP_HOST).join(" ");
            let guest = qemu::with_network(&options.kernel, &options.rootfs, &client);
            theirs.push(carried(way, guest)?);
        }
        let (ours, theirs) = (best(&ours)?, best(&theirs)?);
        figures.beside(way.name(), ours, "Mbit/s", ("QEMU's slirp", theirs));
    }
    let names = budgets.names().filter(|name| name.starts_with(IPERF));
    crate::print(&figures.list, names)
}

/// What a machine can is the best of what it did.
fn best(values: &[f64]) -> Result<f64> {
    let best = values.iter().copied().max_by(f64::total_cmp);
    best.context("there were no runs")
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy)]
enum Way {
    Upload,
    Download,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Upload => "iperf/upload",
            Self::Download => "iperf/download",
        }
    }

    /// The guest's end.
    fn client(self, host: &'static str) -> Vec<&'static str> {
        let mut words = vec!["iperf3", "-c", host, "-p", PORT, "-t", SECONDS];
        if let Self::Download = self {
            words.push("-R");
        }
        words
    }

    /// What the last word of the line is that says what the host's end had.
    fn last_word(self) -> &'static str {
        match self {
            Self::Upload => "receiver",
            Self::Download => "sender",
        }
    }
}

/// What a connection of a guest carried, in Mbit/s.
fn carried(way: Way, mut guest: Command) -> Result<f64> {
    let mut server = Command::new("iperf3");
    server.args(["-s", "-1", "-p", PORT, "-f", "k", "--forceflush"]);
    server.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Running(server.spawn().context("start iperf3")?);
    let lines = Lines::of(&mut server.0)?;
    let listens = |line: &str| line.starts_with("Server listening").then_some(());
    lines.find(listens).context("the host's iperf3")?;
    guest.stdin(Stdio::null()).stdout(Stdio::null());
    guest.stderr(Stdio::piped());
    let mut guest = Running(guest.spawn().with_context(|| format!("run {guest:?}"))?);
    let carried = lines.find(|line| rate(line, way.last_word()));
    if carried.is_err() {
        let _ = guest.0.kill();
        let mut why = String::new();
        if let Some(mut errors) = guest.0.stderr.take() {
            let _ = errors.read_to_string(&mut why);
        }
        return carried.with_context(|| format!("the guest: {}", why.trim()));
    }
    carried
}

/// The rate in a line of iperf3's that ends so, in Mbit/s.
fn rate(line: &str, last: &str) -> Option<f64> {
    let mut words = line.split_whitespace().rev();
    (words.next() == Some(last)).then_some(())?;
    // A sender tells before it how often it sent again.
    let mut words = words.skip_while(|word| *word != "Kbits/sec").skip(1);
    let kilobits: f64 = words.next()?.parse().ok()?;
    Some(kilobits / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_hosts_end_has_the_rate() {
        let upload =
            "[  5]   0.00-8.08   sec  71.8 MBytes  74500 Kbits/sec                  receiver";
        let download =
            "[  5]   0.00-8.07   sec   155 MBytes  161000 Kbits/sec   32             sender";
        assert_eq!(rate(upload, "receiver"), Some(74.5));
        assert_eq!(rate(download, "sender"), Some(161.0));
        assert_eq!(rate(download, "receiver"), None);
        assert_eq!(rate("Server listening on 5201", "receiver"), None);
    }
}
