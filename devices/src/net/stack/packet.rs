//! What a frame of the guest is, as far as the stack has to know.
//!
//! Every length in a frame is the guest's. Views of `smoltcp::wire` are made by
//! `new_checked` only, which holds the lengths against the bytes that there are.

use std::net::{IpAddr, SocketAddr};

use flashpan_protocol::network::{Link, Tuple};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet,
    TCP_HEADER_LEN, TcpPacket, UdpPacket,
};

/// Why a frame was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drop {
    /// Lengths that do not fit, or link that nobody can have.
    Malformed,
    /// Part of a packet.
    Fragment,
    /// Neither IP nor ARP, or an IP protocol that ends at the gateway.
    Protocol,
    /// For another link address, or for many hosts.
    Receiver,
    /// From an address that the guest of this link does not have.
    Source,
}

/// A frame of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// An ARP packet.
    Arp(&'a [u8]),
    /// A TCP segment.
    Tcp {
        tuple: Tuple,
        /// Whether it asks for a connection: SYN without ACK.
        opens: bool,
        /// The packet, from its IP header on.
        ip: &'a [u8],
    },
    /// A UDP datagram.
    Udp {
        tuple: Tuple,
        payload: &'a [u8],
        /// The packet, from its IP header on.
        ip: &'a [u8],
    },
    /// An ICMP message for IPv4, from its IP header on.
    Icmp4(&'a [u8]),
    /// An ICMP message for IPv6, from its IP header on.
    Icmp6(&'a [u8]),
}

/// What is in `frame`, and who sent it. It must be for the gateway of this link, or for all
/// hosts of it, and from its guest.
pub(super) fn parse<'a>(
    frame: &'a [u8],
    link: &Link,
) -> Result<(EthernetAddress, Packet<'a>), Drop> {
    let frame = EthernetFrame::new_checked(frame).map_err(|_| Drop::Malformed)?;
    let sender = frame.src_addr();
    if !sender.is_unicast() {
        return Err(Drop::Malformed);
    }
    let receiver = frame.dst_addr();
    let single = receiver == EthernetAddress(link.gateway_mac);
    if !single && receiver.is_unicast() {
        return Err(Drop::Receiver);
    }
    let payload = frame.payload();
    let packet = match frame.ethertype() {
        EthernetProtocol::Arp => Packet::Arp(payload),
        EthernetProtocol::Ipv4 => ipv4(payload)?,
        EthernetProtocol::Ipv6 => ipv6(payload)?,
        EthernetProtocol::Unknown(_) => return Err(Drop::Protocol),
    };
    match &packet {
        Packet::Tcp { tuple, .. } | Packet::Udp { tuple, .. } => {
            check(tuple, matches!(packet, Packet::Udp { .. }))?;
        }
        Packet::Arp(_) | Packet::Icmp4(_) | Packet::Icmp6(_) => {}
    }
    match source(&packet) {
        Some(source) if !is_of_guest(link, source, &packet) => Err(Drop::Source),
        _ => Ok((sender, packet)),
    }
}

/// The address that a packet of IP says it is from.
fn source(packet: &Packet<'_>) -> Option<IpAddr> {
    match packet {
        Packet::Arp(_) => None,
        Packet::Tcp { tuple, .. } | Packet::Udp { tuple, .. } => Some(tuple.source.ip()),
        Packet::Icmp4(ip) => Some(Ipv4Packet::new_checked(ip).ok()?.src_addr().into()),
        Packet::Icmp6(ip) => Some(Ipv6Packet::new_checked(ip).ok()?.src_addr().into()),
    }
}

/// Whether the guest of this link has an address. A DHCP client has none yet, and so has
/// whoever asks whether anybody has the one that it wants (RFC 4862 §5.4.2).
fn is_of_guest(link: &Link, source: IpAddr, packet: &Packet<'_>) -> bool {
    match source {
        IpAddr::V4(address) if address.is_unspecified() => matches!(
            packet,
            Packet::Udp { tuple, .. } if super::gateway::is_dhcp(tuple)
        ),
        IpAddr::V4(address) => address == link.guest4,
        IpAddr::V6(address) if address.is_unspecified() => matches!(packet, Packet::Icmp6(_)),
        IpAddr::V6(address) => address == link.guest6 || address.is_unicast_link_local(),
    }
}

/// Link that a flow can have. DHCP is the one that may come from nowhere and go
/// to everybody.
fn check(tuple: &Tuple, udp: bool) -> Result<(), Drop> {
    let Tuple {
        source,
        destination,
    } = tuple;
    if udp && destination.port() == DHCP_SERVER {
        return Ok(());
    }
    let unicast = |address: IpAddr| match address {
        IpAddr::V4(address) => {
            !(address.is_unspecified() || address.is_multicast() || address.is_broadcast())
        }
        IpAddr::V6(address) => !(address.is_unspecified() || address.is_multicast()),
    };
    if !unicast(source.ip()) || source.port() == 0 || destination.port() == 0 {
        return Err(Drop::Malformed);
    }
    if !unicast(destination.ip()) {
        return Err(Drop::Receiver);
    }
    // A packet that would answer itself.
    if source.ip() == destination.ip() {
        return Err(Drop::Malformed);
    }
    Ok(())
}

const DHCP_SERVER: u16 = smoltcp::wire::DHCP_SERVER_PORT;

fn ipv4(bytes: &[u8]) -> Result<Packet<'_>, Drop> {
    let packet = Ipv4Packet::new_checked(bytes).map_err(|_| Drop::Malformed)?;
    if packet.version() != 4 || !packet.verify_checksum() {
        return Err(Drop::Malformed);
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Err(Drop::Fragment);
    }
    // Without what pads a short frame.
    let ip = (bytes.get(..usize::from(packet.total_len()))).ok_or(Drop::Malformed)?;
    let body = (ip.get(usize::from(packet.header_len())..)).ok_or(Drop::Malformed)?;
    let (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
    match packet.next_header() {
        IpProtocol::Tcp => tcp(ip, body, source, destination),
        IpProtocol::Udp => udp(ip, body, source, destination),
        IpProtocol::Icmp => Ok(Packet::Icmp4(ip)),
        _ => Err(Drop::Protocol),
    }
}

/// Extension headers are not followed: what hides behind one is dropped.
fn ipv6(bytes: &[u8]) -> Result<Packet<'_>, Drop> {
    let packet = Ipv6Packet::new_checked(bytes).map_err(|_| Drop::Malformed)?;
    if packet.version() != 6 {
        return Err(Drop::Malformed);
    }
    let ip = (bytes.get(..packet.total_len())).ok_or(Drop::Malformed)?;
    let body = (ip.get(packet.header_len()..)).ok_or(Drop::Malformed)?;
    let (source, destination) = (packet.src_addr().into(), packet.dst_addr().into());
    match packet.next_header() {
        IpProtocol::Tcp => tcp(ip, body, source, destination),
        IpProtocol::Udp => udp(ip, body, source, destination),
        IpProtocol::Icmpv6 => Ok(Packet::Icmp6(ip)),
        IpProtocol::Ipv6Frag => Err(Drop::Fragment),
        _ => Err(Drop::Protocol),
    }
}

