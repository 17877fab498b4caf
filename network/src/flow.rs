//! One flow that may be: the host's connection for it, and what passes.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flashpan_protocol::network::{Protocol, Refusal, Tuple};
use tokio::io::{AsyncReadExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::time::timeout;

use crate::dial::{self, Undialled};
use crate::gateway::{Answer, Gateway, Route};
use crate::host::Host;
use crate::message::Messages;
use crate::policy::{Basis, Code, Denial};
use crate::report::{Outcome, Report, Scheme};
use crate::telling::{Counted, Passed, Telling};
use crate::tls::hello;

/// What passes at once, in each direction.
const BUFFER: usize = 32 * 1024;

/// The longest datagram there is.
const MAX_DATAGRAM: usize = 65_535;

/// The guest's end of a flow.
enum Inside {
    Stream(Counted<UnixStream>),
    Datagrams(Messages),
}

impl Inside {
    fn new(protocol: Protocol, socket: OwnedFd, passed: &Arc<Passed>) -> io::Result<Self> {
        match protocol {
            Protocol::Tcp => {
                let socket = std::os::unix::net::UnixStream::from(socket);
                socket.set_nonblocking(true)?;
                let stream = UnixStream::from_std(socket)?;
                Ok(Self::Stream(Counted::new(stream, passed)))
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
                rule: None,
            }),
        }
    }

    /// There was none to a host by name.
    fn undialled(undialled: Undialled) -> Self {
        let answer = match &undialled.error {
            Some(error) => refusal(error),
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
    let mut telling = Telling::new(gateway.reporter(), report(protocol, tuple));
    let route = match route {
        Ok(route) => route,
        Err(denial) => {
            telling.refused(denial);
            drop(telling);
            let denied = match protocol {
                Protocol::Tcp => Refusal::Reset,
                Protocol::Udp => Refusal::Prohibited,
            };
            // Fails only if nobody is there any more to be told.
            return drop(answer(Answer::Refuse(denied)).await);
        }
    };
    telling.allowed(&route, tuple.destination.port());
    let passed = Arc::clone(telling.passed());
    let served = match Inside::new(protocol, socket, &passed) {
        Err(error) => Err((Broken::unreachable(tuple.destination, &error), None)),
        Ok(mut inside) => {
            let flow = async {
                let port = tuple.destination.port();
                match &mut inside {
                    Inside::Stream(inside) => {
                        stream(connect(gateway, route, port).await?, inside, &answer).await
                    }
                    Inside::Datagrams(inside) => {
                        let target = datagram_target(gateway, route, port).await?;
                        datagrams(target, inside, &passed, &answer).await
                    }
                }
            };
            let denied = async {
                loop {
                    // Without a gateway there are no flows.
                    if changes.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    if let Err(denial) = gateway.route(protocol, tuple) {
                        return denial;
                    }
                }
            };
            let served = tokio::select! {
                // One that has ended by itself was not refused.
                biased;
                served = flow => served,
                denial = denied => Err(Broken { answer: Answer::Close, denial: Some(denial) }),
            };
            served.map_err(|broken| (broken, Some(inside)))
        }
    };
    let Err((broken, inside)) = served else {
        return;
    };
    if let Some(denial) = broken.denial {
        telling.refused(denial);
    }
    drop(telling);
    // Fails as above.
    let _ = answer(broken.answer).await;
    if broken.answer == Answer::Close {
        // The guest would take a closed stream for an end in order: it stays open until the
        // guest's side is gone, and this with it.
        let _inside = inside;
        std::future::pending::<()>().await;
    }
}

fn report(protocol: Protocol, tuple: &Tuple) -> Report {
    let scheme = match protocol {
        Protocol::Tcp => Scheme::Tcp,
        Protocol::Udp => Scheme::Udp,
    };
    let destination = tuple.destination;
    let undecided = Outcome::Allowed(Basis::Open);
    let mut report = Report::new(scheme, destination.to_string(), undecided);
    report.destination = Some(destination);
    report
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
    let inside = match Inside::new(protocol, socket, &Arc::default()) {
        Ok(inside) => inside,
        Err(_) => return drop(answer(Answer::Refuse(Refusal::Host)).await),
    };
    if answer(Answer::Accept).await.is_err() {
        return;
    }
    let served = match &inside {
        Inside::Datagrams(messages) => dns.serve_datagrams(messages).await,
        Inside::Stream(_) => Ok(()),
    };
    let served = match inside {
        Inside::Stream(stream) => dns.serve_stream(stream).await,
        Inside::Datagrams(_) => served,
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
    first: Option<SocketAddr>,
    socket: OwnedFd,
    answer: &impl Fn(Answer) -> F,
) where
    F: Future<Output = Result<(), S>>,
{
    let mut ready = None;
    if let Some(target) = first {
        // Whoever cannot be connected to is refused as it would be without us.
        match dial::connect(target, dial::CONNECT_WITHIN).await {
            Ok(stream) => ready = Some((target, stream)),
            Err(error) => {
                let mut telling = Telling::new(gateway.reporter(), report(Protocol::Tcp, tuple));
                let broken = Broken::unreachable(tuple.destination, &error);
                if let Some(denial) = broken.denial {
                    telling.refused(denial);
                }
                drop(telling);
                return drop(answer(broken.answer).await);
            }
        }
    }
    let held = socket.try_clone();
    let inside = Inside::new(Protocol::Tcp, socket, &Arc::default());
    let (Ok(held), Ok(Inside::Stream(inside)), Some(proxy)) = (held, inside, gateway.proxy(ready))
    else {
        return drop(answer(Answer::Refuse(Refusal::Host)).await);
    };
    if answer(Answer::Accept).await.is_err() {
        return;
    }
    let destination = tuple.destination;
    let splice = |host: &Host| gateway.splices(host, destination.port());
    let served = match destination.port() {
        80 => proxy.serve_plain(inside, destination).await,
        443 => proxy.serve_tls(inside, destination, splice).await,
        _ => match first_byte(inside).await {
            Ok((hello::HANDSHAKE, inside)) => proxy.serve_tls(inside, destination, splice).await,
            Ok((_, inside)) => proxy.serve_plain(inside, destination).await,
            Err(error) => Err(error),
        },
    };
    if served.is_err() {
        let _ = answer(Answer::Close).await;
        // As above.
        let _held = held;
        std::future::pending::<()>().await;
    }
}

/// What a stream begins with, and the stream with it.
async fn first_byte(
    mut stream: Counted<UnixStream>,
) -> io::Result<(u8, hello::Rewound<Counted<UnixStream>>)> {
    let first = timeout(hello::WITHIN, stream.read_u8()).await;
    let first = first.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok((first, hello::Rewound::new(vec![first], stream)))
}

/// The connection that a route leads to.
async fn connect(gateway: &Gateway, route: Route, port: u16) -> Result<TcpStream, Broken> {
    match route {
        Route::Direct { target, .. } => {
            let connected = dial::connect(target, dial::CONNECT_WITHIN).await;
            connected.map_err(|error| Broken::unreachable(target, &error))
        }
        Route::Named { name, .. } => {
            let policy = gateway.policy();
            let (dialer, host) = (gateway.dialer(), Host::Name(name));
            let dialled = dialer.dial(&policy, &host, port).await;
            dialled.map_err(Broken::undialled)
        }
        Route::Names | Route::Http { .. } => Err(Broken::reset()),
    }
}

async fn datagram_target(gateway: &Gateway, route: Route, port: u16) -> Result<SocketAddr, Broken> {
    let name = match route {
        Route::Direct { target, .. } => return Ok(target),
        Route::Named { name, .. } => Host::Name(name),
        Route::Names | Route::Http { .. } => return Err(Broken::reset()),
    };
    let (policy, dialer) = (gateway.policy(), gateway.dialer());
    let targets = dialer.targets(&policy, Protocol::Udp, &name, port).await;
    let targets = targets.map_err(|denial| Broken::undialled(denial.into()))?;
    // There is one at least.
    targets.first().copied().ok_or_else(Broken::reset)
}

async fn stream<F, S>(
    mut outside: TcpStream,
    inside: &mut Counted<UnixStream>,
    answer: &impl Fn(Answer) -> F,
) -> Result<(), Broken>
where
    F: Future<Output = Result<(), S>>,
{
    if answer(Answer::Accept).await.is_err() {
        return Ok(());
    }
    let passed = copy_bidirectional_with_sizes(inside, &mut outside, BUFFER, BUFFER).await;
    if passed.is_err() {
        return Err(Broken::reset());
    }
    dial::in_order(&outside);
    Ok(())
}

async fn datagrams<F, S>(
    target: SocketAddr,
    inside: &Messages,
    passed: &Passed,
    answer: &impl Fn(Answer) -> F,
) -> Result<(), Broken>
where
    F: Future<Output = Result<(), S>>,
{
    let connected = connect_datagrams(target).await;
    let outside = connected.map_err(|error| Broken::unreachable(target, &error))?;
    if answer(Answer::Accept).await.is_err() {
        return Ok(());
    }
    let count = |counter: &std::sync::atomic::AtomicU64, len| {
        counter.fetch_add(u64::try_from(len).unwrap_or(u64::MAX), Ordering::Relaxed);
    };
    let up = async {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let len = inside.receive(&mut buffer).await?;
            count(&passed.sent, len);
            let datagram = buffer.get(..len).unwrap_or_default();
            // A datagram may be lost: nobody listens, there is no way just now, or it is
            // too long.
            let _ = outside.send(datagram).await;
        }
    };
    let down = async {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            match outside.recv(&mut buffer).await {
                Ok(len) => {
                    inside.send(buffer.get(..len).unwrap_or_default()).await?;
                    count(&passed.received, len);
                }
                Err(error) if may_go_on(&error) => {}
                Err(error) => return Err(error),
            }
        }
    };
    let ended: io::Result<()> = tokio::select! {
        ended = up => ended,
        ended = down => ended,
    };
    ended.map_err(|_| Broken::reset())
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
