//! The driver's side of a split virtqueue (virtio 1.2 §2.7).

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::virtio::GuestRam;

/// The chain goes on at `next`.
pub const NEXT: u16 = 1;
/// The device may write the buffer, and not read it.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A buffer of a request.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Segment {
    /// A buffer that the device reads.
    #[must_use]
    pub const fn readable(addr: u64, len: u32) -> Self {
        Self {
            addr,
            len,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    #[must_use]
    pub const fn writable(addr: u64, len: u32) -> Self {
        Self {
            addr,
            len,
            writable: true,
        }
    }
}

/// A descriptor as it is in memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`], or anything.
    pub flags: u16,
    /// The next descriptor's index.
    pub next: u16,
}

impl Descriptor {
    /// The 16 bytes of the descriptor.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A virtqueue in guest memory. The `write_*`, `put_*` and `set_*` functions do
/// what they are told; the others keep to the rules, and fail the test when the
/// device does not.
#[derive(Debug, Clone)]
pub struct Ring {
    memory: GuestRam,
    /// Number of descriptors.
    pub size: u16,
    /// Address of the descriptor table.
    pub desc: u64,
    /// Address of the available ring.
    pub avail: u64,
    /// Address of the used ring.
    pub used: u64,
    event_idx: bool,
    avail_idx: u16,
    kicked_idx: u16,
    seen: u16,
    free: Vec<u16>,
    lent: HashMap<u16, Vec<u16>>,
}

impl Ring {
    /// A queue of `size` descriptors from `base` on, which is a multiple of 16.
    #[must_use]
    pub fn new(memory: GuestRam, base: u64, size: u16, event_idx: bool) -> Self {
        let entries = u64::from(size);
        let avail = base + 16 * entries;
        let used = (avail + 6 + 2 * entries).next_multiple_of(4);
        Self {
            memory,
            size,
            desc: base,
            avail,
            used,
            event_idx,
            avail_idx: 0,
            kicked_idx: 0,
            seen: 0,
            free: (0..size).rev().collect(),
            lent: HashMap::new(),
        }
    }

    /// The three addresses in the order of the registers.
    #[must_use]
    pub fn parts(&self) -> [u64; 3] {
        [self.desc, self.avail, self.used]
    }

    /// The first byte after the queue.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.used + 6 + 8 * u64::from(self.size)
    }

    /// The same queue in a copy of guest memory.
    #[must_use]
    pub fn in_memory(mut self, memory: GuestRam) -> Self {
        self.memory = memory;
        self
    }

