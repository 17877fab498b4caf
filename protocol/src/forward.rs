//! Supervisor to guest agent: one forwarded TCP connection, or the datagrams
//! of one UDP client, per connection (host to guest, [`FORWARD_PORT`]).
//!
//! The supervisor sends [`ForwardStart`] as one frame of [`crate::frame`] with
//! a body of at most [`MAX_FORWARD_FRAME`] bytes, and nothing more before the
//! agent has answered with [`ForwardAnswer`], another such frame. After
//! [`ForwardAnswer::Connected`] both directions consist of *chunks*: a
//! little-endian `u16` length and that many bytes.
//!
//! * Of TCP, a chunk is the next 1 to 65535 bytes of the stream, and a chunk of
//!   length 0 is its end in that direction (FIN); nothing follows it. A
//!   connection that closes before that chunk was reset (RST), which bare bytes
//!   could not tell from an end: whoever cuts an answer short must not seem to
//!   have completed it. When both directions have ended the agent closes; a
//!   supervisor that closes first resets what is still on its way.
//! * Of UDP, a chunk is a datagram, which may be empty. The supervisor ends the
//!   flow by closing the connection; UDP itself has no end.
//!
//! Both directions are held back by vsock's own credit.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Port in the guest on which the agent accepts connections to forward.
pub const FORWARD_PORT: u32 = 1027;

/// Longest body of the two frames.
pub const MAX_FORWARD_FRAME: usize = 1024;

/// Bytes in front of the content of a chunk.
pub const CHUNK_PREFIX: usize = 2;

/// Most bytes of content in a chunk.
pub const MAX_CHUNK: usize = 65535;

/// To the agent: the first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardStart {
    /// What to speak.
    pub transport: Transport,
    /// With whom, as the guest sees it.
    pub address: IpAddr,
    /// On which port; not 0.
    pub port: u16,
}

/// What is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// A stream.
    Tcp,
    /// Datagrams.
    Udp,
}

/// From the agent: the answer to [`ForwardStart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForwardAnswer {
    /// There is a connection, or of UDP a socket; chunks follow.
    Connected,
    /// There is none. The last message.
    Failed(ForwardFailure),
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardFailure {
    /// The class of failure.
    pub kind: ForwardFailureKind,
    /// The error number in the guest, 0 if there is none.
    pub errno: i32,
    /// One line: what was tried and why it failed.
    pub message: String,
}

/// Classes of [`ForwardFailure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ForwardFailureKind {
    /// Nobody listens on the port.
    Refused,
    /// No way leads to the address.
    Unreachable,
    /// There was no answer in time.
    TimedOut,
    /// The guest could not: too many connections at a time, out of memory.
    Resources,
    /// The request itself is wrong: port 0.
    BadRequest,
    /// Anything else; the error number says what.
    Other,
}
