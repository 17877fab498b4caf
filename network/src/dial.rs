//! The host's connections to what may be reached.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flashpan_protocol::network::{Link, Protocol};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::address::plain;
use crate::dns::Resolver;
use crate::host::{Host, Name};
use crate::http::{self, Connected};
use crate::names::Names;
use crate::policy::{Code, Denial, Policy};

/// How long a connection may take. The guest waits for two minutes, as the host would.
pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(120);

/// How long it may take if there are other addresses to try.
const TRY_NEXT_AFTER: Duration = Duration::from_secs(10);

/// After how many seconds of silence a host is asked whether it is still there: before those who
/// translate addresses on the way forget the connection, of which the quickest take four
/// minutes.
const PROBE_AFTER: u32 = 120;

/// Seconds between two such questions.
const PROBE_EVERY: u32 = 60;

/// A connection of which so many are not answered is broken: an outage of ten minutes breaks
/// none that nobody uses.
const MAX_PROBES: u32 = 10;

/// Most addresses of a name that are tried.
const MAX_TRIES: usize = 8;

/// Most connections of a guest to hosts, at once, that are looked into: each keeps what one of
/// its sides does not take (`docs/network.md`).
pub(crate) const MAX_CONNECTIONS: usize = 256;

/// How long one more waits for one of these to end.
const ROOM_WITHIN: Duration = Duration::from_secs(10);

/// Makes the connections of one flow of HTTP. The first may be there already.
#[derive(Debug)]
pub(crate) struct FlowDialer {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) policy: watch::Receiver<Arc<Policy>>,
    /// A connection, and to where, for the host that it turns out to be of.
    pub(crate) ready: Mutex<Option<(Place, Connected)>>,
}

impl http::Dial for FlowDialer {
    async fn dial(&self, host: &Host, port: u16) -> Result<Connected, Denial> {
        let policy = Arc::clone(&self.policy.borrow());
        policy.connection(Protocol::Tcp, host, port)?;
        let places = self.dialer.places(&policy, Protocol::Tcp, host, port);
        let places = places.await?;
        // It is for the first host that is asked for, or for none.
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = { ready }.take();
        if let Some((place, connected)) = ready
            && places.contains(&place)
        {
            return Ok(connected);
        }
        let room = self.dialer.room(&format!("{host}:{port}")).await?;
        let connected = connect_one_of(places, host, port).await;
        let connected = connected.map_err(|undialled| undialled.denial)?;
        Ok(connected.counted(room))
    }

    fn may_stay(
        &self,
        policy: &Policy,
        host: &Host,
        port: u16,
        address: IpAddr,
    ) -> Result<(), Denial> {
        let name = host.name();
        self.dialer
            .may_be(policy, Protocol::Tcp, address, port, name)
    }
}

/// Makes connections.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) link: Link,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) names: Arc<Names>,
    /// For so many more connections that are looked into there is room.
    pub(crate) room: Arc<Semaphore>,
}

/// Where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The address that is allowed or denied.
    pub(crate) address: IpAddr,
    /// Where that leads.
    pub(crate) real: SocketAddr,
}

/// Why there is no connection: what is told of it, and what the guest may be told.
#[derive(Debug)]
pub(crate) struct Undialled {
    pub(crate) denial: Denial,
    /// What the last connection that was tried failed of.
    pub(crate) error: Option<io::Error>,
}

impl From<Denial> for Undialled {
    fn from(denial: Denial) -> Self {
        Self {
            denial,
            error: None,
        }
    }
}

impl Dialer {
    /// Connects to a host, if the policy allows it and one of its addresses.
    pub(crate) async fn dial(
        &self,
        policy: &Policy,
        host: &Host,
        port: u16,
    ) -> Result<Connected, Undialled> {
        policy.connection(Protocol::Tcp, host, port)?;
        let places = self.places(policy, Protocol::Tcp, host, port).await?;
        connect_one_of(places, host, port).await
    }

    /// Waits until there is room for one more connection that is looked into.
    pub(crate) async fn room(&self, host: &str) -> Result<OwnedSemaphorePermit, Denial> {
        let room = timeout(ROOM_WITHIN, Arc::clone(&self.room).acquire_owned()).await;
        // It is never closed.
        room.ok().and_then(Result::ok).ok_or_else(|| Denial {
            code: Code::Crowded,
            host: host.to_owned(),
            rule: None,
        })
    }

    /// Where an address leads, with it.
    pub(crate) fn place(&self, address: IpAddr, port: u16) -> Place {
        Place {
            address: plain(address),
            real: self.real(address, port),
        }
    }

