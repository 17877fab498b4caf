//! What the gateway itself answers: ARP, neighbour discovery, DHCP and ping.

use std::net::{Ipv4Addr, Ipv6Addr};

use flashpan_protocol::network::{Link, Tuple};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType,
    DhcpPacket, DhcpRepr, EthernetAddress, EthernetProtocol, Icmpv4Packet, Icmpv4Repr,
    Icmpv6Packet, Icmpv6Repr, Ipv4Packet, Ipv6Packet, NdiscNeighborFlags, NdiscRepr,
};

use super::answer;
use super::output::Output;
use super::packet::Drop;
use crate::net::{gateway_link_local, mask4};

/// How long a guest may keep its address: it has no other.
const LEASE_SECONDS: u32 = 24 * 3600;

/// The longest ping that is answered.
const MAX_ECHO: usize = 1472;

/// The gateway's answer to an ARP packet.
pub(super) fn arp(link: &Link, output: &mut Output, packet: &[u8]) -> Result<(), Drop> {
    let packet = ArpPacket::new_checked(packet).map_err(|_| Drop::Malformed)?;
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = ArpRepr::parse(&packet).map_err(|_| Drop::Malformed)?
    else {
        return Err(Drop::Protocol);
    };
    let asked = operation == ArpOperation::Request && target_protocol_addr == link.gateway4;
    if !asked || !source_hardware_addr.is_unicast() {
        return Err(Drop::Receiver);
    }
    let answer = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(link.gateway_mac),
        source_protocol_addr: link.gateway4,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let (to, len) = (source_hardware_addr, answer.buffer_len());
    output.push(to, EthernetProtocol::Arp, len, |bytes| {
        answer.emit(&mut ArpPacket::new_unchecked(bytes));
    });
    Ok(())
}

/// The gateway's answer to an ICMP message for IPv4.
pub(super) fn icmp4(
    link: &Link,
    output: &mut Output,
    to: EthernetAddress,
    packet: &[u8],
) -> Result<(), Drop> {
    let ip = Ipv4Packet::new_checked(packet).map_err(|_| Drop::Malformed)?;
    if ip.dst_addr() != link.gateway4 {
        return Err(Drop::Protocol);
    }
    let message = Icmpv4Packet::new_checked(ip.payload()).map_err(|_| Drop::Malformed)?;
    let sums = ChecksumCapabilities::default();
    match Icmpv4Repr::parse(&message, &sums) {
        Ok(Icmpv4Repr::EchoRequest {
            ident,
            seq_no,
            data,
        }) if data.len() <= MAX_ECHO => {
            let echo = Icmpv4Repr::EchoReply {
                ident,
                seq_no,
                data,
            };
            answer::icmp4(output, to, link.gateway4, ip.src_addr(), &echo);
            Ok(())
        }
        Ok(_) => Err(Drop::Protocol),
        Err(_) => Err(Drop::Malformed),
    }
}

/// The gateway's answer to an ICMP message for IPv6.
pub(super) fn icmp6(
    link: &Link,
    output: &mut Output,
    to: EthernetAddress,
    packet: &[u8],
) -> Result<(), Drop> {
    let ip = Ipv6Packet::new_checked(packet).map_err(|_| Drop::Malformed)?;
    let (source, destination) = (ip.src_addr(), ip.dst_addr());
    let message = Icmpv6Packet::new_checked(ip.payload()).map_err(|_| Drop::Malformed)?;
    let sums = ChecksumCapabilities::default();
    let message = Icmpv6Repr::parse(&source, &destination, &message, &sums);
    match message.map_err(|_| Drop::Malformed)? {
        Icmpv6Repr::EchoRequest {
            ident,
            seq_no,
            data,
        } if is_gateway(link, destination) && data.len() <= MAX_ECHO => {
            let echo = Icmpv6Repr::EchoReply {
                ident,
                seq_no,
                data,
            };
            answer::icmp6(output, to, destination, source, 64, &echo);
            Ok(())
        }
        Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })
            if is_gateway(link, target_addr) && ip.hop_limit() == 255 =>
        {
            // A host without an address only finds out whether it may take this one.
            let solicited = !source.is_unspecified();
            let (to_whom, flags) = if solicited {
                (source, NdiscNeighborFlags::SOLICITED)
            } else {
                (ALL_NODES, NdiscNeighborFlags::empty())
            };
            let advert = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
                flags: flags | NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE,
                target_addr,
                lladdr: Some(EthernetAddress(link.gateway_mac).into()),
            });
            answer::neighbour(output, to, target_addr, to_whom, &advert);
            Ok(())
        }
        _ => Err(Drop::Protocol),
    }
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn is_gateway(link: &Link, address: Ipv6Addr) -> bool {
    address == link.gateway6 || address == gateway_link_local(link)
}

/// Whether a datagram is one of a DHCP client.
pub(super) fn is_dhcp(tuple: &Tuple) -> bool {
    tuple.source.port() == DHCP_CLIENT_PORT && tuple.destination.port() == DHCP_SERVER_PORT
}

/// The gateway's answer to a DHCP client: the guest's address, whoever asks.
pub(super) fn dhcp(link: &Link, output: &mut Output, payload: &[u8]) -> Result<(), Drop> {
    let packet = DhcpPacket::new_checked(payload).map_err(|_| Drop::Malformed)?;
    let asked = DhcpRepr::parse(&packet).map_err(|_| Drop::Malformed)?;
    let other_server = (asked.server_identifier).is_some_and(|server| server != link.gateway4);
    if other_server {
        return Err(Drop::Receiver);
    }
    // A client that renews has its address already, and asks for none.
    let wanted = (asked.requested_ip)
        .or_else(|| (!asked.client_ip.is_unspecified()).then_some(asked.client_ip));
    let message_type = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if wanted == Some(link.guest4) => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        _ => return Err(Drop::Protocol),
    };
    let granted = message_type != DhcpMessageType::Nak;
    let servers = std::iter::once(link.gateway4).collect();
    let answer = DhcpRepr {
        message_type,
        transaction_id: asked.transaction_id,
        secs: 0,
        client_hardware_address: asked.client_hardware_address,
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: if granted {
            link.guest4
        } else {
            Ipv4Addr::UNSPECIFIED
        },
        server_ip: link.gateway4,
        router: granted.then_some(link.gateway4),
        subnet_mask: granted.then(|| mask4(link)),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: true,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(link.gateway4),
        parameter_request_list: None,
        dns_servers: granted.then_some(servers),
        max_size: None,
        lease_duration: granted.then_some(LEASE_SECONDS),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut bytes = vec![0; answer.buffer_len()];
    let mut packet = DhcpPacket::new_unchecked(&mut bytes);
    answer.emit(&mut packet).map_err(|_| Drop::Malformed)?;
    let source = (link.gateway4, DHCP_SERVER_PORT).into();
    let destination = (Ipv4Addr::BROADCAST, DHCP_CLIENT_PORT).into();
    let everybody = EthernetAddress::BROADCAST;
    answer::udp(
        output,
        everybody,
        source,
        destination,
        &bytes,
        link.mtu.into(),
    );
    Ok(())
}
