//! The addresses of this host, and of the networks that it is attached to.
//!
//! They can be of the internet: of a host with a public address, or any with IPv6. To the
//! guest they are what private ones are. A connection to one of the host's own would not
//! even pass its firewall, since it comes from the host itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

/// Whether `address` is this host's own or of one of its networks. They may change at any
/// time, so they are looked up each time; if that is not possible, it is.
pub(crate) fn has(address: IpAddr) -> bool {
    let Ok(all) = getifaddrs() else {
        return true;
    };
    all.into_iter().any(|of| {
        let own = of.address.as_ref().and_then(ip);
        let mask = of.netmask.as_ref().and_then(ip);
        // Without a mask it is a network of one.
        own.is_some_and(|own| own == address || mask.is_some_and(|mask| same(address, own, mask)))
    })
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let four = (address.as_sockaddr_in()).map(|address| IpAddr::V4(address.ip()));
    four.or_else(|| (address.as_sockaddr_in6()).map(|address| IpAddr::V6(address.ip())))
}

/// Whether two addresses are of one network. A mask of nothing is that of a link with two
/// ends, not of everything.
fn same(one: IpAddr, other: IpAddr, mask: IpAddr) -> bool {
    match (one, other, mask) {
        (IpAddr::V4(one), IpAddr::V4(other), IpAddr::V4(mask)) => {
            let part = |of: Ipv4Addr| of.to_bits() & mask.to_bits();
            mask != Ipv4Addr::UNSPECIFIED && part(one) == part(other)
        }
        (IpAddr::V6(one), IpAddr::V6(other), IpAddr::V6(mask)) => {
            let part = |of: Ipv6Addr| of.to_bits() & mask.to_bits();
            mask != Ipv6Addr::UNSPECIFIED && part(one) == part(other)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_its_own_neighbour() {
        assert!(has(Ipv4Addr::LOCALHOST.into()));
        assert!(has(Ipv4Addr::new(127, 9, 9, 9).into()));
        assert!(!has(Ipv4Addr::new(203, 0, 113, 77).into()));
    }

    #[test]
    fn networks() {
        let same = |a: &str, b: &str, mask: &str| {
            let parse = |text: &str| text.parse().unwrap();
            same(parse(a), parse(b), parse(mask))
        };
        assert!(same("8.8.8.8", "8.8.8.1", "255.255.255.0"));
        assert!(!same("8.8.9.8", "8.8.8.1", "255.255.255.0"));
        assert!(!same("8.8.9.8", "8.8.8.1", "0.0.0.0"));
        assert!(same("2001:db8::1", "2001:db8::2", "ffff:ffff:ffff:ffff::"));
        assert!(!same(
            "2001:db8:0:1::1",
            "2001:db8::2",
            "ffff:ffff:ffff:ffff::"
        ));
        assert!(!same("8.8.8.8", "2001:db8::2", "ffff::"));
    }
}
