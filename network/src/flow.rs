//! One flow that may be: the host's connection for it, and what passes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use flashpan_protocol::network::{Protocol, Refusal, Tuple};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::counted::{self, Counted};
use crate::dial::{self, Place, Undialled};
use crate::gateway::{Answer, Gateway, Route};
use crate::host::{Host, Name};
use crate::http::Connected;
use crate::message::{self, Messages};
use crate::meter::Meter;
use crate::policy::{Code, Denial, Policy};
use crate::relay;
use crate::report::{Outcome, Report, Scheme};
use crate::tls::hello;

/// The guest's end of a flow.
enum Inside {
    Stream(Counted<UnixStream>),
    Datagrams(Messages),
}

impl Inside {
    fn new(protocol: Protocol, socket: OwnedFd, meter: Option<&Meter>) -> io::Result<Self> {
        match protocol {
            Protocol::Tcp => {
                let socket = std::os::unix::net::UnixStream::from(socket);
                socket.set_nonblocking(true)?;
                let stream = UnixStream::from_std(socket)?;
                let (sent, received) = meter
                    .map(|meter| (Arc::clone(&meter.sent), Arc::clone(&meter.received)))
                    .unwrap_or_default();
                Ok(Self::Stream(Counted::new(stream, sent, received)))
            }
            Protocol::Udp => Messages::new(socket).map(Self::Datagrams),
        }
    }
}

/// How a flow ends that does not end in order.
struct Broken {
    /// What the guest is told.
    answer: Answer,
    /// Why it was refused, or could not be.
    denial: Option<Denial>,
}

impl Broken {
    /// There was no connection.
    fn unreachable(target: SocketAddr, error: &io::Error) -> Self {
        Self {
            answer: Answer::Refuse(refusal(error)),
            denial: Some(Denial {
                code: Code::Connect,
                host: target.to_string(),
                rule: Some(error.to_string()),
            }),
        }
    }

    /// There was none to a host by name.
    fn undialled(protocol: Protocol, undialled: Undialled) -> Self {
        let answer = match &undialled.error {
            Some(error) => refusal(error),
            None if undialled.denial.code.is_policy() => denied(protocol),
            None => Refusal::Host,
        };
        Self {
            answer: Answer::Refuse(answer),
            denial: Some(undialled.denial),
        }
    }

    /// There was one.
    fn reset() -> Self {
        Self {
            answer: Answer::Close,
            denial: None,
        }
    }
}

