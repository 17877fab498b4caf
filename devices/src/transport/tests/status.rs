//! The device status.

use super::*;
use crate::transport::status::{Step, is_legal, step};

const ORDER: [u32; 5] = [0, 1, 3, 11, 15];

/// virtio 1.2 §2.1.1, §3.1.1: from each status, every write there is: one bit
/// at a time and in order or the first two at once, `FAILED` at any time, 0 at any
/// time, nothing else.
#[test]
fn every_write_in_every_status() {
    for failed in [0, 128] {
        for (position, plain) in ORDER.into_iter().enumerate() {
            let current = plain | failed;
            for written in 0..0x1000 {
                let expected = if written == 0 {
                    Step::Reset
                } else if written == current {
                    Step::Stay
                } else if failed != 0 {
                    Step::Refuse
                } else if written == current | 128 {
                    Step::Add(128)
                } else if ORDER.get(position + 1) == Some(&written) || (current, written) == (0, 3)
                {
                    Step::Add(written & !current)
                } else {
                    Step::Refuse
                };
                assert_eq!(step(current, written), expected, "{current} to {written}");
            }
        }
    }
}

/// virtio 1.2 §2.1: only what a sequence of writes can lead to is a status.
#[test]
fn legal_statuses() {
    let legal: Vec<u32> = (0..0x200).filter(|&status| is_legal(status)).collect();
    assert_eq!(legal, [0, 1, 3, 11, 15, 128, 129, 131, 139, 143]);
}

/// virtio 1.2 §2.1.1: "The driver MUST NOT clear a device status bit": only a
/// write of 0 does.
#[test]
fn bits_are_not_cleared_by_writes() {
    let mut machine = live();
    for status in [1, 3, 7, 11, 14, 13, 4, 8] {
        assert_eq!(machine.set_status(status), 15, "after a write of {status}");
    }
    assert_eq!(machine.device().resets, 0);
    assert_eq!(machine.device().activations, 1);
}

/// virtio 1.2 §2.1: bits 4 and 5 and those above 7 are reserved.
#[test]
fn reserved_bits_are_refused() {
    for bit in [4, 5, 8, 15, 16, 31] {
        let mut machine = machine();
        assert_eq!(machine.set_status(1 | 1 << bit), 0);
        machine.set_status(1);
        assert_eq!(machine.set_status(3 | 1 << bit), 1);
    }
}

/// virtio 1.2 §2.1: `DEVICE_NEEDS_RESET` is the device's bit.
#[test]
fn drivers_cannot_set_needs_reset() {
    let mut machine = machine();
    assert_eq!(machine.set_status(0x41), 0);
    machine.set_status(1);
    assert_eq!(machine.set_status(0x43), 1);
}

/// virtio 1.2 §3.1.1: a driver that skips a step does not get anywhere.
#[test]
fn skipped_steps_are_refused() {
    for status in [2, 4, 8, 11, 15] {
        let mut machine = machine();
        assert_eq!(machine.set_status(status), 0, "0 to {status}");
    }
    let mut machine = machine();
    machine.set_status(1);
    for status in [5, 9, 11, 15] {
        assert_eq!(machine.set_status(status), 1, "1 to {status}");
    }
    machine.set_status(3);
    for status in [7, 15] {
        assert_eq!(machine.set_status(status), 3, "3 to {status}");
    }
    assert_eq!(machine.device().activations, 0);
}

/// virtio 1.2 §6.1: a driver without `VIRTIO_F_VERSION_1` is for a legacy
/// device, which this is not.
#[test]
fn features_without_version_1_are_refused() {
    let mut machine = machine();
    assert_eq!(machine.negotiate(OFFERED), 3);
    assert_eq!(machine.set_status(15), 3);
    // It may think better of it (§2.2.2 allows to fail only).
    machine.write(reg::DRIVER_FEATURES_SEL, 1);
    machine.write(reg::DRIVER_FEATURES, 1);
    assert_eq!(machine.set_status(11), 11);
}

/// virtio 1.2 §2.2.1: "The driver MUST NOT accept a feature which the device
/// did not offer."
#[test]
fn features_that_were_not_offered_are_refused() {
    for bit in (0..64).filter(|bit| (OFFERED | VERSION_1) & 1 << bit == 0) {
        let mut machine = machine();
        assert_eq!(machine.negotiate(VERSION_1 | 1 << bit), 3, "bit {bit}");
    }
}

/// virtio 1.2 §2.2.1: nor one beyond bit 63, where none is offered.
#[test]
fn features_beyond_bit_63_are_refused() {
    for sel in [2, 3, u32::MAX] {
        let mut machine = machine();
        machine.set_status(1);
        machine.set_status(3);
        machine.write(reg::DRIVER_FEATURES_SEL, sel);
        machine.write(reg::DRIVER_FEATURES, 0);
        assert_eq!(machine.negotiate(VERSION_1), 11, "no features there");

        machine.set_status(0);
        machine.set_status(1);
        machine.set_status(3);
        machine.write(reg::DRIVER_FEATURES_SEL, sel);
        machine.write(reg::DRIVER_FEATURES, 1);
        assert_eq!(machine.negotiate(VERSION_1), 3, "selector {sel}");
    }
}

/// virtio 1.2 §3.1.1 step 4, §2.2.1: features are chosen between `DRIVER` and
/// `FEATURES_OK`.
#[test]
fn features_are_writable_while_negotiating_only() {
    let mut machine = machine();
    let write = |machine: &mut Machine<Probe>, word| {
        machine.write(reg::DRIVER_FEATURES_SEL, 0);
        machine.write(reg::DRIVER_FEATURES, word);
    };
    write(&mut machine, 0xffff_ffff);
    machine.set_status(1);
    write(&mut machine, 0xffff_ffff);
    // Neither was taken: this is accepted.
    assert_eq!(machine.negotiate(VERSION_1), 11);
    write(&mut machine, OFFERED as u32);
    machine.set_up_queue(0, 16, PARTS);
    machine.set_status(15);
    write(&mut machine, OFFERED as u32);
    let features = machine.device().active.as_ref().unwrap().features;
    assert_eq!(features, VERSION_1);
}

