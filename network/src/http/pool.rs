//! The connections to hosts that one connection of a guest uses.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use http::StatusCode;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::{Read, Write};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::timeout;

use super::Dial;
use super::body::Outgoing;
use super::failure::Failure;
use super::tasks::Spawner;
use super::{MAX_HEAD, MAX_HEADERS};
use crate::host::Host;
use crate::policy::Code;
use crate::tls::{Alpn, HTTP2, Upstream};

/// Most connections that wait for the next request.
const MAX_IDLE: usize = 8;

/// How long a connection may take to be ready again after all of a response was there.
const READY_WITHIN: Duration = Duration::from_secs(1);

/// What one stream of HTTP/2 may have under way before it is taken, and all of them: a few
/// that nobody takes do not hold up the others.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

/// Connections to hosts, all to one port, all with TLS or all without.
pub(crate) struct Pool<D> {
    dial: Arc<D>,
    /// With TLS.
    upstream: Option<Arc<Upstream>>,
    port: u16,
    spawner: Spawner,
    idle: Arc<Idle>,
    /// The connection of HTTP/2, if that is what the guest speaks.
    shared: tokio::sync::Mutex<Shared>,
}

type Idle = Mutex<VecDeque<(Host, http1::SendRequest<Outgoing>)>>;

enum Shared {
    /// The guest speaks HTTP/1: so does everybody.
    Never,
    /// Nobody has asked the host yet.
    Unknown,
    Open(Host, http2::SendRequest<Outgoing>),
    /// The host speaks HTTP/1.
    Refused,
}

/// A connection on which a request can be sent.
pub(crate) enum Connection {
    Http1(http1::SendRequest<Outgoing>),
    Http2(http2::SendRequest<Outgoing>),
}

/// A connection, and whether it has been used before.
pub(crate) struct Taken {
    pub(crate) connection: Connection,
    pub(crate) is_used: bool,
}

/// A connection that goes back when its response is over.
pub(crate) struct Lease {
    host: Host,
    sender: http1::SendRequest<Outgoing>,
    idle: Weak<Idle>,
    is_sent: Arc<AtomicBool>,
}

impl<D: Dial> Pool<D> {
    pub(crate) fn new(
        dial: Arc<D>,
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
                Shared::Open(of, sender) if of == host && !sender.is_closed() && !is_new => {
                    return Ok(Taken {
                        connection: Connection::Http2(sender.clone()),
                        is_used: true,
                    });
                }
                Shared::Unknown | Shared::Open(..) => {
                    let connection = self.connect(host, Alpn::Any).await?;
                    *shared = match &connection {
                        Connection::Http2(sender) => Shared::Open(host.clone(), sender.clone()),
                        Connection::Http1(_) => Shared::Refused,
                    };
                    return Ok(Taken {
                        connection,
                        is_used: false,
                    });
                }
                Shared::Never | Shared::Refused => {}
            }
        }
        while !is_new && let Some(mut sender) = self.idle(host) {
            if let Ok(Ok(())) = timeout(READY_WITHIN, sender.ready()).await {
                return Ok(Taken {
                    connection: Connection::Http1(sender),
                    is_used: true,
                });
            }
        }
        let connection = self.connect(host, Alpn::Http1).await?;
        Ok(Taken {
            connection,
            is_used: false,
        })
    }

    /// Lets a connection go back when its response is over, if all of the request has been
    /// sent by then.
    pub(crate) fn lease(
        &self,
        host: &Host,
        connection: Connection,
        is_sent: Arc<AtomicBool>,
    ) -> Option<Lease> {
        match connection {
            Connection::Http2(_) => None,
            Connection::Http1(sender) => Some(Lease {
                host: host.clone(),
                sender,
                idle: Arc::downgrade(&self.idle),
                is_sent,
            }),
        }
    }

    fn idle(&self, host: &Host) -> Option<http1::SendRequest<Outgoing>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, sender)| !sender.is_closed());
        let at = idle.iter().position(|(of, _)| of == host)?;
        idle.remove(at).map(|(_, sender)| sender)
    }

    async fn connect(&self, host: &Host, alpn: Alpn) -> Result<Connection, Failure> {
        let stream = self.dial.dial(host, self.port).await?;
        let failed = |code, status| Failure::new(status, code, format!("{host}:{}", self.port));
        // What is sent at once is to arrive at once.
        let _ = stream.set_nodelay(true);
        let Some(upstream) = &self.upstream else {
            return self.http1(host, TokioIo::new(stream)).await;
        };
        let stream = upstream.connect(host, self.port, alpn, stream).await;
        let stream = stream.map_err(|error| match error.is_late {
            true => failed(error.code, StatusCode::GATEWAY_TIMEOUT),
            false => failed(error.code, StatusCode::BAD_GATEWAY),
        })?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
        let io = TokioIo::new(stream);
        if !is_http2 {
            return self.http1(host, io).await;
        }
        let mut builder = http2::Builder::new(self.spawner.clone());
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD.try_into().unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (sender, connection) = builder
            .handshake(io)
            .await
            .map_err(|_| failed(Code::Connect, StatusCode::BAD_GATEWAY))?;
        self.spawner.spawn(async {
            // Whoever waits for a response is told.
            let _ = connection.await;
        });
        Ok(Connection::Http2(sender))
    }

    async fn http1<I>(&self, host: &Host, io: I) -> Result<Connection, Failure>
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
        self.spawner.spawn(async {
            // Whoever waits for a response is told.
            let _ = connection.with_upgrades().await;
        });
        Ok(Connection::Http1(sender))
    }
}

impl<D> fmt::Debug for Pool<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
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
        idle.push_back((self.host, self.sender));
    }
}
