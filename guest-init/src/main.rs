//! Entry point of the guest's PID 1.
//!
//! There is no Rust `main`: the runtime in front of it would look at file
//! descriptors 0 to 2 and abort when they are closed, which is how the kernel
//! starts PID 1 in a guest without a console.
#![no_main]
// `no_mangle` is what gives the C runtime its `main`.
#![allow(unsafe_code)]

/// Called by the C runtime; does not return.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: i32, _argv: *const *const u8) -> i32 {
    flashpan_guest_init::run()
}
