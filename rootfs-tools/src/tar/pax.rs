//! Records of PAX extended headers: `"LENGTH KEY=VALUE\n"`.

use std::collections::BTreeMap;

use super::Segment;
use super::sparse::SEGMENTS_MAX;
use crate::tree::Timestamp;

/// What the records of a header say. `None` says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) modified: Option<Timestamp>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: SparseRecords,
}

/// Extended attributes by their names. A header can have tens of thousands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Xattrs(BTreeMap<Vec<u8>, (Vec<u8>, Writer)>);

/// How an attribute is written. Archives that have one in both ways say the same
/// twice; then star's way counts, which is the only one that other tools read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Writer {
    Libarchive,
    Star,
}

/// GNU's records for a sparse file (versions 0.0, 0.1 and 1.0).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or `GNU.sparse.realsize`.
    pub(super) size: Option<u64>,
    /// Version 0: the map itself.
    pub(super) map: Vec<Segment>,
    /// The offset of a segment whose length has not come yet.
    pending: Option<u64>,
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    /// Was there any record but a name?
    pub(super) any: bool,
}

/// A record that cannot be understood: its key, as far as it can be named.
pub(super) type Unreadable = &'static str;

impl Records {
    /// Adds the records of a header; later ones replace earlier ones.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Unreadable> {
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or("a PAX record")?;
            self.set(key, value)?;
            bytes = rest;
        }
        match self.sparse.pending {
            Some(_) => Err("a PAX map of a sparse file"),
            None => Ok(()),
        }
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Unreadable> {
        match key {
            b"path" => self.path = name(value).ok_or("a PAX path")?,
            b"linkpath" => self.link = name(value).ok_or("a PAX link target")?,
            b"size" => self.size = optional(value, decimal).ok_or("a PAX size")?,
            b"uid" => self.uid = optional(value, decimal).ok_or("a PAX owner")?,
            b"gid" => self.gid = optional(value, decimal).ok_or("a PAX group")?,
            b"mtime" => self.modified = optional(value, time).ok_or("a PAX time")?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs
                        .set(name.to_vec(), value.to_vec(), Writer::Star)?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let what = "an extended attribute";
                    let name = unescape(name).ok_or(what)?;
                    let value = base64(value).ok_or(what)?;
                    self.xattrs.set(name, value, Writer::Libarchive)?;
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse
                        .set(key, value)
                        .ok_or("a PAX map of a sparse file")?;
                }
            }
        }
        Ok(())
    }
}

impl Xattrs {
    fn set(&mut self, name: Vec<u8>, value: Vec<u8>, writer: Writer) -> Result<(), Unreadable> {
        if name.is_empty() || name.contains(&0) {
            return Err("an extended attribute");
        }
        let known = self.0.get(&name).map(|(_, writer)| *writer);
        if known.is_none_or(|known| known <= writer) {
            self.0.insert(name, (value, writer));
        }
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Names and values, in the order of the names.
    pub(super) fn into_pairs(self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let pairs = self.0.into_iter();
        pairs.map(|(name, (value, _))| (name, value)).collect()
    }
}

impl SparseRecords {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        self.any |= key != b"name";
        match key {
            b"name" => self.name = name(value)?,
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"offset" if self.pending.is_some() => return None,
            b"offset" => self.pending = Some(decimal(value)?),
            b"numbytes" => {
                let offset = self.pending.take()?;
                self.push(offset, decimal(value)?)?;
            }
            b"map" => {
                self.map.clear();
                let mut numbers = value.split(|byte| *byte == b',');
                while let Some(offset) = numbers.next() {
                    self.push(decimal(offset)?, decimal(numbers.next()?)?)?;
                }
            }
            // `numblocks` says what counting the map says.
            _ => {}
        }
        Some(())
    }

    fn push(&mut self, offset: u64, length: u64) -> Option<()> {
        self.map.push(Segment { offset, length });
        (self.map.len() <= SEGMENTS_MAX).then_some(())
    }
}

/// Key and value of the first record, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at(equals);
    (!key.is_empty()).then_some((key, value.get(1..)?, rest))
}

/// An empty value takes back what an earlier record said.
fn optional<T>(value: &[u8], parse: fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    match value {
        b"" => Some(None),
        value => parse(value).map(Some),
    }
}

fn name(value: &[u8]) -> Option<Option<Vec<u8>>> {
    optional(value, |value| (!value.contains(&0)).then(|| value.to_vec()))
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds with an optional sign and fraction. Digits beyond nanoseconds are dropped.
fn time(value: &[u8]) -> Option<Timestamp> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0'));
    let nanoseconds = digits
        .take(9)
        .fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp {
            seconds,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanoseconds,
        },
        (true, _) => Timestamp {
            seconds: (-seconds).checked_sub(1)?,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

/// `%XX` is a byte.
fn unescape(name: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || char::from(*bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high << 4 | low).ok()?
            }
            byte => *byte,
        });
    }
    Some(out)
}

