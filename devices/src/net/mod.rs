//! virtio-net with a TCP/IP stack behind it (virtio 1.2 §5.1).
//!
//! Frames of the guest end here. What the host sees are *flows*: TCP connections and
//! conversations by UDP, each of which is asked for ([`NetEvent::Asked`]) before it
//! exists, and then is one of the two ends of a socket pair. The process that runs the
//! device may neither `socket()` nor `connect()`.
//!
//! * `device` – the faces towards transport and event loop; `rings` – the queues as a
//!   source and a sink of frames; `header` – what precedes a frame in a
//!   ring;
//! * `stack` – frames to flows and back, without a ring: a test or a benchmark can put
//!   it behind anything that carries frames.
//!
//! `docs/network.md` says what holds for a flow.

mod device;
pub mod header;
mod rings;
pub mod stack;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use flashpan_protocol::network::{End, Link, NotOpened, Protocol, Tuple};
use thiserror::Error;

pub use device::{Net, RingMetrics};
pub use stack::{Frame, Metrics, Offload, Stack};

/// Device type 1 (virtio 1.2 §5.1.1).
pub const DEVICE_TYPE: u32 = 1;

/// Sizes of the rx and the tx queue, in descriptors.
pub const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Flows that may exist at once, those that are being asked for included.
pub const MAX_FLOWS: usize = 12_000;

/// Flows that may be asked for at once, of streams and of datagrams each. A guest that opens more has to ask again: its
/// SYN is dropped.
pub const MAX_ASKED: usize = 1024;

/// What the device tells the host.
#[derive(Debug)]
pub enum NetEvent {
    /// The guest wants this flow. Answer with [`Stack::accept`] or [`Stack::refuse`].
    Asked {
        /// Names it in the answer.
        id: u64,
        /// What it is made of.
        protocol: Protocol,
        /// From whom to whom.
        tuple: Tuple,
        /// The host's end. What is written to it before the answer waits for it.
        socket: OwnedFd,
    },
    /// The guest has accepted what [`Stack::open`] asked for.
    Opened {
        /// The caller's number of it.
        request: u64,
        /// Names the flow from here on.
        id: u64,
    },
    /// There is no flow for [`Stack::open`].
    NotOpened {
        /// The caller's number of it.
        request: u64,
        /// Why.
        why: NotOpened,
    },
    /// In a flow that was opened the guest sends no more, and the host's end has all that
    /// it has sent.
    Finished {
        /// Its name.
        id: u64,
    },
    /// A flow that was accepted or opened exists no more; or one that was asked for and that the
    /// guest has given up.
    Ended {
        /// Its name.
        id: u64,
        /// How.
        how: End,
    },
}

/// Why a stack was not made.
#[derive(Debug, Error)]
pub enum NetError {
    /// The packet size is none that a link can have.
    #[error("{0} bytes cannot be the MTU of a network: give 576 to 65520")]
    Mtu(u16),
    /// The host refused a resource.
    #[error("could not {what} for the network device: {error}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

/// The mask of the network's part of the link's IPv4 addresses.
fn mask4(link: &Link) -> Ipv4Addr {
    let host = 32_u32.saturating_sub(link.prefix4.into());
    Ipv4Addr::from_bits(u32::MAX.checked_shl(host).unwrap_or(0))
}

/// The gateway's address on the link, made from its link address (RFC 4291 appendix A).
fn gateway_link_local(link: &Link) -> Ipv6Addr {
    let [a, b, c, d, e, f] = link.gateway_mac;
    let pair = |high, low| u16::from_be_bytes([high, low]);
    let (first, second) = (pair(a ^ 2, b), pair(c, 0xff));
    Ipv6Addr::new(0xfe80, 0, 0, 0, first, second, pair(0xfe, d), pair(e, f))
}
