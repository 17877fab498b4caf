//! A forwarded port as it is written: `127.0.0.1:8080:80/tcp`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use flashpan_protocol::forward::Transport;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::api::{PortForward, PortForwardError};

/// A port of this machine that is to lead to a port of the guest.
///
/// Read from `[[ADDRESS:]LOCAL_PORT:]REMOTE_PORT[/tcp|/udp]`, an IPv6 address in
/// brackets; one of IPv4 that is written so (`[::ffff:127.0.0.1]`) is that of IPv4.
///
/// ```
/// use flashpan::{Forward, Transport};
///
/// let dns: Forward = "5353:53/udp".parse()?;
/// assert_eq!(dns.transport, Transport::Udp);
/// assert_eq!(dns.to_string(), "5353:53/udp");
/// let web: Forward = "[::1]:8080:80".parse()?;
/// assert!(web.address.is_some_and(|address| address.is_ipv6()));
/// # Ok::<(), flashpan::api::PortForwardError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Forward {
    /// TCP or UDP.
    pub transport: Transport,
    /// The two ports; of this machine, 0 is any free one.
    pub ports: PortForward,
    /// The one address of this machine that is listened on; those of
    /// [`ForwardOptions::address`](crate::ForwardOptions::address) otherwise.
    pub address: Option<IpAddr>,
}

impl Forward {
    /// Of TCP.
    #[must_use]
    pub fn tcp(ports: PortForward) -> Self {
        Self {
            transport: Transport::Tcp,
            ports,
            address: None,
        }
    }

    /// Of UDP.
    #[must_use]
    pub fn udp(ports: PortForward) -> Self {
        Self {
            transport: Transport::Udp,
            ..Self::tcp(ports)
        }
    }
}

impl FromStr for Forward {
    type Err = PortForwardError;

    fn from_str(spec: &str) -> Result<Self, PortForwardError> {
        let spec = spec.trim();
        let (ports, transport) = match spec.rsplit_once('/') {
            None => (spec, Transport::Tcp),
            Some((ports, "tcp")) => (ports, Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some((_, other)) => return Err(PortForwardError::Transport(other.to_owned())),
        };
        let (address, ports) = split_address(ports.trim())?;
        Ok(Self {
            transport,
            ports: ports.parse()?,
            address,
        })
    }
}

/// The address before two ports, and the ports.
fn split_address(text: &str) -> Result<(Option<IpAddr>, &str), PortForwardError> {
    let one_port = || PortForwardError::OnePort(text.to_owned());
    let (address, ports) = if text.starts_with('[') {
        let (address, ports) = text.split_once(']').unwrap_or((text, ""));
        let shown = || PortForwardError::Address(text.to_owned());
        let address = address.strip_prefix('[').unwrap_or_default();
        let address: Ipv6Addr = address.parse().map_err(|_| shown())?;
        (
            // The socket is for IPv6 alone, and cannot be bound to one of IPv4.
            address.to_canonical(),
            ports.strip_prefix(':').ok_or_else(shown)?,
        )
    } else {
        // Two ports are after the last two colons.
        let before = text.rmatch_indices(':').nth(1).map(|(at, _)| at);
        let Some((address, ports)) = before.and_then(|at| text.split_at_checked(at)) else {
            return match text.split_once(':') {
                Some((address, _)) if address.parse::<Ipv4Addr>().is_ok() => Err(one_port()),
                _ => Ok((None, text)),
            };
        };
        let wrong = || PortForwardError::Address(address.to_owned());
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let ports = ports.strip_prefix(':').unwrap_or_default();
        (IpAddr::V4(address), ports)
    };
    match ports.contains(':') {
        true => Ok((Some(address), ports)),
        false => Err(one_port()),
    }
}

impl Serialize for Forward {
    /// As it is read.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Forward {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        match self.transport {
            Transport::Tcp => write!(f, "{}", self.ports),
            Transport::Udp => write!(f, "{}/udp", self.ports),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_may_follow_the_ports() {
        for (spec, transport, ports) in [
            ("80", Transport::Tcp, "80:80"),
            ("8080:80/tcp", Transport::Tcp, "8080:80"),
            (" 53/udp ", Transport::Udp, "53:53"),
            ("[::1]:8080:80", Transport::Tcp, "8080:80"),
            ("0.0.0.0:5353:53/udp", Transport::Udp, "5353:53"),
        ] {
            let forward: Forward = spec.parse().unwrap();
            assert_eq!(forward.transport, transport, "{spec}");
            assert_eq!(forward.ports.to_string(), ports, "{spec}");
        }
        for (spec, error) in [
            ("80/sctp", "invalid transport \"sctp\": must be tcp or udp"),
            ("80/", "invalid transport \"\": must be tcp or udp"),
            ("/udp", "invalid port-forward spec format: empty spec"),
            ("0/udp", "invalid port 0: must be in range 1-65535"),
            (
                "1:2:3",
                "invalid address \"1\": must be an IP address, of IPv6 in brackets",
            ),
            (
                "::1:2:3",
                "invalid address \"::1\": must be an IP address, of IPv6 in brackets",
            ),
            (
                "[::1:2:3",
                "invalid address \"[::1:2:3\": must be an IP address, of IPv6 in brackets",
            ),
            (
                "127.0.0.1:80",
                "invalid port-forward spec format: \"127.0.0.1:80\" has an address and needs both ports",
            ),
            (
                "[::1]:80",
                "invalid port-forward spec format: \"[::1]:80\" has an address and needs both ports",
            ),
            (
                "127.0.0.1::80",
                "invalid port-forward spec format: empty local port",
            ),
        ] {
            assert_eq!(spec.parse::<Forward>().unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn an_address_before_the_ports_is_kept() {
        for spec in [
            "127.0.0.1:8080:80",
            "[::1]:8080:80/udp",
            "[::]:1:65535",
            "0.0.0.0:1:2",
        ] {
            let forward: Forward = spec.parse().unwrap();
            assert_eq!(forward.to_string(), spec);
            let json = serde_json::to_string(&forward).unwrap();
            assert_eq!(serde_json::from_str::<Forward>(&json).unwrap(), forward);
        }
        let mapped: Forward = "[::ffff:127.0.0.1]:8080:80".parse().unwrap();
        assert_eq!(mapped, "127.0.0.1:8080:80".parse().unwrap());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_forward_or_an_error(spec in r"[0-9a-f:.\[\]/ udpt]{0,24}|\PC{0,12}") {
            if let Ok(forward) = spec.parse::<Forward>() {
                assert_eq!(forward.to_string().parse(), Ok(forward));
            }
        }
    }
}
