//! Certificates that hosts get from whoever connects to them for a guest.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use flashpan_network::policy::{Pattern, PatternError};
use flashpan_network::tls;
use flashpan_protocol::network::Protocol;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pem_file;

/// What it is called in errors.
const FIELD: &str = "client certificates";

/// A certificate by which a guest's connections of TLS to some hosts are known to these, if
/// they ask for one. It is shown, and what it proves is signed, on this machine: the guest has
/// neither certificate nor key.
///
/// Read from `HOST[,HOST]…=FILE[,KEYFILE]`:
///
/// ```
/// use flashpan::ClientCertificate;
///
/// let one: ClientCertificate = "api.example.com,*.internal=client.pem,client.key".parse()?;
/// assert_eq!(one.hosts, ["api.example.com", "*.internal"]);
/// assert_eq!(one.key.as_deref(), Some("client.key".as_ref()));
/// # Ok::<(), flashpan::ClientCertificateError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClientCertificate {
    /// The hosts that may see it, at least one: patterns as of hosts that are allowed. It
    /// allows none of them.
    pub hosts: Vec<String>,
    /// A file with the certificate and those between it and an authority, in this order, as
    /// PEM.
    pub certificate: PathBuf,
    /// A file with the private key, as PEM; that of the certificate has it too if there is
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// A text is no [`ClientCertificate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give HOST[,HOST]=FILE[,KEYFILE], e.g. api.example.com=client.pem,client.key")]
pub struct ClientCertificateError;

impl ClientCertificate {
    /// One whose key is in the same file.
    pub fn new<I>(hosts: I, certificate: impl Into<PathBuf>) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        Self {
            hosts: hosts.into_iter().map(Into::into).collect(),
            certificate: certificate.into(),
            key: None,
        }
    }

    /// The same with its key in this file.
    #[must_use]
    pub fn key(mut self, key: impl Into<PathBuf>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same with its paths changed.
    pub(crate) fn change_paths(&mut self, change: impl Fn(&mut PathBuf)) {
        change(&mut self.certificate);
        self.key.as_mut().map(change);
    }

    /// The certificate itself.
    pub(crate) fn read(&self) -> Result<tls::ClientCertificate> {
        let shown = self.certificate.display();
        if self.hosts.is_empty() {
            return Err(Error::config(FIELD, format!("{shown} is for no host")));
        }
        let hosts = self.hosts.iter().map(|host| host.parse());
        let hosts: std::result::Result<Vec<Pattern>, PatternError> = hosts.collect();
        let hosts = hosts.map_err(|error| Error::config(FIELD, error.to_string()))?;
        let refuse = |pattern: &Pattern, why: &str| {
            let why = format!("{shown} is for {pattern}, {why}");
            Err(Error::config(FIELD, why))
        };
        if let Some(pattern) = hosts.iter().find(|of| of.is_every_host()) {
            let why = "which is every host: name those that may see it";
            return refuse(pattern, why);
        }
        if let Some(pattern) = hosts.iter().find(|of| of.protocol() == Protocol::Udp) {
            let why = "and there is no TLS by UDP: name the host without `udp:`";
            return refuse(pattern, why);
        }
        let certificate = pem_file::read(FIELD, &self.certificate)?;
        let key = self.key.as_deref();
        let key = key.map(|key| pem_file::read(FIELD, key)).transpose()?;
        let key = key.as_ref().unwrap_or(&certificate);
        let wrong = |error: tls::TlsError| {
            let key = self
                .key
                .as_ref()
                .map(|key| format!(" and {}", key.display()));
            let key = key.unwrap_or_default();
            Error::config(FIELD, format!("{error} ({shown}{key})"))
        };
        tls::ClientCertificate::from_pem(hosts, &certificate, key).map_err(wrong)
    }
}

impl FromStr for ClientCertificate {
    type Err = ClientCertificateError;

