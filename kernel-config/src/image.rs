//! Kernel images as the VMM takes them: uncompressed ELF.
//!
//! A distribution's kernel is a bzImage: a real-mode stub, a decompressor, and
//! the kernel as compressed ELF in between. [`open`] unpacks it here, in a
//! process with no more than the user's rights, so that no decompressor has to
//! be in the VMM (`docs/decisions/0001`).
//!
//! Offsets are those of the x86 boot protocol, `Documentation/arch/x86/boot.rst`.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

mod unpack;

/// Largest kernel that is unpacked, in bytes: several times the size of the
/// kernels of distributions.
const MAX_BYTES: u64 = 256 << 20;

const ELF_MAGIC: &[u8; 4] = b"\x7fELF";

/// Up to and with `payload_length`, the last field that is needed.
const HEADER_BYTES: usize = 0x250;
const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The first protocol with `payload_offset` and `payload_length`.
const MIN_VERSION: u16 = 0x0208;
/// What `setup_sects` 0 stands for.
const DEFAULT_SETUP_SECTS: u8 = 4;
const SECTOR_BYTES: u64 = 512;

/// A file is not a kernel that can be booted.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the kernel {}: {problem}", path.display())]
pub struct ImageError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: ImageProblem,
}

/// What is wrong with a kernel image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageProblem {
    /// It cannot be opened.
    #[error("{0}; name another, or build one with `flashpan kernel build`")]
    Open(io::Error),
    /// A directory, FIFO or device.
    #[error("it is not a regular file")]
    NotAFile,
    /// It cannot be read.
    #[error("reading it failed: {0}")]
    Read(io::Error),
    /// Neither of the two formats.
    #[error(
        "it is neither an ELF file nor an x86 bzImage; give it a vmlinux or a bzImage, or build one with `flashpan kernel build`"
    )]
    NotAKernel,
    /// The boot protocol is older than the fields that locate the payload.
    #[error(
        "its boot protocol is {}.{:02}, and only 2.08 (Linux 2.6.26) and later say where the kernel is in a bzImage; use a newer kernel or its vmlinux",
        .0 >> 8, .0 & 0xff
    )]
    OldProtocol(u16),
    /// The file is shorter than its header says.
    #[error(
        "it is cut short: {needed} bytes are needed, {length} are there; copy it again from where it came"
    )]
    Truncated {
        /// Bytes that the header speaks of.
        needed: u64,
        /// Length of the file in bytes.
        length: u64,
    },
    /// A known compression that is not unpacked here.
    #[error(
        "it is compressed with {0}, which is not supported (gzip, lz4, zstd and xz are); unpack it with scripts/extract-vmlinux of the kernel source"
    )]
    Unsupported(&'static str),
    /// The payload starts like nothing that is known.
    #[error(
        "the payload at byte {at} is of no known compression (gzip, lz4, zstd and xz are supported); copy it again, or use its vmlinux"
    )]
    UnknownCompression {
        /// Offset of the payload in the file, in bytes.
        at: u64,
    },
    /// Too large, compressed or not.
    #[error("its kernel has {0} bytes, at most {MAX_BYTES} are unpacked; use its vmlinux")]
    TooLarge(u64),
    /// The payload cannot be unpacked.
    #[error("its {compression} payload is corrupt: {why}; copy it again from where it came")]
    Corrupt {
        /// Name of the compression.
        compression: &'static str,
        /// What is wrong with the payload.
        why: String,
    },
    /// The payload is something else.
    #[error("what is compressed in it is not an ELF file; use its vmlinux")]
    NotElf,
    /// The host gave no memory file to unpack into.
    #[error("cannot unpack it into a memory file: {0}")]
    Memory(io::Error),
}

/// Opens a kernel for the VMM, as an ELF file at its start.
///
/// An ELF file is opened and nothing more. The payload of a bzImage (gzip, lz4,
/// zstd or xz) is unpacked into a memory file that can no longer be changed;
/// that takes some hundred milliseconds and up to 256 MiB. Only the magic of the
/// ELF file is checked, the rest is for its loader to check.
///
/// A FIFO is refused rather than waited for.
///
/// # Errors
/// [`ImageError`] if the file cannot be read, is not a kernel, is damaged, or is
/// compressed in another way.
pub fn open(path: &Path) -> Result<File, ImageError> {
    open_file(path)
        .and_then(to_elf)
        .map_err(|problem| ImageError {
            path: path.to_owned(),
            problem,
        })
}

