//! The on-disk structures of EROFS as Linux 6.12 reads them
//! (`fs/erofs/erofs_fs.h`), as far as an uncompressed image needs them.
//! Everything is little-endian.

use crate::tree::Timestamp;

/// `blkszbits`: blocks of 4 KiB, the page size of the guest.
pub(super) const BLOCK_BITS: u8 = 12;
/// Bytes in a block.
pub(super) const BLOCK: u64 = 1 << BLOCK_BITS;
/// [`BLOCK`] for lengths in memory.
pub(super) const BLOCK_LEN: usize = 1 << BLOCK_BITS;
/// Inode numbers ("nids") count slots of this many bytes from the start of the
/// metadata area.
pub(super) const SLOT: u64 = 32;
/// Slots in a block.
pub(super) const SLOTS_PER_BLOCK: u64 = BLOCK / SLOT;

/// Byte offset of the superblock in the image.
pub(crate) const SUPER_OFFSET: u64 = 1024;
/// First four bytes of the superblock.
pub(crate) const MAGIC: u32 = 0xE0F5_E1E2;
/// `feature_compat`: the superblock has a CRC32C.
const SB_CHKSUM: u32 = 0x1;
/// `feature_compat`: inodes have an mtime (not a ctime).
const MTIME: u32 = 0x2;

/// The superblock and the rest of its block, with the check sum in place.
///
/// `root` is the root directory's nid, `inodes` the number of inodes, `blocks`
/// the size of the image, `built` the mtime of every compact inode.
pub(super) fn superblock(
    root: u16,
    inodes: u64,
    blocks: u32,
    built: Timestamp,
    uuid: [u8; 16],
) -> Vec<u8> {
    let fields = |checksum: u32| {
        let mut out = Vec::with_capacity(BLOCK_LEN);
        out.extend(MAGIC.to_le_bytes());
        out.extend(checksum.to_le_bytes());
        out.extend((SB_CHKSUM | MTIME).to_le_bytes());
        out.push(BLOCK_BITS);
        out.push(0); // sb_extslots
        out.extend(root.to_le_bytes());
        out.extend(inodes.to_le_bytes());
        out.extend(built.seconds.to_le_bytes());
        out.extend(built.nanoseconds.to_le_bytes());
        out.extend(blocks.to_le_bytes());
        out.extend(0_u32.to_le_bytes()); // meta_blkaddr: nids count from the image's start
        out.extend(0_u32.to_le_bytes()); // xattr_blkaddr: no shared attributes
        out.extend(uuid);
        out.extend([0; 16]); // volume_name
        out.extend(0_u32.to_le_bytes()); // feature_incompat: none
        // Compression, devices, long attribute prefixes, packed inode: none.
        out.resize(128, 0);
        // The check sum covers the block from the superblock on.
        out.resize(BLOCK_LEN - 1024, 0);
        out
    };
    fields(crc32c(&fields(0)))
}

/// CRC32C (Castagnoli) as the kernel's `crc32c(~0, …)`: not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    })
}

/// `i_format` bit 0 and the size that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// 32 bytes: 16-bit owner, group and link count, 32-bit size, no mtime.
    Compact,
    /// 64 bytes: everything.
    Extended,
}

impl Version {
    /// Bytes of the inode itself.
    pub(super) fn size(self) -> u64 {
        match self {
            Self::Compact => 32,
            Self::Extended => 64,
        }
    }
}

/// `i_format` bits 1 to 3: where the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Whole blocks from `raw_blkaddr` on.
    FlatPlain,
    /// As above, but what is in the last, partial block follows the inode.
    FlatInline,
}

/// An inode about to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawInode {
    pub(super) version: Version,
    pub(super) layout: Layout,
    /// Bytes of attributes after the inode: 0, or 12 and a multiple of four.
    pub(super) xattr_size: usize,
    /// Type and permissions.
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    /// `raw_blkaddr`, or the device number of a device.
    pub(super) union: u32,
    /// Only for `stat` calls with 32-bit inode numbers.
    pub(super) ino: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Timestamp,
}

impl RawInode {
    /// The version that holds all fields of this inode where `built` is the
    /// superblock's time.
    pub(super) fn smallest_version(&self, built: Timestamp) -> Version {
        let fits = |value: u32| u16::try_from(value).is_ok();
        if fits(self.uid)
            && fits(self.gid)
            && fits(self.links)
            && u32::try_from(self.size).is_ok()
            && self.modified == built
        {
            Version::Compact
        } else {
            Version::Extended
        }
    }

