//! A virtual machine: building it, running it, giving it orders.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use event_manager::{EventManager, MutEventSubscriber, SubscriberId, SubscriberOps};
use flashpan_devices::net::Net;
use flashpan_devices::vsock::Vsock;
use flashpan_protocol::control::{
    BootFailureKind, Console, ExitReason, ExitReport, MAX_DISK_ID, MAX_DISKS, Stamp, Stats, VCPUS,
    VmSpec,
};
use flashpan_protocol::phase::Phase;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::devices::{net_device, network_use, vsock_device};
use self::orders::{Commands, EndSubscriber, Order};
use crate::boot;
use crate::cpu::run::Vcpus;
use crate::cpu::{cpuid, entry};
use crate::error::BootError;
use crate::kvm::{Host, KvmVm};
use crate::machine::{Attached, Machine};
use crate::memory::GuestMemory;
use crate::resident::ResidentSize;
use crate::state::{MachineStateError, VmState};

mod devices;
mod handle;
mod orders;

pub(crate) use self::handle::channel;
pub use self::handle::{Command, Observer, VmEvent, VmHandle};

/// What a machine is built from besides its description.
#[derive(Debug)]
pub struct Resources {
    /// An uncompressed x86-64 kernel.
    pub kernel: File,
    /// An initramfs, as the kernel takes it.
    pub initramfs: Option<File>,
    /// Where console output goes; best non-blocking: what does not fit is
    /// dropped and counted.
    pub console: Option<File>,
    /// The disks, in the order of the description.
    pub disks: Vec<File>,
}

/// A subscriber of the event loop.
type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// A virtual machine that was built and not yet run.
///
/// Fields are dropped in order: vCPU threads are joined before the devices go,
/// and guest memory is unmapped last.
pub struct Vm {
    vcpus: Vcpus,
    events: EventManager<Subscriber>,
    /// The devices' subscribers in `events`, while the machine runs.
    serving: Vec<SubscriberId>,
    /// The same, taken out of it, while the machine stands still.
    resting: Vec<Subscriber>,
    /// Since when the machine has stood still.
    standing_since: Option<Instant>,
    vsock: Arc<Mutex<Vsock>>,
    net: Option<Arc<Mutex<Net>>>,
    commands: Arc<Mutex<Commands>>,
    handle: VmHandle,
    machine: Arc<Machine>,
    resident: ResidentSize,
    kvm: KvmVm,
    memory: Arc<GuestMemory>,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("vcpus", &self.vcpus)
            .finish_non_exhaustive()
    }
}

