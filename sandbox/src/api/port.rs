//! Ports of the host that lead to ports of the guest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::code::ErrorCode;
use super::problem::quoted;

/// Why a text is no port forward.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PortForwardError {
    /// There is nothing.
    #[error("invalid port-forward spec format: empty spec")]
    Empty,
    /// It has more than two parts.
    #[error(
        "invalid port-forward spec format: {} (expected [LOCAL_PORT:]REMOTE_PORT)",
        quoted(.0)
    )]
    Parts(String),
    /// There is nothing before the `:`.
    #[error("invalid port-forward spec format: empty local port")]
    EmptyLocal,
    /// There is nothing after the `:`.
    #[error("invalid port-forward spec format: empty remote port")]
    EmptyRemote,
    /// A port is no whole number.
    #[error("invalid port {}: not a whole number", quoted(.0))]
    NotANumber(String),
    /// A port is out of range.
    #[error("invalid port {0}: must be in range 1-65535")]
    OutOfRange(String),
    /// What stands before both ports is no address.
    #[error(
        "invalid address {}: must be an IP address, of IPv6 in brackets",
        quoted(.0)
    )]
    Address(String),
    /// There is an address, and not both ports.
    #[error("invalid port-forward spec format: {} has an address and needs both ports", quoted(.0))]
    OnePort(String),
    /// What follows the `/` is no transport.
    #[error("invalid transport {}: must be tcp or udp", quoted(.0))]
    Transport(String),
}

impl PortForwardError {
    /// The stable name of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Empty
            | Self::Parts(_)
            | Self::EmptyLocal
            | Self::EmptyRemote
            | Self::Address(_)
            | Self::OnePort(_)
            | Self::Transport(_) => ErrorCode::PortForwardFormat,
            Self::NotANumber(_) | Self::OutOfRange(_) => ErrorCode::PortInvalid,
        }
    }
}

/// A port of the host that leads to a port of the guest.
///
/// Read from `[LOCAL_PORT:]REMOTE_PORT`, both 1 to 65535; written as
/// `LOCAL_PORT:REMOTE_PORT`. In JSON, `local_port` may also be 0: any free port.
///
/// ```
/// use flashpan::api::PortForward;
///
/// assert_eq!("80".parse::<PortForward>()?, PortForward { local_port: 80, remote_port: 80 });
/// assert_eq!("8080:80".parse::<PortForward>()?.to_string(), "8080:80");
/// # Ok::<(), flashpan::api::PortForwardError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortForward {
    /// The port of the host; 0 is any free one.
    pub local_port: u16,
    /// The port of the guest, not 0.
    pub remote_port: u16,
}

impl PortForward {
    /// Reads a list of port forwards.
    ///
    /// # Errors
    /// The first [`PortForwardError`].
    pub fn parse_all<S: AsRef<str>>(specs: &[S]) -> Result<Vec<Self>, PortForwardError> {
        specs.iter().map(|spec| spec.as_ref().parse()).collect()
    }
}

impl FromStr for PortForward {
    type Err = PortForwardError;

    fn from_str(spec: &str) -> Result<Self, PortForwardError> {
        let spec = spec.trim();
        if spec.is_empty() {
            return Err(PortForwardError::Empty);
        }
        let (local, remote) = match spec.split_once(':') {
            None => (spec, spec),
            Some((_, remote)) if remote.contains(':') => {
                return Err(PortForwardError::Parts(spec.to_owned()));
            }
            Some((local, remote)) => (local.trim(), remote.trim()),
        };
        if local.is_empty() {
            return Err(PortForwardError::EmptyLocal);
        }
        if remote.is_empty() {
            return Err(PortForwardError::EmptyRemote);
        }
        Ok(Self {
            local_port: port(local)?,
            remote_port: port(remote)?,
        })
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.local_port, self.remote_port)
    }
}

