//! Machines without Linux: a kernel of a few instructions, and what is needed to
//! watch it from outside.
//!
//! [`COUNT`], [`SPIN`], [`CLOCK`], [`LEAVE`] and [`PAIR`] only compute and use
//! I/O ports, which even a KVM does that runs no ordinary guest; [`DRIVE`]
//! drives a device.
#![allow(unsafe_code)] // Assembles the kernels, and tells where they are.

use std::arch::asm;
use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use flashpan_protocol::control::{BootProtocol, Console, IoRate, VmSpec};
use flashpan_protocol::phase::{EXIT_PORT, FIRST_USER_CODE, PHASE_PORT};
use flashpan_vmm::memory::GuestMemory;
use flashpan_vmm::{Host, Observer, Resources, Vm, VmEvent};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How long anything here may take.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Where a payload is loaded and entered, in 64-bit mode.
const ENTRY: u64 = 0x10_0000;

/// Guest memory of these machines, in MiB.
const MEMORY_MIB: u32 = 32;

/// The code between the two labels, which is never run here.
macro_rules! code {
    ($name:ident, $doc:literal, $($line:literal),+ $(, const $constant:ident)* $(,)?) => {
        #[doc = $doc]
        pub const $name: fn() -> &'static [u8] = || {
            let (start, end): (*const u8, *const u8);
            // SAFETY: only takes two addresses and jumps over the code.
            unsafe {
                asm!(
                    "lea {start}, [rip + 22f]",
                    "lea {end}, [rip + 33f]",
                    "jmp 33f",
                    "22:",
                    $($line,)+
                    "33:",
                    start = out(reg) start,
                    end = out(reg) end,
                    $($constant = const $constant,)*
                    options(nomem, nostack, preserves_flags)
                );
            }
            // SAFETY: both are addresses in the text of this program, in order.
            unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
        };
    };
}

code!(
    COUNT,
    "Counts in a register, and marks the lower seven bits of each count.",
    "xor ecx, ecx",
    "44: mov eax, ecx",
    "or al, {FIRST_USER_CODE}",
    "mov dx, {PHASE_PORT}",
    "out dx, al",
    "inc ecx",
    "jmp 44b",
    const FIRST_USER_CODE,
    const PHASE_PORT,
);

code!(
    SPIN,
    "Marks once, and then leaves the guest for nothing but a signal.",
    "mov al, {FIRST_USER_CODE}",
    "mov dx, {PHASE_PORT}",
    "out dx, al",
    "44: jmp 44b",
    const FIRST_USER_CODE,
    const PHASE_PORT,
);

code!(
    LEAVE,
    "Marks once, and then asks for power-off.",
    "mov al, {FIRST_USER_CODE}",
    "mov dx, {PHASE_PORT}",
    "out dx, al",
    "mov al, 1",
    "mov dx, {EXIT_PORT}",
    "out dx, al",
    "44: jmp 44b",
    const FIRST_USER_CODE,
    const PHASE_PORT,
    const EXIT_PORT,
);

/// Where [`CLOCK`] has its clock.
pub const CLOCK_PAGE: u64 = 0x20_0000;

code!(
    CLOCK,
    "Has KVM keep a clock at [`CLOCK_PAGE`], and then does as [`COUNT`].",
    "mov ecx, 0x4b564d01", // MSR_KVM_SYSTEM_TIME_NEW
    "mov eax, 0x200001",
    "xor edx, edx",
    "wrmsr",
    "xor ecx, ecx",
    "44: mov eax, ecx",
    "or al, {FIRST_USER_CODE}",
    "mov dx, {PHASE_PORT}",
    "out dx, al",
    "inc ecx",
    "jmp 44b",
    const FIRST_USER_CODE,
    const PHASE_PORT,
);

