//! Copies between files that leave holes where the source has holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Below this a hole is not worth the two system calls that find it.
const HOLES_FROM: u64 = 64 << 10;
/// Below this a copy through our buffer costs less than `copy_file_range`'s setup.
const IN_KERNEL_FROM: u64 = 64 << 10;
/// Most that is copied between two reports of progress, in the kernel.
const STEP_IN_KERNEL: u64 = 16 << 20;
/// The same through the buffer: the size of the buffer.
const STEP: usize = 256 << 10;

/// Which side of a copy failed.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// The source ended before `length` bytes.
    Short,
    /// Reading the source failed.
    Read(io::Error),
    /// Writing the destination failed.
    Write(io::Error),
}

/// Copies ranges of files; keeps its buffer between copies.
#[derive(Debug)]
pub(crate) struct Copier {
    buffer: Vec<u8>,
    in_kernel: bool,
}

/// A place in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    /// The file; its position is not used, though looking for holes moves it.
    pub(crate) file: &'a File,
    /// Byte offset.
    pub(crate) offset: u64,
}

impl<'a> At<'a> {
    /// The start of a file.
    pub(crate) fn start(file: &'a File) -> Self {
        Self { file, offset: 0 }
    }
}

impl Copier {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; STEP],
            in_kernel: true,
        }
    }

    /// Copies `length` bytes. Where the source has a hole nothing is written,
    /// so the destination has to read as zeros there before. `progress` is told
    /// the bytes of each step, holes included.
    pub(crate) fn copy(
        &mut self,
        from: At<'_>,
        to: At<'_>,
        length: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), CopyError> {
        if length < HOLES_FROM {
            return self.copy_data(from, to, length, progress);
        }
        let size = from.file.metadata().map_err(CopyError::Read)?.len();
        let end = from.offset.saturating_add(length);
        if size < end {
            return Err(CopyError::Short);
        }
        let mut at = from.offset;
        while at < end {
            let (start, stop) = next_data(from.file, at, end).map_err(CopyError::Read)?;
            progress(start - at);
            let target = At {
                offset: to.offset + (start - from.offset),
                ..to
            };
            self.copy_data(
                At {
                    offset: start,
                    ..from
                },
                target,
                stop - start,
                progress,
            )?;
            at = stop;
        }
        Ok(())
    }

    fn copy_data(
        &mut self,
        mut from: At<'_>,
        mut to: At<'_>,
        mut length: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), CopyError> {
        while length > 0 {
            let done = if length >= IN_KERNEL_FROM && self.in_kernel {
                // Shares blocks where the file system can, and else copies
                // without a detour through user space.
                let step = usize::try_from(length.min(STEP_IN_KERNEL)).unwrap_or(STEP);
                let (mut read_at, mut write_at) = (from.offset, to.offset);
                match rustix::fs::copy_file_range(
                    from.file,
                    Some(&mut read_at),
                    to.file,
                    Some(&mut write_at),
                    step,
                ) {
                    Ok(done) if done > 0 => done,
                    // Not between these file systems, or a real error, which
                    // the ordinary way will meet again and can tell apart.
                    _ => {
                        self.in_kernel = false;
                        continue;
                    }
                }
            } else {
                let step = usize::try_from(length).unwrap_or(STEP).min(STEP);
                let buffer = self.buffer.get_mut(..step).unwrap_or_default();
                match from.file.read_at(buffer, from.offset) {
                    Ok(0) => return Err(CopyError::Short),
                    Ok(done) => {
                        let data = self.buffer.get(..done).unwrap_or_default();
                        to.file
                            .write_all_at(data, to.offset)
                            .map_err(CopyError::Write)?;
                        done
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(CopyError::Read(error)),
                }
            };
            let done = u64::try_from(done).unwrap_or(0).min(length);
            from.offset += done;
            to.offset += done;
            length -= done;
            progress(done);
        }
        Ok(())
    }
}

/// The next run of data in `at..end`; empty at `end` when there is none.
fn next_data(file: &File, at: u64, end: u64) -> io::Result<(u64, u64)> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.clamp(at, end),
        Err(Errno::NXIO) => return Ok((end, end)),
        // A file system that does not tell holes: all is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((at, end)),
        Err(error) => return Err(error.into()),
    };
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(stop) if stop > start => Ok((start, stop.min(end))),
        Ok(_) | Err(Errno::NXIO) => Ok((start, end)),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A file of 8 MiB with data in its first, fifth and last KiB only.
    fn holey() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * MIB).unwrap();
        for offset in [0, 4 * MIB, 8 * MIB - 1024] {
            file.write_all_at(&[0xa5; 1024], offset).unwrap();
        }
        file
    }

    fn bytes(file: &File) -> Vec<u8> {
        let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let mut all = vec![0; length];
        file.read_exact_at(&mut all, 0).unwrap();
        all
    }

    #[test]
    fn holes_stay_holes_and_all_progress_is_told() {
        for in_kernel in [true, false] {
            let (source, target) = (holey(), tempfile::tempfile().unwrap());
            target.set_len(8 * MIB).unwrap();
            let mut copier = Copier {
                in_kernel,
                ..Copier::new()
            };
            let mut told = 0;
            let (from, to) = (At::start(&source), At::start(&target));
            copier
                .copy(from, to, 8 * MIB, &mut |bytes| told += bytes)
                .unwrap();
            assert_eq!(told, 8 * MIB);
            assert!(bytes(&source) == bytes(&target));
            assert!(target.metadata().unwrap().blocks() * 512 < MIB);
        }
    }

    #[test]
    fn offsets_need_no_alignment() {
        let (source, target) = (holey(), tempfile::tempfile().unwrap());
        target.set_len(8 * MIB).unwrap();
        let (from, to) = (
            At {
                file: &source,
                offset: 1001,
            },
            At {
                file: &target,
                offset: 7,
            },
        );
        Copier::new().copy(from, to, 5 * MIB, &mut |_| {}).unwrap();
        let length = usize::try_from(5 * MIB).unwrap();
        assert!(bytes(&target)[7..][..length] == bytes(&source)[1001..][..length]);
    }

    #[test]
    fn a_source_that_ends_early_is_an_error() {
        let (source, target) = (holey(), tempfile::tempfile().unwrap());
        let to = At::start(&target);
        for (offset, length) in [(1, 8 * MIB), (8 * MIB - 10, 11)] {
            let from = At {
                file: &source,
                offset,
            };
            let error = Copier::new()
                .copy(from, to, length, &mut |_| {})
                .unwrap_err();
            assert!(matches!(error, CopyError::Short), "{error:?}");
        }
    }
}
