//! All file connections: the conversation of [`flashpan_protocol::file`].
//!
//! Each is served by a thread of its own that blocks as it likes: on the
//! supervisor, on a slow disk, or for ever on a FUSE file system that a program
//! has mounted and does not serve. The loop of PID 1 only starts it, counts it
//! and hears of its end.
//!
//! A thread and not a process: a child would hold open what PID 1 closes
//! (other programs' input) until it has cleaned up, would be taken for a
//! program's orphan and be ended with them, and would have to know what of PID
//! 1's memory it may still use. All that a child has over a thread is that it
//! can be killed while it hangs. A thread that hangs takes one of
//! [`FILES_MAX`] places for the rest of the VM's life: whoever runs in the
//! guest can make its files unusable for the supervisor, which learns that from
//! an answer, and nothing else. It could have removed them as well.
//!
//! Threads do without any lock that the loop takes, but for the allocator's,
//! under which nothing blocks. Programs are started by a fork that does not
//! rely on locks ([`crate::sys::fork_into`]).

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flashpan_protocol::file::{FileFailure, FileFailureKind, FileOutput, MAX_FILE_FRAME};
use flashpan_protocol::frame;
use nix::fcntl::OFlag;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::pipe2;

use crate::poller::{Poller, Watched};

mod copy;
mod link;
mod place;
mod read;
mod tree;
mod watch;
mod work;
mod write;

/// Most operations at a time. Each takes a few descriptors (a removal one more
/// for each level of directories) and less than 1 MiB of PID 1's memory.
pub(crate) const FILES_MAX: usize = 32;

/// Stack of a thread. Nothing here recurses.
const STACK: usize = 256 * 1024;

/// The operations that are under way.
#[derive(Debug, Default)]
pub(crate) struct Files {
    workers: BTreeMap<u64, Worker>,
}

#[derive(Debug)]
struct Worker {
    /// To end it. Any stream socket: the type is for its methods.
    socket: UnixStream,
    /// Whether it goes on until it is ended.
    watching: Arc<AtomicBool>,
    /// Hangs up when the thread has ended.
    _done: Watched,
}

impl Files {
    /// Serves a new connection, a non-blocking stream socket. Its end is an
    /// event with `token`, after which [`Files::ended`] has to be called with
    /// `id`. `root` is the directory in which paths are looked up.
    pub(crate) fn connect(
        &mut self,
        (id, token): (u64, u64),
        socket: OwnedFd,
        root: nix::Result<OwnedFd>,
        poller: &Poller,
    ) {
        let socket = UnixStream::from(socket);
        if self.workers.len() >= FILES_MAX {
            let message = format!(
                "the guest already works on {FILES_MAX} files; wait for one of them, \
                 or end the VM if none ends"
            );
            return refuse(&socket, message);
        }
        let watching = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&watching);
        match root.and_then(|root| start(&socket, root, theirs, poller, token)) {
            Ok(done) => {
                let worker = Worker {
                    socket,
                    watching,
                    _done: done,
                };
                self.workers.insert(id, worker);
            }
            Err(errno) => refuse(&socket, format!("start a thread for it: {}", errno.desc())),
        }
    }

    /// The thread of connection `id` has ended. Returns whether there was one.
    pub(crate) fn ended(&mut self, id: u64) -> bool {
        self.workers.remove(&id).is_some()
    }

    /// Ends those that would not end by themselves.
    pub(crate) fn end_watches(&self) {
        for worker in self.workers.values() {
            if worker.watching.load(Ordering::Acquire) {
                let _ = worker.socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// Ends all operations where they are, but for those that hang.
    pub(crate) fn kill_all(&self) {
        for worker in self.workers.values() {
            let _ = worker.socket.shutdown(Shutdown::Both);
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.workers.is_empty()
    }
}

/// Starts the thread; returns what hangs up when it ends.
fn start(
    socket: &UnixStream,
    root: OwnedFd,
    watching: Arc<AtomicBool>,
    poller: &Poller,
    token: u64,
) -> nix::Result<Watched> {
    let socket = socket.try_clone().map_err(|error| errno(&error))?;
    socket
        .set_nonblocking(false)
        .map_err(|error| errno(&error))?;
    let (done, alive) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let mut done = Watched::new(poller, done, token);
    done.watch(Some(EpollFlags::EPOLLIN))?;
    std::thread::Builder::new()
        .name("file".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            work::serve(socket, &root, &watching);
            drop(alive);
        })
        .map_err(|error| errno(&error))?;
    Ok(done)
}

/// Says no without waiting: the one frame fits into any socket.
fn refuse(socket: &UnixStream, message: String) {
    let failure = FileFailure {
        kind: FileFailureKind::Resources,
        errno: 0,
        message,
    };
    if let Ok(frame) = frame::encode(&FileOutput::Failed(failure), MAX_FILE_FRAME) {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let _ = send(socket.as_raw_fd(), &frame, flags);
    }
}

fn errno(error: &std::io::Error) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

#[cfg(test)]
mod tests;