/// The TCP header of a packet that [`parse`] found to be of TCP, for its flags.
pub(super) fn tcp_flags(ip: &[u8]) -> Option<TcpPacket<&[u8]>> {
    let header = match ip.first()? >> 4 {
        4 => usize::from(Ipv4Packet::new_checked(ip).ok()?.header_len()),
        _ => Ipv6Packet::new_checked(ip).ok()?.header_len(),
    };
    TcpPacket::new_checked(ip.get(header..)?).ok()
}

/// The longest segment that a SYN which [`parse`] found asks for, if it says so.
pub(super) fn longest_segment(ip: &[u8]) -> Option<u16> {
    let header = match ip.first()? >> 4 {
        4 => usize::from(Ipv4Packet::new_checked(ip).ok()?.header_len()),
        _ => Ipv6Packet::new_checked(ip).ok()?.header_len(),
    };
    let segment = ip.get(header..)?;
    let end = usize::from(TcpPacket::new_checked(segment).ok()?.header_len());
    let mut options = segment.get(TCP_HEADER_LEN..end)?;
    // Kind, length, and what it says; but two are their kind alone (RFC 9293 §3.1).
    loop {
        options = match options {
            [2, 4, high, low, ..] => return Some(u16::from_be_bytes([*high, *low])),
            [0, ..] => return None,
            [1, rest @ ..] => rest,
            [_, len, ..] => options.get(usize::from(*len).max(2)..)?,
            _ => return None,
        };
    }
}

fn tcp<'a>(
    ip: &'a [u8],
    body: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
) -> Result<Packet<'a>, Drop> {
    let segment = TcpPacket::new_checked(body).map_err(|_| Drop::Malformed)?;
    Ok(Packet::Tcp {
        tuple: Tuple {
            source: SocketAddr::new(source, segment.src_port()),
            destination: SocketAddr::new(destination, segment.dst_port()),
        },
        opens: segment.syn() && !segment.ack() && !segment.rst() && !segment.fin(),
        ip,
    })
}

fn udp<'a>(
    ip: &'a [u8],
    body: &'a [u8],
    source: IpAddr,
    destination: IpAddr,
) -> Result<Packet<'a>, Drop> {
    let datagram = UdpPacket::new_checked(body).map_err(|_| Drop::Malformed)?;
    let end = usize::from(datagram.len());
    let payload = body.get(smoltcp::wire::UDP_HEADER_LEN..end);
    Ok(Packet::Udp {
        tuple: Tuple {
            source: SocketAddr::new(source, datagram.src_port()),
            destination: SocketAddr::new(destination, datagram.dst_port()),
        },
        payload: payload.ok_or(Drop::Malformed)?,
        ip,
    })
}
