//! Who vouches for the hosts whose TLS is opened: one for each VM, known to it alone.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
};
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use zeroize::Zeroize;

use super::TlsError;
use crate::host::Host;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the authority is valid.
const VALID: Duration = DAY.saturating_mul(3652);

/// How long a leaf is valid: the most that all clients take.
const LEAF_VALID: Duration = DAY.saturating_mul(397);

/// When a leaf is made anew. The clock of a guest may be behind or ahead by more than this.
const LEAF_FRESH: Duration = DAY.saturating_mul(30);

/// Clocks of guests are behind: what is valid now was valid this long before.
const BACKDATED: Duration = DAY;

/// Most leaves that are kept.
const KEPT: usize = 512;

/// An authority for certificates, made for one VM, of which nothing is ever written. A
/// guest that trusts it trusts no other VM's.
pub struct Authority {
    key: Key,
    params: CertificateParams,
    certificate: CertificateDer<'static>,
    pem: String,
    leaf_key: Key,
    leaf_signer: Arc<dyn SigningKey>,
    leaves: Mutex<Leaves>,
}

#[derive(Default)]
struct Leaves {
    made: HashMap<Host, (Instant, Arc<CertifiedKey>)>,
    /// The same, the oldest first.
    order: VecDeque<Host>,
}

/// A private key that leaves nothing of its encoded form in memory.
struct Key(KeyPair);

impl Key {
    fn new() -> Result<Self, TlsError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Authority {
    /// A new authority, with a new key.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn new() -> Result<Self, TlsError> {
        let key = Key::new()?;
        let id: String = super::random::<8>()?
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut params = params(VALID)?;
        params
            .distinguished_name
            .push(DnType::CommonName, format!("flashpan sandbox CA {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key.0)?.der().clone();
        let leaf_key = Key::new()?;
        let mut der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.0.serialize_der()));
        let leaf_signer = any_ecdsa_type(&der);
        der.zeroize();
        Ok(Self {
            pem: pem(&certificate),
            key,
            params,
            certificate,
            leaf_key,
            leaf_signer: leaf_signer?,
            leaves: Mutex::default(),
        })
    }

    /// The certificate that a guest has to trust.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The same certificate as DER.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate for this host, and no other, with its key and ours behind it.
    ///
    /// # Errors
    /// None can be made.
    pub fn leaf(&self, host: &Host) -> Result<Arc<CertifiedKey>, TlsError> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, leaf)) = leaves.made.get(host)
            && made.elapsed() < LEAF_FRESH
        {
            return Ok(Arc::clone(leaf));
        }
        let leaf = Arc::new(self.make(host)?);
        let made = (Instant::now(), Arc::clone(&leaf));
        if leaves.made.insert(host.clone(), made).is_none() {
            leaves.order.push_back(host.clone());
        }
        if leaves.order.len() > KEPT
            && let Some(oldest) = leaves.order.pop_front()
        {
            leaves.made.remove(&oldest);
        }
        Ok(leaf)
    }

    fn make(&self, host: &Host) -> Result<CertifiedKey, TlsError> {
        let mut params = params(LEAF_VALID)?;
        // The name is where clients look for it and nowhere else; names can be too long
        // for the other place.
        params
            .distinguished_name
            .push(DnType::OrganizationName, "flashpan sandbox");
        params.subject_alt_names = vec![match host {
            Host::Name(name) => SanType::DnsName(name.as_str().try_into()?),
            Host::Address(address) => SanType::IpAddress(*address),
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_params(&self.params, &self.key.0);
        let certificate = params.signed_by(&self.leaf_key.0, &issuer)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        Ok(CertifiedKey::new(chain, Arc::clone(&self.leaf_signer)))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// What all certificates have: a number of their own, since clients refuse two of an
/// authority with the same, and a time.
fn params(valid: Duration) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let mut serial = super::random::<16>()?;
    // Positive, and not shorter than it is.
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let from = now.unwrap_or_default().saturating_sub(BACKDATED);
    params.not_before = date_time_ymd(1970, 1, 1) + from;
    params.not_after = params.not_before + BACKDATED + valid;
    Ok(params)
}

/// A certificate as text.
fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: Vec<_> = lines.collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

/// Shows one certificate to everybody.
#[derive(Debug)]
pub(crate) struct Only(pub(crate) Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{CertificateError, Error, RootCertStore};

    use super::*;

    fn verify(
        authority: &Authority,
        leaf: &CertifiedKey,
        name: &str,
        now: u64,
    ) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
        roots.add(root).unwrap();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crate::tls::provider())
                .build()
                .unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let [end, between @ ..] = leaf.cert.as_slice() else {
            panic!("no certificate");
        };
        verifier
            .verify_server_cert(end, between, &name, &[], now)
            .map(drop)
    }

    fn now() -> u64 {
        UnixTime::now().as_secs()
    }

    #[test]
    fn a_leaf_is_for_one_host_and_of_one_authority() {
        let (authority, other) = (Authority::new().unwrap(), Authority::new().unwrap());
        assert_ne!(authority.pem(), other.pem());
        assert!(!authority.pem().contains("PRIVATE"));
        let long = format!("{}.test", "a".repeat(63));
        for (host, wrong) in [
            ("api.allowed.test", "x.api.allowed.test"),
            ("xn--bcher-kva.example", "example"),
            (long.as_str(), "test"),
            ("192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::2"),
        ] {
            let leaf = authority.leaf(&host.parse().unwrap()).unwrap();
            verify(&authority, &leaf, host, now()).unwrap();
            let refused = verify(&authority, &leaf, wrong, now()).unwrap_err();
            let is_name = matches!(
                refused,
                Error::InvalidCertificate(
                    CertificateError::NotValidForName
                        | CertificateError::NotValidForNameContext { .. }
                )
            );
            assert!(is_name, "{host} {refused:?}");
            assert!(verify(&other, &leaf, host, now()).is_err(), "{host}");
        }
    }

    #[test]
    fn a_leaf_is_valid_for_a_guest_whose_clock_is_wrong() {
        let authority = Authority::new().unwrap();
        let leaf = authority.leaf(&"a.test".parse().unwrap()).unwrap();
        let day = DAY.as_secs();
        verify(&authority, &leaf, "a.test", now() - day + 60).unwrap();
        verify(&authority, &leaf, "a.test", now() + 300 * day).unwrap();
        verify(&authority, &leaf, "a.test", now() + 400 * day).unwrap_err();
    }

    #[test]
    fn leaves_are_made_once_and_a_bounded_number_is_kept() {
        let authority = Authority::new().unwrap();
        let host: Host = "a.test".parse().unwrap();
        let first = authority.leaf(&host).unwrap();
        assert!(Arc::ptr_eq(&first, &authority.leaf(&host).unwrap()));
        for number in 0..KEPT {
            let other = format!("h{number}.test").parse().unwrap();
            let other = authority.leaf(&other).unwrap();
            assert_ne!(other.cert, first.cert);
        }
        let leaves = authority.leaves.lock().unwrap();
        assert_eq!((leaves.made.len(), leaves.order.len()), (KEPT, KEPT));
        assert!(!leaves.made.contains_key(&host));
    }
}
