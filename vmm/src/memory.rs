//! Guest memory, mapped at 2 MiB boundaries so that the host can back it with
//! huge pages.
//!
//! Private memory is anonymous: hosts give it huge pages, which they hardly
//! ever do for memfds. Shared memory is one memfd, for guests that have a
//! device whose back end is in another process (decision 4 in
//! docs/decisions).
#![allow(unsafe_code)] // Maps memory at chosen addresses, which safe wrappers cannot.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use flashpan_devices::virtio::GuestRam;
use flashpan_protocol::control::BootFailureKind;
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap};

use crate::error::BootError;
use crate::layout::{GAP_END, GAP_START};

/// Alignment of every mapping: the size of a huge page on x86-64.
const HUGE_PAGE: usize = 2 * 1024 * 1024;

/// Bytes in a MiB.
pub const MIB: u64 = 1024 * 1024;

/// Least guest memory: what the boot structures and any kernel need.
pub const MIN_MIB: u32 = 16;

/// Most guest memory that the layout can hold and KVM maps without trouble.
pub const MAX_MIB: u32 = 1024 * 1024;

/// An access to what is not a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{len} bytes from {address:#x} on are not all in the guest's memory: see its layout")]
pub struct OutsideMemory {
    /// The guest's address.
    pub address: u64,
    /// Bytes.
    pub len: usize,
}

/// The memory of a guest. Dropping it unmaps, so it goes last.
#[derive(Debug)]
pub struct GuestMemory {
    ram: GuestRam,
    /// The memfd of shared memory.
    file: Option<File>,
    mappings: Vec<Mapping>,
}

/// One contiguous piece of guest memory in our address space.
#[derive(Debug)]
struct Mapping {
    host: *mut u8,
    len: usize,
}

// SAFETY: the pointer is only used to unmap; the memory itself is shared with
// a guest by design and accessed through volatile operations of vm-memory.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives no access to the memory.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `host` and `len` are a mapping that `Mapping::new` made and
        // nothing else unmaps. Whoever holds a clone of `GuestMemory::ram` is
        // required to be gone.
        unsafe { libc::munmap(self.host.cast(), self.len) };
    }
}

impl Mapping {
    /// Maps `len` bytes at a 2 MiB boundary: of `file` from `offset`, or of
    /// nothing.
    fn new(file: Option<&File>, offset: u64, len: usize) -> io::Result<Self> {
        let (kind, fd, offset) = match file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd(), offset),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
        };
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let reserved = len
            .checked_add(HUGE_PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: an anonymous reservation at an address of the kernel's
        // choice; it overlaps nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let lead = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
        // SAFETY: `lead` < HUGE_PAGE, so `lead + len` is inside the reservation,
        // which MAP_FIXED replaces. The two munmaps cut off what is left of the
        // reservation on either side; zero lengths fail harmlessly.
        unsafe {
            let host = start.byte_add(lead);
            let mapped = libc::mmap(
                host,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                kind | libc::MAP_FIXED | libc::MAP_NORESERVE,
                fd,
                offset,
            );
            if mapped == libc::MAP_FAILED {
                let error = io::Error::last_os_error();
                libc::munmap(start, reserved);
                return Err(error);
            }
            libc::munmap(start, lead);
            libc::munmap(host.byte_add(len), HUGE_PAGE - lead);
            // Advice only: a host without huge pages for shared memory refuses.
            libc::madvise(host, len, libc::MADV_HUGEPAGE);
            // Guest memory does not belong in a core dump of the VMM.
            libc::madvise(host, len, libc::MADV_DONTDUMP);
            Ok(Self {
                host: host.cast(),
                len,
            })
        }
    }
}

impl GuestMemory {
    /// Allocates `mib` MiB of guest memory, as a memfd if `shared`. Nothing is touched yet: the host
    /// gives pages when the guest first uses them.
    ///
    /// # Errors
    /// If `mib` is out of range or the host refuses.
    pub fn new(mib: u32, shared: bool) -> Result<Self, BootError> {
        if !(MIN_MIB..=MAX_MIB).contains(&mib) {
            return Err(BootError::request(format!(
                "guest memory of {mib} MiB is out of range: give {MIN_MIB} to {MAX_MIB} MiB"
            )));
        }
        let size = u64::from(mib) * MIB;
        let refused = |error: io::Error| {
            BootError::new(
                BootFailureKind::Memory,
                format!("the host refused {mib} MiB of guest memory: {error}; ask for less"),
            )
        };
        let file = shared.then(|| memfd(size)).transpose().map_err(refused)?;
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        for range in ranges(size) {
            let len = usize::try_from(range.len)
                .map_err(|_| refused(io::ErrorKind::OutOfMemory.into()))?;
            let mapping = Mapping::new(file.as_ref(), range.offset, len).map_err(refused)?;
            // SAFETY: the pointer is a live mapping of `len` bytes, whose life
            // is that of `GuestMemory`.
            let builder =
                unsafe { MmapRegionBuilder::new(len).with_raw_mmap_pointer(mapping.host) };
            let mut builder = builder.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
            if let Some(file) = &file {
                let backing = FileOffset::new(file.try_clone().map_err(refused)?, range.offset);
                builder = builder
                    .with_mmap_flags(libc::MAP_SHARED)
                    .with_file_offset(backing);
            } else {
                builder = builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            }
            let region = builder.build().map_err(|e| refused(io::Error::other(e)))?;
            let region = GuestRegionMmap::new(region, GuestAddress(range.guest))
                .ok_or_else(|| refused(io::ErrorKind::InvalidInput.into()))?;
            mappings.push(mapping);
            regions.push(region);
        }
        let ram = GuestRam::from_regions(regions).map_err(|e| refused(io::Error::other(e)))?;
        Ok(Self {
            ram,
            file,
            mappings,
        })
    }

