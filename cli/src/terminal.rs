//! The user's terminal: its size, and raw mode that is always undone.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use flashpan::TerminalSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use terminal_size::{Height, Width, terminal_size_of};

/// What terminals had before there was a way to ask.
const FALLBACK: TerminalSize = TerminalSize {
    rows: 24,
    columns: 80,
};

/// The mode to go back to, where a panic can find it.
static BEFORE: OnceLock<SharedTermios> = OnceLock::new();

/// `Termios` has a cell inside, which is never touched here after creation.
struct SharedTermios(std::sync::Mutex<Termios>);

/// Whether standard input is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// The size of the terminal on standard input or output.
pub(crate) fn size() -> TerminalSize {
    let size = terminal_size_of(io::stdin()).or_else(|| terminal_size_of(io::stdout()));
    match size {
        // A size of zero is what terminals say that do not know.
        Some((Width(columns), Height(rows))) if columns > 0 && rows > 0 => {
            TerminalSize { rows, columns }
        }
        _ => FALLBACK,
    }
}

/// Raw mode on standard input for as long as this lives, and not a moment
/// longer: not after an early return, nor after a panic.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        if BEFORE.set(SharedTermios(before.into())).is_ok() {
            let earlier_hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                earlier_hook(info);
            }));
        }
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // A panic while the lock is held is one inside tcsetattr: not possible.
    if let Some(before) = BEFORE.get()
        && let Ok(before) = before.0.try_lock()
    {
        // A terminal that has hung up has no mode to restore.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &before);
    }
}
