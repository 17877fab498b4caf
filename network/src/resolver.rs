//! Whom the host asks for names.

use std::net::IpAddr;

/// The port of name servers.
pub(crate) const PORT: u16 = 53;

/// The longest file that is looked at.
const MAX: usize = 64 * 1024;

/// The first name server of `/etc/resolv.conf`. Without one there is none, though
/// resolv.conf(5) would have the one on this host: whatever listens there was not meant.
pub(crate) fn of_host() -> Option<IpAddr> {
    let text = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    let text = text.get(..text.len().min(MAX)).unwrap_or_default();
    first(&String::from_utf8_lossy(text))
}

fn first(text: &str) -> Option<IpAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        words.next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_server_counts() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver fe80::1%eth0\n\
                    nameserver 10.0.0.2 # here\nnameserver 10.0.0.3\n";
        assert_eq!(first(text), Some("10.0.0.2".parse().unwrap()));
        assert_eq!(first("options edns0\n"), None);
    }
}
