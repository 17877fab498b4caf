//! Our own standard streams, each served by a thread of its own.
//!
//! They may be files, pipes or terminals, shared with other programs, so they
//! cannot be made non-blocking: that would change them for everybody. A thread
//! that blocks holds back its own stream and nothing else. For the same reason
//! they may *be* non-blocking, because somebody else made them so: then a
//! thread waits until there is something to do ([`Patient`]).

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use flashpan::{Output, Stdin};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{mpsc, oneshot};

/// How much is read from standard input at a time.
const CHUNK: usize = 32 * 1024;

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

/// Our standard input could not be read to its end. As long as this lives, the
/// program does not take what it got for all.
#[derive(Debug)]
pub(crate) struct BrokenInput {
    pub(crate) error: io::Error,
    _open: mpsc::Sender<Vec<u8>>,
}

/// Copies our standard input to a program's until either ends. An error comes
/// when it could not be read: what the program got is not all there is.
///
/// The thread may stay in its last `read`, so it can take one more piece of
/// input than the program used; nothing that reads ahead can avoid that.
pub(crate) fn copy_in(mut stdin: Stdin) -> io::Result<oneshot::Receiver<BrokenInput>> {
    let mut from = Patient::new(io::stdin().as_fd())?;
    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(1);
    let (failed, failure) = oneshot::channel();
    thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || {
            let mut buffer = vec![0; CHUNK];
            loop {
                match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => {
                        let chunk = buffer.get(..n).unwrap_or_default().to_vec();
                        if sender.blocking_send(chunk).is_err() {
                            break;
                        }
                    }
                    // A terminal that has hung up.
                    Err(e) if e.raw_os_error() == Some(libc::EIO) && from.0.is_terminal() => break,
                    Err(e) => {
                        // Nobody is waiting when the run has already ended.
                        let _ = failed.send(BrokenInput {
                            error: e,
                            _open: sender,
                        });
                        break;
                    }
                }
            }
        })?;
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
    Ok(failure)
}
