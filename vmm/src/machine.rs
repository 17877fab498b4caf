//! What the guest can reach: which device answers at which port and address.

use std::fs::File;
use std::sync::{Arc, Mutex, OnceLock};

use event_manager::MutEventSubscriber;
use flashpan_devices::block::{Block, BlockMetrics};
use flashpan_devices::net::Net;
use flashpan_devices::ring::{KickSubscriber, Kicked};
use flashpan_devices::rng::Rng;
use flashpan_devices::transport::registers::{INTERRUPT_ACK, INTERRUPT_STATUS, QUEUE_NOTIFY};
use flashpan_devices::transport::{MmioTransport, TransportState};
use flashpan_devices::virtio::{GuestRam, Interrupt, VirtioDevice};
use flashpan_devices::vsock::{Vsock, VsockSubscriber};
use flashpan_protocol::control::{ExitReason, FullDisk, VmSpec};
use flashpan_protocol::phase::Phase;
use vmm_sys_util::eventfd::EventFd;

use crate::counters::{Counters, Direction};
use crate::error::BootError;
use crate::kvm::KvmVm;
use crate::layout::{FIRST_IRQ, MAX_DEVICES, MMIO_BASE, MMIO_STRIDE};
use crate::legacy::{Legacy, LegacyState};
use crate::state::MachineStateError;
use crate::vm::{Observer, VmEvent, bad_disk, clone, eventfd, lock, stamp};

/// A virtio device that is to be attached.
struct Slot {
    name: String,
    device: Arc<Mutex<dyn VirtioDevice>>,
    kicks: Vec<EventFd>,
    subscriber: Box<dyn MutEventSubscriber + Send>,
}

impl Slot {
    fn new<D: VirtioDevice + 'static, S: MutEventSubscriber + Send + 'static>(
        name: String,
        device: Arc<Mutex<D>>,
        subscriber: impl FnOnce(Arc<Mutex<D>>, Vec<EventFd>) -> Option<S>,
    ) -> Result<Self, BootError> {
        let queues = lock(&device).queue_max_sizes().len();
        let kicks: Vec<_> = (0..queues).map(|_| eventfd()).collect::<Result<_, _>>()?;
        let copies = kicks.iter().map(clone).collect::<Result<_, _>>()?;
        let subscriber = subscriber(Arc::clone(&device), copies).ok_or_else(|| {
            BootError::request(format!("device {name} does not have {queues} queues"))
        })?;
        let subscriber = Box::new(subscriber);
        Ok(Self {
            name,
            device,
            kicks,
            subscriber,
        })
    }
}

/// The subscriber of a device that is only woken by its driver.
fn kicked<D: Kicked>(device: Arc<Mutex<D>>, kicks: Vec<EventFd>) -> Option<KickSubscriber<D>> {
    Some(KickSubscriber::new(device, kicks))
}

/// The virtio devices of a machine, in the order of their slots: disks first,
/// so that the first disk is `vda` whatever else there is.
pub(crate) struct Attached {
    slots: Vec<Slot>,
    /// Of the disks, which come first.
    disks: Vec<Arc<BlockMetrics>>,
}

impl Attached {
    /// The devices that `spec` asks for.
    pub(crate) fn new(
        spec: &VmSpec,
        disks: Vec<File>,
        vsock: Arc<Mutex<Vsock>>,
        net: Option<Arc<Mutex<Net>>>,
    ) -> Result<Self, BootError> {
        let mut slots = Vec::new();
        let mut metrics = Vec::new();
        for (index, (disk, file)) in spec.disks.iter().zip(disks).enumerate() {
            let mut block =
                Block::new(file, disk.read_only, &disk.id).map_err(|e| bad_disk(index, &e))?;
            if disk.volatile {
                block = block.volatile();
            }
            block = block
                .limited(disk.rate, &disk.id)
                .map_err(|e| bad_disk(index, &e))?;
            metrics.push(block.metrics());
            let block = Arc::new(Mutex::new(block));
            slots.push(Slot::new(format!("blk{index}"), block, kicked)?);
        }
        slots.push(Slot::new("vsock".to_owned(), vsock, |device, kicks| {
            Some(VsockSubscriber::new(device, kicks.try_into().ok()?))
        })?);
        if let Some(net) = net {
            slots.push(Slot::new("net".to_owned(), net, kicked)?);
        }
        if spec.rng {
            let rng = Arc::new(Mutex::new(Rng::new()));
            slots.push(Slot::new("rng".to_owned(), rng, kicked)?);
        }
        if slots.len() > MAX_DEVICES {
            return Err(BootError::request(format!(
                "{} devices are too many: there are interrupt lines for {MAX_DEVICES}",
                slots.len()
            )));
        }
        let disks = metrics;
        Ok(Self { slots, disks })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }
}

