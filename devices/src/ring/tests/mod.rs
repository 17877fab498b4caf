//! Rings against drivers that keep to the rules and drivers that do not.
//! `docs/devices.md` lists the tests by class.

mod chains;
mod notifications;
mod properties;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Budget, Chain, Progress, Ring, RingError, Served};
use crate::testing::{
    Descriptor, HOLE, INDIRECT, NEXT, REGION_SEAM, Ring as DriverRing, Segment, WRITE,
};
use crate::virtio::{GuestRam, Interrupt};

const SIZE: u16 = 8;
const BASE: u64 = 0x1000;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

/// Where buffers and tables are put.
const DATA: u64 = 0x1_0000;
const TABLE: u64 = 0x2_0000;

/// More than any test here makes available at a time.
const AMPLE: Budget = Budget {
    chains: 1000,
    bytes: u64::MAX,
};

/// Both sides of one queue.
struct Pair {
    memory: GuestRam,
    driver: DriverRing,
    device: Ring,
    interrupt: Interrupt,
    line: EventFd,
}

/// Two regions without a gap, and a hole after them.
fn memory() -> GuestRam {
    let len = REGION_SEAM as usize;
    let regions = [(GuestAddress(0), len), (GuestAddress(REGION_SEAM), len)];
    GuestRam::from_ranges(&regions).unwrap()
}

impl Pair {
    fn new(features: u64) -> Self {
        Self::at(features, 0)
    }

    /// A pair that has used the queue up to `position`.
    fn at(features: u64, position: u16) -> Self {
        let memory = memory();
        let event_idx = features & EVENT_IDX != 0;
        let mut driver = DriverRing::new(memory.clone(), BASE, SIZE, event_idx);
        driver.start_at(position);
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(driver.desc as u32), None);
        queue.set_avail_ring_address(Some(driver.avail as u32), None);
        queue.set_used_ring_address(Some(driver.used as u32), None);
        queue.set_event_idx(event_idx);
        queue.set_next_avail(position);
        queue.set_next_used(position);
        queue.set_ready(true);
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            memory,
            driver,
            device: Ring::new(queue, features),
            interrupt: Interrupt::new(line.try_clone().unwrap()),
            line,
        }
    }

    /// Serves what is available; each answer is as long as what was read.
    fn serve(&mut self, budget: Budget) -> Progress {
        self.device
            .serve(&self.memory, &self.interrupt, budget, |chain| {
                Ok(chain.readable.len() as u32)
            })
    }

    /// Offers `table` from descriptor 0 on, and pops it.
    fn pop(&mut self, descriptors: &[Descriptor]) -> Result<(usize, usize), RingError> {
        self.driver.write_table(self.driver.desc, descriptors);
        self.driver.offer(0);
        self.pop_offered()
    }

    fn pop_offered(&mut self) -> Result<(usize, usize), RingError> {
        let mut chain = Chain::new();
        assert!(self.device.pop(&self.memory, &mut chain)?);
        Ok((chain.readable.len(), chain.writable.len()))
    }

    fn interrupts(&self) -> u64 {
        self.line.read().unwrap_or(0)
    }
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr,
        len,
        flags,
        next,
    }
}
