//! What can go wrong.

use std::io;
use std::path::PathBuf;

use super::DiffId;
use crate::compression::Compression;
use crate::directory::hex;
use crate::tar::{self, shown};
use crate::{erofs, tree};

/// Why layers could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is wrong with a layer.
    #[error("layer {name}: {source}")]
    Layer {
        /// [`Layer::name`](super::Layer::name).
        name: String,
        /// What is wrong.
        source: Box<LayerError>,
    },
    /// There is not one expected `diff_id` for each layer.
    #[error("the image has {layers} layers, but its configuration has {diff_ids} diff_ids")]
    Count {
        /// Layers given.
        layers: usize,
        /// Hashes given.
        diff_ids: usize,
    },
    /// The layers are too large together, before anything is unpacked.
    #[error(
        "its layers have {size} bytes as they are packed, and the limit for all layers of an image \
         is {limit}"
    )]
    Packed {
        /// Bytes of all layers as they are stored.
        size: u64,
        /// [`Limits::total`](super::Limits::total).
        limit: u64,
    },
    /// The image could not be written.
    #[error(transparent)]
    Image(#[from] erofs::Error),
    /// [`Options::cancel`](super::Options::cancel) was set.
    #[error("the conversion was cancelled")]
    Cancelled,
}

impl Error {
    pub(super) fn layer(name: String, source: LayerError) -> Self {
        match source {
            LayerError::Cancelled => Self::Cancelled,
            source => Self::Layer {
                name,
                source: Box::new(source),
            },
        }
    }
}

impl LayerError {
    /// Why a layer that is stored like this cannot be read.
    pub(super) fn unreadable(compression: Compression, error: io::Error) -> Self {
        let format = match compression {
            Compression::None => return Self::Read(error),
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        match error.kind() {
            // An error of the system is one of reading; decoders make their own.
            _ if error.raw_os_error().is_some() => Self::Read(error),
            io::ErrorKind::UnexpectedEof => Self::Truncated { format },
            _ => Self::Corrupt {
                format,
                source: error,
            },
        }
    }
}

/// What is wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its file cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[source] io::Error),
    /// It cannot be decompressed.
    #[error("its {format} stream is corrupt: {source}")]
    Corrupt {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Its compressed stream ends early.
    #[error("its {format} stream is truncated: only a part of it is there")]
    Truncated {
        /// `gzip` or `zstd`.
        format: &'static str,
    },
    /// The uncompressed layer is no tar that can be read.
    #[error(transparent)]
    Tar(#[from] tar::Error),
    /// The uncompressed layer has another hash than the configuration says.
    #[error(
        "its content is not what the image's configuration says: diff_id sha256:{}, expected sha256:{}",
        hex(found),
        hex(expected)
    )]
    DiffId {
        /// What the configuration says.
        expected: DiffId,
        /// What it is.
        found: DiffId,
    },
    /// The layers are too large together.
    #[error("the image unpacks to more than the limit of {limit} bytes")]
    Total {
        /// [`Limits::total`](super::Limits::total).
        limit: u64,
    },
    /// A file is too large.
    #[error("{}: the file has {size} bytes, the limit is {limit}", shown(path))]
    FileSize {
        /// Path of the entry.
        path: Vec<u8>,
        /// Its size.
        size: u64,
        /// [`Limits::file`](super::Limits::file).
        limit: u64,
    },
    /// Too many entries.
    #[error("the image has more than the limit of {limit} files")]
    Entries {
        /// [`Limits::entries`](super::Limits::entries).
        limit: u64,
    },
    /// Too much metadata.
    #[error("the names and attributes of the image have more than the limit of {limit} bytes")]
    Metadata {
        /// [`Limits::metadata`](super::Limits::metadata).
        limit: u64,
    },
    /// A path is longer than what Linux takes.
    #[error("{}: the path has {length} bytes, Linux takes 4095", shown(path))]
    PathTooLong {
        /// Path of the entry.
        path: Vec<u8>,
        /// Its length, or that of what it stands for.
        length: usize,
    },
    /// Attributes of a file cannot be stored.
    #[error("{}: {source}", shown(path))]
    Xattr {
        /// Path of the entry.
        path: Vec<u8>,
        /// What cannot be stored.
        source: erofs::XattrError,
    },
    /// A name or link target cannot be stored.
    #[error("{}: {source}", shown(path))]
    Tree {
        /// Path of the entry.
        path: Vec<u8>,
        /// What cannot be stored.
        source: tree::Error,
    },
    /// The root would become something that is no directory.
    #[error("{}: the root of an image has to be a directory", shown(path))]
    Root {
        /// Path of the entry.
        path: Vec<u8>,
    },
    /// A directory of a path is something else.
    #[error("{}: a part of the path is not a directory", shown(path))]
    NotADirectory {
        /// Path of the entry.
        path: Vec<u8>,
    },
    /// Symbolic links lead on and on.
    #[error("{}: the path leads through too many symbolic links", shown(path))]
    Loop {
        /// Path of the entry.
        path: Vec<u8>,
    },
    /// There is nothing at a hard link's target, or a directory.
    #[error(
        "{}: a hard link to {}, which is not there or is a directory",
        shown(path),
        shown(target)
    )]
    HardLink {
        /// Path of the entry.
        path: Vec<u8>,
        /// Path of the target.
        target: Vec<u8>,
    },
    /// A whiteout of `.` or `..` or nothing.
    #[error("{}: a whiteout that names no file", shown(path))]
    Whiteout {
        /// Path of the entry.
        path: Vec<u8>,
    },
    /// A spool file cannot be made or written.
    #[error("cannot {what} a spool file in {directory}: {source}")]
    Spool {
        /// `make`, `write`.
        what: &'static str,
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// See [`Error::Cancelled`].
    #[error("cancelled")]
    Cancelled,
}
