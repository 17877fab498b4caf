//! The host's side of a guest's network: what becomes of a flow that a guest asks for.
//!
//! The VMM asks ([`flashpan_protocol::control::Event::FlowAsked`]); here the flow is
//! decided, a connection of the host is made for it, and then the VMM is answered:
//! the guest learns the truth about what it wants to reach. `docs/network.md` has the
//! whole way.
//!
//! * [`policy`] – what may be reached;
//! * [`host`] – names of hosts in their one form;
//! * [`address`] – which addresses are the internet, and which are not;
//! * [`report`] – what is told of all that;
//! * [`names`] – which names an address stands for;
//! * [`dns`] – what a guest's questions for names are answered;
//! * `flow` – one flow, from the question to its end;
//! * `neighbours` – the addresses of this host, and of what is next to it;
//! * `message` – datagrams on a socket pair;
//! * `resolver` – whom the host asks for names.

pub mod address;
pub mod dns;
mod flow;
pub mod host;
mod message;
pub mod names;
mod neighbours;
pub mod policy;
pub mod report;
mod resolver;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use flashpan_protocol::network::{Link, Protocol, Refusal, Tuple};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::host::Host;
use crate::policy::Policy;

/// What the VMM is to be told of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Let it be.
    Accept,
    /// Let it not be.
    Refuse(Refusal),
    /// Its connection broke: reset it.
    Close,
}

/// The far end of a guest's link.
#[derive(Debug)]
pub struct Gateway {
    policy: Policy,
    link: Link,
    resolver: Option<IpAddr>,
}

impl Gateway {
    /// The gateway of a guest with this link, that may reach what `policy` says. Names
    /// are resolved by whom the host itself asks, which is looked up now.
    #[must_use]
    pub fn new(policy: Policy, link: Link) -> Self {
        Self {
            policy,
            link,
            resolver: resolver::of_host(),
        }
    }

    /// Begins with a flow that the guest has asked for, on the runtime of the caller.
    /// `answers` get its number with each answer. A flow that has ended on the guest's
    /// side is to be aborted.
    pub fn begin(
        self: &Arc<Self>,
        id: u64,
        protocol: Protocol,
        tuple: Tuple,
        socket: OwnedFd,
        answers: mpsc::Sender<(u64, Answer)>,
    ) -> AbortHandle {
        let gateway = Arc::clone(self);
        let serve = async move {
            let answer = |answer| answers.send((id, answer));
            match gateway.target(protocol, &tuple) {
                Err(why) => drop(answer(Answer::Refuse(why)).await),
                Ok(target) => flow::serve(protocol, target, socket, answer).await,
            }
        };
        tokio::spawn(serve).abort_handle()
    }

    /// Where a flow leads, if it may be. This is the one place where that is decided.
    fn target(&self, protocol: Protocol, tuple: &Tuple) -> Result<SocketAddr, Refusal> {
        let denied = match protocol {
            Protocol::Tcp => Refusal::Reset,
            Protocol::Udp => Refusal::Prohibited,
        };
        let destination = tuple.destination;
        let address = address::plain(destination.ip());
        if self.link.is_gateway(address) {
            // Of the gateway's services there is one: names.
            if destination.port() == resolver::PORT {
                let resolver = self.resolver.ok_or(denied)?;
                return Ok(SocketAddr::new(resolver, resolver::PORT));
            }
            // The gateway is the host, of which the guest has no other name.
            let host: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            let port = destination.port();
            let reached = self.policy.private.then(|| SocketAddr::new(host, port));
            return reached.ok_or(denied);
        }
        let port = destination.port();
        let decided = self
            .policy
            .connection(protocol, &Host::Address(address), port);
        let decided = decided.and_then(|_| self.policy.address(protocol, address, port, None));
        decided.map_err(|_| denied)?;
        Ok(SocketAddr::new(address, destination.port()))
    }
}

#[cfg(test)]
mod tests;
