//! `flashpan-bench tls`: requests in TLS that is opened on the way, beside mitmproxy and
//! beside a way that nothing is in.
//!
//! ```text
//! this process         another process               this process
//! client ──── TLS ───► flashpan's proxy │ mitmdump ── TLS ──► server
//! ```

mod load;
mod opened;
mod peer;
mod server;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use flashpan_network::tls::Authority;

use crate::budgets::Budgets;
use crate::deadline::Running;
use crate::figure::Figures;
use crate::lines::Lines;
use crate::options;
use load::{Client, Direction};

pub(crate) use opened::serve;

/// Names of the figures.
pub(crate) const TLS: &str = "tls/";

/// The host of all requests.
const HOST: &str = "bench.example";

/// Connections at once, when it is counted how many requests there are in a time.
const CONNECTIONS: usize = 16;

/// Requests on each of them; mitmproxy gets fewer, so that it ends as well.
const REQUESTS: usize = 2000;
const REQUESTS_OF_PEER: usize = 150;

/// Requests one after another, for the time that one takes.
const ALONE: usize = 2000;
const ALONE_OF_PEER: usize = 300;

/// What is streamed for the memory that it takes, first little and then much.
const LITTLE: u64 = 64 << 20;
const MUCH: u64 = 1 << 30;

/// What `tls` is given.
#[derive(Debug, Default)]
pub(crate) struct TlsOptions {
    budgets: PathBuf,
    /// Whether there is a mitmproxy.
    mitmdump: Option<PathBuf>,
}

impl TlsOptions {
    /// Reads pairs of options and values.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        options::read(words, |word, value| {
            match word {
                "--budgets" => options.budgets = value.into(),
                "--mitmdump" => options.mitmdump = Some(value.into()),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(options)
    }
}

/// A process that opens TLS, and whom it is trusted by. It ends with this value.
struct Opener {
    running: Running,
    address: SocketAddr,
    /// Its authority, as PEM.
    authority: PathBuf,
}

impl Opener {
    /// Our own, in a process of its own as well.
    fn ours(server: SocketAddr, trusted: &Path, home: &Path) -> Result<Self> {
        let authority = home.join("ours.pem");
        let child = Command::new(std::env::current_exe().context("find this program")?)
            .arg("tls-opened")
            .arg(server.to_string())
            .arg(trusted)
            .arg(&authority)
            .stdout(Stdio::piped())
            .spawn()
            .context("start the proxy")?;
        let mut opener = Self {
            running: Running(child),
            address: server,
            authority,
        };
        let lines = Lines::of(&mut opener.running.0)?;
        let address = lines.find(|line| Some(line.parse())).context("the proxy")?;
        opener.address = address.context("the proxy says where it listens")?;
        Ok(opener)
    }

    /// The most memory that it ever had, in KiB.
    fn peak(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.running.0.id());
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        let number = number.context("the kernel says no VmHWM")?;
        number.parse().context("VmHWM is a number")
    }
}

/// Measures; false if a budget is broken.
pub(crate) fn tls(options: &TlsOptions) -> Result<bool> {
    let budgets = Budgets::read(&options.budgets)?;
    let home = tempfile::tempdir().context("make a directory")?;
    let authority = Arc::new(Authority::new().context("make an authority")?);
    let trusted = home.path().join("server.pem");
    fs::write(&trusted, authority.pem()).context("write the server's authority")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start a runtime")?;
    let server = runtime.block_on(server::start(authority))?;
    let mut figures = Figures::new(&budgets);

    let direct = Client::new(server, &trusted, HOST)?;
    let alone_direct = runtime.block_on(direct.alone(ALONE))?;
    let each_direct = runtime.block_on(direct.together(CONNECTIONS, REQUESTS))?;

    let ours = Opener::ours(server, &trusted, home.path())?;
    let through = Client::new(ours.address, &ours.authority, HOST)?;
    let alone = runtime.block_on(through.alone(ALONE))?;
    let each = runtime.block_on(through.together(CONNECTIONS, REQUESTS))?;
    let direct_way = "nothing in the way";
    figures.beside(
        "tls/request-directly",
        each,
        "ns",
        (direct_way, each_direct),
    );
    figures.beside(
        "tls/latency-directly",
        alone,
        "ns",
        (direct_way, alone_direct),
    );

    if let Some(mitmdump) = &options.mitmdump {
        let peer = peer::mitmproxy(mitmdump, server, &trusted, home.path())?;
        let through = Client::new(peer.address, &peer.authority, HOST)?;
        let of_peer = runtime.block_on(through.together(CONNECTIONS, REQUESTS_OF_PEER))?;
        let alone_peer = runtime.block_on(through.alone(ALONE_OF_PEER))?;
        let name = "mitmproxy";
        figures.beside("tls/request", each, "ns", (name, of_peer));
        let added = |whole: f64| (whole - alone_direct).max(0.0);
        figures.beside(
            "tls/latency-added",
            added(alone),
            "ns",
            (name, added(alone_peer)),
        );
    } else {
        figures.unjudged("tls/request", each, "ns");
        figures.unjudged("tls/latency-added", alone - alone_direct, "ns");
    }

    for (name, direction) in [
        ("tls/memory-download", Direction::Down),
        ("tls/memory-upload", Direction::Up),
    ] {
        runtime.block_on(through.stream(direction, LITTLE))?;
        let before = ours.peak()?;
        let time = runtime.block_on(through.stream(direction, MUCH))?;
        figures.add(&format!("{name}-growth"), ours.peak()? - before, "KiB");
        let directly = runtime.block_on(direct.stream(direction, MUCH))?;
        let name = name.replace("memory", "stream-1GiB");
        figures.beside(
            &name,
            nanoseconds(time),
            "ns",
            (direct_way, nanoseconds(directly)),
        );
    }
    let names = budgets.names().filter(|name| name.starts_with(TLS));
    crate::print(&figures.list, names)
}

// Exact below 104 days.
#[allow(clippy::cast_precision_loss, clippy::as_conversions)]
fn nanoseconds(time: Duration) -> f64 {
    time.as_nanos() as f64
}
