//! The threads in which vCPUs run, and how they are stopped.
#![allow(unsafe_code)] // Signals a thread and writes a byte of memory shared with KVM.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use flashpan_protocol::control::ExitReason;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use super::state::{self, StateError, VcpuState};
use crate::error::BootError;
use crate::machine::Machine;
use crate::state::MachineStateError;

/// Stack of a vCPU thread: device emulation nests little.
const STACK: usize = 256 * 1024;

/// What the vCPUs of a VM shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Stand still between two instructions.
    Paused,
    Running,
    /// A vCPU has ended the machine: stand still for good. The others learn of
    /// it when they are paused.
    Ended,
    /// Leave the thread.
    Stopped,
}

impl Mode {
    fn stands(self) -> bool {
        matches!(self, Self::Paused | Self::Ended)
    }
}

#[derive(Debug)]
struct Shared {
    mode: Mode,
    /// How many threads stand still.
    standing: usize,
    /// What each thread is to do with its vCPU while it stands still.
    tasks: Vec<Option<Task>>,
}

/// What a thread does with its vCPU while it stands still.
#[derive(Debug)]
enum Task {
    /// Save these MSRs and all else.
    Save(Vec<u32>),
    Saved(Result<Box<VcpuState>, StateError>),
    Restore(Box<VcpuState>),
    Restored(Result<(), StateError>),
}

impl Task {
    fn perform(self, vcpu: &VcpuFd) -> Self {
        match self {
            Self::Save(msrs) => Self::Saved(state::save(vcpu, &msrs).map(Box::new)),
            Self::Restore(saved) => {
                let restored = state::restore(vcpu, &saved);
                tell_of_pause(vcpu);
                Self::Restored(restored)
            }
            done => done,
        }
    }

    fn is_done(&self) -> bool {
        matches!(self, Self::Saved(_) | Self::Restored(_))
    }
}

/// The order to the vCPUs of one VM and their answers.
#[derive(Debug)]
struct Orders {
    shared: Mutex<Shared>,
    changed: Condvar,
}

impl Orders {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A thread that panicked has ended the process (panic = "abort"); in
        // tests the state is still meaningful.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, mode: Mode) {
        let mut shared = self.lock();
        match (shared.mode, mode) {
            // Nothing leads back from these.
            (Mode::Stopped, _) | (Mode::Ended, Mode::Paused | Mode::Running) => {}
            _ => shared.mode = mode,
        }
        self.changed.notify_all();
    }
}

/// `kvm_run.immediate_exit` of a vCPU: KVM reads it before it enters the
/// guest and returns at once if it is set.
struct ImmediateExit(*const AtomicU8);

// SAFETY: the byte is only accessed atomically, from whatever thread.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

struct Thread {
    /// Gives the `VcpuFd` back at its end: with it the mapping that
    /// `immediate_exit` points into lives until the thread is joined.
    handle: JoinHandle<VcpuFd>,
    immediate_exit: ImmediateExit,
}

/// All vCPUs of a VM, standing still until they are told to run.
pub struct Vcpus {
    orders: Arc<Orders>,
    threads: Vec<Thread>,
}

impl std::fmt::Debug for Vcpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vcpus")
            .field("count", &self.threads.len())
            .finish_non_exhaustive()
    }
}

