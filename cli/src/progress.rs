//! Progress of long work: a bar with an estimate on a terminal, a plain line
//! every ten per cent elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar is drawn at most, per second.
const HERTZ: u8 = 10;

/// Work below this long never shows anything.
const PATIENCE: Duration = Duration::from_millis(300);

/// Progress on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    bar: ProgressBar,
    plain: Option<Plain>,
}

/// Progress where there is no terminal.
#[derive(Debug)]
struct Plain {
    /// Tenths that were already reported.
    reported: u64,
}

/// Steps of a share between 0 and 1.
const SHARE: u32 = 1000;

impl Progress {
    /// Progress through `total` bytes.
    pub(crate) fn bytes(what: &str, total: u64) -> Self {
        Self::new(
            what,
            total,
            "{msg} {wide_bar} {bytes}/{total_bytes} ({eta} left)",
        )
    }

    /// Progress through `total` steps.
    pub(crate) fn steps(what: &str, total: u64) -> Self {
        Self::new(what, total, "{msg} {wide_bar} {pos}/{len} ({eta} left)")
    }

    /// Progress through `total` steps that mean nothing to anybody but as a share.
    pub(crate) fn steps_of(what: &str, total: u64) -> Self {
        Self::new(what, total, "{msg} {wide_bar} {percent} % ({eta} left)")
    }

    /// Progress of work that knows its share and its estimate; see
    /// [`Progress::at`].
    pub(crate) fn share(what: &str) -> Self {
        Self::new(what, SHARE.into(), "{msg} {wide_bar} {percent} %{prefix}")
    }

    fn new(what: &str, total: u64, template: &str) -> Self {
        let terminal = io::stderr().is_terminal();
        let target = match terminal {
            true => ProgressDrawTarget::stderr_with_hz(HERTZ),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        }
        bar.set_message(what.to_owned());
        let plain = (!terminal).then_some(Plain { reported: 0 });
        let what = what.to_owned();
        Self { what, bar, plain }
    }

    /// This much is done.
    pub(crate) fn set(&mut self, done: u64) {
        self.bar.set_position(done);
        let eta = Some(self.bar.eta());
        self.report(eta);
    }

    /// This share, 0 to 1, is done, the rest may take `eta`, and this is being
    /// done now.
    pub(crate) fn at(&mut self, share: f64, eta: Option<Duration>, doing: &str) {
        let position = (share * f64::from(SHARE)).clamp(0.0, f64::from(SHARE));
        // Clamped to a range that every integer type has.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        self.bar.set_position(position as u64);
        self.bar.set_message(format!("{}: {doing}", self.what));
        let left = eta.map(|eta| format!(" ({} left)", HumanDuration(eta)));
        self.bar.set_prefix(left.unwrap_or_default());
        self.report(eta);
    }

    /// The plain line, whenever another tenth is done.
    fn report(&mut self, eta: Option<Duration>) {
        let Some(plain) = &mut self.plain else { return };
        if self.bar.elapsed() < PATIENCE {
            return;
        }
        let total = self.bar.length().unwrap_or(0).max(1);
        let tenths = self.bar.position().saturating_mul(10) / total;
        if tenths > plain.reported {
            plain.reported = tenths;
            let left = eta.map(|eta| format!(" ({} left)", HumanDuration(eta)));
            let left = left.unwrap_or_default();
            let line = format!("flashpan: {}: {} %{left}\n", self.what, tenths * 10);
            // With standard error gone nobody is watching.
            let _ = io::stderr().lock().write_all(line.as_bytes());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
