//! Whoever asks the name servers.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hickory_resolver::Resolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::{
    DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime,
};
use tokio::io::{Interest, ReadBuf};
use tokio::net::UdpSocket;

/// How long one server may take before it is asked again, and others besides.
const SERVER_WITHIN: Duration = Duration::from_secs(2);

/// Most questions that one connection to a server has.
const MAX_ACTIVE: usize = 128;

/// Asks name servers.
pub(super) type Upstream = Resolver<Sockets>;

/// Whoever asks these servers; nobody if there are none.
pub(super) fn asking(servers: &[SocketAddr]) -> Option<Upstream> {
    if servers.is_empty() {
        return None;
    }
    let server = |address: &SocketAddr| {
        let mut server = NameServerConfig::udp_and_tcp(address.ip());
        let at_port = |connection: &mut ConnectionConfig| connection.port = address.port();
        server.connections.iter_mut().for_each(at_port);
        server
    };
    let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
    let mut options = ResolverOpts::default();
    options.timeout = SERVER_WITHIN;
    options.attempts = 1;
    options.use_hosts_file = ResolveHosts::Never;
    // What was answered is kept by the resolver of each guest, in less room.
    options.cache_size = 0;
    options.max_active_requests = MAX_ACTIVE;
    let mut builder = Resolver::builder_with_config(config, Sockets::default());
    *builder.options_mut() = options;
    // Fails only with TLS, of which there is none.
    builder.build().ok()
}

/// Sockets of tokio, those of UDP connected: that nobody listens at a server is known at
/// once then, and answers of others do not even arrive.
#[derive(Clone, Default)]
pub(super) struct Sockets(TokioRuntimeProvider);

impl RuntimeProvider for Sockets {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = Connected;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        within: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        self.0.connect_tcp(server, local, within)
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            socket.connect(server).await?;
            Ok(Connected { socket, server })
        })
    }
}

/// A socket that is connected to a server.
pub(super) struct Connected {
    socket: UdpSocket,
    server: SocketAddr,
}

impl DnsUdpSocket for Connected {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buffer = ReadBuf::new(buffer);
        let from = ready!(self.socket.poll_recv_from(cx, &mut buffer))?;
        Poll::Ready(Ok((buffer.filled().len(), from)))
    }

    /// An error of the socket does not wake who waits for datagrams alone.
    fn recv_from<'a, 'b, 'c>(
        &'a self,
        buffer: &'b mut [u8],
    ) -> Pin<Box<dyn Future<Output = io::Result<(usize, SocketAddr)>> + Send + 'c>>
    where
        'a: 'c,
        'b: 'c,
    {
        let is_blocked = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        let error = || match self.socket.take_error() {
            Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(Some(error)) | Err(error) => Ok(error),
        };
        Box::pin(async move {
            loop {
                let either = Interest::READABLE | Interest::ERROR;
                self.socket.ready(either).await?;
                match self.socket.try_recv_from(buffer) {
                    Err(error) if is_blocked(&error) => {}
                    received => return received,
                }
                if let Ok(error) = self.socket.try_io(Interest::ERROR, error) {
                    return Err(error);
                }
            }
        })
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        datagram: &[u8],
        target: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        if (target.ip(), target.port()) != (self.server.ip(), self.server.port()) {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        }
        self.socket.poll_send(cx, datagram)
    }
}
