//! Patterns of hosts and ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use flashpan_protocol::network::Protocol;
use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

use crate::address::plain;
use crate::host::{Host, HostError, Name, parse_port, shown, split_port};

/// The longest pattern, in bytes: the longest name, with a protocol and ports.
const MAX: usize = 300;

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PatternError {
    /// The host of it is none.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It has characters that no name has.
    #[error("{0:?} is no pattern of hosts: names, `*`, addresses and networks are")]
    Glob(String),
    /// It is a glob of numbers.
    #[error(
        "{0:?} means no address: of IPv4 the first numbers can be given, as in `10.0.*`, or a network, as in `10.0.0.0/16`"
    )]
    Numbers(String),
    /// It is a URL, or part of one.
    #[error("{0:?} is not a host: give the name alone, without scheme and path")]
    Url(String),
    /// The network is none.
    #[error(
        "{0:?} is no network: an address, `/`, and the bits of its prefix, with no other bit set"
    )]
    Network(String),
    /// The range of ports is none.
    #[error("{0:?} is no range of ports: the first and the last, with `-`")]
    Ports(String),
    /// It is too long.
    #[error("a pattern of {0} bytes; at most 300 are allowed")]
    Length(usize),
}

/// Which hosts, which ports, by which protocol: `[udp:]HOST[:PORT[-PORT]]`.
///
/// `HOST` is one of
///
/// * a name, or a glob of one: `*` is all; `*.x` is everything that ends in `.x`, at any
///   depth, but not `x`; `x.*` is everything that begins with `x.`; in any other pattern
///   each `*` is any run of characters, dots included. Case does not matter, and letters
///   beyond ASCII are in their DNS form.
/// * an address (`192.0.2.1`, `2001:db8::1`, with a port in brackets), a network
///   (`10.0.0.0/8`), or the first numbers of an IPv4 address (`10.0.*`).
///
/// Without a port it means all of TCP; with `udp:` UDP in place of it, which it never
/// means otherwise, but where it denies: there it means both.
///
/// ```
/// use flashpan_network::policy::Pattern;
///
/// for pattern in ["*.example.com", "db.internal:5432", "udp:time.example.com:123", "10.0.0.0/8:22"] {
///     assert_eq!(pattern.parse::<Pattern>()?.to_string(), pattern);
/// }
/// # Ok::<(), flashpan_network::policy::PatternError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    protocol: Protocol,
    /// Whether the protocol was not named.
    is_short: bool,
    what: What,
    ports: Option<RangeInclusive<u16>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// `*`: names, and addresses.
    All,
    Names(Glob),
    Addresses(IpNet),
}

impl Pattern {
    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it means this name on this port.
    #[must_use]
    pub fn matches_name(&self, protocol: Protocol, name: &Name, port: u16) -> bool {
        self.protocol == protocol && self.has_port(port) && self.has_name(name)
    }

    /// Whether it means this address on this port.
    #[must_use]
    pub fn matches_address(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        let has_address = match &self.what {
            What::All => true,
            What::Names(_) => false,
            What::Addresses(network) => network.contains(&plain(address)),
        };
        self.protocol == protocol && self.has_port(port) && has_address
    }

    /// Whether it denies this host on this port, if it is there to deny.
    #[must_use]
    pub fn denies(&self, protocol: Protocol, host: &Host, port: u16) -> bool {
        let protocol = if self.is_short {
            self.protocol
        } else {
            protocol
        };
        self.matches(protocol, host, port)
    }

    /// Whether it means this host on this port.
    #[must_use]
    pub fn matches(&self, protocol: Protocol, host: &Host, port: u16) -> bool {
        match host {
            Host::Name(name) => self.matches_name(protocol, name, port),
            Host::Address(address) => self.matches_address(protocol, *address, port),
        }
    }

    /// Whether it means this name on any port.
    #[must_use]
    pub fn has_name(&self, name: &Name) -> bool {
        match &self.what {
            What::All => true,
            What::Names(glob) => glob.matches(name.as_str()),
            What::Addresses(_) => false,
        }
    }

    /// Whether it names addresses, and this one among them: what is not of the internet
    /// has to be named so.
    #[must_use]
    pub fn names_address(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        matches!(self.what, What::Addresses(_)) && self.matches_address(protocol, address, port)
    }

    /// Whether it names addresses, and this one among them, on any port.
    #[must_use]
    pub fn has_address(&self, address: IpAddr) -> bool {
        match &self.what {
            What::Addresses(network) => network.contains(&plain(address)),
            What::All | What::Names(_) => false,
        }
    }

