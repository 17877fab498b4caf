//! What a guest's questions for names are answered, whatever server it asks.
//!
//! Only names of which something may be reached are looked up, of which only what a guest
//! needs to reach them is told, in messages of our own: nothing of the bytes of a guest's
//! question goes on but the name and, where all may be reached, the type. What is refused
//! is refused at once, with the reason in the answer (RFC 8914).
//!
//! * [`Resolver`] – names to addresses, as the host has them;
//! * [`Server`] – the two ways in which questions come: datagrams, and a stream;
//! * `question` – what a guest's message asks;
//! * `answer` – what it is answered;
//! * `reply` – the message that says so;
//! * `limits` – how many questions there may be;
//! * `cache` – what was answered;
//! * `servers` – whom the host asks;
//! * `upstream` – whoever asks them.

mod answer;
mod cache;
mod limits;
mod question;
mod reply;
mod resolver;
mod serve;
mod servers;
mod upstream;

use std::net::{IpAddr, SocketAddr};

pub use self::resolver::{Reached, ResolveError, Resolved, Resolver, Unreached};
pub use self::serve::Server;
use crate::host::Name;

/// How names are resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whom to ask. Without any: whom the host's `/etc/resolv.conf` names.
    pub servers: Vec<SocketAddr>,
    /// Names whose addresses are known. They are not asked for.
    pub hosts: Vec<(Name, IpAddr)>,
    /// Whether each name has addresses of its own ([`crate::names::Names::synthetic`]),
    /// and the guest gets these.
    pub synthetic: bool,
}

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// In a stream.
    Tcp,
}

#[cfg(test)]
mod tests;
