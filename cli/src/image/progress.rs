//! Progress of a pull or an import: a bar for each layer on a terminal, plain
//! lines elsewhere.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use flashpan_rootfs::store::Event;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::show::{digest, nameless, size};
use crate::failure::say;
use crate::progress::Progress;

/// How often bars are drawn at most, per second.
const HERTZ: u8 = 10;

/// Progress on standard error. Events may come from several threads.
pub(crate) struct ImageProgress {
    /// What is pulled or imported.
    what: String,
    quiet: bool,
    bars: Option<MultiProgress>,
    state: Mutex<State>,
    /// Bytes of all layers, 0 where that is not known.
    bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    layers: HashMap<String, ProgressBar>,
    /// Layers of which a line was written.
    told: HashMap<String, Told>,
    converting: Option<Progress>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Begun,
    Done,
}

impl ImageProgress {
    /// Progress of `what`; none at all if `quiet`.
    pub(crate) fn new(what: &str, quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal() && !quiet;
        let bars = terminal
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(HERTZ)));
        Self {
            what: what.to_owned(),
            quiet,
            bars,
            state: Mutex::default(),
            bytes: AtomicU64::new(0),
        }
    }

    /// Bytes of all layers as they are packed, if that has become known.
    pub(crate) fn bytes(&self) -> Option<u64> {
        Some(self.bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    pub(crate) fn on(&self, event: Event) {
        if let Event::Layers { bytes } = event {
            self.bytes.store(bytes, Ordering::Relaxed);
        }
        if self.quiet {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Waiting { what } => {
                self.line(&format!("waiting for another flashpan that makes {what}"));
            }
            // Writing an archive to disk is mostly waiting for whoever sends it.
            Event::Unpacking(_) | Event::Layers { .. } => {}
            Event::Exists {
                digest: id,
                size: n,
            } => {
                self.layer(&mut state, &id, n, n, "exists");
            }
            Event::Downloading { digest, done, size } => {
                self.layer(&mut state, &digest, done, size, "");
            }
            Event::Downloaded {
                digest: id,
                size: n,
            } => {
                self.layer(&mut state, &id, n, n, "done");
            }
            Event::Converting { done, total } => {
                for (_, bar) in state.layers.drain() {
                    bar.finish_and_clear();
                }
                let what = &self.what;
                state
                    .converting
                    .get_or_insert_with(|| {
                        Progress::steps_of(&format!("root image of {what}"), total)
                    })
                    .set(done);
            }
            Event::Nameless(image) => self.line(&nameless(&image)),
        }
    }

    fn layer(&self, state: &mut State, id: &str, done: u64, total: u64, end: &str) {
        let short = digest(id, false).to_owned();
        let Some(bars) = &self.bars else {
            let told = match end {
                "" => Told::Begun,
                _ => Told::Done,
            };
            if state.told.insert(id.to_owned(), told) != Some(told) {
                let text = match end {
                    "" => format!("layer {short}: {}", size(total)),
                    end => format!("layer {short}: {end}"),
                };
                self.line(&text);
            }
            return;
        };
        let bar = state.layers.entry(id.to_owned()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(total));
            let template = "{prefix} {wide_bar} {bytes}/{total_bytes} {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
            }
            bar.set_prefix(short);
            bar
        });
        bar.set_position(done);
        if !end.is_empty() {
            bar.abandon_with_message(end.to_owned());
        }
    }

    /// A line among the bars.
    fn line(&self, text: &str) {
        match &self.bars {
            // With standard error gone there is nobody to tell.
            Some(bars) => drop(bars.println(format!("flashpan: {}: {text}", self.what))),
            None => say(&self.what, text),
        }
    }
}

impl Drop for ImageProgress {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (_, bar) in state.layers.drain() {
            bar.finish_and_clear();
        }
    }
}
