//! A program's input and output: pipes or a pseudo-terminal, and how bytes go
//! between them and the supervisor with bounded memory.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use flashpan_protocol::agent::{MAX_DATA, STDIN_WINDOW, TerminalSize};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::EpollFlags;
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
use nix::unistd::{Gid, Uid, fchown, pipe2, read, write};

use crate::anchors::Anchors;
use crate::plan::Plan;
use crate::poller::{Poller, Watched};
use crate::spawn::ChildStdio;
use crate::sys;

/// Input is acknowledged in pieces of at least this, unless all of it is taken.
const CREDIT_STEP: u32 = STDIN_WINDOW / 8;

/// What a terminal can hold back of a program's output, generously.
const TERMINAL_BUFFER: usize = 1 << 20;

/// Our ends.
pub(crate) struct OurStdio {
    pub(crate) input: Option<OwnedFd>,
    pub(crate) output: OwnedFd,
    pub(crate) errors: Option<OwnedFd>,
    pub(crate) terminal: Option<Terminal>,
}

/// A pseudo-terminal as the agent keeps it.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: OwnedFd,
    /// Held open so that the master never reports a hang-up while the program
    /// has closed its descriptors but can still open /dev/tty.
    _slave: OwnedFd,
}

impl Terminal {
    /// Sets the size.
    pub(crate) fn resize(&self, size: TerminalSize) {
        // It fails only for a descriptor that is not a terminal.
        let _ = sys::set_terminal_size(self.master.as_fd(), size);
    }
}

/// Makes what `plan` asks for, for its user: our ends and the program's.
pub(crate) fn make(plan: &Plan, anchors: &Anchors) -> nix::Result<(OurStdio, ChildStdio)> {
    match plan.terminal {
        Some(size) => terminal(plan, size, anchors),
        None => pipes(plan, anchors),
    }
}

fn pipes(plan: &Plan, anchors: &Anchors) -> nix::Result<(OurStdio, ChildStdio)> {
    let (stdin, input) = if plan.stdin {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(&ours)?;
        (theirs, Some(ours))
    } else {
        (anchors.null()?, None)
    };
    let (output, stdout) = pipe2(OFlag::O_CLOEXEC)?;
    let (errors, stderr) = pipe2(OFlag::O_CLOEXEC)?;
    set_nonblocking(&output)?;
    set_nonblocking(&errors)?;
    let (uid, gid) = (plan.identity.uid, plan.identity.gid);
    if uid != 0 {
        // Else the user could not open /dev/stdout, which is the pipe's
        // inode by way of /proc/self/fd.
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        if plan.stdin {
            let _ = fchown(&stdin, owner.0, owner.1);
        }
        let _ = fchown(&stdout, owner.0, owner.1);
        let _ = fchown(&stderr, owner.0, owner.1);
    }
    let ours = OurStdio {
        input,
        output,
        errors: Some(errors),
        terminal: None,
    };
    let theirs = ChildStdio {
        stdin,
        stdout,
        stderr,
    };
    Ok((ours, theirs))
}

fn terminal(
    plan: &Plan,
    size: TerminalSize,
    anchors: &Anchors,
) -> nix::Result<(OurStdio, ChildStdio)> {
    let master = anchors.new_terminal()?;
    let slave = sys::open_slave(master.as_fd())?;
    sys::set_terminal_size(master.as_fd(), size)?;
    if plan.identity.uid != 0 {
        // The group stays that of the devpts mount (tty).
        let _ = fchown(&slave, Some(Uid::from_raw(plan.identity.uid)), None);
    }
    let theirs = ChildStdio {
        stdin: duplicate(&slave)?,
        stdout: duplicate(&slave)?,
        stderr: duplicate(&slave)?,
    };
    let ours = OurStdio {
        input: plan.stdin.then(|| duplicate(&master)).transpose()?,
        output: duplicate(&master)?,
        errors: None,
        terminal: Some(Terminal {
            master,
            _slave: slave,
        }),
    };
    Ok((ours, theirs))
}

fn duplicate(fd: &OwnedFd) -> nix::Result<OwnedFd> {
    fd.try_clone()
        .map_err(|error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw))
}

fn set_nonblocking(fd: &OwnedFd) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// The peer sent input that it must not send: more than it was granted, or
/// after the end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unwanted;

/// The program's standard input, from our side.
#[derive(Debug)]
pub(crate) struct Input {
    /// `None` once the program cannot be given any more.
    fd: Option<Watched>,
    terminal: bool,
    buffer: VecDeque<u8>,
    /// What the peer may still send.
    window: u32,
    /// What the program took and the peer has not been told.
    credit: u32,
    /// No more comes after what is in the buffer.
    ended: bool,
    /// The last byte that the program was given.
    last: u8,
}

impl Input {
    /// Input through `fd`; without one, nothing may be sent.
    pub(crate) fn new(poller: &Poller, fd: Option<OwnedFd>, terminal: bool, token: u64) -> Self {
        Self {
            window: if fd.is_some() { STDIN_WINDOW } else { 0 },
            fd: fd.map(|fd| Watched::new(poller, fd, token)),
            terminal,
            buffer: VecDeque::new(),
            credit: 0,
            ended: false,
            last: b'\n',
        }
    }

