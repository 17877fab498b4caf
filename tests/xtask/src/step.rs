//! Running programs, with a word before each on what it is for.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .components()
        .collect()
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Says on standard error what is done next.
pub(crate) fn say(text: &str) {
    eprintln!("\n==> {text}");
}

/// The command line, for people.
fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn check(command: &Command, status: std::process::ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("`{}` failed: {status}", words(command))
}

/// Runs a program that has to succeed, and says how long it took.
pub(crate) fn run(title: &str, command: &mut Command) -> Result<()> {
    say(title);
    let begun = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", words(command)))?;
    check(command, status)?;
    eprintln!("    {title}: {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a program that has to succeed, for its standard output.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", words(command)))?;
    check(command, output.status)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How many tests there were, added up over test programs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Tally {
    /// Adds what the closing line of a test program says, if this is one.
    pub(crate) fn add(&mut self, line: &str) {
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else {
                continue;
            };
            let number: u64 = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Runs test programs, passes their output on and adds up their results. A
/// failed test is counted; whatever else goes wrong is the error.
pub(crate) fn count(title: &str, command: &mut Command, tally: &mut Tally) -> Result<()> {
    say(title);
    let begun = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", words(command)))?;
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        let mut line = Vec::new();
        while stdout.read_until(b'\n', &mut line)? > 0 {
            io::stdout().write_all(&line)?;
            tally.add(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    }
    let status = child.wait()?;
    eprintln!("    {title}: {:.0} s", begun.elapsed().as_secs_f64());
    if !status.success() {
        // The command line would be a script and a dozen programs.
        bail!("{title}: failed ({status}), see above");
    }
    Ok(())
}

/// A program that works ahead of us. What it does is done again, and told of, by whoever needs
/// it; it ends with this.
#[derive(Debug)]
pub(crate) struct Ahead(Child);

impl Ahead {
    /// Builds with cargo what [`build`] will be asked for, where other programs leave room.
    pub(crate) fn build(arguments: &[&str]) -> Result<Self> {
        let cargo = cargo();
        let mut command = Command::new("nice");
        command.arg("--adjustment=10").arg(cargo.get_program());
        command.args(arguments).arg("--quiet").current_dir(root());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().context("cannot start nice, of coreutils")?;
        Ok(Self(child))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // It may have ended by itself. A compiler of its ends with what it is at.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Builds with cargo; the executables, by the names of their targets.
pub(crate) fn build(title: &str, arguments: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    say(title);
    let begun = Instant::now();
    let mut command = cargo();
    command
        .args(arguments)
        .arg("--message-format=json-render-diagnostics");
    let messages = read(&mut command)?;
    eprintln!("    {title}: {:.0} s", begun.elapsed().as_secs_f64());
    let mut built = Vec::new();
    for message in messages.lines() {
        let message: serde_json::Value = serde_json::from_str(message)?;
        let name = message
            .pointer("/target/name")
            .and_then(serde_json::Value::as_str);
        let path = message
            .get("executable")
            .and_then(serde_json::Value::as_str);
        if let (Some(name), Some(path)) = (name, path) {
            built.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    Ok(built)
}

/// This program again, with other arguments: its output can then be read.
pub(crate) fn ourselves(arguments: impl IntoIterator<Item = OsString>) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.args(arguments).stdin(Stdio::null());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_added_up_and_others_are_not() {
        let mut tally = Tally::default();
        tally.add("running 3 tests");
        tally.add("test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        tally.add("test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; finished in 1s");
        assert_eq!(
            tally,
            Tally {
                passed: 7,
                failed: 1,
                ignored: 1,
            }
        );
        // No other word changes what failed.
        tally.add("at the second try: 1");
        assert_eq!((tally.passed, tally.failed), (7, 1));
    }

    #[test]
    fn the_workspace_is_found() {
        assert!(root().join("deny.toml").is_file());
    }
}
