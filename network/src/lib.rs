//! The host's side of a guest's network: what becomes of a flow that a guest asks for.
//!
//! The VMM asks ([`flashpan_protocol::control::Event::FlowAsked`]); here the flow is
//! decided, a connection of the host is made for it, and then the VMM is answered:
//! the guest learns the truth about what it wants to reach. `docs/network.md` has the
//! whole way.
//!
//! * [`policy`] – what may be reached;
//! * [`host`] – names of hosts in their one form;
//! * [`http`] – requests, and who may change them;
//! * [`address`] – which addresses are the internet, and which are not;
//! * [`script`] – a policy as a script;
//! * [`report`] – what is told of all that;
//! * [`names`] – which names an address stands for;
//! * [`dns`] – what a guest's questions for names are answered;
//! * [`tls`] – TLS of guests, opened, and towards hosts;
//! * `gateway` – where flows lead: the one choke point;
//! * `dial` – the host's connections to what may be reached;
//! * `flow` – one flow, from the question to its end;
//! * `relay` – bytes of a flow, both ways;
//! * `meter` – what is told of one flow or request; `counted` – how much passes;
//! * `neighbours` – the addresses of this host, and of what is next to it;
//! * `message` – datagrams on a socket pair.

pub mod address;
mod counted;
mod dial;
pub mod dns;
pub mod edit;
mod flow;
mod gateway;
pub mod host;
pub mod http;
mod message;
mod meter;
pub mod names;
mod neighbours;
pub mod policy;
mod relay;
pub mod report;
pub mod script;
pub mod tls;

pub use gateway::{Answer, Flow, Gateway, Inspection, Settings};
pub use relay::both_ways;

#[cfg(test)]
mod tests;