    /// The memory for loaders and devices.
    ///
    /// Clones must be gone before this value is dropped; [`crate::Vm`] joins its
    /// threads and drops its devices first.
    pub(crate) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The guest's addresses that are memory, in ascending order: where each
    /// piece begins, and its bytes.
    pub fn layout(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pieces().map(|(guest, _, len)| (guest, len))
    }

    /// Copies memory from the guest's address `address` on. What the guest or a
    /// device changes meanwhile may be seen or not: let the machine stand still.
    ///
    /// # Errors
    /// If part of it is not memory.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), OutsideMemory> {
        let len = bytes.len();
        self.ram
            .read_slice(bytes, GuestAddress(address))
            .map_err(|_| OutsideMemory { address, len })
    }

    /// Copies `bytes` to the guest's address `address` and after, for a machine
    /// that stands still.
    ///
    /// # Errors
    /// If part of it is not memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), OutsideMemory> {
        let len = bytes.len();
        self.ram
            .write_slice(bytes, GuestAddress(address))
            .map_err(|_| OutsideMemory { address, len })
    }

    /// The memfd behind all of it, if it is shared.
    #[must_use]
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Whether the byte at `host` of our address space is the guest's.
    pub(crate) fn contains(&self, host: u64) -> bool {
        self.pieces()
            .any(|(_, start, len)| host >= start && host - start < len)
    }

    /// Guest address, host address and length of every piece, for KVM.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
        self.ram
            .iter()
            .zip(&self.mappings)
            .map(|(region, mapping)| {
                (
                    region.start_addr().0,
                    mapping.host.addr() as u64,
                    mapping.len as u64,
                )
            })
    }
}

/// A piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// Guest physical address.
    pub(crate) guest: u64,
    /// Offset in the memfd.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
}

/// How `size` bytes of memory lie around the gap below 4 GiB.
pub(crate) fn ranges(size: u64) -> Vec<Range> {
    let low = size.min(GAP_START);
    let mut ranges = vec![Range {
        guest: 0,
        offset: 0,
        len: low,
    }];
    if size > low {
        ranges.push(Range {
            guest: GAP_END,
            offset: low,
            len: size - low,
        });
    }
    ranges
}

/// An anonymous file of `size` bytes that can neither grow nor shrink.
fn memfd(size: u64) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just made and is owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: fcntl on our own descriptor with integer arguments.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn small_memory_is_one_piece() {
        assert_eq!(
            ranges(128 * MIB),
            [Range {
                guest: 0,
                offset: 0,
                len: 128 * MIB
            }]
        );
    }

    #[test]
    fn large_memory_goes_on_above_four_gib() {
        let pieces = ranges(4096 * MIB);
        assert_eq!(
            pieces[0],
            Range {
                guest: 0,
                offset: 0,
                len: GAP_START
            }
        );
        assert_eq!(
            pieces[1],
            Range {
                guest: GAP_END,
                offset: GAP_START,
                len: 1024 * MIB
            }
        );
    }

    #[test]
    fn mappings_are_aligned_to_huge_pages_and_usable_to_the_last_byte() {
        for shared in [false, true] {
            let memory = GuestMemory::new(64, shared).unwrap();
            assert_eq!(memory.file().is_some(), shared);
            for (guest, host, len) in memory.pieces() {
                assert_eq!(host % HUGE_PAGE as u64, 0);
                assert_eq!((guest, len), (0, 64 * MIB));
            }
            let last = memory.ram().last_addr();
            memory.ram().write_obj(0x5a_u8, last).unwrap();
            assert_eq!(memory.ram().read_obj::<u8>(last).unwrap(), 0x5a);
            assert_eq!(
                memory.ram().iter().map(GuestMemoryRegion::len).sum::<u64>(),
                64 * MIB
            );
        }
    }

    /// What a library needs to save a machine, whatever its memory is made of:
    /// all pieces, read and written by address.
    #[test]
    fn contents_are_read_and_written_by_address() {
        for shared in [false, true] {
            let memory = GuestMemory::new(4096, shared).unwrap();
            let layout: Vec<_> = memory.layout().collect();
            assert_eq!(layout, [(0, GAP_START), (GAP_END, 1 << 30)]);
            for (address, len) in layout {
                let last = address + len - 3;
                memory.write(last, b"end").unwrap();
                let mut back = [0; 3];
                memory.read(last, &mut back).unwrap();
                assert_eq!(&back, b"end");
                let error = memory.read(last + 1, &mut back).unwrap_err();
                assert_eq!((error.address, error.len), (last + 1, 3));
                assert!(memory.write(last + 1, b"end").is_err());
            }
        }
    }

    #[test]
    fn absurd_sizes_are_refused_with_the_range() {
        for mib in [0, MIN_MIB - 1, MAX_MIB + 1, u32::MAX] {
            let error = GuestMemory::new(mib, false).unwrap_err();
            assert_eq!(error.kind, BootFailureKind::BadRequest);
            assert!(error.message.contains("16 to 1048576"), "{error}");
        }
    }
}
