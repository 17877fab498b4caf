//! Packets that are no part of a flow: made whole, from one to the other.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use flashpan_protocol::network::Refusal;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr,
    Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, IpRepr, IpVersion,
    Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    UDP_HEADER_LEN, UdpPacket, UdpRepr,
};

use super::output::Output;

const HOPS: u8 = 64;
/// Neighbour discovery is for the link only, and says so (RFC 4861 §4).
const LINK_ONLY: u8 = 255;

/// How much of a packet an ICMP error quotes: for IPv4 what there was when it was made
/// (RFC 792), which tells the ports.
const QUOTED: usize = 8;

fn ethernet(version: IpVersion) -> EthernetProtocol {
    match version {
        IpVersion::Ipv4 => EthernetProtocol::Ipv4,
        IpVersion::Ipv6 => EthernetProtocol::Ipv6,
    }
}

/// Makes a packet with this header, whose payload `fill` writes.
fn packet(output: &mut Output, to: EthernetAddress, ip: &IpRepr, fill: impl FnOnce(&mut [u8])) {
    let sums = ChecksumCapabilities::default();
    output.push(to, ethernet(ip.version()), ip.buffer_len(), |bytes| {
        ip.emit(&mut *bytes, &sums);
        if let Some(payload) = bytes.get_mut(ip.header_len()..) {
            fill(payload);
        }
    });
}

/// Sends a datagram to the guest; false if it does not fit on the link.
pub(super) fn udp(
    output: &mut Output,
    to: EthernetAddress,
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
    mtu: usize,
) -> bool {
    let (from, at) = (
        IpAddress::from(source.ip()),
        IpAddress::from(destination.ip()),
    );
    if from.version() != at.version() {
        return false;
    }
    let udp = UdpRepr {
        src_port: source.port(),
        dst_port: destination.port(),
    };
    let len = UDP_HEADER_LEN.saturating_add(payload.len());
    let ip = IpRepr::new(from, at, IpProtocol::Udp, len, HOPS);
    if ip.buffer_len() > mtu {
        return false;
    }
    let sums = ChecksumCapabilities::default();
    packet(output, to, &ip, |bytes| {
        let mut datagram = UdpPacket::new_unchecked(bytes);
        let fill = |to: &mut [u8]| {
            to.iter_mut()
                .zip(payload)
                .for_each(|(to, from)| *to = *from);
        };
        udp.emit(&mut datagram, &from, &at, payload.len(), fill, &sums);
    });
    true
}

/// Answers a packet of the guest as a network does that does not deliver it. `refused`
/// is the packet from its IP header on, as [`super::packet::parse`] found it.
pub(super) fn refuse(output: &mut Output, to: EthernetAddress, refused: &[u8], why: Refusal) {
    match (IpVersion::of_packet(refused), why) {
        (_, Refusal::Silence) | (Err(_), _) => {}
        (Ok(IpVersion::Ipv4), _) => refuse4(output, to, refused, why),
        (Ok(IpVersion::Ipv6), _) => refuse6(output, to, refused, why),
    }
}

fn refuse4(output: &mut Output, to: EthernetAddress, refused: &[u8], why: Refusal) {
    let Ok(ip) = Ipv4Packet::new_checked(refused) else {
        return;
    };
    let Ok(header) = Ipv4Repr::parse(&ip, &ChecksumCapabilities::ignored()) else {
        return;
    };
    let (source, destination) = (header.src_addr, header.dst_addr);
    let reason = match (why, header.next_header) {
        (Refusal::Reset, IpProtocol::Tcp) => {
            return reset(output, to, source.into(), destination.into(), ip.payload());
        }
        (Refusal::Reset, _) => Icmpv4DstUnreachable::PortUnreachable,
        (Refusal::Host, _) => Icmpv4DstUnreachable::HostUnreachable,
        (Refusal::Network, _) => Icmpv4DstUnreachable::NetUnreachable,
        (Refusal::Prohibited, _) => Icmpv4DstUnreachable::CommProhibited,
        (Refusal::Silence, _) => return,
    };
    let data = ip.payload();
    let icmp = Icmpv4Repr::DstUnreachable {
        reason,
        header,
        data: data.get(..QUOTED).unwrap_or(data),
    };
    icmp4(output, to, destination, source, &icmp);
}

