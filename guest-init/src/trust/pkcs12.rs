//! The format of stores that Java has from version 18 on: PKCS #12, for authorities without
//! a password, so that nothing in it is encrypted or sealed.
//!
//! It is a sequence of groups of certificates; the authority is a group of its own behind
//! those that are there, none of which has to be understood.

use super::java::{ALIAS, StoreError};

/// Tags of DER.
pub(super) const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
const UTF_16: u8 = 0x1e;
/// What the first optional field of a type is in.
const FIELD_0: u8 = 0xa0;

/// The version of the format.
const VERSION: [u8; 1] = [3];

/// 1.2.840.113549.1.7.1: content that is there as it is.
const DATA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
/// 1.2.840.113549.1.12.10.1.3: a bag with a certificate.
const CERTIFICATE_BAG: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x03";
/// 1.2.840.113549.1.9.22.1: a certificate of X.509.
const X509: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x16\x01";
/// 1.2.840.113549.1.9.20: the name of what is in a bag.
const NAME: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x14";
/// 2.16.840.1.113894.746875.1.1: what Java trusts a certificate for; one without it is
/// nobody's authority.
const TRUSTED_FOR: &[u8] = b"\x60\x86\x48\x01\x86\xf9\x66\xad\xca\x7b\x01\x01";
/// 2.5.29.37.0: everything.
const EVERYTHING: &[u8] = b"\x55\x1d\x25\x00";

/// A store with this certificate as the authority, in place of another one.
pub(super) fn with_authority(store: &[u8], certificate: &[u8]) -> Result<Vec<u8>, StoreError> {
    let (groups, sealed) = Reader::of(store).store()?;
    if sealed {
        return Err(StoreError::Sealed);
    }
    let attributes = attributes();
    let mut reader = Reader {
        store,
        at: groups.0,
        end: groups.1,
    };
    let mut kept = Vec::with_capacity(store.len() + certificate.len() + 256);
    while reader.at < reader.end {
        let start = reader.at;
        reader.skip(SEQUENCE)?;
        let group = store.get(start..reader.at).unwrap_or_default();
        // They are the end of a group as we make it.
        if !group.ends_with(&attributes) {
            kept.extend_from_slice(group);
        }
    }
    let bag = [
        of(OBJECT, CERTIFICATE_BAG),
        of(
            FIELD_0,
            &of(
                SEQUENCE,
                &[of(OBJECT, X509), of(FIELD_0, &of(OCTETS, certificate))].concat(),
            ),
        ),
        attributes,
    ];
    let bags = of(SEQUENCE, &of(SEQUENCE, &bag.concat()));
    kept.extend(data(&bags));
    let all = [of(INTEGER, &VERSION), data(&of(SEQUENCE, &kept))];
    Ok(of(SEQUENCE, &all.concat()))
}

/// The name of the authority, and that it is one. Sets have an order: the shorter is first.
fn attributes() -> Vec<u8> {
    let name: Vec<u8> = ALIAS.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let attribute =
        |kind: &[u8], value: &[u8]| of(SEQUENCE, &[of(OBJECT, kind), of(SET, value)].concat());
    let trusted_for = attribute(TRUSTED_FOR, &of(OBJECT, EVERYTHING));
    let name = attribute(NAME, &of(UTF_16, &name));
    of(SET, &[trusted_for, name].concat())
}

/// Content that is there as it is.
fn data(content: &[u8]) -> Vec<u8> {
    let content = of(FIELD_0, &of(OCTETS, content));
    of(SEQUENCE, &[of(OBJECT, DATA), content].concat())
}

/// A value of DER, with its tag and its length.
fn of(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(content.len() + 10);
    value.push(tag);
    match u8::try_from(content.len()) {
        Ok(len) if len < 0x80 => value.push(len),
        _ => {
            let len = content.len().to_be_bytes();
            let len: Vec<u8> = len.into_iter().skip_while(|byte| *byte == 0).collect();
            value.push(0x80 | u8::try_from(len.len()).unwrap_or_default());
            value.extend(len);
        }
    }
    value.extend(content);
    value
}

/// Values of DER one after another in a part of a store.
struct Reader<'a> {
    store: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    fn of(store: &'a [u8]) -> Self {
        Self {
            store,
            at: 0,
            end: store.len(),
        }
    }

    fn damaged(&self) -> StoreError {
        StoreError::Damaged {
            at: self.at,
            len: self.store.len(),
        }
    }

    /// Where the groups are, and whether there is a seal behind them.
    fn store(mut self) -> Result<((usize, usize), bool), StoreError> {
        self.only(SEQUENCE)?;
        self.value(INTEGER, &VERSION)?;
        let end = self.end;
        self.enter(SEQUENCE)?;
        let behind = self.end;
        self.value(OBJECT, DATA)?;
        for tag in [FIELD_0, OCTETS, SEQUENCE] {
            self.only(tag)?;
        }
        Ok(((self.at, self.end), behind != end))
    }

    fn byte(&mut self) -> Result<u8, StoreError> {
        let byte = self.store.get(self.at).filter(|_| self.at < self.end);
        let byte = *byte.ok_or_else(|| self.damaged())?;
        self.at += 1;
        Ok(byte)
    }

    /// Steps over a tag and a length; where the content ends.
    fn head(&mut self, tag: u8) -> Result<usize, StoreError> {
        let start = self.at;
        if self.byte()? != tag {
            self.at = start;
            return Err(self.damaged());
        }
        let first = self.byte()?;
        let mut len = usize::from(first);
        if first >= 0x80 {
            // 0x80 alone is of BER: as long as it turns out to be.
            if !(0x81..=0x84).contains(&first) {
                return Err(self.damaged());
            }
            len = 0;
            for _ in 0x80..first {
                len = len << 8 | usize::from(self.byte()?);
            }
        }
        let end = self.at.checked_add(len).filter(|end| *end <= self.end);
        end.ok_or_else(|| self.damaged())
    }

    /// Goes into a value.
    fn enter(&mut self, tag: u8) -> Result<(), StoreError> {
        self.end = self.head(tag)?;
        Ok(())
    }

    /// The same with one that has to be the last.
    fn only(&mut self, tag: u8) -> Result<(), StoreError> {
        let end = self.end;
        self.enter(tag)?;
        if self.end != end {
            self.at = self.end;
            return Err(self.damaged());
        }
        Ok(())
    }

    fn skip(&mut self, tag: u8) -> Result<(), StoreError> {
        self.at = self.head(tag)?;
        Ok(())
    }

    /// Steps over a value that has to be this one.
    fn value(&mut self, tag: u8, content: &[u8]) -> Result<(), StoreError> {
        let start = self.at;
        let end = self.head(tag)?;
        if self.store.get(self.at..end) != Some(content) {
            self.at = start;
            return Err(self.damaged());
        }
        self.at = end;
        Ok(())
    }
}
