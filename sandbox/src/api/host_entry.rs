//! Lines for the guest's `/etc/hosts`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::code::ErrorCode;
use super::lenient;
use super::problem::quoted;

/// Longest host name in DNS.
const MAX_NAME: usize = 253;

/// Why a text is no host entry.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AddHostError {
    /// There is nothing.
    #[error("invalid add-host format: empty spec")]
    Empty,
    /// There is no `:`.
    #[error("invalid add-host format: {} (expected host:ip)", quoted(.0))]
    Format(String),
    /// The name is empty.
    #[error("invalid add-host hostname: empty host")]
    EmptyHost,
    /// The name has a blank in it.
    #[error("invalid add-host hostname: {} contains whitespace", quoted(.0))]
    Whitespace(String),
    /// The name has a `:` in it.
    #[error("invalid add-host hostname: {} must not contain ':'", quoted(.0))]
    Colon(String),
    /// The name has something in it that `/etc/hosts` gives another meaning.
    #[error("invalid add-host hostname: {} contains '#' or a control character", quoted(.0))]
    Character(String),
    /// The name is too long.
    #[error("invalid add-host hostname: {0} bytes long; at most 253 are allowed")]
    TooLong(usize),
    /// The address is empty.
    #[error("invalid add-host ip: empty ip")]
    EmptyIp,
    /// The address is none.
    #[error("invalid add-host ip: {}", quoted(.0))]
    Ip(String),
    /// An entry of a list is wrong.
    #[error("{source} in {}", quoted(spec))]
    InSpec {
        /// The entry.
        spec: String,
        /// What is wrong with it.
        source: Box<AddHostError>,
    },
}

impl AddHostError {
    /// The stable name of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Empty | Self::Format(_) => ErrorCode::AddHostFormat,
            Self::EmptyHost
            | Self::Whitespace(_)
            | Self::Colon(_)
            | Self::Character(_)
            | Self::TooLong(_) => ErrorCode::AddHostName,
            Self::EmptyIp | Self::Ip(_) => ErrorCode::AddHostIp,
            Self::InSpec { source, .. } => source.code(),
        }
    }
}

/// A name that the guest resolves to an address of the user's choice.
///
/// Read from `host:ip`, where the first `:` counts, so that IPv6 works; both are
/// trimmed, and the address is kept in its canonical form.
///
/// ```
/// use flashpan::api::HostIpMapping;
///
/// let entry: HostIpMapping = "db.internal:2001:DB8::1".parse()?;
/// assert_eq!(entry.to_string(), "db.internal:2001:db8::1");
/// # Ok::<(), flashpan::api::AddHostError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct HostIpMapping {
    /// The name: 1 to 253 bytes without blanks, `:`, `#` and control characters.
    #[serde(default, deserialize_with = "lenient::null")]
    pub host: String,
    /// An IPv4 or IPv6 address, as text.
    #[serde(default, deserialize_with = "lenient::null")]
    pub ip: String,
}

impl HostIpMapping {
    /// An entry that is checked later.
    pub fn new(host: impl Into<String>, ip: IpAddr) -> Self {
        Self {
            host: host.into(),
            ip: canonical(ip),
        }
    }

    /// Checks name and address.
    ///
    /// # Errors
    /// [`AddHostError`] for the first thing that is wrong.
    pub fn validate(&self) -> Result<(), AddHostError> {
        let host = self.host.as_str();
        if host.trim().is_empty() {
            return Err(AddHostError::EmptyHost);
        }
        if host.contains(char::is_whitespace) {
            return Err(AddHostError::Whitespace(host.to_owned()));
        }
        if host.contains(':') {
            return Err(AddHostError::Colon(host.to_owned()));
        }
        if host.contains(|c: char| c == '#' || c.is_control()) {
            return Err(AddHostError::Character(host.to_owned()));
        }
        if host.len() > MAX_NAME {
            return Err(AddHostError::TooLong(host.len()));
        }
        self.address().map(drop)
    }

    /// The address.
    ///
    /// # Errors
    /// [`AddHostError::EmptyIp`] and [`AddHostError::Ip`].
    pub fn address(&self) -> Result<IpAddr, AddHostError> {
        let ip = self.ip.trim();
        if ip.is_empty() {
            return Err(AddHostError::EmptyIp);
        }
        ip.parse().map_err(|_| AddHostError::Ip(ip.to_owned()))
    }

    /// Reads a list of entries.
    ///
    /// # Errors
    /// The first [`AddHostError`], with the entry that it is in.
    pub fn parse_all<S: AsRef<str>>(specs: &[S]) -> Result<Vec<Self>, AddHostError> {
        let parse = |spec: &S| {
            let spec = spec.as_ref();
            spec.parse().map_err(|source| AddHostError::InSpec {
                spec: spec.to_owned(),
                source: Box::new(source),
            })
        };
        specs.iter().map(parse).collect()
    }
}

