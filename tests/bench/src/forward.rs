//! `flashpan-bench forward`: what forwarded connections to a guest carry and how long they
//! take to be made, to its card, beside those by its agent.
//!
//! Both lead to the same program in a VM of the same kind. The agent is what reaches a VM
//! without a card.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::budgets::Budgets;
use crate::deadline::{DEADLINE, Running};
use crate::figure::Figures;
use crate::lines::Lines;
use crate::options;

/// Names of the figures.
pub(crate) const FORWARD: &str = "forward/";

/// The program in the guest: the first byte of a client says whether it takes, gives, or
/// says again what it hears.
const SERVER: &str = r"
import socket, threading
BLOCK = bytes(1 << 18)
def serve(client):
    with client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        what = client.recv(1)
        if what == b'd':
            for _ in range(MIB * 4):
                client.sendall(BLOCK)
            return
        room = bytearray(1 << 18)
        while count := client.recv_into(room):
            if what == b'e':
                client.sendall(room[:count])
        if what == b'u':
            client.sendall(b'.')
server = socket.create_server((HOST, 9000), backlog=128)
print('ready', flush=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
";

/// The port of the program.
const PORT: u16 = 9000;

/// What a connection carries.
const MIB: usize = 64;

/// Connections, and round trips of one.
const TIMES: u32 = 100;

/// What `forward` is given.
#[derive(Debug, Default)]
pub(crate) struct ForwardOptions {
    flashpan: PathBuf,
    kernel: PathBuf,
    /// A Debian with Python.
    rootfs: PathBuf,
    budgets: PathBuf,
    runs: usize,
}

impl ForwardOptions {
    /// Reads pairs of options and values.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            runs: 3,
            ..Self::default()
        };
        options::read(words, |word, value| {
            match word {
                "--flashpan" => options.flashpan = value.into(),
                "--kernel" => options.kernel = value.into(),
                "--rootfs" => options.rootfs = value.into(),
                "--budgets" => options.budgets = value.into(),
                "--runs" => options.runs = value.parse().context("--runs is a number")?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(options)
    }

    /// A VM whose program listens on `host` and can be reached, and where.
    fn vm(&self, home: &Path, network: &str, host: &str) -> Result<(Running, u16)> {
        let port = free_port()?;
        let mut command = Command::new(&self.flashpan);
        command.args(["run", "-m", "512M", "--network", network, "-p"]);
        command.arg(format!("{port}:{PORT}")).arg("--kernel");
        command.arg(&self.kernel).arg("--rootfs").arg(&self.rootfs);
        let mut server = String::new();
        write!(server, "MIB, HOST = {MIB}, '{host}'{SERVER}")?;
        command.args(["--", "python3", "-S", "-c", &server]);
        command.env("XDG_STATE_HOME", home).stdin(Stdio::null());
        command.stdout(Stdio::piped());
        let mut vm = Running(command.spawn().context("start a VM")?);
        let lines = Lines::of(&mut vm.0)?;
        lines.find(|line| (line == "ready").then_some(()))?;
        Ok((vm, port))
    }
}

/// A port of this machine that nobody has.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
    Ok(listener.local_addr()?.port())
}

/// What the connections to a VM did, each the best of all runs.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// MB/s to the guest and from it.
    upload: f64,
    download: f64,
    /// Microseconds from connecting to the first answer, and of a question and its answer.
    connect: f64,
    round_trip: f64,
}

impl Measured {
    fn better(self, other: Self) -> Self {
        Self {
            upload: self.upload.max(other.upload),
            download: self.download.max(other.download),
            connect: self.connect.min(other.connect),
            round_trip: self.round_trip.min(other.round_trip),
        }
    }
}

/// Measures; false if a budget is broken.
pub(crate) fn forward(options: &ForwardOptions) -> Result<bool> {
    let budgets = Budgets::read(&options.budgets)?;
    let home = tempfile::tempdir().context("make a directory")?;
    let (by_card, by_agent, refused) = (
        options.vm(home.path(), "sealed", "0.0.0.0")?,
        options.vm(home.path(), "none", "0.0.0.0")?,
        options.vm(home.path(), "sealed", "127.0.0.1")?,
    );
    let (mut best, mut after_refusal) = (None, f64::INFINITY);
    for _ in 0..options.runs {
        after_refusal = after_refusal.min(each(connections(refused.1)?));
        let pair = (measure(by_card.1)?, measure(by_agent.1)?);
        best = Some(best.map_or(pair, |(card, agent): (Measured, Measured)| {
            (card.better(pair.0), agent.better(pair.1))
        }));
    }
    let (card, agent) = best.context("there were no runs")?;
    let mut figures = Figures::new(&budgets);
    for (name, unit, of) in [
        ("upload", "MB/s", (|m| m.upload) as fn(&Measured) -> f64),
        ("download", "MB/s", |m| m.download),
        ("connect", "us", |m| m.connect),
        ("round-trip", "us", |m| m.round_trip),
    ] {
        let name = format!("{FORWARD}{name}");
        figures.beside(&name, of(&card), unit, ("the agent", of(&agent)));
    }
    let name = format!("{FORWARD}connect-after-refusal");
    figures.beside(&name, after_refusal, "us", ("the agent", agent.connect));
    let names = budgets.names().filter(|name| name.starts_with(FORWARD));
    crate::print(&figures.list, names)
}

fn measure(port: u16) -> Result<Measured> {
    Ok(Measured {
        upload: rate(upload(port)?),
        download: rate(download(port)?),
        connect: each(connections(port)?),
        round_trip: each(round_trips(port)?),
    })
}

/// MB/s of what a connection carries.
#[allow(clippy::cast_precision_loss)] // It is far less than 2^52.
fn rate(time: Duration) -> f64 {
    ((MIB << 20) as f64) / 1e6 / time.as_secs_f64()
}

/// Microseconds of each.
fn each(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6 / f64::from(TIMES)
}

/// A connection to the program, to which this is said first.
fn connect(port: u16, what: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(&[what]).context("say what is wanted")?;
    Ok(stream)
}

fn upload(port: u16) -> Result<Duration> {
    let mut stream = connect(port, b'u')?;
    let block = vec![0; 1 << 18];
    let begin = Instant::now();
    for _ in 0..MIB * 4 {
        stream.write_all(&block).context("upload")?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0]).context("upload")?;
    Ok(begin.elapsed())
}

fn download(port: u16) -> Result<Duration> {
    let begin = Instant::now();
    let mut stream = connect(port, b'd')?;
    let (mut block, mut all) = (vec![0; 1 << 18], 0);
    loop {
        match stream.read(&mut block).context("download")? {
            0 => break,
            count => all += count,
        }
    }
    ensure!(all == MIB << 20, "{all} bytes came");
    Ok(begin.elapsed())
}

fn connections(port: u16) -> Result<Duration> {
    let begin = Instant::now();
    for _ in 0..TIMES {
        let mut stream = connect(port, b'e')?;
        stream.write_all(b"?")?;
        stream.read_exact(&mut [0]).context("the first answer")?;
    }
    Ok(begin.elapsed())
}

fn round_trips(port: u16) -> Result<Duration> {
    let mut stream = connect(port, b'e')?;
    let begin = Instant::now();
    for _ in 0..TIMES {
        stream.write_all(b"?")?;
        stream.read_exact(&mut [0]).context("an answer")?;
    }
    Ok(begin.elapsed())
}
