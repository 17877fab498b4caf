//! Names of hosts, and addresses in place of them, in the one form in which they are
//! compared.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use thiserror::Error;

use crate::address::plain;

/// Why a text is no host.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HostError {
    /// There is nothing.
    #[error("a host is empty")]
    Empty,
    /// It is neither a name nor an address.
    #[error("{0:?} is no name of a host, and no address")]
    Name(String),
    /// It ends in a number as an address does, and is none that is written in full.
    #[error("{0:?} looks like an address, and is not written as one: four numbers, all decimal")]
    Number(String),
    /// The port is none.
    #[error("{0:?} is no port: give 1 to 65535")]
    Port(String),
}

/// How much of a text an error shows.
const SHOWN: usize = 80;

/// What an error shows of a text.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// A name of a host: in lower case, without a dot at its end, in ASCII (UTS 46), at most
/// 253 bytes, of labels of 1 to 63 letters, digits, `-` and `_`.
///
/// ```
/// use flashpan_network::host::Name;
///
/// let name: Name = "API.Bücher.example.".parse()?;
/// assert_eq!(name.as_str(), "api.xn--bcher-kva.example");
/// # Ok::<(), flashpan_network::host::HostError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Box<str>);

impl Name {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        let wrong = || HostError::Name(shown(text));
        let name = Uts46::new()
            .to_ascii(
                text.as_bytes(),
                AsciiDenyList::URL,
                Hyphens::Allow,
                DnsLength::VerifyAllowRootDot,
            )
            .map_err(|_| wrong())?;
        let name = name.strip_suffix('.').unwrap_or(&name);
        let is_plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || !name.bytes().all(is_plain) {
            return Err(wrong());
        }
        // Whoever resolves it by the old rules would take it for an address, in forms
        // that nobody reads as one: 0x7f.1 is 127.0.0.1.
        let last = name.rsplit('.').next().unwrap_or(name);
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
        let is_hexadecimal = last
            .strip_prefix("0x")
            .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if is_number || is_hexadecimal {
            return Err(HostError::Number(shown(text)));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host: by name, or by address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// By name.
    Name(Name),
    /// By address, an IPv4 address never in the form of IPv6.
    Address(IpAddr),
}

impl Host {
    /// The name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&Name> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self::Address(plain(address))
    }
}

impl FromStr for Host {
    type Err = HostError;

    /// Reads a name or an address; one of IPv6 may have brackets.
    fn from_str(text: &str) -> Result<Self, HostError> {
        let bracketed = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        if let Some(address) = bracketed {
            let address: Ipv6Addr = address.parse().map_err(|_| HostError::Name(shown(text)))?;
            return Ok(IpAddr::V6(address).into());
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(address.into()),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl fmt::Display for Host {
    /// An address of IPv6 has brackets, so that a port can follow.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// A host and a port, as requests name them: `host`, `host:port`, `[v6]:port`.
///
/// Nothing else is one: no user, no blanks, no path. An address of IPv6 needs brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The port, if it was named.
    pub port: Option<u16>,
}

impl FromStr for Authority {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let (host, port) = split_port(text);
        let port = port.map(parse_port).transpose()?;
        if !host.starts_with('[') && host.contains(':') {
            return Err(HostError::Name(shown(text)));
        }
        Ok(Self {
            host: host.parse()?,
            port,
        })
    }
}

/// What is before and after the colon of a port. Colons in brackets, and two of them
/// without, are not that.
pub(crate) fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, port)) if host.ends_with(']') || !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

/// A port in plain decimal.
pub(crate) fn parse_port(text: &str) -> Result<u16, HostError> {
    let wrong = || HostError::Port(shown(text));
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_name_has_one_form() {
        for (text, name) in [
            ("api.allowed.test", "api.allowed.test"),
            ("API.Allowed.Test.", "api.allowed.test"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            // Full-width letters and dots, and a soft hyphen.
            ("ａｐｉ．test", "api.test"),
            ("a\u{ad}pi.test", "api.test"),
            ("a。test", "a.test"),
            ("_dmarc.a-b.test", "_dmarc.a-b.test"),
            ("localhost", "localhost"),
            ("1password.com", "1password.com"),
        ] {
            let host: Host = text.parse().unwrap();
            assert_eq!(host.to_string(), name, "{text:?}");
            assert_eq!(host.name().unwrap().as_str(), name);
        }
    }

    #[test]
    fn an_address_is_written_in_full() {
        for (text, address) in [
            ("1.2.3.4", "1.2.3.4"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("[::1]", "[::1]"),
            ("2606:4700::1111", "[2606:4700::1111]"),
        ] {
            let host: Host = text.parse().unwrap();
            assert_eq!(host.to_string(), address);
            assert_eq!(host.name(), None);
        }
    }

    #[test]
    fn what_is_no_host() {
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a b",
            "a\t",
            "a\0.allowed.test",
            "a%2eb",
            "a/b",
            "a#.evil.test",
            "a@b",
            "a:b",
            "[1.2.3.4]",
            "[::1",
            "fe80::1%eth0",
            // Addresses as only old programs read them.
            "2130706433",
            "0177.0.0.1",
            "127.1",
            "0x7f.1",
            "0x7f000001",
            "1.2.3.4.5",
            "1.2.3.4.",
            "a.0x",
            &"a".repeat(64),
            &"a.".repeat(128),
        ] {
            assert!(text.parse::<Host>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_authority_is_a_host_and_a_port_and_nothing_else() {
        let parsed = |text: &str| {
            let authority: Authority = text.parse().ok()?;
            Some((authority.host.to_string(), authority.port))
        };
        for (text, host, port) in [
            ("A.test", "a.test", None),
            ("a.test:443", "a.test", Some(443)),
            ("[::1]:80", "[::1]", Some(80)),
            ("[::1]", "[::1]", None),
            ("1.2.3.4:80", "1.2.3.4", Some(80)),
        ] {
            assert_eq!(parsed(text), Some((host.to_owned(), port)), "{text}");
        }
        for text in [
            "",
            ":80",
            "a.test:",
            "a.test:0",
            "a.test:65536",
            "a.test:+1",
            "a.test: 1",
            "a.test:443@evil.test",
            "a.test,b.test",
            "::1",
            "::1:80",
            "user@a.test",
            "a.test:1:2",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
