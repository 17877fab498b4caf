//! The control socket: the VMM's only connection to the world after start.
//!
//! [`Control`] sends and receives packets; [`ControlSubscriber`] turns those
//! of the supervisor into commands for the machine, and [`Control`] as an
//! [`Observer`] turns what the machine does into packets for the supervisor.
#![allow(unsafe_code)] // recvmsg(2) hands out raw descriptors, which are wrapped here.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use flashpan_protocol::control::{
    Event, ExitReason, ExitReport, MAX_FDS, MAX_PACKET, Request, Stats, VERSION, VmSpec, decode,
    encode,
};
use flashpan_protocol::frame::FrameError;
use thiserror::Error;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::vm::{Command, Observer, Resources, VmEvent, VmHandle};

/// Packets kept for a supervisor that does not read: what all of a guest's connections and
/// flows at once bring, of which one that the supervisor has opened brings most. More ends
/// the VM: it cannot be supervised.
const MAX_QUEUED: usize =
    3 * (flashpan_devices::vsock::MAX_CONNECTIONS + flashpan_devices::net::MAX_FLOWS);

/// Packets up to which marks of the guest's own are kept, and beyond which they
/// are dropped: a guest makes as many as it likes, and the room that is left is
/// for what matters.
const MAX_QUEUED_MARKS: usize = 64;

/// How long the last words may take a supervisor that does not read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the conversation with the supervisor ended.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The supervisor closed its end.
    #[error("the supervisor closed the control socket")]
    Closed,
    /// The socket failed.
    #[error("the control socket failed: {0}")]
    Io(#[from] io::Error),
    /// A packet was not understood.
    #[error("the supervisor sent a bad packet: {0}")]
    Frame(#[from] FrameError),
    /// A packet was cut off by the kernel, or carried too many descriptors.
    #[error("the supervisor sent a packet that is too long or has too many descriptors")]
    Truncated,
    /// The supervisor speaks another version.
    #[error("the supervisor speaks control protocol {theirs}, this VMM {VERSION}")]
    Version {
        /// Its version.
        theirs: u32,
    },
    /// The supervisor sent something else than expected.
    #[error("the supervisor sent {got} where {expected} was due")]
    Unexpected {
        /// What came.
        got: String,
        /// What should have come.
        expected: &'static str,
    },
    /// The number of descriptors does not fit the message.
    #[error("the supervisor sent {got} descriptors where {expected} were due")]
    Descriptors {
        /// How many came.
        got: usize,
        /// How many should have come.
        expected: usize,
    },
}

/// One received packet.
type Packet = (Request, Vec<OwnedFd>);

/// The VMM's end of the control socket. Clones share it.
#[derive(Debug, Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// A `SOCK_SEQPACKET` socket; the type only lends its calls.
    socket: UnixDatagram,
    queue: Mutex<VecDeque<(Vec<u8>, Option<OwnedFd>)>>,
    /// The queue was full: nothing is queued any more.
    overfull: AtomicBool,
    /// What to end when it is.
    vm: OnceLock<VmHandle>,
}