/// Base 64 without or with padding at the end.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text
        .iter()
        .position(|byte| *byte == b'=')
        .unwrap_or(text.len());
    let (digits, padding) = text.split_at(end);
    if padding.len() > 2 || padding.iter().any(|byte| *byte != b'=') {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let bits = group.iter().try_fold(0_u32, |bits, digit| {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            Some(bits << 6 | u32::from(value))
        })?;
        let bytes = match group.len() {
            2 => 1,
            3 => 2,
            4 => 3,
            _ => return None,
        };
        let aligned = bits << (6 * (4 - u32::try_from(group.len()).ok()?)) << 8;
        out.extend(aligned.to_be_bytes().iter().take(bytes));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, nanoseconds: u32) -> Option<Timestamp> {
        Some(Timestamp {
            seconds,
            nanoseconds,
        })
    }

    #[test]
    fn times_have_a_sign_and_a_fraction() {
        assert_eq!(time(b"12"), at(12, 0));
        assert_eq!(time(b"12.5"), at(12, 500_000_000));
        assert_eq!(time(b"12."), at(12, 0));
        assert_eq!(time(b"1.0000000019"), at(1, 1));
        assert_eq!(time(b"-1.25"), at(-2, 750_000_000));
        assert_eq!(time(b"-0.5"), at(-1, 500_000_000));
        assert_eq!(time(b"-7"), at(-7, 0));
        for wrong in [
            &b""[..],
            b"-",
            b".5",
            b"1e3",
            b"+1",
            b"1.5.2",
            b"99999999999999999999",
        ] {
            assert_eq!(time(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_empty_value_takes_a_record_back() {
        let mut records = Records::default();
        records.read(b"10 path=a\n12 path=abc\n").unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"abc"[..]));
        records.read(b"8 path=\n").unwrap();
        assert_eq!(records.path, None);
    }

    #[test]
    fn records_with_wrong_lengths_are_refused() {
        for wrong in [
            &b"11 path=a\n"[..],
            b"8 path=a\n",
            b"x path=a\n",
            b"10 path=a",
            b"99999999999999999999 path=a\n",
            b"4 =\n",
            b"10 patha=\n\0",
            b"0 a=b\n",
            b"3 a=b\n",
        ] {
            assert!(Records::default().read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn libarchive_attributes_are_decoded() {
        let mut records = Records::default();
        records
            .read(b"36 LIBARCHIVE.xattr.user.a%3Db=aGk=\n")
            .unwrap();
        let xattrs = records.xattrs.into_pairs();
        assert_eq!(xattrs, [(b"user.a=b".to_vec(), b"hi".to_vec())]);
        assert_eq!(base64(b"aGVsbG8"), Some(b"hello".to_vec()));
        assert_eq!(base64(b"aGVsbG8="), Some(b"hello".to_vec()));
        assert_eq!(base64(b"AP/+"), Some(vec![0, 255, 254]));
        assert_eq!(base64(b"a"), None);
        assert_eq!(base64(b"a==="), None);
        assert_eq!(base64(b"a*bc"), None);
    }

    #[test]
    fn of_an_attribute_that_is_written_in_two_ways_the_one_of_star_counts() {
        let star = &b"25 SCHILY.xattr.user.a=s\n"[..];
        let other = b"32 LIBARCHIVE.xattr.user.a=aGk=\n";
        for both in [[star, &other[..]].concat(), [&other[..], star].concat()] {
            let mut records = Records::default();
            records.read(&both).unwrap();
            let xattrs = records.xattrs.into_pairs();
            assert_eq!(xattrs, [(b"user.a".to_vec(), b"s".to_vec())]);
        }
    }

    /// As many as a header has room for, without a search through all of them
    /// for each.
    #[test]
    fn a_header_may_have_very_many_attributes() {
        let mut header = Vec::new();
        for number in 0..30_000 {
            header.extend_from_slice(format!("29 SCHILY.xattr.user.{number:05}=v\n").as_bytes());
        }
        let mut records = Records::default();
        records.read(&header).unwrap();
        assert_eq!(records.xattrs.into_pairs().len(), 30_000);
    }

    #[test]
    fn a_map_has_pairs() {
        let mut sparse = SparseRecords::default();
        sparse.set(b"map", b"0,5,1024,6").unwrap();
        assert_eq!(
            sparse.map,
            [
                Segment {
                    offset: 0,
                    length: 5
                },
                Segment {
                    offset: 1024,
                    length: 6
                }
            ]
        );
        assert!(sparse.set(b"map", b"0,5,1024").is_none());
        assert!(
            sparse.set(b"numbytes", b"5").is_none(),
            "a length without offset"
        );
        assert!(
            Records::default()
                .read(b"23 GNU.sparse.offset=1\n")
                .is_err()
        );
    }
}