/// The signal that takes a thread out of the guest.
fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Vcpus {
    /// Starts a thread for each vCPU. They do not enter the guest yet, but are
    /// through with what a thread's start asks of the host, which a jail may
    /// take away after this.
    ///
    /// # Errors
    /// If the host refuses a thread or a signal handler.
    pub(crate) fn start(vcpus: Vec<VcpuFd>, machine: &Arc<Machine>) -> Result<Self, BootError> {
        register_signal_handler(kick_signal(), on_kick)
            .map_err(|e| BootError::host("install the signal handler for vCPUs", &e.into()))?;
        let shared = Shared {
            mode: Mode::Paused,
            standing: 0,
            tasks: vcpus.iter().map(|_| None).collect(),
        };
        let orders = Arc::new(Orders {
            shared: Mutex::new(shared),
            changed: Condvar::new(),
        });
        let mut this = Self {
            orders,
            threads: Vec::new(),
        };
        for (id, mut vcpu) in vcpus.into_iter().enumerate() {
            let byte: *mut u8 = &raw mut vcpu.get_kvm_run().immediate_exit;
            let immediate_exit = ImmediateExit(byte.cast_const().cast());
            let (orders, machine) = (Arc::clone(&this.orders), Arc::clone(machine));
            let handle = std::thread::Builder::new()
                .name(format!("vcpu{id}"))
                .stack_size(STACK)
                .spawn(move || {
                    // Whoever made the machine may have blocked the signal, and
                    // threads inherit that. Fails only for what is no signal.
                    let _ = unblock_signal(kick_signal());
                    run(id, &mut vcpu, &orders, &machine);
                    vcpu
                })
                .map_err(|e| BootError::host("start a vCPU thread", &e))?;
            this.threads.push(Thread {
                handle,
                immediate_exit,
            });
        }
        this.wait_until_standing();
        Ok(this)
    }

    /// Lets the vCPUs run.
    pub(crate) fn resume(&self) {
        for thread in &self.threads {
            thread.set_immediate_exit(0);
        }
        self.orders.set(Mode::Running);
    }

    /// Asks the vCPUs to stand still and waits until they do.
    pub(crate) fn pause(&self) {
        self.orders.set(Mode::Paused);
        self.kick();
        self.wait_until_standing();
    }

    /// Waits until all vCPUs stand still, unless they are told to do otherwise.
    fn wait_until_standing(&self) {
        let mut shared = self.orders.lock();
        while shared.mode.stands() && shared.standing < self.threads.len() {
            shared = self
                .orders
                .changed
                .wait(shared)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The state of every vCPU. They must stand still: see [`Self::pause`].
    ///
    /// # Errors
    /// If KVM does not give a register, they are running, or one has ended the
    /// machine.
    pub(crate) fn save(&self, msrs: &[u32]) -> Result<Vec<VcpuState>, MachineStateError> {
        let tasks = self
            .threads
            .iter()
            .map(|_| Task::Save(msrs.to_vec()))
            .collect();
        self.perform(tasks)?
            .into_iter()
            .filter_map(|task| match task {
                Task::Saved(result) => Some(result.map(|state| *state).map_err(Into::into)),
                _ => None,
            })
            .collect()
    }

    /// Gives every vCPU a saved state. They must stand still.
    ///
    /// # Errors
    /// If KVM refuses a register, or there are more or fewer states.
    pub(crate) fn restore(&self, states: &[VcpuState]) -> Result<(), MachineStateError> {
        let (saved, here) = (states.len(), self.threads.len());
        if saved != here {
            return Err(MachineStateError::Mismatch {
                what: "vCPUs",
                saved,
                here,
            });
        }
        let tasks = states
            .iter()
            .map(|state| Task::Restore(Box::new(state.clone())))
            .collect();
        for task in self.perform(tasks)? {
            if let Task::Restored(result) = task {
                result?;
            }
        }
        Ok(())
    }

    /// Has every thread do its task, and waits.
    fn perform(&self, tasks: Vec<Task>) -> Result<Vec<Task>, MachineStateError> {
        let mut shared = self.orders.lock();
        match shared.mode {
            Mode::Paused if shared.standing == self.threads.len() => {}
            Mode::Paused | Mode::Running => return Err(StateError::Running.into()),
            Mode::Ended | Mode::Stopped => return Err(MachineStateError::Ended),
        }
        shared.tasks = tasks.into_iter().map(Some).collect();
        self.orders.changed.notify_all();
        while shared.tasks.iter().flatten().any(|task| !task.is_done()) {
            shared = self
                .orders
                .changed
                .wait(shared)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(shared.tasks.iter_mut().filter_map(Option::take).collect())
    }

    /// Takes every vCPU out of the guest, now or when it next enters.
    fn kick(&self) {
        for thread in &self.threads {
            thread.set_immediate_exit(1);
            // SAFETY: the thread is not joined yet, so its id is valid; the
            // signal has a handler that does nothing.
            unsafe { libc::pthread_kill(thread.handle.as_pthread_t(), kick_signal()) };
        }
    }
}

impl Thread {
    fn set_immediate_exit(&self, value: u8) {
        // SAFETY: the pointer is into the mapping of the `VcpuFd` that the
        // thread owns or has returned into `handle`; both live as long as
        // `self`. KVM and we access this one byte as a whole.
        unsafe { &*self.immediate_exit.0 }.store(value, Ordering::SeqCst);
    }
}

impl Drop for Vcpus {
    /// Stops and joins all threads.
    fn drop(&mut self) {
        self.orders.set(Mode::Stopped);
        self.kick();
        for thread in self.threads.drain(..) {
            drop(thread.handle.join());
        }
    }
}

/// The life of a vCPU thread.
fn run(id: usize, vcpu: &mut VcpuFd, orders: &Orders, machine: &Machine) {
    loop {
        if !wait_for_order(id, vcpu, orders) {
            return;
        }
        loop {
            match enter(vcpu, machine) {
                Next::Enter => {}
                Next::AskOrders => break,
                Next::End(reason) => {
                    // This vCPU must not enter the guest again; the event loop
                    // sees to the others.
                    orders.set(Mode::Ended);
                    machine.end(reason);
                    break;
                }
            }
        }
    }
}

/// Stands still while that is the order; false when the thread shall end.
fn wait_for_order(id: usize, vcpu: &VcpuFd, orders: &Orders) -> bool {
    let mut shared = orders.lock();
    if shared.mode.stands() {
        tell_of_pause(vcpu);
        shared.standing += 1;
        orders.changed.notify_all();
        while shared.mode.stands() {
            if let Some(slot) = shared.tasks.get_mut(id)
                && let Some(task) = slot.take_if(|task| !task.is_done())
            {
                *slot = Some(task.perform(vcpu));
                orders.changed.notify_all();
            }
            shared = orders
                .changed
                .wait(shared)
                .unwrap_or_else(PoisonError::into_inner);
        }
        shared.standing -= 1;
    }
    shared.mode == Mode::Running
}

/// Has KVM tell the guest, in its clock, that it stood still, so that its
/// watchdogs do not take the time for its own.
fn tell_of_pause(vcpu: &VcpuFd) {
    // Refused if the guest does not use that clock.
    let _ = vcpu.kvmclock_ctrl();
}

/// What to do after a VM exit.
enum Next {
    Enter,
    AskOrders,
    End(ExitReason),
}

/// Enters the guest once and handles what it came out for.
fn enter(vcpu: &mut VcpuFd, machine: &Machine) -> Next {
    match vcpu.run() {
        Ok(VcpuExit::IoIn(port, data)) => {
            machine.port_read(port, data);
            Next::Enter
        }
        Ok(VcpuExit::IoOut(port, data)) => match machine.port_write(port, data) {
            None => Next::Enter,
            Some(reason) => Next::End(reason),
        },
        Ok(VcpuExit::MmioRead(address, data)) => {
            machine.mmio_read(address, data);
            Next::Enter
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            machine.mmio_write(address, data);
            Next::Enter
        }
        Ok(VcpuExit::Shutdown) => Next::End(ExitReason::TripleFault),
        Ok(VcpuExit::Hlt) => Next::End(ExitReason::KvmError(
            "a vCPU halted for good although interrupts are KVM's".to_owned(),
        )),
        Ok(VcpuExit::FailEntry(reason, cpu)) => Next::End(ExitReason::KvmError(format!(
            "the CPU refused to enter the guest (hardware reason {reason:#x} on CPU {cpu})"
        ))),
        Ok(VcpuExit::InternalError) => Next::End(internal_error(vcpu)),
        Ok(VcpuExit::Intr) => {
            machine.counters.interrupted();
            Next::AskOrders
        }
        Ok(other) => Next::End(ExitReason::KvmError(format!(
            "KVM returned an exit we did not ask for: {other:?}"
        ))),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            machine.counters.interrupted();
            Next::AskOrders
        }
        Err(error) => Next::End(ExitReason::KvmError(format!(
            "KVM could not run a vCPU: {}",
            io::Error::from_raw_os_error(error.errno())
        ))),
    }
}

/// What KVM says of a fault of its own, with where the guest was.
fn internal_error(vcpu: &mut VcpuFd) -> ExitReason {
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which KVM has
    // filled this member of the union.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal }.suberror;
    let what = match suberror {
        1 => "it could not emulate an instruction",
        2 => "it met an unexpected event while delivering another",
        3 => "it got an exit that it does not know",
        _ => "of an unknown kind",
    };
    let place = vcpu
        .get_regs()
        .map_or_else(|_| String::new(), |r| format!(" at rip {:#x}", r.rip));
    ExitReason::KvmError(format!("KVM internal error {suberror}: {what}{place}"))
}
