//! A driver that keeps to the rules.

use vm_memory::{Bytes, GuestAddress};

use super::machine::Machine;
use super::ring::{Ring, Segment};
use crate::ring::Kicked;
use crate::transport::registers as reg;
use crate::virtio::VirtioDevice;

/// `VIRTIO_F_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;

/// Where the queues are; the buffers follow. Away from address zero.
const QUEUES: u64 = 0x1_0000;

/// A driver of a live device.
pub struct Driver<D> {
    /// The device and its surroundings.
    pub machine: Machine<D>,
    /// Its queues.
    pub rings: Vec<Ring>,
    /// What was negotiated.
    pub features: u64,
    free: u64,
}

impl<D: VirtioDevice + Kicked + 'static> Driver<D> {
    /// Finds `device` and initialises it with those of `features` that it
    /// offers (virtio 1.2 §3.1.1, §4.2.3.1.1).
    #[must_use]
    pub fn new(device: D, features: u64) -> Self {
        Self::start(Machine::new(device), features)
    }

    /// As [`Self::new`], for a machine that is there already.
    #[must_use]
    pub fn start(mut machine: Machine<D>, features: u64) -> Self {
        assert_eq!(machine.read(reg::MAGIC_VALUE), 0x7472_6976, "MagicValue");
        assert_eq!(machine.read(reg::VERSION), 2, "Version");
        assert_ne!(machine.read(reg::DEVICE_ID), 0, "DeviceID");
        assert_eq!(machine.set_status(0), 0, "reset");

        let mut offered = 0;
        for sel in [0, 1] {
            machine.write(reg::DEVICE_FEATURES_SEL, sel);
            offered |= u64::from(machine.read(reg::DEVICE_FEATURES)) << (32 * sel);
        }
        let features = offered & (features | VERSION_1);
        assert_eq!(machine.negotiate(features), 11, "FEATURES_OK");

        let mut rings = Vec::new();
        let mut free = QUEUES;
        for index in 0.. {
            machine.write(reg::QUEUE_SEL, index);
            assert_eq!(machine.read(reg::QUEUE_READY), 0, "QueueReady after reset");
            let size = machine.read(reg::QUEUE_NUM_MAX);
            if size == 0 {
                break;
            }
            let event_idx = features & EVENT_IDX != 0;
            let ring = Ring::new(machine.memory.clone(), free, size as u16, event_idx);
            let zeroes = vec![0; (ring.end() - ring.desc) as usize];
            machine
                .memory
                .write_slice(&zeroes, GuestAddress(ring.desc))
                .unwrap();
            assert_eq!(
                machine.set_up_queue(index, size, ring.parts()),
                1,
                "QueueReady"
            );
            free = ring.end().next_multiple_of(0x1000);
            rings.push(ring);
        }
        assert_eq!(machine.set_status(15), 15, "DRIVER_OK");
        Self {
            machine,
            rings,
            features,
            free,
        }
    }

    /// Resets the device and initialises it again.
    #[must_use]
    pub fn restart(self, features: u64) -> Self {
        Self::start(self.machine, features)
    }

    /// Goes on with a restored device. See [`Machine::migrate`].
    #[must_use]
    pub fn migrate(self, device: D) -> Self {
        let machine = self.machine.migrate(device);
        let memory = &machine.memory;
        let rings = self
            .rings
            .into_iter()
            .map(|ring| ring.in_memory(memory.clone()));
        Self {
            rings: rings.collect(),
            machine,
            ..self
        }
    }

    /// A piece of guest memory that nobody else uses.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let addr = self.free;
        self.free += (len as u64).next_multiple_of(16);
        addr
    }

    /// A buffer that the device reads, with this content.
    pub fn readable(&mut self, content: &[u8]) -> Segment {
        let addr = self.alloc(content.len());
        self.machine
            .memory
            .write_slice(content, GuestAddress(addr))
            .unwrap();
        Segment::readable(addr, content.len() as u32)
    }

    /// A buffer that the device writes, filled with a pattern so that a byte
    /// that was not written is noticed.
    pub fn writable(&mut self, len: usize) -> Segment {
        let addr = self.alloc(len);
        let pattern = vec![0xa5; len];
        self.machine
            .memory
            .write_slice(&pattern, GuestAddress(addr))
            .unwrap();
        Segment::writable(addr, len as u32)
    }

    /// What is in a buffer.
    #[must_use]
    pub fn content(&self, segment: Segment) -> Vec<u8> {
        let mut bytes = vec![0; segment.len as usize];
        let addr = GuestAddress(segment.addr);
        self.machine.memory.read_slice(&mut bytes, addr).unwrap();
        bytes
    }

    /// Makes a chain available, and kicks if the device wants it. Returns the
    /// chain's head.
    pub fn send(&mut self, queue: usize, segments: &[Segment]) -> u16 {
        let head = self.rings[queue].send(segments);
        self.kick(queue);
        head
    }

    /// As [`Self::send`], by an indirect table.
    pub fn send_indirect(&mut self, queue: usize, segments: &[Segment]) -> u16 {
        let table = self.alloc(16 * segments.len());
        let head = self.rings[queue].send_indirect(segments, table);
        self.kick(queue);
        head
    }

    /// Kicks if the device wants it.
    pub fn kick(&mut self, queue: usize) {
        if self.rings[queue].wants_kick() {
            self.machine.write(reg::QUEUE_NOTIFY, queue as u32);
        }
    }

    /// Makes a chain available, lets the device work and returns the number of
    /// bytes that it wrote.
    pub fn request(&mut self, queue: usize, segments: &[Segment]) -> u32 {
        let head = self.send(queue, segments);
        self.machine.run();
        let (used, len) = self.rings[queue].collect().expect("an answer");
        assert_eq!(used, head, "the answer to this request");
        len
    }
}
