//! `cargo xtask test`: everything that has to be green.

use std::ffi::OsString;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Guest};
use crate::step::{self, Tally};
use crate::{bench, deny};

const HELP: &str = "\
Everything that has to be green.

  cargo xtask test [--unit] [--e2e] [--bench] [--fragment NAME]… [FILTER]

  --unit   format, lints, documentation, dependencies and the tests that need
           no VM
  --e2e    the tests that boot VMs, in the lab where KVM runs no guests, and
           those that need root, always in the lab
  --bench  the short benchmark of boots against its budgets
  --fragment NAME
           boot a guest kernel with this fragment on top of the base
           configuration, a name or a file; may be repeated
  FILTER   only tests with this in their names, and nothing but tests

Without any of the three, all of them; with a FILTER, --unit and --e2e.
";

/// Seconds for all tests that boot VMs.
const PATIENCE: u32 = 45 * 60;

/// Tests that need root are ignored where cargo runs tests, and are in modules of
/// this name. They are run in the lab, so they do not count as skipped before.
/// Any other test that is ignored is run nowhere, which is a failure.
const PRIVILEGED: &str = "::privileged::";

/// The packages whose libraries have such tests.
const PRIVILEGED_PACKAGES: [&str; 2] = ["flashpan-guest-init", "flashpan-rootfs"];

/// Seconds for the tests that need root.
const PRIVILEGED_PATIENCE: u32 = 5 * 60;

/// Runs every test program it is given, once, and fails if one of them did.
const RUN_ALL: &str = r#"
options=$1 filter=$2; shift 2; failed=0
for program; do
    echo "running ${program##*/}"
    "$program" --test-threads=1 $options $filter || failed=1
done
exit $failed"#;

#[derive(Debug, Default, PartialEq, Eq)]
struct Choice {
    unit: bool,
    e2e: bool,
    bench: bool,
    fragments: Vec<OsString>,
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
    result?;
    if let Some(filter) = &choice.filter
        && passed + failed == 0
    {
        bail!("no test has `{filter}` in its name");
    }
    if ignored > 0 {
        bail!("{ignored} tests are run nowhere; those that need root go into modules `privileged`");
    }
    Ok(u8::from(failed > 0))
}

/// `None` is a request for help.
fn parse(arguments: &[OsString]) -> Result<Option<Choice>> {
    let mut choice = Choice::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--unit") => choice.unit = true,
            Some("--e2e") => choice.e2e = true,
            Some("--bench") => choice.bench = true,
            Some("--fragment") => {
                let name = arguments.next().context("--fragment takes a name")?;
                choice.fragments.push(name.clone());
            }
            Some("-h" | "--help") => return Ok(None),
            Some(text) if !text.starts_with('-') && choice.filter.is_none() => {
                choice.filter = Some(text.to_owned());
            }
            _ => bail!("{} is too much; see test --help", argument.display()),
        }
    }
    if choice.bench && choice.filter.is_some() {
        bail!("--bench has no tests that a filter could choose from");
    }
    if !(choice.unit || choice.e2e || choice.bench) {
        choice.unit = true;
        choice.e2e = true;
        choice.bench = choice.filter.is_none();
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
        tests.args(["--", "--skip", PRIVILEGED]);
        step::count("tests that need no VM", &mut tests, tally)?;
    }
    if choice.e2e {
        privileged(filter, tally)?;
    }
    if !choice.e2e && !choice.bench {
        return Ok(());
    }
    let guest = Guest::prepare(&choice.fragments)?;
    if choice.e2e {
        vms(&guest, filter, tally)?;
    }
    if choice.bench {
        bench::boot(&guest, bench::SHORT)?;
    }
    Ok(())
}

/// The tests that need root: in the lab whatever this machine can do, as they
/// mount, attach loop devices and make control groups.
fn privileged(filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let mut arguments = vec!["test", "--no-run", "--lib"];
    arguments.extend(
        PRIVILEGED_PACKAGES
            .iter()
            .flat_map(|name| ["--package", name]),
    );
    let programs = step::build("the tests that need root", &arguments)?;
    let lab = ["lab", "--timeout", &PRIVILEGED_PATIENCE.to_string(), "--"];
    let words = lab
        .into_iter()
        .chain(["sh", "-c", RUN_ALL, "sh", "--ignored"]);
    let words = words
        .chain([filter.unwrap_or_default()])
        .map(OsString::from);
    let programs = programs.into_iter().map(|(_, path)| path.into_os_string());
    let mut tests = step::ourselves(words.chain(programs))?;
    step::count("tests that need root", &mut tests, tally)
}

/// The tests that boot VMs, where VMs can be.
fn vms(guest: &Guest, filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let arguments = [
        "test",
        "--no-run",
        "--package",
        "flashpan-tests",
        "--test",
        "*",
    ];
    let programs = step::build("the tests that boot VMs", &arguments)?;
    let filter = filter.unwrap_or_default();
    let words = ["sh", "-c", RUN_ALL, "sh", "", filter].map(OsString::from);
    let programs = programs.into_iter().map(|(_, path)| path.into_os_string());
    let mut tests = guest.command(PATIENCE, words.into_iter().chain(programs))?;
    step::count("tests that boot VMs", &mut tests, tally)
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
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    fn parsed(words: &[&str]) -> Result<Option<Choice>> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn everything_is_run_unless_a_part_is_asked_for() {
        let chosen = |words: &[&str]| {
            let choice = parsed(words).unwrap().unwrap();
            (choice.unit, choice.e2e, choice.bench)
        };
        assert_eq!(chosen(&[]), (true, true, true));
        assert_eq!(chosen(&["--unit"]), (true, false, false));
        assert_eq!(chosen(&["--e2e", "--bench"]), (false, true, true));
        // A filter chooses from tests, and a benchmark is none.
        assert_eq!(chosen(&["exit_codes"]), (true, true, false));
        let choice = parsed(&["--e2e", "exit_codes"]).unwrap().unwrap();
        assert_eq!(choice.filter.as_deref(), Some("exit_codes"));
        let choice = parsed(&["--fragment", "debug", "--fragment", "a", "b"]);
        let choice = choice.unwrap().unwrap();
        assert_eq!(choice.fragments, ["debug", "a"]);
        assert_eq!(choice.filter.as_deref(), Some("b"));
        for wrong in [
            &["a", "b"][..],
            &["--no"],
            &["--bench", "a"],
            &["--fragment"],
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
        assert!(parsed(&["--help"]).unwrap().is_none());
    }

    #[test]
    fn every_program_runs_once_and_one_that_failed_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let program = |name: &str, ends: &str| {
            let path = dir.path().join(name);
            let script = format!(
                "#!/bin/sh\necho \"${{0##*/}} $*\" >> {}\n{ends}\n",
                runs.display()
            );
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        // What a guest that did not come up makes a test say.
        let fails = "echo 'test boots ... FAILED'; echo 'it takes longer than 60 s'; exit 101";
        let programs = [program("one", fails), program("two", "exit 0")];
        let run = |programs: &[std::path::PathBuf]| {
            let mut sh = Command::new("sh");
            sh.args(["-c", RUN_ALL, "sh", "", "name"]).args(programs);
            let status = sh.output().unwrap().status;
            (status.code(), fs::read_to_string(&runs).unwrap())
        };
        let (code, ran) = run(&programs);
        assert_eq!(code, Some(1));
        let arguments = "--test-threads=1 name";
        assert_eq!(ran, format!("one {arguments}\ntwo {arguments}\n"));
        assert_eq!(run(&programs[1..]).0, Some(0));
    }
}
