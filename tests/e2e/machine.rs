//! The VMM as a library: a machine is paused, saved, and goes on in another
//! machine exactly where it was.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use flashpan_protocol::control::{BootProtocol, Console, ExitReason, VmSpec};
use flashpan_protocol::phase::{FIRST_USER_CODE, PHASE_PORT};
use flashpan_vmm::state::VmState;
use flashpan_vmm::{Command, Host, Observer, Resources, Vm, VmEvent};

const DEADLINE: Duration = Duration::from_secs(60);

/// Where the payload is loaded and entered.
const ENTRY: u64 = 0x10_0000;

/// Marks that are looked at after the machine was restored.
const MARKS: usize = 500;

/// Passes events on to the test.
struct Events(Mutex<Sender<VmEvent>>);

impl Observer for Events {
    fn event(&self, event: VmEvent) {
        // The test may have seen enough.
        let _ = self.0.lock().unwrap().send(event);
    }
}

/// A kernel of a few instructions: counts in a register and marks each count as
/// a phase code of its own, without end.
fn payload() -> File {
    let [phase_low, phase_high] = PHASE_PORT.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0x31, 0xc9, // xor ecx, ecx
        0x89, 0xc8, // again: mov eax, ecx
        0x0c, FIRST_USER_CODE, // or al, 0x80
        0x66, 0xba, phase_low, phase_high, // mov dx, PHASE_PORT
        0xee, // out dx, al
        0xff, 0xc1, // inc ecx
        0xeb, 0xf3, // jmp again
    ];

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

fn machine() -> (Vm, Receiver<VmEvent>) {
    let spec = VmSpec {
        vcpus: 1,
        memory_mib: 32,
        boot_protocol: BootProtocol::Linux64,
        initramfs: false,
        console: Console::Off,
        kernel_args: String::new(),
        disks: Vec::new(),
        rng: true,
        shared_memory: true,
    };
    let resources = Resources {
        kernel: payload(),
        initramfs: None,
        console: None,
        disks: Vec::new(),
    };
    let (sender, events) = channel();
    let observer = Arc::new(Events(Mutex::new(sender)));
    (
        Vm::boot(Host::open().unwrap(), &spec, resources, observer).unwrap(),
        events,
    )
}

/// The machine's memory as a file.
fn memory(vm: &Vm) -> File {
    vm.memory().file().unwrap().try_clone().unwrap()
}

/// The codes marked up to an event of another kind, at most `count`.
fn codes(events: &Receiver<VmEvent>, until: impl Fn(&VmEvent) -> bool, count: usize) -> Vec<u8> {
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

#[test]
fn a_saved_machine_goes_on_in_another_where_it_was() {
    let (mut vm, events) = machine();
    let ram = memory(&vm);
    let handle = vm.handle().unwrap();
    let running = thread::spawn(move || vm.run());
    // Somewhere in the middle: after the first mark, wherever the pause hits.
    let first = codes(&events, |_| false, 1);
    handle.send(Command::Pause);
    let mut seen = codes(
        &events,
        |event| matches!(event, VmEvent::Paused),
        usize::MAX,
    );
    seen.splice(0..0, first);
    let (reply, answer) = channel();
    handle.send(Command::Save(reply));
    let state = answer.recv_timeout(DEADLINE).unwrap().unwrap();
    let mut contents = vec![0; usize::try_from(ram.metadata().unwrap().len()).unwrap()];
    ram.read_exact_at(&mut contents, 0).unwrap();
    handle.send(Command::End(ExitReason::Killed));
    assert_eq!(running.join().unwrap().reason, ExitReason::Killed);

    // Through bytes, as a file would hold it.
    let state: VmState = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    let (mut vm, events) = machine();
    memory(&vm).write_all_at(&contents, 0).unwrap();
    vm.restore(&state).unwrap();
    let handle = vm.handle().unwrap();
    let running = thread::spawn(move || vm.run());
    assert!(
        !seen.is_empty(),
        "the machine was saved before its first mark"
    );
    seen.extend(codes(&events, |_| false, MARKS));
    handle.send(Command::End(ExitReason::Killed));
    assert_eq!(running.join().unwrap().reason, ExitReason::Killed);
    for pair in seen.windows(2) {
        let next = (pair[0].wrapping_add(1)) | FIRST_USER_CODE;
        assert_eq!(pair[1], next, "a mark was lost or made twice");
    }
}

#[test]
fn a_running_machine_is_not_saved() {
    let (mut vm, events) = machine();
    let handle = vm.handle().unwrap();
    let (reply, answer) = channel();
    let running = thread::spawn(move || vm.run());
    handle.send(Command::Save(reply));
    let refused = answer.recv_timeout(DEADLINE).map(|result| result.map(drop));
    handle.send(Command::End(ExitReason::Killed));
    running.join().unwrap();
    drop(events);
    assert!(refused.unwrap().unwrap_err().to_string().contains("pause"));
}

#[test]
fn the_state_of_a_machine_with_more_processors_is_refused() {
    let (vm, _events) = machine();
    let mut state: serde_json::Value = serde_json::to_value(vm.save().unwrap()).unwrap();
    let vcpus = state["vcpus"].as_array_mut().unwrap();
    vcpus.push(vcpus[0].clone());
    let state: VmState = serde_json::from_value(state).unwrap();
    drop(vm);
    let (mut vm, _events) = machine();
    let error = vm.restore(&state).unwrap_err().to_string();
    assert_eq!(error, "the saved state has 2 vCPUs, this machine 1");
}