/// Decides, makes the connection, has the guest told, and passes on what comes, until both
/// sides have ended, or the flow may not be any more. Dropped, it leaves nothing but its
/// report.
pub(crate) async fn serve<F, S>(
    gateway: &Gateway,
    protocol: Protocol,
    tuple: &Tuple,
    socket: OwnedFd,
    given_up: Arc<AtomicBool>,
    answer: impl Fn(Answer) -> F,
) where
    F: Future<Output = Result<(), S>>,
{
    let mut changes = gateway.changes();
    let route = gateway.route(protocol, tuple);
    match route {
        Ok(Route::Names) => return names(gateway, protocol, socket, &answer).await,
        Ok(Route::Http { first }) => return http(gateway, tuple, first, socket, &answer).await,
        _ => {}
    }
    let mut meter = meter(gateway, protocol, tuple);
    meter.given_up = given_up;
    let route = match route {
        Ok(route) => route,
        Err(denial) => {
            meter.report.outcome = Outcome::Refused(denial);
            drop(meter);
            // Fails only if nobody is there any more to be told.
            return drop(answer(Answer::Refuse(denied(protocol))).await);
        }
    };
    let (host, basis) = route.decided(tuple.destination);
    let reached = OnceLock::new();
    meter.report.host = format!("{host}:{}", tuple.destination.port());
    let served = match Inside::new(protocol, socket, Some(&meter)) {
        Err(error) => Err((Broken::unreachable(tuple.destination, &error), None)),
        Ok(mut inside) => {
            let flow = async {
                let to = tuple.destination;
                let outside = connect(gateway, protocol, route, to, &reached).await?;
                // What was changed while it connected is not seen again by who waits for changes.
                let still = gateway.still(protocol, tuple, &host, reached.get());
                still.map_err(|denial| Broken {
                    answer: Answer::Refuse(denied(protocol)),
                    denial: Some(denial),
                })?;
                if answer(Answer::Accept).await.is_err() {
                    return Ok(());
                }
                meter.report.outcome = Outcome::Allowed(basis);
                let passed = match (&mut inside, outside) {
                    (Inside::Stream(inside), Outside::Stream(outside)) => {
                        stream(inside, outside).await
                    }
                    (Inside::Datagrams(inside), Outside::Datagrams(outside)) => {
                        datagrams(inside, &outside, &meter).await
                    }
                    // Both are of the flow's protocol.
                    _ => Err(io::ErrorKind::Unsupported.into()),
                };
                passed.map_err(|_| Broken::reset())
            };
            let served = tokio::select! {
                // One that has ended by itself was not refused.
                biased;
                served = flow => served,
                denial = not_any_more(gateway, &mut changes, protocol, tuple, &host, &reached) => Err(Broken {
                    answer: Answer::Close,
                    denial: Some(denial),
                }),
            };
            served.map_err(|broken| (broken, Some(inside)))
        }
    };
    let Err((mut broken, inside)) = served else {
        return;
    };
    let was_accepted = matches!(meter.report.outcome, Outcome::Allowed(_));
    if broken.answer == Answer::Close && !was_accepted {
        broken.answer = Answer::Refuse(denied(protocol));
    }
    if let Some(denial) = broken.denial {
        meter.report.outcome = Outcome::Refused(denial);
    }
    drop(meter);
    // Fails as above.
    let _ = answer(broken.answer).await;
    if broken.answer == Answer::Close {
        // The guest would take a closed stream for an end in order: it stays open until the
        // guest's side is gone, and this with it.
        let _inside = inside;
        std::future::pending::<()>().await;
    }
}

/// What the guest is told of a flow that may not be.
fn denied(protocol: Protocol) -> Refusal {
    match protocol {
        Protocol::Tcp => Refusal::Reset,
        Protocol::Udp => Refusal::Prohibited,
    }
}

/// Why a flow may not be any more, as soon as that is so.
async fn not_any_more(
    gateway: &Gateway,
    changes: &mut watch::Receiver<Arc<Policy>>,
    protocol: Protocol,
    tuple: &Tuple,
    host: &Host,
    reached: &OnceLock<(Name, IpAddr)>,
) -> Denial {
    loop {
        // Without a gateway there are no flows.
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        if let Err(denial) = gateway.still(protocol, tuple, host, reached.get()) {
            return denial;
        }
    }
}

/// The beginning of what is told: dropped before anything is known, it is a flow whose guest
/// has gone away.
fn meter(gateway: &Gateway, protocol: Protocol, tuple: &Tuple) -> Meter {
    let scheme = match protocol {
        Protocol::Tcp => Scheme::Tcp,
        Protocol::Udp => Scheme::Udp,
    };
    let destination = tuple.destination;
    let mut report = Report::given_up(scheme, destination.to_string());
    report.destination = Some(destination);
    Meter::new(gateway.reporter().clone(), report)
}

/// Answers questions for names. They are told of one by one.
async fn names<F, S>(
    gateway: &Gateway,
    protocol: Protocol,
    socket: OwnedFd,
    answer: &impl Fn(Answer) -> F,
) where
    F: Future<Output = Result<(), S>>,
{
    let dns = gateway.dns();
    let inside = match Inside::new(protocol, socket, None) {
        Ok(inside) => inside,
        Err(_) => return drop(answer(Answer::Refuse(Refusal::Host)).await),
    };
    if answer(Answer::Accept).await.is_err() {
        return;
    }
    let served = match inside {
        Inside::Stream(stream) => dns.serve_stream(stream).await,
        Inside::Datagrams(messages) => dns.serve_datagrams(&messages).await,
    };
    if served.is_err() {
        let _ = answer(Answer::Close).await;
    }
}

