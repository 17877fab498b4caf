//! Becoming a process that belongs to nobody's terminal, and the channel to who started
//! it.
#![allow(unsafe_code)] // close_range(2) has no safe wrapper, as descriptors have owners.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;

use flashpan_protocol::frame::{self, Decoder};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::{Error, Result};
use crate::state::Vms;
use crate::supervise::start::{
    MAX_MESSAGE, MAX_ORDER, NotStarted, Order, Report, TEXT_MAX, WARNINGS_MAX,
};
use crate::text::one_line;

/// First descriptor that is no standard stream.
const FIRST: libc::c_uint = 3;

/// The process that started this one, until the VM is ready.
#[derive(Debug)]
pub struct Starter {
    stream: UnixStream,
}

/// The same for the event loop.
#[derive(Debug)]
pub(super) struct Channel(tokio::net::UnixStream);

impl Starter {
    /// Makes this process a supervisor: it has the channel to its starter on standard
    /// input, leaves the session and the directory that it was started in, closes
    /// every descriptor but standard error, and has nothing on its other standard
    /// streams. Has to be called before anything else: descriptors that this process
    /// opened are closed as well.
    ///
    /// # Errors
    /// It was not started by [`super::start()`].
    pub fn take() -> Result<Self> {
        let become_one = "become the supervisor of a VM";
        // SAFETY: descriptors from 3 on are what this process inherited; as said above
        // nothing in it has opened any yet, so none has an owner here.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) };
        if closed != 0 {
            return Err(Error::host(become_one)(io::Error::last_os_error()));
        }
        let stdin = io::stdin();
        let is_stream =
            getsockopt(&stdin, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
        if !is_stream {
            return Err(Error::config(
                "supervise",
                "this is what `flashpan start` runs; it is of no use to anybody else",
            ));
        }
        let stream = stdin
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::host(become_one))?;
        let null = null().map_err(Error::host(become_one))?;
        dup2_stdin(&null).map_err(Error::host(become_one))?;
        dup2_stdout(&null).map_err(Error::host(become_one))?;
        // It fails if it leads a group already, and then it has its own session.
        let _ = setsid();
        chdir("/").map_err(Error::host(become_one))?;
        Ok(Self {
            stream: stream.into(),
        })
    }

    /// What is to be done. `None` if the starter is gone.
    pub(super) fn order(&mut self) -> Option<(Order, Vms)> {
        let mut decoder = Decoder::new(MAX_ORDER);
        let order = decoder.read_message::<Order>(&mut self.stream);
        let order = order.ok().flatten()?;
        let base = OsString::from_vec(order.base.clone());
        Some((order, Vms::at(base)))
    }

    pub(super) fn channel(self) -> Result<Channel> {
        let watch = "watch who started the VM";
        self.stream
            .set_nonblocking(true)
            .map_err(Error::host(watch))?;
        let stream = tokio::net::UnixStream::from_std(self.stream);
        stream.map(Channel).map_err(Error::host(watch))
    }
}

impl Channel {
    /// Returns when the starter has ended. Cancel safe.
    pub(super) async fn gone(&mut self) {
        let mut nothing = [0; 64];
        while matches!(self.0.read(&mut nothing).await, Ok(1..)) {}
    }

    /// Says that the VM is ready; whether the starter was still there.
    pub(super) async fn ready(mut self, warnings: Vec<String>) -> bool {
        // From here on nobody may hear anything from this process.
        if let Ok(null) = null() {
            let _ = dup2_stderr(null);
        }
        let warnings = warnings.into_iter().take(WARNINGS_MAX);
        let warnings = warnings.map(|text| one_line(&text, TEXT_MAX)).collect();
        self.say(&Report::Ready { warnings }).await
    }

    pub(super) async fn failed(mut self, why: &NotStarted) {
        let report = Report::Failed {
            code: why.code,
            message: one_line(&why.message, TEXT_MAX),
        };
        // Whoever is gone does not want to know.
        self.say(&report).await;
    }

    async fn say(&mut self, report: &Report) -> bool {
        match frame::encode(report, MAX_MESSAGE) {
            Ok(frame) => self.0.write_all(&frame).await.is_ok(),
            Err(_) => false,
        }
    }
}

fn null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null")
}
