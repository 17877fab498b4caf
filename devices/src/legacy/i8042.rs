//! As much of a keyboard controller as a kernel needs to reset the machine
//! (`reboot=k`).

use vmm_sys_util::eventfd::EventFd;

use super::PioDevice;

/// The controller's port for commands and status. Its data port, 0x60, is
/// left unmapped, as is 0x61 between them, which belongs to the timer.
pub const I8042_BASE: u64 = 0x64;

/// Number of ports.
pub const I8042_SIZE: u64 = 1;

/// Pulse the processor's reset line.
const RESET: u8 = 0xfe;

/// A keyboard controller that has no keyboard. Every read gives 0, which says
/// that there is no input and that a command would be accepted; the only
/// command is the reset of the machine. It has no state to be saved.
#[derive(Debug)]
pub struct I8042 {
    reset: EventFd,
}

impl I8042 {
    /// A controller that writes to `reset` when the guest wants to be reset.
    #[must_use]
    pub fn new(reset: EventFd) -> Self {
        Self { reset }
    }
}

impl PioDevice for I8042 {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 && data == [RESET] {
            // Fails only if the counter is full: asked for already.
            let _ = self.reset.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller() -> (I8042, EventFd) {
        let reset = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (I8042::new(reset.try_clone().unwrap()), reset)
    }

    #[test]
    fn the_reset_command_resets() {
        let (mut device, reset) = controller();
        device.write(0, &[RESET]);
        assert_eq!(reset.read().unwrap(), 1);
    }

    #[test]
    fn nothing_else_resets() {
        let (mut device, reset) = controller();
        for offset in 0..4 {
            for data in [&[0u8][..], &[0xff], &[RESET, RESET], &[RESET, 0, 0, 0], &[]] {
                device.write(offset, data);
            }
        }
        device.write(1, &[RESET]);
        assert!(reset.read().is_err());
    }

    #[test]
    fn reads_say_that_a_command_would_be_accepted() {
        let (mut device, _reset) = controller();
        for width in 0..=8 {
            let mut data = vec![0xff; width];
            device.read(0, &mut data);
            assert_eq!(data, vec![0; width]);
        }
    }
}
