//! Progress of long work: a bar with an estimate on a terminal, a plain line
//! every ten per cent elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar is drawn at most, per second.
const HERTZ: u8 = 10;

/// Work below this long never shows anything.
const PATIENCE: Duration = Duration::from_millis(300);

/// Progress on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    plain: Option<Plain>,
}

/// Progress where there is no terminal.
#[derive(Debug)]
struct Plain {
    what: String,
    /// Tenths that were already reported.
    reported: u64,
}

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
        let plain = (!terminal).then(|| Plain {
            what: what.to_owned(),
            reported: 0,
        });
        Self { bar, plain }
    }

    /// This much is done.
    pub(crate) fn set(&mut self, done: u64) {
        self.bar.set_position(done);
        if self.bar.elapsed() < PATIENCE {
            return;
        }
        let total = self.bar.length().unwrap_or(0).max(1);
        if let Some(plain) = &mut self.plain {
            let tenths = done.saturating_mul(10) / total;
            if tenths > plain.reported {
                plain.reported = tenths;
                let left = self.bar.eta().as_secs();
                let line = format!(
                    "flashpan: {}: {} % ({left} s left)\n",
                    plain.what,
                    tenths * 10
                );
                // With standard error gone nobody is watching.
                let _ = io::stderr().lock().write_all(line.as_bytes());
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
