//! The far end of a guest's link: where its flows go.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flashpan_protocol::network::{Link, Protocol, Refusal, Tuple};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use crate::dial::{Dialer, FlowDialer, MAX_CONNECTIONS, Place};
use crate::dns::{self, Resolver};
use crate::host::{Host, Name};
use crate::http::{Connected, Editor, MAX_LOOKED_INTO, Proxy};
use crate::names::{self, Names};
use crate::policy::{Basis, Code, Denial, NAMES, Policy};
use crate::report::Reporter;
use crate::tls::{Authority, Upstream};
use crate::{address, flow};

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

/// A flow that was begun ([`Gateway::begin`]). It goes on when this is dropped.
#[derive(Debug, Clone)]
pub struct Flow {
    task: AbortHandle,
    given_up: Arc<AtomicBool>,
}

impl Flow {
    /// Ends it, whatever it is at.
    pub fn abort(&self) {
        self.task.abort();
    }

    /// Ends it: the guest had given it up before it was accepted, and that is told of it.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.task.abort();
    }

    /// Whether it has ended, and was told of.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl From<AbortHandle> for Flow {
    fn from(task: AbortHandle) -> Self {
        Self {
            task,
            given_up: Arc::default(),
        }
    }
}

/// What a gateway is made from.
#[derive(Debug)]
pub struct Settings {
    /// The guest's link.
    pub link: Link,
    /// What the guest may reach.
    pub policy: Policy,
    /// How names are resolved.
    pub dns: dns::Settings,
    /// What looks into HTTP and TLS. Without, they are decided by addresses, and by the
    /// names that these stand for, as all else is.
    pub inspection: Option<Inspection>,
    /// Who hears of flows.
    pub reporter: Reporter,
}

/// Where a flow leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// It asks for names.
    Names,
    /// To this address, which stands for this host.
    Direct {
        target: SocketAddr,
        host: Host,
        basis: Basis,
    },
    /// To whatever address this name has.
    Named { name: Name, basis: Basis },
    /// Wherever the requests on it lead. If `first` is there they may lead to this place.
    Http { first: Option<Place> },
}

impl Route {
    /// The host that it leads to, and what allows that; of flows that are told of as one.
    pub(crate) fn decided(&self, destination: SocketAddr) -> (Host, Basis) {
        match self {
            Self::Direct { host, basis, .. } => (host.clone(), basis.clone()),
            Self::Named { name, basis } => (Host::Name(name.clone()), basis.clone()),
            Self::Names => (destination.ip().into(), Basis::Names),
            Self::Http { .. } => (destination.ip().into(), Basis::Open),
        }
    }
}

/// What looks into HTTP and TLS.
#[derive(Debug)]
pub struct Inspection {
    /// Who vouches for what the guest is shown.
    pub authority: Arc<Authority>,
    /// How hosts are connected to in TLS.
    pub upstream: Arc<Upstream>,
    /// Who may change what passes.
    pub editor: Arc<dyn Editor>,
}

/// The far end of a guest's link.
#[derive(Debug)]
pub struct Gateway {
    policy: watch::Sender<Arc<Policy>>,
    /// Held by who changes it.
    changing: Mutex<()>,
    dialer: Arc<Dialer>,
    dns: dns::Server,
    is_synthetic: bool,
    inspection: Option<Inspection>,
    /// For so many more connections that are looked into there is room.
    room: Arc<Semaphore>,
    reporter: Reporter,
}