    /// Takes bytes from the peer.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Unwanted> {
        let length = u32::try_from(bytes.len()).map_err(|_| Unwanted)?;
        if bytes.len() > MAX_DATA || self.ended {
            return Err(Unwanted);
        }
        self.window = self.window.checked_sub(length).ok_or(Unwanted)?;
        if self.fd.is_some() {
            self.buffer.extend(bytes);
        }
        Ok(())
    }

    /// No more bytes come.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Gives the program what it takes. Returns whether it has just turned out
    /// that it takes no more.
    pub(crate) fn pump(&mut self) -> bool {
        let Some(fd) = &self.fd else {
            return false;
        };
        while !self.buffer.is_empty() {
            match write(fd, self.buffer.as_slices().0) {
                Ok(n) => {
                    if let Some(last) = self.buffer.drain(..n).next_back() {
                        self.last = last;
                    }
                    self.credit = self.credit.saturating_add(u32::try_from(n).unwrap_or(0));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return false,
                Err(_) => {
                    self.close();
                    return true;
                }
            }
        }
        if self.ended {
            if self.terminal {
                self.end_of_file_key();
            }
            self.close();
        }
        false
    }

    /// On a terminal, end of file is a key. It ends the line if there is one
    /// and must be pressed again then. A program that has turned line mode off
    /// sees no end of file, as with a real terminal.
    fn end_of_file_key(&self) {
        let Some(fd) = &self.fd else { return };
        let Ok(mode) = tcgetattr(fd) else { return };
        if !mode.local_flags.contains(LocalFlags::ICANON) {
            return;
        }
        let key = mode
            .control_chars
            .get(SpecialCharacterIndices::VEOF as usize);
        let key = key.copied().unwrap_or(4);
        let keys = [key, key];
        let count = if self.last == b'\n' { 1 } else { 2 };
        let _ = write(fd, keys.get(..count).unwrap_or_default());
    }

    /// Whether the program closed its end; true once.
    pub(crate) fn closed_by_program(&mut self, events: EpollFlags) -> bool {
        // Without a terminal: a pipe without readers reports an error.
        let gone = self.fd.is_some() && !self.terminal && events.contains(EpollFlags::EPOLLERR);
        if gone {
            self.close();
        }
        gone
    }

    /// Stops for good; what the program did not take is dropped.
    pub(crate) fn close(&mut self) {
        self.fd = None;
        self.buffer = VecDeque::new();
    }

    /// What the peer may be told to have been taken.
    pub(crate) fn take_credit(&mut self) -> Option<u32> {
        let enough = self.credit >= CREDIT_STEP || (self.buffer.is_empty() && self.credit > 0);
        let credit = enough.then(|| std::mem::take(&mut self.credit))?;
        self.window = self.window.saturating_add(credit);
        Some(credit)
    }

    /// Watches for what it waits for: space if there is input, else only that
    /// the program closes its end.
    pub(crate) fn watch(&mut self) -> nix::Result<()> {
        let waiting = !self.buffer.is_empty();
        match &mut self.fd {
            None => Ok(()),
            Some(fd) if waiting => fd.watch(Some(EpollFlags::EPOLLOUT)),
            Some(fd) if self.terminal => fd.watch(None),
            Some(fd) => fd.watch(Some(EpollFlags::empty())),
        }
    }
}

/// What one read of a program's output brought.
pub(crate) enum Piece {
    /// This many bytes.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// No more will come.
    End,
}

/// One of a program's outputs, from our side.
#[derive(Debug)]
pub(crate) struct Output {
    /// `None` at the end.
    fd: Option<Watched>,
    /// Once the program has ended: how much may still be in the pipe. Whoever
    /// else holds it cannot keep the output from ending.
    rest: Option<usize>,
}

impl Output {
    pub(crate) fn new(poller: &Poller, fd: OwnedFd, token: u64) -> Self {
        Self {
            fd: Some(Watched::new(poller, fd, token)),
            rest: None,
        }
    }

    /// Reads once.
    pub(crate) fn read(&mut self, scratch: &mut [u8]) -> Piece {
        let Some(fd) = &self.fd else {
            return Piece::End;
        };
        let most = scratch
            .len()
            .min(MAX_DATA)
            .min(self.rest.unwrap_or(usize::MAX));
        let piece = match read(fd, scratch.get_mut(..most).unwrap_or_default()) {
            Ok(0) => Piece::End,
            Ok(n) => Piece::Bytes(n),
            Err(Errno::EAGAIN) if self.rest.is_some() => Piece::End,
            Err(Errno::EAGAIN | Errno::EINTR) => Piece::Nothing,
            // A terminal without a slave says so by EIO.
            Err(_) => Piece::End,
        };
        match (&piece, &mut self.rest) {
            (Piece::End, _) => self.fd = None,
            (Piece::Bytes(n), Some(rest)) => *rest = rest.saturating_sub(*n),
            _ => {}
        }
        piece
    }

    /// The program has ended: what is in the pipe now is the last of it.
    pub(crate) fn finish(&mut self) {
        if let (Some(fd), None) = (&self.fd, self.rest) {
            let size = fcntl(fd, FcntlArg::F_GETPIPE_SZ).ok();
            self.rest = Some(
                size.and_then(|n| usize::try_from(n).ok())
                    .unwrap_or(TERMINAL_BUFFER),
            );
        }
    }

    /// Whether everything was read.
    pub(crate) fn is_done(&self) -> bool {
        self.fd.is_none()
    }

    /// Watches for output, or, if there is no room for it, for nothing.
    pub(crate) fn watch(&mut self, room: bool) -> nix::Result<()> {
        match &mut self.fd {
            // At the end it is read on demand: there is no event for a pipe
            // that has no more to say but is held open by another program.
            Some(fd) if room && self.rest.is_none() => fd.watch(Some(EpollFlags::EPOLLIN)),
            Some(fd) => fd.watch(None),
            None => Ok(()),
        }
    }
}
