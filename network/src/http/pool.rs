//! The connections to hosts that one connection of a guest uses.

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use flashpan_protocol::network::Protocol;
use http::StatusCode;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::Dial;
use super::body::Outgoing;
use super::failure::Failure;
use super::ongoing::revoked;
use super::tasks::Spawner;
use super::{MAX_HEAD, MAX_HEADERS};
use crate::host::Host;
use crate::policy::{Code, Denial, Policy};
use crate::tls::{Alpn, HTTP2, Upstream};

/// Most connections that wait for the next request.
const MAX_IDLE: usize = 8;

/// How long a connection may take to be ready again after all of a response was there.
const READY_WITHIN: Duration = Duration::from_secs(1);

/// What one stream of HTTP/2 may have under way before it is taken, and all of them: a few
/// that nobody takes do not hold up the others. Of how many connections there are it follows
/// what a guest can have kept here (`docs/network.md`).
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

/// What is kept of the body of a request that the host does not take.
const SEND_BUFFER: usize = 16 * 1024;

/// Connections to hosts, all to one port, all with TLS or all without.
pub(crate) struct Pool<D> {
    dial: Arc<D>,
    policy: watch::Receiver<Arc<Policy>>,
    /// With TLS.
    upstream: Option<Arc<Upstream>>,
    port: u16,
    spawner: Spawner,
    idle: Arc<Idle>,
    /// The connection of HTTP/2, if that is what the guest speaks.
    shared: tokio::sync::Mutex<Shared>,
}

type Idle = Mutex<VecDeque<(Host, Line, http1::SendRequest<Outgoing>)>>;

enum Shared {
    /// The guest speaks HTTP/1: so does everybody.
    Never,
    /// Nobody has asked the host yet.
    Unknown,
    Open(Host, Line, http2::SendRequest<Outgoing>),
    /// The host speaks HTTP/1.
    Refused,
}

/// A connection on which a request can be sent.
pub(crate) enum Connection {
    Http1(http1::SendRequest<Outgoing>),
    Http2(http2::SendRequest<Outgoing>),
}

/// Where a connection goes, and what ends it.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// The address that it was allowed for.
    pub(crate) address: IpAddr,
    pub(crate) end: Arc<Notify>,
}

/// A connection, and whether it has been used before.
pub(crate) struct Taken {
    pub(crate) connection: Connection,
    pub(crate) line: Line,
    pub(crate) is_used: bool,
}

/// A connection that goes back when its response is over.
pub(crate) struct Lease {
    host: Host,
    line: Line,
    sender: http1::SendRequest<Outgoing>,
    idle: Weak<Idle>,
    is_sent: Arc<AtomicBool>,
}

impl<D: Dial> Pool<D> {
    pub(crate) fn new(
        dial: Arc<D>,
        policy: watch::Receiver<Arc<Policy>>,
        upstream: Option<Arc<Upstream>>,
        port: u16,
        is_http2: bool,
        spawner: Spawner,
    ) -> Self {
        let shared = match is_http2 {
            true => Shared::Unknown,
            false => Shared::Never,
        };
        Self {
            dial,
            policy,
            upstream,
            port,
            spawner,
            idle: Arc::default(),
            shared: tokio::sync::Mutex::new(shared),
        }
    }

    /// A connection to this host; one that has not been used if `is_new`.
    pub(crate) async fn take(&self, host: &Host, is_new: bool) -> Result<Taken, Failure> {
        {
            // Whoever comes while the first one connects learns from it what the host speaks.
            let mut shared = self.shared.lock().await;
            match &*shared {
                Shared::Open(of, line, sender)
                    if of == host && !sender.is_closed() && !is_new && self.may_stay(of, line) =>
                {
                    return Ok(Taken {
                        connection: Connection::Http2(sender.clone()),
                        line: line.clone(),
                        is_used: true,
                    });
                }
                Shared::Unknown | Shared::Open(..) => {
                    let taken = self.connect(host, Alpn::Any).await?;
                    *shared = match &taken.connection {
                        Connection::Http2(sender) => {
                            Shared::Open(host.clone(), taken.line.clone(), sender.clone())
                        }
                        Connection::Http1(_) => Shared::Refused,
                    };
                    return Ok(taken);
                }
                Shared::Never | Shared::Refused => {}
            }
        }
        while !is_new && let Some((line, mut sender)) = self.idle(host) {
            if let Ok(Ok(())) = timeout(READY_WITHIN, sender.ready()).await {
                return Ok(Taken {
                    connection: Connection::Http1(sender),
                    line,
                    is_used: true,
                });
            }
        }
        self.connect(host, Alpn::Http1).await
    }

    /// Lets a connection go back when its response is over, if all of the request has been
    /// sent by then.
    pub(crate) fn lease(
        &self,
        host: &Host,
        taken: Taken,
        is_sent: Arc<AtomicBool>,
    ) -> Option<Lease> {
        match taken.connection {
            Connection::Http2(_) => None,
            Connection::Http1(sender) => Some(Lease {
                host: host.clone(),
                line: taken.line,
                sender,
                idle: Arc::downgrade(&self.idle),
                is_sent,
            }),
        }
    }