    /// Whether it says on its own which names it means: one, and no other.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        matches!(self.what, What::Names(Glob::Exact(_)))
    }

    /// Whether it means everything.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.what == What::All
    }

    /// Whether it means every host there is, or all but those that have no dot in their name,
    /// on whatever ports: `*`, `*.*`, `0.0.0.0/0`.
    #[must_use]
    pub fn is_every_host(&self) -> bool {
        let is_dots = |piece: &String| piece.bytes().all(|byte| byte == b'.');
        match &self.what {
            What::All => true,
            What::Names(Glob::Pieces(pieces)) => pieces.iter().all(is_dots),
            What::Names(_) => false,
            What::Addresses(network) => network.prefix_len() == 0,
        }
    }

    /// The protocol that it allows.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether it denies all of a host, if it is there to deny: on every port, and by both
    /// protocols.
    #[must_use]
    pub fn denies_all(&self) -> bool {
        self.is_short && !self.has_ports()
    }

    /// Whether it means the same as another, however it is written.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let all = |of: &Self| (of.protocol, of.what.clone(), of.ports.clone());
        all(self) == all(other)
    }

    /// Whether it names its ports.
    #[must_use]
    pub fn has_ports(&self) -> bool {
        self.ports.is_some()
    }

    pub(super) fn has_port(&self, port: u16) -> bool {
        self.ports
            .as_ref()
            .is_none_or(|ports| ports.contains(&port))
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX {
            return Err(PatternError::Length(text.len()));
        }
        let (protocol, is_short, rest) = match text.split_once(':') {
            Some(("udp", rest)) => (Protocol::Udp, false, rest),
            Some(("tcp", rest)) => (Protocol::Tcp, false, rest),
            _ => (Protocol::Tcp, true, text),
        };
        if text.contains("://") {
            return Err(PatternError::Url(shown(text)));
        }
        let (host, ports) = split_port(rest);
        Ok(Self {
            text: text.to_owned(),
            protocol,
            is_short,
            what: what(host)?,
            ports: ports.map(parse_ports).transpose()?,
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn what(host: &str) -> Result<What, PatternError> {
    if host == "*" {
        return Ok(What::All);
    }
    if let Some((address, _)) = host.split_once('/') {
        let is_network = address.trim_start_matches('[').parse::<IpAddr>().is_ok();
        let wrong = || match is_network {
            true => PatternError::Network(shown(host)),
            false => PatternError::Url(shown(host)),
        };
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let network: IpNet = bare.unwrap_or(host).parse().map_err(|_| wrong())?;
        // A bit beyond the prefix is a slip of the pen: 10.1.2.3/8 means one of two things.
        if network.addr() != network.network() {
            return Err(wrong());
        }
        return Ok(What::Addresses(network));
    }
    if let Some(network) = first_numbers(host) {
        return Ok(What::Addresses(network.into()));
    }
    if host.contains('*') {
        return Glob::parse(host).map(What::Names);
    }
    Ok(match host.parse()? {
        Host::Name(name) => What::Names(Glob::Exact(name)),
        Host::Address(address) => What::Addresses(address.into()),
    })
}

/// The network of `10.*`, `10.0.*` or `10.0.0.*`.
fn first_numbers(host: &str) -> Option<Ipv4Net> {
    let numbers: Vec<u8> = host
        .strip_suffix(".*")?
        .split('.')
        .map(|number| {
            let is_digits = number.bytes().all(|byte| byte.is_ascii_digit());
            number.parse().ok().filter(|_| is_digits)
        })
        .collect::<Option<_>>()?;
    let mut octets = [0; 4];
    octets.get_mut(..numbers.len())?.copy_from_slice(&numbers);
    let bits = u8::try_from(numbers.len() * 8)
        .ok()
        .filter(|bits| *bits < 32)?;
    Ipv4Net::new(Ipv4Addr::from(octets), bits).ok()
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, PatternError> {
    let Some((first, last)) = text.split_once('-') else {
        let port = parse_port(text)?;
        return Ok(port..=port);
    };
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    match first <= last {
        true => Ok(first..=last),
        false => Err(PatternError::Ports(shown(text))),
    }
}

/// What is between labels, in ASCII and in what is mapped to it (UTS 46).
const DOTS: [char; 4] = ['.', '\u{3002}', '\u{ff0e}', '\u{ff61}'];

/// A pattern of names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Glob {
    /// One name.
    Exact(Name),
    /// `*.x`, with the dot.
    Suffix(String),
    /// `x.*`, with the dot.
    Prefix(String),
    /// What is between the stars.
    Pieces(Vec<String>),
}

impl Glob {
    /// Reads a pattern with at least one `*`.
    fn parse(text: &str) -> Result<Self, PatternError> {
        let wrong = || PatternError::Glob(shown(text));
        let text = text.strip_suffix('.').unwrap_or(text);
        // No name is like that, and of addresses only the first numbers can be given.
        let is_number = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'*');
        let is_dotted = text.bytes().any(|byte| byte.is_ascii_digit()) && text.contains('.');
        if is_dotted && text.bytes().all(is_number) {
            return Err(PatternError::Numbers(shown(text)));
        }
        // The form that a label has in DNS is of all of it.
        let is_partial = |label: &str| label.contains('*') && !label.is_ascii();
        if text.split(DOTS).any(is_partial) {
            return Err(wrong());
        }
        let pieces: Vec<String> = text
            .split('*')
            .map(|piece| {
                let piece = Uts46::new()
                    .to_ascii(
                        piece.as_bytes(),
                        AsciiDenyList::URL,
                        Hyphens::Allow,
                        DnsLength::Ignore,
                    )
                    .map_err(|_| wrong())?;
                Ok(piece.into_owned())
            })
            .collect::<Result<_, PatternError>>()?;
        let is_plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let mapped = pieces.join("*");
        let is_dotted = mapped.starts_with('.') || mapped.contains("..");
        if is_dotted || !pieces.concat().bytes().all(is_plain) {
            return Err(wrong());
        }
        match pieces.as_slice() {
            [first, rest] if first.is_empty() && rest.starts_with('.') => {
                Ok(Self::Suffix(rest.clone()))
            }
            [start, last] if last.is_empty() && start.ends_with('.') => {
                Ok(Self::Prefix(start.clone()))
            }
            _ => Ok(Self::Pieces(pieces)),
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.as_str() == name,
            Self::Suffix(suffix) => name.len() > suffix.len() && name.ends_with(suffix.as_str()),
            Self::Prefix(prefix) => name.len() > prefix.len() && name.starts_with(prefix.as_str()),
            Self::Pieces(pieces) => matches_pieces(pieces, name),
        }
    }
}

/// Whether a name is these pieces with anything between them. The first occurrence of
/// each is as good as any other, so that one pass is enough.
pub(super) fn matches_pieces(pieces: &[String], name: &str) -> bool {
    let [first, middle @ .., last] = pieces else {
        return false;
    };
    let Some(mut rest) = name.strip_prefix(first.as_str()) else {
        return false;
    };
    for piece in middle {
        match rest.split_once(piece.as_str()) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last.as_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn names(pattern: &str, host: &str) -> bool {
        let pattern: Pattern = pattern.parse().unwrap();
        pattern.matches(Protocol::Tcp, &host.parse().unwrap(), 443)
    }

    /// What could match nothing that it seems to mean would deny nothing.
    #[test]
    fn globs_that_mean_nothing_are_refused() {
        for text in [
            "192.168.*.*",
            "10.*.1.*",
            "1*.2",
            "+10.*",
            "*\u{e9}.com",
            "a.*\u{fc}*.test",
            "*\u{3002}\u{3002}test",
            ".*.test",
        ] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
        for text in ["10.0.*", "1*", "*.\u{e9}.com", "*\u{3002}test", "a-1.*"] {
            assert!(text.parse::<Pattern>().is_ok(), "{text}");
        }
        assert!(names("*\u{3002}test", "a.test"));
    }

    #[test]
    fn patterns_are_the_same_however_they_are_written() {
        let is_same = |one: &str, other: &str| {
            let parsed = |text: &str| text.parse::<Pattern>().unwrap();
            parsed(one).is_same(&parsed(other))
        };
        assert!(is_same("Example.com", "example.com."));
        assert!(is_same("tcp:a.test:80", "A.test:80-80"));
        assert!(is_same("10.*", "10.0.0.0/8"));
        for other in ["b.test", "udp:a.test", "a.test:80", "*.a.test"] {
            assert!(!is_same("a.test", other), "{other}");
        }
    }

    /// The table of the interface, and names that only look like a match.
    #[test]
    fn globs() {
        for (pattern, host, matches) in [
            ("*", "a.test", true),
            ("*", "192.0.2.1", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "xexample.com", false),
            ("*.example.com", "a.example.com.evil.test", false),
            ("api-*.example.com", "api-v1.example.com", true),
            ("api-*.example.com", "api-.example.com", true),
            ("api-*.example.com", "api-v1.example.com.evil.test", false),
            ("prefix.*", "prefix.com", true),
            ("prefix.*", "prefix.co.uk", true),
            ("prefix.*", "prefixed.com", false),
            ("*.*.example.com", "a.b.example.com", true),
            ("*.*.example.com", "b.example.com", false),
            ("*.example.com.", "b.example.com", true),
            ("*a*a*", "aa.test", true),
            ("*ab", "aab", true),
            ("a*a", "a", false),
            ("*.x.*.x", "a.x.x", false),
            ("allowed.test", "ALLOWED.Test.", true),
            ("Bücher.example", "xn--bcher-kva.example", true),
            ("*.Bücher.example", "a.bücher.example", true),
            ("allowed.test", "evil-allowed.test", false),
            ("allowed.test", "allowed.test.evil.test", false),
            ("*.test", "192.0.2.1", false),
            ("1*", "192.0.2.1", false),
        ] {
            assert_eq!(names(pattern, host), matches, "{pattern} {host}");
        }
    }

    #[test]
    fn addresses_and_networks() {
        for (pattern, host, matches) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("::ffff:192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.10", false),
            ("192.0.2.0/24", "192.0.2.10", true),
            ("192.0.2.*", "192.0.2.10", true),
            ("192.*", "192.255.0.1", true),
            ("192.0.*", "192.1.0.1", false),
            ("2001:db8::/32", "2001:db8::1", true),
            ("[2001:db8::]/32", "2001:db8::1", false),
            ("2001:db8::1", "2001:db8::1", true),
            ("[2001:db8::1]:443", "2001:db8::1", true),
            ("[2001:db8::/32]:443", "2001:db9::1", false),
        ] {
            let parsed = pattern.parse::<Pattern>();
            let Ok(parsed) = parsed else {
                assert_eq!(pattern, "[2001:db8::]/32");
                continue;
            };
            let host = host.parse().unwrap();
            assert_eq!(
                parsed.matches(Protocol::Tcp, &host, 443),
                matches,
                "{pattern} {host}"
            );
        }
    }

    #[test]
    fn ports_and_protocols() {
        let matches = |pattern: &str, protocol, port| {
            let name = "a.test".parse().unwrap();
            let pattern: Pattern = pattern.parse().unwrap();
            pattern.matches_name(protocol, &name, port)
        };
        assert!(matches("a.test", Protocol::Tcp, 22));
        assert!(!matches("a.test", Protocol::Udp, 22));
        assert!(!matches("*", Protocol::Udp, 22));
        assert!(matches("a.test:22", Protocol::Tcp, 22));
        assert!(matches("tcp:a.test:22", Protocol::Tcp, 22));
        assert!(!matches("a.test:22", Protocol::Tcp, 23));
        assert!(matches("*:8000-8002", Protocol::Tcp, 8002));
        assert!(!matches("*:8000-8002", Protocol::Tcp, 8003));
        assert!(matches("udp:a.test:53", Protocol::Udp, 53));
        assert!(!matches("udp:a.test:53", Protocol::Tcp, 53));
    }

    #[test]
    fn some_patterns_mean_every_host() {
        for (pattern, every) in [
            ("*", true),
            ("tcp:*", true),
            ("*:1-65535", true),
            ("**:443", true),
            ("*.*", true),
            ("tcp:*.**:443", true),
            ("0.0.0.0/0", true),
            ("::/0", true),
            ("[::/0]:443", true),
            ("*.com", false),
            ("a*", false),
            ("10.0.0.0/8", false),
            ("a.test", false),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            assert_eq!(parsed.is_every_host(), every, "{pattern}");
        }
    }

    #[test]
    fn what_is_no_pattern() {
        for pattern in [
            "",
            ":443",
            "a.test:",
            "a.test:0",
            "a.test:99999",
            "a.test:9-8",
            "a.test:a-b",
            "https://a.test",
            "a.test/path",
            "a test",
            "*.a test",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0",
            "127.1",
            "*..test",
            ".*.test",
            "a\0*",
            "icmp:a.test:1",
            &"a".repeat(301),
        ] {
            assert!(pattern.parse::<Pattern>().is_err(), "{pattern:?}");
        }
    }
}
