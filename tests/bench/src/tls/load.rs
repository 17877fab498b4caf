//! The client of all requests.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio_rustls::TlsConnector;

use super::{nanoseconds, opened, server};

type Body = BoxBody<Bytes, std::convert::Infallible>;

/// Longer than any request takes.
const WITHIN: Duration = Duration::from_secs(120);

/// Which way much is sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    Down,
    Up,
}

/// Who makes requests to a place.
#[derive(Clone)]
pub(super) struct Client {
    address: SocketAddr,
    connector: TlsConnector,
    host: &'static str,
}

impl Client {
    pub(super) fn new(address: SocketAddr, trusted: &Path, host: &'static str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let pem = CertificateDer::pem_file_iter(trusted);
        for certificate in pem.with_context(|| format!("read {}", trusted.display()))? {
            roots
                .add(certificate.context("read a certificate")?)
                .context("trust a certificate")?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("set TLS up")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            address,
            connector: TlsConnector::from(Arc::new(config)),
            host,
        })
    }

    async fn connect(&self) -> Result<SendRequest<Body>> {
        let stream = TcpStream::connect(self.address).await.context("connect")?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let name = ServerName::try_from(self.host).context("a name")?;
        let stream = self.connector.connect(name, stream).await;
        let stream = TokioIo::new(stream.context("begin TLS")?);
        let (requests, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .context("begin HTTP")?;
        tokio::spawn(connection);
        Ok(requests)
    }

    /// One request, to its end; how many bytes came.
    async fn request(
        &self,
        requests: &mut SendRequest<Body>,
        path: &str,
        length: u64,
    ) -> Result<u64> {
        let one = async {
            requests.ready().await.context("be ready for a request")?;
            let request = Request::builder()
                .method(if length == 0 { "GET" } else { "POST" })
                .uri(path)
                .header("host", self.host)
                .header("authorization", format!("Bearer {}", opened::PLACEHOLDER))
                .header("content-length", length)
                .body(server::bytes(length).boxed())
                .context("make a request")?;
            let response = requests.send_request(request).await;
            let mut response = response.context("send a request")?;
            if response.status() != StatusCode::OK {
                bail!("the answer is {}", response.status());
            }
            let mut came = 0_u64;
            while let Some(frame) = response.frame().await {
                if let Some(data) = frame.context("read an answer")?.data_ref() {
                    came = came.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
                }
            }
            Ok(came)
        };
        tokio::time::timeout(WITHIN, one)
            .await
            .context("a request takes too long")?
    }

    /// The middle time of so many requests on one connection, in nanoseconds.
    pub(super) async fn alone(&self, count: usize) -> Result<f64> {
        let mut requests = self.connect().await?;
        let mut times = Vec::new();
        for _ in 0..count {
            let begun = Instant::now();
            self.request(&mut requests, "/", 0).await?;
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        let middle = times.get(times.len() / 2).context("there were none")?;
        Ok(nanoseconds(*middle))
    }

    /// The time for each request, in nanoseconds, when so many connections make so many.
    pub(super) async fn together(&self, connections: usize, count: usize) -> Result<f64> {
        let ready = Arc::new(Barrier::new(connections.saturating_add(1)));
        let mut clients = Vec::new();
        for _ in 0..connections {
            let (client, ready) = (self.clone(), Arc::clone(&ready));
            clients.push(tokio::spawn(async move {
                let mut requests = client.connect().await?;
                // Of the way to the server nothing is made anew from here on.
                let first = client.request(&mut requests, "/", 0).await;
                ready.wait().await;
                first?;
                for _ in 0..count {
                    client.request(&mut requests, "/", 0).await?;
                }
                anyhow::Ok(())
            }));
        }
        let all = tokio::time::timeout(WITHIN, ready.wait());
        all.await.context("not all connections came about")?;
        let begun = Instant::now();
        for client in clients {
            client.await.context("a client ended")??;
        }
        let number = u32::try_from(connections.saturating_mul(count)).context("too many")?;
        Ok(nanoseconds(begun.elapsed()) / f64::from(number))
    }

    /// The time for so many bytes.
    pub(super) async fn stream(&self, direction: Direction, length: u64) -> Result<Duration> {
        let mut requests = self.connect().await?;
        let begun = Instant::now();
        let (path, up, down) = match direction {
            Direction::Down => (format!("/{length}"), 0, length),
            Direction::Up => ("/".to_owned(), length, 1024),
        };
        let came = self.request(&mut requests, &path, up).await?;
        match came == down {
            true => Ok(begun.elapsed()),
            false => bail!("{came} bytes came instead of {down}"),
        }
    }
}
