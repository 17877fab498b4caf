//! How far a build is and how long it will take.

use std::fmt;
use std::time::Duration;

use crate::download::Transfer;

/// What a build is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Looking at inputs: tools, source, fragments.
    Checking,
    /// Another process builds the same kernel, or fetches the same source.
    Waiting,
    /// Fetching the source; [`Progress::detail`] says from where.
    Downloading,
    /// Unpacking the source.
    Unpacking,
    /// Running Kconfig and checking what it made of the requests.
    Configuring,
    /// Compiling and linking: nearly all of the time.
    Compiling,
    /// Stripping and moving the result into the cache.
    Publishing,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Checking => "checking",
            Self::Waiting => "waiting for another build",
            Self::Downloading => "downloading",
            Self::Unpacking => "unpacking",
            Self::Configuring => "configuring",
            Self::Compiling => "compiling",
            Self::Publishing => "publishing",
        })
    }
}

/// A moment of a build.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Part of the whole that is done, 0 to 1; never goes back.
    pub fraction: f64,
    /// Time until the end, once it can be told.
    pub eta: Option<Duration>,
    /// What is being worked on: `kernel/fork.o`. May be empty.
    pub detail: String,
    /// While downloading: how much is there. [`Progress::eta`] is that of the
    /// download then.
    pub transfer: Option<Transfer>,
}

/// Steps that make prints per option that is on: 1,630 for the 657 of base.
const STEPS_PER_OPTION: f64 = 2.48;
/// Files in the tarball of Linux 6.12.
const UNPACK_FILES: f64 = 92_000.0;
/// Seconds of one job that a step takes, where no earlier build tells.
const SECONDS_PER_STEP: f64 = 0.4;
/// Steps that what is known before the build weighs as much as. The first few
/// hundred are generated headers and small host programs, far quicker than the
/// rest.
const PRIOR_STEPS: f64 = 400.0;

/// Where each phase lies on the whole, by the time that phases take on two CPUs:
/// 20 s, 5 s, 9 minutes, a moment.
const fn span(phase: Phase) -> (f64, f64) {
    match phase {
        Phase::Checking | Phase::Waiting => (0.0, 0.005),
        Phase::Downloading => (0.005, 0.01),
        Phase::Unpacking => (0.01, 0.04),
        Phase::Configuring => (0.04, 0.05),
        Phase::Compiling => (0.05, 0.995),
        Phase::Publishing => (0.995, 1.0),
    }
}

/// What the last build on this machine took, to estimate the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct History {
    /// Steps that make printed.
    pub(crate) steps: u32,
    /// Options that were on.
    pub(crate) options: u32,
    /// Seconds of compiling times jobs.
    pub(crate) job_seconds: f64,
}

/// Turns lines of make and tar into [`Progress`].
#[derive(Debug)]
pub(crate) struct Estimator {
    phase: Phase,
    fraction: f64,
    steps: u32,
    expected: f64,
    /// Expected before the build.
    seconds_per_step: f64,
}

