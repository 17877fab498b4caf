//! Ports of this machine that lead to ports of the guest.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flashpan_protocol::forward::Transport;
use nix::sys::socket::sockopt::{Ipv6V6Only, ReuseAddr};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;

use crate::api::PortForwardBinding;
use crate::dial::Dialer;
use crate::error::{Error, Result, transport_name};
use crate::forward_card::Card;
use crate::forward_spec::Forward;
use crate::pump::Task;
use crate::sandbox::Sandbox;
use crate::{forward_tcp, forward_udp};

/// Most connections at a time: what a guest forwards at most.
const CONNECTIONS_MAX: usize = 256;

/// How long a UDP client may say and hear nothing before it is forgotten.
const UDP_IDLE: Duration = Duration::from_secs(60);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Most errors that are kept.
const ERRORS_KEPT: usize = 64;

/// How ports are forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "options do nothing until `Sandbox::port_forward`"]
pub struct ForwardOptions {
    addresses: Vec<IpAddr>,
    guest_address: Option<IpAddr>,
    connections: usize,
    udp_idle: Duration,
}

impl Default for ForwardOptions {
    /// From 127.0.0.1 to the guest, 256 connections at a time, and a minute of
    /// silence for UDP clients.
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            guest_address: None,
            connections: CONNECTIONS_MAX,
            udp_idle: UDP_IDLE,
        }
    }
}

impl ForwardOptions {
    /// As [`ForwardOptions::default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens on this address of this machine; may be repeated, and is
    /// 127.0.0.1 otherwise. Whoever can reach the address can reach the guest. One of IPv4
    /// that is written as of IPv6 (`::ffff:127.0.0.1`) is that of IPv4.
    pub fn address(mut self, address: IpAddr) -> Self {
        let address = address.to_canonical();
        if !self.addresses.contains(&address) {
            self.addresses.push(address);
        }
        self
    }

    /// The address to which it leads, as the guest sees it, and by its agent. Otherwise TCP
    /// leads to the address of the guest's card, and to 127.0.0.1 where that refuses or there
    /// is none, and UDP to 127.0.0.1.
    pub fn guest_address(mut self, address: IpAddr) -> Self {
        self.guest_address = Some(address);
        self
    }

    /// Most connections and UDP clients at a time, 1 to 256, of all ports
    /// together. More connections wait; datagrams of more clients are dropped.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// The addresses of this machine for a port. A socket of IPv6 is for IPv6 alone, so
    /// those of IPv4 are as IPv4 has them.
    fn addresses_of<'a>(&'a self, forward: &'a Forward) -> impl Iterator<Item = IpAddr> + 'a {
        let addresses = match (&forward.address, self.addresses.as_slice()) {
            (Some(address), _) => std::slice::from_ref(address),
            (None, []) => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
            (None, addresses) => addresses,
        };
        addresses.iter().map(IpAddr::to_canonical)
    }

    /// How long a UDP client may say and hear nothing before it is forgotten.
    pub fn udp_idle(mut self, idle: Duration) -> Self {
        self.udp_idle = idle;
        self
    }
}

/// An address and port of this machine that is listened on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ForwardBinding {
    /// TCP or UDP.
    pub transport: Transport,
    /// Where it is listened, with the real port.
    pub address: SocketAddr,
    /// The port of the guest.
    pub remote_port: u16,
}

impl fmt::Display for ForwardBinding {
    /// As docker lists it: `127.0.0.1:8080->80/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        let (address, port) = (self.address, self.remote_port);
        write!(f, "{address}->{port}/{transport}")
    }
}

impl ForwardBinding {
    /// It as the interface has it.
    #[must_use]
    pub fn to_api(&self) -> PortForwardBinding {
        PortForwardBinding {
            address: self.address.ip().to_string(),
            local_port: self.address.port(),
            remote_port: self.remote_port,
        }
    }
}

/// How much was forwarded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForwardCounts {
    /// Connections and UDP clients that there are.
    pub active: usize,
    /// Those that there were, with those that failed.
    pub total: u64,
    /// Those that failed, with those that nobody could accept.
    pub failed: u64,
    /// Datagrams of clients that were dropped because too much was under way.
    pub dropped: u64,
}

/// Why a connection failed.
#[derive(Debug)]
#[non_exhaustive]
pub struct ForwardError {
    /// Where it came in.
    pub binding: ForwardBinding,
    /// Who it was of; `None` if it could not even be accepted.
    pub client: Option<SocketAddr>,
    /// What went wrong.
    pub error: Error,
}

impl fmt::Display for ForwardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ForwardBinding {
            transport, address, ..
        } = self.binding;
        let transport = transport_name(transport);
        match self.client {
            Some(client) => write!(f, "{client} to {address}/{transport}: {}", self.error),
            None => write!(f, "{address}/{transport}: {}", self.error),
        }
    }
}

