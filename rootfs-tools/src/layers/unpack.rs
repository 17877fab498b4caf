//! Every layer once through: decompress, hash, read the tar, spool.

use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use sha2::{Digest, Sha256};

use super::error::{Error, LayerError};
use super::limits::{ATTRIBUTE_COST, Limits, PATH_MAX};
use super::spool::{Expander, Spool};
use super::{DiffId, Layer, Options, Progress};
use crate::compression::{Decompressor, Part};
use crate::erofs;
use crate::tar::{self, Event, Kind, Reader};
use crate::tree::{Content, Metadata};

/// Bytes that go from thread to thread at once: they stay in a core's cache.
const CHUNK: usize = 256 << 10;
/// Chunks on their way between two threads.
const CHUNKS: usize = 4;
/// Progress is reported when this much more was read.
const REPORT_EVERY: u64 = 1 << 20;

/// An unpacked layer.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) diff_id: DiffId,
    pub(super) entries: Vec<Unflattened>,
}

/// One of its entries.
#[derive(Debug)]
pub(super) struct Unflattened {
    pub(super) path: Box<[u8]>,
    pub(super) kind: Kind,
    pub(super) metadata: Metadata,
    /// Of a regular file.
    pub(super) content: Option<Content>,
}

/// What all layers of an image count together.
#[derive(Debug, Default)]
struct Sums {
    total: AtomicU64,
    entries: AtomicU64,
    metadata: AtomicU64,
}

/// Adds to a sum; false if it is more than `limit` then.
fn add(sum: &AtomicU64, more: u64, limit: u64) -> bool {
    // An addition that would wrap is as wrong as any other that is too much.
    let before = sum.fetch_add(more.min(1 << 62), Ordering::Relaxed);
    before.saturating_add(more) <= limit
}