/// The register file of a device, shared by the vCPU threads.
struct Registers {
    transport: Mutex<MmioTransport>,
    /// The transport's own, to answer for the two registers that are used for
    /// every interrupt without waiting for a vCPU that configures the device.
    interrupt: Interrupt,
}

impl Registers {
    fn new(transport: MmioTransport, interrupt: Interrupt) -> Self {
        Self {
            transport: Mutex::new(transport),
            interrupt,
        }
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) if offset == INTERRUPT_STATUS => {
                *word = self.interrupt.status().to_le_bytes();
            }
            _ => lock(&self.transport).read(offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match <[u8; 4]>::try_from(data) {
            Ok(word) if offset == INTERRUPT_ACK => {
                self.interrupt.acknowledge(u32::from_le_bytes(word));
            }
            _ => lock(&self.transport).write(offset, data),
        }
    }
}

/// The devices and ports of a running machine, shared by its vCPU threads.
pub(crate) struct Machine {
    pub(crate) counters: Counters,
    registers: Vec<Registers>,
    disks: Vec<Arc<BlockMetrics>>,
    legacy: Legacy,
    observer: Arc<dyn Observer>,
    end: OnceLock<ExitReason>,
    end_event: EventFd,
}

impl Machine {
    /// Puts the devices behind transports and binds those to KVM. Gives back
    /// what is to be added to the event loop.
    pub(crate) fn new(
        attached: Attached,
        kvm: &KvmVm,
        ram: &GuestRam,
        console: Option<File>,
        observer: Arc<dyn Observer>,
    ) -> Result<(Self, Vec<Box<dyn MutEventSubscriber + Send>>), BootError> {
        let names = attached
            .slots
            .iter()
            .map(|slot| slot.name.clone())
            .collect();
        let mut registers = Vec::new();
        let mut subscribers = Vec::new();
        let mut address = MMIO_BASE;
        for (slot, irq) in attached.slots.into_iter().zip(FIRST_IRQ..) {
            let line = eventfd()?;
            kvm.bind_interrupt(&line, irq)?;
            for (kick, queue) in slot.kicks.iter().zip(0..) {
                kvm.bind_kick(kick, address.saturating_add(QUEUE_NOTIFY), queue)?;
            }
            let interrupt = Interrupt::new(line);
            let hot = interrupt.clone();
            let transport = MmioTransport::new(slot.device, ram.clone(), interrupt, slot.kicks)
                .map_err(|e| BootError::request(format!("device {}: {e}", slot.name)))?;
            registers.push(Registers::new(transport, hot));
            subscribers.push(slot.subscriber);
            address = address.saturating_add(MMIO_STRIDE);
        }
        let machine = Self {
            counters: Counters::new(names),
            registers,
            disks: attached.disks,
            legacy: Legacy::new(console, kvm, Arc::clone(&observer))?,
            observer,
            end: OnceLock::new(),
            end_event: eventfd()?,
        };
        Ok((machine, subscribers))
    }

    /// The guest reads an I/O port.
    pub(crate) fn port_read(&self, port: u16, data: &mut [u8]) {
        self.counters.port(port, Direction::Read);
        self.legacy.read(port, data);
    }

    /// The guest writes an I/O port. Some such writes end the machine.
    pub(crate) fn port_write(&self, port: u16, data: &[u8]) -> Option<ExitReason> {
        self.counters.port(port, Direction::Write);
        self.legacy.write(port, data)
    }

    /// The guest reads an address that is not memory.
    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        let slot = slot(address);
        self.counters.mmio(slot, Direction::Read);
        match slot.and_then(|(index, offset)| Some((self.registers.get(index)?, offset))) {
            Some((registers, offset)) => registers.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes an address that is not memory.
    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) {
        let slot = slot(address);
        self.counters.mmio(slot, Direction::Write);
        if let Some((index, offset)) = slot
            && let Some(registers) = self.registers.get(index)
        {
            registers.write(offset, data);
        }
    }

    /// Tells the observer.
    pub(crate) fn tell(&self, event: VmEvent) {
        self.observer.event(event);
    }

