//! Whom the host asks for names.

use std::net::{IpAddr, SocketAddr};

/// The port of name servers.
const PORT: u16 = 53;

/// The longest file that is looked at.
const MAX_FILE: usize = 64 * 1024;

/// Most servers. The host itself takes three.
const MAX_SERVERS: usize = 8;

/// The name servers of `/etc/resolv.conf`. Without one there is none, though
/// resolv.conf(5) would have the one on this host: whatever listens there was not meant.
pub(super) fn of_host() -> Vec<SocketAddr> {
    let text = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    let text = text.get(..text.len().min(MAX_FILE)).unwrap_or_default();
    named(&String::from_utf8_lossy(text))
}

fn named(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        let address: IpAddr = words.next()?.parse().ok()?;
        Some(SocketAddr::new(address, PORT))
    };
    let mut servers: Vec<SocketAddr> = Vec::new();
    for server in text.lines().filter_map(server) {
        if !servers.contains(&server) && servers.len() < MAX_SERVERS {
            servers.push(server);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn all_name_servers_count() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver fe80::1%eth0\n\
                    nameserver 10.0.0.2 # here\nnameserver 10.0.0.2\nnameserver ::1\n";
        let servers: [SocketAddr; 2] =
            ["10.0.0.2:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(named(text), servers);
        assert_eq!(named("options edns0\n"), []);
    }
}
