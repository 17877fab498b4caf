//! Writable disks: sparse files with an empty ext4 file system.
//!
//! Formatting takes longer than starting a VM should, so each size is
//! formatted once, into a template in the cache, and disks are clones of it:
//! by reflink where the file system can, else by copying the few blocks that
//! `mkfs.ext4` has written.

mod attach;
mod kept;
mod loops;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use crate::cache::{self, Cache, Cached};
use crate::e2fsprogs;
use crate::sparse::{At, Copier, CopyError};

pub(crate) use attach::lock;
pub use attach::{OpenError, open};
pub use kept::{KeptError, kept};

/// Sizes have to be multiples of this, the block size of the file system.
pub const BLOCK_SIZE: u64 = 4096;
/// The smallest disk: below, the journal would leave little room.
pub const SIZE_MIN: u64 = 16 << 20;
/// The largest disk: what a file of the host's own ext4 can hold.
pub const SIZE_MAX: u64 = (16 << 40) - BLOCK_SIZE;

/// Where templates are in the cache.
const TEMPLATES: &str = "disks";

/// Changes whenever [`OPTIONS`] do, so that older templates are not used.
const TEMPLATE_VERSION: &str = "1";
/// How the template is formatted, whatever the host's `mke2fs.conf` says.
const OPTIONS: [&str; 15] = [
    "-q",
    // It is a file, not a device: do not ask.
    "-F",
    "-t",
    "ext4",
    "-b",
    "4096",
    "-I",
    "256",
    "-i",
    "16384",
    // No blocks kept back for root: in the guest everybody can be root.
    "-m",
    "0",
    "-E",
    // Discarding makes the file's holes count as zeroed inode tables, so that
    // the guest's kernel does not set out to zero them. The root directory
    // would else belong to who runs flashpan.
    "discard,lazy_journal_init=1,root_owner=0:0",
    "-Onone,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,\
     sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
];

/// Why a disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The size is out of range.
    #[error(
        "cannot make a disk of {0} bytes: want {SIZE_MIN} (16 MiB) to {SIZE_MAX}, a multiple of {BLOCK_SIZE}"
    )]
    Size(u64),
    /// `mkfs.ext4` is missing or failed.
    #[error("cannot format a disk: {0}")]
    Format(#[from] e2fsprogs::Error),
    /// The template could not be read.
    #[error("cannot read the disk template {path}: {source}")]
    Template {
        /// The template.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk could not be written.
    #[error("cannot write a disk of {size} bytes: {source}")]
    Write {
        /// The disk's size in bytes.
        size: u64,
        /// Why.
        source: io::Error,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] cache::Error),
}

/// A new disk without a name: its space is the file system's again when the last
/// descriptor is closed, however that comes about.
///
/// # Errors
///
/// As [`create`].
pub fn scratch(size: u64, cache: &Cache) -> Result<File, Error> {
    let directory = cache.path().join(TEMPLATES);
    let writing = |source| Error::Write { size, source };
    // The template makes the directory, and is in the same file system.
    template(checked(size)?, cache)?;
    let disk = tempfile::tempfile_in(directory).map_err(writing)?;
    create(&disk, size, cache)?;
    Ok(disk)
}

/// Can a disk have this size in bytes?
///
/// # Errors
///
/// [`Error::Size`] if not.
pub fn check_size(size: u64) -> Result<(), Error> {
    checked(size).map(drop)
}

fn checked(size: u64) -> Result<u64, Error> {
    if (SIZE_MIN..=SIZE_MAX).contains(&size) && size.is_multiple_of(BLOCK_SIZE) {
        Ok(size)
    } else {
        Err(Error::Size(size))
    }
}

/// Makes `disk` an empty ext4 file system of `size` bytes; what was in it is
/// lost. Its UUID is that of all disks of this size in this cache.
///
/// # Errors
///
/// The size is out of range, `mkfs.ext4` is missing or fails, or a file
/// operation fails.
pub fn create(disk: &File, size: u64, cache: &Cache) -> Result<(), Error> {
    let template = template(checked(size)?, cache)?;
    let writing = |source| Error::Write { size, source };
    disk.set_len(0).map_err(writing)?;
    if rustix::fs::ioctl_ficlone(disk, &template.file).is_ok() {
        return Ok(());
    }
    // Not on this file system, or not between these two.
    disk.set_len(size).map_err(writing)?;
    let from = At::start(&template.file);
    Copier::new()
        .copy(from, At::start(disk), size, &mut |_| {})
        .map_err(|error| match error {
            CopyError::Write(source) => writing(source),
            CopyError::Read(source) => Error::Template {
                path: template.path.clone(),
                source,
            },
            CopyError::Short => Error::Template {
                path: template.path.clone(),
                source: io::ErrorKind::UnexpectedEof.into(),
            },
        })
}

