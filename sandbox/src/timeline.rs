//! When a VM reached which phase, and what it cost.
//!
//! All stamps are `CLOCK_MONOTONIC` in nanoseconds, which is one clock for all
//! processes of a host, so stamps of the VMM and of the supervisor compare.

use flashpan_protocol::control::{ExitCount, Stats};
use flashpan_protocol::phase::Phase;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Version of the JSON form of [`Report`].
const REPORT_VERSION: u32 = 1;

/// Most marks of guest programs that are kept; later ones are counted only.
const MAX_USER_MARKS: usize = 1024;

/// Columns of the bar in [`Report::picture`].
const BAR: u64 = 48;

/// Now, as `CLOCK_MONOTONIC` in nanoseconds.
#[must_use]
pub fn now_ns() -> u64 {
    // The clock exists on every Linux, and it starts at zero.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
    })
}

/// Phases as they are reached.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timeline {
    stamps: Vec<(Phase, u64)>,
    user: Vec<UserMark>,
    user_lost: u64,
    stats: Option<Stats>,
}

impl Timeline {
    /// Notes that `phase` was reached at `at_ns`. When two sides report the
    /// same phase, the earlier report stands.
    pub(crate) fn mark(&mut self, phase: Phase, at_ns: u64) {
        match self.stamps.iter_mut().find(|(known, _)| *known == phase) {
            Some((_, known)) => *known = (*known).min(at_ns),
            None => self.stamps.push((phase, at_ns)),
        }
    }

    /// Notes a mark of a guest program.
    pub(crate) fn mark_user(&mut self, code: u8, at_ns: u64) {
        if self.user.len() < MAX_USER_MARKS {
            self.user.push(UserMark { code, at_ns });
        } else {
            self.user_lost = self.user_lost.saturating_add(1);
        }
    }

    /// Keeps the VMM's counters.
    pub(crate) fn set_stats(&mut self, stats: Stats) {
        self.stats = Some(stats);
    }

    /// The VMM's counters, as they were last.
    pub(crate) fn stats(&self) -> Option<&Stats> {
        self.stats.as_ref()
    }

    /// The latest phase reached.
    pub(crate) fn latest(&self) -> Option<Phase> {
        self.stamps.iter().map(|(phase, _)| *phase).max()
    }

    /// Whether `phase` was reached.
    pub(crate) fn has(&self, phase: Phase) -> bool {
        self.stamps.iter().any(|(known, _)| *known == phase)
    }

    /// The timeline in its public form.
    pub(crate) fn report(&self) -> Report {
        let mut stamps = self.stamps.clone();
        stamps.sort_by_key(|(phase, at)| (*at, *phase));
        let start = stamps.first().map_or(0, |(_, at)| *at);
        let mut previous = start;
        let stamps = stamps
            .into_iter()
            .map(|(phase, at_ns)| {
                let step_ns = at_ns.saturating_sub(previous);
                previous = at_ns;
                PhaseStamp {
                    phase,
                    at_ns,
                    since_start_ns: at_ns.saturating_sub(start),
                    step_ns,
                }
            })
            .collect();
        let stats = self.stats.clone();
        let (exits, vmm_resident_kib, console_dropped) = match stats {
            Some(s) => (s.exits, Some(s.vmm_resident_kib), Some(s.console_dropped)),
            None => (Vec::new(), None, None),
        };
        Report {
            version: REPORT_VERSION,
            unit: "ns",
            stamps,
            user_marks: self.user.clone(),
            user_marks_lost: self.user_lost,
            exits_total: exits.iter().fold(0, |sum, e| sum.saturating_add(e.count)),
            exits,
            vmm_resident_kib,
            console_dropped,
        }
    }
}

/// A timeline as it is written to JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Version of this form; it grows when a field changes its meaning.
    pub version: u32,
    /// Unit of every `*_ns` field.
    pub unit: &'static str,
    /// The phases reached, in order of time.
    pub stamps: Vec<PhaseStamp>,
    /// Marks that programs in the guest made (codes 128 to 255), in order.
    pub user_marks: Vec<UserMark>,
    /// Marks beyond the 1024 that are kept.
    pub user_marks_lost: u64,
    /// Sum of the counts in `exits`.
    pub exits_total: u64,
    /// VM exits that reached the VMM, by reason and device register.
    pub exits: Vec<ExitCount>,
    /// Resident memory of the VMM without guest memory, in KiB, if it was
    /// reported.
    pub vmm_resident_kib: Option<u64>,
    /// Bytes of console output that nobody read in time.
    pub console_dropped: Option<u64>,
}

/// One phase in a [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PhaseStamp {
    /// Which.
    pub phase: Phase,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
    /// Nanoseconds since the first stamp.
    pub since_start_ns: u64,
    /// Nanoseconds since the stamp before this one.
    pub step_ns: u64,
}

/// A mark that a program in the guest made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct UserMark {
    /// The code written, 128 to 255.
    pub code: u8,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
}

/// The name of a phase, as in JSON.
#[must_use]
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::ProcessStart => "process_start",
        Phase::VmmSpawned => "vmm_spawned",
        Phase::MemoryReady => "memory_ready",
        Phase::KernelLoaded => "kernel_loaded",
        Phase::FirstRun => "first_run",
        Phase::KernelEntry => "kernel_entry",
        Phase::InitStart => "init_start",
        Phase::AgentConnected => "agent_connected",
        Phase::InitReady => "init_ready",
        Phase::CommandStarted => "command_started",
        Phase::FirstByte => "first_byte",
        Phase::CommandExited => "command_exited",
        Phase::Exit => "exit",
    }
}