code!(
    PAIR,
    "Starts a second processor; each counts in a register of its own, and marks \
     six bits of each count, the first from code 128 on, the second from 192 on.",
    // The second processor's code goes to the page that it is started at.
    "lea rsi, [rip + 66f]",
    "mov edi, 0x30000",
    "mov ecx, 64",
    "rep movsb",
    // By the local APIC as registers: INIT, start-up at page 0x30.
    "mov ecx, 0x1b",
    "rdmsr",
    "or eax, 0xc00",
    "wrmsr",
    "mov ecx, 0x830",
    "mov edx, 1",
    "mov eax, 0x4500",
    "wrmsr",
    "mov eax, 0x4630",
    "wrmsr",
    "xor ecx, ecx",
    "44: mov eax, ecx",
    "and al, 0x3f",
    "or al, 0x80",
    "mov dx, {PHASE_PORT}",
    "out dx, al",
    "inc ecx",
    "jmp 44b",
    ".code16",
    "66: xor cx, cx",
    "55: mov al, cl",
    "or al, 0xc0",
    "mov dx, {PHASE_PORT}",
    "out dx, al",
    "inc cx",
    "jmp 55b",
    ".code64",
    const PHASE_PORT,
);

/// Where the available and the used ring of [`DRIVE`] are.
pub const AVAIL_RING: u64 = 0x20_1000;
/// See [`AVAIL_RING`].
pub const USED_RING: u64 = 0x20_2000;

code!(
    DRIVE,
    "Drives the entropy device in slot 1: asks for one buffer at a time, kicks, \
     marks the lower seven bits of the available index, and waits for the used \
     index to follow.",
    // The gigabyte at 3 GiB, where the devices are, by a page of 1 GiB.
    "mov rax, 0xc0000083",
    "mov ebx, 0xa018",
    "mov [rbx], rax",
    "mov rax, cr3",
    "mov cr3, rax",
    "mov edi, 0xd0001000",
    // Status up to FEATURES_OK with VERSION_1 alone.
    "mov dword ptr [rdi + 0x70], 0",
    "mov dword ptr [rdi + 0x70], 1",
    "mov dword ptr [rdi + 0x70], 3",
    "mov dword ptr [rdi + 0x24], 1",
    "mov dword ptr [rdi + 0x20], 1",
    "mov dword ptr [rdi + 0x70], 11",
    // One queue of eight, and go.
    "mov dword ptr [rdi + 0x30], 0",
    "mov dword ptr [rdi + 0x38], 8",
    "mov dword ptr [rdi + 0x80], 0x200000",
    "mov dword ptr [rdi + 0x90], 0x201000",
    "mov dword ptr [rdi + 0xa0], 0x202000",
    "mov dword ptr [rdi + 0x44], 1",
    "mov dword ptr [rdi + 0x70], 15",
    // One descriptor: 64 bytes to be written.
    "mov ebx, 0x200000",
    "mov qword ptr [rbx], 0x203000",
    "mov dword ptr [rbx + 8], 64",
    "mov dword ptr [rbx + 12], 2",
    "44: inc word ptr [rbx + 0x1002]",
    "mfence",
    "mov dword ptr [rdi + 0x50], 0",
    "mov al, [rbx + 0x1002]",
    "or al, 0x80",
    "mov dx, {PHASE_PORT}",
    "out dx, al",
    "55: pause",
    "mov ax, [rbx + 0x1002]",
    "cmp ax, [rbx + 0x2002]",
    "jne 55b",
    "jmp 44b",
    const PHASE_PORT,
);

