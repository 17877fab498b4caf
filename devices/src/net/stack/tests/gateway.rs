//! What the gateway itself answers.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket,
};

use super::datagrams::datagram;
use super::guest::{LINK, Wire};
use crate::net::stack::Offload;
use crate::net::{gateway_link_local, mask4};

fn link() -> Wire {
    let mut link = Wire::new(Offload::default());
    link.listening = false;
    link
}

fn frame(to: [u8; 6], protocol: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + payload.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(EthernetAddress(LINK.guest_mac));
    frame.set_dst_addr(EthernetAddress(to));
    frame.set_ethertype(protocol);
    frame.payload_mut().copy_from_slice(payload);
    bytes
}

fn arp(target: [u8; 4]) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(LINK.guest_mac);
    body.extend(LINK.guest4.octets());
    body.extend([0; 6]);
    body.extend(target);
    frame([0xff; 6], EthernetProtocol::Arp, &body)
}

#[test]
fn arp_is_answered_for_the_gateway_and_for_nobody_else() {
    let mut link = link();
    link.stack.input(&arp([198, 18, 0, 1]));
    let bytes = &link.stack.frame().unwrap().bytes;
    assert_eq!(bytes[..6], LINK.guest_mac);
    assert_eq!(bytes[20..22], [0, 2]);
    assert_eq!(bytes[22..28], LINK.gateway_mac);
    link.stack.frame_done();
    for other in [[198, 18, 0, 2], [198, 18, 0, 3], [8, 8, 8, 8]] {
        link.stack.input(&arp(other));
        assert!(link.stack.frame().is_none(), "{other:?}");
    }
    assert_eq!(link.stack.metrics().receivers, 3);
}

fn ping(to: Ipv4Addr) -> Vec<u8> {
    let echo = Icmpv4Repr::EchoRequest {
        ident: 7,
        seq_no: 1,
        data: b"ping",
    };
    let ip = Ipv4Repr {
        src_addr: LINK.guest4,
        dst_addr: to,
        next_header: IpProtocol::Icmp,
        payload_len: echo.buffer_len(),
        hop_limit: 64,
    };
    let sums = ChecksumCapabilities::default();
    let mut bytes = vec![0; 20 + echo.buffer_len()];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &sums);
    echo.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[20..]), &sums);
    frame(LINK.gateway_mac, EthernetProtocol::Ipv4, &bytes)
}

#[test]
fn the_gateway_answers_pings_and_nobody_else_does() {
    let mut link = link();
    link.stack.input(&ping(LINK.gateway4));
    let bytes = link.stack.frame().unwrap().bytes.clone();
    let ip = Ipv4Packet::new_checked(&bytes[14..]).unwrap();
    assert!(ip.verify_checksum());
    let message = Icmpv4Packet::new_checked(ip.payload()).unwrap();
    let sums = ChecksumCapabilities::default();
    assert_eq!(
        Icmpv4Repr::parse(&message, &sums).unwrap(),
        Icmpv4Repr::EchoReply {
            ident: 7,
            seq_no: 1,
            data: b"ping"
        }
    );
    link.stack.frame_done();
    link.stack.input(&ping(Ipv4Addr::new(8, 8, 8, 8)));
    assert!(link.stack.frame().is_none());
    assert_eq!(link.stack.metrics().protocols, 1);
}

fn dhcp(message_type: DhcpMessageType, wanted: Option<Ipv4Addr>) -> Vec<u8> {
    let asked = DhcpRepr {
        message_type,
        transaction_id: 0xf1a5,
        secs: 0,
        client_hardware_address: EthernetAddress(LINK.guest_mac),
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: wanted,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut bytes = vec![0; asked.buffer_len()];
    asked
        .emit(&mut DhcpPacket::new_unchecked(&mut bytes))
        .unwrap();
    let mut frame = datagram("0.0.0.0:68", "255.255.255.255:67", &bytes);
    frame[..6].fill(0xff);
    frame
}

/// What a DHCP client is told: the kind of answer, its address, gateway, resolver.
fn told(link: &mut Wire, asked: &[u8]) -> (DhcpMessageType, Ipv4Addr, Option<Ipv4Addr>) {
    link.stack.input(asked);
    let bytes = link.stack.frame().unwrap().bytes.clone();
    link.stack.frame_done();
    let ip = Ipv4Packet::new_checked(&bytes[14..]).unwrap();
    let udp = UdpPacket::new_checked(ip.payload()).unwrap();
    assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
    assert_eq!((udp.src_port(), udp.dst_port()), (67, 68));
    let packet = DhcpPacket::new_checked(udp.payload()).unwrap();
    let told = DhcpRepr::parse(&packet).unwrap();
    assert_eq!(told.transaction_id, 0xf1a5);
    (told.message_type, told.your_ip, told.router)
}

#[test]
fn dhcp_gives_the_guest_its_one_address() {
    let mut link = link();
    let (guest, gateway) = (LINK.guest4, Some(LINK.gateway4));
    let offer = told(&mut link, &dhcp(DhcpMessageType::Discover, None));
    assert_eq!(offer, (DhcpMessageType::Offer, guest, gateway));
    let ack = told(&mut link, &dhcp(DhcpMessageType::Request, Some(guest)));
    assert_eq!(ack, (DhcpMessageType::Ack, guest, gateway));
    let other = Some(Ipv4Addr::new(10, 0, 0, 9));
    let nak = told(&mut link, &dhcp(DhcpMessageType::Request, other));
    assert_eq!(nak, (DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED, None));
}

#[test]
fn link_of_the_link() {
    assert_eq!(mask4(&LINK), Ipv4Addr::new(255, 255, 255, 252));
    let local = gateway_link_local(&LINK).to_string();
    assert_eq!(local, "fe80::f1:a5ff:fe00:1");
}
