//! The VMM as a library: a machine is paused, saved, and goes on in another
//! machine exactly where it was.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::mpsc::channel;
use std::thread;

use flashpan_protocol::control::ExitReason;
use flashpan_protocol::phase::FIRST_USER_CODE;
use flashpan_tests::payload::{COUNT, DEADLINE, PAIR, codes, contents, machine};
use flashpan_vmm::state::VmState;
use flashpan_vmm::{Command, VmEvent};

/// Marks that are looked at after the machine was restored.
const MARKS: usize = 500;

/// Runs a machine until it has marked `first` codes, saves it, ends it, and goes
/// on in another. The codes marked by both, until there are `count`.
fn moved(code: fn() -> &'static [u8], vcpus: u8, first: usize, count: usize) -> Vec<u8> {
    let (mut vm, events) = machine(code, vcpus);
    let memory = vm.memory().clone();
    let handle = vm.handle().unwrap();
    let running = thread::spawn(move || vm.run());
    // Somewhere in the middle: wherever the pause hits.
    let mut seen = codes(&events, |_| false, first);
    handle.send(Command::Pause);
    let paused = |event: &VmEvent| matches!(event, VmEvent::Paused);
    seen.extend(codes(&events, paused, usize::MAX));
    let (reply, answer) = channel();
    handle.send(Command::Save(reply));
    let state = answer.recv_timeout(DEADLINE).unwrap().unwrap();
    let contents = contents(&memory);
    handle.send(Command::End(ExitReason::Killed));
    assert_eq!(running.join().unwrap().reason, ExitReason::Killed);

    // Through bytes, as a file would hold it.
    let state: VmState = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    let (mut vm, events) = machine(code, vcpus);
    for (address, bytes) in contents {
        vm.memory().write(address, &bytes).unwrap();
    }
    vm.restore(&state).unwrap();
    let handle = vm.handle().unwrap();
    let running = thread::spawn(move || vm.run());
    seen.extend(codes(&events, |_| false, count));
    handle.send(Command::End(ExitReason::Killed));
    assert_eq!(running.join().unwrap().reason, ExitReason::Killed);
    seen
}

#[test]
fn a_saved_machine_goes_on_in_another_where_it_was() {
    let seen = moved(COUNT, 1, 1, MARKS);
    for pair in seen.windows(2) {
        let next = (pair[0].wrapping_add(1)) | FIRST_USER_CODE;
        assert_eq!(pair[1], next, "a mark was lost or made twice");
    }
}

/// Both processors are somewhere in the middle, and each goes on from there.
#[test]
fn a_saved_machine_with_two_processors_goes_on_in_another() {
    // The second one starts some time after the first.
    let seen = moved(PAIR, 2, 20 * MARKS, 20 * MARKS);
    for which in [0x80, 0xc0] {
        let of: Vec<u8> = (seen.iter().copied())
            .filter(|code| code & 0xc0 == which)
            .collect();
        assert!(of.len() > MARKS, "{} marks from {which:#x} on", of.len());
        for pair in of.windows(2) {
            let next = (pair[0] & 0x3f).wrapping_add(1) & 0x3f | which;
            assert_eq!(pair[1], next, "a mark was lost or made twice");
        }
    }
}

#[test]
fn a_running_machine_is_not_saved() {
    let (mut vm, events) = machine(COUNT, 1);
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
    let (vm, _events) = machine(COUNT, 1);
    let mut state: serde_json::Value = serde_json::to_value(vm.save().unwrap()).unwrap();
    let vcpus = state["vcpus"].as_array_mut().unwrap();
    vcpus.push(vcpus[0].clone());
    let state: VmState = serde_json::from_value(state).unwrap();
    drop(vm);
    let (mut vm, _events) = machine(COUNT, 1);
    let error = vm.restore(&state).unwrap_err().to_string();
    assert_eq!(error, "the saved state has 2 vCPUs, this machine 1");
}
