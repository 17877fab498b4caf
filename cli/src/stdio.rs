//! Our own standard streams, each served by a thread of its own.
//!
//! They may be files, pipes or terminals, shared with other programs, so they
//! cannot be made non-blocking: that would change them for everybody. A thread
//! that blocks holds back its own stream and nothing else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use flashpan::{Output, Stdin};
use tokio::sync::{mpsc, oneshot};

/// How much is read from standard input at a time.
const CHUNK: usize = 32 * 1024;

/// A copy of a standard descriptor as a file, without the buffer of `std`.
fn unbuffered(fd: BorrowedFd<'_>) -> io::Result<File> {
    fd.try_clone_to_owned().map(File::from)
}

/// Copies a program's output to one of our streams until either ends. The
/// result comes when the last byte is written.
pub(crate) fn copy_out(
    mut output: Output,
    to: impl AsFd,
) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let mut to = unbuffered(to.as_fd())?;
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

/// Copies our standard input to a program's until either ends.
///
/// The thread may stay in its last `read`, so it can take one more piece of
/// input than the program used; nothing that reads ahead can avoid that.
pub(crate) fn copy_in(mut stdin: Stdin) -> io::Result<()> {
    let mut from = unbuffered(io::stdin().as_fd())?;
    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(1);
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
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // A terminal that has hung up, for one: the input has ended.
                    Err(_) => break,
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
    Ok(())
}
