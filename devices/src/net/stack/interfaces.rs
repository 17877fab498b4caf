//! What smoltcp makes packets of flows with.

use flashpan_protocol::network::Link;
use smoltcp::iface::{Config, Interface};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpVersion};

use super::output::{Offload, Output, Phy};

/// One interface for each version of IP, since smoltcp has one size of packets for both.
pub(super) struct Interfaces {
    four: Interface,
    six: Interface,
}

impl Interfaces {
    pub(super) fn of(&mut self, version: IpVersion) -> &mut Interface {
        match version {
            IpVersion::Ipv4 => &mut self.four,
            IpVersion::Ipv6 => &mut self.six,
        }
    }
}

/// The guest's link, without a frame on it.
pub(super) fn empty(link: &Link, offload: Offload) -> (Output, Interfaces) {
    let gateway = EthernetAddress(link.gateway_mac);
    let mut output = Output::new(gateway, offload, link.mtu.into());
    let mut interface = |version, own: IpCidr| {
        let mut phy = Phy {
            packet: None,
            peer: gateway,
            segment: output.most_segment(version),
            output: &mut output,
            version,
            urgent: false,
        };
        // Sequence numbers need not be hard to guess: the guest is the only one to see them.
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut phy, Instant::ZERO);
        interface.update_ip_addrs(|all| {
            // There is room for two.
            let _ = all.push(own);
        });
        // Whoever the guest wants to reach is played by the stack.
        interface.set_any_ip(true);
        interface
    };
    let four = interface(IpVersion::Ipv4, IpCidr::new(link.gateway4.into(), 32));
    let six = interface(IpVersion::Ipv6, IpCidr::new(link.gateway6.into(), 128));
    (output, Interfaces { four, six })
}
