//! One flow that may be: the host's connection for it, and what passes.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use flashpan_protocol::network::{Protocol, Refusal};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::time::timeout;

use crate::Answer;
use crate::message::Messages;

/// How long a connection may take. The guest waits for two minutes, as the host would.
const CONNECT_WITHIN: Duration = Duration::from_secs(120);

/// What passes at once, in each direction.
const BUFFER: usize = 32 * 1024;

/// The longest datagram there is.
const MAX_DATAGRAM: usize = 65_535;

/// Makes the connection, has the guest told, and passes on what comes, until both sides
/// have ended. Dropped, it leaves nothing.
pub(crate) async fn serve<F, S>(
    protocol: Protocol,
    target: SocketAddr,
    socket: OwnedFd,
    answer: impl Fn(Answer) -> F,
) where
    F: Future<Output = Result<(), S>>,
{
    let served = match protocol {
        Protocol::Tcp => stream(target, socket, &answer).await,
        Protocol::Udp => datagrams(target, socket, &answer).await,
    };
    if let Err(last) = served {
        // Fails only if nobody is there any more to be told.
        drop(answer(last).await);
    }
}

/// An error is the last answer.
async fn stream<F, S>(
    target: SocketAddr,
    socket: OwnedFd,
    answer: &impl Fn(Answer) -> F,
) -> Result<(), Answer>
where
    F: Future<Output = Result<(), S>>,
{
    let refuse = |error: io::Error| Answer::Refuse(refusal(&error));
    let connecting = timeout(CONNECT_WITHIN, TcpStream::connect(target)).await;
    let connecting = connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let mut outside = connecting.map_err(refuse)?;
    // What the guest sends at once it wants to have arrive at once: its own kernel has
    // waited for more where it wanted to.
    outside.set_nodelay(true).map_err(refuse)?;
    // Whatever ends it but an end in order of both sides: the other end must not take it
    // for one.
    outside.set_zero_linger().map_err(refuse)?;
    let inside = std::os::unix::net::UnixStream::from(socket);
    inside.set_nonblocking(true).map_err(refuse)?;
    let mut inside = UnixStream::from_std(inside).map_err(refuse)?;
    if answer(Answer::Accept).await.is_err() {
        return Ok(());
    }
    let passed = copy_bidirectional_with_sizes(&mut inside, &mut outside, BUFFER, BUFFER).await;
    if passed.is_err() {
        // The guest would take a closed stream for an end in order: it stays open until the
        // guest's side is gone, and this with it.
        drop(outside);
        let _ = answer(Answer::Close).await;
        return std::future::pending().await;
    }
    let in_order = nix::libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    // Fails only for a socket that is none.
    let _ = setsockopt(&outside, sockopt::Linger, &in_order);
    Ok(())
}

async fn datagrams<F, S>(
    target: SocketAddr,
    socket: OwnedFd,
    answer: &impl Fn(Answer) -> F,
) -> Result<(), Answer>
where
    F: Future<Output = Result<(), S>>,
{
    let refuse = |error: io::Error| Answer::Refuse(refusal(&error));
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let outside = UdpSocket::bind(any).await.map_err(refuse)?;
    // From here on nobody else's datagrams come.
    outside.connect(target).await.map_err(refuse)?;
    // What came before from anybody.
    let mut stray = [0; 1];
    while outside.try_recv(&mut stray).is_ok() {}
    let inside = Messages::new(socket).map_err(refuse)?;
    if answer(Answer::Accept).await.is_err() {
        return Ok(());
    }
    let up = async {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let len = inside.receive(&mut buffer).await?;
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
                Ok(len) => inside.send(buffer.get(..len).unwrap_or_default()).await?,
                Err(error) if may_go_on(&error) => {}
                Err(error) => return Err(error),
            }
        }
    };
    let ended: io::Result<()> = tokio::select! {
        ended = up => ended,
        ended = down => ended,
    };
    ended.map_err(|_| Answer::Close)
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