    fn from_str(text: &str) -> std::result::Result<Self, ClientCertificateError> {
        let (hosts, files) = text.split_once('=').ok_or(ClientCertificateError)?;
        let (certificate, key) = match files.split_once(',') {
            Some((certificate, key)) => (certificate, Some(key)),
            None => (files, None),
        };
        let hosts: Vec<String> = hosts
            .split(',')
            .map(|host| host.trim().to_owned())
            .collect();
        let is_none = certificate.is_empty() || key == Some("");
        if is_none || hosts.iter().any(String::is_empty) {
            return Err(ClientCertificateError);
        }
        Ok(Self {
            hosts,
            certificate: certificate.into(),
            key: key.map(PathBuf::from),
        })
    }
}

impl fmt::Display for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.hosts.join(","), self.certificate.display())?;
        match &self.key {
            Some(key) => write!(f, ",{}", key.display()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parsed(text: &str) -> std::result::Result<ClientCertificate, ClientCertificateError> {
        text.parse()
    }

    #[test]
    fn a_certificate_is_written_with_its_hosts() {
        for text in ["a.test=c.pem", "a.test,*.b.test:8443=/d/c.pem,/d/k=y.pem"] {
            assert_eq!(parsed(text).unwrap().to_string(), text);
        }
        let one = parsed("a.test=c.pem").unwrap();
        assert_eq!(one, ClientCertificate::new(["a.test"], "c.pem"));
        for wrong in [
            "",
            "a.test",
            "=c.pem",
            "a.test,=c.pem",
            "a.test=",
            "a.test=c.pem,",
        ] {
            assert_eq!(parsed(wrong), Err(ClientCertificateError), "{wrong:?}");
        }
    }

    fn pem(kind: &str, der: &[u8]) -> String {
        use base64::Engine as _;

        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
    }

    #[test]
    fn what_is_no_certificate_is_refused_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["c.test".to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let certificate = pem("CERTIFICATE", certificate.der());
        let pem_of = |key: &rcgen::KeyPair| pem("PRIVATE KEY", &key.serialize_der());
        std::fs::write(path("both"), certificate.clone() + &pem_of(&key)).unwrap();
        std::fs::write(path("certificate"), certificate).unwrap();
        std::fs::write(path("key"), pem_of(&key)).unwrap();
        std::fs::write(path("other"), pem_of(&other)).unwrap();
        std::fs::write(path("none"), "none").unwrap();
        std::fs::write(path("big"), vec![b'x'; (1 << 20) + 1]).unwrap();
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let of =
            |hosts: &[&str], name: &str| ClientCertificate::new(hosts.iter().copied(), path(name));
        of(&["a.test"], "both").read().unwrap();
        of(&["a.test"], "certificate")
            .key(path("key"))
            .read()
            .unwrap();
        for (wrong, says) in [
            (of(&[], "both"), "for no host"),
            (of(&["a b"], "both"), "a b"),
            (
                of(&["a.test", "*"], "both"),
                "is for *, which is every host",
            ),
            (of(&["tcp:**:443"], "both"), "which is every host"),
            (of(&["udp:a.test"], "both"), "no TLS by UDP"),
            (
                of(&["a.test"], "certificate"),
                "the key of a client is no PEM",
            ),
            (
                of(&["a.test"], "none"),
                "the certificate of a client is no PEM",
            ),
            (of(&["a.test"], "missing"), "missing"),
            (of(&["a.test"], "certificate").key(path("other")), "other"),
            (of(&["a.test"], ""), "no regular file"),
            // Nobody writes to it.
            (of(&["a.test"], "both").key(path("pipe")), "no regular file"),
            (of(&["a.test"], "both").key(path("big")), "large"),
        ] {
            let error = wrong.read().unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("client certificates: "), "{text}");
            assert!(text.contains(says), "{wrong:?}: {text}");
            assert!(!text.contains("PRIVATE"), "{text}");
        }
    }

    #[test]
    fn its_paths_are_those_of_whoever_named_them() {
        let mut certificate = ClientCertificate::new(["a.test"], "c.pem").key("/k.pem");
        certificate.change_paths(|path| *path = Path::new("/base").join(&*path));
        assert_eq!(certificate.to_string(), "a.test=/base/c.pem,/k.pem");
    }
}
