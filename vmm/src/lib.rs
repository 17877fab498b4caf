//! The virtual machine monitor: KVM, guest memory, boot protocols, vCPUs and
//! the event loop.
//!
//! [`Vm::boot`] builds a machine from a [`VmSpec`](flashpan_protocol::control::VmSpec)
//! and open files, [`Vm::run`] runs it until it ends. The binary
//! `flashpan-vmm` is the same in a process of its own, jailed, that takes its
//! orders from a control socket ([`control`]).
//!
//! Everything that a guest can reach is in `flashpan-devices`; here is what
//! those devices are attached to.

pub mod boot;
pub mod control;
pub mod counters;
pub mod cpu;
pub mod descriptors;
pub mod error;
pub mod file_size;
pub mod jail;
pub mod kvm;
pub mod layout;
mod legacy;
pub mod machine;
pub mod memory;
pub mod probe;
mod resident;
pub mod state;
pub mod vm;

pub use error::BootError;
pub use kvm::Host;
pub use vm::{Command, Observer, Resources, Vm, VmEvent, VmHandle};