impl Estimator {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Checking,
            fraction: 0.0,
            steps: 0,
            expected: UNPACK_FILES,
            seconds_per_step: SECONDS_PER_STEP,
        }
    }

    /// A phase begins.
    pub(crate) fn enter(&mut self, phase: Phase) -> Progress {
        self.phase = phase;
        self.steps = 0;
        self.advance(0.0, None, String::new())
    }

    /// `now` is there of a download that had `from` when it began, `elapsed` ago.
    pub(crate) fn download(
        &mut self,
        url: &str,
        now: Transfer,
        from: u64,
        elapsed: Duration,
    ) -> Progress {
        let (part, eta) = match now.total.filter(|total| *total > 0) {
            Some(total) => {
                let come = as_f64(now.done.saturating_sub(from)).max(1.0);
                let left = as_f64(total.saturating_sub(now.done));
                let eta = Duration::try_from_secs_f64(left / come * elapsed.as_secs_f64());
                (as_f64(now.done) / as_f64(total), eta.ok())
            }
            None => (0.0, None),
        };
        let mut progress = self.advance(part.min(1.0), eta, url.to_owned());
        progress.transfer = Some(now);
        progress
    }

    /// Compiling begins, with `options` that are on and `jobs` at once.
    pub(crate) fn compile(
        &mut self,
        options: u32,
        jobs: u32,
        history: Option<History>,
    ) -> Progress {
        let per_option = history.map_or(STEPS_PER_OPTION, |history| {
            f64::from(history.steps) / f64::from(history.options.max(1))
        });
        self.expected = (per_option * f64::from(options)).max(1.0);
        let of_one_job = history.map_or(SECONDS_PER_STEP, |history| {
            history.job_seconds / f64::from(history.steps.max(1))
        });
        self.seconds_per_step = of_one_job / f64::from(jobs.max(1));
        let mut progress = self.enter(Phase::Compiling);
        progress.eta = self.eta(Duration::ZERO);
        progress
    }

    /// A step is done, `elapsed` after its phase began.
    pub(crate) fn step(&mut self, detail: &str, elapsed: Duration) -> Progress {
        self.steps = self.steps.saturating_add(1);
        let part = (f64::from(self.steps) / self.expected).min(1.0);
        let eta = if self.phase == Phase::Compiling {
            self.eta(elapsed)
        } else {
            None
        };
        self.advance(part, eta, detail.to_owned())
    }

    /// Steps of the running phase.
    pub(crate) const fn steps(&self) -> u32 {
        self.steps
    }

    /// What is left, at a rate between that expected before the build and that of
    /// this build, which counts for more with every step.
    fn eta(&self, elapsed: Duration) -> Option<Duration> {
        let steps = f64::from(self.steps);
        let left = (self.expected - steps).max(1.0);
        let expected = self.seconds_per_step * PRIOR_STEPS;
        let per_step = (expected + elapsed.as_secs_f64()) / (PRIOR_STEPS + steps);
        Duration::try_from_secs_f64(left * per_step).ok()
    }

    fn advance(&mut self, part: f64, eta: Option<Duration>, detail: String) -> Progress {
        let (from, to) = span(self.phase);
        self.fraction = self.fraction.max(from + (to - from) * part);
        Progress {
            phase: self.phase,
            fraction: self.fraction,
            eta,
            detail,
            transfer: None,
        }
    }
}

/// Lengths of files are exact enough as floating point numbers.
#[allow(clippy::cast_precision_loss)]
const fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

/// The file that a line of make is about, if it reports a step (`  CC      x.o`).
pub(crate) fn make_step(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix("  ")?.split_whitespace();
    let verb = words.next()?;
    let is_verb = verb.len() >= 2 && verb.bytes().all(|byte| byte.is_ascii_uppercase());
    if is_verb { words.next_back() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_make_are_steps_and_others_are_not() {
        assert_eq!(make_step("  CC      kernel/fork.o"), Some("kernel/fork.o"));
        assert_eq!(make_step("  HOSTCC  scripts/x"), Some("scripts/x"));
        for other in [
            "make[1]: Entering directory",
            "  warning: unused",
            "CC x.o",
            "",
            "  CC",
        ] {
            assert_eq!(make_step(other), None, "{other}");
        }
    }

    #[test]
    fn the_fraction_never_goes_back_and_ends_below_one_until_published() {
        let mut estimator = Estimator::new();
        let mut last = 0.0;
        let mut check = |progress: Progress| {
            assert!(
                progress.fraction >= last && progress.fraction <= 1.0,
                "{progress:?}"
            );
            last = progress.fraction;
        };
        check(estimator.enter(Phase::Unpacking));
        for _ in 0..100 {
            check(estimator.step("file", Duration::from_secs(1)));
        }
        check(estimator.enter(Phase::Configuring));
        check(estimator.compile(100, 2, None));
        for _ in 0..1000 {
            check(estimator.step("x.o", Duration::from_secs(1)));
        }
        assert!(last < 1.0);
    }

    #[test]
    fn the_estimate_begins_with_what_is_usual_and_follows_this_build() {
        let mut estimator = Estimator::new();
        // 2,480 steps of 0.4 s, two at once.
        let first = estimator.compile(1000, 2, None).eta.unwrap().as_secs();
        assert_eq!(first, 496);
        // A quick start says little about the rest.
        let mut eta = 0;
        for _ in 0..100 {
            let progress = estimator.step("x.h", Duration::from_secs(2));
            eta = progress.eta.unwrap().as_secs();
        }
        assert!((350..496).contains(&eta), "{eta}");
        // 1,240 steps took 1,000 s, not 248.
        for _ in 100..1240 {
            let progress = estimator.step("x.o", Duration::from_secs(1000));
            eta = progress.eta.unwrap().as_secs();
        }
        assert!((800..1000).contains(&eta), "{eta}");
    }

    #[test]
    fn a_past_build_gives_an_estimate_from_the_start() {
        let mut estimator = Estimator::new();
        let history = History {
            steps: 1600,
            options: 800,
            job_seconds: 1600.0,
        };
        let progress = estimator.compile(400, 4, Some(history));
        assert_eq!(progress.eta, Some(Duration::from_secs(200)));
    }
}
