//! The boot connection: how PID 1 is told what to do and tells how it went.

use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use flashpan_protocol::agent::{
    BOOT_PORT, GuestConfig, GuestMessage, HOST_CID, HostMessage, MAGIC, MAX_FRAME, VERSION,
};
use flashpan_protocol::frame;
use flashpan_protocol::phase::ExitRequest;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, getsockopt, send, sockopt};

use crate::connection::{Connection, Received};
use crate::failure::{During, Failure};
use crate::poller::Poller;
use crate::{mounts, shutdown, sys, vsock};

/// How long the supervisor may take to answer. It has deadlines of its own and
/// ends the VM before; this one is for a supervisor that is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// How long the supervisor may take to close the connection after bad news.
const CLOSE_WITHIN_MS: i32 = 2000;

/// Token of the connection's events.
pub(crate) const TOKEN: u64 = 0;

/// The socket of the boot connection, for [`fatal`]; -1 if there is none. A
/// descriptor of its own, which is never closed: whatever fails drops the
/// connection on its way out.
static SOCKET: AtomicI32 = AtomicI32::new(-1);

/// The boot connection before the guest is set up.
#[derive(Debug)]
pub(crate) struct Boot {
    connection: Connection,
    deadline: Instant,
}

/// A connection on its way; there is other work to do meanwhile.
#[derive(Debug)]
pub(crate) struct Connecting {
    socket: OwnedFd,
    deadline: Instant,
}

impl Connecting {
    /// Begins to connect to the supervisor.
    pub(crate) fn start() -> Result<Self, Failure> {
        let seconds = i64::try_from(ANSWER_WITHIN.as_secs()).unwrap_or(i64::MAX);
        let socket = vsock::start_connect(HOST_CID, BOOT_PORT, seconds).during(CONNECT)?;
        Ok(Self {
            socket,
            deadline: Instant::now() + ANSWER_WITHIN,
        })
    }

    /// Waits until the connection stands and says hello.
    pub(crate) fn finish(self, poller: &Poller) -> Result<Boot, Failure> {
        wait(&self.socket, PollFlags::POLLOUT, self.deadline, CONNECT)?;
        match getsockopt(&self.socket, sockopt::SocketError).during(CONNECT)? {
            0 => {}
            error => return Err(Failure::system(CONNECT, Errno::from_raw(error))),
        }
        let for_the_worst = self.socket.try_clone().map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
            Failure::system(CONNECT, errno)
        })?;
        SOCKET.store(for_the_worst.into_raw_fd(), Ordering::Relaxed);
        let mut connection = Connection::new(poller, self.socket, TOKEN);
        let kernel_release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        connection.send(&GuestMessage::Hello {
            magic: MAGIC,
            version: VERSION,
            kernel_release,
        });
        Ok(Boot {
            connection,
            deadline: self.deadline,
        })
    }
}

const CONNECT: &str = "connect to the supervisor (vsock CID 2, port 1024)";
const CONFIGURE: &str = "receive the configuration from the supervisor";

impl Boot {
    /// Waits for the supervisor's hello and its configuration.
    pub(crate) fn configuration(&mut self) -> Result<GuestConfig, Failure> {
        match self.receive()? {
            HostMessage::Hello { version: VERSION } => {}
            HostMessage::Hello { version } => {
                let why = format!(
                    "it speaks version {version} of the protocol and this guest {VERSION}; use the guest init that came with it"
                );
                return Err(Failure::new(CONFIGURE, why));
            }
            _ => return Err(Failure::new(CONFIGURE, "its first message is not a hello")),
        }
        match self.receive()? {
            HostMessage::Configure(config) => Ok(*config),
            _ => Err(Failure::new(
                CONFIGURE,
                "its second message is not the configuration",
            )),
        }
    }

    fn receive(&mut self) -> Result<HostMessage, Failure> {
        let mut scratch = [0_u8; 4096];
        loop {
            match self.connection.next() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(error) => return Err(Failure::new(CONFIGURE, error.to_string())),
            }
            match self.connection.receive(&mut scratch) {
                Received::Bytes => {}
                Received::Nothing => {
                    wait(
                        &self.connection,
                        PollFlags::POLLIN,
                        self.deadline,
                        CONFIGURE,
                    )?;
                }
                Received::Closed => {
                    return Err(Failure::new(CONFIGURE, "it closed the connection"));
                }
            }
        }
    }

    /// The connection, for the life of the VM.
    pub(crate) fn into_connection(self) -> Connection {
        self.connection
    }
}

fn wait(
    socket: impl AsFd,
    events: PollFlags,
    deadline: Instant,
    what: &str,
) -> Result<(), Failure> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), events)], timeout) {
            Ok(0) => {
                let why = format!("no answer within {} s", ANSWER_WITHIN.as_secs());
                return Err(Failure::new(what, why));
            }
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::system(what, errno)),
        }
    }
}

/// Tells the supervisor, and the console, that the guest is lost, and powers
/// off.
///
/// The VM's end must not overtake the message: the supervisor closes the
/// connection when it has read it.
pub(crate) fn fatal(failure: Failure) -> ! {
    mounts::log(&failure.to_string());
    let socket = SOCKET.swap(-1, Ordering::Relaxed);
    let message = GuestMessage::Failed {
        what: failure.what,
        why: failure.why,
        errno: failure.errno,
    };
    if socket >= 0
        && let Ok(bytes) = frame::encode(&message, MAX_FRAME)
        && send(socket, &bytes, MsgFlags::MSG_NOSIGNAL) == Ok(bytes.len())
    {
        sys::wait_until_closed(socket, CLOSE_WITHIN_MS);
    }
    shutdown::leave(ExitRequest::PowerOff)
}

/// The descriptor by which [`fatal`] tells the supervisor; -1 if there is none.
pub(crate) fn last_word() -> i32 {
    SOCKET.load(Ordering::Relaxed)
}

/// Makes a bug end in [`fatal`] and not in the death of PID 1, which would
/// panic the guest's kernel without a word on why.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        fatal(Failure::new(
            "run the guest's init",
            format!("bug in flashpan-guest-init: {panic}"),
        ))
    }));
}
