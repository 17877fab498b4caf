//! Whom a request is for: everything that says so has to say the same.

use std::net::SocketAddr;

use http::header::HOST;
use http::{HeaderValue, StatusCode, Version, request};

use super::failure::Failure;
use crate::host::{Authority, Host};
use crate::policy::Code;

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: Host,
    pub(crate) port: u16,
    /// The same, as the request has it.
    pub(crate) authority: HeaderValue,
}

impl Target {
    /// Whom this request is for. `named` is the host that TLS named, if there is TLS;
    /// `destination` is where the guest sent it.
    ///
    /// # Errors
    /// It does not say it clearly, or says something else than TLS did.
    pub(crate) fn of(
        parts: &request::Parts,
        named: Option<&Host>,
        destination: SocketAddr,
    ) -> Result<Self, Failure> {
        let port = destination.port();
        let default = || match named {
            Some(host) => host.clone(),
            None => Host::from(destination.ip()),
        };
        let whence = || format!("{}:{port}", default());
        let ambiguous = || Failure::ambiguous(whence());
        let mut headers = parts.headers.get_all(HOST).iter();
        let header = match (headers.next(), headers.next()) {
            (Some(header), None) => {
                let text = header.to_str().map_err(|_| ambiguous())?;
                Some(text.parse::<Authority>().map_err(|_| ambiguous())?)
            }
            (None, _) => None,
            (Some(_), Some(_)) => return Err(ambiguous()),
        };
        let line = match parts.uri.authority() {
            Some(text) => Some(
                text.as_str()
                    .parse::<Authority>()
                    .map_err(|_| ambiguous())?,
            ),
            None => None,
        };
        if parts.version < Version::HTTP_2
            && let Some(scheme) = parts.uri.scheme_str()
            && scheme != (if named.is_some() { "https" } else { "http" })
        {
            return Err(ambiguous());
        }
        let authority = match (line, header) {
            // HTTP/1.1 has the header in any case.
            (Some(line), None) if parts.version != Version::HTTP_11 => line,
            (Some(line), Some(header)) => {
                let is_same = line.host == header.host
                    && line.port.unwrap_or(port) == header.port.unwrap_or(port);
                if !is_same {
                    return Err(mismatch(&header, port, parts.version));
                }
                line
            }
            (None, Some(header)) => header,
            // HTTP/1.0 need not say it.
            (None, None) if parts.version < Version::HTTP_11 => Authority {
                host: default(),
                port: (port != if named.is_some() { 443 } else { 80 }).then_some(port),
            },
            _ => return Err(ambiguous()),
        };
        let is_named = named.is_none_or(|host| *host == authority.host);
        if !is_named || authority.port.is_some_and(|of| of != port) {
            return Err(mismatch(&authority, port, parts.version));
        }
        let text = match authority.port {
            Some(port) => format!("{}:{port}", authority.host),
            None => authority.host.to_string(),
        };
        Ok(Self {
            authority: HeaderValue::try_from(text).map_err(|_| ambiguous())?,
            host: authority.host,
            port,
        })
    }

    /// The host and port, as they are told.
    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// On a connection of HTTP/2, which may be used for other hosts, the status says that this
/// one must not be.
fn mismatch(authority: &Authority, port: u16, version: Version) -> Failure {
    let status = match version {
        Version::HTTP_2 => StatusCode::MISDIRECTED_REQUEST,
        _ => StatusCode::FORBIDDEN,
    };
    let host = format!("{}:{}", authority.host, authority.port.unwrap_or(port));
    Failure::new(status, Code::HostMismatch, host)
}
