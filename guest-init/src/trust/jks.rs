//! Java's first format of a store: entries one after another, and a digest of them that
//! begins with the password.

use sha1::{Digest, Sha1};

use super::java::{ALIAS, StoreError};

/// What a store begins with.
pub(super) const MAGIC: [u8; 4] = [0xfe, 0xed, 0xfe, 0xed];

/// The version in which a certificate says of which kind it is; the first one is as old as
/// Java 1.1.
const VERSION: u32 = 2;

/// Kinds of entries.
const PRIVATE_KEY: u32 = 1;
const CERTIFICATE: u32 = 2;

/// What every store of authorities has, so that it protects nothing.
const PASSWORD: &str = "changeit";

/// What is between the password and the content for the digest.
const WHITENER: &[u8] = b"Mighty Aphrodite";

const DIGEST_LEN: usize = 20;

/// A store with this certificate as the authority, in place of another one.
pub(super) fn with_authority(
    store: &[u8],
    certificate: &[u8],
    now: u64,
) -> Result<Vec<u8>, StoreError> {
    let mut reader = Reader { store, at: 0 };
    reader.take(MAGIC.len())?;
    if reader.number()? != VERSION {
        return Err(reader.damaged());
    }
    let count = reader.number()?;
    let mut kept = 0_u32;
    let mut entries = Vec::with_capacity(store.len() + certificate.len() + 64);
    for _ in 0..count {
        let start = reader.at;
        let alias = reader.entry()?;
        if !alias.eq_ignore_ascii_case(ALIAS.as_bytes()) {
            entries.extend_from_slice(store.get(start..reader.at).unwrap_or_default());
            kept += 1;
        }
    }
    let content = store.get(..reader.at).unwrap_or_default();
    let digest = reader.take(DIGEST_LEN)?;
    if reader.at != store.len() {
        return Err(reader.damaged());
    }
    if *digest != digest_of(content)[..] {
        return Err(StoreError::Password);
    }
    let mut with = Vec::with_capacity(entries.capacity());
    with.extend(MAGIC);
    with.extend(VERSION.to_be_bytes());
    with.extend((kept + 1).to_be_bytes());
    with.extend(entries);
    with.extend(CERTIFICATE.to_be_bytes());
    text(&mut with, ALIAS);
    with.extend(now.to_be_bytes());
    text(&mut with, "X.509");
    let len = u32::try_from(certificate.len()).map_err(|_| StoreError::Certificate)?;
    with.extend(len.to_be_bytes());
    with.extend(certificate);
    let digest = digest_of(&with);
    with.extend(digest);
    Ok(with)
}

fn digest_of(content: &[u8]) -> [u8; DIGEST_LEN] {
    let mut digest = Sha1::new();
    for unit in PASSWORD.encode_utf16() {
        digest.update(unit.to_be_bytes());
    }
    digest.update(WHITENER);
    digest.update(content);
    digest.finalize().into()
}

/// A short text, with its length.
fn text(with: &mut Vec<u8>, text: &'static str) {
    let len = u16::try_from(text.len()).unwrap_or_default();
    with.extend(len.to_be_bytes());
    with.extend(text.as_bytes());
}

/// What a store holds, from here on.
struct Reader<'a> {
    store: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn damaged(&self) -> StoreError {
        StoreError::Damaged {
            at: self.at,
            len: self.store.len(),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], StoreError> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.store.get(self.at..end));
        let taken = taken.ok_or_else(|| self.damaged())?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| self.damaged())
    }

    fn number(&mut self) -> Result<u32, StoreError> {
        self.array().map(u32::from_be_bytes)
    }

    fn text(&mut self) -> Result<&'a [u8], StoreError> {
        let len = u16::from_be_bytes(self.array()?);
        self.take(usize::from(len))
    }

    fn bytes(&mut self) -> Result<&'a [u8], StoreError> {
        let len = self.number()?;
        let len = usize::try_from(len).map_err(|_| self.damaged())?;
        self.take(len)
    }

    fn certificate(&mut self) -> Result<(), StoreError> {
        self.text()?;
        self.bytes()?;
        Ok(())
    }

    /// Steps over an entry; its name.
    fn entry(&mut self) -> Result<&'a [u8], StoreError> {
        let start = self.at;
        let kind = self.number()?;
        let alias = self.text()?;
        // When it was made.
        self.array::<8>()?;
        match kind {
            CERTIFICATE => self.certificate()?,
            PRIVATE_KEY => {
                self.bytes()?;
                for _ in 0..self.number()? {
                    self.certificate()?;
                }
            }
            _ => {
                self.at = start;
                return Err(self.damaged());
            }
        }
        Ok(alias)
    }
}
