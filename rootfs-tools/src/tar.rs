//! A reader of tar archives that is pushed: bytes in, entries and data out; and the
//! headers of archives that are written ([`Member`]).
//!
//! The reader reads what tar programs have written since 1979: v7, ustar, GNU (long
//! names and links, base-256 numbers, sparse files), and PAX (all records that
//! say something about a file, GNU's three ways of writing sparse files,
//! extended attributes as star and libarchive write them). It does no I/O and
//! holds no more than one header of bounded size, so that it works at whatever
//! pace and in whatever pieces an archive arrives.
//!
//! Formats: POSIX.1-2017 `pax`, "ustar Interchange Format" and "pax Interchange
//! Format"; the appendix "Tar Internals" of the manual of GNU tar.
//!
//! The end is a block of zeros, or the end of the archive between two entries,
//! which some writers leave it at. What follows the zeros is not looked at.

mod header;
mod pax;
mod reader;
mod sparse;
mod writer;

use crate::tree::Timestamp;

pub use reader::Reader;
pub use writer::{END, Member, MemberKind, padding};

/// What an entry of an archive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// Another name for the file with this path.
    HardLink(Vec<u8>),
    /// A character device: major and minor number.
    CharDevice(u32, u32),
    /// A block device: major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A piece of a sparse file that is stored; the rest of it reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file it is.
    pub offset: u64,
    /// Its length.
    pub length: u64,
}

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path as it is written, any bytes but NUL, never empty.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// The low 12 bits of the mode.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change.
    pub modified: Timestamp,
    /// Extended attributes: full names and values, at most one of a name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size of a regular file; 0 for everything else.
    pub size: u64,
    /// Where its stored data starts, in bytes from the start of the archive.
    pub position: u64,
    /// Bytes that are stored. Less than `size` for sparse files.
    pub stored: u64,
    /// The stored pieces of a sparse file in the order of their offsets, which
    /// together have `stored` bytes; `None` if all of it is stored.
    pub sparse: Option<Vec<Segment>>,
}

/// What [`Reader::push`] has found.
#[derive(Debug)]
pub enum Event<'a> {
    /// A new entry. Its data follows before the next.
    Entry(Entry),
    /// Some stored data of the last entry.
    Data(&'a [u8]),
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Its first block is no header.
    #[error("it is not a tar archive")]
    NotTar,
    /// A block that should be a header is none.
    #[error(
        "the tar is corrupt: no entry at byte {position}, after {}",
        shown(after)
    )]
    Header {
        /// Offset of the block.
        position: u64,
        /// Path of the entry before.
        after: Vec<u8>,
    },
    /// It ends within an entry or a header.
    #[error(
        "the tar is truncated: it ends at byte {position}, within or after {}",
        shown(after)
    )]
    Truncated {
        /// Where it ends.
        position: u64,
        /// Path of the last entry.
        after: Vec<u8>,
    },
    /// Something in an entry's header cannot be understood.
    #[error("{}: the tar has {what} that cannot be read", shown(path))]
    Field {
        /// Path as far as it is known.
        path: Vec<u8>,
        /// What.
        what: &'static str,
    },
    /// An extended header is larger than what was allowed.
    #[error(
        "{}: the tar has an extended header of {size} bytes, {limit} are allowed",
        shown(path)
    )]
    HeaderSize {
        /// Path as far as it is known.
        path: Vec<u8>,
        /// Its size.
        size: u64,
        /// What was allowed.
        limit: u64,
    },
    /// An entry is of a type that no file is of.
    #[error("{}: tar entries of type {:?} are not supported", shown(path), char::from(*kind))]
    Type {
        /// Path.
        path: Vec<u8>,
        /// The type flag.
        kind: u8,
    },
}

/// A path for a message: on one line, without control characters, not endless.
pub(crate) fn shown(path: &[u8]) -> String {
    const MOST: usize = 200;
    if path.is_empty() {
        return "its start".to_owned();
    }
    let (head, rest) = path.split_at(path.len().min(MOST));
    let dots = if rest.is_empty() { "" } else { "…" };
    format!("{}{dots}", String::from_utf8_lossy(head).escape_debug())
}

#[cfg(test)]
mod tests;
