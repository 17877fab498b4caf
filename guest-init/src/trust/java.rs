//! Whom Java trusts: a store of certificates that each runtime has, or shares with others
//! by a link, in one of two formats.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use super::{jks, pkcs12};

/// The name of the authority in a store. Java knows names in lower case only.
pub(super) const ALIAS: &str = "flashpan";

/// What distributions have for all of their runtimes.
const SHARED: [&str; 3] = [
    // Debian, Alpine.
    "/etc/ssl/certs/java/cacerts",
    // Fedora and its relatives, Arch.
    "/etc/pki/ca-trust/extracted/java/cacerts",
    "/etc/ca-certificates/extracted/java-cacerts.jks",
];

/// Where runtimes are, each in a directory of its own: of distributions, and of images
/// that have one of somebody else's.
const RUNTIMES: [&str; 5] = [
    "/usr/lib/jvm",
    "/opt/java",
    "/usr/java",
    "/usr/local",
    "/opt",
];

/// Where a runtime has its store; the second as old ones have it.
const OF_RUNTIME: [&str; 2] = ["lib/security/cacerts", "jre/lib/security/cacerts"];

/// How many entries of one of [`RUNTIMES`] are looked at.
const MAX_RUNTIMES: usize = 256;

/// How many stores are changed.
const MAX_STORES: usize = 32;

/// Why a store stays as it is.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum StoreError {
    /// It has none of the known formats.
    #[error("it is neither a JKS nor a PKCS #12 store")]
    Unknown,
    /// It does not hold what its format says.
    #[error("it is damaged, or more than a store of certificates, at byte {at} of {len}")]
    Damaged {
        /// Where it stops being understood.
        at: usize,
        /// How long it is.
        len: usize,
    },
    /// Whoever gives the password would be told that it is damaged.
    #[error(
        "it has a password other than `changeit`; add /dev/flashpan/ca.pem to it with \
         `keytool -importcert`"
    )]
    Password,
    /// Only who knows the password can seal it again.
    #[error(
        "it is sealed by a password; add /dev/flashpan/ca.pem to it with `keytool -importcert`"
    )]
    Sealed,
    /// What is to be added has no certificate in it.
    #[error("what the host sent is no certificate in PEM")]
    Certificate,
}

/// The stores there are, without links, each once.
pub(super) fn stores() -> Vec<PathBuf> {
    let of_runtimes = RUNTIMES.map(Path::new).into_iter().flat_map(runtimes);
    let shared = SHARED.map(PathBuf::from).into_iter();
    distinct(shared.chain(of_runtimes))
}

fn runtimes(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let entries = entries.take(MAX_RUNTIMES).flatten();
    entries.flat_map(|entry| OF_RUNTIME.map(|store| entry.path().join(store)))
}

fn distinct(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut stores = Vec::new();
    for path in paths {
        // Most runtimes of a distribution have a link to what all of them share.
        let Ok(real) = fs::canonicalize(path) else {
            continue;
        };
        if stores.len() < MAX_STORES && real.is_file() && !stores.contains(&real) {
            stores.push(real);
        }
    }
    stores
}

/// A store with this authority, whose certificate is in PEM, in place of that of an earlier
/// run. Everything else in it stays as it was, byte by byte; `now` is in milliseconds since
/// 1970.
pub(super) fn with_authority(
    store: &[u8],
    certificate: &str,
    now: u64,
) -> Result<Vec<u8>, StoreError> {
    let certificate = der(certificate).ok_or(StoreError::Certificate)?;
    if store.starts_with(&jks::MAGIC) {
        jks::with_authority(store, &certificate, now)
    } else if store.first() == Some(&pkcs12::SEQUENCE) {
        pkcs12::with_authority(store, &certificate)
    } else {
        Err(StoreError::Unknown)
    }
}

/// The first certificate of a text in PEM.
fn der(text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    let letters: String = body.split_ascii_whitespace().collect();
    let bytes = STANDARD.decode(letters).ok()?;
    (!bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::unique;

    #[test]
    fn a_certificate_is_read_from_its_text() {
        let pem = |body: &str| {
            format!("x\n-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
        };
        assert_eq!(der(&pem("MAMCAQ\r\nU=")), Some(vec![0x30, 3, 2, 1, 5]));
        assert_eq!(der(&pem("+/+/")), Some(vec![0xfb, 0xff, 0xbf]));
        for wrong in ["", "M?MC"] {
            assert_eq!(der(&pem(wrong)), None);
        }
        assert_eq!(der("-----BEGIN CERTIFICATE-----\nMAMCAQU="), None);
    }

    #[test]
    fn what_is_no_store_is_said_to_be_none() {
        let pem = "-----BEGIN CERTIFICATE-----\nMAMCAQU=\n-----END CERTIFICATE-----\n";
        for store in [&b""[..], b"hello", b"\xce\xce\xce\xce\0\0\0\x02"] {
            assert_eq!(with_authority(store, pem, 0), Err(StoreError::Unknown));
        }
        let none = with_authority(&jks::MAGIC, "no certificate", 0);
        assert_eq!(none, Err(StoreError::Certificate));
    }

    #[test]
    fn a_store_that_runtimes_share_is_found_once() {
        let root = std::env::temp_dir().join(format!("java-stores-{}", unique()));
        fs::create_dir(&root).unwrap();
        let root = fs::canonicalize(root).unwrap();
        let shared = root.join("cacerts");
        fs::write(&shared, "").unwrap();
        let jvm = root.join("jvm");
        for runtime in ["a", "b", "old"] {
            fs::create_dir_all(jvm.join(runtime).join("lib/security")).unwrap();
        }
        fs::create_dir_all(jvm.join("old/jre/lib/security")).unwrap();
        let own = jvm.join("old/jre/lib/security/cacerts");
        fs::write(&own, "").unwrap();
        for runtime in ["a", "b"] {
            symlink(&shared, jvm.join(runtime).join("lib/security/cacerts")).unwrap();
        }
        symlink("nowhere", jvm.join("old/lib/security/cacerts")).unwrap();
        let mut found = distinct([shared.clone()].into_iter().chain(runtimes(&jvm)));
        found.sort();
        assert_eq!(found, [shared, own]);
        fs::remove_dir_all(root).unwrap();
    }
}