    fn idle(&self, host: &Host) -> Option<(Line, http1::SendRequest<Outgoing>)> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(of, line, sender)| !sender.is_closed() && self.may_stay(of, line));
        let at = idle.iter().position(|(of, ..)| of == host)?;
        idle.remove(at).map(|(_, line, sender)| (line, sender))
    }

    /// Whether a connection may still be used.
    fn may_stay(&self, host: &Host, line: &Line) -> bool {
        let policy = Arc::clone(&self.policy.borrow());
        may_stay(&*self.dial, &policy, host, self.port, line.address).is_ok()
    }

    /// Runs a connection until it has ended, or may not be any more.
    fn run(&self, host: &Host, line: &Line, connection: impl Future + Send + 'static) {
        let (dial, host, port) = (Arc::clone(&self.dial), host.clone(), self.port);
        let (policy, line) = (self.policy.clone(), line.clone());
        let run = async move {
            let may_be = |policy: &Policy| may_stay(&*dial, policy, &host, port, line.address);
            tokio::select! {
                // What is ended does not end in order.
                biased;
                () = line.end.notified() => {}
                _ = revoked(policy, may_be) => {}
                // Whoever waits for a response is told.
                _ = connection => {}
            }
        };
        self.spawner.spawn(run);
    }

    async fn connect(&self, host: &Host, alpn: Alpn) -> Result<Taken, Failure> {
        let stream = self.dial.dial(host, self.port).await?;
        let line = Line {
            address: stream.address(),
            end: Arc::default(),
        };
        let failed = |code, status, why: &str| {
            Failure::new(status, code, format!("{host}:{}", self.port)).because(why)
        };
        let Some(upstream) = &self.upstream else {
            return self.http1(host, line, TokioIo::new(stream)).await;
        };
        let stream = upstream.connect(host, self.port, alpn, stream).await;
        let stream = stream.map_err(|error| match error.is_late {
            true => failed(error.code, StatusCode::GATEWAY_TIMEOUT, &error.why),
            false => failed(error.code, StatusCode::BAD_GATEWAY, &error.why),
        })?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
        let io = TokioIo::new(stream);
        if !is_http2 {
            return self.http1(host, line, io).await;
        }
        let mut builder = http2::Builder::new(self.spawner.clone());
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD.try_into().unwrap_or(u32::MAX))
            .max_send_buf_size(SEND_BUFFER)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, connection) = builder
            .handshake(io)
            .await
            .map_err(|error| failed(Code::Connect, StatusCode::BAD_GATEWAY, &error.to_string()))?;
        self.run(host, &line, connection);
        Ok(Taken {
            connection: Connection::Http2(sender),
            line,
            is_used: false,
        })
    }

    async fn http1<I>(&self, host: &Host, line: Line, io: I) -> Result<Taken, Failure>
    where
        I: Read + Write + Unpin + Send + 'static,
    {
        let mut builder = http1::Builder::new();
        builder
            .preserve_header_case(true)
            .max_headers(MAX_HEADERS)
            .max_buf_size(4 * MAX_HEAD);
        let (sender, connection) = builder.handshake(io).await.map_err(|_| {
            let host = format!("{host}:{}", self.port);
            Failure::new(StatusCode::BAD_GATEWAY, Code::Connect, host)
        })?;
        self.run(host, &line, connection.with_upgrades());
        Ok(Taken {
            connection: Connection::Http1(sender),
            line,
            is_used: false,
        })
    }
}

/// Whether a connection to a host, which was allowed for this address, may be.
pub(crate) fn may_stay<D: Dial>(
    dial: &D,
    policy: &Policy,
    host: &Host,
    port: u16,
    address: IpAddr,
) -> Result<(), Denial> {
    policy.connection(Protocol::Tcp, host, port)?;
    dial.may_stay(policy, host, port, address)
}

impl<D> fmt::Debug for Pool<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Taken {
    /// What ends the connection, if a request on it is alone there.
    pub(crate) fn alone(&self) -> Option<Arc<Notify>> {
        (!self.connection.is_http2()).then(|| Arc::clone(&self.line.end))
    }
}

impl Connection {
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    pub(crate) async fn send(
        &mut self,
        request: http::Request<Outgoing>,
    ) -> Result<http::Response<Incoming>, TrySendError<http::Request<Outgoing>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        }
    }
}

impl Lease {
    pub(crate) fn give_back(self) {
        let Some(idle) = self.idle.upgrade() else {
            return;
        };
        if !self.is_sent.load(Ordering::Acquire) || self.sender.is_closed() {
            return;
        }
        let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() == MAX_IDLE {
            idle.pop_front();
        }
        idle.push_back((self.host, self.line, self.sender));
    }
}
