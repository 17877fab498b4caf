//! One connection of a guest to a port of HTTP.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flashpan_protocol::network::Protocol;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::editor::Editor;
use super::exchange::Exchange;
use super::failure::Failure;
use super::ongoing::revoked;
use super::pool::{self, Pool};
use super::relay::relay;
use super::strict::{Strict, Switch};
use super::tasks::{Tasks, endable};
use super::{Connected, MAX_HEAD, MAX_HEADERS};
use crate::counted::Counted;
use crate::dial::in_order;
use crate::host::Host;
use crate::meter::{Meter, Untold};
use crate::policy::{Code, Denial, Policy};
use crate::report::{Outcome, Report, Reporter, Scheme};
use crate::tls::hello::{self, Hello, HelloError, Rewound};
use crate::tls::{Authority, Upstream};

/// How long a guest may take for the head of a request, or be silent between two.
const HEAD_WITHIN: Duration = Duration::from_secs(30);

/// Most connections of a guest, at once, that are looked into: each keeps what a host does not
/// take (`docs/network.md`).
pub(crate) const MAX_LOOKED_INTO: usize = 512;

/// How long one more waits for one of these to end.
const ROOM_WITHIN: Duration = Duration::from_secs(10);

/// How long a guest may take for a handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Most requests at once on one connection of HTTP/2.
const MAX_STREAMS: u32 = 100;

/// Most streams that are begun and reset before anybody has looked at them.
const MAX_RESETS: usize = 20;

/// What one stream of HTTP/2 may have under way before it is taken, and all of them: a few
/// that nobody takes do not hold up the others. A guest is near.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

/// What is kept of a response that the guest does not take.
const SEND_BUFFER: usize = 32 * 1024;

/// Who makes connections to hosts that the policy allows: who resolves names, and decides
/// about addresses.
pub trait Dial: Send + Sync + 'static {
    /// A connection to this host.
    ///
    /// # Errors
    /// Why there is none.
    fn dial(
        &self,
        host: &Host,
        port: u16,
    ) -> impl Future<Output = Result<Connected, Denial>> + Send;

    /// Whether a connection that was made for this address ([`Connected::address`]) may be
    /// under this policy. Whether the host may be reached was decided before.
    ///
    /// # Errors
    /// Why not.
    fn may_stay(
        &self,
        policy: &Policy,
        host: &Host,
        port: u16,
        address: IpAddr,
    ) -> Result<(), Denial>;
}

/// What becomes of connections of a guest to ports of HTTP.
pub struct Proxy<D> {
    /// What may be reached; looked at for each request.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// Who vouches for what the guest is shown.
    pub authority: Arc<Authority>,
    /// How hosts are connected to in TLS.
    pub upstream: Arc<Upstream>,
    /// Who is told.
    pub reporter: Reporter,
    /// Who makes connections.
    pub dial: Arc<D>,
    /// Who may change what passes.
    pub editor: Arc<dyn Editor>,
    /// For so many more connections of the guest that are looked into there is room. One more
    /// waits for ten seconds.
    pub room: Arc<Semaphore>,
}

impl<D> fmt::Debug for Proxy<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").finish_non_exhaustive()
    }
}

