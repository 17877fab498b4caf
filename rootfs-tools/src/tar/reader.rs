//! The state machine.

use super::header::{BLOCK, Family, Header, text};
use super::pax::{Records, SparseRecords};
use super::sparse::{self, MapReader};
use super::{Entry, Error, Event, Kind, Segment};
use crate::tree::Timestamp;

/// [`BLOCK`] for positions.
const BLOCK_64: u64 = BLOCK as u64;

/// Reads one archive.
#[derive(Debug)]
pub struct Reader {
    state: State,
    /// The block being collected.
    block: [u8; BLOCK],
    filled: usize,
    /// Bytes taken so far.
    position: u64,
    header_limit: u64,
    /// Path of the last entry, for messages.
    last: Vec<u8>,
    /// Records of global headers.
    global: Records,
    /// What headers say about the next entry.
    next: Ahead,
}

/// What was said about an entry before its own header.
#[derive(Debug, Default)]
struct Ahead {
    records: Option<Records>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Ahead {
    fn is_empty(&self) -> bool {
        self.records.is_none() && self.path.is_none() && self.link.is_none()
    }
}

/// What an extended header is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extended {
    Path,
    Link,
    Records,
    Global,
}

#[derive(Debug)]
enum State {
    /// A header comes next. `zero` when the block before was all zeros.
    Header { zero: bool },
    /// Data of an extended header.
    Extended {
        what: Extended,
        left: u64,
        data: Vec<u8>,
    },
    /// More pieces of a GNU sparse file.
    Pieces {
        entry: Box<Entry>,
        map: Vec<Segment>,
    },
    /// The map of a sparse file before its data.
    Map { entry: Box<Entry>, map: MapReader },
    /// Data of an entry.
    Data { left: u64 },
    /// Data of what is no file.
    Ignored { left: u64 },
    /// What fills the last block up.
    Padding { left: u64 },
    /// After the end.
    End,
}

impl Reader {
    /// A reader that takes extended headers of at most `header_limit` bytes.
    #[must_use]
    pub fn new(header_limit: u64) -> Self {
        Self {
            state: State::Header { zero: false },
            block: [0; BLOCK],
            filled: 0,
            position: 0,
            header_limit,
            last: Vec::new(),
            global: Records::default(),
            next: Ahead::default(),
        }
    }

    /// Path of the last entry; empty before the first.
    #[must_use]
    pub fn last_path(&self) -> &[u8] {
        &self.last
    }

    /// How many of the next bytes can be left out with [`Self::pass`]: there is
    /// nothing but an entry's data in them, or nothing at all. After the end of
    /// the archive that is all there may be.
    #[must_use]
    pub fn passable(&self) -> u64 {
        match self.state {
            State::Data { left } | State::Ignored { left } | State::Padding { left } => left,
            State::End => u64::MAX,
            _ => 0,
        }
    }

    /// Instead of the next `bytes` bytes, for whoever can seek and wants no
    /// data. No more than [`Self::passable`] are left out.
    pub fn pass(&mut self, bytes: u64) {
        let (now, bytes) = match &mut self.state {
            State::Data { left } | State::Ignored { left } | State::Padding { left } => {
                let bytes = bytes.min(*left);
                *left -= bytes;
                (*left == 0, bytes)
            }
            State::End => (false, bytes),
            _ => return,
        };
        self.position = self.position.saturating_add(bytes);
        if now {
            self.pad();
        }
    }

