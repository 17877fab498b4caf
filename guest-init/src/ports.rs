//! The two I/O ports on which the VMM listens to the guest
//! ([`flashpan_protocol::phase`]).
//!
//! The permission to use I/O ports would be inherited by every program that
//! the agent starts, so it is held only around each `out`.
//!
//! `unsafe`: inline assembly and `iopl(2)`, which no safe interface offers.
#![allow(unsafe_code)]

use flashpan_protocol::phase::{EXIT_PORT, ExitRequest, PHASE_PORT};

/// Marks a boot phase on the host's timeline; does nothing where I/O ports
/// cannot be used.
pub(crate) fn mark(code: u8) {
    out(PHASE_PORT, code);
}

/// Asks the VMM to end the VM. Returns only where there is no such port.
pub(crate) fn exit(request: ExitRequest) {
    out(EXIT_PORT, request.code());
}

fn out(port: u16, value: u8) {
    // SAFETY: iopl takes a number and changes only what this thread may do.
    if unsafe { libc::iopl(3) } != 0 {
        return;
    }
    // SAFETY: I/O privilege was just granted, so the instruction does not
    // fault; it touches neither memory nor flags. The port belongs to the VMM
    // (it is unassigned on PC hardware) and has no effect on this program.
    unsafe {
        std::arch::asm!(
            "out dx, al",
            in("dx") port,
            in("al") value,
            options(nomem, nostack, preserves_flags),
        );
    }
    // SAFETY: as above; giving a privilege up cannot go wrong in a way that
    // matters.
    unsafe { libc::iopl(0) };
}
