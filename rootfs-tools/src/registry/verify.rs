//! Checking content against its digest while it passes by.

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::Digest as _;

use crate::directory::hex;

/// Hashes with the algorithm of a digest.
#[derive(Clone)]
pub struct Verifier {
    hasher: Hasher,
}

#[derive(Clone)]
enum Hasher {
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl Verifier {
    /// For content with such a digest; nothing if its algorithm is unknown.
    #[must_use]
    pub fn new(digest: &Digest) -> Option<Self> {
        let hasher = match digest.algorithm() {
            DigestAlgorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            DigestAlgorithm::Sha384 => Hasher::Sha384(sha2::Sha384::new()),
            DigestAlgorithm::Sha512 => Hasher::Sha512(sha2::Sha512::new()),
            _ => return None,
        };
        Some(Self { hasher })
    }

    /// The next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.hasher {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha384(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of what passed by, as `algorithm:hex`.
    #[must_use]
    pub fn finish(self) -> String {
        match self.hasher {
            Hasher::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            Hasher::Sha384(hasher) => format!("sha384:{}", hex(&hasher.finalize())),
            Hasher::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        }
    }

    /// The digest of some bytes by the algorithm of another; nothing if that
    /// is unknown.
    #[must_use]
    pub fn digest_like(digest: &Digest, bytes: &[u8]) -> Option<String> {
        let mut verifier = Self::new(digest)?;
        verifier.update(bytes);
        Some(verifier.finish())
    }
}

/// The SHA-256 digest of some bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Digest {
    let value = hex(&sha2::Sha256::digest(bytes));
    match format!("sha256:{value}").parse() {
        Ok(digest) => digest,
        Err(_) => unreachable!("64 digits after `sha256:` are a digest"),
    }
}
