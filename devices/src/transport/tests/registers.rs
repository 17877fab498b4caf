//! Widths, directions and fixed contents of registers.

use std::collections::HashSet;

use super::*;
use crate::transport::register_name;
use crate::transport::registers::{Direction, REGISTERS};

/// virtio 1.2 §4.2.2.1: what identifies the device.
#[test]
fn identification_registers() {
    let machine = machine();
    assert_eq!(machine.read(reg::MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(machine.read(reg::VERSION), 2);
    assert_eq!(machine.read(reg::DEVICE_ID), Probe::DEVICE_TYPE);
    assert_ne!(machine.read(reg::VENDOR_ID), 0);
}

/// virtio 1.2 §4.2.2: table 4.1 has each register once, in order, and every
/// offset in the register file has a name.
#[test]
fn register_table_is_sound() {
    let names: HashSet<_> = REGISTERS.iter().map(|register| register.name).collect();
    assert_eq!(names.len(), REGISTERS.len());
    assert!(REGISTERS.is_sorted_by(|a, b| a.offset < b.offset));
    for register in REGISTERS {
        assert_eq!(register_name(register.offset), register.name);
        assert_eq!(register_name(register.offset + 3), register.name);
    }
    assert_eq!(register_name(0x18), "unknown");
    assert_eq!(register_name(0x100), "Config");
    assert_eq!(register_name(u64::MAX), "Config");
}

/// virtio 1.2 §4.2.2.2: registers are accessed by aligned 32-bit reads and
/// writes. The driver's other reads give zero.
#[test]
fn wrong_width_reads_give_zero() {
    let machine = live();
    for offset in 0..reg::CONFIG {
        for width in [0, 1, 2, 3, 4, 5, 8, 16] {
            if width == 4 && offset % 4 == 0 {
                continue;
            }
            let mut data = vec![0xa5; width];
            machine.transport.read(offset, &mut data);
            assert_eq!(data, vec![0; width], "{width} bytes at {offset:#x}");
        }
    }
}

/// virtio 1.2 §4.2.2.2: writes of another width or alignment change nothing.
#[test]
fn wrong_width_writes_are_ignored() {
    let mut machine = negotiated();
    let before = machine.transport.save();
    let mut refused = 0;
    for offset in 0..reg::CONFIG {
        for width in [0, 1, 2, 3, 4, 5, 8, 16] {
            if width == 4 && offset % 4 == 0 {
                continue;
            }
            machine.transport.write(offset, &vec![0; width]);
            machine.transport.write(offset, &vec![0xff; width]);
            refused += 2;
        }
    }
    assert_eq!(machine.transport.save(), before);
    assert_eq!(machine.transport.refused_writes(), refused);
}

/// virtio 1.2 §4.2.2: between the registers there is nothing.
#[test]
fn undefined_offsets_read_zero_and_ignore_writes() {
    let mut machine = negotiated();
    let before = machine.transport.save();
    for offset in (0..reg::CONFIG).step_by(4) {
        if register_name(offset) == "unknown" {
            assert_eq!(machine.read(offset), 0, "{offset:#x}");
            machine.write(offset, 0xffff_ffff);
        }
    }
    assert_eq!(machine.transport.save(), before);
}

/// virtio 1.2 §4.2.2: a write-only register does not tell what it was given.
#[test]
fn write_only_registers_read_zero() {
    let mut machine = negotiated();
    machine.write(reg::QUEUE_SEL, 1);
    machine.write(reg::DRIVER_FEATURES_SEL, 1);
    machine.write(reg::QUEUE_DESC_LOW, 0x1_0000);
    let write_only = REGISTERS
        .iter()
        .filter(|register| register.direction == Direction::WriteOnly);
    for register in write_only {
        assert_eq!(machine.read(register.offset), 0, "{}", register.name);
    }
}

/// virtio 1.2 §4.2.2: a read-only register keeps its content.
#[test]
fn read_only_registers_ignore_writes() {
    let mut machine = live();
    let before = machine.transport.save();
    let read_only = REGISTERS
        .iter()
        .filter(|register| register.direction == Direction::ReadOnly);
    for register in read_only {
        let content = machine.read(register.offset);
        for value in [0, 1, 0xffff_ffff] {
            machine.write(register.offset, value);
        }
        assert_eq!(machine.read(register.offset), content, "{}", register.name);
    }
    assert_eq!(machine.transport.save(), before);
}

/// virtio 1.2 §4.2.2: `VIRTIO_F_RING_RESET` is not offered, `QueueReset` does
/// nothing.
#[test]
fn queue_reset_is_not_there() {
    let mut machine = live();
    machine.write(reg::QUEUE_RESET, 1);
    assert_eq!(machine.read(reg::QUEUE_RESET), 0);
    assert_eq!(machine.read(reg::QUEUE_READY), 1);
    machine.write(reg::DEVICE_FEATURES_SEL, 1);
    assert_eq!(machine.read(reg::DEVICE_FEATURES) & 1 << (40 - 32), 0);
}

/// virtio 1.2 §4.2.2: a shared memory region that does not exist has length
/// and base of all ones, whichever is selected.
#[test]
fn shared_memory_regions_do_not_exist() {
    let mut machine = live();
    for sel in [0, 1, 255, 256, u32::MAX] {
        machine.write(reg::SHM_SEL, sel);
        for register in [
            reg::SHM_LEN_LOW,
            reg::SHM_LEN_HIGH,
            reg::SHM_BASE_LOW,
            reg::SHM_BASE_HIGH,
        ] {
            assert_eq!(machine.read(register), 0xffff_ffff);
        }
    }
}

/// virtio 1.2 §4.2.2: `DeviceFeatures` has two words; there are no features
/// beyond bit 63.
#[test]
fn device_features_beyond_bit_63_read_zero() {
    let mut machine = machine();
    for (sel, word) in [(0, OFFERED as u32), (1, 1), (2, 0), (3, 0), (u32::MAX, 0)] {
        machine.write(reg::DEVICE_FEATURES_SEL, sel);
        assert_eq!(machine.read(reg::DEVICE_FEATURES), word, "selector {sel}");
    }
}

/// virtio 1.2 §4.2.2.2: the configuration space has accesses of every width
/// and alignment; past its end it reads as zero.
#[test]
fn config_space_takes_every_access() {
    let machine = machine();
    let mut expected = [0; 0x40];
    expected[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    for offset in 0..16 {
        for width in 0..=16 {
            let mut data = vec![0xa5; width];
            machine.transport.read(reg::CONFIG + offset, &mut data);
            let offset = offset as usize;
            assert_eq!(
                data,
                expected[offset..offset + width],
                "{width} at {offset}"
            );
        }
    }
    for offset in [u64::MAX, u64::MAX - 7, reg::MMIO_SIZE, 1 << 32] {
        let mut data = [0xa5; 8];
        machine.transport.read(offset, &mut data);
        assert_eq!(data, [0; 8]);
    }
}

/// virtio 1.2 §2.5.1, §3.1.1: the driver writes the configuration space only
/// once it drives the device.
#[test]
fn config_space_is_written_by_drivers_only() {
    let mut machine = machine();
    let original = machine.device().config;
    machine.write(reg::CONFIG, 0x0403_0201);
    machine.set_status(1);
    machine.write(reg::CONFIG, 0xffff_ffff);
    assert_eq!(machine.device().config, original);

    machine.set_status(3);
    machine.transport.write(reg::CONFIG + 6, &[9; 4]);
    machine.transport.write(u64::MAX, &[9; 8]);
    assert_eq!(machine.device().config, [1, 2, 3, 4, 5, 6, 9, 9]);
}

/// virtio 1.2 §4.2.2.1: `ConfigGeneration` is the device's.
#[test]
fn config_generation_follows_the_device() {
    let machine = live();
    assert_eq!(machine.read(reg::CONFIG_GENERATION), 0);
    machine.device().generation = 7;
    assert_eq!(machine.read(reg::CONFIG_GENERATION), 7);
}

/// virtio 1.2 §4.2.2.1: an event stays in `InterruptStatus` until it is
/// acknowledged, and only what is acknowledged goes.
#[test]
fn interrupts_stay_until_acknowledged() {
    let mut machine = live();
    let interrupt = machine.device().active.as_ref().unwrap().interrupt.clone();
    assert_eq!(machine.read(reg::INTERRUPT_STATUS), 0);

    interrupt.signal_used().unwrap();
    assert_eq!(machine.interrupts(), 1);
    assert_eq!(machine.read(reg::INTERRUPT_STATUS), 1);
    assert_eq!(
        machine.read(reg::INTERRUPT_STATUS),
        1,
        "reading takes nothing"
    );

    // A driver that forgets to acknowledge is interrupted nevertheless.
    interrupt.signal_used().unwrap();
    interrupt.signal_config_change().unwrap();
    assert_eq!(machine.interrupts(), 2);
    assert_eq!(machine.read(reg::INTERRUPT_STATUS), 3);

    for (acknowledged, left) in [(0, 3), (0xffff_fffc, 3), (1, 2), (1, 2), (0xffff_ffff, 0)] {
        machine.write(reg::INTERRUPT_ACK, acknowledged);
        assert_eq!(machine.read(reg::INTERRUPT_STATUS), left);
    }
}

/// virtio 1.2 §4.2.3.3: a notification names a queue; those that are not live
/// are not kicked.
#[test]
fn notifications_reach_live_queues_only() {
    let mut machine = live();
    for index in [1, 2, 0xffff, 0x1_0000, u32::MAX] {
        machine.write(reg::QUEUE_NOTIFY, index);
    }
    assert_eq!(machine.run(), 0);
    machine.write(reg::QUEUE_NOTIFY, 0);
    machine.run();
    assert_eq!(machine.device().kicks, [0]);

    machine.set_status(0);
    machine.write(reg::QUEUE_NOTIFY, 0);
    assert_eq!(machine.run(), 0);
}

/// virtio 1.2 §4.2.2: registers that the event loop and the driver share do
/// not wait for the device, however long it works.
#[test]
fn hot_registers_do_not_lock_the_device() {
    let mut machine = live();
    let device = machine.transport.device.clone();
    let busy = device.lock().unwrap();
    assert_eq!(machine.read(reg::INTERRUPT_STATUS), 0);
    machine.write(reg::INTERRUPT_ACK, 1);
    machine.write(reg::QUEUE_NOTIFY, 0);
    assert_eq!(machine.status(), 15);
    assert_eq!(busy.device_type(), Probe::DEVICE_TYPE);
}
