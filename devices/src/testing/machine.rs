//! One device with everything around it.

use std::sync::{Arc, Mutex, MutexGuard};

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ring::{KickSubscriber, Kicked};
use crate::transport::registers as reg;
use crate::transport::{MmioTransport, TransportState};
use crate::virtio::{GuestRam, Interrupt, VirtioDevice};

/// Where one region of guest memory ends and the next begins, without a gap.
pub const REGION_SEAM: u64 = 4 << 20;

/// Where the second region ends and nothing follows.
pub const HOLE: u64 = 8 << 20;

/// Where a third region begins after the hole; it is one page long.
const ISLAND: u64 = 16 << 20;

/// The end of the third region, and of guest memory.
pub const RAM_END: u64 = ISLAND + 0x1000;

/// More turns of the event loop than any test needs: a device that still wants
/// more is not going to stop.
const MAX_TURNS: usize = 100_000;

/// Longest wait for something that is to happen by itself, in milliseconds.
const PATIENCE_MS: i32 = 60_000;

/// A device with transport, guest memory, kicks, interrupt line and event
/// loop.
pub struct Machine<D> {
    /// Guest memory: three regions, the first two without a gap.
    pub memory: GuestRam,
    /// The register file.
    pub transport: MmioTransport,
    device: Arc<Mutex<D>>,
    line: EventFd,
    kicks: Vec<EventFd>,
    events: EventManager<KickSubscriber<D>>,
    serving: SubscriberId,
    resting: Option<KickSubscriber<D>>,
}

impl<D: VirtioDevice + Kicked + 'static> Machine<D> {
    /// A machine after power-on.
    #[must_use]
    pub fn new(device: D) -> Self {
        let regions = [
            (GuestAddress(0), REGION_SEAM as usize),
            (GuestAddress(REGION_SEAM), (HOLE - REGION_SEAM) as usize),
            (GuestAddress(ISLAND), (RAM_END - ISLAND) as usize),
        ];
        let memory = GuestMemoryMmap::from_ranges(&regions).unwrap();
        Self::with_memory(device, memory)
    }

    /// A machine with memory that is there already: for restoring a saved one.
    #[must_use]
    pub fn with_memory(device: D, memory: GuestRam) -> Self {
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        let line = eventfd();
        let kicks: Vec<_> = device.queue_max_sizes().iter().map(|_| eventfd()).collect();
        let clones = || kicks.iter().map(|kick| kick.try_clone().unwrap()).collect();
        let device = Arc::new(Mutex::new(device));
        let transport = MmioTransport::new(
            device.clone(),
            memory.clone(),
            Interrupt::new(line.try_clone().unwrap()),
            clones(),
        )
        .unwrap();
        let mut events = EventManager::new().unwrap();
        let serving = events.add_subscriber(KickSubscriber::new(device.clone(), clones()));
        Self {
            memory,
            transport,
            device,
            line,
            kicks,
            events,
            serving,
            resting: None,
        }
    }

    /// Reads a register.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0xa5; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Reads the status.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.read(reg::STATUS)
    }

    /// Writes the status, and reads it back.
    pub fn set_status(&mut self, status: u32) -> u32 {
        self.write(reg::STATUS, status);
        self.status()
    }

    /// Goes from power-on to `FEATURES_OK` with `features`.
    pub fn negotiate(&mut self, features: u64) -> u32 {
        self.set_status(1);
        self.set_status(3);
        for (sel, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(reg::DRIVER_FEATURES_SEL, sel);
            self.write(reg::DRIVER_FEATURES, word);
        }
        self.set_status(11)
    }

    /// Writes the registers of one queue, `QueueReady` last. Returns what
    /// `QueueReady` reads then.
    pub fn set_up_queue(&mut self, index: u32, size: u32, parts: [u64; 3]) -> u32 {
        self.write(reg::QUEUE_SEL, index);
        self.write(reg::QUEUE_NUM, size);
        let registers = [
            reg::QUEUE_DESC_LOW,
            reg::QUEUE_DRIVER_LOW,
            reg::QUEUE_DEVICE_LOW,
        ];
        for (low, address) in registers.into_iter().zip(parts) {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
        self.write(reg::QUEUE_READY, 1);
        self.read(reg::QUEUE_READY)
    }

    /// The device itself.
    pub fn device(&self) -> MutexGuard<'_, D> {
        self.device.lock().unwrap()
    }

    /// Kicks a queue without a register, as the hypervisor does.
    pub fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// Lets the event loop turn until nothing is ready. Returns the number of
    /// turns in which something was.
    pub fn run(&mut self) -> usize {
        for turn in 0..MAX_TURNS {
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return turn;
            }
        }
        panic!("the device keeps itself busy for ever");
    }

    /// Waits until something is ready, and lets the event loop turn until nothing
    /// is.
    pub fn wait(&mut self) {
        let ready = self.events.run_with_timeout(PATIENCE_MS).unwrap();
        assert!(ready > 0, "nothing happens");
        self.run();
    }

    /// Takes the device out of the event loop, as a machine that is paused does.
    pub fn stand_still(&mut self) {
        let resting = self.events.remove_subscriber(self.serving).unwrap();
        self.resting = Some(resting);
    }

    /// Puts it back.
    pub fn go_on(&mut self) {
        if let Some(subscriber) = self.resting.take() {
            self.serving = self.events.add_subscriber(subscriber);
        }
    }

    /// Lets the event loop turn once.
    pub fn run_once(&mut self) -> usize {
        self.events.run_with_timeout(0).unwrap()
    }

    /// How often the interrupt line was raised since the last call.
    #[must_use]
    pub fn interrupts(&self) -> u64 {
        self.line.read().unwrap_or(0)
    }

    /// Whether the device has asked to be reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.status() & 0x40 != 0
    }

    /// Ends this machine and goes on in another one: same guest memory,
    /// `device` in place of the old one, saved state taken over. Kicks that are
    /// under way are lost, as they are when a process ends.
    pub fn migrate(self, device: D) -> Self {
        let state = self.transport.save();
        let bytes = to_bytes_and_back(&state);
        let memory = copy_of(&self.memory);
        drop(self);
        let mut other = Self::with_memory(device, memory);
        other.transport.restore(&bytes).unwrap();
        assert_eq!(other.transport.save(), state, "the state survives");
        other
    }
}

/// What reading a state from a file gives.
fn to_bytes_and_back(state: &TransportState) -> TransportState {
    let frame = flashpan_protocol::frame::encode(state, 1 << 20).unwrap();
    flashpan_protocol::frame::from_bytes(&frame[4..]).unwrap()
}

/// Another piece of memory with the same content.
fn copy_of(memory: &GuestRam) -> GuestRam {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let ranges: Vec<_> = memory
        .iter()
        .map(|region| (region.start_addr(), region.len() as usize))
        .collect();
    let copy = GuestRam::from_ranges(&ranges).unwrap();
    for (start, len) in ranges {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, start).unwrap();
        copy.write_slice(&bytes, start).unwrap();
    }
    copy
}