    /// Tells the observer that `phase` was reached now.
    pub(crate) fn phase(&self, phase: Phase) {
        self.tell(VmEvent::Phase(stamp(phase)));
    }

    /// Writes out what the guest printed last.
    pub(crate) fn flush_console(&self) {
        self.legacy.flush();
    }

    /// Ends the machine; the first reason counts.
    pub(crate) fn end(&self, reason: ExitReason) {
        if self.end.set(reason).is_ok() {
            // A counter of 2^64 - 1 ends is not reached.
            let _ = self.end_event.write(1);
        }
    }

    /// Why the machine has ended, if it has.
    pub(crate) fn end_reason(&self) -> Option<ExitReason> {
        self.end.get().cloned()
    }

    /// Readable once the machine has ended.
    pub(crate) fn end_event(&self) -> &EventFd {
        &self.end_event
    }

    /// The state of all devices; the vCPUs must stand still.
    pub(crate) fn save(&self) -> (Vec<TransportState>, LegacyState) {
        let devices = self
            .registers
            .iter()
            .map(|registers| lock(&registers.transport).save())
            .collect();
        (devices, self.legacy.save())
    }

    /// Gives the devices a saved state.
    pub(crate) fn restore(
        &self,
        devices: &[TransportState],
        legacy: &LegacyState,
    ) -> Result<(), MachineStateError> {
        let (saved, here) = (devices.len(), self.registers.len());
        if saved != here {
            return Err(MachineStateError::Mismatch {
                what: "devices",
                saved,
                here,
            });
        }
        for (registers, state) in self.registers.iter().zip(devices) {
            lock(&registers.transport).restore(state)?;
        }
        self.legacy.restore(legacy)?;
        Ok(())
    }

    /// Disks for which the host had no room.
    pub(crate) fn full_disks(&self) -> Vec<FullDisk> {
        let disks = self.disks.iter().zip(0..);
        let disks = disks.map(|(metrics, disk)| FullDisk {
            disk,
            failures: metrics.read().no_space,
        });
        disks.filter(|disk| disk.failures > 0).collect()
    }

    /// Console bytes that nobody took.
    pub(crate) fn console_dropped(&self) -> u64 {
        self.legacy.console_dropped()
    }
}

/// The slot of `address` and the offset in it.
fn slot(address: u64) -> Option<(usize, u64)> {
    let offset = address.checked_sub(MMIO_BASE)?;
    let index = usize::try_from(offset / MMIO_STRIDE)
        .ok()
        .filter(|index| *index < MAX_DEVICES)?;
    Some((index, offset % MMIO_STRIDE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use vm_memory::GuestAddress;

    /// A vCPU that handles an interrupt does not wait for one that is at the
    /// device's other registers, which may take as long as the device.
    #[test]
    fn interrupts_are_handled_while_the_transport_is_in_use() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let interrupt = Interrupt::new(eventfd().unwrap());
        let device = Arc::new(Mutex::new(Rng::new()));
        let kicks = vec![eventfd().unwrap()];
        let transport = MmioTransport::new(device, ram, interrupt.clone(), kicks).unwrap();
        let registers = Arc::new(Registers::new(transport, interrupt.clone()));
        interrupt.signal_used().unwrap();
        interrupt.signal_config_change().unwrap();
        let (sender, seen) = channel();

        let in_use = lock(&registers.transport);
        let handler = Arc::clone(&registers);
        std::thread::spawn(move || {
            let mut status = [0; 4];
            handler.read(INTERRUPT_STATUS, &mut status);
            handler.write(INTERRUPT_ACK, &1_u32.to_le_bytes());
            sender.send(u32::from_le_bytes(status))
        });
        assert_eq!(seen.recv_timeout(Duration::from_secs(60)), Ok(3));
        assert_eq!(interrupt.status(), 2);
        drop(in_use);

        // Other widths are nothing, as at every register.
        let mut half = [0xa5; 2];
        registers.read(INTERRUPT_STATUS, &mut half);
        registers.write(INTERRUPT_ACK, &[2]);
        assert_eq!((half, interrupt.status()), ([0; 2], 2));
    }

    #[test]
    fn addresses_map_to_slots() {
        assert_eq!(slot(MMIO_BASE), Some((0, 0)));
        assert_eq!(slot(MMIO_BASE + MMIO_STRIDE + 0x50), Some((1, 0x50)));
        assert_eq!(slot(MMIO_BASE - 1), None);
        assert_eq!(slot(u64::MAX), None);
    }
}