impl Gateway {
    /// The gateway of a guest.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let policy = watch::Sender::new(Arc::new(settings.policy));
        let names = Arc::new(Names::new());
        let is_synthetic = settings.dns.synthetic;
        let resolver = Arc::new(Resolver::new(settings.dns));
        Self {
            dialer: Arc::new(Dialer {
                link: settings.link,
                resolver: Arc::clone(&resolver),
                names: Arc::clone(&names),
                room: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            }),
            dns: dns::Server {
                resolver,
                names,
                reporter: settings.reporter.clone(),
                policy: policy.subscribe(),
            },
            policy,
            changing: Mutex::new(()),
            is_synthetic,
            inspection: settings.inspection,
            room: Arc::new(Semaphore::new(MAX_LOOKED_INTO)),
            reporter: settings.reporter,
        }
    }

    /// What the guest may reach now.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Changes what it may reach, one change after the other. Flows and requests that may not
    /// be any more are ended.
    pub fn change<T>(&self, change: impl FnOnce(&mut Policy) -> T) -> T {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.policy();
        let mut policy = Policy::clone(&now);
        let changed = change(&mut policy);
        if policy != *now {
            self.policy.send_replace(Arc::new(policy));
        }
        changed
    }

    /// Begins with a flow that the guest has asked for, on the runtime of the caller.
    /// `answers` get its number with each answer. A flow that has ended on the guest's
    /// side is to be aborted, or given up.
    pub fn begin(
        self: &Arc<Self>,
        id: u64,
        protocol: Protocol,
        tuple: Tuple,
        socket: OwnedFd,
        answers: mpsc::Sender<(u64, Answer)>,
    ) -> Flow {
        let gateway = Arc::clone(self);
        let given_up = Arc::new(AtomicBool::new(false));
        let of_meter = Arc::clone(&given_up);
        let serve = async move {
            let answer = |answer| answers.send((id, answer));
            flow::serve(&gateway, protocol, &tuple, socket, of_meter, answer).await;
        };
        Flow {
            task: tokio::spawn(serve).abort_handle(),
            given_up,
        }
    }

    /// Waits until all is told of what was begun. What goes on has to be ended before.
    pub async fn all_told(&self) {
        self.reporter.all_told().await;
    }

    /// Tells when what the guest may reach has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Policy>> {
        self.policy.subscribe()
    }

    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    pub(crate) fn dns(&self) -> &dns::Server {
        &self.dns
    }

    pub(crate) fn dialer(&self) -> &Arc<Dialer> {
        &self.dialer
    }

    /// What looks into a connection that leads wherever its requests do, the first perhaps
    /// to where there is a connection already.
    pub(crate) fn proxy(&self, ready: Option<(Place, Connected)>) -> Option<Proxy<FlowDialer>> {
        let inspection = self.inspection.as_ref()?;
        let dial = FlowDialer {
            dialer: Arc::clone(&self.dialer),
            policy: self.policy.subscribe(),
            ready: Mutex::new(ready),
        };
        Some(Proxy {
            policy: self.policy.subscribe(),
            authority: Arc::clone(&inspection.authority),
            upstream: Arc::clone(&inspection.upstream),
            reporter: self.reporter.clone(),
            dial: Arc::new(dial),
            editor: Arc::clone(&inspection.editor),
            room: Arc::clone(&self.room),
        })
    }

    /// Whether TLS to a host can be passed on as it is, as far as whoever changes requests
    /// is concerned, and certificates that it may see.
    pub(crate) fn splices(&self, host: &Host, port: u16) -> bool {
        let needs = |inspection: &Inspection| {
            inspection.editor.needs(host, port) || inspection.upstream.is_known_to(host, port)
        };
        !self.inspection.as_ref().is_some_and(needs)
    }

    /// Whether a flow may still be that was decided to be for this host and, if that is a name
    /// with an address of its own, was connected to one of its real addresses. What it was
    /// decided by counts for as long as it lasts: names are forgotten after a while.
    pub(crate) fn still(
        &self,
        protocol: Protocol,
        tuple: &Tuple,
        host: &Host,
        reached: Option<&(Name, IpAddr)>,
    ) -> Result<(), Denial> {
        let policy = self.policy();
        let (address, port) = (
            address::plain(tuple.destination.ip()),
            tuple.destination.port(),
        );
        if self.looks_into(&policy, protocol, port) {
            // What it carries nobody sees, and a route to be looked into says nothing of
            // whether its host is allowed.
            return Err(Denial {
                code: Code::NotAllowed,
                host: tuple.destination.to_string(),
                rule: None,
            });
        }
        if self.is_synthetic && names::is_synthetic(address) {
            policy.connection(protocol, host, port)?;
            return match reached {
                Some((name, address)) => {
                    self.dialer
                        .may_be(&policy, protocol, *address, port, Some(name))
                }
                None => Ok(()),
            };
        }
        // What names it has by now may deny it, and allow it.
        let standing = self.standing(&policy, protocol, address, port);
        let host = match (policy.connection(protocol, host, port), standing) {
            (_, Err(denial)) if denial.code.is_named() => return Err(denial),
            (Ok(_), _) => host.clone(),
            (Err(_), Ok((host, _))) => host,
            (Err(denial), Err(_)) => return Err(denial),
        };
        self.dialer
            .may_be(&policy, protocol, address, port, host.name())
    }

    /// Where a flow leads, if it may be. This is the one place where that is decided.
    pub(crate) fn route(&self, protocol: Protocol, tuple: &Tuple) -> Result<Route, Denial> {
        let policy = self.policy();
        let destination = tuple.destination;
        let (address, port) = (address::plain(destination.ip()), destination.port());
        if port == NAMES {
            return Ok(Route::Names);
        }
        if self.is_synthetic && names::is_synthetic(address) {
            let Some(name) = self.dialer.names.of_synthetic(address) else {
                return Err(Denial {
                    code: Code::Resolve,
                    host: destination.to_string(),
                    rule: None,
                });
            };
            let basis = policy.connection(protocol, &Host::Name(name.clone()), port)?;
            return Ok(match self.looks_into(&policy, protocol, port) {
                true => Route::Http { first: None },
                false => Route::Named { name, basis },
            });
        }
        let standing = self.standing(&policy, protocol, address, port);
        let standing = standing.and_then(|(host, basis)| {
            let name = host.name();
            self.dialer.may_be(&policy, protocol, address, port, name)?;
            Ok((host, basis))
        });
        if self.looks_into(&policy, protocol, port) {
            return match standing {
                Ok(_) => Ok(Route::Http {
                    // A script says first whether there may be a connection.
                    first: (!policy.judges_connections()).then(|| self.dialer.place(address, port)),
                }),
                // What is refused is told why, if anything is ever not refused.
                Err(_) if policy.allows_something() => Ok(Route::Http { first: None }),
                Err(denial) => Err(denial),
            };
        }
        let (host, basis) = standing?;
        Ok(Route::Direct {
            target: self.dialer.real(address, port),
            host,
            basis,
        })
    }

    fn looks_into(&self, policy: &Policy, protocol: Protocol, port: u16) -> bool {
        let is_http = protocol == Protocol::Tcp && policy.is_http(port);
        is_http && policy.is_of_names() && self.inspection.is_some()
    }

    /// All hosts that a connection to an address may be for, as far as a script wants to know:
    /// the one that it was decided to be for, and of the other names of the address those
    /// that may be reached. Nobody can tell which of them is meant.
    pub(crate) fn meant(
        &self,
        policy: &Policy,
        protocol: Protocol,
        host: &Host,
        destination: SocketAddr,
    ) -> Vec<Host> {
        let mut meant = vec![host.clone()];
        if policy.judges_connections() {
            let names = self.dialer.names.of(address::plain(destination.ip()));
            let others = names.into_iter().map(Host::Name);
            let may_be = |other: &Host| {
                other != host
                    && policy
                        .connection(protocol, other, destination.port())
                        .is_ok()
            };
            meant.extend(others.filter(may_be));
        }
        meant
    }

    /// For what an address stands, of what may be reached: itself, or one of the names that
    /// it was the answer for. If one of them is denied by name, so is the address: nobody
    /// can tell which of them is meant.
    fn standing(
        &self,
        policy: &Policy,
        protocol: Protocol,
        address: IpAddr,
        port: u16,
    ) -> Result<(Host, Basis), Denial> {
        let itself = Host::Address(address);
        let literal = policy.connection(protocol, &itself, port);
        let mut decided = match literal {
            Err(denial) if denial.code.is_named() => return Err(denial),
            literal => literal.map(|basis| (itself, basis)),
        };
        for name in self.dialer.names.of(address) {
            let host = Host::Name(name);
            match policy.connection(protocol, &host, port) {
                Err(denial) if denial.code.is_named() => return Err(denial),
                // What was asked for says more than its address.
                Ok(basis) if !matches!(decided, Ok((Host::Name(_), _))) => {
                    decided = Ok((host, basis));
                }
                Err(denial) if decided.is_err() => decided = Err(denial),
                _ => {}
            }
        }
        decided
    }
}