/// Whether [`open`] would find a kernel at `path`, as far as that can be told
/// without unpacking it.
///
/// # Errors
/// As [`open`].
pub fn check(path: &Path) -> Result<(), ImageError> {
    let look = |file: File| match is_elf(&file).map_err(ImageProblem::Read)? {
        true => Ok(()),
        false => payload(&file).map(drop),
    };
    open_file(path)
        .and_then(look)
        .map_err(|problem| ImageError {
            path: path.to_owned(),
            problem,
        })
}

fn open_file(path: &Path) -> Result<File, ImageProblem> {
    // Non-blocking for FIFOs; and no terminal becomes ours.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
        .map_err(ImageProblem::Open)?;
    match file.metadata().map_err(ImageProblem::Read)?.is_file() {
        true => Ok(file),
        false => Err(ImageProblem::NotAFile),
    }
}

/// The file itself if it is ELF, else the ELF file in it.
fn to_elf(file: File) -> Result<File, ImageProblem> {
    if is_elf(&file).map_err(ImageProblem::Read)? {
        return Ok(file);
    }
    let (at, payload) = payload(&file)?;
    let elf = unpack::unpack(at, &payload)?;
    match is_elf(&elf).map_err(ImageProblem::Memory)? {
        true => Ok(elf),
        false => Err(ImageProblem::NotElf),
    }
}

/// Leaves the file's position alone.
fn is_elf(file: &File) -> io::Result<bool> {
    let mut magic = [0; ELF_MAGIC.len()];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) => Ok(&magic == ELF_MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The compressed kernel in a bzImage, and its offset.
fn payload(file: &File) -> Result<(u64, Vec<u8>), ImageProblem> {
    let length = file.metadata().map_err(ImageProblem::Read)?.len();
    let mut header = [0; HEADER_BYTES];
    let there = usize::try_from(length).map_or(HEADER_BYTES, |length| length.min(HEADER_BYTES));
    let (start, _) = header.split_at_mut(there);
    file.read_exact_at(start, 0).map_err(ImageProblem::Read)?;

    if field(&header, BOOT_FLAG) != [0x55, 0xaa] || &field(&header, HEADER_MAGIC) != b"HdrS" {
        return Err(ImageProblem::NotAKernel);
    }
    let within = |needed| match needed <= length {
        true => Ok(()),
        false => Err(ImageProblem::Truncated { needed, length }),
    };
    within(HEADER_BYTES as u64)?;
    let version = u16::from_le_bytes(field(&header, VERSION));
    if version < MIN_VERSION {
        return Err(ImageProblem::OldProtocol(version));
    }
    let setup_sects = match field(&header, SETUP_SECTS) {
        [0] => DEFAULT_SETUP_SECTS,
        [sectors] => sectors,
    };
    // `payload_offset` counts from the protected-mode code, which follows the
    // boot sector and the setup sectors. Sums of 32-bit numbers fit.
    let at = (u64::from(setup_sects) + 1) * SECTOR_BYTES
        + u64::from(u32::from_le_bytes(field(&header, PAYLOAD_OFFSET)));
    let bytes = u32::from_le_bytes(field(&header, PAYLOAD_LENGTH));
    within(at + u64::from(bytes))?;
    let bytes = match usize::try_from(bytes) {
        Ok(size) if u64::from(bytes) <= MAX_BYTES => size,
        _ => return Err(ImageProblem::TooLarge(bytes.into())),
    };
    let mut payload = vec![0; bytes];
    file.read_exact_at(&mut payload, at)
        .map_err(ImageProblem::Read)?;
    Ok((at, payload))
}

/// `N` bytes of the header; zeros beyond its end, which no caller asks for.
fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    header
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .unwrap_or([0; N])
}

/// A memory file of a known length that is filled piece by piece.
#[derive(Debug)]
struct MemoryFile {
    file: File,
    length: u64,
    written: u64,
}

impl MemoryFile {
    fn new(length: u64) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        Ok(Self {
            file: memfd_create("kernel", flags)?.into(),
            length,
            written: 0,
        })
    }

    /// Appends `piece`; `false` if it is more than the file is to hold.
    fn append(&mut self, piece: &[u8]) -> io::Result<bool> {
        let written = self.written + piece.len() as u64;
        if written > self.length {
            return Ok(false);
        }
        self.file.write_all(piece)?;
        self.written = written;
        Ok(true)
    }

    /// The file at its start, with contents and length that stay as they are.
    fn seal(mut self) -> io::Result<File> {
        let seals = SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_SEAL;
        fcntl(&self.file, FcntlArg::F_ADD_SEALS(seals))?;
        io::Seek::rewind(&mut self.file)?;
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests;
