//! A machine that stands still, or has ended, with work under way: in its
//! devices, on its processors, in its orders.

#![allow(unsafe_code)] // Blocks a signal as an embedder may have.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use flashpan_protocol::control::ExitReason;
use flashpan_protocol::phase::{ExitRequest, FIRST_USER_CODE};
use flashpan_tests::payload::{
    AVAIL_RING, Blocker, CLOCK, CLOCK_PAGE, DEADLINE, DRIVE, LEAVE, SPIN, USED_RING, codes,
    contents, machine, parts,
};
use flashpan_vmm::memory::GuestMemory;
use flashpan_vmm::{Command, Host, Observer, Vm, VmEvent};
use nix::libc;

fn is_paused(event: &VmEvent) -> bool {
    matches!(event, VmEvent::Paused)
}

fn is_resumed(event: &VmEvent) -> bool {
    matches!(event, VmEvent::Resumed)
}

fn is_stats(event: &VmEvent) -> bool {
    matches!(event, VmEvent::Stats(_))
}

/// The index of a ring.
fn index(memory: &GuestMemory, ring: u64) -> u16 {
    let mut bytes = [0; 2];
    memory.read(ring + 2, &mut bytes).unwrap();
    u16::from_le_bytes(bytes)
}

/// How far a driver has come by its marks, one for each kick.
struct Kicks<'e> {
    events: &'e Receiver<VmEvent>,
    seen: u16,
}

impl Kicks<'_> {
    /// Waits until the driver has kicked for the request of this number.
    fn wait(&mut self, number: u16) {
        while self.seen < number {
            let [code] = codes(self.events, |_| false, 1)[..] else {
                panic!("no mark");
            };
            self.saw(&[code]);
        }
    }

    /// Waits for an event that is not a mark.
    fn wait_for(&mut self, until: fn(&VmEvent) -> bool) {
        let codes = codes(self.events, until, usize::MAX);
        self.saw(&codes);
    }

    fn saw(&mut self, codes: &[u8]) {
        for code in codes {
            self.seen += 1;
            let [low, _] = self.seen.to_le_bytes();
            assert_eq!(*code, low | FIRST_USER_CODE, "a mark was lost");
        }
    }
}

/// A kick that comes while the machine is being paused waits: nothing of memory
/// changes that may be copied by then, and no request is lost, here or in
/// another machine.
#[test]
fn the_devices_of_a_paused_machine_stand_still() {
    let (mut vm, events) = machine(DRIVE, 1);
    let (blocker, block) = Blocker::new();
    // The loop comes to its descriptors in the order in which they became ready. One that was
    // ready in the round before has its place in the next one already: a second stop of the
    // same blocker could come before the driver's kick.
    let (second, again) = Blocker::new();
    vm.subscribe(Box::new(blocker));
    vm.subscribe(Box::new(second));
    let memory = vm.memory().clone();
    let handle = vm.handle().unwrap();
    let running = thread::spawn(move || vm.run());
    let mut kicks = Kicks {
        events: &events,
        seen: 0,
    };
    kicks.wait(3);

    // The loop stands; the driver has one request under way, and no more.
    block.ask();
    block.wait();
    let under_way = index(&memory, USED_RING) + 1;
    kicks.wait(under_way);
    // The loop serves that one (and the next, if the driver is quick), takes the
    // order to pause, and stands again. Meanwhile the driver kicks for one more.
    handle.send(Command::Pause);
    again.ask();
    block.release();
    again.wait();
    let served = index(&memory, USED_RING);
    let last = served + 1;
    kicks.wait(last);
    again.release();
    kicks.wait_for(is_paused);

    // However often the loop turns now, that kick is not served.
    for _ in 0..3 {
        handle.send(Command::Stats);
        kicks.wait_for(is_stats);
        assert_eq!(index(&memory, AVAIL_RING), last);
        assert_eq!(index(&memory, USED_RING), served);
    }
    let (reply, answer) = channel();
    handle.send(Command::Save(reply));
    let state = answer.recv_timeout(DEADLINE).unwrap().unwrap();
    let saved = contents(&memory);

    // It is served once the machine goes on.
    handle.send(Command::Resume);
    kicks.wait_for(is_resumed);
    kicks.wait(last + 2);
    handle.send(Command::End(ExitReason::Killed));
    assert_eq!(running.join().unwrap().reason, ExitReason::Killed);

    // And in another machine, which has that request from the state.
    let (mut vm, events) = machine(DRIVE, 1);
    for (address, bytes) in saved {
        vm.memory().write(address, &bytes).unwrap();
    }
    vm.restore(&state).unwrap();
    let handle = vm.handle().unwrap();
    let running = thread::spawn(move || vm.run());
    let mut kicks = Kicks {
        events: &events,
        seen: last,
    };
    kicks.wait(last + 2);
    handle.send(Command::End(ExitReason::Killed));
    assert_eq!(running.join().unwrap().reason, ExitReason::Killed);
}

