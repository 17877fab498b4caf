//! `cargo xtask test`: everything that has to be green.

use std::ffi::OsString;

use anyhow::{Result, bail};

use crate::deny;
use crate::setup::{self, Guest};
use crate::step::{self, Tally};

const HELP: &str = "\
Everything that has to be green.

  cargo xtask test [--unit|--e2e] [FILTER]

  --unit   only format, lints, documentation, dependencies and the tests that
           need no VM
  --e2e    only the tests that boot VMs, in the lab where KVM runs no guests
  FILTER   only tests with this in their names, and nothing but tests
";

/// Seconds for all tests that boot VMs.
const PATIENCE: u32 = 45 * 60;

/// Runs every test program it is given, and fails if one of them did.
const RUN_ALL: &str = r#"
filter=$1; shift; failed=0
for program; do echo "running ${program##*/}"; "$program" --test-threads=1 $filter || failed=1; done
exit $failed"#;

#[derive(Debug, Default, PartialEq, Eq)]
struct Choice {
    unit: bool,
    e2e: bool,
    filter: Option<String>,
}

/// Runs `cargo xtask test` with these arguments.
pub(crate) fn test(arguments: &[OsString]) -> Result<u8> {
    let Some(choice) = parse(arguments)? else {
        print!("{HELP}");
        return Ok(0);
    };
    let mut tally = Tally::default();
    let result = run(&choice, &mut tally);
    // This line alone, and last on standard output, is what machines read.
    let Tally {
        passed,
        failed,
        ignored,
    } = tally;
    println!("\n{passed} passed, {failed} failed, {ignored} skipped");
    result.map(|()| u8::from(failed > 0))
}

/// `None` is a request for help.
fn parse(arguments: &[OsString]) -> Result<Option<Choice>> {
    let mut choice = Choice {
        unit: true,
        e2e: true,
        filter: None,
    };
    for argument in arguments {
        match argument.to_str() {
            Some("--unit") => choice.e2e = false,
            Some("--e2e") => choice.unit = false,
            Some("-h" | "--help") => return Ok(None),
            Some(text) if !text.starts_with('-') && choice.filter.is_none() => {
                choice.filter = Some(text.to_owned());
            }
            _ => bail!("{} is too much; see test --help", argument.display()),
        }
    }
    if !choice.unit && !choice.e2e {
        bail!("--unit and --e2e exclude each other; without either, both are run");
    }
    Ok(Some(choice))
}

fn run(choice: &Choice, tally: &mut Tally) -> Result<()> {
    setup::setup()?;
    let filter = choice.filter.as_deref();
    if choice.unit {
        if filter.is_none() {
            checks()?;
        }
        let mut tests = step::cargo();
        tests.args(["test", "--workspace"]).args(filter);
        step::count("tests that need no VM", &mut tests, tally)?;
    }
    if choice.e2e {
        let guest = Guest::prepare()?;
        let arguments = [
            "test",
            "--no-run",
            "--package",
            "flashpan-tests",
            "--test",
            "*",
        ];
        let programs = step::build("the tests that boot VMs", &arguments)?;
        let mut words: Vec<OsString> = ["sh", "-c", RUN_ALL, "sh", filter.unwrap_or_default()]
            .map(OsString::from)
            .into();
        words.extend(programs.into_iter().map(|(_, path)| path.into_os_string()));
        let mut tests = guest.command(PATIENCE, words)?;
        step::count("tests that boot VMs", &mut tests, tally)?;
    }
    Ok(())
}

/// What needs nothing to run.
fn checks() -> Result<()> {
    step::run("format", step::cargo().args(["fmt", "--all", "--check"]))?;
    deny::check()?;
    let mut clippy = step::cargo();
    clippy.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]);
    step::run("lints", &mut clippy)?;
    let mut doc = step::cargo();
    doc.args(["doc", "--workspace", "--no-deps"]);
    step::run("documentation", doc.env("RUSTDOCFLAGS", "--deny warnings"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Option<Choice>> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn both_kinds_are_run_unless_one_is_asked_for() {
        let choice = parsed(&[]).unwrap().unwrap();
        assert!(choice.unit && choice.e2e);
        let choice = parsed(&["--e2e", "exit_codes"]).unwrap().unwrap();
        assert_eq!(
            choice,
            Choice {
                unit: false,
                e2e: true,
                filter: Some("exit_codes".into())
            }
        );
        assert!(parsed(&["--unit", "--e2e"]).is_err());
        assert!(parsed(&["a", "b"]).is_err());
        assert!(parsed(&["--no"]).is_err());
    }
}
