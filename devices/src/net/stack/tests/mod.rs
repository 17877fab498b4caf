//! The stack against a guest with a TCP/IP stack of its own, and against one that keeps
//! to no rule.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation
)]

mod connections;
mod datagrams;
mod gateway;
mod guest;
mod hostile;
mod load;
mod opened;
