//! The virtio-mmio transport: register file and status machine (virtio 1.2
//! §4.2). It knows no device.

mod mmio;
mod queue;
pub mod registers;
mod saved;
pub mod status;

pub use mmio::{MmioTransport, TransportError};
pub use queue::QueueSetup;
pub use registers::{MMIO_SIZE, register_name};
pub use saved::TransportState;

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "tests take registers apart"
)]
mod tests;