impl Vm {
    /// Builds the machine: memory, kernel, devices, vCPUs. Nothing runs yet.
    ///
    /// # Errors
    /// If the description is out of range, a file is not usable, or KVM or the
    /// host refuses something.
    pub fn boot(
        host: Host,
        spec: &VmSpec,
        resources: Resources,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, BootError> {
        check(spec, &resources)?;
        let Resources {
            mut kernel,
            mut initramfs,
            console,
            disks,
        } = resources;
        let memory = GuestMemory::new(spec.memory_mib, spec.shared_memory)?;
        let Host { kvm, resident } = host;
        let kvm = KvmVm::new(kvm, &memory)?;
        observer.event(VmEvent::Phase(stamp(Phase::MemoryReady)));

        let (handle, receiver, wake) = channel()?;
        let vsock = vsock_device(Arc::clone(&observer), spec.network.is_some())?;
        let net = (spec.network)
            .map(|link| net_device(link, spec.network_rate, Arc::clone(&observer)))
            .transpose()?;
        let attached = Attached::new(spec, disks, Arc::clone(&vsock), net.clone())?;
        let cmdline = boot::cmdline::build(spec.console, attached.len(), &spec.kernel_args)?;
        let entry = boot::load(
            memory.ram(),
            &mut kernel,
            initramfs.as_mut(),
            spec.boot_protocol,
            &cmdline,
            spec.vcpus,
        )?;
        entry::write_tables(memory.ram(), entry.protocol)?;
        // The guest has its own copies now.
        drop((kernel, initramfs));

        let mut events = EventManager::new()
            .map_err(|e| BootError::host("make the event loop", &std::io::Error::other(e)))?;
        let told = Arc::clone(&observer);
        let (machine, subscribers) = Machine::new(attached, &kvm, memory.ram(), console, told)?;
        let machine = Arc::new(machine);
        let serving = subscribers
            .into_iter()
            .map(|subscriber| events.add_subscriber(subscriber))
            .collect();
        let commands = Commands::new(receiver, wake, Arc::clone(&vsock), net.clone(), observer);
        let commands = Arc::new(Mutex::new(commands));
        events.add_subscriber(Box::new(Arc::clone(&commands)) as Subscriber);
        events.add_subscriber(Box::new(EndSubscriber::new(
            Arc::clone(&machine),
            Arc::clone(&commands),
        )));

        let supported = cpuid::supported(kvm.kvm())?;
        let mut vcpus = Vec::new();
        for id in 0..spec.vcpus {
            let vcpu = kvm.create_vcpu(id)?;
            let cpuid = cpuid::for_vcpu(&supported, id, spec.vcpus)?;
            vcpu.set_cpuid2(&cpuid)
                .map_err(|e| BootError::kvm("set the CPUID", e))?;
            entry::set_registers(&vcpu, id, entry)?;
            vcpus.push(vcpu);
        }
        let vcpus = Vcpus::start(vcpus, &machine)?;
        machine.phase(Phase::KernelLoaded);
        Ok(Self {
            vcpus,
            events,
            serving,
            resting: Vec::new(),
            standing_since: Some(Instant::now()),
            vsock,
            net,
            commands,
            handle,
            machine,
            resident,
            kvm,
            memory: Arc::new(memory),
        })
    }

    /// A way to give the machine orders.
    ///
    /// # Errors
    /// If the host has no descriptor left.
    pub fn handle(&self) -> Result<VmHandle, BootError> {
        self.handle
            .try_clone()
            .map_err(|e| BootError::host("copy the descriptor of the machine's handle", &e))
    }

    /// Adds a subscriber to the machine's event loop. Unlike devices, it is
    /// served while the machine stands still as well.
    pub fn subscribe(&mut self, subscriber: Box<dyn MutEventSubscriber + Send>) {
        self.events.add_subscriber(subscriber);
    }

    /// The state of the machine without its memory. It must stand still: not
    /// yet run, or paused ([`Command::Save`]).
    ///
    /// # Errors
    /// If it is running, or KVM does not give a part of the state.
    pub fn save(&self) -> Result<VmState, MachineStateError> {
        let vcpus = self.vcpus.save(&self.kvm.saved_msrs()?)?;
        let (devices, legacy) = self.machine.save();
        Ok(VmState {
            vcpus,
            kvm: self.kvm.save()?,
            devices,
            legacy,
        })
    }

    /// Gives a machine that was built and not yet run a saved state. Its memory
    /// ([`Vm::memory`]) must have been given its contents of that moment.
    /// Connections over vsock do not survive; their guest is told so.
    ///
    /// # Errors
    /// If the state is that of another machine, or KVM refuses a part of it.
    pub fn restore(&mut self, state: &VmState) -> Result<(), MachineStateError> {
        self.vcpus.restore(&state.vcpus)?;
        self.kvm.restore(&state.kvm)?;
        self.machine.restore(&state.devices, &state.legacy)
    }

    /// The machine's memory, to be saved and restored. A clone of it can be kept
    /// while the machine runs; while it stands still, nothing changes there.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Runs the machine until it ends, on the calling thread, which is its
    /// event loop.
    pub fn run(&mut self) -> ExitReport {
        self.machine.phase(Phase::FirstRun);
        self.go_on();
        let reason = loop {
            if let Err(error) = self.events.run() {
                break ExitReason::VmmError(format!("the event loop failed: {error}"));
            }
            let (pending, mut ended) = {
                let mut commands = lock(&self.commands);
                (std::mem::take(&mut commands.pending), commands.ended.take())
            };
            for order in pending {
                match order {
                    Order::End(reason) => {
                        ended.get_or_insert(reason);
                    }
                    order if ended.is_some() => self.decline(order),
                    order => self.obey(order),
                }
            }
            if let Some(reason) = ended {
                break reason;
            }
        };
        let at_ns = now_ns();
        self.vcpus.pause();
        // What was asked for in time is answered.
        let late = {
            let mut commands = lock(&self.commands);
            commands.receive();
            std::mem::take(&mut commands.pending)
        };
        for order in late {
            self.decline(order);
        }
        self.machine.flush_console();
        ExitReport {
            reason,
            at_ns,
            stats: self.stats(),
        }
    }

    /// Lets the vCPUs stand still, and then the devices: what their drivers have
    /// asked for by then waits, and so does what comes for them from the host.
    fn stand_still(&mut self) {
        self.vcpus.pause();
        self.standing_since.get_or_insert_with(Instant::now);
        for id in self.serving.drain(..) {
            // The ids are those that the loop gave.
            if let Ok(subscriber) = self.events.remove_subscriber(id) {
                self.resting.push(subscriber);
            }
        }
    }

    /// Takes the devices and vCPUs up again. What waits for a device is still to
    /// be read from its descriptors, which wake the loop at once.
    fn go_on(&mut self) {
        if let Some(since) = self.standing_since.take() {
            lock(&self.vsock).postpone(since.elapsed());
            if let Some(net) = &self.net {
                lock(net).postpone(since.elapsed());
            }
        }
        for subscriber in self.resting.drain(..) {
            self.serving.push(self.events.add_subscriber(subscriber));
        }
        self.vcpus.resume();
    }

    /// An order to a machine that has ended.
    fn decline(&mut self, order: Order) {
        match order {
            Order::Save(reply) => drop(reply.send(Err(MachineStateError::Ended))),
            Order::Stats => self.obey(order),
            Order::Pause | Order::Resume | Order::End(_) => {}
        }
    }

    /// Orders that concern the machine as a whole.
    fn obey(&mut self, order: Order) {
        match order {
            Order::Pause => {
                self.stand_still();
                self.machine.tell(VmEvent::Paused);
            }
            Order::Resume => {
                self.go_on();
                self.machine.tell(VmEvent::Resumed);
            }
            Order::End(_) => {}
            Order::Stats => self.machine.tell(VmEvent::Stats(Box::new(self.stats()))),
            // Whoever asked may have stopped waiting.
            Order::Save(reply) => drop(reply.send(self.save().map(Box::new))),
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            exits: self.machine.counters.list(),
            console_dropped: self.machine.console_dropped(),
            vmm_resident_kib: self.resident.kib(|host| self.memory.contains(host)),
            full_disks: self.machine.full_disks(),
            network: self.net.as_ref().map(|net| network_use(&lock(net))),
        }
    }
}

/// Refuses a description that is out of range or does not fit the files.
fn check(spec: &VmSpec, resources: &Resources) -> Result<(), BootError> {
    if !VCPUS.contains(&spec.vcpus) {
        return Err(BootError::request(format!(
            "{} vCPUs are out of range: give {} to {}",
            spec.vcpus,
            VCPUS.start(),
            VCPUS.end()
        )));
    }
    if spec.disks.len() > MAX_DISKS {
        return Err(BootError::request(format!(
            "{} disks are too many: give at most {MAX_DISKS}",
            spec.disks.len()
        )));
    }
    for (index, disk) in spec.disks.iter().enumerate() {
        let len = disk.id.len();
        if len > MAX_DISK_ID {
            return Err(BootError::request(format!(
                "the identifier of disk {index} has {len} bytes: give at most {MAX_DISK_ID}"
            )));
        }
    }
    let given = resources.disks.len();
    if spec.disks.len() != given {
        return Err(BootError::request(format!(
            "{} disks were described but {given} given",
            spec.disks.len()
        )));
    }
    if resources.console.is_none() && spec.console != Console::Off {
        return Err(BootError::request(
            "a console was asked for, but there is nowhere to print",
        ));
    }
    Ok(())
}

/// Locks; a poisoned lock cannot be in a process that aborts on panic.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An event descriptor of the kind that all parts use.
pub(crate) fn eventfd() -> Result<EventFd, BootError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
        .map_err(|e| BootError::host("make an event descriptor", &e))
}

/// Another descriptor of the same event.
pub(crate) fn clone(event: &EventFd) -> Result<EventFd, BootError> {
    event
        .try_clone()
        .map_err(|e| BootError::host("copy an event descriptor", &e))
}

/// A disk that cannot be used.
pub(crate) fn bad_disk(index: usize, error: &dyn std::error::Error) -> BootError {
    BootError::new(
        BootFailureKind::Disk,
        format!("disk {index} cannot be used: {error}"),
    )
}

/// `phase`, now.
#[must_use]
pub fn stamp(phase: Phase) -> Stamp {
    Stamp {
        phase,
        at_ns: now_ns(),
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
#[must_use]
#[allow(unsafe_code)] // std's `Instant` does not tell its number.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to `now`. This clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
mod tests;
