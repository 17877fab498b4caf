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

// Where glibc's pthread_create(3) keeps a new thread's state of the resolver: a
// pointer that each thread has. Linked statically, glibc's own definition of this one
// variable brings the whole resolver along, 60 KiB that PID 1 has no use for. This is
// the variable alone. It is weak: a build that is not optimised may refer to the resolver
// where nothing calls it, and then has glibc's own.
#[cfg(all(target_env = "gnu", target_arch = "x86_64"))]
core::arch::global_asm!(
    ".pushsection .tbss, \"awT\", @nobits",
    ".balign 8",
    ".weak __libc_resp",
    ".type __libc_resp, @object",
    ".size __libc_resp, 8",
    "__libc_resp: .zero 8",
    ".popsection",
);