impl Control {
    /// Takes over the socket `fd`.
    ///
    /// # Errors
    /// If it is not a socket.
    pub fn new(fd: OwnedFd) -> Result<Self, ControlError> {
        let socket = UnixDatagram::from(fd);
        // Counts only while the socket is blocking.
        socket.set_write_timeout(Some(PATIENCE))?;
        let inner = Inner {
            socket,
            queue: Mutex::default(),
            overfull: AtomicBool::new(false),
            vm: OnceLock::new(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Exchanges hellos and waits for the order to boot, blocking.
    ///
    /// # Errors
    /// If the supervisor goes away or breaks the protocol.
    pub fn handshake(&self) -> Result<(VmSpec, Resources), ControlError> {
        match self.receive()?.ok_or(ControlError::Closed)? {
            (Request::Hello { version: VERSION }, _) => {}
            (Request::Hello { version }, _) => {
                return Err(ControlError::Version { theirs: version });
            }
            (other, _) => return Err(unexpected(&other, "a hello")),
        }
        self.send(&Event::Hello {
            version: VERSION,
            pid: std::process::id(),
        })?;
        match self.receive()?.ok_or(ControlError::Closed)? {
            (Request::Boot(spec), fds) => {
                let resources = sort(&spec, fds)?;
                Ok((*spec, resources))
            }
            (other, _) => Err(unexpected(&other, "the order to boot")),
        }
    }

    /// Sends `event`, blocking if the socket is. For the first and last words;
    /// in between, [`Observer::event`] queues.
    ///
    /// # Errors
    /// If the supervisor is gone.
    pub fn send(&self, event: &Event) -> Result<(), ControlError> {
        self.inner.socket.send(&packet(event)?)?;
        Ok(())
    }

    /// Makes the socket non-blocking, before the event loop takes it over.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn set_nonblocking(&self, nonblocking: bool) -> Result<(), ControlError> {
        Ok(self.inner.socket.set_nonblocking(nonblocking)?)
    }

    /// Sends what is queued, then `event`, blocking for some seconds: the last
    /// words.
    ///
    /// # Errors
    /// If the supervisor is gone, or does not read.
    pub fn finish(&self, event: &Event) -> Result<(), ControlError> {
        self.set_nonblocking(false)?;
        if !self.flush()? {
            return Err(not_read());
        }
        self.send(event)
    }

    /// The next packet; `None` if the socket is non-blocking and has none.
    fn receive(&self) -> Result<Option<Packet>, ControlError> {
        // One byte more than allowed, to notice a packet that is longer.
        let mut buffer = vec![0_u8; MAX_PACKET + 1];
        let mut raw: [RawFd; MAX_FDS] = [-1; MAX_FDS];
        let mut iovecs = [libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        }];
        // SAFETY: the iovec points to `buffer`, which outlives the call.
        let received = unsafe { self.inner.socket.recv_with_fds(&mut iovecs, &mut raw) };
        let (len, count) = match received {
            Ok(received) => received,
            Err(error) if matches!(error.errno(), libc::EAGAIN | libc::EINTR) => return Ok(None),
            Err(error) if error.errno() == libc::ECONNRESET => return Err(ControlError::Closed),
            Err(error) => return Err(io::Error::from_raw_os_error(error.errno()).into()),
        };
        let fds = raw.iter().take(count);
        // SAFETY: the kernel made these descriptors for us in this call.
        let fds: Vec<_> = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect();
        if len == 0 {
            return Err(ControlError::Closed);
        }
        if len > MAX_PACKET {
            return Err(ControlError::Truncated);
        }
        let request = decode(buffer.get(..len).unwrap_or_default())?;
        Ok(Some((request, fds)))
    }

    /// Sends queued packets until the socket is full; true if none is left.
    fn flush(&self) -> Result<bool, ControlError> {
        let mut queue = self
            .inner
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while let Some((packet, fd)) = queue.front() {
            let fd = fd.as_ref().map(|fd| fd.as_fd().as_raw_fd());
            match self
                .inner
                .socket
                .send_with_fds(&[packet.as_slice()], fd.as_slice())
            {
                Ok(_) => drop(queue.pop_front()),
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) if error.errno() == libc::EAGAIN => return Ok(false),
                Err(error) => return Err(io::Error::from_raw_os_error(error.errno()).into()),
            }
        }
        Ok(true)
    }

    /// Queues a packet and sends what can be sent. Packets that do not matter
    /// are dropped when the supervisor does not read; one that does ends the VM.
    fn queue(&self, event: &Event, fd: Option<OwnedFd>, matters: bool) {
        let Ok(packet) = packet(event) else { return };
        if self.inner.overfull.load(Ordering::Relaxed) {
            return;
        }
        let overfull = {
            let mut queue = self
                .inner
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let full = queue.len()
                >= if matters {
                    MAX_QUEUED
                } else {
                    MAX_QUEUED_MARKS
                };
            if !full {
                queue.push_back((packet, fd));
            }
            full && matters
        };
        if overfull && !self.inner.overfull.swap(true, Ordering::Relaxed) {
            if let Some(vm) = self.inner.vm.get() {
                let why = not_read().to_string();
                vm.send(Command::End(ExitReason::VmmError(why)));
            }
            return;
        }
        // Failure shows as a closed socket in the event loop.
        let _ = self.flush();
    }
}

/// Encodes an event; without its counters of exits if it would be too long with
/// them, because somebody waits for it.
fn packet(event: &Event) -> Result<Vec<u8>, FrameError> {
    let shorter = |stats: &Stats| Stats {
        exits: Vec::new(),
        ..stats.clone()
    };
    encode(event).or_else(|error| {
        let short = match event {
            Event::Stats(stats) => Event::Stats(Box::new(shorter(stats))),
            Event::Exited(report) => Event::Exited(Box::new(ExitReport {
                reason: report.reason.clone(),
                at_ns: report.at_ns,
                stats: shorter(&report.stats),
            })),
            _ => return Err(error),
        };
        encode(&short)
    })
}

fn not_read() -> ControlError {
    ControlError::Io(io::Error::other("the supervisor does not read"))
}