/// Unpacks all layers, some at a time.
pub(super) fn all(
    layers: &[Layer],
    expected: &[DiffId],
    options: &Options<'_>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Unpacked>, Error> {
    // The longest first: what is left at the end is then short.
    let mut order: Vec<_> = layers.iter().enumerate().collect();
    order.sort_by_key(|(_, layer)| std::cmp::Reverse(layer.length));
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let sums = Sums::default();
    let done = Mutex::new(Vec::new());
    let work = || {
        while let Some((index, layer)) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let job = Job {
                index: *index,
                layer,
                expected: expected.get(*index),
                options,
                failed: &failed,
                sums: &sums,
                progress,
            };
            let result = job.run();
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            done.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((*index, result));
        }
    };
    thread::scope(|scope| {
        // One of the threads is this one.
        for _ in 1..options.threads.get().min(layers.len()) {
            scope.spawn(work);
        }
        work();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    // Layers that were stopped because another failed are not the reason.
    let is_reason = |(_, result): &(usize, Result<Unpacked, LayerError>)| matches!(result, Err(error) if !matches!(error, LayerError::Cancelled));
    if let Some(place) = done.iter().position(is_reason) {
        done.swap(0, place);
    }
    done.into_iter()
        .map(|(index, result)| {
            let name = || {
                layers
                    .get(index)
                    .map(|layer| layer.name.clone())
                    .unwrap_or_default()
            };
            result.map_err(|error| Error::layer(name(), error))
        })
        .collect()
}

/// One layer to be unpacked.
struct Job<'a> {
    index: usize,
    layer: &'a Layer,
    expected: Option<&'a DiffId>,
    options: &'a Options<'a>,
    /// Another layer has failed.
    failed: &'a AtomicBool,
    sums: &'a Sums,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl Job<'_> {
    fn run(&self) -> Result<Unpacked, LayerError> {
        let (full, filled) = mpsc::sync_channel::<io::Result<Vec<u8>>>(CHUNKS);
        let (give_back, empty) = mpsc::channel::<Vec<u8>>();
        for _ in 0..CHUNKS {
            let _ = give_back.send(vec![0; CHUNK]);
        }
        thread::scope(|scope| {
            scope.spawn(move || self.read(&empty, &full));
            // Both ends are closed when this side is done, for whatever reason:
            // that ends the other.
            let (filled, give_back) = (filled, give_back);
            self.consume(&filled, &give_back)
        })
    }

    fn stopped(&self) -> bool {
        self.options.cancel.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }

    /// The first thread: decompresses into chunks.
    fn read(&self, empty: &mpsc::Receiver<Vec<u8>>, full: &mpsc::SyncSender<io::Result<Vec<u8>>>) {
        let layer = self.layer;
        let source = Metered {
            part: Part::new(Arc::clone(&layer.file), layer.offset, layer.length),
            done: 0,
            reported: 0,
            job: self,
        };
        let source = BufReader::with_capacity(CHUNK, source);
        let mut source = Decompressor::new(source, layer.compression);
        // Ends when the other side has gone, too.
        while let Ok(mut chunk) = empty.recv() {
            chunk.resize(CHUNK, 0);
            let result = read_full(&mut source, &mut chunk);
            let last = match &result {
                Ok(read) => {
                    chunk.truncate(*read);
                    *read < CHUNK
                }
                Err(_) => true,
            };
            if full.send(result.map(|_| chunk)).is_err() || last {
                return;
            }
        }
    }

    /// The second thread: all that has to be done with the uncompressed stream.
    fn consume(
        &self,
        filled: &mpsc::Receiver<io::Result<Vec<u8>>>,
        give_back: &mpsc::Sender<Vec<u8>>,
    ) -> Result<Unpacked, LayerError> {
        let directory = self.options.spool;
        let limits = &self.options.limits;
        let mut spool = match self.layer.stays_as_hashed() {
            true => None,
            false => Some(Spool::new(directory)?),
        };
        let mut index = Index {
            sums: self.sums,
            limits,
            expander: Expander::new(directory),
            expanding: false,
            entries: Vec::new(),
        };
        let mut reader = Reader::new(limits.header);
        let mut hash = Sha256::new();
        // The other thread sends no more after the last chunk or an error.
        for chunk in filled {
            if self.stopped() {
                return Err(LayerError::Cancelled);
            }
            let chunk = chunk.map_err(|error| self.unreadable(error))?;
            if !add(&self.sums.total, to_u64(chunk.len()), limits.total) {
                return Err(LayerError::Total {
                    limit: limits.total,
                });
            }
            hash.update(&chunk);
            if let Some(spool) = &mut spool {
                spool.write(&chunk)?;
            }
            reader.push(&chunk, &mut |event| index.event(event))?;
            let _ = give_back.send(chunk);
        }
        if self.stopped() {
            return Err(LayerError::Cancelled);
        }
        reader.finish()?;
        let found: DiffId = hash.finalize().into();
        if let Some(expected) = self.expected
            && *expected != found
        {
            return Err(LayerError::DiffId {
                expected: *expected,
                found,
            });
        }
        let (file, base) = match spool {
            Some(spool) => (spool.finish()?, 0),
            None => (Arc::clone(&self.layer.file), self.layer.offset),
        };
        let entries = index.entries.into_iter();
        let entries = entries.map(|entry| entry.at(&file, base)).collect();
        Ok(Unpacked {
            diff_id: found,
            entries,
        })
    }

    fn unreadable(&self, error: io::Error) -> LayerError {
        if self.stopped() {
            return LayerError::Cancelled;
        }
        LayerError::unreadable(self.layer.compression, error)
    }
}

/// Fills the buffer unless the stream ends.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match source.read(room) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The stored layer; tells of progress, and ends early when all is to end.
struct Metered<'a> {
    part: Part<Arc<std::fs::File>>,
    done: u64,
    reported: u64,
    job: &'a Job<'a>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.job.stopped() {
            return Err(io::Error::other("stopped"));
        }
        let read = self.part.read(buffer)?;
        self.done += to_u64(read);
        let total = self.job.layer.length;
        if read == 0 && self.done < total {
            // The file is shorter than its owner said.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.done - self.reported >= REPORT_EVERY || (self.done == total && read > 0) {
            self.reported = self.done;
            let layer = self.job.index;
            (self.job.progress)(Progress::Unpacking {
                layer,
                done: self.done,
                total,
            });
        }
        Ok(read)
    }
}

