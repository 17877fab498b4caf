//! Connections to hosts, which have to prove who they are.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{HTTP1, HTTP2, TlsError, provider};
use crate::host::Host;
use crate::policy::{Code, Pattern};

use flashpan_protocol::network::Protocol;

/// How long a handshake may take.
const WITHIN: Duration = Duration::from_secs(10);

/// Most certificates of one chain.
const MAX_CHAIN: usize = 16;

/// What is offered to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/2, and 1.1.
    Any,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connecting {
    /// What it is called.
    pub code: Code,
    /// Whether the host was silent for too long.
    pub is_late: bool,
    /// What went wrong.
    pub why: String,
}

/// A certificate that hosts get when they ask for one.
#[derive(Debug)]
pub struct ClientCertificate {
    /// The hosts that may see it.
    pub hosts: Vec<Pattern>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl ClientCertificate {
    /// A certificate with what is between it and an authority, and its key, as PEM.
    ///
    /// # Errors
    /// One of them is none, or they do not belong to each other.
    pub fn from_pem(hosts: Vec<Pattern>, chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain)
            .take(MAX_CHAIN)
            .collect();
        let chain = chain.map_err(|_| TlsError::Pem("the certificate of a client"))?;
        if chain.is_empty() {
            return Err(TlsError::Pem("the certificate of a client"));
        }
        let key = PrivateKeyDer::from_pem_slice(key);
        let key = key.map_err(|_| TlsError::Pem("the key of a client"))?;
        let certificate = Self { hosts, chain, key };
        // Whether it is of use, before anybody waits for it.
        Made::new(RootCertStore::empty(), std::slice::from_ref(&certificate))?;
        Ok(certificate)
    }
}

#[cfg(test)]
impl ClientCertificate {
    /// One for these hosts that nobody has signed but itself.
    pub(crate) fn made_up(hosts: &[&str]) -> (Self, CertificateDer<'static>) {
        use base64::Engine as _;

        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["client.test".to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        let pem = |kind: &str, der: &[u8]| {
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n").into_bytes()
        };
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let key = pem("PRIVATE KEY", &key.serialize_der());
        let made = Self::from_pem(hosts, &pem("CERTIFICATE", certificate.der()), &key);
        (made.unwrap(), certificate.der().clone())
    }
}

/// How hosts are connected to in TLS: with 1.2 or later, and only if their certificate is
/// of an authority that is trusted, for their name, and valid now.
pub struct Upstream {
    roots: RootCertStore,
    /// Whether what this host trusts is trusted as well.
    with_native: bool,
    clients: Vec<ClientCertificate>,
    /// Made when the first host is connected to: a host trusts many, and most guests do not
    /// get that far.
    made: OnceLock<Result<Made, TlsError>>,
}

/// What connections are made with.
struct Made {
    clients: Vec<(Vec<Pattern>, Offers)>,
    others: Offers,
}

/// The same for each offer.
struct Offers {
    http1: TlsConnector,
    any: TlsConnector,
}

impl Upstream {
    /// Trusts what this host trusts, and the authorities of `extra`, which is PEM.
    /// Certificates of this host that cannot be read are left out.
    ///
    /// # Errors
    /// Something of what was given is not of use.
    pub fn new(extra: &[u8], clients: Vec<ClientCertificate>) -> Result<Self, TlsError> {
        let mut upstream = Self::with_roots(RootCertStore::empty(), extra, clients)?;
        upstream.with_native = true;
        Ok(upstream)
    }

    /// Trusts `roots` and the authorities of `extra`, and nothing else.
    ///
    /// # Errors
    /// Something of what was given is not of use.
    pub fn with_roots(
        mut roots: RootCertStore,
        extra: &[u8],
        clients: Vec<ClientCertificate>,
    ) -> Result<Self, TlsError> {
        for (number, root) in CertificateDer::pem_slice_iter(extra).enumerate() {
            let root = root.map_err(|_| TlsError::Pem("what is to be trusted"))?;
            let number = number + 1;
            roots
                .add(root)
                .map_err(|error| TlsError::Root { number, error })?;
        }
        Ok(Self {
            roots,
            with_native: false,
            clients,
            made: OnceLock::new(),
        })
    }

    /// Whether a host may see a certificate.
    pub(crate) fn is_known_to(&self, host: &Host, port: u16) -> bool {
        let hosts = self.clients.iter().flat_map(|client| &client.hosts);
        { hosts }.any(|pattern| pattern.matches(Protocol::Tcp, host, port))
    }

    fn made(&self) -> Option<&Made> {
        let made = self.made.get_or_init(|| {
            let mut roots = self.roots.clone();
            if self.with_native {
                let native = rustls_native_certs::load_native_certs().certs;
                roots.add_parsable_certificates(native);
            }
            Made::new(roots, &self.clients)
        });
        made.as_ref().ok()
    }

    /// A connection to this host on a stream that leads to it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &Host,
        port: u16,
        alpn: Alpn,
        stream: S,
    ) -> Result<TlsStream<S>, Connecting> {
        let failed = |code, why: String| Connecting {
            code,
            is_late: false,
            why,
        };
        let name = match host {
            Host::Name(name) => ServerName::try_from(name.to_string()),
            Host::Address(address) => Ok(ServerName::IpAddress((*address).into())),
        };
        let name = name.map_err(|error| failed(Code::Certificate, error.to_string()))?;
        let means = |pattern: &Pattern| pattern.matches(Protocol::Tcp, host, port);
        let made = self.made();
        let made = made.ok_or_else(|| {
            let why = "what is trusted on this host cannot be used".to_owned();
            failed(Code::Certificate, why)
        })?;
        let client = made.clients.iter().find(|(of, _)| of.iter().any(means));
        let offers = client.map_or(&made.others, |(_, offers)| offers);
        let connector = match alpn {
            Alpn::Http1 => &offers.http1,
            Alpn::Any => &offers.any,
        };
        match timeout(WITHIN, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(failed(code(&error), error.to_string())),
            Err(_) => Err(Connecting {
                code: Code::Connect,
                is_late: true,
                why: "it did not answer in TLS in time".to_owned(),
            }),
        }
    }
}

impl Made {
    fn new(roots: RootCertStore, clients: &[ClientCertificate]) -> Result<Self, TlsError> {
        let roots = Arc::new(roots);
        let builder = || {
            let builder = ClientConfig::builder_with_provider(provider());
            let builder = builder.with_safe_default_protocol_versions()?;
            Ok::<_, TlsError>(builder.with_root_certificates(Arc::clone(&roots)))
        };
        let others = Offers::new(&builder()?.with_no_client_auth());
        let clients = clients.iter().map(|client| {
            let (chain, key) = (client.chain.clone(), client.key.clone_key());
            let config = builder()?.with_client_auth_cert(chain, key)?;
            Ok((client.hosts.clone(), Offers::new(&config)))
        });
        Ok(Self {
            clients: clients.collect::<Result<_, TlsError>>()?,
            others,
        })
    }
}

impl Offers {
    fn new(config: &ClientConfig) -> Self {
        let offer = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|of| of.to_vec()).collect();
            TlsConnector::from(Arc::new(config))
        };
        Self {
            http1: offer(&[HTTP1]),
            any: offer(&[HTTP2, HTTP1]),
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

/// Whether it was the certificate.
fn code(error: &io::Error) -> Code {
    let inner = error.get_ref().and_then(|error| error.downcast_ref());
    match inner {
        Some(
            rustls::Error::InvalidCertificate(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::UnsupportedNameType,
        ) => Code::Certificate,
        _ => Code::Connect,
    }
}
