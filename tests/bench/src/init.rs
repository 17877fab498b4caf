//! PID 1 of a guest that marks that it has started and is ready, and ends its
//! VM. The same for every VMM that is compared: the exit port is flashpan's own
//! and, there, QEMU's `isa-debug-exit`.
#![allow(unsafe_code)] // I/O ports.

use std::arch::asm;

use flashpan_protocol::phase::{
    CODE_INIT_READY, CODE_INIT_START, EXIT_PORT, ExitRequest, PHASE_PORT,
};

fn main() {
    // SAFETY: only asks for the right to use I/O ports; PID 1 has it.
    if unsafe { libc::iopl(3) } == 0 {
        out(PHASE_PORT, CODE_INIT_START);
        out(PHASE_PORT, CODE_INIT_READY);
        out(EXIT_PORT, ExitRequest::PowerOff.code());
    }
}

fn out(port: u16, value: u8) {
    // SAFETY: writes a byte to a port that has no effect on memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}
