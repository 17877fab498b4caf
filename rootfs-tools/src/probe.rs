//! What is this path that somebody wants as a root file system?

use std::fs::{File, FileType, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::child;

/// Byte offset of the superblock, the same in EROFS and ext4.
const SUPER_OFFSET: u64 = 1024;
/// As much of a superblock as is looked at.
const SUPER_LEN: usize = 1024;
/// `magic` of EROFS.
const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
/// `feature_incompat`: how clusters are padded; set wherever any is compressed.
const EROFS_ZERO_PADDING: u32 = 0x1;
/// `blkszbits` that Linux mounts where pages have 4 KiB.
const EROFS_BLOCK_BITS: std::ops::RangeInclusive<u8> = 9..=12;
/// `s_magic` of ext2, ext3 and ext4.
const EXT4_MAGIC: u16 = 0xEF53;
/// ext4 `s_log_block_size`: 1 KiB to 64 KiB.
const EXT4_LOG_BLOCK_MAX: u32 = 6;
/// ext4 `s_feature_incompat`: the journal has to be replayed before a mount.
const EXT4_RECOVER: u32 = 0x4;
/// ext4 `s_feature_incompat`: block counts have 64 bits.
const EXT4_64BIT: u32 = 0x80;

/// A root file system that flashpan can start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootImage {
    /// A directory of the host; see [`crate::directory`].
    Directory,
    /// An EROFS image.
    Erofs {
        /// Size of the file system in bytes.
        size: u64,
        /// Does the kernel need `EROFS_FS_ZIP` to read it?
        compressed: bool,
    },
    /// An ext4 (or ext2 or ext3) image.
    Ext4 {
        /// Size of the file system in bytes.
        size: u64,
        /// It was not unmounted: it cannot be mounted where it cannot be written.
        needs_recovery: bool,
    },
}

/// Why a path is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened or read.
    #[error(
        "cannot read root file system {path}: {source}; name a directory or an image that you may read"
    )]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "{path} is not a file system image that flashpan knows (EROFS, ext4 or a directory){looks}"
    )]
    Unknown {
        /// The path.
        path: PathBuf,
        /// What it looks like instead, as the end of the sentence; may be empty.
        looks: &'static str,
    },
    /// The file ends before its file system does.
    #[error(
        "{path} is truncated: its {kind} superblock says {size} bytes, the file has {actual}; \
         copy or make it again"
    )]
    Truncated {
        /// The path.
        path: PathBuf,
        /// Kind of file system.
        kind: &'static str,
        /// Size in bytes by the superblock.
        size: u64,
        /// Size in bytes of the file.
        actual: u64,
    },
    /// The superblock has a value that the guest's kernel does not take.
    #[error("{path} cannot be mounted: its {kind} superblock has {what}")]
    Superblock {
        /// The path.
        path: PathBuf,
        /// Kind of file system.
        kind: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Somebody writes to it.
    #[error("{path} is in use: a VM or a command writes to it; wait until that has ended")]
    InUse {
        /// The path.
        path: PathBuf,
    },
}

/// Opens `path`, an image or a directory, for a VM that only reads it, and finds
/// out what it is. The shared lock of an image (flock(2), as of a disk that is
/// read, [`crate::disk::open`]) is that of the open file: it lasts until the last
/// descriptor is closed, wherever that was passed on to. It is never waited for.
///
/// # Errors
///
/// As [`probe`], and [`Error::InUse`].
pub fn open(path: &Path) -> Result<(RootImage, File), Error> {
    let reading = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    check_kind(path, std::fs::metadata(path).map_err(reading)?.file_type())?;
    // It may be something else by now: a FIFO must not be waited for, a terminal
    // not become ours.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(reading)?;
    let kind = file.metadata().map_err(reading)?.file_type();
    check_kind(path, kind)?;
    if kind.is_dir() {
        return Ok((RootImage::Directory, file));
    }
    match child::try_lock(&file, true) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::InUse {
                path: path.to_owned(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(reading(source)),
    }
    // After the lock: nobody changes it now.
    let image = probe_file(path, &file)?;
    Ok((image, file))
}

/// Finds out what `path` is, by its content. Symbolic links are followed.
///
/// # Errors
///
/// It cannot be read, is nothing that a guest can have as its root, or is
/// damaged: shorter than its superblock says, or with impossible values there.
pub fn probe(path: &Path) -> Result<RootImage, Error> {
    let reading = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let kind = std::fs::metadata(path).map_err(reading)?.file_type();
    // Opening a FIFO would wait for a writer.
    check_kind(path, kind)?;
    if kind.is_dir() {
        return Ok(RootImage::Directory);
    }
    let file = File::open(path).map_err(reading)?;
    probe_file(path, &file)
}

/// Only files and directories can be a root.
fn check_kind(path: &Path, kind: FileType) -> Result<(), Error> {
    let looks = if kind.is_file() || kind.is_dir() {
        return Ok(());
    } else if kind.is_block_device() {
        ": it is a block device; copy it to a file, or mount it and name the directory"
    } else {
        ": it is neither a file nor a directory"
    };
    Err(Error::Unknown {
        path: path.to_owned(),
        looks,
    })
}

/// The same of a file that is open already; `path` is for messages.
pub(crate) fn probe_file(path: &Path, mut file: &File) -> Result<RootImage, Error> {
    let reading = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let actual = io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(reading)?;
    let image = Image { path, file, actual };
    let superblock = Superblock(image.read::<SUPER_LEN>(SUPER_OFFSET)?);
    if superblock.u32(0) == EROFS_MAGIC {
        image.erofs(&superblock)
    } else if superblock.u16(56) == EXT4_MAGIC {
        image.ext4(&superblock)
    } else {
        Err(Error::Unknown {
            path: path.to_owned(),
            looks: match image.actual {
                0 => ": it is empty",
                _ => looks_like(&image.read::<SUPER_LEN>(0)?),
            },
        })
    }
}

/// A file that is looked at.
struct Image<'a> {
    path: &'a Path,
    file: &'a File,
    /// Its size in bytes.
    actual: u64,
}