    /// Takes the next bytes of the archive and tells `event` what is in them.
    ///
    /// # Errors
    ///
    /// What they are is no archive, or `event` failed. The reader must not be
    /// used any more then.
    pub fn push<E: From<Error>>(
        &mut self,
        mut bytes: &[u8],
        event: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Data { left } => {
                    let (data, rest) = split(bytes, *left);
                    event(Event::Data(data))?;
                    self.pass(length(data));
                    bytes = rest;
                }
                State::Ignored { .. } | State::Padding { .. } | State::End => {
                    let (passed, rest) = split(bytes, self.passable());
                    self.pass(length(passed));
                    bytes = rest;
                }
                State::Extended { left, data, .. } => {
                    let (part, rest) = split(bytes, *left);
                    *left -= length(part);
                    data.extend_from_slice(part);
                    let done = *left == 0;
                    self.advance(part.len());
                    bytes = rest;
                    if done {
                        self.extended()?;
                    }
                }
                State::Header { .. } | State::Pieces { .. } | State::Map { .. } => {
                    let room = self.block.get_mut(self.filled..).unwrap_or_default();
                    let (part, rest) = bytes.split_at(bytes.len().min(room.len()));
                    if let Some(room) = room.get_mut(..part.len()) {
                        room.copy_from_slice(part);
                    }
                    self.filled += part.len();
                    self.advance(part.len());
                    bytes = rest;
                    if self.filled == BLOCK {
                        self.filled = 0;
                        if let Some(entry) = self.whole_block()? {
                            let left = entry.stored;
                            event(Event::Entry(entry))?;
                            self.state = State::Data { left };
                            if left == 0 {
                                self.pad();
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// To be called when there are no more bytes.
    ///
    /// # Errors
    ///
    /// The archive was not complete.
    pub fn finish(&self) -> Result<(), Error> {
        match &self.state {
            State::End => Ok(()),
            State::Header { .. } if self.filled == 0 && self.next.is_empty() => Ok(()),
            // Some writers leave out what would fill the last block up.
            State::Padding { .. } if self.next.is_empty() => Ok(()),
            // Less than a block: there is nothing that says that it is a tar.
            _ if self.position < BLOCK_64 => Err(Error::NotTar),
            _ => Err(Error::Truncated {
                position: self.position,
                after: self.last.clone(),
            }),
        }
    }

    /// Whether the blocks of zeros have come that end an archive, or the first of them. Some
    /// writers leave them out; but so does one that failed between two entries.
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::End | State::Header { zero: true })
    }

    fn advance(&mut self, bytes: usize) {
        self.position = self
            .position
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// After data: on to the next multiple of a block.
    fn pad(&mut self) {
        self.state = match self.position % BLOCK_64 {
            0 => State::Header { zero: false },
            over => State::Padding {
                left: BLOCK_64 - over,
            },
        };
    }

    fn field(&self, what: &'static str) -> Error {
        Error::Field {
            path: self.last.clone(),
            what,
        }
    }

    /// A block was collected. An entry is returned when all is known about it
    /// and its data follows.
    fn whole_block(&mut self) -> Result<Option<Entry>, Error> {
        match std::mem::replace(&mut self.state, State::End) {
            State::Header { zero } => self.header(zero),
            State::Pieces { entry, mut map } => {
                let (pieces, rest) = self.block.split_at(21 * 24);
                if !sparse::add_old(&mut map, pieces) {
                    return Err(self.field("a map of a sparse file"));
                }
                if rest.first().is_some_and(|more| *more != 0) {
                    self.state = State::Pieces { entry, map };
                    return Ok(None);
                }
                self.sparse_entry(*entry, map).map(Some)
            }
            State::Map { mut entry, mut map } => {
                let what = "a map of a sparse file";
                entry.stored = entry
                    .stored
                    .checked_sub(BLOCK_64)
                    .ok_or_else(|| self.field(what))?;
                match map.block(&self.block) {
                    None => Err(self.field(what)),
                    Some(true) => self.sparse_entry(*entry, map.map).map(Some),
                    Some(false) => {
                        self.state = State::Map { entry, map };
                        Ok(None)
                    }
                }
            }
            // Nothing else collects blocks.
            _ => Ok(None),
        }
    }

    /// An entry whose map is complete.
    fn sparse_entry(&self, mut entry: Entry, map: Vec<Segment>) -> Result<Entry, Error> {
        if !sparse::is_valid(&map, entry.size, entry.stored) {
            return Err(self.field("a map of a sparse file"));
        }
        entry.position = self.position;
        entry.sparse = Some(map);
        Ok(entry)
    }

    fn header(&mut self, zero: bool) -> Result<Option<Entry>, Error> {
        if self.block.iter().all(|byte| *byte == 0) {
            // Two blocks of zeros end an archive; one, if nothing follows.
            if zero {
                return match self.next.is_empty() {
                    true => Ok(None),
                    false => Err(self.truncated()),
                };
            }
            self.state = State::Header { zero: true };
            return Ok(None);
        }
        let start = self.position - BLOCK_64;
        let block = self.block;
        let Some(header) = Header::new(&block).filter(|_| !zero) else {
            return Err(match start {
                0 => Error::NotTar,
                position => Error::Header {
                    position,
                    after: self.last.clone(),
                },
            });
        };
        let size = header.size().and_then(|size| u64::try_from(size).ok());
        let what = match header.kind() {
            b'L' => Extended::Path,
            b'K' => Extended::Link,
            b'x' => Extended::Records,
            b'g' => Extended::Global,
            b'V' => return self.label(size).map(|()| None),
            _ => return self.entry(&header, size),
        };
        let size = size.ok_or_else(|| self.field("the size of an extended header"))?;
        if size > self.header_limit {
            let path = self.last.clone();
            return Err(Error::HeaderSize {
                path,
                size,
                limit: self.header_limit,
            });
        }
        self.state = State::Extended {
            what,
            left: size,
            data: Vec::new(),
        };
        if size == 0 {
            self.extended()?;
        }
        Ok(None)
    }

    /// The name of a whole archive (`tar -V`): no file, nothing of one.
    fn label(&mut self, size: Option<u64>) -> Result<(), Error> {
        self.next = Ahead::default();
        let left = size.ok_or_else(|| self.field("the size of a label"))?;
        self.state = State::Ignored { left };
        if left == 0 {
            self.pad();
        }
        Ok(())
    }

    fn truncated(&self) -> Error {
        Error::Truncated {
            position: self.position,
            after: self.last.clone(),
        }
    }

    /// An extended header is complete.
    fn extended(&mut self) -> Result<(), Error> {
        if let State::Extended { what, data, .. } = std::mem::replace(&mut self.state, State::End) {
            match what {
                Extended::Path => self.next.path = long_name(&data),
                Extended::Link => self.next.link = long_name(&data),
                Extended::Global => {
                    let read = self.global.read(&data);
                    read.map_err(|what| self.field(what))?;
                    // These fit one file only, and what is kept here is copied
                    // for every entry.
                    self.global.sparse = SparseRecords::default();
                    self.global.xattrs.clear();
                    self.global.path = None;
                    self.global.link = None;
                }
                Extended::Records => {
                    // Not on top of an earlier one: each may be as long as a
                    // header may be, and there is no end to how many come.
                    let mut records = self.global.clone();
                    records.read(&data).map_err(|what| self.field(what))?;
                    self.next.records = Some(records);
                }
            }
        }
        self.pad();
        Ok(())
    }

    /// The header of an entry.
    fn entry(&mut self, header: &Header<'_>, size: Option<u64>) -> Result<Option<Entry>, Error> {
        let Ahead {
            records,
            path,
            link,
        } = std::mem::take(&mut self.next);
        let records = records.unwrap_or_else(|| self.global.clone());
        // Where several headers name it, as in Go's archive/tar, by which images
        // are made: GNU's long names before the records, and before all of them
        // the name that a sparse file's records have.
        let sparse = records.sparse.name.clone().filter(|_| records.sparse.any);
        let path = sparse.or(path).or(records.path);
        let path = path.unwrap_or_else(|| header.path());
        self.last.clone_from(&path);
        if path.is_empty() {
            return Err(self.field("a name of no bytes"));
        }
        let link = link
            .or(records.link)
            .unwrap_or_else(|| header.link().to_vec());
        let is_directory_of_old = path.ends_with(b"/");
        let kind = match header.kind() {
            0 if is_directory_of_old => Kind::Directory,
            // Contiguous files are regular files where nothing is contiguous.
            0 | b'0' | b'7' | b'S' => Kind::Regular,
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' | b'4' => {
                let number = |number: i64| u32::try_from(number).ok();
                let device = header
                    .device()
                    .and_then(|(a, b)| Some((number(a)?, number(b)?)));
                let (major, minor) = device.ok_or_else(|| self.field("a device number"))?;
                match header.kind() {
                    b'3' => Kind::CharDevice(major, minor),
                    _ => Kind::BlockDevice(major, minor),
                }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            kind => return Err(Error::Type { path, kind }),
        };
        // Whatever some programs write there, nothing else has data.
        let is_regular = kind == Kind::Regular;
        let stored = match is_regular {
            true => records.size.or(size).ok_or_else(|| self.field("a size"))?,
            false => 0,
        };
        // No file has more than what an offset can say.
        if i64::try_from(stored).is_err() {
            return Err(self.field("a size"));
        }
        let id = |record: Option<u64>, field: Option<i64>| match record {
            Some(id) => u32::try_from(id).ok(),
            None => u32::try_from(field?).ok(),
        };
        let modified = records.modified.or_else(|| {
            Some(Timestamp {
                seconds: header.modified()?,
                nanoseconds: 0,
            })
        });
        let mut entry = Entry {
            permissions: header
                .mode()
                .and_then(|mode| u16::try_from(mode & 0o7777).ok())
                .ok_or_else(|| self.field("a mode"))?,
            uid: id(records.uid, header.uid()).ok_or_else(|| self.field("an owner"))?,
            gid: id(records.gid, header.gid()).ok_or_else(|| self.field("a group"))?,
            modified: modified.ok_or_else(|| self.field("a time"))?,
            xattrs: records.xattrs.into_pairs(),
            size: stored,
            position: self.position,
            stored,
            sparse: None,
            path,
            kind,
        };
        if !is_regular {
            return Ok(Some(entry));
        }
        if header.kind() == b'S' && header.family() == Family::Gnu {
            let (pieces, more, real) = header.sparse();
            let mut map = Vec::new();
            let real = real.and_then(|size| u64::try_from(size).ok());
            entry.size = real.ok_or_else(|| self.field("the size of a sparse file"))?;
            if !sparse::add_old(&mut map, pieces) {
                return Err(self.field("a map of a sparse file"));
            }
            if more {
                self.state = State::Pieces {
                    entry: Box::new(entry),
                    map,
                };
                return Ok(None);
            }
            return self.sparse_entry(entry, map).map(Some);
        }
        if header.kind() == b'S' {
            return Err(Error::Type {
                path: entry.path,
                kind: b'S',
            });
        }
        if records.sparse.any {
            let what = "the size of a sparse file";
            entry.size = records.sparse.size.ok_or_else(|| self.field(what))?;
            return match records.sparse.major.unwrap_or(0) {
                0 => self.sparse_entry(entry, records.sparse.map).map(Some),
                1 => {
                    self.state = State::Map {
                        entry: Box::new(entry),
                        map: MapReader::default(),
                    };
                    Ok(None)
                }
                _ => Err(self.field("a sparse file of a version")),
            };
        }
        Ok(Some(entry))
    }
}

/// What a header of GNU's for a long name says; nothing if it is empty.
fn long_name(data: &[u8]) -> Option<Vec<u8>> {
    Some(text(data).to_vec()).filter(|name| !name.is_empty())
}

/// At most `length` bytes, and the rest.
fn split(bytes: &[u8], length: u64) -> (&[u8], &[u8]) {
    bytes.split_at(
        bytes
            .len()
            .min(usize::try_from(length).unwrap_or(usize::MAX)),
    )
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
