//! The far end of a guest's link: where its flows go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use flashpan_protocol::network::{Link, Protocol, Refusal, Tuple};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::host::Host;
use crate::policy::{Basis, Denial, Policy};
use crate::report::Reporter;
use crate::{address, flow, resolver};

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

/// Where a flow leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the name server of the host.
    Names(SocketAddr),
    /// To this address.
    Direct { target: SocketAddr, basis: Basis },
}

/// The far end of a guest's link.
#[derive(Debug)]
pub struct Gateway {
    policy: watch::Sender<Arc<Policy>>,
    link: Link,
    resolver: Option<IpAddr>,
    reporter: Reporter,
}

impl Gateway {
    /// The gateway of a guest with this link, that may reach what `policy` says, and of
    /// whose flows `reporter` hears. Names are resolved by whom the host itself asks, which
    /// is looked up now.
    #[must_use]
    pub fn new(policy: Policy, link: Link, reporter: Reporter) -> Self {
        Self {
            policy: watch::Sender::new(Arc::new(policy)),
            link,
            resolver: resolver::of_host(),
            reporter,
        }
    }

    /// What the guest may reach now.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Changes what it may reach. Flows that may not be any more are ended.
    pub fn change<T>(&self, change: impl FnOnce(&mut Policy) -> T) -> T {
        let mut changed = None;
        self.policy.send_modify(|policy| {
            changed = Some(change(Arc::make_mut(policy)));
        });
        // It was called: send_modify calls once.
        match changed {
            Some(changed) => changed,
            None => unreachable!(),
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
            flow::serve(&gateway, protocol, &tuple, socket, answer).await;
        };
        tokio::spawn(serve).abort_handle()
    }

    /// Tells when what the guest may reach has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Policy>> {
        self.policy.subscribe()
    }

    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Where a flow leads, if it may be. This is the one place where that is decided.
    pub(crate) fn route(&self, protocol: Protocol, tuple: &Tuple) -> Result<Route, Denial> {
        let policy = self.policy();
        let destination = tuple.destination;
        let (address, port) = (address::plain(destination.ip()), destination.port());
        let is_gateway = self.link.is_gateway(address);
        if is_gateway && port == resolver::PORT {
            let resolver = self.resolver.map(|server| SocketAddr::new(server, port));
            return resolver.map(Route::Names).ok_or_else(|| Denial {
                code: crate::policy::Code::Resolve,
                host: destination.to_string(),
                rule: None,
            });
        }
        let basis = policy.connection(protocol, &Host::Address(address), port)?;
        policy.address(protocol, address, port, None)?;
        // The gateway is the host, of which the guest has no other name.
        let target = match (is_gateway, address) {
            (true, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
            (true, IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
            (false, address) => address,
        };
        Ok(Route::Direct {
            target: SocketAddr::new(target, port),
            basis,
        })
    }
}
