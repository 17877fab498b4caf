//! TLS on both sides of what is opened: towards a guest as any host, towards hosts as a
//! client that verifies them.
//!
//! * [`Authority`] – who vouches for what a guest is shown;
//! * [`hello`] – what a guest wants, before it is answered;
//! * [`Upstream`] – connections to hosts.

mod authority;
pub mod hello;
mod upstream;

use std::sync::{Arc, LazyLock};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use thiserror::Error;

pub use self::authority::Authority;
pub(crate) use self::authority::Only;
pub use self::upstream::{Alpn, ClientCertificate, Connecting, Upstream};

/// HTTP/1.1 and 2, as ALPN names them.
pub(crate) const HTTP1: &[u8] = b"http/1.1";
pub(crate) const HTTP2: &[u8] = b"h2";

/// Why TLS could not be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// There is no source of random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// What was given is not of use.
    #[error("certificates or keys for TLS are not of use: {0}")]
    Config(#[from] rustls::Error),
    /// A certificate to be trusted is none.
    #[error("certificate {number} of those to be trusted is none: {error}")]
    Root {
        /// Which one, from 1.
        number: usize,
        /// What is wrong.
        error: rustls::Error,
    },
    /// A text is no PEM.
    #[error("{0} is no PEM with what belongs there")]
    Pem(&'static str),
}

/// The cryptography of all TLS here.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));
    Arc::clone(&PROVIDER)
}

/// How a guest is answered: with this certificate, whatever it asks for. Nothing of a
/// connection is kept for the next one.
pub(crate) fn server_config(leaf: Arc<CertifiedKey>) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions()?;
    let mut config = builder
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Only(leaf)));
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Whether a guest has ended a handshake since it does not trust what it was shown.
pub(crate) fn is_distrust(error: &std::io::Error) -> bool {
    use rustls::AlertDescription as Alert;

    let inner = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(
        inner,
        Some(rustls::Error::AlertReceived(
            Alert::BadCertificate
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::UnsupportedCertificate
        ))
    )
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], TlsError> {
    let mut bytes = [0; N];
    let filled = provider().secure_random.fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| TlsError::Random)
}
