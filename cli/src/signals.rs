//! Signals that users send to `flashpan run`, and what they mean.

use std::io;

use nix::libc;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that end a run while it boots, and go to the command afterwards.
const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Signals that go to the command, and mean nothing before there is one.
const PASSED_ON: [i32; 2] = [libc::SIGUSR1, libc::SIGUSR2];

/// How many times a user interrupts a command that does not obey before the
/// run is ended for it.
const PATIENCE: u32 = 3;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// This signal is for the command, or ends the boot.
    Deliver(i32),
    /// The terminal has another size.
    Resize,
    /// The user has asked often enough.
    GiveUp(i32),
}

/// Watches signals. From its creation on none of them ends this process.
#[derive(Debug)]
pub(crate) struct Signals {
    ending: [Signal; 4],
    passed_on: [Signal; 2],
    resize: Signal,
    interrupts: u32,
}

impl Signals {
    pub(crate) fn watch() -> io::Result<Self> {
        let on = |number| signal(SignalKind::from_raw(number));
        let [int, term, hup, quit] = ENDING.map(on);
        let [usr1, usr2] = PASSED_ON.map(on);
        Ok(Self {
            ending: [int?, term?, hup?, quit?],
            passed_on: [usr1?, usr2?],
            resize: on(libc::SIGWINCH)?,
            interrupts: 0,
        })
    }

    /// The next signal that ends a boot. Cancel safe.
    pub(crate) async fn ending(&mut self) -> i32 {
        let [int, term, hup, quit] = &mut self.ending;
        tokio::select! {
            _ = int.recv() => libc::SIGINT,
            _ = term.recv() => libc::SIGTERM,
            _ = hup.recv() => libc::SIGHUP,
            _ = quit.recv() => libc::SIGQUIT,
        }
    }

    /// The next signal of any kind. Cancel safe.
    pub(crate) async fn next(&mut self) -> Asked {
        let [int, term, hup, quit] = &mut self.ending;
        let [usr1, usr2] = &mut self.passed_on;
        let number = tokio::select! {
            _ = int.recv() => libc::SIGINT,
            _ = term.recv() => libc::SIGTERM,
            _ = hup.recv() => libc::SIGHUP,
            _ = quit.recv() => libc::SIGQUIT,
            _ = usr1.recv() => libc::SIGUSR1,
            _ = usr2.recv() => libc::SIGUSR2,
            _ = self.resize.recv() => return Asked::Resize,
        };
        if matches!(number, libc::SIGINT | libc::SIGTERM) {
            self.interrupts = self.interrupts.saturating_add(1);
            if self.interrupts >= PATIENCE {
                return Asked::GiveUp(number);
            }
        }
        Asked::Deliver(number)
    }
}