    /// Appends the inode to `out`. A field that does not fit, which
    /// [`RawInode::smallest_version`] rules out, is written as its maximum.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let narrow = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let version = u16::from(self.version == Version::Extended);
        let layout: u16 = match self.layout {
            Layout::FlatPlain => 0,
            Layout::FlatInline => 2,
        };
        // i_xattr_icount: a header of 12 bytes counts one, then units of four bytes.
        let xattr_count = match self.xattr_size {
            0 => 0,
            size => u16::try_from((size.saturating_sub(12)) / 4 + 1).unwrap_or(u16::MAX),
        };
        out.extend((version | layout << 1).to_le_bytes());
        out.extend(xattr_count.to_le_bytes());
        out.extend(self.mode.to_le_bytes());
        match self.version {
            Version::Compact => {
                out.extend(narrow(self.links).to_le_bytes());
                out.extend(u32::try_from(self.size).unwrap_or(u32::MAX).to_le_bytes());
                out.extend([0; 4]);
                out.extend(self.union.to_le_bytes());
                out.extend(self.ino.to_le_bytes());
                out.extend(narrow(self.uid).to_le_bytes());
                out.extend(narrow(self.gid).to_le_bytes());
                out.extend([0; 4]);
            }
            Version::Extended => {
                out.extend([0; 2]);
                out.extend(self.size.to_le_bytes());
                out.extend(self.union.to_le_bytes());
                out.extend(self.ino.to_le_bytes());
                out.extend(self.uid.to_le_bytes());
                out.extend(self.gid.to_le_bytes());
                out.extend(self.modified.seconds.to_le_bytes());
                out.extend(self.modified.nanoseconds.to_le_bytes());
                out.extend(self.links.to_le_bytes());
                out.extend([0; 16]);
            }
        }
    }
}

/// A device number in Linux's 32-bit encoding: 12 bits of major, 20 of minor.
pub(super) fn device_number(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20)
        .then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_the_check_value_of_its_catalogue_entry() {
        // CRC-32/ISCSI, check value 0xE3069283, which is inverted at the end.
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn structures_have_the_sizes_of_the_kernel_header() {
        let mut inode = RawInode {
            version: Version::Compact,
            layout: Layout::FlatInline,
            xattr_size: 12 + 4,
            mode: 0o100_644,
            links: 1,
            size: 1,
            union: 0,
            ino: 1,
            uid: 0,
            gid: 0,
            modified: Timestamp::default(),
        };
        let mut out = Vec::new();
        inode.encode(&mut out);
        assert_eq!(out.len(), 32);
        assert_eq!(out[..6], [4, 0, 2, 0, 0xa4, 0x81]);
        inode.version = Version::Extended;
        out.clear();
        inode.encode(&mut out);
        assert_eq!(out.len(), 64);
        assert_eq!(
            superblock(0, 0, 0, Timestamp::default(), [0; 16]).len(),
            3072
        );
    }

    #[test]
    fn an_inode_is_compact_only_if_nothing_is_lost() {
        let built = Timestamp {
            seconds: 7,
            nanoseconds: 8,
        };
        let small = RawInode {
            version: Version::Compact,
            layout: Layout::FlatPlain,
            xattr_size: 0,
            mode: 0,
            links: 65_535,
            size: 0xffff_ffff,
            union: 0,
            ino: 0,
            uid: 65_535,
            gid: 65_535,
            modified: built,
        };
        assert_eq!(small.smallest_version(built), Version::Compact);
        let later = Timestamp {
            seconds: 7,
            nanoseconds: 9,
        };
        for large in [
            RawInode {
                links: 65_536,
                ..small
            },
            RawInode {
                size: 1 << 32,
                ..small
            },
            RawInode {
                uid: 65_536,
                ..small
            },
            RawInode {
                gid: 65_536,
                ..small
            },
            RawInode {
                modified: later,
                ..small
            },
        ] {
            assert_eq!(large.smallest_version(built), Version::Extended);
        }
    }

    #[test]
    fn device_numbers_are_those_of_the_kernel() {
        assert_eq!(device_number(5, 1), Some(0x501));
        assert_eq!(device_number(259, 0x12345), Some(0x1231_0345));
        assert_eq!(device_number(4096, 0), None);
        assert_eq!(device_number(0, 1 << 20), None);
    }
}
