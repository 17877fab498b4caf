//! Layers of a container image, flattened and written as one EROFS image.
//!
//! ```text
//!  layer ─ decompress ─ hash ─ tar ─┬─► entries ─┐
//!             (threads, per layer)  └─► spool    ├─ flatten ─► tree ─ erofs ─► image
//!  layer ─ …                                     ┘
//! ```
//!
//! 1. **Unpack.** Every layer is read once. It goes, decompressed, into an
//!    unlinked spool file (runs of zeros become holes); only an uncompressed one
//!    in our own [`Custody`] is used where it is. While the tar streams by it is
//!    hashed, which gives the layer's `diff_id`, and its entries are noted with
//!    the place of their content in the spool.
//! 2. **Flatten.** The entries are applied from the lowest layer up, as a
//!    container runtime would extract them into a directory, to a
//!    [`Tree`] in memory.
//! 3. **Write.** [`crate::erofs`] writes the tree; contents are copied from
//!    spool to image.
//!
//! Memory is needed for metadata and a few buffers only. The image depends on
//! the uncompressed layers and on nothing else: the same layers give the same
//! bytes whatever they were compressed with, and whoever delivers them. What is
//! kept, how paths are resolved and what whiteouts do is told in
//! `docs/images.md`.
//!
//! Everything in a layer is hostile until proved otherwise: [`Limits`] bounds
//! what it may ask for, and no path leads out of the image.

mod error;
mod flatten;
mod limits;
mod spool;
mod unpack;
mod verify;

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::compression::Compression;
use crate::erofs;
use crate::tree::Tree;

pub use error::{Error, LayerError};
pub use limits::Limits;
pub use verify::verify;

/// SHA-256 of an uncompressed layer.
pub type DiffId = [u8; 32];

/// Who can write a file while it is being read.
///
/// A layer is hashed when it is unpacked, and its files' contents are copied
/// when the image is written. Between the two, a file in anybody else's custody
/// may get other bytes; so contents are taken from a copy that nobody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Custody {
    /// Nobody but us: a blob of a store, or a file without a name that we made.
    Own,
    /// Somebody else, be it only the user's own programs.
    Foreign,
}

/// One layer: a tar, compressed or not, in a part of a file.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What messages call it: its digest, or its path in an archive.
    pub name: String,
    /// The file that it is in; its position is neither used nor kept.
    pub file: Arc<File>,
    /// Where it starts in the file.
    pub offset: u64,
    /// Its length in bytes, as stored.
    pub length: u64,
    /// How it is stored.
    pub compression: Compression,
    /// Whose the file is.
    pub custody: Custody,
}

impl Layer {
    /// The layer in `length` bytes of `file` from `offset` on, in
    /// [`Custody::Foreign`]. How it is compressed is told by its first bytes,
    /// never by a media type.
    ///
    /// # Errors
    ///
    /// The first bytes cannot be read.
    pub fn new(name: String, file: Arc<File>, offset: u64, length: u64) -> io::Result<Self> {
        let compression = Compression::of(&file, offset, length)?;
        Ok(Self {
            name,
            file,
            offset,
            length,
            compression,
            custody: Custody::Foreign,
        })
    }

    /// The same in the custody of `custody`.
    #[must_use]
    pub fn in_custody(self, custody: Custody) -> Self {
        Self { custody, ..self }
    }

    /// Can its contents be taken from where they are once they were hashed?
    fn stays_as_hashed(&self) -> bool {
        self.compression == Compression::None && self.custody == Custody::Own
    }
}

/// How to convert.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// What is asked of the layers at most.
    pub limits: Limits,
    /// Layers that are unpacked at a time. Each has two threads: one
    /// decompresses, the other hashes, reads the tar and writes the spool.
    pub threads: NonZeroUsize,
    /// Directory for spool files, which never have a name in it. They need as
    /// much room as the layers do when unpacked, until the image is written.
    pub spool: &'a Path,
    /// When this becomes true, the conversion ends with [`Error::Cancelled`].
    pub cancel: &'a AtomicBool,
    /// See [`erofs::Options::inline_files`].
    pub inline_files: bool,
}

