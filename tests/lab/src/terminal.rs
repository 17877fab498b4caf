//! Terminals: the raw mode of ours, and the pseudo-terminal of the command.

// One ioctl that nix does not wrap: setting the size of a terminal.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;

use nix::pty::openpty;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

fn window((rows, columns): (u16, u16)) -> libc::winsize {
    libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// A new pseudo-terminal: our end and the command's.
pub(crate) fn open(size: (u16, u16)) -> io::Result<(File, File)> {
    let pair = openpty(Some(&window(size)), None)?;
    // Duplicated because duplicates are close-on-exec and openpty's are not.
    Ok((
        File::from(pair.master).try_clone()?,
        File::from(pair.slave).try_clone()?,
    ))
}

/// Tells a pseudo-terminal (by our end) its size, as rows and columns.
pub(crate) fn set_size(file: &File, size: (u16, u16)) -> io::Result<()> {
    let size = window(size);
    // SAFETY: TIOCSWINSZ only reads a `winsize`, and `size` is one that lives
    // until the call returns; the descriptor is open as `file` is borrowed.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Rows and columns of the terminal on standard input; 24 by 80 if it cannot say.
pub(crate) fn size() -> (u16, u16) {
    let mut size = window((0, 0));
    // SAFETY: TIOCGWINSZ only writes a `winsize`, and `size` is one that lives
    // until the call returns.
    let result = unsafe { libc::ioctl(io::stdin().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if result == 0 && size.ws_row > 0 {
        (size.ws_row, size.ws_col)
    } else {
        (24, 80)
    }
}

/// The terminal on standard input in raw mode, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Raw(Termios);

impl Raw {
    /// `None` when standard input is no terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Best effort: without it the user types `reset`.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
