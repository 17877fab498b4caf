//! Extended attributes, stored after their inode.
//!
//! A header of 12 bytes (name filter, count of shared attributes, reserved;
//! all zero here), then entries: length of the name, index of the prefix that
//! the name does not repeat, size of the value, name, value, padding to four
//! bytes. Sharing attributes between inodes would save little: most trees have
//! none but a handful of `security.capability`.

use std::collections::BTreeMap;

/// Bytes of the header before the first entry.
const HEADER: usize = 12;
/// Bytes of an entry before its name.
const ENTRY: usize = 4;
/// `i_xattr_icount` has 16 bits and counts the header as one, then four bytes each.
const BODY_MAX: usize = HEADER + (u16::MAX as usize - 1) * 4;

/// Prefixes that the format numbers (`EROFS_XATTR_INDEX_*`). The ACLs are the
/// whole name and leave nothing to store.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Why an inode's attributes cannot be stored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum XattrError {
    /// The format has no number for the prefix.
    #[error(
        "extended attribute {0:?}: EROFS stores user.*, trusted.*, security.*, \
         system.posix_acl_access and system.posix_acl_default"
    )]
    Prefix(String),
    /// A name has 1 to 255 bytes after its prefix.
    #[error("extended attribute {0:?}: the name needs 1 to 255 bytes after its prefix, no NUL")]
    Name(String),
    /// A value has at most 65,535 bytes.
    #[error("extended attribute {name:?}: value of {size} bytes, EROFS stores up to 65535")]
    Value {
        /// Name of the attribute.
        name: String,
        /// Size of its value in bytes.
        size: usize,
    },
    /// All attributes of an inode have to fit into 256 KiB.
    #[error("{0} bytes of extended attributes on one file, EROFS stores up to 262148")]
    Total(usize),
}

/// Whether EROFS can store an attribute of this name.
pub(crate) fn storable(name: &[u8]) -> bool {
    split(name).is_ok()
}

/// Prefix index and the rest of the name with its length.
fn split(name: &[u8]) -> Result<(u8, &[u8], u8), XattrError> {
    let text = || String::from_utf8_lossy(name).into_owned();
    let (prefix, index) = PREFIXES
        .iter()
        .find(|(prefix, _)| name.starts_with(prefix))
        .ok_or_else(|| XattrError::Prefix(text()))?;
    let rest = name.get(prefix.len()..).unwrap_or_default();
    let whole = !prefix.ends_with(b".");
    if whole && !rest.is_empty() {
        return Err(XattrError::Prefix(text()));
    }
    if rest.contains(&0) || (rest.is_empty() && !whole) {
        return Err(XattrError::Name(text()));
    }
    let length = u8::try_from(rest.len()).map_err(|_| XattrError::Name(text()))?;
    Ok((*index, rest, length))
}

/// Bytes that the attributes take after their inode; 0 when there are none.
pub(crate) fn size(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<usize, XattrError> {
    if xattrs.is_empty() {
        return Ok(0);
    }
    let mut total = HEADER;
    for (name, value) in xattrs {
        let (_, rest, _) = split(name)?;
        if u16::try_from(value.len()).is_err() {
            return Err(XattrError::Value {
                name: String::from_utf8_lossy(name).into_owned(),
                size: value.len(),
            });
        }
        total += (ENTRY + rest.len() + value.len()).next_multiple_of(4);
    }
    if total > BODY_MAX {
        return Err(XattrError::Total(total));
    }
    Ok(total)
}

/// Appends the attributes, in the order of their names, to `out`.
pub(super) fn encode(
    xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
    out: &mut Vec<u8>,
) -> Result<(), XattrError> {
    if xattrs.is_empty() {
        return Ok(());
    }
    out.extend([0; HEADER]);
    for (name, value) in xattrs {
        let (index, rest, length) = split(name)?;
        let size = u16::try_from(value.len()).map_err(|_| XattrError::Value {
            name: String::from_utf8_lossy(name).into_owned(),
            size: value.len(),
        })?;
        out.extend([length, index]);
        out.extend(size.to_le_bytes());
        out.extend(rest);
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &[u8], size: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        BTreeMap::from([(name.to_vec(), vec![b'v'; size])])
    }

    #[test]
    fn entries_are_padded_to_four_bytes() {
        let mut out = Vec::new();
        let xattrs = one(b"user.name", 3);
        encode(&xattrs, &mut out).unwrap();
        assert_eq!(out[..12], [0; 12]);
        assert_eq!(out[12..], *b"\x04\x01\x03\0namevvv\0");
        assert_eq!(size(&xattrs), Ok(out.len()));
    }

    #[test]
    fn acls_are_stored_without_a_name() {
        let mut out = Vec::new();
        encode(&one(b"system.posix_acl_default", 4), &mut out).unwrap();
        assert_eq!(out[12..], *b"\0\x03\x04\0vvvv");
    }

    #[test]
    fn what_the_format_cannot_hold_is_an_error() {
        for name in [
            &b"system.nfs4_acl"[..],
            b"system.posix_acl_access2",
            b"btrfs.x",
            b"",
        ] {
            assert!(matches!(size(&one(name, 1)), Err(XattrError::Prefix(_))));
            assert!(!storable(name));
        }
        let long = [&b"user."[..], &[b'n'; 256]].concat();
        for name in [&b"user."[..], b"user.a\0b", &long] {
            assert!(matches!(size(&one(name, 1)), Err(XattrError::Name(_))));
        }
        assert!(size(&one(&long[..260], 65_535)).is_ok());
        assert!(matches!(
            size(&one(b"user.a", 65_536)),
            Err(XattrError::Value { .. })
        ));
        let many = (0..4)
            .map(|n| (format!("user.{n}").into_bytes(), vec![0; 65_535]))
            .collect();
        assert!(matches!(size(&many), Err(XattrError::Total(_))));
    }
}