    /// Writes a descriptor of the table.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.write_table(self.desc + 16 * u64::from(index), &[descriptor]);
    }

    /// Writes descriptors anywhere.
    pub fn write_table(&self, addr: u64, descriptors: &[Descriptor]) {
        let bytes: Vec<u8> = descriptors.iter().flat_map(|d| d.to_bytes()).collect();
        self.memory.write_slice(&bytes, GuestAddress(addr)).unwrap();
    }

    /// Writes an entry of the available ring.
    pub fn put_avail(&self, position: u16, head: u16) {
        let slot = u64::from(position % self.size);
        self.put16(self.avail + 4 + 2 * slot, head);
    }

    /// Writes the available index.
    pub fn set_avail_idx(&self, idx: u16) {
        // After the chain itself (virtio 1.2 §2.7.13.3).
        fence(Ordering::Release);
        self.put16(self.avail + 2, idx);
    }

    /// Writes the flags of the available ring.
    pub fn set_avail_flags(&self, flags: u16) {
        self.put16(self.avail, flags);
    }

    /// Writes `used_event`.
    pub fn set_used_event(&self, position: u16) {
        self.put16(self.avail + 4 + 2 * u64::from(self.size), position);
    }

    /// The used index.
    #[must_use]
    pub fn used_idx(&self) -> u16 {
        self.get16(self.used + 2)
    }

    /// The flags of the used ring.
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        self.get16(self.used)
    }

    /// `avail_event`.
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        self.get16(self.used + 4 + 8 * u64::from(self.size))
    }

    /// Makes one chain of hand-made descriptors available, beginning at
    /// `head`, whatever is available already.
    pub fn offer(&mut self, head: u16) {
        self.put_avail(self.avail_idx, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.set_avail_idx(self.avail_idx);
    }

    /// Goes on at another position, before anything was made available and
    /// after the device was told the same: for tests of wrapping.
    pub fn start_at(&mut self, position: u16) {
        self.avail_idx = position;
        self.kicked_idx = position;
        self.seen = position;
        self.set_avail_idx(position);
        self.put16(self.used + 2, position);
        self.set_used_event(position);
    }

    /// Makes `segments` available as one chain. Returns its head.
    pub fn send(&mut self, segments: &[Segment]) -> u16 {
        let indices: Vec<u16> = segments.iter().map(|_| self.free.pop().unwrap()).collect();
        for (position, (&index, segment)) in indices.iter().zip(segments).enumerate() {
            let next = indices.get(position + 1).copied();
            self.write_descriptor(index, descriptor(segment, next));
        }
        self.lend(indices)
    }

    /// Makes `segments` available as an indirect table, which is written to
    /// `table`. Returns the chain's head.
    pub fn send_indirect(&mut self, segments: &[Segment], table: u64) -> u16 {
        let count = segments.len() as u16;
        let descriptors: Vec<_> = (1..)
            .zip(segments)
            .map(|(next, segment)| descriptor(segment, (next < count).then_some(next)))
            .collect();
        self.write_table(table, &descriptors);
        let index = self.free.pop().unwrap();
        let head = Descriptor {
            addr: table,
            len: 16 * u32::from(count),
            flags: INDIRECT,
            next: 0,
        };
        self.write_descriptor(index, head);
        self.lend(vec![index])
    }

    /// Whether the device wants to be kicked for what was made available since
    /// the last call (virtio 1.2 §2.7.10, §2.7.13.4).
    pub fn wants_kick(&mut self) -> bool {
        // What the device sees first: the chain, or that it need not be kicked.
        fence(Ordering::SeqCst);
        let (new, old) = (self.avail_idx, self.kicked_idx);
        self.kicked_idx = new;
        if self.event_idx {
            let event = self.avail_event();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used_flags() & 1 == 0
        }
    }

    /// The next used chain, its head and the bytes that the device wrote. Asks
    /// for an interrupt at the one after it.
    pub fn collect(&mut self) -> Option<(u16, u32)> {
        let ready = self.used_idx().wrapping_sub(self.seen);
        assert!(
            usize::from(ready) <= self.lent.len(),
            "used without being lent"
        );
        if ready == 0 {
            return None;
        }
        fence(Ordering::Acquire);
        let entry = self.used + 4 + 8 * u64::from(self.seen % self.size);
        let entry = self.slice(entry, 8);
        let id: u32 = entry.read_obj(0).unwrap();
        let len: u32 = entry.read_obj(4).unwrap();
        let head = u16::try_from(id).expect("a head");
        let indices = self.lent.remove(&head).expect("a head that was lent");
        self.free.extend(indices);
        self.seen = self.seen.wrapping_add(1);
        self.set_used_event(self.seen);
        // Who looks again now sees what came too early for that interrupt.
        fence(Ordering::SeqCst);
        Some((head, len))
    }

    /// Chains that the device has.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.lent.len()
    }

    fn lend(&mut self, indices: Vec<u16>) -> u16 {
        let head = indices[0];
        self.lent.insert(head, indices);
        self.offer(head);
        head
    }

    fn put16(&self, addr: u64, value: u16) {
        self.slice(addr, 2).write_obj(value, 0).unwrap();
    }

    fn get16(&self, addr: u64) -> u16 {
        self.slice(addr, 2).read_obj(0).unwrap()
    }

    /// A part of the queue, which is within one region of memory.
    fn slice(&self, addr: u64, len: usize) -> VolatileSlice<'_> {
        self.memory.get_slice(GuestAddress(addr), len).unwrap()
    }
}

fn descriptor(segment: &Segment, next: Option<u16>) -> Descriptor {
    Descriptor {
        addr: segment.addr,
        len: segment.len,
        flags: if segment.writable { WRITE } else { 0 } | next.map_or(0, |_| NEXT),
        next: next.unwrap_or(0),
    }
}
