//! What is where in a tar archive: only names near its root, by their headers,
//! without reading contents.
//!
//! An archive of images has its members at the root and one or two directories
//! down; one of a root file system has a million of them further down, which
//! are passed over. Names are kept as tar has them, less a leading `./`.

use std::collections::HashMap;
use std::io;

use super::piece::Piece;

/// Bytes of a header and of what contents are padded to.
const BLOCK: u64 = 512;
/// The longest name or attribute block that is read for a member. Linux's
/// longest path has 4096 bytes; attribute blocks can carry more than names.
const EXTENSION_MAX: u64 = 1 << 20;
/// Directories that a member of interest can be below: `blobs/sha256/DIGEST`.
const DEPTH: usize = 3;
/// Names that are remembered. The largest sets of images have some hundreds.
const MEMBERS_MAX: usize = 100_000;
/// The longest name or target of a link that is remembered: Linux's longest path.
const NAME_MAX: usize = 4095;
/// Bytes of names and targets that are remembered in all.
const NAMES_MAX: usize = 32 << 20;
/// Links to links that are followed.
const HOPS: usize = 8;

/// What a scan found.
#[derive(Debug, Default)]
pub(crate) struct Members {
    found: HashMap<Vec<u8>, Member>,
    /// Members in all.
    pub(crate) count: u64,
    /// More names near the root than are remembered.
    pub(crate) crowded: bool,
    /// Bytes of names and targets that are remembered.
    remembered: usize,
}

#[derive(Clone, Debug)]
enum Member {
    File {
        offset: u64,
        length: u64,
    },
    /// Of either kind, as a name in the archive.
    Link(Vec<u8>),
    Directory,
    Other,
}

