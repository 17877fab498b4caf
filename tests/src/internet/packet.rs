//! What a packet on the way to the internet is, in a line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::dns::Question;

/// The port of name servers.
const NAMES: u16 = 53;

/// What somebody on the way reads of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// What it is, unless it goes on with what was seen before: `tcp 1.2.3.4:80` for the
    /// first of a connection, `udp 1.2.3.4:123`, `dns NAME TYPE`, `protocol 47 1.2.3.4`.
    pub(super) what: Option<String>,
    /// What the host's kernel says by itself to its own link.
    pub(super) is_housekeeping: bool,
}

/// What an IP packet is. Questions to `server` are read.
pub(super) fn seen(packet: &[u8], server: IpAddr) -> Seen {
    let what = |what: String| Seen {
        what: Some(what),
        is_housekeeping: false,
    };
    let Some((to, protocol, body)) = ip(packet) else {
        return what(format!("not IP: {} bytes", packet.len()));
    };
    let port = |at: usize| {
        let port = body.get(at..at + 2)?;
        Some(u16::from_be_bytes([port[0], port[1]]))
    };
    let target = SocketAddr::new(to, port(2).unwrap_or_default());
    match protocol {
        6 => {
            let flags = body.get(13).copied().unwrap_or_default();
            let opens = flags & 0x12 == 0x02;
            Seen {
                what: opens.then(|| format!("tcp {target}")),
                is_housekeeping: false,
            }
        }
        17 if target.ip() == server && target.port() == NAMES => {
            match Question::read(body.get(8..).unwrap_or_default()) {
                Some(question) => what(format!("dns {question}")),
                None => what("dns that cannot be read".to_owned()),
            }
        }
        17 => what(format!("udp {target}")),
        // Port unreachable: an answer has come after nobody waited for it any more.
        1 if to == server && body.starts_with(&[3, 3]) => Seen {
            what: None,
            is_housekeeping: true,
        },
        58 if matches!(to, IpAddr::V6(to) if to.is_multicast()) => Seen {
            what: None,
            is_housekeeping: true,
        },
        other => what(format!("protocol {other} {to}")),
    }
}

/// Where a packet goes, its protocol, and what is behind the header.
fn ip(packet: &[u8]) -> Option<(IpAddr, u8, &[u8])> {
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0x0f) * 4;
            let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            Some((Ipv4Addr::from(to).into(), packet[9], packet.get(header..)?))
        }
        6 => {
            let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            let (mut protocol, mut rest) = (packet[6], packet.get(40..)?);
            // Of multicast, and of what joins it: options for every hop.
            if protocol == 0 {
                let length = 8 + usize::from(*rest.get(1)?) * 8;
                (protocol, rest) = (rest[0], rest.get(length..)?);
            }
            Some((Ipv6Addr::from(to).into(), protocol, rest))
        }
        _ => None,
    }
}
