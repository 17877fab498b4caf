//! `cargo xtask test`: everything that has to be green.

use std::ffi::OsString;

use anyhow::{Result, bail};

use crate::setup::{self, Guest, Place};
use crate::step::{self, Tally};
use crate::{bench, deny};

const HELP: &str = "\
Everything that has to be green.

  cargo xtask test [--unit] [--e2e] [--bench] [FILTER]

  --unit   format, lints, documentation, dependencies and the tests that need
           no VM
  --e2e    the tests that boot VMs, in the lab where KVM runs no guests, and
           those that need root, always in the lab
  --bench  the short benchmark of boots against its budgets
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

/// Runs every test program it is given, and fails if one of them did. Where VMs are
/// emulated, tests that failed in a way that the emulator is known for (a guest that stands
/// still or has a triple fault, docs/lab.md) are run once more, by name, and that is said.
const RUN_ALL: &str = r#"
options=$1 filter=$2 symptoms=$3; shift 3; failed=0
log=$(mktemp)
for program; do
    echo "running ${program##*/}"
    { "$program" --test-threads=1 $options $filter; echo $? > "$log.status"; } 2>&1 | tee "$log"
    [ "$(cat "$log.status")" = 0 ] && continue
    names=$(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
    if [ -n "$symptoms" ] && [ -n "$names" ] && grep -qE "$symptoms" "$log"; then
        echo "once more, since the emulator may be why:" $names
        if "$program" --test-threads=1 $options --exact $names; then
            echo "at the second try:" $(echo $names | wc -w)
            continue
        fi
    fi
    failed=1
done
exit $failed"#;

/// What a test says that failed because of the emulator, or may have.
const SYMPTOMS: &str =
    "triple fault|it takes longer than|did not start the program within|was not ready within";

#[derive(Debug, Default, PartialEq, Eq)]
struct Choice {
    unit: bool,
    e2e: bool,
    bench: bool,
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
        second_try,
    } = tally;
    if second_try > 0 {
        eprintln!("{second_try} of them at the second try: see `once more` above, and docs/lab.md");
    }
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
    for argument in arguments {
        match argument.to_str() {
            Some("--unit") => choice.unit = true,
            Some("--e2e") => choice.e2e = true,
            Some("--bench") => choice.bench = true,
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
    let guest = Guest::prepare()?;
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
        .chain([filter.unwrap_or_default(), ""])
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
    let symptoms = match guest.place {
        Place::Lab => SYMPTOMS,
        Place::Here => "",
    };
    let filter = filter.unwrap_or_default();
    let words = ["sh", "-c", RUN_ALL, "sh", "", filter, symptoms].map(OsString::from);
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
        for wrong in [&["a", "b"][..], &["--no"], &["--bench", "a"]] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
        assert!(parsed(&["--help"]).unwrap().is_none());
    }
}
