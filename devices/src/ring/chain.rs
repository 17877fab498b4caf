//! Descriptor chains (virtio 1.2 §2.7.5): walked once, completely checked.

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, Permissions};

use super::{Buffers, RingError};
use crate::virtio::GuestRam;

/// Size of a descriptor in its table, in bytes.
const DESCRIPTOR_SIZE: u32 = 16;

/// The longest chain, in bytes (virtio 1.2 §2.7.5.2).
const MAX_CHAIN_BYTES: u64 = 1 << 32;

/// The buffers of one request: first those that the device may read, then
/// those that it may write. All lie in guest memory, and `'m` keeps that
/// memory mapped.
#[derive(Debug, Default)]
pub struct Chain<'m> {
    head: u16,
    bytes: u64,
    /// What the driver says.
    pub readable: Buffers<'m>,
    /// Where the driver wants the answer.
    pub writable: Buffers<'m>,
}

/// A table of descriptors: the queue's, or an indirect one.
struct Table {
    start: GuestAddress,
    entries: u32,
    indirect: bool,
}

impl<'m> Chain<'m> {
    /// An empty chain, to be filled by [`super::Ring::pop`] again and again:
    /// it keeps its allocations.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Index of the first descriptor: the chain's name in the rings.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes of all buffers, at most 2^32.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Replaces the content by the chain that begins at `head`. The work is
    /// bounded by the queue's size.
    pub(super) fn walk(
        &mut self,
        memory: &'m GuestRam,
        queue: &Queue,
        head: u16,
        indirect: bool,
    ) -> Result<(), RingError> {
        self.readable.clear();
        self.writable.clear();
        self.head = head;
        self.bytes = 0;

        let mut table = Table {
            start: GuestAddress(queue.desc_table()),
            entries: u32::from(queue.size()),
            indirect: false,
        };
        if u32::from(head) >= table.entries {
            return Err(RingError::HeadOutOfRange);
        }
        let mut index = head;
        let mut left = queue.size();
        loop {
            let descriptor = table.read(memory, index)?;
            if descriptor.refers_to_indirect_table() {
                table = table.enter(&descriptor, indirect)?;
                index = 0;
                continue;
            }
            left = left.checked_sub(1).ok_or(RingError::TooManyDescriptors)?;
            self.add(memory, &descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
            if u32::from(index) >= table.entries {
                return Err(RingError::NextOutOfRange);
            }
        }
    }

    /// An empty buffer is none, but keeps to the order.
    fn add(&mut self, memory: &'m GuestRam, descriptor: &Descriptor) -> Result<(), RingError> {
        let len = descriptor.len();
        self.bytes += u64::from(len);
        if self.bytes > MAX_CHAIN_BYTES {
            return Err(RingError::TooManyBytes);
        }
        let (buffers, access) = if descriptor.is_write_only() {
            (&mut self.writable, Permissions::Write)
        } else if self.writable.is_begun() {
            return Err(RingError::ReadableAfterWritable);
        } else {
            (&mut self.readable, Permissions::Read)
        };
        buffers.begin();
        let len = usize::try_from(len).map_err(|_| RingError::OutsideMemory)?;
        // Nearly always it is in one region, and found faster so. The guest's memory has no
        // permissions.
        if let Ok(slice) = GuestMemoryBackend::get_slice(memory, descriptor.addr(), len) {
            if len > 0 {
                buffers.push(slice);
            }
            return Ok(());
        }
        let slices = GuestMemory::get_slices(memory, descriptor.addr(), len, access)
            .map_err(|_| RingError::OutsideMemory)?;
        for slice in slices {
            buffers.push(slice.map_err(|_| RingError::OutsideMemory)?);
        }
        Ok(())
    }
}

impl Table {
    /// A copy of descriptor `index`, which is in the table.
    fn read(&self, memory: &GuestRam, index: u16) -> Result<Descriptor, RingError> {
        let offset = u64::from(index) * u64::from(DESCRIPTOR_SIZE);
        let address = self.start.0.checked_add(offset);
        address
            .and_then(|address| {
                let address = GuestAddress(address);
                let size = size_of::<Descriptor>();
                match GuestMemoryBackend::get_slice(memory, address, size) {
                    Ok(slice) => slice.read_obj(0).ok(),
                    Err(_) => memory.read_obj(address).ok(),
                }
            })
            .ok_or(RingError::OutsideMemory)
    }

    /// The table that `descriptor` refers to (virtio 1.2 §2.7.5.3). Its
    /// `WRITE` flag means nothing (§2.7.5.3.2), and nothing is said about
    /// alignment.
    fn enter(&self, descriptor: &Descriptor, negotiated: bool) -> Result<Self, RingError> {
        if !negotiated {
            return Err(RingError::IndirectNotNegotiated);
        }
        if self.indirect {
            return Err(RingError::NestedIndirect);
        }
        if descriptor.has_next() {
            return Err(RingError::IndirectWithNext);
        }
        if descriptor.len() == 0 || !descriptor.len().is_multiple_of(DESCRIPTOR_SIZE) {
            return Err(RingError::IndirectLength);
        }
        Ok(Self {
            start: descriptor.addr(),
            entries: descriptor.len() / DESCRIPTOR_SIZE,
            indirect: true,
        })
    }
}
