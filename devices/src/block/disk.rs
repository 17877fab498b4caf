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

/// Pieces handed to one system call, of at most 1024. With 256, on four
/// kilobytes of stack, every request that keeps to [`super::SEG_MAX`] is
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
    volatile: bool,
}

impl Disk {
    /// A disk in `file`, and its size in bytes.
    pub(super) fn new(mut file: File) -> io::Result<(Self, u64)> {
        // Block devices have no length in their metadata, but an end.
        let size = file.seek(SeekFrom::End(0))?;
        let volatile = false;
        Ok((Self { file, volatile }, size))
    }

    /// The content is thrown away at the end: it never has to be durable.
    pub(super) fn set_volatile(&mut self) {
        self.volatile = true;
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
        if self.volatile {
            return Ok(());
        }
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

    fn transfer(
        &self,
        slices: &[VolatileSlice<'_>],
        offset: u64,
        direction: Direction,
    ) -> io::Result<()> {
        transfer_all(slices, offset, |slices, skip, offset| {
            self.transfer_some(slices, skip, offset, direction)
        })
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

/// Moves all bytes of `slices` by calls of `some`, which may do less than it is
/// asked for and is given the pieces that are left, the bytes of the first one
/// that are done, and the position. A file that ends early (somebody truncated
/// it) is an error.
fn transfer_all<'m>(
    slices: &[VolatileSlice<'m>],
    mut offset: u64,
    mut some: impl FnMut(&[VolatileSlice<'m>], usize, u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut rest = slices;
    let mut skip = 0;
    while !rest.is_empty() {
        let mut moved = some(rest, skip, offset)?;
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

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "tests choose the numbers")]
mod tests {
    use super::*;
    use crate::virtio::GuestRam;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    fn memory() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    /// `/dev/null` is a file that cannot be made durable.
    #[test]
    fn a_volatile_disk_is_flushed_at_once() {
        let (mut disk, _) = Disk::new(File::open("/dev/null").unwrap()).unwrap();
        assert!(disk.flush().is_err());
        disk.set_volatile();
        disk.flush().unwrap();
    }

    /// One call moves 256 pieces; what is more, the next one does.
    #[test]
    fn more_pieces_than_fit_one_call() {
        let memory = memory();
        let content: Vec<u8> = (0..3000u32).map(|n| (n % 251) as u8).collect();
        memory.write_slice(&content, GuestAddress(0)).unwrap();
        let pieces = |from: u64| -> Vec<_> {
            (0..1000)
                .map(|n| memory.get_slice(GuestAddress(from + 3 * n), 3).unwrap())
                .collect()
        };
        let (disk, size) = Disk::new(tempfile::tempfile().unwrap()).unwrap();
        assert_eq!(size, 0);
        disk.write(&pieces(0), 7).unwrap();
        disk.read(&pieces(0x8000), 7).unwrap();
        let mut back = vec![0; 3000];
        memory.read_slice(&mut back, GuestAddress(0x8000)).unwrap();
        assert_eq!(back, content);
    }

    /// Calls that do less than they are asked for, by any number of bytes: all
    /// bytes are moved, each once, in order.
    #[test]
    fn short_transfers_go_on_where_they_ended() {
        let memory = memory();
        let lens = [5, 1, 7, 512, 3];
        let total: usize = lens.iter().sum();
        for step in 1..=total {
            let mut addr = 0;
            let slices: Vec<_> = lens
                .iter()
                .map(|&len| {
                    addr += len as u64;
                    memory
                        .get_slice(GuestAddress(addr - len as u64), len)
                        .unwrap()
                })
                .collect();
            let base = slices[0].ptr_guard().as_ptr() as usize;
            let mut done = 0;
            transfer_all(&slices, 100, |rest, skip, offset| {
                let at = rest[0].ptr_guard().as_ptr() as usize + skip - base;
                assert_eq!((at, offset), (done, 100 + done as u64));
                let left: usize = rest.iter().map(VolatileSlice::len).sum::<usize>() - skip;
                done += step.min(left);
                Ok(step.min(left))
            })
            .unwrap();
            assert_eq!(done, total, "by {step}");
        }
    }

    /// A file that ends too early, a position that cannot be, a call that fails
    /// in the middle: an error, and no endless loop.
    #[test]
    fn transfers_that_fail() {
        let memory = memory();
        let slices = [memory.get_slice(GuestAddress(0), 1024).unwrap()];
        let file = tempfile::tempfile().unwrap();
        file.set_len(1023).unwrap();
        let (disk, _) = Disk::new(file).unwrap();
        let error = disk.read(&slices, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(disk.read(&slices, u64::MAX).is_err());
        assert!(disk.punch_hole(u64::MAX, 1).is_err());

        let mut calls = 0;
        let result = transfer_all(&slices, 0, |_, _, _| {
            calls += 1;
            if calls == 1 {
                Ok(512)
            } else {
                Err(io::ErrorKind::Other.into())
            }
        });
        assert!(result.is_err());
        assert_eq!(calls, 2);
    }

    /// What file systems without `FALLOC_FL_ZERO_RANGE` get.
    #[test]
    fn zeroes_are_written_where_there_is_no_better_way() {
        let file = tempfile::tempfile().unwrap();
        let len = 2 * ZEROES.len() + 5;
        file.write_all_at(&vec![0xff; len + 2], 0).unwrap();
        let (disk, _) = Disk::new(file).unwrap();
        disk.write_zeroes(1, len as u64).unwrap();
        let mut back = vec![0; len + 2];
        disk.file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!((back[0], back[len + 1]), (0xff, 0xff));
        assert!(back[1..=len].iter().all(|&byte| byte == 0));
    }
}
