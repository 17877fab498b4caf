//! The process that a VM lives in when it outlives the command that started it.
//!
//! There is one for each VM and no daemon. [`start()`] starts it as a program of the
//! caller's choice, which calls [`Starter::take`] before anything else and then
//! [`supervise`]. It claims the VM, listens on the socket in its directory
//! ([`flashpan_protocol::supervisor`]), boots it, tells its starter, and lives until
//! the VM has ended and that is written down.
//!
//! Until the starter was told, its end is that of the VM; afterwards nothing is. Its
//! only ways to be told what to do are that channel, its socket, SIGTERM and SIGINT.

mod command;
mod detach;
mod doing;
mod life;
mod server;
mod start;
mod tell;

pub use detach::Starter;
pub use life::{Launching, WITHIN, supervise};
pub use start::{NotStarted, StartOptions, Started, start};
