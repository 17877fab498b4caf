//! A driver for tests, without a guest: it goes through the real register file
//! and builds real rings in guest memory.
//!
//! * [`Machine`] is one device with transport, memory, kicks, interrupt line
//!   and event loop. On its own it is the *hostile* driver: any register, any
//!   byte of guest memory, in any order.
//! * [`Driver`] is the *good* one. It follows virtio 1.2 §3.1.1 step by step
//!   and fails the test when the device breaks a rule.
//! * [`Ring`] is the driver's side of a split virtqueue, good or hostile.

// This is test code, which other crates can have too: it fails by panicking.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_debug_implementations
)]

mod driver;
mod machine;
mod probe;
mod ring;

pub use driver::Driver;
pub use machine::{HOLE, Machine, RAM_END, REGION_SEAM};
pub use probe::Probe;
pub use ring::{Descriptor, INDIRECT, NEXT, Ring, Segment, WRITE};
