//! The server of all requests: `/` is a kilobyte, `/N` so many bytes, and what is sent to
//! it is read to its end.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use flashpan_network::host::Host;
use flashpan_network::tls::Authority;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What a plain answer is.
const SMALL: u64 = 1024;

static CHUNK: [u8; 64 * 1024] = [b'x'; 64 * 1024];

/// A certificate for whatever name it is asked for, and for the loopback interface.
#[derive(Debug)]
struct Any(Arc<Authority>);

impl ResolvesServerCert for Any {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = match hello.server_name() {
            Some(name) => name.parse().ok()?,
            None => Host::from(IpAddr::from(Ipv4Addr::LOCALHOST)),
        };
        self.0.leaf(&host).ok()
    }
}

/// Starts it; where it listens.
pub(super) async fn start(authority: Arc<Authority>) -> Result<SocketAddr> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("set TLS up")?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Any(authority)));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.context("listen")?;
    let address = listener.local_addr().context("see where it listens")?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                // How it ends its client sees.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .await;
            });
        }
    });
    Ok(address)
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let length = request.uri().path().trim_start_matches('/');
    let length = length.parse().unwrap_or(SMALL);
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.frame().await {}
    let mut response = Response::new(bytes(length).boxed());
    let headers = response.headers_mut();
    headers.insert("content-length", length.into());
    headers.insert(
        "content-type",
        hyper::header::HeaderValue::from_static("text/plain"),
    );
    Ok(response)
}

/// A body of so many bytes.
pub(super) fn bytes(
    mut left: u64,
) -> impl hyper::body::Body<Data = Bytes, Error = Infallible> + Send + Sync + 'static {
    let chunks = std::iter::from_fn(move || {
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let chunk = CHUNK.get(..most).unwrap_or(&CHUNK);
        left = left.saturating_sub(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        (!chunk.is_empty()).then(|| Ok(Frame::data(Bytes::from_static(chunk))))
    });
    http_body_util::StreamBody::new(futures_util::stream::iter(chunks))
}
