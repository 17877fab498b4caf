//! A peer that may be there: microsandbox, whose wheel has its programs in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::MEMORY_MIB;
use crate::deadline::{DEADLINE, run_for};

/// The name of the image in its store.
const IMAGE: &str = "tree";

/// microsandbox with a store of its own.
#[derive(Debug)]
pub(crate) struct Microsandbox {
    program: PathBuf,
    home: PathBuf,
    /// Its name and version.
    pub(crate) name: String,
}

impl Microsandbox {
    /// Fills a store below `work` with the image in `archive`. `bundle` is what the
    /// wheel has as `_bundled`: `bin/msb`, and its libraries in `lib`.
    pub(crate) fn set_up(bundle: &Path, archive: &Path, work: &Path) -> Result<Self> {
        let mut peer = Self {
            program: bundle.join("bin/msb"),
            home: work.join("microsandbox"),
            name: String::new(),
        };
        let version = peer.ask(&["--version"])?;
        let version = version.split_whitespace().last().unwrap_or("?");
        peer.name = format!("microsandbox {version}");
        let archive = archive.to_str().context("a path that is not UTF-8")?;
        peer.ask(&["load", "--quiet", "--input", archive, "--tag", IMAGE])?;
        Ok(peer)
    }

    /// The command that runs `words` in a sandbox of the image.
    pub(crate) fn run(&self, words: &[&str]) -> Command {
        let mut command = self.command();
        command.args([
            "run",
            "--quiet",
            "--pull",
            "never",
            "--no-tty",
            "--no-stdin",
        ]);
        command.args(["--cpus", "1", "--memory", &format!("{MEMORY_MIB}M")]);
        command.args([IMAGE, "--"]).args(words);
        command
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("MSB_HOME", &self.home)
            .env("MSB_PATH", &self.program);
        command
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = self.command();
        command.args(words);
        let output = run_for(&mut command, DEADLINE)
            .with_context(|| format!("start {command:?}"))?
            .with_context(|| format!("{command:?} does not end"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            bail!("{command:?} ended with {}: {}", output.status, why.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