/// Ports that are forwarded. Dropping it closes them, and resets the
/// connections.
#[derive(Debug)]
pub struct PortForwarding {
    bindings: Vec<ForwardBinding>,
    state: Arc<State>,
    _tasks: Vec<Task>,
}

impl PortForwarding {
    /// Where it is listened: for each port, each of the addresses.
    #[must_use]
    pub fn bindings(&self) -> &[ForwardBinding] {
        &self.bindings
    }

    /// How much was forwarded so far.
    #[must_use]
    pub fn counts(&self) -> ForwardCounts {
        let state = &self.state;
        ForwardCounts {
            active: state.active.load(Ordering::Relaxed),
            total: state.total.load(Ordering::Relaxed),
            failed: state.failed.load(Ordering::Relaxed),
            dropped: state.dropped.load(Ordering::Relaxed),
        }
    }

    /// Why connections failed, the last 64. Each is returned once.
    #[must_use]
    pub fn take_errors(&self) -> Vec<ForwardError> {
        self.state.errors().drain(..).collect()
    }
}

/// What all connections of a [`PortForwarding`] share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) dialer: Dialer,
    /// Where the agent connects to.
    pub(crate) guest_address: IpAddr,
    /// The way without the agent, if it may be used.
    pub(crate) card: Option<Card>,
    pub(crate) udp_idle: Duration,
    /// One for each connection that there may be.
    pub(crate) room: Arc<Semaphore>,
    active: AtomicUsize,
    total: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    errors: Mutex<VecDeque<ForwardError>>,
}

/// A connection that is counted.
#[derive(Debug)]
pub(crate) struct Counted(Arc<State>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl State {
    /// Counts a connection until the result is dropped.
    pub(crate) fn count(self: &Arc<Self>) -> Counted {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(self))
    }

    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps an error; the oldest make room.
    pub(crate) fn failed(
        &self,
        binding: &ForwardBinding,
        client: Option<SocketAddr>,
        error: Error,
    ) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut errors = self.errors();
        if errors.len() == ERRORS_KEPT {
            errors.pop_front();
        }
        errors.push_back(ForwardError {
            binding: binding.clone(),
            client,
            error,
        });
    }

    /// Nothing panics while it is locked.
    fn errors(&self) -> MutexGuard<'_, VecDeque<ForwardError>> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sandbox {
    /// Makes ports of the guest reachable from this machine, until the result is
    /// dropped.
    ///
    /// Each connection is made in the guest when a client has connected here; one
    /// that the guest refuses is reset, since a client cannot be refused any
    /// more. Each half of a connection ends for itself, a reset is passed on as
    /// one, and a side that does not read holds the other up.
    ///
    /// A TCP connection leads to the address of the guest's card, and comes from the
    /// gateway's, 198.18.0.1: that is what a program sees which listens on all addresses.
    /// Where nobody listens there, or nobody answers within a second and a half, it leads to
    /// 127.0.0.1 in the guest, and comes from there. Of a VM without a network, with a limit
    /// on it, or of another process, all lead there.
    ///
    /// # Errors
    /// [`Error::Listen`] for the first address and port that cannot be listened
    /// on; nothing is forwarded then. [`Error::InvalidConfig`] for a port 0 of
    /// the guest or a number of connections out of range. [`Error::VmEnded`] if
    /// there is no guest.
    // Of the future, which may wait for the guest one day.
    #[allow(clippy::unused_async)]
    pub async fn port_forward(
        &self,
        forwards: &[Forward],
        options: ForwardOptions,
    ) -> Result<PortForwarding> {
        if let Some(exit) = self.exit() {
            return Err(Error::VmEnded(exit.reason.clone()));
        }
        self.forward_bound(BoundPorts::bind(forwards, options)?)
            .await
    }

    /// As [`Sandbox::port_forward`], with ports that are bound already: whoever has
    /// connected meanwhile is served.
    ///
    /// # Errors
    /// [`Error::VmEnded`] if there is no guest; [`Error::Listen`] if this thread's
    /// runtime cannot watch a socket.
    #[allow(clippy::unused_async)]
    pub async fn forward_bound(&self, ports: BoundPorts) -> Result<PortForwarding> {
        if let Some(exit) = self.exit() {
            return Err(Error::VmEnded(exit.reason.clone()));
        }
        let BoundPorts { options, sockets } = ports;
        let listeners = sockets
            .into_iter()
            .map(|(binding, socket)| Listener::of(binding, socket));
        let listeners: Vec<_> = listeners.collect::<Result<_>>()?;
        let dialer = self.dialer();
        let by_card = options.guest_address.is_none() && dialer.has_card();
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let state = Arc::new(State {
            dialer,
            guest_address: options.guest_address.unwrap_or(loopback),
            card: by_card.then(Card::default),
            udp_idle: options.udp_idle,
            room: Arc::new(Semaphore::new(options.connections)),
            active: AtomicUsize::new(0),
            total: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            errors: Mutex::default(),
        });
        let bindings = listeners
            .iter()
            .map(|(binding, _)| binding.clone())
            .collect();
        let tasks = listeners.into_iter().map(|(binding, listener)| {
            let state = Arc::clone(&state);
            match listener {
                Listener::Tcp(listener) => {
                    Task::spawn(forward_tcp::serve(listener, binding, state))
                }
                Listener::Udp(socket) => Task::spawn(forward_udp::serve(socket, binding, state)),
            }
        });
        Ok(PortForwarding {
            bindings,
            _tasks: tasks.collect(),
            state,
        })
    }
}