impl FromStr for HostIpMapping {
    type Err = AddHostError;

    fn from_str(spec: &str) -> Result<Self, AddHostError> {
        let spec = spec.trim();
        if spec.is_empty() {
            return Err(AddHostError::Empty);
        }
        let (host, ip) = spec
            .split_once(':')
            .ok_or_else(|| AddHostError::Format(spec.to_owned()))?;
        let mut entry = Self {
            host: host.trim().to_owned(),
            ip: ip.trim().to_owned(),
        };
        entry.validate()?;
        entry.ip = canonical(entry.address()?);
        Ok(entry)
    }
}

impl fmt::Display for HostIpMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.ip)
    }
}

/// An IPv4 address within IPv6 is written as what it is.
fn canonical(ip: IpAddr) -> String {
    ip.to_canonical().to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepted() {
        for (spec, host, ip) in [
            ("db:10.0.0.1", "db", "10.0.0.1"),
            (" db : 10.0.0.1 ", "db", "10.0.0.1"),
            ("db:::1", "db", "::1"),
            ("db:2001:DB8:0::1", "db", "2001:db8::1"),
            ("db:::ffff:10.0.0.1", "db", "10.0.0.1"),
        ] {
            let entry: HostIpMapping = spec.parse().unwrap();
            assert_eq!(
                (entry.host.as_str(), entry.ip.as_str()),
                (host, ip),
                "{spec}"
            );
            entry.validate().unwrap();
        }
    }

    #[test]
    fn rejected() {
        let name = "invalid add-host hostname";
        for (spec, error, code) in [
            (
                "",
                "invalid add-host format: empty spec".to_owned(),
                "add_host_format",
            ),
            (
                " ",
                "invalid add-host format: empty spec".to_owned(),
                "add_host_format",
            ),
            (
                "db",
                "invalid add-host format: \"db\" (expected host:ip)".to_owned(),
                "add_host_format",
            ),
            (":10.0.0.1", format!("{name}: empty host"), "add_host_name"),
            (
                "a b:10.0.0.1",
                format!("{name}: \"a b\" contains whitespace"),
                "add_host_name",
            ),
            (
                "a#b:10.0.0.1",
                format!("{name}: \"a#b\" contains '#' or a control character"),
                "add_host_name",
            ),
            (
                "db:",
                "invalid add-host ip: empty ip".to_owned(),
                "add_host_ip",
            ),
            (
                "db:x",
                "invalid add-host ip: \"x\"".to_owned(),
                "add_host_ip",
            ),
            (
                "db:10.0.0.01",
                "invalid add-host ip: \"10.0.0.01\"".to_owned(),
                "add_host_ip",
            ),
            (
                "db:fe80::1%eth0",
                "invalid add-host ip: \"fe80::1%eth0\"".to_owned(),
                "add_host_ip",
            ),
        ] {
            let found = spec.parse::<HostIpMapping>().unwrap_err();
            assert_eq!(found.to_string(), error, "{spec:?}");
            assert_eq!(found.code().as_str(), code, "{spec:?}");
        }
    }

    #[test]
    fn entries_that_were_not_read_from_a_text_are_checked_too() {
        let address = "10.0.0.1".parse().unwrap();
        let colon = HostIpMapping::new("a:b", address).validate().unwrap_err();
        assert_eq!(
            colon.to_string(),
            "invalid add-host hostname: \"a:b\" must not contain ':'"
        );
        let blank = HostIpMapping::new("  ", address).validate().unwrap_err();
        assert_eq!(blank, AddHostError::EmptyHost);
        let long = HostIpMapping::new("x".repeat(254), address).validate();
        assert_eq!(long, Err(AddHostError::TooLong(254)));
        HostIpMapping::new("db", address).validate().unwrap();
    }

    #[test]
    fn an_error_in_a_list_names_the_entry() {
        assert_eq!(HostIpMapping::parse_all::<&str>(&[]), Ok(vec![]));
        let error = HostIpMapping::parse_all(&["db:10.0.0.1", "x"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid add-host format: \"x\" (expected host:ip) in \"x\""
        );
        assert_eq!(error.code(), ErrorCode::AddHostFormat);
    }

    proptest! {
        #[test]
        fn no_text_is_a_problem(spec in any::<String>()) {
            let _ = spec.parse::<HostIpMapping>();
        }

        #[test]
        fn what_is_written_is_read_again(host in "[a-z0-9.-]{1,20}", ip in any::<IpAddr>()) {
            let entry = HostIpMapping::new(host, ip);
            prop_assert_eq!(entry.to_string().parse(), Ok(entry));
        }
    }
}
