//! What a script sees of requests and connections.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use flashpan_protocol::network::Protocol;
use http::header::COOKIE;
use http::{HeaderMap, HeaderName};

use crate::host::Host;

/// A request, as the guest sent it: where it has a secret, a script sees the placeholder.
#[derive(Debug, Clone)]
pub struct Request(pub(super) Arc<Asked>);

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) scheme: &'static str,
    pub(super) method: String,
    pub(super) host: Host,
    pub(super) port: u16,
    /// In its one form.
    pub(super) path: String,
    pub(super) query: String,
    /// What the connection is to become; empty: nothing.
    pub(super) upgrade: &'static str,
    /// With names in lower case, each once.
    pub(super) headers: Vec<(String, String)>,
}

impl Request {
    /// A request to this host, in TLS or not. `path` has been through
    /// [`path::normal`](crate::policy::path::normal).
    #[must_use]
    pub fn new(host: Host, port: u16, tls: bool, method: &str, path: &str, query: &str) -> Self {
        Self(Arc::new(Asked {
            scheme: if tls { "https" } else { "http" },
            method: method.to_owned(),
            host,
            port,
            path: path.to_owned(),
            query: query.to_owned(),
            upgrade: "",
            headers: Vec::new(),
        }))
    }

    /// With these headers. Of one that is there several times the values are joined, as who
    /// gets them may do (RFC 9110 §5.3). Bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn with_headers(mut self, headers: &HeaderMap) -> Self {
        if let Some(asked) = Arc::get_mut(&mut self.0) {
            let joined = |name: &HeaderName| {
                let values = headers.get_all(name).iter();
                let values: Vec<_> = values
                    .map(|value| String::from_utf8_lossy(value.as_bytes()))
                    .collect();
                let between = if name == COOKIE { "; " } else { ", " };
                (name.as_str().to_owned(), values.join(between))
            };
            asked.headers = headers.keys().map(joined).collect();
        }
        self
    }

    /// One that is for a WebSocket: what comes after it is no request, and is not shown.
    #[must_use]
    pub fn for_websocket(mut self) -> Self {
        if let Some(asked) = Arc::get_mut(&mut self.0) {
            asked.upgrade = "websocket";
        }
        self
    }

    /// The host and port, as they are told.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.0.host, self.0.port)
    }
}

/// A connection of the host's that is about to be made.
#[derive(Debug, Clone)]
pub struct Connection {
    pub(super) protocol: Protocol,
    pub(super) host: Host,
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

impl Connection {
    /// A connection to an address of this host, if that is known.
    #[must_use]
    pub fn new(protocol: Protocol, host: Host, address: Option<IpAddr>, port: u16) -> Self {
        let address = match host {
            Host::Address(address) => Some(address),
            Host::Name(_) => address.map(crate::address::plain),
        };
        Self {
            protocol,
            host,
            address,
            port,
        }
    }

    /// The host and port, as they are told.
    pub(super) fn place(&self) -> String {
        let Self { host, port, .. } = self;
        match self.protocol {
            Protocol::Tcp => format!("{host}:{port}"),
            Protocol::Udp => format!("udp:{host}:{port}"),
        }
    }
}

/// A host as a script sees it: without brackets.
pub(super) fn plain(host: &Host) -> String {
    match host {
        Host::Name(name) => name.to_string(),
        Host::Address(address) => address.to_string(),
    }
}

impl fmt::Display for Asked {
    /// Its URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            scheme, host, port, ..
        } = self;
        write!(f, "{scheme}://{host}")?;
        if *port != if *scheme == "https" { 443 } else { 80 } {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)?;
        match self.query.as_str() {
            "" => Ok(()),
            query => write!(f, "?{query}"),
        }
    }
}