/// The formatted template of a size, made now if there is none.
fn template(size: u64, cache: &Cache) -> Result<Cached, Error> {
    let group = cache.group(TEMPLATES, &size.to_string(), "ext4")?;
    if let Some(found) = group.find(TEMPLATE_VERSION)? {
        return Ok(found);
    }
    let build = group.lock(&mut || {})?;
    if let Some(found) = group.find(TEMPLATE_VERSION)? {
        return Ok(found);
    }
    let writing = |source| Error::Write { size, source };
    build.file.set_len(size).map_err(writing)?;
    e2fsprogs::format(&build.file, &build.partial, &OPTIONS)?;
    Ok(build.publish(TEMPLATE_VERSION)?)
}

/// Whether there is the program that new disks are formatted with; where.
///
/// # Errors
/// It is missing, or does not run.
pub fn formatter() -> Result<String, Error> {
    Ok(e2fsprogs::find("mkfs.ext4")?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;
    use crate::child;
    use crate::probe::{RootImage, probe};

    #[test]
    fn a_disk_is_sparse_clean_and_owned_by_root() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        // 2 GiB, so that there are many block groups whose inode tables count.
        let size = 2 << 30;
        for name in ["one", "two"] {
            let path = dir.path().join(name);
            let disk = File::options()
                .create_new(true)
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            create(&disk, size, &cache).unwrap();
            let metadata = disk.metadata().unwrap();
            assert_eq!(metadata.len(), size);
            assert!(metadata.blocks() * 512 < 8 << 20, "{}", metadata.blocks());
            let needs_recovery = false;
            assert_eq!(
                probe(&path).unwrap(),
                RootImage::Ext4 {
                    size,
                    needs_recovery
                }
            );
            let fsck = child::output(Command::new("/usr/sbin/e2fsck").arg("-fn").arg(&path));
            let fsck = fsck.expect("e2fsck is needed by this test: apt-get install e2fsprogs");
            assert!(fsck.status.success(), "{fsck:?}");
            let dump = child::output(Command::new("/usr/sbin/dumpe2fs").arg(&path));
            let dump = String::from_utf8(dump.unwrap().stdout).unwrap();
            let groups = dump
                .lines()
                .filter(|line| line.starts_with("Group ") && line.contains("(Blocks "));
            assert_eq!(groups.count(), dump.matches("ITABLE_ZEROED").count());
            let mut root = Command::new("/usr/sbin/debugfs");
            let root = child::output(root.args(["-R", "stat /"]).arg(&path));
            let root = String::from_utf8(root.unwrap().stdout).unwrap();
            assert!(root.contains("User:     0   Group:     0"), "{root}");
        }
        let templates = std::fs::read_dir(dir.path().join("cache/disks")).unwrap();
        assert_eq!(templates.count(), 2, "one template and its lock");
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        let cache = Cache::at("/nonexistent");
        let disk = tempfile::tempfile().unwrap();
        for size in [
            0,
            SIZE_MIN - BLOCK_SIZE,
            SIZE_MIN + 1,
            SIZE_MAX + BLOCK_SIZE,
            u64::MAX,
        ] {
            let refused = create(&disk, size, &cache);
            assert!(matches!(refused, Err(Error::Size(_))), "{refused:?}");
        }
    }

    #[test]
    fn a_scratch_disk_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let disk = scratch(SIZE_MIN, &cache).unwrap();
        assert_eq!(disk.metadata().unwrap().len(), SIZE_MIN);
        assert_eq!(disk.metadata().unwrap().nlink(), 0);
        let names = std::fs::read_dir(dir.path().join("disks")).unwrap();
        assert_eq!(names.count(), 2, "the template and its lock");
    }

    #[test]
    fn the_smallest_disk_can_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let disk = tempfile::tempfile().unwrap();
        create(&disk, SIZE_MIN, &Cache::at(dir.path())).unwrap();
    }
}