/// A file that is a kernel of this code.
fn kernel(code: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    let len = u64::try_from(code.len()).unwrap();
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend(2_u16.to_le_bytes()); // executable
    image.extend(62_u16.to_le_bytes()); // x86-64
    image.extend(1_u32.to_le_bytes());
    for word in [ENTRY, 64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    image.extend(1_u32.to_le_bytes()); // loadable
    image.extend(7_u32.to_le_bytes());
    for word in [120, ENTRY, ENTRY, len, len, 0x1000] {
        image.extend(word.to_le_bytes());
    }
    image.extend(code);
    file.write_all(&image).unwrap();
    file
}

/// What a machine of these is built from, jailed or not.
#[must_use]
pub fn parts(code: fn() -> &'static [u8], vcpus: u8, shared: bool) -> (VmSpec, Resources) {
    let spec = VmSpec {
        vcpus,
        memory_mib: MEMORY_MIB,
        boot_protocol: BootProtocol::Linux64,
        initramfs: false,
        console: Console::Off,
        kernel_args: String::new(),
        disks: Vec::new(),
        rng: true,
        network: None,
        network_rate: IoRate::default(),
        shared_memory: shared,
    };
    let resources = Resources {
        kernel: kernel(code()),
        initramfs: None,
        console: None,
        disks: Vec::new(),
    };
    (spec, resources)
}

/// Passes events on to the test.
struct Tell(Mutex<Sender<VmEvent>>);

impl Observer for Tell {
    fn event(&self, event: VmEvent) {
        // The test may have seen enough.
        let _ = self.0.lock().unwrap().send(event);
    }
}

/// A machine that was not yet run, and what it tells.
#[must_use]
pub fn machine(code: fn() -> &'static [u8], vcpus: u8) -> (Vm, Receiver<VmEvent>) {
    let (spec, resources) = parts(code, vcpus, false);
    let (sender, events) = channel();
    let observer = Arc::new(Tell(Mutex::new(sender)));
    let vm = Vm::boot(Host::open().unwrap(), &spec, resources, observer).unwrap();
    (vm, events)
}

/// The codes marked up to an event of another kind, at most `count`.
pub fn codes(
    events: &Receiver<VmEvent>,
    until: impl Fn(&VmEvent) -> bool,
    count: usize,
) -> Vec<u8> {
    let mut codes = Vec::new();
    while codes.len() < count {
        match events.recv_timeout(DEADLINE) {
            Ok(VmEvent::UserPhase { code, .. }) => codes.push(code),
            Ok(event) if until(&event) => return codes,
            Ok(_) => {}
            Err(error) => panic!("no event: {error}"),
        }
    }
    codes
}

/// All of a machine's memory, by address.
#[must_use]
pub fn contents(memory: &GuestMemory) -> Vec<(u64, Vec<u8>)> {
    let mut contents = Vec::new();
    for (address, len) in memory.layout() {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        memory.read(address, &mut bytes).unwrap();
        contents.push((address, bytes));
    }
    contents
}

/// A subscriber that keeps an event loop from turning.
#[derive(Debug)]
pub struct Blocker {
    trigger: EventFd,
    entered: Sender<()>,
    release: Receiver<()>,
}

/// The other end of a [`Blocker`].
#[derive(Debug)]
pub struct Block {
    trigger: EventFd,
    entered: Receiver<()>,
    release: Sender<()>,
}

impl Blocker {
    /// A subscriber and what controls it.
    #[must_use]
    pub fn new() -> (Self, Block) {
        let trigger = EventFd::new(EFD_NONBLOCK).unwrap();
        let (entered, has_entered) = channel();
        let (release, released) = channel();
        let block = Block {
            trigger: trigger.try_clone().unwrap(),
            entered: has_entered,
            release,
        };
        let blocker = Self {
            trigger,
            entered,
            release: released,
        };
        (blocker, block)
    }
}

impl MutEventSubscriber for Blocker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        ops.add(Events::new(&self.trigger, EventSet::IN)).unwrap();
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.trigger.read().unwrap();
        self.entered.send(()).unwrap();
        // A test that has failed does not let go.
        let _ = self.release.recv();
    }
}

impl Block {
    /// Has the loop stop when it next comes to the subscriber.
    pub fn ask(&self) {
        self.trigger.write(1).unwrap();
    }

    /// Waits until it has stopped.
    pub fn wait(&self) {
        self.entered.recv_timeout(DEADLINE).unwrap();
    }

    /// Lets it go on.
    pub fn release(&self) {
        self.release.send(()).unwrap();
    }
}
