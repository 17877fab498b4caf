//! The connection of one operation, as its thread uses it: blocking.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use flashpan_protocol::agent::MAX_DATA;
use flashpan_protocol::file::{
    FileFailure, FileFailureKind, FileInput, FileOutput, FileRequest, MAX_FILE_FRAME,
};
use flashpan_protocol::frame::{self, Decoder};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

/// How long a connection may take to say what it wants, and to close when it
/// was told that nothing comes of it.
const START_WITHIN: Duration = Duration::from_secs(10);

/// Why an operation goes no further.
#[derive(Debug)]
pub(super) enum Stop {
    /// The supervisor has closed the connection or broken the protocol: nobody
    /// waits for an answer.
    Gone,
    /// It has to be told this.
    Failed(FileFailure),
}

/// A failure of a system call while doing `what`.
pub(super) fn failed(what: &str) -> impl FnOnce(Errno) -> Stop {
    move |errno| {
        Stop::Failed(FileFailure {
            kind: kind(errno),
            errno: errno as i32,
            message: format!("{what}: {}", errno.desc()),
        })
    }
}

/// A failure without a system call.
pub(super) fn refused(kind: FileFailureKind, message: &str) -> Stop {
    Stop::Failed(FileFailure {
        kind,
        errno: 0,
        message: message.to_owned(),
    })
}

pub(super) fn kind(errno: Errno) -> FileFailureKind {
    match errno {
        Errno::ENOENT => FileFailureKind::NotFound,
        Errno::EEXIST => FileFailureKind::Exists,
        Errno::ENOTDIR => FileFailureKind::NotADirectory,
        Errno::EISDIR => FileFailureKind::IsADirectory,
        Errno::ENOTEMPTY => FileFailureKind::NotEmpty,
        // That of a socket, or of a device without a driver.
        Errno::ENXIO | Errno::ENODEV => FileFailureKind::NotRegular,
        Errno::EACCES | Errno::EPERM => FileFailureKind::Permission,
        Errno::EROFS => FileFailureKind::ReadOnly,
        Errno::ENOSPC | Errno::EDQUOT => FileFailureKind::NoSpace,
        Errno::ENAMETOOLONG => FileFailureKind::BadRequest,
        Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE => FileFailureKind::Resources,
        _ => FileFailureKind::Other,
    }
}

/// A blocking stream of frames.
#[derive(Debug)]
pub(super) struct Link {
    socket: UnixStream,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Link {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            decoder: Decoder::new(MAX_FILE_FRAME),
            buffer: vec![0; MAX_DATA],
        }
    }

    /// The first message.
    pub(super) fn request(&mut self) -> Result<FileRequest, Stop> {
        let timed = |link: &Self, time| link.socket.set_read_timeout(time).map_err(|_| Stop::Gone);
        timed(self, Some(START_WITHIN))?;
        let FileInput::Start(request) = self.receive()? else {
            return Err(Stop::Gone);
        };
        // From here on the supervisor may take its time: its connection is its
        // own, and it can close it.
        timed(self, None)?;
        Ok(request)
    }

    /// The next message.
    pub(super) fn receive(&mut self) -> Result<FileInput, Stop> {
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(_) => return Err(Stop::Gone),
            }
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(n @ 1..) => self
                    .decoder
                    .extend(self.buffer.get(..n).unwrap_or_default()),
                Err(Errno::EINTR) => {}
                // The end, a failure, or a supervisor that says nothing.
                Ok(0) | Err(_) => return Err(Stop::Gone),
            }
        }
    }

    /// Sends `message`, waiting while the supervisor does not read.
    pub(super) fn send(&mut self, message: &FileOutput) -> Result<(), Stop> {
        let frame = frame::encode(message, MAX_FILE_FRAME).map_err(|_| Stop::Gone)?;
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            match send(self.socket.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(_) => return Err(Stop::Gone),
            }
        }
        Ok(())
    }

    /// [`Stop::Gone`] if the supervisor has gone away; for work that does not
    /// need the connection.
    pub(super) fn still_wanted(&mut self) -> Result<(), Stop> {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.socket.as_raw_fd(), &mut [0], flags) {
            Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Ok(0) | Err(_) => Err(Stop::Gone),
        }
    }

    /// To wait for the end of the connection.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends the last frame of an operation that failed, and waits until the
    /// supervisor has it: a socket that is closed with unread content in it may
    /// take back what it has sent.
    pub(super) fn fail(mut self, failure: FileFailure) {
        let told = self.send(&FileOutput::Failed(failure)).is_ok()
            && self.socket.shutdown(Shutdown::Write).is_ok()
            && self.socket.set_read_timeout(Some(START_WITHIN)).is_ok();
        // What was under way: data and its end.
        while told
            && matches!(
                recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()),
                Ok(1..)
            )
        {}
    }
}
