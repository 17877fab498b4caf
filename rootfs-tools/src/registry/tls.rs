//! Trust: the host's certificate authorities and the user's own.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};

use super::error::{Error, Tls, clean};
use super::options::Options;

/// The largest file of certificates that is read, in bytes.
const LARGEST: u64 = 4 << 20;

/// TLS 1.2 and 1.3 with the host's authorities (those in the files that
/// `SSL_CERT_FILE` and `SSL_CERT_DIR` name, if they are set) and the user's.
/// Either of them replaces all of the host's. Also gives, if nobody is trusted at
/// all, why that is so.
pub(super) fn config(options: &Options) -> Result<(ClientConfig, Option<String>), Error> {
    let mut roots = RootCertStore::empty();
    // What is unusable among the host's is ignored, as other programs do.
    let host = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(host.certs);
    for path in &options.ca_files {
        add(&mut roots, path).map_err(|why| Error::Certificates {
            path: path.clone(),
            why,
        })?;
    }
    let nobody = roots.is_empty().then(|| {
        let why = host.errors.first().map(|error| clean(&error.to_string()));
        why.unwrap_or_else(|| "there are no files with certificates".to_owned())
    });
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Options {
            why: format!("cannot set TLS up: {error}"),
        })?;
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    Ok((config, nobody))
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    let read = file.take(LARGEST + 1).read_to_end(&mut text);
    read.map_err(|error| error.to_string())?;
    if text.len() as u64 > LARGEST {
        return Err("the file is too large".to_owned());
    }
    let mut any = false;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| format!("{error:?}"))?;
        roots.add(certificate).map_err(|error| error.to_string())?;
        any = true;
    }
    if any {
        Ok(())
    } else {
        Err(
            "there are none in it (in PEM, between BEGIN CERTIFICATE and END CERTIFICATE)"
                .to_owned(),
        )
    }
}

/// What an error means to somebody who waits for an image.
pub(super) fn explain(error: &rustls::Error) -> Tls {
    use rustls::Error as E;
    match error {
        E::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Tls::UnknownAuthority
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Tls::WrongName
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Tls::Expired,
            other => Tls::Other(clean(&format!("its certificate is wrong: {other}"))),
        },
        E::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => Tls::PlainHttp,
        other => Tls::Other(clean(&other.to_string())),
    }
}
