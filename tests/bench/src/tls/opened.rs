//! Our side: what a VM's supervisor does with its guest's TLS, in a process of its own.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use flashpan_network::edit::{Edits, Options, Secret, Secrets};
use flashpan_network::host::Host;
use flashpan_network::http::{Connected, Dial, Proxy};
use flashpan_network::policy::{Code, Denial, Policy};
use flashpan_network::report;
use flashpan_network::tls::{Authority, Upstream};
use rustls::RootCertStore;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::HOST;

/// In each request; a value comes in its place, and is taken out of answers.
pub(super) const PLACEHOLDER: &str = "placeholder-0123456789abcdef";

/// Connections at once: more than the client makes.
const ROOM: usize = 512;

/// Every name leads to the server.
struct ToServer(SocketAddr);

impl Dial for ToServer {
    async fn dial(&self, host: &Host, port: u16) -> Result<Connected, Denial> {
        let connected = TcpStream::connect(self.0).await;
        let connected = connected.map(|stream| Connected::new(stream, self.0.ip()));
        connected.map_err(|_| Denial {
            code: Code::Connect,
            host: format!("{host}:{port}"),
            rule: None,
        })
    }

    fn may_stay(&self, _: &Policy, _: &Host, _: u16, _: IpAddr) -> Result<(), Denial> {
        Ok(())
    }
}

/// Opens the TLS of whoever connects, says where on standard output, and never ends.
pub(crate) fn serve(server: &str, trusted: &str, authority_file: &str) -> Result<()> {
    let server = server.parse().context("the server is an address")?;
    let trusted = fs::read(trusted).with_context(|| format!("read {trusted}"))?;
    let host = HOST.parse().context("a pattern")?;
    let secret = Secret::new(
        "TOKEN",
        "the-value-of-the-secret".to_owned().into(),
        PLACEHOLDER,
        vec![host],
    );
    let secrets = Secrets::new(vec![secret]).context("make a secret")?;
    let options = Options {
        scrub: true,
        all: true,
        ..Options::default()
    };
    let policy = Policy {
        allow: vec![HOST.parse().context("a pattern")?],
        rules: vec![
            "allow GET,POST bench.example/**"
                .parse()
                .context("a rule")?,
        ],
        inspects: true,
        ..Policy::default()
    };
    let (_policy, policy) = watch::channel(Arc::new(policy));
    let (reporter, mut reports) = report::channel(1024);
    let authority = Arc::new(Authority::new().context("make an authority")?);
    fs::write(authority_file, authority.pem()).context("write the authority")?;
    let upstream = Upstream::with_roots(RootCertStore::empty(), &trusted, Vec::new());
    let proxy = Arc::new(Proxy {
        policy,
        authority,
        upstream: Arc::new(upstream.context("trust the server")?),
        reporter,
        dial: Arc::new(ToServer(server)),
        room: Arc::new(Semaphore::new(ROOM)),
        editor: Arc::new(Edits::new(Vec::new(), Arc::new(secrets), options)),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start a runtime")?;
    runtime.block_on(async {
        tokio::spawn(async move { while reports.next().await.is_some() {} });
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen")?;
        let address = listener.local_addr().context("see where it listens")?;
        println!("{address}");
        std::io::stdout().flush().context("say where it listens")?;
        loop {
            let (stream, _) = listener.accept().await.context("accept")?;
            let _ = stream.set_nodelay(true);
            let proxy = Arc::clone(&proxy);
            let destination = SocketAddr::from(([192, 0, 2, 1], 443));
            tokio::spawn(async move { proxy.serve_tls(stream, destination, |_| false).await });
        }
    })
}