impl Image<'_> {
    /// The bytes at `offset`, zeros where the file has ended.
    fn read<const N: usize>(&self, offset: u64) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        let there = usize::try_from(self.actual.saturating_sub(offset)).unwrap_or(N);
        let there = bytes.get_mut(..there.min(N)).unwrap_or_default();
        self.file
            .read_exact_at(there, offset)
            .map_err(|source| Error::Read {
                path: self.path.to_owned(),
                source,
            })?;
        Ok(bytes)
    }

    /// `struct erofs_super_block`, Linux `fs/erofs/erofs_fs.h`.
    fn erofs(&self, superblock: &Superblock) -> Result<RootImage, Error> {
        let kind = "EROFS";
        let bits = superblock.u8(12);
        if !EROFS_BLOCK_BITS.contains(&bits) {
            let what = format!("blocks of 2^{bits} bytes, guests read 512 to 4096");
            return Err(self.superblock(kind, what));
        }
        if superblock.u16(86) > 0 {
            let what = "parts on other devices; make an image that has everything".into();
            return Err(self.superblock(kind, what));
        }
        let size = self.size(kind, superblock.u32(36).into(), bits.into())?;
        let padded = superblock.u32(80) & EROFS_ZERO_PADDING != 0;
        let compressed = padded || superblock.u16(84) != 0;
        Ok(RootImage::Erofs { size, compressed })
    }

    /// `struct ext4_super_block`, Linux `Documentation/filesystems/ext4/super.rst`.
    fn ext4(&self, superblock: &Superblock) -> Result<RootImage, Error> {
        let kind = "ext4";
        let log_block = superblock.u32(24);
        if log_block > EXT4_LOG_BLOCK_MAX {
            let what = format!("blocks of 2^{} bytes", log_block.saturating_add(10));
            return Err(self.superblock(kind, what));
        }
        let incompat = superblock.u32(96);
        let mut blocks = u64::from(superblock.u32(4));
        if incompat & EXT4_64BIT != 0 {
            blocks |= u64::from(superblock.u32(336)) << 32;
        }
        let size = self.size(kind, blocks, 10 + log_block)?;
        let needs_recovery = incompat & EXT4_RECOVER != 0;
        Ok(RootImage::Ext4 {
            size,
            needs_recovery,
        })
    }

    /// The size in bytes of a file system of `blocks`, which has to be in the file.
    fn size(&self, kind: &'static str, blocks: u64, block_bits: u32) -> Result<u64, Error> {
        let size = blocks
            .checked_mul(1 << block_bits)
            .filter(|size| *size > 0)
            .ok_or_else(|| self.superblock(kind, format!("{blocks} blocks")))?;
        if size > self.actual {
            return Err(Error::Truncated {
                path: self.path.to_owned(),
                kind,
                size,
                actual: self.actual,
            });
        }
        Ok(size)
    }

    fn superblock(&self, kind: &'static str, what: String) -> Error {
        Error::Superblock {
            path: self.path.to_owned(),
            kind,
            what,
        }
    }
}

/// Little-endian fields of a superblock, by their offsets; zero beyond its end.
struct Superblock([u8; SUPER_LEN]);

impl Superblock {
    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.0
            .get(offset..)
            .and_then(|bytes| bytes.first_chunk())
            .copied()
            .unwrap_or([0; N])
    }

    fn u8(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.field(offset))
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.field(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.field(offset))
    }
}

/// What people hand over by mistake, and what to do instead.
fn looks_like(head: &[u8]) -> &'static str {
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..)
            .is_some_and(|bytes| bytes.starts_with(magic))
    };
    if at(0, b"QFI\xfb") {
        ": it looks like a qcow2 disk; `qemu-img convert -O raw` makes a raw one of it"
    } else if at(512, b"EFI PART") || at(510, b"\x55\xaa") {
        ": it looks like a disk with partitions; give the image of one partition"
    } else if at(0, b"hsqs") {
        ": it looks like SquashFS; unpack it with `unsquashfs` and give the directory"
    } else if at(0, b"\x1f\x8b") || at(0, b"\x28\xb5\x2f\xfd") || at(0, b"\xfd7zXZ") {
        ": it looks compressed; unpack it first"
    } else if at(257, b"ustar") {
        ": it looks like a tar archive; unpack it and give the directory"
    } else if at(0, b"\x7fELF") {
        ": it looks like a program or a kernel"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests;