/// virtio 1.2 §4.2.3.1.1: a driver that does not look at `MagicValue`,
/// `Version` and `DeviceID` gets the same device.
#[test]
fn identification_need_not_be_read() {
    let mut machine = machine();
    for status in [1, 3] {
        assert_eq!(machine.set_status(status), status);
    }
    machine.write(reg::DRIVER_FEATURES_SEL, 1);
    machine.write(reg::DRIVER_FEATURES, 1);
    assert_eq!(machine.set_status(11), 11);
    assert_eq!(machine.set_status(15), 15);
}

/// virtio 1.2 §3.1.1 step 8: the device goes live once, with what was
/// negotiated.
#[test]
fn driver_ok_activates_once() {
    let mut machine = live();
    machine.set_status(15);
    let device = machine.device();
    assert_eq!(device.activations, 1);
    let active = device.active.as_ref().unwrap();
    assert_eq!(active.features, OFFERED | VERSION_1);
    assert_eq!(active.queues.len(), 2);
    assert!(active.queues[0].state().ready && active.queues[0].state().event_idx_enabled);
    assert!(!active.queues[1].state().ready, "was not set up");
}

/// virtio 1.2 §2.1.2: a device that cannot start says so.
#[test]
fn a_device_that_does_not_start_needs_a_reset() {
    let mut machine = machine();
    machine.device().refuses = true;
    machine.negotiate(VERSION_1);
    assert_eq!(machine.set_status(15), 15 | 64);
    assert_eq!(machine.interrupts(), 1);
    assert_eq!(machine.read(reg::INTERRUPT_STATUS), 2);
    // Nothing but a reset helps.
    assert_eq!(machine.set_status(15), 15 | 64);
    assert_eq!(machine.set_status(15 | 64), 15 | 64);
    assert_eq!(machine.set_status(64), 15 | 64);
    assert_eq!(machine.device().resets, 0);
    assert_eq!(machine.set_status(0), 0);
    assert_eq!(machine.read(reg::INTERRUPT_STATUS), 0);

    machine.device().refuses = false;
    machine.negotiate(VERSION_1);
    assert_eq!(machine.set_status(15), 15);
}

/// virtio 1.2 §2.1.1: a driver that has given up must reset before it tries
/// again; it writes what it read, plus `FAILED`.
#[test]
fn failed_is_final_until_reset() {
    for status in ORDER {
        let mut machine = live();
        machine.set_status(0);
        if status > 0 {
            machine.set_status(1);
        }
        for next in ORDER.into_iter().filter(|&next| next > 1 && next <= status) {
            if next == 11 {
                machine.negotiate(VERSION_1);
            } else {
                machine.set_status(next);
            }
        }
        assert_eq!(machine.set_status(status | 128), status | 128);
        for next in ORDER.into_iter().skip(1) {
            assert_eq!(machine.set_status(next), status | 128);
            assert_eq!(machine.set_status(next | 128), status | 128);
        }
        assert_eq!(machine.set_status(0), 0);
        assert_eq!(machine.negotiate(VERSION_1), 11);
    }

    let mut machine = live();
    machine
        .device()
        .active
        .as_ref()
        .unwrap()
        .interrupt
        .needs_reset();
    assert_eq!(machine.set_status(15 | 64 | 128), 15 | 64 | 128);
}

/// virtio 1.2 §2.4.1, §4.2.2.1: everything is as after power-on, at once.
#[test]
fn reset_clears_everything() {
    let mut machine = live();
    let fresh = self::machine().transport.save();
    let interrupt = machine.device().active.as_ref().unwrap().interrupt.clone();
    interrupt.signal_used().unwrap();
    interrupt.needs_reset();
    for register in [
        reg::QUEUE_SEL,
        reg::DEVICE_FEATURES_SEL,
        reg::DRIVER_FEATURES_SEL,
    ] {
        machine.write(register, 1);
    }
    machine.write(reg::STATUS, 0);
    assert_eq!(machine.transport.save(), fresh);
    assert!(machine.device().active.is_none());
    assert_eq!(machine.device().resets, 1);
}

/// virtio 1.2 §2.4.1: a reset is possible in every status and any number of
/// times.
#[test]
fn two_resets_back_to_back() {
    let fresh = machine().transport.save();
    for status in ORDER {
        let mut machine = live();
        machine.set_status(0);
        for next in ORDER.into_iter().filter(|&next| next <= status) {
            machine.set_status(next);
        }
        for _ in 0..3 {
            assert_eq!(machine.set_status(0), 0);
            assert_eq!(machine.transport.save(), fresh);
        }
    }
}

/// virtio 1.2 §2.4.1, §3.1.1: after a reset a driver that does not set queues
/// up again has none.
#[test]
fn re_enabled_without_reconfiguring() {
    let mut machine = live();
    machine.set_status(0);
    machine.negotiate(VERSION_1);
    assert_eq!(machine.read(reg::QUEUE_READY), 0);
    machine.write(reg::QUEUE_READY, 1);
    assert_eq!(machine.read(reg::QUEUE_READY), 0, "no addresses any more");
    machine.set_status(15);
    machine.write(reg::QUEUE_NOTIFY, 0);
    machine.run();
    let device = machine.device();
    assert!(device.kicks.is_empty());
    let active = device.active.as_ref().unwrap();
    assert!(active.queues.iter().all(|queue| !queue.state().ready));
}