impl Report {
    /// Nanoseconds from the first stamp to `phase`, if it was reached.
    #[must_use]
    pub fn since_start(&self, phase: Phase) -> Option<u64> {
        self.stamps
            .iter()
            .find(|s| s.phase == phase)
            .map(|s| s.since_start_ns)
    }

    /// The phases as lines of a bar chart for a terminal: each bar covers the
    /// time from the phase before to this one.
    #[must_use]
    pub fn picture(&self) -> String {
        use std::fmt::Write as _;
        let total = self.stamps.last().map_or(0, |s| s.since_start_ns).max(1);
        let column = |ns: u64| {
            let column = u128::from(ns) * u128::from(BAR) / u128::from(total);
            usize::try_from(column).unwrap_or(0)
        };
        let mut out = String::new();
        for stamp in &self.stamps {
            let from = column(stamp.since_start_ns.saturating_sub(stamp.step_ns));
            let to = column(stamp.since_start_ns);
            let bar = match to - from {
                0 => "▏".to_owned(),
                n => "█".repeat(n),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "{:<16} {:>10} {:>+11}  {}{bar}",
                phase_name(stamp.phase),
                millis(stamp.since_start_ns),
                millis(stamp.step_ns),
                " ".repeat(from),
            );
        }
        out
    }
}

/// Nanoseconds as milliseconds with three decimals, honouring width and sign
/// flags of the format string.
fn millis(ns: u64) -> impl std::fmt::Display {
    struct Millis(u64);
    impl std::fmt::Display for Millis {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let sign = if f.sign_plus() { "+" } else { "" };
            let text = format!(
                "{sign}{}.{:03} ms",
                self.0 / 1_000_000,
                self.0 / 1000 % 1000
            );
            match f.width() {
                Some(width) => write!(f, "{text:>width$}"),
                None => f.write_str(&text),
            }
        }
    }
    Millis(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Timeline {
        let mut timeline = Timeline::default();
        timeline.mark(Phase::ProcessStart, 1_000_000);
        timeline.mark(Phase::InitReady, 9_000_000);
        timeline.mark(Phase::VmmSpawned, 3_000_000);
        timeline
    }

    #[test]
    fn stamps_are_sorted_and_measured_from_the_first() {
        let report = sample().report();
        let got: Vec<_> = report
            .stamps
            .iter()
            .map(|s| (s.phase, s.since_start_ns, s.step_ns))
            .collect();
        assert_eq!(
            got,
            [
                (Phase::ProcessStart, 0, 0),
                (Phase::VmmSpawned, 2_000_000, 2_000_000),
                (Phase::InitReady, 8_000_000, 6_000_000),
            ]
        );
        assert_eq!(report.since_start(Phase::InitReady), Some(8_000_000));
        assert_eq!(report.since_start(Phase::Exit), None);
    }

    #[test]
    fn the_earlier_of_two_reports_of_a_phase_stands() {
        let mut timeline = sample();
        timeline.mark(Phase::InitReady, 12_000_000);
        timeline.mark(Phase::InitReady, 8_000_000);
        assert_eq!(
            timeline.report().since_start(Phase::InitReady),
            Some(7_000_000)
        );
    }

    #[test]
    fn marks_of_a_guest_are_bounded() {
        let mut timeline = Timeline::default();
        for _ in 0..MAX_USER_MARKS + 7 {
            timeline.mark_user(128, 1);
        }
        let report = timeline.report();
        assert_eq!(report.user_marks.len(), MAX_USER_MARKS);
        assert_eq!(report.user_marks_lost, 7);
    }

    #[test]
    fn json_has_the_documented_fields() {
        let mut timeline = sample();
        timeline.set_stats(Stats {
            exits: vec![ExitCount {
                reason: "hlt".into(),
                detail: String::new(),
                count: 3,
            }],
            console_dropped: 0,
            vmm_resident_kib: 1234,
            full_disks: Vec::new(),
            network: None,
        });
        let json = serde_json::to_value(timeline.report()).unwrap();
        assert_eq!(json["version"], 1);
        assert_eq!(json["unit"], "ns");
        assert_eq!(json["stamps"][1]["phase"], "vmm_spawned");
        assert_eq!(json["stamps"][1]["since_start_ns"], 2_000_000);
        assert_eq!(json["exits"][0]["count"], 3);
        assert_eq!(json["exits_total"], 3);
        assert_eq!(json["vmm_resident_kib"], 1234);
    }

    #[test]
    fn names_agree_with_json() {
        for phase in [
            Phase::ProcessStart,
            Phase::AgentConnected,
            Phase::FirstByte,
            Phase::Exit,
        ] {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase_name(phase));
        }
    }

    #[test]
    fn the_picture_has_a_line_per_phase_and_bars_in_proportion() {
        let picture = sample().report().picture();
        let lines: Vec<_> = picture.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("2.000 ms"), "{picture}");
        assert_eq!(lines[1].matches('█').count(), 12, "{picture}");
        assert_eq!(lines[2].matches('█').count(), 36, "{picture}");
    }

    #[test]
    fn an_empty_timeline_is_an_empty_picture() {
        assert_eq!(Timeline::default().report().picture(), "");
    }
}
