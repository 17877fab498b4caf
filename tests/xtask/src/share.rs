//! Test programs shared out: several places, each of which takes the next one when it has
//! done with one.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::step::{self, Tally};

/// Runs the test programs whose paths it reads, one line each, with the arguments it is given.
/// A line of [`READY`] asks for the next.
pub(crate) const RUN_WHAT_COMES: &str = r#"
failed=0
echo "$READY"
while IFS= read -r program; do
    "$program" "$@" </dev/null || failed=1
    echo "$READY"
done
exit $failed"#;

/// A line that no test prints.
const READY: &str = "==> ready for a test program";

/// Runs every program once, in one of these places, and adds up their results. Each place is a
/// command that ends in [`RUN_WHAT_COMES`]. A failed test is counted; whatever else goes wrong
/// is the error. What takes long is best first.
pub(crate) fn share(
    title: &str,
    programs: Vec<PathBuf>,
    places: Vec<Command>,
    tally: &mut Tally,
) -> Result<()> {
    share_and_say(title, programs, places, tally, io::stdout())
}

/// As [`share`]: what tests say is written to `out`, whole lines of it.
fn share_and_say(
    title: &str,
    programs: Vec<PathBuf>,
    places: Vec<Command>,
    tally: &mut Tally,
    out: impl Write + Send,
) -> Result<()> {
    step::say(title);
    let out = Mutex::new(out);
    let begun = Instant::now();
    let queue = Mutex::new(VecDeque::from(programs));
    let counted = Mutex::new(*tally);
    let is_alone = places.len() == 1;
    let ended = thread::scope(|scope| {
        let threads: Vec<_> = places
            .into_iter()
            .map(|place| scope.spawn(|| serve(place, &queue, &counted, &out, is_alone)))
            .collect();
        let joined = threads.into_iter().map(|thread| {
            let joined = thread.join();
            joined.unwrap_or_else(|_| bail!("a thread that reads what tests say has panicked"))
        });
        joined.collect::<Vec<_>>()
    });
    *tally = *counted.lock().unwrap_or_else(PoisonError::into_inner);
    eprintln!("    {title}: {:.0} s", begun.elapsed().as_secs_f64());
    for place in ended {
        place.with_context(|| format!("{title}: see above"))?;
    }
    let left = queue.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = left.front() {
        bail!("{title}: {} was not run", program.display());
    }
    Ok(())
}

/// Gives a place one program after the other, as long as there are any.
fn serve(
    mut place: Command,
    queue: &Mutex<VecDeque<PathBuf>>,
    tally: &Mutex<Tally>,
    out: &Mutex<impl Write>,
    is_alone: bool,
) -> Result<()> {
    place.env("READY", READY);
    place.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = place.spawn().context("cannot start what runs tests")?;
    let mut stdin = child.stdin.take();
    let mut name = String::new();
    let mut stdout = BufReader::new(child.stdout.take().context("it has no output")?);
    let mut line = Vec::new();
    while stdout.read_until(b'\n', &mut line)? > 0 {
        let mut text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        // A program that was killed may have ended in the middle of a line.
        let is_ready = text.ends_with(READY);
        if is_ready {
            text.truncate(text.len() - READY.len());
        }
        if !text.is_empty() || !is_ready {
            (tally.lock().unwrap_or_else(PoisonError::into_inner)).add(&text);
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            match is_alone {
                true => writeln!(out, "{text}")?,
                false => writeln!(out, "{name:15} | {text}")?,
            }
        }
        if is_ready {
            let next = (queue.lock().unwrap_or_else(PoisonError::into_inner)).pop_front();
            match (next, &mut stdin) {
                (Some(program), Some(stdin)) => {
                    name = short(&program);
                    writeln!(stdin, "{}", program.display())?;
                    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
                    writeln!(out, "running {name}")?;
                }
                // Its end is what ends it.
                _ => drop(stdin.take()),
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("tests failed ({status})");
    }
    Ok(())
}

/// The name of a test program without cargo's hash.
fn short(program: &Path) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.rsplit_once('-').map(|(stem, _)| stem);
    stem.unwrap_or(&name).to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A place on this machine.
    fn place() -> Command {
        let mut sh = Command::new("sh");
        sh.args(["-c", RUN_WHAT_COMES, "sh", "--test-threads=1", "name"]);
        sh
    }

    #[test]
    fn every_program_runs_once_and_one_that_failed_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let program = |name: &str, ends: &str| {
            let path = dir.path().join(format!("{name}-0123"));
            let script = format!(
                "#!/bin/sh\necho \"{name} $*\" >> {}\ncat\n{ends}\n",
                runs.display()
            );
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let passes = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'";
        let fails = "echo 'test result: FAILED. 1 passed; 1 failed; 0 ignored'; exit 101";
        let programs = vec![
            program("one", fails),
            program("two", passes),
            program("three", &format!("{passes}; printf 'test is ... '")),
        ];
        let run = |programs: &[PathBuf], places: usize| {
            let mut tally = Tally::default();
            let places = (0..places).map(|_| place()).collect();
            let mut said = Vec::new();
            let shared = share_and_say("tests", programs.to_vec(), places, &mut tally, &mut said);
            for program in programs {
                let line = format!("running {}\n", short(program));
                assert!(String::from_utf8_lossy(&said).contains(&line), "{line}");
            }
            let ran = fs::read_to_string(&runs).unwrap_or_default();
            let _ = fs::remove_file(&runs);
            let mut ran: Vec<_> = ran.lines().map(str::to_owned).collect();
            ran.sort();
            (shared.is_ok(), tally.passed, tally.failed, ran)
        };
        let all = ["one", "three", "two"].map(|name| format!("{name} --test-threads=1 name"));
        for places in [1, 2, 5] {
            let (is_ok, passed, failed, ran) = run(&programs, places);
            assert!(!is_ok, "{places}");
            assert_eq!((passed, failed), (5, 1), "{places}");
            assert_eq!(ran, all, "{places}");
            assert!(run(&programs[1..], places).0, "{places}");
        }
    }

    #[test]
    fn what_nobody_ran_is_a_failure() {
        let mut tally = Tally::default();
        let programs = vec![PathBuf::from("/nowhere/one-0123")];
        // It ends before it has asked for anything.
        let dies = Command::new("true");
        let shared = share_and_say("tests", programs, vec![dies], &mut tally, Vec::new());
        let error = shared.unwrap_err().to_string();
        assert!(error.contains("/nowhere/one-0123"), "{error}");
    }
}
