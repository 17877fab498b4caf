//! `cargo xtask test`: everything that has to be green.

use std::ffi::OsString;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Guest};
use crate::step::{self, Tally};
use crate::{bench, deny, share};

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

/// The test programs that take longest, in this order: they begin first, so that no lab has
/// to wait for one of them at the end.
const LONGEST: [&str; 6] = [
    "attacks",
    "programs",
    "leftovers",
    "images",
    "hostile",
    "run",
];

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
    let boots = choice.e2e || choice.bench;
    let _ahead = (choice.unit && boots)
        .then(setup::begin_to_build)
        .transpose()?;
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
    if !boots {
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
    let programs = programs.into_iter().map(|(_, path)| path).collect();
    let lab = ["lab", "--timeout", &PRIVILEGED_PATIENCE.to_string(), "--"].map(OsString::from);
    let options = ["--ignored"].into_iter().chain(filter);
    let lab = step::ourselves(lab.into_iter().chain(one_by_one(options)))?;
    share::share("tests that need root", programs, vec![lab], tally)
}

/// The words that run test programs one after the other, each with these arguments.
fn one_by_one<'a>(arguments: impl Iterator<Item = &'a str>) -> impl Iterator<Item = OsString> {
    let head = ["sh", "-c", share::RUN_WHAT_COMES, "sh", "--test-threads=1"];
    let words: Vec<_> = head
        .into_iter()
        .chain(arguments)
        .map(OsString::from)
        .collect();
    words.into_iter()
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
    let mut programs = step::build("the tests that boot VMs", &arguments)?;
    programs.sort_by_key(|(name, _)| {
        let rank = LONGEST.iter().position(|long| long == name);
        rank.unwrap_or(LONGEST.len())
    });
    let programs = programs.into_iter().map(|(_, path)| path).collect();
    let place = || guest.command(PATIENCE, one_by_one(filter.into_iter()));
    let places = (0..guest.places()?)
        .map(|_| place())
        .collect::<Result<_>>()?;
    share::share("tests that boot VMs", programs, places, tally)
}

/// What needs nothing to run.
fn checks() -> Result<()> {
    step::run("format", step::cargo().args(["fmt", "--all", "--check"]))?;
    deny::check()?;
    fuzz_lock()?;
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

/// The fuzzers are a workspace of their own, whose lock file has to follow ours: nothing else
/// here would notice.
fn fuzz_lock() -> Result<()> {
    let mut metadata = step::cargo();
    metadata.args(["metadata", "--locked", "--format-version", "1"]);
    metadata.args(["--manifest-path", "tests/fuzz/Cargo.toml"]);
    step::run("lock file of the fuzzers", metadata.stdout(Stdio::null()))
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
}