/// Looks into a connection, which leads wherever its requests do. They are told of one by
/// one.
async fn http<F, S>(
    gateway: &Gateway,
    tuple: &Tuple,
    first: Option<Place>,
    socket: OwnedFd,
    answer: &impl Fn(Answer) -> F,
) where
    F: Future<Output = Result<(), S>>,
{
    let mut ready = None;
    let mut meter = meter(gateway, Protocol::Tcp, tuple);
    if let Some(place) = first {
        // Whoever cannot be connected to is refused as it would be without us.
        match connect_first(gateway, place).await {
            Ok(connected) => ready = Some((place, connected)),
            Err(broken) => {
                if let Some(denial) = broken.denial {
                    meter.report.outcome = Outcome::Refused(denial);
                }
                drop(meter);
                return drop(answer(broken.answer).await);
            }
        }
    }
    let held = socket.try_clone();
    let inside = Inside::new(Protocol::Tcp, socket, None);
    let (Ok(held), Ok(Inside::Stream(inside)), Some(proxy)) = (held, inside, gateway.proxy(ready))
    else {
        return drop(answer(Answer::Refuse(Refusal::Host)).await);
    };
    if answer(Answer::Accept).await.is_err() {
        return;
    }
    let destination = tuple.destination;
    let splice = |host: &Host| gateway.splices(host, destination.port());
    let unread = |inside| hello::Rewound::new(Vec::new(), inside);
    let first = match destination.port() {
        80 => Ok((0, unread(inside))),
        443 => Ok((hello::HANDSHAKE, unread(inside))),
        _ => first_byte(inside).await,
    };
    let served = match first {
        Ok((first, inside)) => {
            // Who serves it tells of it.
            meter.forget();
            match first {
                hello::HANDSHAKE => proxy.serve_tls(inside, destination, splice).await,
                _ => proxy.serve_plain(inside, destination).await,
            }
        }
        Err(error) => {
            if error.kind() == io::ErrorKind::TimedOut {
                let silent = Report::silent(Scheme::Tcp, destination.to_string());
                meter.report.outcome = silent.outcome;
            }
            drop(meter);
            Err(error)
        }
    };
    if served.is_err() {
        let _ = answer(Answer::Close).await;
        // As above.
        let _held = held;
        std::future::pending::<()>().await;
    }
}

/// The connection of a flow that is looked into, for whatever host it turns out to be of.
async fn connect_first(gateway: &Gateway, place: Place) -> Result<Connected, Broken> {
    let room = gateway.dialer().room(&place.real.to_string()).await;
    let room = room.map_err(|denial| Broken::undialled(Protocol::Tcp, denial.into()))?;
    let stream = dial::connect(place.real, dial::CONNECT_WITHIN).await;
    let stream = stream.map_err(|error| Broken::unreachable(place.real, &error))?;
    Ok(Connected::new(stream, place.address).counted(room))
}

/// What a stream begins with, and the stream with it.
async fn first_byte(
    mut stream: Counted<UnixStream>,
) -> io::Result<(u8, hello::Rewound<Counted<UnixStream>>)> {
    let first = timeout(hello::WITHIN, stream.read_u8()).await;
    let first = first.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok((first, hello::Rewound::new(vec![first], stream)))
}

