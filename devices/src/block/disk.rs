//! The file behind a disk: system calls only, no virtio.

// `preadv` and `pwritev` take pointers to guest memory, and `fallocate` has no
// counterpart in the standard library. This way a request is one system call
// and no copy, and the file's own position is never used.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::VolatileSlice;

/// Pieces handed to one system call. A kilobyte of stack for 64, and Linux
/// accepts 1024: with 256, every request that keeps to [`super::SEG_MAX`] is
/// one call.
const MAX_PIECES: usize = 256;

/// Zeroes are written in steps of this many bytes where the file system has no
/// better way.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Which way the data goes.
#[derive(Clone, Copy)]
enum Direction {
    FromFile,
    ToFile,
}

/// A raw disk image.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
}

impl Disk {
    /// A disk in `file`, and its size in bytes.
    pub(super) fn new(mut file: File) -> io::Result<(Self, u64)> {
        // Block devices have no length in their metadata, but an end.
        let size = file.seek(SeekFrom::End(0))?;
        Ok((Self { file }, size))
    }

    /// Fills `slices` from `offset` on.
    pub(super) fn read(&self, slices: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.transfer(slices, offset, Direction::FromFile)
    }

    /// Writes `slices` from `offset` on.
    pub(super) fn write(&self, slices: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.transfer(slices, offset, Direction::ToFile)
    }

    /// Makes earlier writes durable. The size never changes, other metadata
    /// does not matter.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the space of a range back: it reads as zeroes then.
    pub(super) fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.fallocate(mode, offset, len)
    }

    /// Makes a range read as zeroes and keeps its space.
    pub(super) fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        match self.fallocate(mode, offset, len) {
            Err(error) if is_unsupported(&error) => self.write_zeroes(offset, len),
            result => result,
        }
    }

    fn write_zeroes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        while len > 0 {
            let step = usize::try_from(len).unwrap_or(usize::MAX).min(ZEROES.len());
            let piece = ZEROES.get(..step).unwrap_or(&ZEROES);
            self.file.write_all_at(piece, offset)?;
            let step = u64::try_from(step).unwrap_or(len);
            offset += step;
            len -= step;
        }
        Ok(())
    }

    fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        loop {
            // SAFETY: no memory is passed, and the descriptor is open as long
            // as `self.file` is.
            if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Moves all bytes of `slices`. The kernel may do less than it is asked
    /// for: the rest is asked for again, and a file that ends early (somebody
    /// truncated it) is an error.
    fn transfer(
        &self,
        slices: &[VolatileSlice<'_>],
        mut offset: u64,
        direction: Direction,
    ) -> io::Result<()> {
        let mut rest = slices;
        // Bytes of the first slice that are done.
        let mut skip = 0;
        while !rest.is_empty() {
            let mut moved = self.transfer_some(rest, skip, offset, direction)?;
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset = u64::try_from(moved)
                .ok()
                .and_then(|moved| offset.checked_add(moved))
                .ok_or(io::ErrorKind::InvalidInput)?;
            moved += skip;
            while let Some((first, others)) = rest.split_first()
                && moved >= first.len()
            {
                moved -= first.len();
                rest = others;
            }
            skip = moved;
        }
        Ok(())
    }

    /// One system call: moves at least a byte of `slices`, whose first `skip`
    /// bytes are done, and returns how many it moved. Zero at the file's end.
    fn transfer_some(
        &self,
        slices: &[VolatileSlice<'_>],
        skip: usize,
        offset: u64,
        direction: Direction,
    ) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut pieces = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; MAX_PIECES];
        let mut count = 0;
        let mut skip = skip;
        for (piece, slice) in pieces.iter_mut().zip(slices) {
            let Ok(left) = slice.offset(skip) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            *piece = libc::iovec {
                iov_base: left.ptr_guard_mut().as_ptr().cast(),
                iov_len: left.len(),
            };
            skip = 0;
            count += 1;
        }
        loop {
            let fd = self.file.as_raw_fd();
            let moved = match direction {
                // SAFETY: the first `count` pieces come from volatile slices,
                // which stand for mapped guest memory that stays mapped as long
                // as they live, and they are borrowed here. Nothing in this
                // process has references into guest memory that the kernel's
                // writing could violate, and memory of this type has no bitmap
                // of dirty pages to maintain.
                Direction::FromFile => unsafe { libc::preadv(fd, pieces.as_ptr(), count, offset) },
                // SAFETY: as above; the kernel only reads.
                Direction::ToFile => unsafe { libc::pwritev(fd, pieces.as_ptr(), count, offset) },
            };
            if let Ok(moved) = usize::try_from(moved) {
                return Ok(moved);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// Whether the file system does not know the operation, so that another way
/// has to be found.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    // Most say EOPNOTSUPP; ENOSYS comes from 9p and FUSE, ENODEV from some
    // character devices.
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    )
}