/// Why a scan ended.
#[derive(Debug)]
pub(crate) enum ScanError {
    /// There is no header at this offset.
    NotTar(u64),
    /// The archive ends inside a member.
    Truncated,
    /// A header says something impossible.
    Malformed(&'static str),
    Io(io::Error),
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Members {
    /// Goes through all headers of `tar`.
    pub(crate) fn scan(tar: &Piece) -> Result<Self, ScanError> {
        let mut members = Self::default();
        let mut scan = Scan { tar, at: 0 };
        // What extension headers say about the next member.
        let (mut name, mut link, mut size) = (None, None, None);
        while let Some(header) = scan.header()? {
            let contents = scan.at;
            let length = match size.take() {
                Some(size) if !header.is_extension() => size,
                _ => header.size()?,
            };
            match header.kind() {
                b'L' => name = Some(scan.text(length)?),
                b'K' => link = Some(scan.text(length)?),
                b'x' => {
                    let block = scan.extension(length)?;
                    for (key, value) in pax(&block) {
                        match key {
                            b"path" => name = Some(value.to_vec()),
                            b"linkpath" => link = Some(value.to_vec()),
                            b"size" => {
                                let text = std::str::from_utf8(value).ok();
                                let value = text.and_then(|text| text.parse().ok());
                                size = Some(value.ok_or(ScanError::Malformed("a size"))?);
                            }
                            _ => {}
                        }
                    }
                }
                b'g' => {}
                _ => {
                    let name = name.take().unwrap_or_else(|| header.name());
                    let link = link.take().unwrap_or_else(|| header.link());
                    members.add(&name, header.member(contents, length, &name, &link));
                }
            }
            // Links and directories may claim a size that they do not have.
            let stored = match header.kind() {
                b'1' | b'2' | b'3' | b'4' | b'5' | b'6' => 0,
                _ => length,
            };
            scan.skip(stored)?;
        }
        Ok(members)
    }

    fn add(&mut self, name: &[u8], member: Member) {
        self.count = self.count.saturating_add(1);
        let Some(name) = normal(b"", name) else {
            return;
        };
        if name.is_empty() || name.split(|b| *b == b'/').count() > DEPTH {
            return;
        }
        let member = match member {
            Member::Link(target) if target.len() > NAME_MAX => Member::Other,
            member => member,
        };
        let target = match &member {
            Member::Link(target) => target.len(),
            _ => 0,
        };
        // Of a name that comes again and again, each counts.
        let remembered = self.remembered.saturating_add(name.len() + target);
        let full = self.found.len() >= MEMBERS_MAX && !self.found.contains_key(&name);
        if full || name.len() > NAME_MAX || remembered > NAMES_MAX {
            self.crowded = true;
            return;
        }
        self.remembered = remembered;
        // A later member replaces an earlier one, as when tar unpacks.
        self.found.insert(name, member);
    }

    /// Is there something of that name?
    pub(crate) fn has(&self, name: &str) -> bool {
        self.found.contains_key(name.as_bytes())
    }

    /// The regular file of that name, through links inside the archive.
    pub(crate) fn file(&self, tar: &Piece, name: &str) -> Option<Piece> {
        let mut name = normal(b"", name.as_bytes())?;
        for _ in 0..HOPS {
            match self.found.get(&name)? {
                Member::File { offset, length } => {
                    return Some(Piece {
                        file: tar.file.clone(),
                        offset: tar.offset.checked_add(*offset)?,
                        length: *length,
                    });
                }
                Member::Link(target) => name = target.clone(),
                Member::Directory | Member::Other => return None,
            }
        }
        None
    }

    /// The names at the root, files and directories alike.
    pub(crate) fn top(&self) -> impl Iterator<Item = &[u8]> {
        self.found
            .keys()
            .map(|name| name.split(|b| *b == b'/').next().unwrap_or_default())
    }
}

/// `path`, relative to the directory `base`, without empty parts and dots;
/// `None` if it leaves the archive. Absolute paths count from its root.
fn normal(base: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let base = if path.starts_with(b"/") { b"" } else { base };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in base.split(|b| *b == b'/').chain(path.split(|b| *b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

struct Scan<'a> {
    tar: &'a Piece,
    /// Offset in the archive.
    at: u64,
}

impl Scan<'_> {
    /// The next header; `None` at the end: a block of zeros, or no more bytes.
    fn header(&mut self) -> Result<Option<Header>, ScanError> {
        let left = self.tar.length.saturating_sub(self.at);
        if left == 0 && self.at > 0 {
            return Ok(None);
        }
        if left < BLOCK {
            return Err(match self.at {
                0 => ScanError::NotTar(0),
                _ => ScanError::Truncated,
            });
        }
        let block = self.piece(BLOCK).head::<512>()?;
        if block.iter().all(|b| *b == 0) {
            return match self.at {
                0 => Err(ScanError::NotTar(0)),
                _ => Ok(None),
            };
        }
        let header = Header(block);
        if !header.checksum_is_right() {
            return Err(ScanError::NotTar(self.at));
        }
        self.at = self.at.saturating_add(BLOCK);
        Ok(Some(header))
    }

    fn piece(&self, length: u64) -> Piece {
        Piece {
            file: self.tar.file.clone(),
            offset: self.tar.offset.saturating_add(self.at),
            length,
        }
    }

    /// The contents of an extension header.
    fn extension(&self, length: u64) -> Result<Vec<u8>, ScanError> {
        if length > EXTENSION_MAX {
            return Err(ScanError::Malformed("an extension header of absurd size"));
        }
        if length > self.tar.length.saturating_sub(self.at) {
            return Err(ScanError::Truncated);
        }
        Ok(self.piece(length).read(usize::MAX)?)
    }

    /// A long name of GNU tar.
    fn text(&self, length: u64) -> Result<Vec<u8>, ScanError> {
        Ok(until_nul(&self.extension(length)?).to_vec())
    }

    fn skip(&mut self, length: u64) -> Result<(), ScanError> {
        let padded = length
            .checked_next_multiple_of(BLOCK)
            .ok_or(ScanError::Malformed("a size"))?;
        let end = self.at.checked_add(length);
        if end.is_none_or(|end| end > self.tar.length) {
            return Err(ScanError::Truncated);
        }
        // The last padding is often left out.
        self.at = self.at.saturating_add(padded).min(self.tar.length);
        Ok(())
    }
}

/// `key=value` records of a pax header; what is malformed ends them.
fn pax(mut block: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let space = block.iter().position(|b| *b == b' ')?;
        let length = std::str::from_utf8(block.get(..space)?).ok()?;
        let length: usize = length.parse().ok()?;
        let record = block.get(space.checked_add(1)?..length.checked_sub(1)?)?;
        block = block.get(length..)?;
        let equals = record.iter().position(|b| *b == b'=')?;
        Some((record.get(..equals)?, record.get(equals.checked_add(1)?..)?))
    })
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// A header block, POSIX.1-1988 with the extensions of GNU tar and of 2001.
struct Header([u8; 512]);

impl Header {
    fn field(&self, from: usize, to: usize) -> &[u8] {
        self.0.get(from..to).unwrap_or_default()
    }

    fn kind(&self) -> u8 {
        self.0.get(156).copied().unwrap_or(0)
    }

    fn is_extension(&self) -> bool {
        matches!(self.kind(), b'L' | b'K' | b'x' | b'g')
    }

    fn checksum_is_right(&self) -> bool {
        let sum: u64 = self
            .0
            .iter()
            .enumerate()
            .map(|(at, byte)| match at {
                148..156 => u64::from(b' '),
                _ => u64::from(*byte),
            })
            .sum();
        octal(self.field(148, 156)) == Some(sum)
    }

    fn size(&self) -> Result<u64, ScanError> {
        number(self.field(124, 136)).ok_or(ScanError::Malformed("a size"))
    }

    fn name(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        let prefix = match self.field(257, 263) {
            b"ustar\0" => until_nul(self.field(345, 500)),
            _ => b"",
        };
        match prefix {
            b"" => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    fn link(&self) -> Vec<u8> {
        until_nul(self.field(157, 257)).to_vec()
    }

    fn member(&self, offset: u64, length: u64, name: &[u8], link: &[u8]) -> Member {
        match self.kind() {
            // Before POSIX a directory was a file with a slash at its end.
            0 | b'0' | b'7' if name.ends_with(b"/") => Member::Directory,
            0 | b'0' | b'7' => Member::File { offset, length },
            b'1' => normal(b"", link).map_or(Member::Other, Member::Link),
            b'2' => {
                let slash = name.iter().rposition(|b| *b == b'/').unwrap_or(0);
                let parent = name.get(..slash).unwrap_or_default();
                normal(parent, link).map_or(Member::Other, Member::Link)
            }
            b'5' => Member::Directory,
            _ => Member::Other,
        }
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim();
    u64::from_str_radix(text, 8).ok()
}

/// Octal digits, or GNU's base 256, marked by the top bit.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first() {
        Some((0x80, rest)) => rest.iter().try_fold(0_u64, |value, byte| {
            value.checked_mul(256)?.checked_add(u64::from(*byte))
        }),
        Some((0x81.., _)) => None,
        _ if until_nul(field).is_empty() => Some(0),
        _ => octal(field),
    }
}

#[cfg(test)]
mod tests;
