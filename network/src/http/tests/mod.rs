//! Connections of guests through a proxy to servers, all on sockets of the loopback
//! interface.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bodies;
mod frames;
mod framing;
mod http2;
mod plain;
mod responses;
mod revoked;
mod scripts;
mod secrets;
mod tls;
mod upgrades;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flashpan_protocol::network::Protocol;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Connected, Dial, Plain, Proxy};
use crate::host::Host;
use crate::policy::{Code, Denial, Policy};
use crate::report::{self, Outcome, Report, Reports};
use crate::tls::{Authority, Upstream, server_config};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

/// Fails instead of hanging.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.expect("it took too long")
}

/// Where names lead, and what was asked for.
#[derive(Debug, Default)]
struct Map {
    hosts: Mutex<HashMap<String, SocketAddr>>,
    dialled: Mutex<Vec<String>>,
    /// While somebody takes it, who wants a connection waits for ever.
    waiting: Mutex<Option<mpsc::Sender<()>>>,
}

impl Dial for Map {
    async fn dial(&self, host: &Host, port: u16) -> Result<Connected, Denial> {
        self.dialled.lock().unwrap().push(host.to_string());
        let waiting = self.waiting.lock().unwrap().clone();
        if let Some(waiting) = waiting {
            waiting.send(()).await.unwrap();
            return std::future::pending().await;
        }
        let address = self.hosts.lock().unwrap().get(&host.to_string()).copied();
        let denial = |code| Denial {
            code,
            host: format!("{host}:{port}"),
            rule: None,
        };
        let address = address.ok_or_else(|| denial(Code::Resolve))?;
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|_| denial(Code::Connect))?;
        stream.set_zero_linger().unwrap();
        Ok(Connected::new(stream, address.ip()))
    }

    fn may_stay(
        &self,
        policy: &Policy,
        _: &Host,
        port: u16,
        address: IpAddr,
    ) -> Result<(), Denial> {
        policy.not_denied(Protocol::Tcp, address, port)
    }
}

/// A guest's network.
struct World {
    policy: watch::Sender<Arc<Policy>>,
    proxy: Proxy<Map>,
    reports: Reports,
    /// Who vouches for the servers.
    servers: Arc<Authority>,
}

/// A policy of these patterns, and of these rules.
fn policy(allow: &[&str], rules: &[&str]) -> Policy {
    Policy {
        allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
        rules: rules.iter().map(|text| text.parse().unwrap()).collect(),
        ..Policy::default()
    }
}

impl World {
    fn new(policy: Policy) -> Self {
        Self::with_editor(policy, Arc::new(Plain))
    }

    fn with_editor(policy: Policy, editor: Arc<dyn super::Editor>) -> Self {
        let servers = Arc::new(Authority::new().unwrap());
        let trusted = servers.pem().as_bytes();
        let upstream = Upstream::with_roots(RootCertStore::empty(), trusted, Vec::new()).unwrap();
        let (reporter, reports) = report::channel(64);
        let policy = watch::Sender::new(Arc::new(policy));
        let proxy = Proxy {
            policy: policy.subscribe(),
            authority: Arc::new(Authority::new().unwrap()),
            upstream: Arc::new(upstream),
            reporter,
            dial: Arc::new(Map::default()),
            editor,
            room: Arc::new(Semaphore::new(16)),
        };
        Self {
            policy,
            proxy,
            reports,
            servers,
        }
    }

    fn lead(&self, host: &str, address: SocketAddr) {
        let mut hosts = self.proxy.dial.hosts.lock().unwrap();
        hosts.insert(host.to_owned(), address);
    }

    fn dialled(&self) -> Vec<String> {
        self.proxy.dial.dialled.lock().unwrap().clone()
    }

    fn proxy(&self) -> Proxy<Map> {
        let of = &self.proxy;
        Proxy {
            policy: of.policy.clone(),
            authority: Arc::clone(&of.authority),
            upstream: Arc::clone(&of.upstream),
            reporter: of.reporter.clone(),
            dial: Arc::clone(&of.dial),
            editor: Arc::clone(&of.editor),
            room: Arc::clone(&of.room),
        }
    }

    /// A connection in the clear to a port of some address.
    async fn plain(&self, port: u16) -> (TcpStream, JoinHandle<io::Result<()>>) {
        let (guest, side) = pair().await;
        let proxy = self.proxy();
        let destination = SocketAddr::from(([192, 0, 2, 1], port));
        let served = tokio::spawn(async move { proxy.serve_plain(side, destination).await });
        (guest, served)
    }

    /// A connection to port 443 of some address, before TLS.
    async fn encrypted(&self, splice: bool) -> (TcpStream, JoinHandle<io::Result<()>>) {
        let (guest, side) = pair().await;
        let proxy = self.proxy();
        let destination = SocketAddr::from(([192, 0, 2, 1], 443));
        let serve = async move { proxy.serve_tls(side, destination, |_| splice).await };
        (guest, tokio::spawn(serve))
    }

    /// A connection in TLS, of a guest that trusts its own authority and no other.
    async fn tls(
        &self,
        host: &str,
        alpn: &[&str],
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let (guest, _) = self.encrypted(false).await;
        connect(guest, host, alpn, &self.proxy.authority).await
    }

    async fn report(&mut self) -> Report {
        within(self.reports.next()).await.unwrap().1
    }