    /// The addresses of a host that may be connected to, at least one.
    pub(crate) async fn places(
        &self,
        policy: &Policy,
        protocol: Protocol,
        host: &Host,
        port: u16,
    ) -> Result<Vec<Place>, Denial> {
        let name = match host {
            Host::Address(address) => {
                self.may_be(policy, protocol, *address, port, None)?;
                self.judge(policy, protocol, host, *address, port).await?;
                return Ok(vec![self.place(*address, port)]);
            }
            Host::Name(name) => name,
        };
        let resolved = self.resolver.reachable(policy, name).await?;
        self.names.learn(name, &resolved.addresses, resolved.ttl);
        let mut refused = None;
        let mut places = Vec::new();
        // More are not tried, and a script has work with each.
        let mut left = MAX_TRIES;
        for address in resolved.addresses {
            let mut may_be = self.may_be(policy, protocol, address, port, Some(name));
            if may_be.is_ok() {
                if left == 0 {
                    break;
                }
                left -= 1;
                may_be = self.judge(policy, protocol, host, address, port).await;
            }
            match may_be {
                Ok(()) => places.push(self.place(address, port)),
                Err(denial) => refused = Some(denial),
            }
        }
        match (places.is_empty(), refused) {
            (false, _) => Ok(places),
            (true, Some(denial)) => Err(denial),
            // A name without addresses is an error of the resolver's.
            (true, None) => Err(Denial {
                code: Code::Resolve,
                host: name.to_string(),
                rule: None,
            }),
        }
    }

    /// Whether an address may be connected to. The gateway and the loopback interface are one
    /// host: what is denied of the one is denied of the other.
    pub(crate) fn may_be(
        &self,
        policy: &Policy,
        protocol: Protocol,
        address: IpAddr,
        port: u16,
        name: Option<&Name>,
    ) -> Result<(), Denial> {
        policy.address(protocol, address, port, name)?;
        let real = self.real(address, port).ip();
        policy.not_denied(protocol, real, port)?;
        if real.is_loopback() {
            policy.not_denied(protocol, self.link.gateway4.into(), port)?;
            policy.not_denied(protocol, self.link.gateway6.into(), port)?;
        }
        Ok(())
    }

    /// Asks the policy's script, if it has one, about an address and where it leads.
    ///
    /// # Errors
    /// It denies one of them, or failed.
    pub(crate) async fn judge(
        &self,
        policy: &Policy,
        protocol: Protocol,
        host: &Host,
        address: IpAddr,
        port: u16,
    ) -> Result<(), Denial> {
        let (address, real) = (plain(address), self.real(address, port).ip());
        policy
            .judge_connection(protocol, host, address, port)
            .await?;
        if real != address {
            policy.judge_connection(protocol, host, real, port).await?;
        }
        Ok(())
    }

    /// Where an address leads: the gateway is the host, of which the guest has no other
    /// name.
    pub(crate) fn real(&self, address: IpAddr, port: u16) -> SocketAddr {
        let address = plain(address);
        let real = match (self.link.is_gateway(address), address) {
            (true, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
            (true, IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
            (false, address) => address,
        };
        SocketAddr::new(real, port)
    }
}

/// Connects to the first of these that can be connected to.
async fn connect_one_of(
    places: Vec<Place>,
    host: &Host,
    port: u16,
) -> Result<Connected, Undialled> {
    let mut last = None;
    let tries = places.len().min(MAX_TRIES);
    for (number, place) in places.into_iter().take(MAX_TRIES).enumerate() {
        let within = match number + 1 == tries {
            true => CONNECT_WITHIN,
            false => TRY_NEXT_AFTER,
        };
        match connect(place.real, within).await {
            Ok(stream) => return Ok(Connected::new(stream, place.address)),
            Err(error) => last = Some(error),
        }
    }
    let denial = Denial {
        code: Code::Connect,
        host: format!("{host}:{port}"),
        rule: last.as_ref().map(ToString::to_string),
    };
    Err(Undialled {
        denial,
        error: last,
    })
}

/// Connects as the guest wants it: what it sends at once it wants to have arrive at once,
/// since its own kernel has waited for more where it wanted to.
///
/// Whatever ends it is a reset, but an end in order of both sides ([`in_order`]): the other
/// end must not take anything else for one.
pub(crate) async fn connect(target: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    let connecting = timeout(within, TcpStream::connect(target)).await;
    let outside = connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    outside.set_nodelay(true)?;
    outside.set_zero_linger()?;
    // It may be silent for days, as that of the guest may, which ends here.
    setsockopt(&outside, sockopt::KeepAlive, &true)?;
    setsockopt(&outside, sockopt::TcpKeepIdle, &PROBE_AFTER)?;
    setsockopt(&outside, sockopt::TcpKeepInterval, &PROBE_EVERY)?;
    setsockopt(&outside, sockopt::TcpKeepCount, &MAX_PROBES)?;
    Ok(outside)
}

/// Both sides have ended in order: so does the connection.
pub(crate) fn in_order(outside: &TcpStream) {
    let in_order = nix::libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    // Fails only for a socket that is none.
    let _ = setsockopt(outside, sockopt::Linger, &in_order);
}
