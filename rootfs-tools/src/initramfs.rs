//! The initramfs that carries the guest's PID 1: an uncompressed cpio archive
//! in the `newc` format (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! It is not compressed because the kernel would have to unpack it at every
//! boot. The same input gives the same bytes: inode numbers count up from one
//! and every time stamp is zero.

use std::fmt::Write as _;

/// Where the kernel looks for PID 1 in an initramfs unless `rdinit=` says otherwise.
pub const INIT_PATH: &str = "/init";

/// Directories that [`build`] makes besides `/dev`, in this order.
///
/// `/newroot` is where the guest's PID 1 puts the real root together; the
/// others are mount points that it needs before that.
pub const DIRECTORIES: [&str; 4] = ["/proc", "/sys", "/run", "/newroot"];

const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
/// Length of a `newc` header: the magic and 13 fields of eight hexadecimal digits.
const HEADER: usize = 6 + 13 * 8;
/// Everything in a `newc` archive starts on a multiple of this.
const ALIGN: usize = 4;
/// The kernel ignores an entry whose name, with its NUL, is longer.
const PATH_MAX: usize = 4096;

/// Why an archive could not be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The guest's init program has no content.
    #[error("cannot build an initramfs: the init program is empty (was it built?)")]
    EmptyInit,
    /// The size does not fit the 32-bit field of the format.
    #[error("cannot put {path:?} into an initramfs: {size} bytes is above the format's 4 GiB - 1")]
    TooLarge {
        /// Path within the archive.
        path: String,
        /// Size in bytes.
        size: usize,
    },
    /// The path is empty, too long, has a NUL, or is not absolute and normal.
    #[error(
        "cannot put {path:?} into an initramfs: want an absolute path below 4096 bytes \
         without NUL, empty, `.` or `..` parts"
    )]
    Path {
        /// The path that was refused.
        path: String,
    },
}

/// Builds the archive with `init` as `/init` (mode 0755), the directories of
/// [`DIRECTORIES`], and `/dev` with `console` (5:1) and `null` (1:3).
///
/// The kernel opens `/dev/console` as standard input, output and error of PID 1
/// before anything is mounted, hence the node in the archive.
///
/// # Errors
///
/// [`Error::EmptyInit`] and, from 4 GiB on, [`Error::TooLarge`].
pub fn build(init: &[u8]) -> Result<Vec<u8>, Error> {
    if init.is_empty() {
        return Err(Error::EmptyInit);
    }
    let mut archive = Archive::with_capacity(init.len().saturating_add(4096));
    archive.directory("/dev", 0o755)?;
    archive.char_device("/dev/console", 0o600, 5, 1)?;
    archive.char_device("/dev/null", 0o666, 1, 3)?;
    for path in DIRECTORIES {
        archive.directory(path, 0o755)?;
    }
    archive.file(INIT_PATH, 0o755, init)?;
    Ok(archive.finish())
}

/// A writer of `newc` archives. Everything belongs to root.
///
/// The kernel unpacks entries in their order, so a directory has to come
/// before what is in it.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    last_inode: u32,
}

/// The fields of a `newc` header that differ between our entries.
#[derive(Clone, Copy, Default)]
struct Header {
    inode: u32,
    mode: u32,
    size: u32,
    links: u32,
    major: u32,
    minor: u32,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty archive with room for `bytes` bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            last_inode: 0,
        }
    }

    /// Appends a directory; `permissions` are the low 12 bits of the mode.
    ///
    /// # Errors
    ///
    /// [`Error::Path`] unless `path` is absolute and normal.
    pub fn directory(&mut self, path: &str, permissions: u16) -> Result<(), Error> {
        let header = Header {
            mode: S_IFDIR | mask(permissions),
            links: 2,
            ..Header::default()
        };
        self.entry(path, header, &[])
    }

    /// Appends a regular file.
    ///
    /// # Errors
    ///
    /// [`Error::Path`], or [`Error::TooLarge`] from 4 GiB on.
    pub fn file(&mut self, path: &str, permissions: u16, content: &[u8]) -> Result<(), Error> {
        let size = u32::try_from(content.len()).map_err(|_| Error::TooLarge {
            path: path.into(),
            size: content.len(),
        })?;
        let mode = S_IFREG | mask(permissions);
        self.entry(
            path,
            Header {
                mode,
                size,
                links: 1,
                ..Header::default()
            },
            content,
        )
    }

    /// Appends a character device node.
    ///
    /// # Errors
    ///
    /// [`Error::Path`] unless `path` is absolute and normal.
    pub fn char_device(
        &mut self,
        path: &str,
        permissions: u16,
        major: u32,
        minor: u32,
    ) -> Result<(), Error> {
        let mode = S_IFCHR | mask(permissions);
        self.entry(
            path,
            Header {
                mode,
                links: 1,
                major,
                minor,
                ..Header::default()
            },
            &[],
        )
    }

    /// Ends the archive and returns its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.raw(
            "TRAILER!!!",
            Header {
                links: 1,
                ..Header::default()
            },
            &[],
        );
        self.bytes
    }

    fn entry(&mut self, path: &str, header: Header, content: &[u8]) -> Result<(), Error> {
        let refused = || Error::Path { path: path.into() };
        let name = path.strip_prefix('/').ok_or_else(refused)?;
        let normal = !name.contains('\0')
            && name.len() < PATH_MAX
            && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !normal {
            return Err(refused());
        }
        self.last_inode += 1;
        self.raw(
            name,
            Header {
                inode: self.last_inode,
                ..header
            },
            content,
        );
        Ok(())
    }

    fn raw(&mut self, name: &str, header: Header, content: &[u8]) {
        let mut text = String::with_capacity(HEADER);
        text.push_str("070701");
        let fields = [
            header.inode,
            header.mode,
            0, // uid
            0, // gid
            header.links,
            0, // mtime
            header.size,
            0, // device of the file system, major
            0, // and minor
            header.major,
            header.minor,
            u32::try_from(name.len() + 1).unwrap_or(u32::MAX), // below PATH_MAX
            0, // check sum, of the `crc` format only
        ];
        for field in fields {
            // Writing to a String does not fail.
            let _ = write!(text, "{field:08x}");
        }
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

fn mask(permissions: u16) -> u32 {
    u32::from(permissions & 0o7777)
}

#[cfg(test)]
mod tests;