impl<'a> Options<'a> {
    /// Default limits, as many threads as there are CPUs.
    #[must_use]
    pub fn new(spool: &'a Path, cancel: &'a AtomicBool) -> Self {
        Self {
            limits: Limits::default(),
            threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            spool,
            cancel,
            inline_files: erofs::Options::default().inline_files,
        }
    }
}

/// How far a conversion is. Reported about once for each MiB, and at the end
/// of each layer and of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A layer is being unpacked.
    Unpacking {
        /// Index of the layer.
        layer: usize,
        /// Bytes of it, as stored, that were read.
        done: u64,
        /// Its length as stored.
        total: u64,
    },
    /// The image is being written.
    Writing(erofs::Progress),
}

/// What a conversion has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// The hashes of the uncompressed layers, lowest first.
    pub diff_ids: Vec<DiffId>,
    /// The image.
    pub summary: erofs::Summary,
}

/// What layers look like on top of each other.
#[derive(Debug)]
pub struct Flattened {
    /// The tree. Contents are ranges of layers and spool files, which it keeps open.
    pub tree: Tree,
    /// The hashes of the uncompressed layers, lowest first.
    pub diff_ids: Vec<DiffId>,
}

/// Flattens `layers`, lowest first, and writes them as an EROFS image to
/// `output`, which is emptied first. Syncing is the caller's business.
///
/// `expected` are the `diff_ids` of the image's configuration: empty if there
/// are none, else one for each layer. `progress` is called by several threads.
///
/// # Errors
///
/// A layer cannot be read, is not what it should be or asks for too much; a
/// spool file or the image cannot be written; or [`Options::cancel`] was set.
/// What `output` holds then does not pass for an image.
pub fn convert(
    layers: &[Layer],
    expected: &[DiffId],
    options: &Options<'_>,
    output: &File,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Converted, Error> {
    let Flattened { tree, diff_ids } = flatten(layers, expected, options, progress)?;
    let erofs_options = erofs::Options {
        uuid: uuid(&diff_ids),
        inline_files: options.inline_files,
    };
    let summary = erofs::write_unless(&tree, &erofs_options, output, &mut |now| {
        progress(Progress::Writing(now));
        options.cancel.load(Ordering::Relaxed)
    })?;
    let summary = summary.ok_or(Error::Cancelled)?;
    Ok(Converted { diff_ids, summary })
}

/// Unpacks `layers`, lowest first, and applies them on top of each other; the
/// arguments are those of [`convert`].
///
/// # Errors
///
/// As [`convert`].
pub fn flatten(
    layers: &[Layer],
    expected: &[DiffId],
    options: &Options<'_>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Flattened, Error> {
    if !expected.is_empty() && expected.len() != layers.len() {
        return Err(Error::Count {
            layers: layers.len(),
            diff_ids: expected.len(),
        });
    }
    let sizes = layers.iter().map(|layer| layer.length);
    options.limits.check_packed(sizes)?;
    let unpacked = unpack::all(layers, expected, options, progress)?;
    let diff_ids = unpacked.iter().map(|layer| layer.diff_id).collect();
    let mut flattener = flatten::Flattener::new(&options.limits);
    for (index, unpacked) in unpacked.into_iter().enumerate() {
        let named = |source| {
            let name = layers.get(index).map(|layer| layer.name.clone());
            Error::layer(name.unwrap_or_default(), source)
        };
        if options.cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        flattener.apply(unpacked, options.cancel).map_err(named)?;
    }
    Ok(Flattened {
        tree: flattener.tree,
        diff_ids,
    })
}

/// The UUID of the image of these layers: of version 8, which RFC 9562 leaves
/// to applications.
fn uuid(diff_ids: &[DiffId]) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(b"flashpan layers");
    for diff_id in diff_ids {
        hash.update(diff_id);
    }
    let mut uuid = [0; 16];
    for (byte, hashed) in uuid.iter_mut().zip(hash.finalize()) {
        *byte = hashed;
    }
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

#[cfg(test)]
mod tests;