impl<D: Dial> Proxy<D> {
    /// Serves a connection in the clear that the guest has made to `destination`, until it
    /// has ended. Each request is for the host that it names.
    ///
    /// Dropped, it leaves nothing: no connection to a host, no task.
    ///
    /// # Errors
    /// It broke: the guest must not take its end for one in order.
    pub async fn serve_plain<S>(&self, stream: S, destination: SocketAddr) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let untold = self.untold(Scheme::Http, destination);
        let room = self.room(Scheme::Http, destination).await;
        let _room = room.inspect_err(|_| {
            untold.forget();
        })?;
        let tasks = Tasks::default();
        let exchange = self.exchange(&tasks, destination, None, false, None, untold)?;
        serve_http1(stream, exchange).await
    }

    /// Serves a connection of TLS that the guest has made to `destination`, until it has
    /// ended. It is for the host that its first message names or, if that names none, for
    /// the address of `destination`.
    ///
    /// Where `splice` says so, and no rule is of requests to the host, it is passed on as it
    /// is. What may mean another host than the one that it names (an encrypted hello, or
    /// what looks like one) never is: the host would read what we cannot.
    ///
    /// # Errors
    /// It broke: the guest must not take its end for one in order.
    pub async fn serve_tls<S>(
        &self,
        stream: S,
        destination: SocketAddr,
        splice: impl Fn(&Host) -> bool,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut untold = self.untold(Scheme::Tls, destination);
        let (stream, hello) = hello::read(stream).await;
        let hello = match hello {
            Ok(hello) => hello,
            Err(error) => return Err(self.no_hello(error, destination, &untold)),
        };
        let port = destination.port();
        let host = match &hello.server_name {
            Some(name) => Host::Name(name.clone()),
            None => Host::from(destination.ip()),
        };
        let policy = Arc::clone(&self.policy.borrow());
        let refusal = match policy.connection(Protocol::Tcp, &host, port) {
            Err(denial) => Failure::from(without_name(denial, &hello)),
            Ok(basis) => {
                let is_opened =
                    hello.is_encrypted || policy.has_rules_for(&host, port) || !splice(&host);
                if is_opened {
                    return self.open(stream, destination, host, None, untold).await;
                }
                let name = format!("{host}:{port}");
                let mut report = Report::given_up(Scheme::Tls, name);
                report.destination = Some(destination);
                let mut meter = Meter::new(self.reporter.clone(), report);
                untold.forget();
                match self.dial.dial(&host, port).await {
                    Ok(outside) => {
                        meter.report.outcome = Outcome::Allowed(basis);
                        return self.splice(stream, outside, &host, port, meter).await;
                    }
                    Err(denial) => {
                        // It is told of when it is refused.
                        meter.forget();
                        untold = self.untold(Scheme::Tls, destination);
                        denial.into()
                    }
                }
            }
        };
        self.open(stream, destination, host, Some(refusal), untold)
            .await
    }

    /// Tells of a connection that never said what it wants.
    fn no_hello(&self, error: HelloError, destination: SocketAddr, untold: &Untold) -> io::Error {
        let code = match error {
            // It has gone away, and nothing was decided.
            HelloError::Io(error) => return error,
            HelloError::ServerName => Code::Ambiguous,
            _ => Code::UnknownProtocol,
        };
        let denial = Denial {
            code,
            host: destination.to_string(),
            rule: None,
        };
        untold.forget();
        let mut report = Report::refused(Scheme::Tls, denial);
        report.destination = Some(destination);
        self.reporter.tell(report);
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// What is told of a connection if nothing else is.
    fn untold(&self, scheme: Scheme, destination: SocketAddr) -> Arc<Untold> {
        Arc::new(Untold::new(self.reporter.clone(), scheme, destination))
    }

    /// Waits until there is room for one more connection that is looked into.
    async fn room(
        &self,
        scheme: Scheme,
        destination: SocketAddr,
    ) -> io::Result<OwnedSemaphorePermit> {
        let room = timeout(ROOM_WITHIN, Arc::clone(&self.room).acquire_owned()).await;
        // It is never closed.
        if let Ok(Ok(room)) = room {
            return Ok(room);
        }
        let denial = Denial {
            code: Code::Crowded,
            host: destination.to_string(),
            rule: None,
        };
        let mut report = Report::refused(scheme, denial);
        report.destination = Some(destination);
        self.reporter.tell(report);
        Err(io::ErrorKind::QuotaExceeded.into())
    }

    /// Passes a connection on as it is.
    async fn splice<S>(
        &self,
        stream: Rewound<S>,
        outside: Connected,
        host: &Host,
        port: u16,
        mut meter: Meter,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let address = outside.address();
        // Nothing of it is kept here but what passes just now.
        let mut outside = outside.into_stream();
        outside.set_nodelay(true)?;
        // Whatever ends it but an end in order of both sides: the host must not take it for
        // one.
        outside.set_zero_linger()?;
        let (sent, received) = (Arc::clone(&meter.sent), Arc::clone(&meter.received));
        let mut guest = Counted::new(stream, sent, received);
        let may_be = |policy: &Policy| pool::may_stay(&*self.dial, policy, host, port, address);
        let now = Arc::clone(&self.policy.borrow());
        let denied = async {
            match may_be(&now) {
                Ok(()) => revoked(self.policy.clone(), may_be).await,
                Err(denial) => denial,
            }
        };
        match relay(&mut guest, &mut outside, denied).await {
            Ok(Ok(())) => in_order(&outside),
            Ok(Err(error)) => return Err(error),
            Err(denial) => {
                meter.report.outcome = Outcome::Refused(denial);
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        Ok(())
    }

    /// Opens a connection of TLS as this host. Requests pass, or are refused.
    async fn open<S>(
        &self,
        stream: Rewound<S>,
        destination: SocketAddr,
        host: Host,
        refusal: Option<Failure>,
        untold: Arc<Untold>,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let room = self.room(Scheme::Https, destination).await;
        let _room = room.inspect_err(|_| {
            untold.forget();
        })?;
        let denial = refusal.as_ref().map(|refusal| refusal.denial.clone());
        // Whoever goes without a word after this is told of by name.
        untold.is_for(&format!("{host}:{}", destination.port()), denial.as_ref());
        let acceptor = self.acceptor(&host)?;
        let accepted = timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await;
        let accepted = accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // The guest does not trust us, or wants what we do not speak: nobody else
                // will tell of it.
                let denial = denial.unwrap_or_else(|| Denial {
                    code: match crate::tls::is_distrust(&error) {
                        true => Code::Distrust,
                        false => Code::UnknownProtocol,
                    },
                    host: format!("{host}:{}", destination.port()),
                    rule: None,
                });
                untold.forget();
                let mut report = Report::refused(Scheme::Tls, denial);
                report.destination = Some(destination);
                self.reporter.tell(report);
                return Err(error);
            }
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(crate::tls::HTTP2);
        let tasks = Tasks::default();
        let exchange = self.exchange(&tasks, destination, Some(host), is_http2, refusal, untold)?;
        match is_http2 {
            true => serve_http2(stream, exchange, &tasks).await,
            false => serve_http1(stream, exchange).await,
        }
    }

    fn acceptor(&self, host: &Host) -> io::Result<TlsAcceptor> {
        let leaf = self.authority.leaf(host).map_err(io::Error::other)?;
        let config = crate::tls::server_config(leaf).map_err(io::Error::other)?;
        Ok(TlsAcceptor::from(Arc::<ServerConfig>::new(config)))
    }

    fn exchange(
        &self,
        tasks: &Tasks,
        destination: SocketAddr,
        named: Option<Host>,
        is_http2: bool,
        refusal: Option<Failure>,
        untold: Arc<Untold>,
    ) -> io::Result<Arc<Exchange<D>>> {
        let upstream = named.is_some().then(|| Arc::clone(&self.upstream));
        let dial = Arc::clone(&self.dial);
        let port = destination.port();
        let (policy, spawner) = (self.policy.clone(), tasks.spawner());
        let pool = Pool::new(dial, policy, upstream, port, is_http2, spawner.clone());
        let switch = match is_http2 {
            true => None,
            false => Some(Arc::new(Switch::new(
                crate::tls::random().map_err(io::Error::other)?,
            ))),
        };
        Ok(Arc::new(Exchange {
            policy: self.policy.clone(),
            editor: Arc::clone(&self.editor),
            reporter: self.reporter.clone(),
            dial: Arc::clone(&self.dial),
            pool,
            spawner,
            named,
            destination,
            switch,
            untold,
            refusal,
            relay: Mutex::default(),
        }))
    }
}

/// A guest that names nobody is told so, unless its address is refused for what it is.
fn without_name(mut denial: Denial, hello: &Hello) -> Denial {
    if hello.server_name.is_none() && denial.code == Code::NotAllowed {
        denial.code = Code::NoServerName;
    }
    denial
}

async fn serve_http1<S, D: Dial>(stream: S, exchange: Arc<Exchange<D>>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(switch) = exchange.switch.clone() else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let service = service_fn(|request| {
        let exchange = Arc::clone(&exchange);
        async move { Ok::<_, Infallible>(exchange.answer(request).await) }
    });
    let io = TokioIo::new(Strict::new(stream, switch));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_headers(MAX_HEADERS)
        .max_buf_size(4 * MAX_HEAD)
        .keep_alive(exchange.refusal.is_none())
        // A guest may end its side as soon as it has asked.
        .half_close(true)
        .preserve_header_case(true)
        .auto_date_header(false);
    let served = endable(builder.serve_connection(io, service).with_upgrades()).await;
    // A request on it may not be any more.
    let served = served.ok_or(io::ErrorKind::ConnectionAborted)?;
    if let Err(error) = served {
        if error.is_parse() {
            exchange.tell_unread();
        }
        // It was silent for long enough, as between two requests it may be.
        if error.is_timeout() {
            exchange.tell_silent();
            return Ok(());
        }
        return Err(io::Error::other(error));
    }
    let relay = exchange
        .relay
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    match relay {
        Some(relay) => relay.await,
        None => Ok(()),
    }
}

async fn serve_http2<S, D: Dial>(
    stream: S,
    exchange: Arc<Exchange<D>>,
    tasks: &Tasks,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let is_refused = exchange.refusal.is_some();
    let answered = Arc::new(Notify::new());
    let service = service_fn(|request| {
        let (exchange, answered) = (Arc::clone(&exchange), Arc::clone(&answered));
        async move {
            let response = exchange.answer(request).await;
            if exchange.refusal.is_some() {
                answered.notify_one();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http2::Builder::new(tasks.spawner());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD.try_into().unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .auto_date_header(false);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = answered.notified(), if is_refused => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    served.map_err(io::Error::other)
}
