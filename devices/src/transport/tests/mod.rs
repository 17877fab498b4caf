//! The transport against a driver that goes by the book, one that does not,
//! and one that does anything at all. `docs/devices.md` lists them by class.

mod properties;
mod queues;
mod registers;
mod saved;
mod status;

use super::registers as reg;
use crate::testing::{Machine, Probe};

/// Features that the probe offers beside `VERSION_1`.
const OFFERED: u64 = 1 << 29 | 1 << 28 | 1 << 5;

/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;

/// Good places for the three parts of a queue of the probe.
const PARTS: [u64; 3] = [0x1_0000, 0x1_1000, 0x1_2000];

/// A machine with a probe, after power-on.
fn machine() -> Machine<Probe> {
    Machine::new(Probe {
        features: OFFERED,
        config: [1, 2, 3, 4, 5, 6, 7, 8],
        ..Probe::default()
    })
}

/// After `FEATURES_OK`.
fn negotiated() -> Machine<Probe> {
    let mut machine = machine();
    assert_eq!(machine.negotiate(OFFERED | VERSION_1), 11);
    machine
}

/// After `DRIVER_OK`, with queue 0.
fn live() -> Machine<Probe> {
    let mut machine = negotiated();
    assert_eq!(machine.set_up_queue(0, 16, PARTS), 1);
    assert_eq!(machine.set_status(15), 15);
    machine
}