/// Ports of this machine that are held, and do not lead anywhere yet: so that one that
/// is taken is known before there is a guest. Dropping it lets go of them.
#[derive(Debug)]
#[must_use = "the ports are held as long as this is"]
pub struct BoundPorts {
    options: ForwardOptions,
    sockets: Vec<(ForwardBinding, OwnedFd)>,
}

impl BoundPorts {
    /// Holds the ports.
    ///
    /// # Errors
    /// [`Error::Listen`] for the first address and port that cannot be listened
    /// on; none is held then. And as [`Self::check`].
    pub fn bind(forwards: &[Forward], options: ForwardOptions) -> Result<Self> {
        Self::check(forwards, &options)?;
        let mut sockets = Vec::new();
        for forward in forwards {
            for address in options.addresses_of(forward) {
                sockets.push(bind_one(*forward, address)?);
            }
        }
        Ok(Self { options, sockets })
    }

    /// Checks what can be checked without listening.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a port 0 of the guest, a number of connections out of
    /// range, or an address and port of this machine that are given twice.
    pub fn check(forwards: &[Forward], options: &ForwardOptions) -> Result<()> {
        if forwards
            .iter()
            .any(|forward| forward.ports.remote_port == 0)
        {
            return Err(Error::config("port of the guest", "0 is none"));
        }
        if !(1..=CONNECTIONS_MAX).contains(&options.connections) {
            let why = format!(
                "{} is not in range 1-{CONNECTIONS_MAX}",
                options.connections
            );
            return Err(Error::config("connections to forward", why));
        }
        let mut taken: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
        for forward in forwards {
            // The host chooses another one each time for port 0.
            let port = forward.ports.local_port;
            let transport = transport_name(forward.transport);
            for address in options.addresses_of(forward).filter(|_| port != 0) {
                let others = taken.entry((transport, address.is_ipv4(), port));
                let others = others.or_default();
                let clashes = |other: &IpAddr| {
                    *other == address || other.is_unspecified() || address.is_unspecified()
                };
                if others.iter().any(clashes) {
                    let place = SocketAddr::new(address, port);
                    let why = format!("{place}/{transport} is given twice; choose another port");
                    return Err(Error::config("port of this machine", why));
                }
                others.push(address);
            }
        }
        Ok(())
    }
}

fn bind_one(forward: Forward, address: IpAddr) -> Result<(ForwardBinding, OwnedFd)> {
    let transport = forward.transport;
    let wanted = SocketAddr::new(address, forward.ports.local_port);
    let opened = open(transport, wanted).map_err(io::Error::from);
    let opened = opened.and_then(|socket| Ok((local_address(&socket)?, socket)));
    let (address, socket) = opened.map_err(|source| Error::Listen {
        address: wanted,
        transport,
        source,
    })?;
    let binding = ForwardBinding {
        transport,
        address,
        remote_port: forward.ports.remote_port,
    };
    Ok((binding, socket))
}

/// Where a socket is bound, with its real port.
fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    // Of every kind of socket: what is asked is the same.
    std::net::UdpSocket::from(socket.try_clone()?).local_addr()
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listener {
    fn of(binding: ForwardBinding, socket: OwnedFd) -> Result<(ForwardBinding, Self)> {
        let watched = match binding.transport {
            Transport::Tcp => TcpListener::from_std(socket.into()).map(Self::Tcp),
            Transport::Udp => UdpSocket::from_std(socket.into()).map(Self::Udp),
        };
        match watched {
            Ok(listener) => Ok((binding, listener)),
            Err(source) => Err(Error::Listen {
                address: binding.address,
                transport: binding.transport,
                source,
            }),
        }
    }
}

/// A non-blocking socket that is bound, and of TCP listens.
fn open(transport: Transport, address: SocketAddr) -> nix::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let kind = match transport {
        Transport::Tcp => SockType::Stream,
        Transport::Udp => SockType::Datagram,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, kind, flags, None)?;
    if address.is_ipv6() {
        // Each address for itself: 0.0.0.0 may be another of them.
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    if transport == Transport::Tcp {
        // A port whose last connections are still closing is free.
        setsockopt(&socket, ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    if transport == Transport::Tcp {
        listen(&socket, Backlog::new(BACKLOG)?)?;
    }
    Ok(socket)
}