fn port(text: &str) -> Result<u16, PortForwardError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(PortForwardError::NotANumber(text.to_owned()));
    }
    let number: Option<u16> = text.parse().ok();
    number.filter(|port| *port != 0).ok_or_else(|| {
        let shown: String = text.chars().take(24).collect();
        PortForwardError::OutOfRange(shown)
    })
}

/// A port of the host that is listened on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortForwardBinding {
    /// The address of the host, as text.
    pub address: String,
    /// The port of the host, never 0.
    pub local_port: u16,
    /// The port of the guest.
    pub remote_port: u16,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepted() {
        for (spec, local_port, remote_port) in [
            ("80", 80, 80),
            (" 80 ", 80, 80),
            ("8080:80", 8080, 80),
            (" 8080 : 80 ", 8080, 80),
            ("1:65535", 1, 65535),
            ("+80", 80, 80),
            ("080", 80, 80),
        ] {
            let expected = PortForward {
                local_port,
                remote_port,
            };
            assert_eq!(spec.parse(), Ok(expected), "{spec:?}");
        }
    }

    #[test]
    fn rejected() {
        let format = "invalid port-forward spec format";
        let range = "must be in range 1-65535";
        for (spec, error, code) in [
            ("", format!("{format}: empty spec"), "port_forward_format"),
            ("  ", format!("{format}: empty spec"), "port_forward_format"),
            (
                "1:2:3",
                format!("{format}: \"1:2:3\" (expected [LOCAL_PORT:]REMOTE_PORT)"),
                "port_forward_format",
            ),
            (
                ":80",
                format!("{format}: empty local port"),
                "port_forward_format",
            ),
            (
                "80:",
                format!("{format}: empty remote port"),
                "port_forward_format",
            ),
            (
                " : ",
                format!("{format}: empty local port"),
                "port_forward_format",
            ),
            (
                "x",
                "invalid port \"x\": not a whole number".to_owned(),
                "port_invalid",
            ),
            (
                "80:+",
                "invalid port \"+\": not a whole number".to_owned(),
                "port_invalid",
            ),
            (
                "1.5",
                "invalid port \"1.5\": not a whole number".to_owned(),
                "port_invalid",
            ),
            ("0:8080", format!("invalid port 0: {range}"), "port_invalid"),
            ("80:0", format!("invalid port 0: {range}"), "port_invalid"),
            ("-1", format!("invalid port -1: {range}"), "port_invalid"),
            (
                "65536",
                format!("invalid port 65536: {range}"),
                "port_invalid",
            ),
        ] {
            let found = spec.parse::<PortForward>().unwrap_err();
            assert_eq!(found.to_string(), error, "{spec:?}");
            assert_eq!(found.code().as_str(), code, "{spec:?}");
        }
    }

    #[test]
    fn lists_are_read_in_order() {
        assert_eq!(PortForward::parse_all::<&str>(&[]), Ok(vec![]));
        let both = PortForward::parse_all(&["80", "8443:443"]).unwrap();
        assert_eq!(both[0].to_string(), "80:80");
        assert_eq!(both[1].to_string(), "8443:443");
        assert!(PortForward::parse_all(&["80", "0"]).is_err());
    }

    #[test]
    fn json_has_numbers() {
        let json = r#"{"local_port":0,"remote_port":80}"#;
        let any: PortForward = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&any).unwrap(), json);
        let json = r#"{"address":"127.0.0.1","local_port":40000,"remote_port":80}"#;
        let binding: PortForwardBinding = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&binding).unwrap(), json);
    }

    proptest! {
        #[test]
        fn no_text_is_a_problem(spec in any::<String>()) {
            let _ = spec.parse::<PortForward>();
        }

        #[test]
        fn what_is_written_is_read_again(local_port in 1..=u16::MAX, remote_port in 1..=u16::MAX) {
            let forward = PortForward { local_port, remote_port };
            prop_assert_eq!(forward.to_string().parse(), Ok(forward));
        }
    }
}