/// Notes the entries of a layer while its limits are kept.
struct Index<'a> {
    sums: &'a Sums,
    limits: &'a Limits,
    expander: Expander<'a>,
    /// Is the last entry a sparse file?
    expanding: bool,
    entries: Vec<Noted>,
}

/// An entry whose layer is not complete yet.
struct Noted {
    entry: Unflattened,
    /// Where its content is in the uncompressed layer.
    stored: Option<(u64, u64)>,
}

impl Noted {
    fn at(self, file: &Arc<std::fs::File>, base: u64) -> Unflattened {
        let mut entry = self.entry;
        if let Some((position, length)) = self.stored {
            let offset = base.saturating_add(position);
            entry.content = Some(Content::Range {
                file: Arc::clone(file),
                offset,
                length,
            });
        }
        entry
    }
}

impl Index<'_> {
    fn event(&mut self, event: Event<'_>) -> Result<(), LayerError> {
        match event {
            Event::Data(bytes) if self.expanding => self.expander.data(bytes),
            Event::Data(_) => Ok(()),
            Event::Entry(entry) => self.entry(entry),
        }
    }

    fn entry(&mut self, entry: tar::Entry) -> Result<(), LayerError> {
        let tar::Entry {
            path,
            kind,
            size,
            position,
            stored,
            sparse,
            ..
        } = entry;
        let limits = self.limits;
        if path.len() > PATH_MAX {
            return Err(LayerError::PathTooLong {
                length: path.len(),
                path,
            });
        }
        if size > limits.file || stored > limits.file {
            return Err(LayerError::FileSize {
                path,
                size: size.max(stored),
                limit: limits.file,
            });
        }
        if !add(&self.sums.entries, 1, limits.entries) {
            return Err(LayerError::Entries {
                limit: limits.entries,
            });
        }
        // What is stored is counted as it comes; holes do not come.
        if !add(&self.sums.total, size.saturating_sub(stored), limits.total) {
            return Err(LayerError::Total {
                limit: limits.total,
            });
        }
        let mut xattrs = std::collections::BTreeMap::new();
        for (name, value) in entry.xattrs {
            if is_kept(&name) {
                xattrs.insert(name, value);
            }
        }
        if let Err(source) = erofs::xattrs_size(&xattrs) {
            return Err(LayerError::Xattr { path, source });
        }
        let target = match &kind {
            Kind::Symlink(target) | Kind::HardLink(target) => target.len(),
            _ => 0,
        };
        let attributes: usize = xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + ATTRIBUTE_COST)
            .sum();
        let bytes = to_u64(path.len() + target + attributes);
        if !add(&self.sums.metadata, bytes, limits.metadata) {
            return Err(LayerError::Metadata {
                limit: limits.metadata,
            });
        }
        self.expanding = sparse.is_some();
        let (content, stored) = match sparse {
            Some(map) => {
                let (file, offset) = self.expander.begin(size, map)?;
                (
                    Some(Content::Range {
                        file,
                        offset,
                        length: size,
                    }),
                    None,
                )
            }
            None => (None, (kind == Kind::Regular).then_some((position, stored))),
        };
        let metadata = Metadata {
            permissions: entry.permissions,
            uid: entry.uid,
            gid: entry.gid,
            modified: entry.modified,
            xattrs,
        };
        let entry = Unflattened {
            path: path.into(),
            kind,
            metadata,
            content,
        };
        self.entries.push(Noted { entry, stored });
        Ok(())
    }
}

/// Does an attribute belong to the file? SELinux labels belong to a policy,
/// `overlay` ones to how an overlay keeps its layers (they would confuse the
/// guest's), and what EROFS has no place for, other file systems refuse as well.
fn is_kept(name: &[u8]) -> bool {
    erofs::xattr_storable(name)
        && name != b"security.selinux"
        && !name.starts_with(b"trusted.overlay.")
        && !name.starts_with(b"user.overlay.")
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
