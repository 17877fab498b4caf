//! Devices on I/O ports: what a PC kernel expects to find, and our own pair of
//! ports for boot phases and exit.

mod i8042;
mod ports;
mod serial;

pub use i8042::{I8042, I8042_BASE, I8042_SIZE};
pub use ports::{GuestEvents, Ports};
pub use serial::{SERIAL_BASE, SERIAL_IRQ, SERIAL_SIZE, SavedSerial, SerialMetrics, SerialPort};

#[cfg(test)]
mod tests;

/// A device on I/O ports.
///
/// A guest chooses width and content of every access, and string instructions
/// make them as long as it likes: nothing in here panics or blocks, whatever
/// it is given.
pub trait PioDevice: Send {
    /// The guest reads `data.len()` bytes at `offset` ports from the device's
    /// first.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` ports from the device's first.
    fn write(&mut self, offset: u64, data: &[u8]);
}
