//! HTTP as a guest speaks it, in the clear and in TLS: every request judged alone, and sent
//! on.
//!
//! * [`Proxy`] – what becomes of a connection;
//! * [`Dial`] – who makes connections to hosts;
//! * [`Editor`] – who may change requests and responses;
//! * `strict`, `head` – what a guest sends, before anything takes it;
//! * `target` – whom a request is for;
//! * `exchange` – one request, from its first byte to its last; `outgoing` – as a host gets it;
//! * `pool` – connections to hosts; `ongoing` – what ends when it may not be any more.

mod body;
mod connected;
mod editor;
mod exchange;
mod failure;
mod gate;
mod head;
mod headers;
mod ongoing;
mod outgoing;
mod pool;
mod proxy;
mod relay;
mod strict;
mod target;
mod tasks;
mod unread;

pub use self::connected::Connected;
pub use self::editor::{
    BodyEdit, Editor, Later, Plain, Refused, RequestContext, RequestEdit, ResponseEdit, State,
    Transform,
};
pub(crate) use self::headers::remove_overrides;
pub(crate) use self::proxy::MAX_LOOKED_INTO;
pub use self::proxy::{Dial, Proxy};

/// The longest head of a request or response, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Most headers of one.
const MAX_HEADERS: usize = 100;

#[cfg(test)]
mod tests;