/// Keeps the guest from ending before the loop gives the first answer.
struct Hold {
    answered: Mutex<bool>,
    changed: Condvar,
}

impl Observer for Hold {
    fn event(&self, event: VmEvent) {
        let mut answered = self.answered.lock().unwrap();
        match event {
            VmEvent::UserPhase { .. } => {
                while !*answered {
                    answered = self.changed.wait(answered).unwrap();
                }
            }
            VmEvent::Stats(_) => {
                *answered = true;
                self.changed.notify_all();
            }
            _ => {}
        }
    }
}

/// One of two processors ends the machine while the other is in the guest and
/// somebody waits for the state: there is none, but an answer.
#[test]
fn the_state_of_a_machine_that_ends_meanwhile_is_refused() {
    let (spec, resources) = parts(LEAVE, 2, false);
    let hold = Arc::new(Hold {
        answered: Mutex::new(false),
        changed: Condvar::new(),
    });
    let mut vm = Vm::boot(Host::open().unwrap(), &spec, resources, hold).unwrap();
    let handle = vm.handle().unwrap();
    // All at once for the loop. The guest ends while the counters are told, the
    // loop comes to the state without having heard of it.
    for _ in 0..200 {
        handle.send(Command::Stats);
    }
    let (reply, answer) = channel();
    handle.send(Command::Save(reply));
    let running = thread::spawn(move || vm.run());
    let answer = answer.recv_timeout(DEADLINE).expect("an answer");
    let refused = answer.map(drop).unwrap_err().to_string();
    assert_eq!(refused, "the machine has ended");
    let reason = running.join().unwrap().reason;
    assert_eq!(reason, ExitReason::Requested(ExitRequest::PowerOff));
}

/// An embedder may have blocked all signals, as programs do that wait for them
/// in a thread of their own.
#[test]
fn a_machine_stops_although_its_maker_blocks_signals() {
    let (sender, made) = channel();
    let running = thread::spawn(move || {
        // SAFETY: the set is initialised before it is used.
        unsafe {
            let mut all = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        }
        let (mut vm, events) = machine(SPIN, 1);
        sender.send((vm.handle().unwrap(), events)).unwrap();
        vm.run().reason
    });
    let (handle, events) = made.recv_timeout(DEADLINE).unwrap();
    codes(&events, |_| false, 1);
    handle.send(Command::Pause);
    codes(&events, is_paused, usize::MAX);
    handle.send(Command::End(ExitReason::Killed));
    assert_eq!(running.join().unwrap(), ExitReason::Killed);
}

/// The guest's watchdogs are told that time passed without them.
#[test]
fn the_clock_of_a_machine_tells_that_it_was_paused() {
    let (mut vm, events) = machine(CLOCK, 1);
    let memory = vm.memory().clone();
    // `flags` of `struct pvclock_vcpu_time_info`; bit 1 is "guest stopped".
    let stopped = || {
        let mut flags = [0];
        memory.read(CLOCK_PAGE + 29, &mut flags).unwrap();
        flags[0] & 2 != 0
    };
    let handle = vm.handle().unwrap();
    let running = thread::spawn(move || vm.run());
    codes(&events, |_| false, 1);
    assert!(!stopped());
    handle.send(Command::Pause);
    codes(&events, is_paused, usize::MAX);
    handle.send(Command::Resume);
    codes(&events, is_resumed, usize::MAX);
    codes(&events, |_| false, 2);
    assert!(stopped());
    handle.send(Command::End(ExitReason::Killed));
    running.join().unwrap();
}
