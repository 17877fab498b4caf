//! `flashpan-bench net`: what one connection carries through our network, beside passt and
//! slirp4netns, in one run on one machine.
//!
//! The guest is Linux's own TCP in a network namespace, on a TAP device with an MTU of 1500;
//! the server is on the host's loopback interface. Between them is what is measured.

mod card;
mod peers;
pub(crate) mod server;
mod space;
mod supervisor;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flashpan_network::policy::Policy;
use flashpan_network::{Gateway, Settings, dns, report};
use flashpan_protocol::network::Link;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::card::Card;
use self::peers::Program;
use self::server::Servers;
use self::space::{Frames, Space, TAP, ip, tap};
use crate::budgets::Budgets;
use crate::figure::Figures;
use crate::options;

/// Names of the figures.
pub(crate) const NET: &str = "net/";

/// Connections that say nothing while one carries all it can.
const IDLE: usize = 10_000;

/// Descriptors that this process has for each of them: the device's and two of the
/// supervisor's.
const DESCRIPTORS: u64 = 3;
/// Descriptors for all else.
const OTHERS: u64 = 200;

/// What `net` is given.
#[derive(Debug)]
pub(crate) struct NetOptions {
    budgets: PathBuf,
    runs: usize,
    time: Duration,
    /// Only our own figures.
    alone: bool,
}

impl NetOptions {
    /// Reads pairs of options and values.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            budgets: PathBuf::new(),
            runs: 5,
            time: Duration::from_secs(2),
            alone: false,
        };
        options::read(words, |word, value| {
            match word {
                "--budgets" => options.budgets = value.into(),
                "--runs" => options.runs = value.parse().context("--runs is a number")?,
                "--milliseconds" => {
                    let time = value.parse().context("--milliseconds is a number")?;
                    options.time = Duration::from_millis(time);
                }
                "--peers" => options.alone = value == "none",
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if options.runs == 0 {
            bail!("--runs 0 measures nothing");
        }
        Ok(options)
    }
}

/// What leads out of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ours,
    Passt,
    Pasta,
    Slirp,
}

/// What was measured of one of them: the best of all runs.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// Bytes in a second.
    upload: f64,
    download: f64,
    /// Of IPv6; ours only.
    upload6: f64,
    download6: f64,
    /// Nanoseconds.
    round_trip: f64,
    /// In a second.
    connections: f64,
}

impl Measured {
    const NOTHING: Self = Self {
        upload: 0.0,
        download: 0.0,
        upload6: 0.0,
        download6: 0.0,
        round_trip: f64::INFINITY,
        connections: 0.0,
    };

    fn better(self, other: Self) -> Self {
        Self {
            upload: self.upload.max(other.upload),
            download: self.download.max(other.download),
            upload6: self.upload6.max(other.upload6),
            download6: self.download6.max(other.download6),
            round_trip: self.round_trip.min(other.round_trip),
            connections: self.connections.max(other.connections),
        }
    }
}

/// Measures; false if a budget is broken.
pub(crate) fn net(options: &NetOptions) -> Result<bool> {
    let budgets = Budgets::read(&options.budgets)?;
    let idle = raise_limit()?;
    let servers = Servers::start()?;
    let ways: &[Way] = match options.alone {
        true => &[Way::Ours],
        false => &[Way::Ours, Way::Passt, Way::Pasta, Way::Slirp],
    };
    let mut best = [Measured::NOTHING; 4];
    for _ in 0..options.runs {
        for (&way, best) in ways.iter().zip(&mut best) {
            *best = best.better(measure(way, servers, options.time)?);
        }
    }
    let crowded = crowded(servers, options, idle)?;
    let mut figures = Figures::new(&budgets);
    tell(&mut figures, &best, crowded, options.alone);
    #[allow(clippy::cast_precision_loss, reason = "there are no more than 10,000")]
    figures.unjudged("net/idle-connections", idle as f64, "connections");
    let names = budgets
        .names()
        .filter(|name| name.starts_with(NET) && !options.alone);
    crate::print(&figures.list, names)
}

const MEGABYTE: f64 = 1e6;

fn tell(figures: &mut Figures<'_>, best: &[Measured; 4], crowded: [f64; 4], alone: bool) {
    let [ours, passt, pasta, slirp] = best;
    let passt = passt.better(*pasta);
    let mut rate = |name: &str, value: fn(&Measured) -> f64, unit: &str, scale: f64| {
        let ours = value(ours) / scale;
        if alone {
            return figures.unjudged(name, ours, unit);
        }
        for (peer, of) in [("passt", &passt), ("slirp4netns", slirp)] {
            let name = format!("{name}-beside-{peer}");
            let theirs = value(of) / scale;
            // One that failed in every run judges nothing.
            match theirs.is_normal() {
                true => figures.beside(&name, ours, unit, (peer, theirs)),
                false => figures.unjudged(&name, ours, unit),
            }
        }
    };
    rate("net/upload", |m| m.upload, "MB/s", MEGABYTE);
    rate("net/download", |m| m.download, "MB/s", MEGABYTE);
    rate("net/connections", |m| m.connections, "1/s", 1.0);
    rate("net/round-trip", |m| m.round_trip, "ns", 1.0);
    let [upload, download, upload_idle, download_idle] = crowded.map(|rate| rate / MEGABYTE);
    let six = ("IPv4", ours.upload / MEGABYTE);
    figures.beside("net/upload-ipv6", ours.upload6 / MEGABYTE, "MB/s", six);
    let six = ("IPv4", ours.download / MEGABYTE);
    figures.beside("net/download-ipv6", ours.download6 / MEGABYTE, "MB/s", six);
    let without = |rate| ("without idle flows", rate);
    figures.beside(
        "net/upload-beside-idle",
        upload_idle,
        "MB/s",
        without(upload),
    );
    figures.beside(
        "net/download-beside-idle",
        download_idle,
        "MB/s",
        without(download),
    );
}

