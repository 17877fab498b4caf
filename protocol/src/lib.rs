//! The three wire formats of flashpan.
//!
//! * [`agent`]: between the supervisor on the host and the agent in the guest,
//!   over vsock streams, framed by [`frame`]; [`mod@file`] is the part of it that
//!   concerns the guest's files, [`forward`] that of forwarded ports, and
//!   [`privilege`] is what a program may do there.
//! * [`control`]: between the supervisor and the VMM process, over a
//!   `SOCK_SEQPACKET` socket pair that also carries file descriptors.
//! * [`supervisor`]: between a command and the supervisor of a VM that outlives the
//!   command that made it, over a Unix stream socket, framed by [`frame`].
//!
//! [`phase`] holds the vocabulary of the boot timeline and the two I/O ports
//! through which a guest marks phases and ends the VM.
//!
//! Messages are [postcard](https://docs.rs/postcard); every connection starts
//! with a versioned hello and every message has a maximum length, so neither
//! side trusts the other's lengths. Nothing here does I/O beyond
//! [`std::io::Read`] and [`std::io::Write`].

pub mod agent;
mod capability_text;
pub mod control;
pub mod file;
pub mod forward;
pub mod frame;
pub mod network;
pub mod phase;
pub mod privilege;
pub mod supervisor;
