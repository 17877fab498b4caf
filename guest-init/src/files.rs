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
//!
//! Nor do they share descriptors with the loop: a child would get a copy of a file
//! that a thread has open, and closing that waits for its file system too, for ever
//! and past SIGKILL if it is FUSE and does not answer. No program would start any
//! more.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use flashpan_protocol::file::{FileFailure, FileFailureKind, FileOutput, MAX_FILE_FRAME};
use flashpan_protocol::frame;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::pipe2;

use crate::poller::{Poller, Watched};
use crate::{boot, sys};

mod link;
mod place;
mod read;
mod tree;
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
    workers: Vec<Worker>,
    /// The VM ends: what would begin now could not be completed, nor cleared away.
    ending: bool,
}

#[derive(Debug)]
struct Worker {
    /// That of its connection.
    id: u64,
    /// To end it. Any stream socket: the type is for its methods.
    socket: UnixStream,
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
        if self.ending {
            return refuse(&socket, "the guest is shutting down".to_owned());
        }
        if self.workers.len() >= FILES_MAX {
            let message = format!(
                "the guest already works on {FILES_MAX} files; wait for one of them, \
                 or end the VM if none ends"
            );
            return refuse(&socket, message);
        }
        match root.and_then(|root| start(&socket, &root, poller, token)) {
            Ok(done) => {
                let _done = done;
                self.workers.push(Worker { id, socket, _done });
            }
            Err(errno) => refuse(&socket, format!("start a thread for it: {}", errno.desc())),
        }
    }

    /// The thread of connection `id` has ended. Returns whether there was one.
    pub(crate) fn ended(&mut self, id: u64) -> bool {
        let place = self.workers.iter().position(|worker| worker.id == id);
        place.map(|place| self.workers.swap_remove(place)).is_some()
    }

    /// Ends all operations where they are, but for those that hang; there are no
    /// more from now on.
    pub(crate) fn kill_all(&mut self) {
        self.ending = true;
        for worker in &self.workers {
            let _ = worker.socket.shutdown(Shutdown::Both);
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.workers.is_empty()
    }
}

/// Starts the thread; returns what hangs up when it ends.
fn start(socket: &UnixStream, root: &OwnedFd, poller: &Poller, token: u64) -> nix::Result<Watched> {
    socket
        .set_nonblocking(false)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
    let (done, alive) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let mut done = Watched::new(poller, done, token);
    done.watch(Some(EpollFlags::EPOLLIN))?;
    let thread = std::thread::Builder::new()
        .name("file".to_owned())
        .stack_size(STACK);
    let fds = [socket.as_fd(), root.as_fd(), alive.as_fd()];
    sys::thread_apart(thread, fds, boot::last_word(), |[socket, root, alive]| {
        work::serve(socket.into(), &root);
        drop((root, alive));
    })?;
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

#[cfg(test)]
mod tests;
