//! `flashpan-bench exec`: how long it takes to run a program in a VM that is there,
//! beside ssh into the same VM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::budgets::Budgets;
use crate::deadline::{DEADLINE, Running, run_for};
use crate::figure::Figures;
use crate::lines::Lines;
use crate::options;

/// Names of the figures.
pub(crate) const EXEC: &str = "exec/";

/// The port of this machine that leads to the guest's sshd.
const PORT: &str = "2222";

/// What sshd says when it listens.
const LISTENS: &str = "Server listening";

/// What `exec` is given.
#[derive(Debug, Default)]
pub(crate) struct ExecOptions {
    flashpan: PathBuf,
    /// A Debian with sshd.
    rootfs: PathBuf,
    budgets: PathBuf,
    runs: usize,
}

impl ExecOptions {
    /// Reads pairs of options and values.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            runs: 50,
            ..Self::default()
        };
        options::read(words, |word, value| {
            match word {
                "--flashpan" => options.flashpan = value.into(),
                "--rootfs" => options.rootfs = value.into(),
                "--budgets" => options.budgets = value.into(),
                "--runs" => options.runs = value.parse().context("--runs is a number")?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(options)
    }
}

/// Measures; false if a budget is broken.
pub(crate) fn exec(options: &ExecOptions) -> Result<bool> {
    let budgets = Budgets::read(&options.budgets)?;
    let home = tempfile::tempdir().context("make a directory")?;
    let vm = Vm::start(options, home.path())?;
    let mut figures = Figures::new(&budgets);
    let ours = median(options.runs, || vm.flashpan(&["exec", "bench", "true"]))?;
    let fresh = median(options.runs, || vm.ssh(&["true"]))?;
    figures.beside("exec/true", ours, "ns", ("ssh", fresh));
    // The best that ssh can do: its connection is there already.
    vm.share_connection()?;
    let shared = median(options.runs, || vm.ssh(&["true"]))?;
    figures.beside(
        "exec/true-shared-connection",
        ours,
        "ns",
        ("ssh with a connection that is there", shared),
    );
    drop(vm);
    let names = budgets.names().filter(|name| name.starts_with(EXEC));
    crate::print(&figures.list, names)
}

/// The middle one of so many runs, in nanoseconds: its client's start is a part of it.
fn median(runs: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    // What is read for the first time is read now.
    run()?;
    let mut times = Vec::new();
    for _ in 0..runs {
        let begun = Instant::now();
        run()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let middle = times.get(times.len() / 2).context("there were no runs")?;
    Ok(nanoseconds(*middle))
}

// Exact below 104 days.
#[allow(clippy::cast_precision_loss, clippy::as_conversions)]
fn nanoseconds(time: Duration) -> f64 {
    time.as_nanos() as f64
}

/// A VM with sshd, which is removed in the end.
struct Vm<'a> {
    flashpan: &'a Path,
    home: &'a Path,
}

impl<'a> Vm<'a> {
    fn start(options: &'a ExecOptions, home: &'a Path) -> Result<Self> {
        let vm = Self {
            flashpan: &options.flashpan,
            home,
        };
        let key = home.join("key");
        let mut keygen = Command::new("ssh-keygen");
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key);
        finish(&mut keygen)?;
        let public = fs::read_to_string(key.with_extension("pub")).context("read the key")?;
        // Everything as cheap as it gets: no PAM, no DNS, no message of the day.
        let script = format!(
            "mkdir -p /run/sshd /root/.ssh && echo '{}' > /root/.ssh/authorized_keys && \
             ssh-keygen -q -t ed25519 -N '' -f /root/host && \
             exec /usr/sbin/sshd -D -e -h /root/host -o UsePAM=no -o UseDNS=no -o PrintMotd=no \
             -o StrictModes=no -o PermitRootLogin=yes -o ListenAddress=127.0.0.1",
            public.trim()
        );
        let ports = format!("{PORT}:22");
        let rootfs = options.rootfs.display().to_string();
        vm.flashpan(&[
            "run",
            "-d",
            "--privileged",
            "--name",
            "bench",
            "-m",
            "512M",
            "-p",
            &ports,
            "--rootfs",
            &rootfs,
            "--",
            "sh",
            "-c",
            &script,
        ])?;
        vm.wait_for_sshd()?;
        Ok(vm)
    }

    /// Returns when sshd has said that it listens.
    fn wait_for_sshd(&self) -> Result<()> {
        let mut logs = self.command(&["logs", "-f", "bench"]);
        logs.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut logs = Running(logs.spawn().context("follow the guest's log")?);
        let listens = |line: &str| line.contains(LISTENS).then_some(());
        let listens = Lines::of(&mut logs.0)?.find(listens);
        listens.context("sshd in the guest does not listen")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.flashpan);
        command.args(words).env("XDG_STATE_HOME", self.home);
        command
    }

    fn flashpan(&self, words: &[&str]) -> Result<()> {
        finish(&mut self.command(words)).map(drop)
    }

    fn client(&self) -> Command {
        let mut ssh = Command::new("ssh");
        let option = |name: &str, file: &str| format!("{name}={}", self.home.join(file).display());
        ssh.args(["-p", PORT, "-o", "BatchMode=yes", "-F", "none"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"])
            .args(["-o", &option("UserKnownHostsFile", "known")])
            .args(["-o", &option("ControlPath", "shared")])
            .arg("-i")
            .arg(self.home.join("key"));
        ssh
    }

    fn ssh(&self, words: &[&str]) -> Result<()> {
        let mut ssh = self.client();
        ssh.arg("root@127.0.0.1").args(words);
        finish(&mut ssh).map(drop)
    }

    /// From now on a connection is there.
    fn share_connection(&self) -> Result<()> {
        let mut ssh = self.client();
        ssh.args(["-M", "-N", "-f", "root@127.0.0.1"]);
        finish(&mut ssh).map(drop)
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        let mut ssh = self.client();
        let _ = finish(ssh.args(["-O", "exit", "root@127.0.0.1"]));
        let _ = self.flashpan(&["rm", "-f", "bench"]);
    }
}

/// Runs a program that has to succeed.
fn finish(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null());
    let output = run_for(command, DEADLINE).with_context(|| format!("run {command:?}"))?;
    let output = output.with_context(|| format!("{command:?} does not end"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output)
}
