//! What is where in a tar archive: only names near its root, without reading
//! contents.
//!
//! An archive of images has its members at the root and one or two directories
//! down; one of a root file system has a million of them further down, which
//! are passed over. Names are kept as tar has them, less a leading `./`.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileExt;

use super::piece::Piece;
use crate::store::Cancel;
use crate::tar::{self, Entry, Event, Kind, Reader};

/// Read at a time. Contents of more than that are not read.
const STEP: usize = 16 << 10;
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
    /// A file that is not in one piece.
    Sparse,
    /// Of either kind, as a name in the archive.
    Link(Vec<u8>),
    Directory,
    Other,
}

/// Why a scan ended.
#[derive(Debug)]
pub(crate) enum ScanError {
    Tar(tar::Error),
    Io(io::Error),
    Cancelled,
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<tar::Error> for ScanError {
    fn from(error: tar::Error) -> Self {
        Self::Tar(error)
    }
}

impl Members {
    /// Goes through all headers of `tar`, of which an extended one may have
    /// `header_limit` bytes.
    pub(crate) fn scan(tar: &Piece, header_limit: u64, cancel: &Cancel) -> Result<Self, ScanError> {
        let mut members = Self::default();
        let mut reader = Reader::new(header_limit);
        let mut buffer = vec![0; STEP];
        let mut at = 0;
        while at < tar.length {
            if cancel.is_cancelled() {
                return Err(ScanError::Cancelled);
            }
            let left = tar.length.saturating_sub(at);
            let passable = reader.passable().min(left);
            if passable > to_u64(STEP) {
                reader.pass(passable);
                at = at.saturating_add(passable);
                continue;
            }
            let room = STEP.min(usize::try_from(left).unwrap_or(STEP));
            let room = buffer.get_mut(..room).unwrap_or_default();
            let read = match tar.file.read_at(room, tar.offset.saturating_add(at)) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let bytes = room.get(..read).unwrap_or_default();
            reader.push::<ScanError>(bytes, &mut |event| {
                if let Event::Entry(entry) = event {
                    members.add(&entry.path, Member::of(&entry));
                }
                Ok(())
            })?;
            at = at.saturating_add(to_u64(read));
        }
        reader.finish()?;
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

    /// The regular file of that name, through links inside the archive; an
    /// error if it is not in one piece.
    pub(crate) fn file(&self, tar: &Piece, name: &str) -> io::Result<Option<Piece>> {
        let mut name = normal(b"", name.as_bytes());
        for _ in 0..HOPS {
            match name.and_then(|name| self.found.get(&name)) {
                Some(Member::File { offset, length }) => {
                    return Ok(Some(Piece {
                        file: tar.file.clone(),
                        offset: tar.offset.saturating_add(*offset),
                        length: *length,
                    }));
                }
                Some(Member::Sparse) => {
                    let text = "it is stored as a sparse file; make the archive without --sparse";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
                Some(Member::Link(target)) => name = Some(target.clone()),
                Some(Member::Directory | Member::Other) | None => return Ok(None),
            }
        }
        Ok(None)
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

impl Member {
    fn of(entry: &Entry) -> Self {
        match &entry.kind {
            Kind::Regular if entry.sparse.is_some() => Self::Sparse,
            Kind::Regular => Self::File {
                offset: entry.position,
                length: entry.stored,
            },
            Kind::HardLink(target) => normal(b"", target).map_or(Self::Other, Self::Link),
            Kind::Symlink(target) => {
                let slash = entry.path.iter().rposition(|b| *b == b'/').unwrap_or(0);
                let parent = entry.path.get(..slash).unwrap_or_default();
                normal(parent, target).map_or(Self::Other, Self::Link)
            }
            Kind::Directory => Self::Directory,
            Kind::CharDevice(..) | Kind::BlockDevice(..) | Kind::Fifo => Self::Other,
        }
    }
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
