//! Setting up queues.

use super::*;
use crate::testing::{HOLE, RAM_END, REGION_SEAM};

/// virtio 1.2 §2.7, §4.2.3.2: a size is a power of two and at most
/// `QueueNumMax`; another does not become ready.
#[test]
fn sizes() {
    for size in (0..40).chain([255, 256, 32768, 65536, 0x1_0010, u32::MAX]) {
        let mut machine = negotiated();
        let good = [1, 2, 4, 8, 16].contains(&size);
        let ready = machine.set_up_queue(0, size, PARTS);
        assert_eq!(ready, u32::from(good), "size {size}");
        // A driver that has learnt its lesson can go on.
        assert_eq!(machine.set_up_queue(0, 16, PARTS), 1);
    }
}

/// virtio 1.2 §4.2.3.2: `QueueNumMax` is each queue's own, and 0 where there
/// is no queue.
#[test]
fn selecting_queues() {
    let mut machine = negotiated();
    for (sel, max) in [
        (0, 16),
        (1, 8),
        (2, 0),
        (0xffff, 0),
        (0x1_0000, 0),
        (u32::MAX, 0),
    ] {
        machine.write(reg::QUEUE_SEL, sel);
        assert_eq!(machine.read(reg::QUEUE_NUM_MAX), max, "queue {sel}");
    }
}

/// virtio 1.2 §4.2.3.2: a queue that does not exist cannot be set up, and the
/// attempt does not reach another one.
#[test]
fn queues_that_do_not_exist() {
    let mut machine = negotiated();
    let before = machine.transport.save();
    for sel in [2, 3, 0x1_0000, u32::MAX] {
        assert_eq!(machine.set_up_queue(sel, 8, PARTS), 0);
    }
    machine.write(reg::QUEUE_SEL, 0);
    assert_eq!(machine.transport.save(), before);
}

/// virtio 1.2 §4.2.3.2: a driver that forgets `QueueSel` sets queue 0 up, and
/// only that one.
#[test]
fn missing_queue_sel_means_queue_0() {
    let mut machine = negotiated();
    machine.write(reg::QUEUE_NUM, 8);
    for (low, address) in [
        (reg::QUEUE_DESC_LOW, PARTS[0]),
        (reg::QUEUE_DRIVER_LOW, PARTS[1]),
        (reg::QUEUE_DEVICE_LOW, PARTS[2]),
    ] {
        machine.write(low, address as u32);
    }
    machine.write(reg::QUEUE_READY, 1);
    assert_eq!(machine.read(reg::QUEUE_READY), 1);
    machine.write(reg::QUEUE_SEL, 1);
    assert_eq!(machine.read(reg::QUEUE_READY), 0);
}

/// virtio 1.2 §2.7: the parts of a queue are aligned to 16, 2 and 4 bytes.
#[test]
fn alignment() {
    for (part, alignment) in [(0, 16), (1, 2), (2, 4)] {
        for offset in 0..32 {
            let mut machine = negotiated();
            let mut parts = PARTS;
            parts[part] += offset;
            let good = u32::from(offset % alignment == 0);
            assert_eq!(
                machine.set_up_queue(0, 16, parts),
                good,
                "part {part} + {offset}"
            );
        }
    }
}

/// virtio 1.2 §2.7: all of a queue is in guest memory.
#[test]
fn rings_outside_memory() {
    // Lengths for 16 descriptors.
    for (part, len) in [(0, 256), (1, 38), (2, 134)] {
        let inside = |end: u64| (end - len) & !15;
        for (address, good) in [
            (inside(HOLE), 1),
            (inside(RAM_END), 1),
            (REGION_SEAM - 16, 1), // across two regions
            (HOLE - 16, 0),
            (HOLE, 0),
            (RAM_END - 16, 0),
            (RAM_END, 0),
            (1 << 32, 0),
            (u64::MAX - 15, 0),
            (u64::MAX - 255, 0),
        ] {
            let mut machine = negotiated();
            let mut parts = PARTS;
            parts[part] = address;
            let ready = machine.set_up_queue(0, 16, parts);
            assert_eq!(ready, good, "part {part} at {address:#x}");
        }
    }
}

/// virtio 1.2 §4.2.3.2 (CVE-2026-5747): nothing about a queue changes after
/// `QueueReady` or `DRIVER_OK`.
#[test]
fn queue_registers_are_fixed_once_ready() {
    const REGISTERS: [u64; 7] = [
        reg::QUEUE_NUM,
        reg::QUEUE_DESC_LOW,
        reg::QUEUE_DESC_HIGH,
        reg::QUEUE_DRIVER_LOW,
        reg::QUEUE_DRIVER_HIGH,
        reg::QUEUE_DEVICE_LOW,
        reg::QUEUE_DEVICE_HIGH,
    ];
    let mut machine = negotiated();
    machine.set_up_queue(0, 16, PARTS);
    let ready = machine.transport.save();
    for register in REGISTERS {
        machine.write(register, 8);
    }
    assert_eq!(machine.transport.save(), ready);

    // Not of this one, nor of the one that was left out.
    machine.set_status(15);
    for queue in [0, 1] {
        machine.write(reg::QUEUE_SEL, queue);
        let live = machine.transport.save();
        for register in REGISTERS.into_iter().chain([reg::QUEUE_READY]) {
            for value in [0, 1, 8, u32::MAX] {
                machine.write(register, value);
            }
        }
        assert_eq!(machine.transport.save(), live);
    }
}

/// virtio 1.2 §3.1.1 step 7: queues are set up after the features.
#[test]
fn queue_registers_before_features_ok() {
    let mut machine = machine();
    for status in [0, 1, 3] {
        machine.set_status(status);
        let before = machine.transport.save();
        assert_eq!(machine.set_up_queue(0, 8, PARTS), 0, "in status {status}");
        assert_eq!(machine.transport.save(), before);
    }
}

/// virtio 1.2 §4.2.2.2: before the device is live, a driver can take a queue
/// back and set it up again.
#[test]
fn a_queue_can_be_taken_back_before_driver_ok() {
    let mut machine = negotiated();
    assert_eq!(machine.set_up_queue(0, 16, PARTS), 1);
    for value in [2, 3, u32::MAX] {
        machine.write(reg::QUEUE_READY, value);
        assert_eq!(machine.read(reg::QUEUE_READY), 1, "{value} means nothing");
    }
    machine.write(reg::QUEUE_READY, 0);
    assert_eq!(machine.read(reg::QUEUE_READY), 0);
    assert_eq!(machine.set_up_queue(0, 4, PARTS), 1);
    machine.set_status(15);
    let device = machine.device();
    assert_eq!(device.active.as_ref().unwrap().queues[0].state().size, 4);
}

/// virtio 1.2 §4.2.2: without a word on `QueueNum` the queue has its largest
/// size.
#[test]
fn queue_num_left_alone() {
    let mut machine = negotiated();
    machine.write(reg::QUEUE_DESC_LOW, 0x1_0000);
    machine.write(reg::QUEUE_DRIVER_LOW, 0x1_1000);
    machine.write(reg::QUEUE_DEVICE_LOW, 0x1_2000);
    machine.write(reg::QUEUE_READY, 1);
    machine.set_status(15);
    let device = machine.device();
    assert_eq!(device.active.as_ref().unwrap().queues[0].state().size, 16);
}
