//! A writer of uncompressed EROFS images, the read-only file system that
//! guests have as their root.
//!
//! It takes a [`Tree`] and writes an image that Linux from 5.4 on mounts
//! (`fs/erofs/erofs_fs.h` of Linux 6.12 is the reference for the format). All
//! that a Unix file system keeps is kept: owners of 32 bits, modes, times in
//! nanoseconds, hard links, extended attributes, devices, any bytes in names.
//! Access and change times are not: the format has one time per inode.
//!
//! Images are deterministic: the same tree and [`Options`] give the same bytes,
//! whatever the order in which the tree was made. Nothing is compressed, so
//! that the guest's page cache is filled by plain block reads, which hosts
//! share between guests. Contents are streamed; memory is needed for the
//! tree's metadata only, about 400 bytes for each file.
//!
//! The structures are in `format`, what goes where in `layout`, directories in
//! `dirents`, attributes in `xattrs`, and the writing itself in `writer`.

mod dirents;
mod format;
mod layout;
mod writer;
mod xattrs;

use std::fs::File;
use std::io;

use crate::tree::Tree;

pub use xattrs::XattrError;
pub(crate) use xattrs::{size as xattrs_size, storable as xattr_storable};

/// Changes whenever the same tree gives other bytes than before, so that
/// caches of images know which are stale.
pub const FORMAT_VERSION: u32 = 1;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file's extended attributes do not fit the format.
    #[error("cannot store {path} in an EROFS image: {source}")]
    Xattr {
        /// Path in the tree.
        path: String,
        /// What does not fit.
        source: XattrError,
    },
    /// A device number does not fit the format.
    #[error("cannot store device {path} in an EROFS image: {major}:{minor} is above 4095:1048575")]
    Device {
        /// Path in the tree.
        path: String,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// The image would have more than 2³² blocks.
    #[error("cannot write an EROFS image: {content} bytes of files are above its 16 TiB")]
    ImageTooLarge {
        /// Bytes of all regular files.
        content: u64,
    },
    /// A file's content could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path in the tree.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file's content ended early or changed while it was read.
    #[error("{path} changed while it was copied; stop what writes to it and try again")]
    Changed {
        /// Path in the tree.
        path: String,
    },
    /// The image could not be written.
    #[error("cannot write the EROFS image: {0}")]
    Write(#[source] io::Error),
}

/// Choices that change an image's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The UUID in the superblock. Derive it from what the tree was made of;
    /// all zero means that there is none.
    pub uuid: [u8; 16],
    /// Keep the last, partial block of regular files next to their inodes,
    /// which saves half a block per file. Files with such a tail cannot be
    /// mapped by DAX.
    pub inline_files: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            uuid: [0; 16],
            inline_files: true,
        }
    }
}

/// How far the writing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of file content written.
    pub done: u64,
    /// Bytes of file content in the tree.
    pub total: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Size of the image in bytes, a multiple of 4096. The file can have holes.
    pub size: u64,
    /// Inodes in the image.
    pub inodes: u64,
    /// Bytes of content of all regular files, each hard-linked file once.
    pub content: u64,
}

/// Writes `tree` as an EROFS image to `output`, which is emptied first, and
/// calls `progress` about once for each MiB.
///
/// The superblock is written last: what is left behind by an error or a crash
/// does not pass for an image. Syncing is the caller's business.
///
/// # Errors
///
/// What does not fit the format, is found before anything is written; and
/// contents that cannot be read or change, and errors of `output`.
pub fn write(
    tree: &Tree,
    options: &Options,
    output: &File,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, Error> {
    let summary = write_unless(tree, options, output, &mut |now| {
        progress(now);
        false
    })?;
    // It was never asked to stop.
    summary.ok_or_else(|| Error::Write(io::ErrorKind::Interrupted.into()))
}

/// As [`write`], but stops when `stop` returns true; there is no image then.
pub(crate) fn write_unless(
    tree: &Tree,
    options: &Options,
    output: &File,
    stop: &mut dyn FnMut(Progress) -> bool,
) -> Result<Option<Summary>, Error> {
    let plan = layout::Plan::new(tree, options)?;
    writer::Writer::new(tree, &plan, output, stop).write(options)
}
