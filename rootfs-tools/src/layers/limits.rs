//! What an image may ask for.

use super::error::Error;

/// What the layers of one image may ask for at most.
///
/// The defaults are well above the largest images in use, and low enough that
/// an image that is made to hurt fills neither disk nor memory of a machine
/// that could run it. There is no limit on the ratio of compression: a layer
/// of zeros is legitimate, costs holes only, and is bounded by `total`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all layers uncompressed, with the holes of sparse files, and as
    /// they are packed: 64 GiB.
    pub total: u64,
    /// Bytes of one file: 32 GiB.
    pub file: u64,
    /// Entries of all layers, and directories that are only implied: 2,000,000.
    /// Each takes 300 to 500 bytes of memory until the image is written.
    pub entries: u64,
    /// Bytes of names, link targets and extended attributes of all entries, each
    /// attribute with 128 bytes for keeping it: 256 MiB, which are kept in memory.
    pub metadata: u64,
    /// Bytes of one extended header of a tar (PAX records or a GNU long name): 1 MiB.
    pub header: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: 64 << 30,
            file: 32 << 30,
            entries: 2_000_000,
            metadata: 256 << 20,
            header: 1 << 20,
        }
    }
}

impl Limits {
    /// Checks what the layers of an image have together as they are packed:
    /// before anything is downloaded or read.
    ///
    /// # Errors
    ///
    /// [`Error::Packed`] if that is more than they may have unpacked.
    pub fn check_packed(&self, sizes: impl IntoIterator<Item = u64>) -> Result<(), Error> {
        let size = sizes.into_iter().fold(0, u64::saturating_add);
        let limit = self.total;
        match size > limit {
            true => Err(Error::Packed { size, limit }),
            false => Ok(()),
        }
    }
}

/// What memory an attribute takes besides its name and value, in bytes.
pub(super) const ATTRIBUTE_COST: usize = 128;

/// The longest path, in bytes: `PATH_MAX` of Linux without its NUL.
pub(super) const PATH_MAX: usize = 4095;
