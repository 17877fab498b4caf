//! The guest's network, as far as supervisor, VMM and guest have to agree on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Smallest and largest packet of the link: what every host takes (RFC 1122), and what a
/// length of 16 bits can say with room for headers.
pub const MTU: std::ops::RangeInclusive<u16> = 576..=65_520;

/// The least largest packet of a link with IPv6 (RFC 8200).
const MTU_IPV6: u16 = 1280;

/// The link between the guest and its gateway, which is the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Link address of the guest's card.
    pub guest_mac: [u8; 6],
    /// Link address of the gateway.
    pub gateway_mac: [u8; 6],
    /// The guest.
    pub guest4: Ipv4Addr,
    /// The gateway.
    pub gateway4: Ipv4Addr,
    /// Bits of the network's part of both, at most 32.
    pub prefix4: u8,
    /// The guest.
    pub guest6: Ipv6Addr,
    /// The gateway.
    pub gateway6: Ipv6Addr,
    /// Bits of the network's part of both, at most 128.
    pub prefix6: u8,
    /// The largest packet, in bytes; see [`MTU`].
    pub mtu: u16,
}

impl Link {
    /// The link of every guest: there is only one on each, so that they need not differ.
    /// Its IPv4 addresses are of those for benchmarks (RFC 2544), which no network has
    /// that a guest may want to reach; of IPv6 it has local ones (RFC 4193).
    #[must_use]
    pub fn standard(mtu: u16) -> Self {
        let six = |host| Ipv6Addr::new(0xfdf1, 0xa5f1, 0xa5f1, 0, 0, 0, 0, host);
        Self {
            guest_mac: [0x02, 0xf1, 0xa5, 0x00, 0x00, 0x02],
            gateway_mac: [0x02, 0xf1, 0xa5, 0x00, 0x00, 0x01],
            guest4: Ipv4Addr::new(198, 18, 0, 2),
            gateway4: Ipv4Addr::new(198, 18, 0, 1),
            prefix4: 30,
            guest6: six(2),
            gateway6: six(1),
            prefix6: 64,
            mtu,
        }
    }

    /// Whether its packets can be large enough for IPv6; otherwise it has IPv4 only.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.mtu >= MTU_IPV6
    }

    /// Whether an address is the gateway's own.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        address == IpAddr::V4(self.gateway4) || address == IpAddr::V6(self.gateway6)
    }
}

/// What a flow is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// A stream: its socket pair is of streams.
    Tcp,
    /// Datagrams: its socket pair is of messages (`SOCK_SEQPACKET`), one for one.
    Udp,
}

/// Who talks to whom, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// The guest's side.
    pub source: SocketAddr,
    /// What it wants to reach.
    pub destination: SocketAddr,
}

/// What the guest gets instead of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// In order, by both sides.
    Closed,
    /// By a reset of the guest, or because the host's end was closed in the middle.
    Reset,
    /// Nothing happened for too long.
    Idle,
    /// It was accepted, and the guest had given it up before that.
    GivenUp,
}

/// Why there is no connection to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotOpened {
    /// The guest has reset it, or its card was taken out of use.
    Refused,
    /// The guest has not answered in time.
    Silent,
    /// There are too many flows, or there is no card.
    NoRoom,
}
