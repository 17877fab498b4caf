//! Saving and restoring.

use super::*;
use crate::state::RestoreError;
use crate::transport::TransportState;

/// At every step of its life a device can move to another process.
#[test]
fn a_device_moves_at_every_step() {
    let mut machine = machine();
    let fresh = || Probe {
        features: OFFERED,
        ..Probe::default()
    };
    machine = machine.migrate(fresh());
    machine.set_status(1);
    machine = machine.migrate(fresh());
    machine.set_status(3);
    machine.write(reg::DRIVER_FEATURES_SEL, 1);
    machine = machine.migrate(fresh());
    machine.write(reg::DRIVER_FEATURES, 1);
    machine = machine.migrate(fresh());
    assert_eq!(machine.set_status(11), 11);
    machine.write(reg::QUEUE_SEL, 1);
    machine.write(reg::QUEUE_DESC_LOW, 0x2_0000);
    machine.write(reg::QUEUE_NUM, 3);
    machine = machine.migrate(fresh());
    assert_eq!(machine.set_up_queue(1, 8, PARTS), 1);
    machine = machine.migrate(fresh());
    assert_eq!(machine.read(reg::QUEUE_READY), 1);
    assert_eq!(machine.set_status(15), 15);
    machine = machine.migrate(fresh());

    assert_eq!(machine.status(), 15);
    let kicks = {
        machine.run();
        machine.device().kicks.clone()
    };
    assert_eq!(kicks, [1], "a kick may have been lost on the way");
    let device = machine.device();
    let active = device.active.as_ref().unwrap();
    assert_eq!(active.features, VERSION_1);
    assert_eq!(active.queues[1].state().desc_table, PARTS[0]);
    assert!(!active.queues[0].state().ready);
}

/// An interrupt that was not acknowledged is raised again.
#[test]
fn pending_interrupts_move() {
    let machine = live();
    let interrupt = machine.device().active.as_ref().unwrap().interrupt.clone();
    interrupt.signal_used().unwrap();
    let machine = machine.migrate(Probe {
        features: OFFERED,
        ..Probe::default()
    });
    assert_eq!(machine.read(reg::INTERRUPT_STATUS), 1);
    assert_eq!(machine.interrupts(), 1);
}

/// A device that waits for its reset still does.
#[test]
fn a_broken_device_moves() {
    let fresh = || Probe {
        features: OFFERED,
        ..Probe::default()
    };
    let machine = live();
    machine
        .device()
        .active
        .as_ref()
        .unwrap()
        .interrupt
        .needs_reset();
    let machine = machine.migrate(fresh());
    assert_eq!(machine.status(), 15 | 64);

    let mut machine = self::machine();
    machine.device().refuses = true;
    machine.negotiate(VERSION_1);
    machine.set_status(15);
    let mut machine = machine.migrate(fresh());
    assert_eq!(machine.status(), 15 | 64);
    assert!(machine.device().active.is_none());
    assert_eq!(machine.set_status(0), 0);
}

/// States that no device can have been in are refused, and leave a device that
/// works.
#[test]
fn contradictions_are_refused() {
    type Spoil = fn(&mut TransportState);
    let spoil: [(&str, Spoil); 13] = [
        ("status", |s| s.status = 7),
        ("reserved status", |s| s.status = 15 | 16),
        ("features", |s| s.driver_features |= 1 << 40),
        ("no VERSION_1", |s| s.driver_features &= !VERSION_1),
        ("unknown features", |s| s.accepts_unknown = true),
        ("interrupt", |s| s.interrupt_status = 4),
        ("queue count", |s| s.setups.truncate(1)),
        ("queue size", |s| s.setups[0].size = 3),
        ("queue place", |s| s.setups[0].desc_table = 1 << 40),
        ("ready too early", |s| s.status = 3),
        ("live queue size", |s| s.queues[0].size = 8),
        ("live queue place", |s| s.queues[0].used_ring += 64),
        ("no live queues", |s| s.queues.clear()),
    ];
    let machine = live();
    let good = machine.transport.save();
    for (what, spoil) in spoil {
        let mut state = good.clone();
        spoil(&mut state);
        let mut target = self::machine();
        let fresh = target.transport.save();
        let result = target.transport.restore(&state);
        assert!(
            matches!(result, Err(RestoreError::Invalid { .. })),
            "{what}"
        );
        assert_eq!(target.transport.save(), fresh, "{what}");
        target.transport.restore(&good).unwrap();
        assert_eq!(target.transport.save(), good);
    }
}

/// Queues that a driver does without have nothing to agree on.
#[test]
fn a_device_moves_without_all_of_its_queues() {
    let fresh = || Probe {
        features: OFFERED,
        ..Probe::default()
    };
    let mut machine = machine();
    machine.set_status(1);
    machine.set_status(3);
    machine.write(reg::DRIVER_FEATURES, 1 << 29);
    machine.write(reg::DRIVER_FEATURES_SEL, 1);
    machine.write(reg::DRIVER_FEATURES, 1);
    assert_eq!(machine.set_status(11), 11);
    assert_eq!(machine.set_up_queue(1, 8, PARTS), 1);
    assert_eq!(machine.set_status(15), 15);
    let machine = machine.migrate(fresh());
    let device = machine.device();
    let active = device.active.as_ref().unwrap();
    assert_eq!(active.features, VERSION_1 | 1 << 29);
    assert!(!active.queues[0].state().ready);
    assert!(active.queues[1].state().event_idx_enabled);
}
