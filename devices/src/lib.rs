//! Devices of the virtual machine, without KVM and without an async runtime.
//!
//! Four things are kept apart (design decision 2):
//!
//! * the **transport** ([`transport`]) is the virtio-mmio register file and its
//!   status machine; it knows no device;
//! * a **device** ([`virtio::VirtioDevice`]) has features, configuration bytes
//!   and a number of queues; queues *move in* at activation and come back at
//!   reset;
//! * a **handler** is queue + guest memory + back end → completions, pure, and
//!   tested against a mock driver;
//! * a **subscriber** maps readiness of file descriptors to handler calls.
//!
//! Every virtio device folder has the same files: `mod.rs` (constants and
//! errors), `device.rs`, `handler.rs`, `metrics.rs`, and `subscriber.rs` unless
//! it waits for nothing but kicks ([`ring::KickSubscriber`]). What they share
//! is the device's side of a virtqueue ([`ring`]) and the limits of its I/O
//! ([`rate_limit`]).
//!
//! `docs/devices.md` lists what each test holds them to.

pub mod block;
pub mod bus;
pub mod legacy;
pub mod net;
pub mod rate_limit;
mod reactor;
pub mod ring;
pub mod rng;
mod sock;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod virtio;
pub mod vsock;