fn refuse6(output: &mut Output, to: EthernetAddress, refused: &[u8], why: Refusal) {
    let Ok(ip) = Ipv6Packet::new_checked(refused) else {
        return;
    };
    let Ok(header) = Ipv6Repr::parse(&ip) else {
        return;
    };
    let (source, destination) = (header.src_addr, header.dst_addr);
    let reason = match (why, header.next_header) {
        (Refusal::Reset, IpProtocol::Tcp) => {
            return reset(output, to, source.into(), destination.into(), ip.payload());
        }
        (Refusal::Reset, _) => Icmpv6DstUnreachable::PortUnreachable,
        (Refusal::Host, _) => Icmpv6DstUnreachable::AddrUnreachable,
        (Refusal::Network, _) => Icmpv6DstUnreachable::NoRoute,
        (Refusal::Prohibited, _) => Icmpv6DstUnreachable::AdminProhibit,
        (Refusal::Silence, _) => return,
    };
    let data = ip.payload();
    let icmp = Icmpv6Repr::DstUnreachable {
        reason,
        header,
        data: data.get(..QUOTED).unwrap_or(data),
    };
    icmp6(output, to, destination, source, HOPS, &icmp);
}

/// The answer to a segment that belongs to no connection (RFC 9293 §3.10.7.1); none to
/// one that is such an answer itself.
fn reset(
    output: &mut Output,
    to: EthernetAddress,
    source: IpAddress,
    destination: IpAddress,
    segment: &[u8],
) {
    let Ok(segment) = TcpPacket::new_checked(segment) else {
        return;
    };
    if segment.rst() {
        return;
    }
    let (seq_number, ack_number) = if segment.ack() {
        (segment.ack_number(), None)
    } else {
        let next = segment.seq_number() + segment.segment_len();
        (TcpSeqNumber(0), Some(next))
    };
    let answer = TcpRepr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None, None, None],
        timestamp: None,
        payload: &[],
    };
    let ip = IpRepr::new(
        destination,
        source,
        IpProtocol::Tcp,
        answer.buffer_len(),
        HOPS,
    );
    let sums = ChecksumCapabilities::default();
    packet(output, to, &ip, |bytes| {
        let mut tcp = TcpPacket::new_unchecked(bytes);
        answer.emit(&mut tcp, &destination, &source, &sums);
    });
}

/// Sends an ICMP message to the guest.
pub(super) fn icmp4(
    output: &mut Output,
    to: EthernetAddress,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    icmp: &Icmpv4Repr<'_>,
) {
    let ip = Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: IpProtocol::Icmp,
        payload_len: icmp.buffer_len(),
        hop_limit: HOPS,
    };
    let sums = ChecksumCapabilities::default();
    packet(output, to, &IpRepr::Ipv4(ip), |bytes| {
        icmp.emit(&mut Icmpv4Packet::new_unchecked(bytes), &sums);
    });
}

/// The same for IPv6.
pub(super) fn icmp6(
    output: &mut Output,
    to: EthernetAddress,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    icmp: &Icmpv6Repr<'_>,
) {
    let ip = Ipv6Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: IpProtocol::Icmpv6,
        payload_len: icmp.buffer_len(),
        hop_limit,
    };
    let sums = ChecksumCapabilities::default();
    packet(output, to, &IpRepr::Ipv6(ip), |bytes| {
        let mut message = Icmpv6Packet::new_unchecked(bytes);
        icmp.emit(&source, &destination, &mut message, &sums);
    });
}

/// The same for neighbour discovery.
pub(super) fn neighbour(
    output: &mut Output,
    to: EthernetAddress,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    icmp: &Icmpv6Repr<'_>,
) {
    icmp6(output, to, source, destination, LINK_ONLY, icmp);
}