impl Observer for Control {
    fn event(&self, event: VmEvent) {
        match event {
            VmEvent::Phase(stamp) => self.queue(&Event::Phase(stamp), None, true),
            VmEvent::UserPhase { code, at_ns } => {
                self.queue(&Event::UserPhase { code, at_ns }, None, false);
            }
            VmEvent::Incoming { id, port, stream } => {
                self.queue(&Event::Incoming { id, port }, Some(stream.into()), true);
            }
            VmEvent::Connected { id } => self.queue(&Event::Connected { id }, None, true),
            VmEvent::Refused { id } => self.queue(&Event::Refused { id }, None, true),
            VmEvent::FlowAsked {
                id,
                protocol,
                tuple,
                socket,
            } => {
                let event = Event::FlowAsked {
                    id,
                    protocol,
                    tuple,
                };
                self.queue(&event, Some(socket), true);
            }
            VmEvent::FlowEnded { id, how } => {
                self.queue(&Event::FlowEnded { id, how }, None, true);
            }
            VmEvent::FlowOpened { id, flow } => {
                self.queue(&Event::FlowOpened { id, flow }, None, true);
            }
            VmEvent::FlowNotOpened { id, why } => {
                self.queue(&Event::FlowNotOpened { id, why }, None, true);
            }
            VmEvent::FlowFinished { id } => self.queue(&Event::FlowFinished { id }, None, true),
            VmEvent::Paused => self.queue(&Event::Paused, None, true),
            VmEvent::Resumed => self.queue(&Event::Resumed, None, true),
            VmEvent::Stats(stats) => self.queue(&Event::Stats(stats), None, true),
        }
    }
}

/// The descriptors of a [`Request::Boot`] in the order of the protocol.
fn sort(spec: &VmSpec, fds: Vec<OwnedFd>) -> Result<Resources, ControlError> {
    let console = spec.console != flashpan_protocol::control::Console::Off;
    let expected = 1 + usize::from(spec.initramfs) + usize::from(console) + spec.disks.len();
    if fds.len() != expected {
        return Err(ControlError::Descriptors {
            got: fds.len(),
            expected,
        });
    }
    let mut files = fds.into_iter().map(File::from);
    let missing = ControlError::Descriptors { got: 0, expected };
    Ok(Resources {
        kernel: files.next().ok_or(missing)?,
        initramfs: if spec.initramfs { files.next() } else { None },
        console: if console { files.next() } else { None },
        disks: files.collect(),
    })
}

/// The descriptor of a packet that has exactly one.
fn the_one(fds: Vec<OwnedFd>) -> Result<OwnedFd, ControlError> {
    let got = fds.len();
    let one = fds.into_iter().next().filter(|_| got == 1);
    one.ok_or(ControlError::Descriptors { got, expected: 1 })
}

fn unexpected(got: &Request, expected: &'static str) -> ControlError {
    let got = format!("{got:?}").chars().take(40).collect();
    ControlError::Unexpected { got, expected }
}

/// Serves the control socket in the event loop.
#[derive(Debug)]
pub struct ControlSubscriber {
    control: Control,
    vm: VmHandle,
}

impl ControlSubscriber {
    /// Orders that come over `control` go to `vm`, which ends when nobody reads
    /// what it has to say.
    ///
    /// # Errors
    /// If the host has no descriptor left.
    pub fn new(control: Control, vm: VmHandle) -> io::Result<Self> {
        // There is one machine in the life of a control socket.
        let _ = control.inner.vm.set(vm.try_clone()?);
        Ok(Self { control, vm })
    }

    /// Handles all packets that are there.
    fn serve(&self) -> Result<(), ControlError> {
        self.control.flush()?;
        while let Some((request, fds)) = self.control.receive()? {
            let command = match request {
                Request::Connect { id, port } => Command::Connect {
                    id,
                    port,
                    stream: the_one(fds)?.into(),
                },
                Request::FlowOpen { id, port } => Command::FlowOpen {
                    id,
                    port,
                    stream: the_one(fds)?.into(),
                },
                Request::Accept { id } => Command::Accept { id },
                Request::Reject { id } => Command::Reject { id },
                Request::FlowAccept { id } => Command::FlowAccept { id },
                Request::FlowRefuse { id, why } => Command::FlowRefuse { id, why },
                Request::FlowClose { id } => Command::FlowClose { id },
                Request::Pause => Command::Pause,
                Request::Resume => Command::Resume,
                Request::Stats => Command::Stats,
                Request::Kill => Command::End(ExitReason::Killed),
                Request::Hello { .. } | Request::Boot(_) => {
                    return Err(unexpected(&request, "an order to a running VM"));
                }
            };
            self.vm.send(command);
        }
        Ok(())
    }
}

impl MutEventSubscriber for ControlSubscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Edge-triggered: every wake-up drains both directions.
        let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        if let Err(error) = ops.add(Events::new(&self.control.inner.socket, events)) {
            let why = format!("could not watch the control socket: {error:?}");
            self.vm.send(Command::End(ExitReason::VmmError(why)));
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        match self.serve() {
            Ok(()) => {}
            Err(ControlError::Closed) => self.vm.send(Command::End(ExitReason::Killed)),
            Err(error) => {
                self.vm
                    .send(Command::End(ExitReason::VmmError(error.to_string())));
            }
        }
    }
}

#[cfg(test)]
mod tests;