/// The host's end of a flow.
enum Outside {
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

/// What a route leads to.
async fn connect(
    gateway: &Gateway,
    protocol: Protocol,
    route: Route,
    destination: SocketAddr,
    reached: &OnceLock<(Name, IpAddr)>,
) -> Result<Outside, Broken> {
    let (policy, dialer) = (gateway.policy(), gateway.dialer());
    let port = destination.port();
    if let Route::Direct { host, .. } = &route {
        for host in gateway.meant(&policy, protocol, host, destination) {
            let judged = dialer.judge(&policy, protocol, &host, destination.ip(), port);
            judged.await.map_err(|denial| Broken {
                answer: Answer::Refuse(denied(protocol)),
                denial: Some(denial),
            })?;
        }
    }
    match (protocol, route) {
        (Protocol::Tcp, Route::Direct { target, .. }) => {
            let connected = dial::connect(target, dial::CONNECT_WITHIN).await;
            let connected = connected.map_err(|error| Broken::unreachable(target, &error));
            connected.map(Outside::Stream)
        }
        (Protocol::Tcp, Route::Named { name, .. }) => {
            let dialled = dialer.dial(&policy, &Host::Name(name.clone()), port).await;
            let connected = dialled.map_err(|undialled| Broken::undialled(protocol, undialled))?;
            let _ = reached.set((name, connected.address()));
            Ok(Outside::Stream(connected.into_stream()))
        }
        (Protocol::Udp, Route::Direct { target, .. }) => to_datagrams(target).await,
        (Protocol::Udp, Route::Named { name, .. }) => {
            let host = Host::Name(name.clone());
            let places = dialer.places(&policy, Protocol::Udp, &host, port).await;
            let places = places.map_err(|denial| Broken::undialled(protocol, denial.into()))?;
            // There is one at least.
            let Place { address, real } = *places.first().ok_or_else(Broken::reset)?;
            let _ = reached.set((name, address));
            to_datagrams(real).await
        }
        // They were served before.
        (_, Route::Names | Route::Http { .. }) => Err(Broken::reset()),
    }
}

async fn to_datagrams(target: SocketAddr) -> Result<Outside, Broken> {
    let connected = connect_datagrams(target).await;
    let connected = connected.map_err(|error| Broken::unreachable(target, &error));
    connected.map(Outside::Datagrams)
}

/// Passes on what comes until both sides have ended.
async fn stream(inside: &mut Counted<UnixStream>, mut outside: TcpStream) -> io::Result<()> {
    relay::both_ways(inside, &mut outside).await?;
    dial::in_order(&outside);
    Ok(())
}

/// Passes on datagrams until the guest's side has ended.
async fn datagrams(inside: &Messages, outside: &UdpSocket, meter: &Meter) -> io::Result<()> {
    let up = async {
        loop {
            let datagram = inside.next().await?;
            counted::add(&meter.sent, datagram.len());
            // A datagram may be lost: nobody listens, there is no way just now, or it is
            // too long.
            let _ = outside.send(&datagram).await;
        }
    };
    let down = async {
        loop {
            outside.readable().await?;
            match message::datagram(|buffer| outside.try_recv(buffer)) {
                Ok(datagram) => {
                    inside.send(&datagram).await?;
                    counted::add(&meter.received, datagram.len());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if may_go_on(&error) => {}
                Err(error) => return Err(error),
            }
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}

async fn connect_datagrams(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let outside = UdpSocket::bind(any).await?;
    // From here on nobody else's datagrams come.
    outside.connect(target).await?;
    // What came before from anybody.
    let mut stray = [0; 1];
    while outside.try_recv(&mut stray).is_ok() {}
    Ok(outside)
}

/// Whether an error was one of a single datagram: what ICMP has to say of one.
fn may_go_on(error: &io::Error) -> bool {
    use nix::libc::{
        EACCES, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EMSGSIZE, ENETDOWN, ENETUNREACH,
        ENOPROTOOPT, EOPNOTSUPP, EPROTO,
    };
    let of_one = [
        EACCES,
        ECONNREFUSED,
        EHOSTDOWN,
        EHOSTUNREACH,
        EMSGSIZE,
        ENETDOWN,
        ENETUNREACH,
        ENOPROTOOPT,
        EOPNOTSUPP,
        EPROTO,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| of_one.contains(&errno))
}

/// What the guest is told instead of a connection.
fn refusal(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Refusal::Reset,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => Refusal::Network,
        io::ErrorKind::PermissionDenied => Refusal::Prohibited,
        _ => Refusal::Host,
    }
}