/// A namespace with a way out of it, and the address of the host there.
struct Guest {
    space: Space,
    gateway: IpAddr,
    card: Option<Card>,
    _program: Option<Program>,
}

impl Guest {
    fn new(way: Way) -> Result<Self> {
        let space = Space::new()?;
        let mut card = None;
        let program = match way {
            Way::Ours => {
                card = Some(ours(&space)?);
                None
            }
            Way::Passt => Some(peers::passt(&space)?),
            Way::Pasta => Some(peers::pasta(&space)?),
            Way::Slirp => Some(peers::slirp4netns(&space)?),
        };
        let gateway = match way {
            Way::Ours => Link::standard(MTU).gateway4.into(),
            Way::Passt | Way::Pasta => peers::GATEWAY.parse()?,
            Way::Slirp => peers::SLIRP_GATEWAY.parse()?,
        };
        Ok(Self {
            space,
            gateway,
            card,
            _program: program,
        })
    }

    /// Ends it; frames that were lost are a defect.
    fn end(self) -> Result<()> {
        let Some(card) = self.card else {
            return Ok(());
        };
        let counters = card.end()?;
        if counters.rings.unplaceable > 0 || counters.stack.malformed > 0 {
            bail!("frames were lost: {counters:?}");
        }
        Ok(())
    }
}

const MTU: u16 = 1500;

fn ours(space: &Space) -> Result<Card> {
    let link = Link::standard(MTU);
    let tap = space.run(move || {
        let tap = tap(Frames::Offloaded)?;
        let [a, b, c, d, e, f] = link.guest_mac;
        let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        ip(&format!("link set {TAP} address {mac} mtu {MTU} up"))?;
        let (own, gateway, len) = (link.guest4, link.gateway4, link.prefix4);
        ip(&format!("addr add {own}/{len} dev {TAP}"))?;
        ip(&format!("route add default via {gateway}"))?;
        let (own, gateway) = (link.guest6, link.gateway6);
        ip(&format!("-6 addr add {own}/64 dev {TAP} nodad"))?;
        ip(&format!("-6 route add default via {gateway}"))?;
        anyhow::Ok(tap)
    })??;
    let gateway = Gateway::new(Settings {
        link,
        policy: Policy {
            private: true,
            ..Policy::open()
        },
        dns: dns::Settings::default(),
        inspection: None,
        reporter: report::channel(1).0,
    });
    Card::new(tap, link, Arc::new(gateway))
}

fn measure(way: Way, servers: Servers, time: Duration) -> Result<Measured> {
    let guest = Guest::new(way).with_context(|| format!("{way:?}"))?;
    let gateway = guest.gateway;
    let measured = guest.space.run(move || {
        let port = servers.data;
        // A peer that fails at one thing may be good at the others; we may not.
        let tried = |what, result: Result<f64>, nothing| match result {
            Ok(value) => Ok(value),
            Err(error) if way == Way::Ours => Err(error.context(what)),
            Err(error) => {
                eprintln!("flashpan-bench: {way:?} failed at {what}: {error:#}");
                Ok(nothing)
            }
        };
        let mut measured = Measured {
            upload: tried("upload", server::upload(gateway, port, time), 0.0)?,
            download: tried("download", server::download(gateway, port, time), 0.0)?,
            round_trip: tried(
                "round trips",
                server::round_trip(gateway, port),
                f64::INFINITY,
            )?,
            connections: tried(
                "connections",
                server::connections(gateway, servers.closing, time / 2),
                0.0,
            )?,
            ..Measured::NOTHING
        };
        if way == Way::Ours {
            let gateway = Link::standard(MTU).gateway6.into();
            measured.upload6 = server::upload(gateway, port, time).context("IPv6 upload")?;
            measured.download6 = server::download(gateway, port, time).context("IPv6 download")?;
        }
        anyhow::Ok(measured)
    });
    let measured = measured?.with_context(|| format!("{way:?}"))?;
    guest.end()?;
    Ok(measured)
}

/// Upload and download without idle connections, and with many.
fn crowded(servers: Servers, options: &NetOptions, idle: usize) -> Result<[f64; 4]> {
    let guest = Guest::new(Way::Ours)?;
    let (gateway, time, runs) = (guest.gateway, options.time, options.runs);
    // On the host.
    let (_server, port) = server::start_silent()?;
    let rates = guest.space.run(move || {
        let rates = || -> Result<(f64, f64)> {
            let mut best = (0_f64, 0_f64);
            for _ in 0..runs {
                best.0 = best.0.max(server::upload(gateway, servers.data, time)?);
                best.1 = best.1.max(server::download(gateway, servers.data, time)?);
            }
            Ok(best)
        };
        let (upload, download) = rates()?;
        let _idle = server::start_idle(gateway, port, idle)?;
        let (upload_idle, download_idle) = rates()?;
        anyhow::Ok([upload, download, upload_idle, download_idle])
    })??;
    guest.end()?;
    Ok(rates)
}

/// As many idle connections as there may be descriptors for.
fn raise_limit() -> Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let idle = u64::try_from(IDLE)?;
    let wanted = (idle * DESCRIPTORS + OTHERS).max(hard);
    // Who may not have more can at least have what is allowed.
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted) {
        Ok(()) => wanted,
        Err(_) => {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
            hard
        }
    };
    Ok(usize::try_from(
        (limit.saturating_sub(OTHERS) / DESCRIPTORS).min(idle),
    )?)
}
