//! Our own standard streams, each served by a thread of its own.
//!
//! They may be files, pipes or terminals, shared with other programs, so they
//! cannot be made non-blocking: that would change them for everybody. A thread
//! that blocks holds back its own stream and nothing else. For the same reason
//! they may *be* non-blocking, because somebody else made them so: then a
//! thread waits until there is something to do ([`Patient`]).
//!
//! A terminal whose keys all go to the guest is read whether the guest takes them
//! or not: a guest that does not is the one that its user wants to be rid of.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::Instant;

use flashpan::{Output, Stdin};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{mpsc, oneshot};

use crate::escape::Escape;

/// How much is read from standard input at a time.
const CHUNK: usize = 32 * 1024;

/// Most keys that wait for a guest that does not take them; more than anybody
/// pastes. What comes then is lost, as it is on a terminal that nobody reads.
const MAX_KEYS: usize = 16 << 20;

/// A copy of a standard descriptor, without the buffer of `std`, that blocks
/// whether the descriptor does or not.
#[derive(Debug)]
pub(crate) struct Patient(File);

impl Patient {
    pub(crate) fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        fd.try_clone_to_owned().map(|fd| Self(fd.into()))
    }

    fn wait(&self, events: PollFlags) -> io::Result<()> {
        match poll(
            &mut [PollFd::new(self.0.as_fd(), events)],
            PollTimeout::NONE,
        ) {
            // An error or hang-up is what the next attempt finds.
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLIN)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLOUT)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Copies a program's output to one of our streams until either ends. The
/// result comes when the last byte is written.
pub(crate) fn copy_out(
    mut output: Output,
    to: impl AsFd,
) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let mut to = Patient::new(to.as_fd())?;
    let (sender, done) = oneshot::channel();
    thread::Builder::new()
        .name("output".to_owned())
        .spawn(move || {
            let result = loop {
                match output.blocking_next_chunk() {
                    Some(chunk) => match to.write_all(&chunk) {
                        Ok(()) => {}
                        Err(e) => break Err(e),
                    },
                    None => break Ok(()),
                }
            };
            // Nobody is waiting when the run has already ended.
            let _ = sender.send(result);
        })?;
    Ok(done)
}

/// What our standard input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Data: no more is read than the program takes.
    Data,
    /// Keys of a terminal in raw mode, one sequence of which ends the VM.
    Keys,
}

/// Why input is no longer copied although it has not ended.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// It could not be read. As long as this lives, the program does not take what
    /// it got for all.
    Broken {
        error: io::Error,
        _open: mpsc::Sender<Vec<u8>>,
    },
    /// The user asks for the end of the VM ([`Escape`]).
    Escaped,
}

/// Copies our standard input to a program's until either ends. News comes if that
/// is for another reason.
///
/// The thread may stay in its last `read`, so it can take one more piece of
/// input than the program used; nothing that reads ahead can avoid that.
pub(crate) fn copy_in(mut stdin: Stdin, input: Input) -> io::Result<oneshot::Receiver<Stopped>> {
    let from = Patient::new(io::stdin().as_fd())?;
    let (sender, chunks) = mpsc::channel::<Vec<u8>>(1);
    let (stopped, news) = oneshot::channel();
    thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || {
            if let Some(why) = read_all(from, sender, input) {
                // Nobody is waiting when the run has already ended.
                let _ = stopped.send(why);
            }
        })?;
    let mut chunks = match input {
        Input::Data => chunks,
        Input::Keys => pile_up(chunks),
    };
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = stdin.closed() => break,
                chunk = chunks.recv() => match chunk {
                    Some(chunk) => if stdin.write_all(&chunk).await.is_err() { break },
                    None => break,
                },
            }
        }
    });
    Ok(news)
}

/// Reads until the end, or until nobody wants more.
fn read_all(mut from: Patient, to: mpsc::Sender<Vec<u8>>, input: Input) -> Option<Stopped> {
    let mut escape = Escape::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        let chunk = match from.read(&mut buffer) {
            Ok(0) => return None,
            Ok(n) => buffer.get(..n).unwrap_or_default(),
            // A terminal that has hung up.
            Err(e) if e.raw_os_error() == Some(libc::EIO) && from.0.is_terminal() => return None,
            Err(error) => return Some(Stopped::Broken { error, _open: to }),
        };
        if input == Input::Keys && escape.is_completed_by(chunk, Instant::now()) {
            return Some(Stopped::Escaped);
        }
        if to.blocking_send(chunk.to_vec()).is_err() {
            return None;
        }
    }
}

/// Takes keys as fast as they come, and has them wait here for a guest that is
/// slower. When nobody takes them any more they are thrown away.
fn pile_up(mut keys: mpsc::Receiver<Vec<u8>>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, chunks) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut pile = Vec::new();
        loop {
            tokio::select! {
                more = keys.recv() => match more {
                    Some(more) if pile.len() + more.len() <= MAX_KEYS => pile.extend(more),
                    Some(_) => {}
                    None => break,
                },
                room = sender.reserve(), if !pile.is_empty() => match room {
                    Ok(room) => room.send(std::mem::take(&mut pile)),
                    Err(_) => break,
                },
            }
        }
        if !pile.is_empty() {
            // Nobody may want them any more.
            let _ = sender.send(pile).await;
        }
        drop(sender);
        while keys.recv().await.is_some() {}
    });
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a test as the command does its work: on one thread.
    fn runs(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        { runtime }.build().unwrap().block_on(test);
    }

    #[test]
    fn keys_wait_for_a_guest_that_takes_none_and_keep_their_order() {
        runs(async {
            let (keys, all) = mpsc::channel(1);
            let mut taken = pile_up(all);
            // Far more than there is room for on the way.
            for key in 0..=255_u8 {
                keys.send(vec![key; 100]).await.unwrap();
            }
            drop(keys);
            let mut got = Vec::new();
            while let Some(piece) = taken.recv().await {
                got.extend(piece);
            }
            let expected: Vec<u8> = (0..=255).flat_map(|key| vec![key; 100]).collect();
            assert_eq!(got, expected);
        });
    }

    #[test]
    fn keys_are_taken_whether_there_is_room_or_anybody_who_wants_them() {
        runs(async {
            let (keys, all) = mpsc::channel(1);
            let mut taken = pile_up(all);
            // One is on its way to the guest, and one waits to be.
            let piece = vec![b'x'; MAX_KEYS];
            for _ in 0..4 {
                keys.send(piece.clone()).await.unwrap();
            }
            assert_eq!(taken.recv().await, Some(piece.clone()));
            drop(taken);
            for _ in 0..4 {
                keys.send(piece.clone()).await.unwrap();
            }
        });
    }
}
