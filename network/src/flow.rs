//! One flow that may be: the host's connection for it, and what passes.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flashpan_protocol::network::{Protocol, Refusal, Tuple};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::time::timeout;

use crate::gateway::{Answer, Gateway, Route};
use crate::message::Messages;
use crate::policy::{Basis, Code, Denial};
use crate::report::{Outcome, Report, Scheme};
use crate::telling::{Counted, Passed, Telling};

/// How long a connection may take. The guest waits for two minutes, as the host would.
const CONNECT_WITHIN: Duration = Duration::from_secs(120);

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
    let mut telling = Telling::new(gateway.reporter(), report(protocol, tuple));
    let (target, basis) = match gateway.route(protocol, tuple) {
        Ok(Route::Names(server)) => (server, Basis::Open),
        Ok(Route::Direct { target, basis }) => (target, basis),
        Err(denial) => {
            telling.outcome(Outcome::Refused(denial));
            drop(telling);
            let denied = match protocol {
                Protocol::Tcp => Refusal::Reset,
                Protocol::Udp => Refusal::Prohibited,
            };
            // Fails only if nobody is there any more to be told.
            return drop(answer(Answer::Refuse(denied)).await);
        }
    };
    telling.outcome(Outcome::Allowed(basis));
    let passed = Arc::clone(telling.passed());
    let served = match Inside::new(protocol, socket, &passed) {
        Err(error) => Err((Broken::unreachable(target, &error), None)),
        Ok(mut inside) => {
            let flow = async {
                match &mut inside {
                    Inside::Stream(inside) => stream(target, inside, &answer).await,
                    Inside::Datagrams(inside) => datagrams(target, inside, &passed, &answer).await,
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
        telling.outcome(Outcome::Refused(denial));
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

/// Connects as the guest wants it: what it sends at once it wants to have arrive at once,
/// since its own kernel has waited for more where it wanted to.
///
/// Whatever ends it but an end in order of both sides: the other end must not take it for
/// one ([`in_order`]).
async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let connecting = timeout(CONNECT_WITHIN, TcpStream::connect(target)).await;
    let outside = connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    outside.set_nodelay(true)?;
    outside.set_zero_linger()?;
    Ok(outside)
}

/// Both sides have ended in order: so does the connection.
fn in_order(outside: &TcpStream) {
    let in_order = nix::libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    // Fails only for a socket that is none.
    let _ = setsockopt(outside, sockopt::Linger, &in_order);
}

async fn stream<F, S>(
    target: SocketAddr,
    inside: &mut Counted<UnixStream>,
    answer: &impl Fn(Answer) -> F,
) -> Result<(), Broken>
where
    F: Future<Output = Result<(), S>>,
{
    let connected = connect(target).await;
    let mut outside = connected.map_err(|error| Broken::unreachable(target, &error))?;
    if answer(Answer::Accept).await.is_err() {
        return Ok(());
    }
    let passed = copy_bidirectional_with_sizes(inside, &mut outside, BUFFER, BUFFER).await;
    if passed.is_err() {
        return Err(Broken::reset());
    }
    in_order(&outside);
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

/// Whether an error was one of a single datagram.
fn may_go_on(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
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
