//! virtio-vsock: stream sockets between guest and host (virtio 1.2 §5.10).
//!
//! The host's side of every connection is a UNIX stream socket that was handed
//! in ([`Vsock::connect`]) or that the device makes as a pair and hands out
//! ([`VsockEvent::Incoming`]): the process that runs the device may neither
//! `socket()` nor `connect()`.
//!
//! ```text
//!   tx ring ──► handler ──► connection ──► host stream     (guest → host)
//!   rx ring ◄── handler ◄── connection ◄── host stream     (host → guest)
//! ```
//!
//! * `packet` – the header; `connection` – the state machine and the credit of
//!   one connection, without I/O; `table` – all connections, by id and ports;
//! * `rings` – the three queues as sources and sinks of packets;
//! * `handler` – moves packets between rings and connections;
//! * `device` and `subscriber` – the faces towards transport and event loop.
//!
//! # Back-pressure
//!
//! Guest to host: data goes from guest memory into the stream in one copy. What
//! the stream does not take is kept, at most the credit that was promised; a
//! guest that sends more is reset. Host to guest: the stream is read only into
//! buffers and credit that the guest has given, so that a guest that gives none
//! costs no memory and, since the stream is then not waited for, no time.

mod connection;
mod device;
mod handler;
mod metrics;
mod packet;
mod rings;
mod subscriber;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use device::Vsock;
pub use metrics::Metrics;
pub use subscriber::VsockSubscriber;

/// Device type 19 (virtio 1.2 §5.10.1).
pub const DEVICE_TYPE: u32 = 19;

/// Sizes of the rx, tx and event queue, in descriptors.
pub const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

/// Connections that may exist at once, those being made or closed included.
pub const MAX_CONNECTIONS: usize = 1024;

/// RST packets that wait for a receive buffer; more are dropped, which costs
/// the guest a time-out.
const MAX_PENDING_RSTS: usize = 1024;

/// Credit promised to a connection, in bytes: what Linux sets aside on its own
/// side, and then also the most that it sends unacknowledged.
const BUF_ALLOC: u32 = 256 * 1024;

/// Credit promised once [`MAX_LARGE_PROMISES`] bytes are promised.
const SMALL_BUF_ALLOC: u32 = 16 * 1024;

/// Promises of [`BUF_ALLOC`] are made up to this sum. With the small ones of
/// all other connections, a guest can make the device hold 32 MiB.
const MAX_LARGE_PROMISES: usize = 16 * 1024 * 1024;

/// Payload moved in each direction before the event loop gets its turn again.
const BYTES_PER_RUN: usize = 256 * 1024;
/// Packets moved in each direction before the event loop gets its turn again.
const PACKETS_PER_RUN: usize = 256;
/// Payload that one connection may give to the guest before the next one's turn.
const BYTES_PER_TURN: usize = 64 * 1024;

/// How long the device waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadlines {
    /// For the guest to answer [`Vsock::connect`].
    pub(crate) connect: Duration,
    /// For the host to answer [`VsockEvent::Incoming`].
    pub(crate) answer: Duration,
    /// For the guest to confirm a disconnect with RST. Linux waits 8 s itself.
    pub(crate) close: Duration,
    /// For the guest to take notice of a transport reset.
    pub(crate) transport_reset: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(10),
            close: Duration::from_secs(8),
            transport_reset: Duration::from_secs(2),
        }
    }
}

/// What the device tells the host.
#[derive(Debug)]
pub enum VsockEvent {
    /// A program in the guest connects to `port` on the host. Answer with
    /// [`Vsock::accept`] or [`Vsock::reject`] within 10 seconds, after which it
    /// is rejected. Closing `stream` is no answer: a host may write, accept and
    /// close, and the guest gets what was written.
    Incoming {
        /// Names the connection in the answer. Counted by the device, and of no
        /// relation to the ids given to [`Vsock::connect`].
        id: u64,
        /// The host port, chosen by the guest.
        port: u32,
        /// The host's end. Data may be written before the answer.
        stream: UnixStream,
    },
    /// The guest accepted the connection of [`Vsock::connect`].
    Connected {
        /// As given to [`Vsock::connect`].
        id: u64,
    },
    /// The connection of [`Vsock::connect`] was not made: nothing listens on
    /// the port, the guest did not answer within 10 seconds, it was reset, the
    /// host closed its end, or there are [`MAX_CONNECTIONS`] already. The
    /// stream is closed.
    Refused {
        /// As given to [`Vsock::connect`].
        id: u64,
    },
}

/// Why a device was not made.
#[derive(Debug, Error)]
pub enum VsockError {
    /// The CID is reserved or does not fit (virtio 1.2 §5.10.4).
    #[error("{0} cannot be the CID of a guest: give one from 3 to 4294967294")]
    GuestCid(u64),
    /// The host refused a resource.
    #[error("could not {what} for the vsock device: {error}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

/// The state of the device that outlives a snapshot. Connections do not: they
/// are reset in the guest after a restore, as their host ends are gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// Host port and guest port of every connection that was open, being made
    /// or being closed.
    pub open: Vec<(u32, u32)>,
    /// The host port where the search for a free one goes on, so that ports are
    /// not used again too soon.
    pub next_port: u32,
}
