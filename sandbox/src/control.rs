//! The supervisor's end of the control socket: packets and the descriptors
//! that travel with them.
#![allow(unsafe_code)] // Received descriptors come as numbers and have to be given an owner;
// and tokio wants a promise that a descriptor stays open while it watches it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use flashpan_protocol::control::{self, Event, Request};
use flashpan_protocol::frame::FrameError;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Most descriptors that the kernel passes in one packet (`SCM_MAX_FD`). The
/// buffer has room for all, so that none is ever installed without an owner.
const SCM_MAX_FD: usize = 253;

/// A packet ready to be sent.
#[derive(Debug)]
pub(crate) struct Packet {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Packet {
    /// Encodes `request` with the descriptors that belong to it. They are
    /// closed here once the packet is sent.
    pub(crate) fn new(request: &Request, fds: Vec<OwnedFd>) -> Result<Self, FrameError> {
        Ok(Self {
            bytes: control::encode(request)?,
            fds,
        })
    }
}

/// What came from the VMM.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) event: Event,
    pub(crate) fds: Vec<OwnedFd>,
}

/// The control socket.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: AsyncFd<OwnedFd>,
}

impl Channel {
    /// A connected pair: our end, and the one for the VMM (blocking).
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        // Not SOCK_NONBLOCK above: that would hold for both ends.
        nix::fcntl::fcntl(
            &ours,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )?;
        // SAFETY: an OwnedFd keeps the same descriptor open for its whole life.
        let socket = unsafe { AsyncFd::register(ours) }?;
        Ok((Self { socket }, theirs))
    }

    /// Sends a packet; waits while the VMM does not read. Cancel safe: either
    /// all of it was sent or nothing.
    pub(crate) async fn send(&self, packet: &Packet) -> io::Result<()> {
        self.socket
            .async_io(Interest::WRITABLE, |socket| send_now(socket, packet))
            .await
    }

    /// The next packet, or `None` when the VMM has closed its end. Cancel safe.
    ///
    /// # Errors
    /// If the socket fails or the packet is not an event.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> Result<Option<Received>, FrameError> {
        let received = self
            .socket
            .async_io(Interest::READABLE, |socket| receive_now(socket, buffer))
            .await;
        let (length, fds) = match received {
            Ok(received) => received,
            // A VMM that dies with unread packets in its queue resets the pair.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if length == 0 {
            return Ok(None);
        }
        let event = control::decode(buffer.get(..length).unwrap_or_default())?;
        Ok(Some(Received { event, fds }))
    }
}

fn send_now(socket: &OwnedFd, packet: &Packet) -> io::Result<()> {
    let fds: Vec<RawFd> = packet.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let ancillary = if fds.is_empty() { &[][..] } else { &rights[..] };
    let bytes = [IoSlice::new(&packet.bytes)];
    loop {
        let sent = sendmsg::<()>(
            socket.as_fd().as_raw_fd(),
            &bytes,
            ancillary,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        match sent {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn receive_now(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut ancillary = cmsg_space!([RawFd; SCM_MAX_FD]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = loop {
        let received = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut ancillary),
            MsgFlags::MSG_CMSG_CLOEXEC,
        );
        match received {
            Ok(message) => break message,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    };
    let mut fds = Vec::new();
    // There is room for all that a packet can have: an error here means that this process
    // may have no more descriptors, and that the one of the packet did not arrive.
    for part in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            for number in numbers {
                // SAFETY: the kernel just installed this descriptor for us, and
                // this is the only place that learns its number.
                fds.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(io::Error::other(
            "packet is longer than the protocol allows",
        ));
    }
    Ok((message.bytes, fds))
}