    /// The next report is of a refusal.
    async fn refused(&mut self) -> Code {
        match self.report().await.outcome {
            Outcome::Refused(denial) => denial.code,
            Outcome::Allowed(_) => panic!("it was allowed"),
        }
    }
}

/// Both ends of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (guest, side) = tokio::join!(TcpStream::connect(address), listener.accept());
    (guest.unwrap(), side.unwrap().0)
}

/// TLS as a client of this host.
async fn connect(
    stream: TcpStream,
    host: &str,
    alpn: &[&str],
    trusted: &Authority,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|of| of.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    within(connector.connect(name, stream)).await
}

/// What a server gets, and what it says to that.
type Answer = Arc<dyn Fn(&str) -> Vec<u8> + Send + Sync>;

/// A server of HTTP/1 that is nothing but bytes.
#[derive(Clone, Default)]
struct Seen {
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

impl Seen {
    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// A response with this body.
fn ok(body: &str) -> Vec<u8> {
    let len = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{body}").into_bytes()
}

/// Serves HTTP/1 in the clear.
async fn server(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> (SocketAddr, Seen) {
    serve(None, Arc::new(answer)).await
}

/// Serves HTTP/1 in TLS, as this host.
async fn tls_server(
    world: &World,
    host: &str,
    answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
) -> Seen {
    let acceptor = acceptor(&world.servers, host, &["http/1.1"]);
    let (address, seen) = serve(Some(acceptor), Arc::new(answer)).await;
    world.lead(host, address);
    seen
}

fn acceptor(authority: &Authority, host: &str, alpn: &[&str]) -> TlsAcceptor {
    let leaf = authority.leaf(&host.parse().unwrap()).unwrap();
    let mut config = server_config(leaf).unwrap();
    config.alpn_protocols = alpn.iter().map(|of| of.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(acceptor: Option<TlsAcceptor>, answer: Answer) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let of_server = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            of_server.connections.fetch_add(1, Ordering::Relaxed);
            let (seen, answer) = (of_server.clone(), Arc::clone(&answer));
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                match acceptor {
                    None => serve_one(stream, &seen, &answer).await,
                    Some(acceptor) => match acceptor.accept(stream).await {
                        Ok(stream) => serve_one(stream, &seen, &answer).await,
                        Err(_) => Ok(()),
                    },
                }
            });
        }
    });
    (address, seen)
}

/// Reads requests whose bodies have a length, or are in chunks.
async fn serve_one<S>(mut stream: S, seen: &Seen, answer: &Answer) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(mut request) = read_until(&mut stream, "\r\n\r\n").await? {
        let head = request.to_ascii_lowercase();
        if let Some((_, rest)) = head.split_once("content-length: ") {
            let len: usize = rest.split("\r\n").next().unwrap().parse().unwrap();
            let mut body = vec![0; len];
            stream.read_exact(&mut body).await?;
            request.push_str(&String::from_utf8_lossy(&body));
        } else if head.contains("transfer-encoding: chunked") {
            let body = read_until(&mut stream, "0\r\n\r\n").await?;
            request.push_str(&body.unwrap_or_default());
        }
        seen.requests.lock().unwrap().push(request.clone());
        let answer = answer(&request);
        stream.write_all(&answer).await?;
        stream.flush().await?;
        let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        if answer.contains("connection: close") {
            return stream.shutdown().await;
        }
    }
    Ok(())
}

/// Reads up to and with this text; none at the end of the stream.
async fn read_until<S: AsyncRead + Unpin>(stream: &mut S, end: &str) -> io::Result<Option<String>> {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        match stream.read_u8().await {
            Ok(byte) => text.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// A response: its status, its head, its body as it came.
#[derive(Debug)]
struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    /// The code of a refusal.
    fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        let code = body["code"].as_str().unwrap().to_owned();
        assert!(body["host"].is_string() && body["hint"].is_string());
        let head = self.head.to_ascii_lowercase();
        assert!(
            head.contains(&format!("x-flashpan-denied: {code}\r\n")),
            "{head}"
        );
        assert!(
            head.contains("content-type: application/json\r\n"),
            "{head}"
        );
        code
    }
}

/// Sends bytes, and reads a response.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, request: &str) -> Got {
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    got(stream).await
}

/// Reads a response.
async fn got<S: AsyncRead + Unpin>(stream: &mut S) -> Got {
    let head = within(read_until(stream, "\r\n\r\n")).await.unwrap();
    let head = head.expect("no response");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let lower = head.to_ascii_lowercase();
    let body = if let Some((_, rest)) = lower.split_once("content-length: ") {
        let len: usize = rest.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; len];
        within(stream.read_exact(&mut body)).await.unwrap();
        String::from_utf8_lossy(&body).into_owned()
    } else if lower.contains("transfer-encoding: chunked") {
        within(read_until(stream, "0\r\n\r\n"))
            .await
            .unwrap()
            .unwrap()
    } else {
        String::new()
    };
    Got { status, head, body }
}

/// What is left until the end, and whether that was one in order.
async fn rest<S: AsyncRead + Unpin>(stream: &mut S) -> (String, io::Result<()>) {
    let mut rest = Vec::new();
    let ended = within(stream.read_to_end(&mut rest)).await.map(drop);
    (String::from_utf8_lossy(&rest).into_owned(), ended)
}
