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

use thiserror::Error;

pub use device::{Net, RingMetrics};
pub use stack::{Frame, Metrics, Offload, Stack, Tuple};

/// Device type 1 (virtio 1.2 §5.1.1).
pub const DEVICE_TYPE: u32 = 1;

/// Sizes of the rx and the tx queue, in descriptors.
pub const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Flows that may exist at once, those that are being asked for included.
pub const MAX_FLOWS: usize = 12_000;

/// Flows that may be asked for at once. A guest that opens more has to ask again: its
/// SYN is dropped.
pub const MAX_ASKED: usize = 256;

/// Smallest and largest packet of the link: what IPv6 needs, and what a length of 16
/// bits can say.
pub const MTU: std::ops::RangeInclusive<u16> = 1280..=65_520;

/// Addresses of the link between the guest and its gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Link address of the guest's card.
    pub guest_mac: [u8; 6],
    /// Link address of the gateway.
    pub gateway_mac: [u8; 6],
    /// The guest, for DHCP.
    pub guest4: Ipv4Addr,
    /// The gateway.
    pub gateway4: Ipv4Addr,
    /// Bits of the network's part of both, at most 32.
    pub prefix4: u8,
    /// The gateway.
    pub gateway6: Ipv6Addr,
}

impl Addresses {
    /// The network's part of the IPv4 addresses.
    #[must_use]
    pub fn mask4(&self) -> Ipv4Addr {
        let host = 32_u32.saturating_sub(self.prefix4.into());
        Ipv4Addr::from_bits(u32::MAX.checked_shl(host).unwrap_or(0))
    }

    /// The gateway's address on the link, made from its link address (RFC 4291
    /// appendix A).
    #[must_use]
    pub fn gateway_link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.gateway_mac;
        let pair = |high, low| u16::from_be_bytes([high, low]);
        let (first, second) = (pair(a ^ 2, b), pair(c, 0xff));
        Ipv6Addr::new(0xfe80, 0, 0, 0, first, second, pair(0xfe, d), pair(e, f))
    }
}

/// What a flow is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A stream: the socket pair is of streams.
    Tcp,
    /// Datagrams: the socket pair is of datagrams, one for one.
    Udp,
}

/// What the guest gets instead of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing listens there: a reset, or "port unreachable" for UDP.
    Reset,
    /// "Host unreachable".
    Host,
    /// "Network unreachable".
    Network,
    /// "Administratively prohibited".
    Prohibited,
    /// No answer at all.
    Silence,
}

/// How a flow ended that existed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order, by both sides.
    Closed,
    /// By a reset of the guest, or because the host's end was closed in the middle.
    Reset,
    /// Nothing happened for too long.
    Idle,
}

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
    /// A flow that was accepted exists no more; or one that was asked for and that the
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
    #[error("{0} bytes cannot be the MTU of a network: give 1280 to 65520")]
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
