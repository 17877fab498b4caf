//! Servers on the host's loopback interface, and their clients in the guest.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};

/// What is read and written at once.
const CHUNK: usize = 256 * 1024;

/// A peer that says nothing for so long is broken.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a connection is for, by its first byte.
const UPLOAD: u8 = b'u';
const DOWNLOAD: u8 = b'd';
const ECHO: u8 = b'e';

/// Round trips that are timed.
const TRIPS: usize = 2000;

/// Ports of the servers. They serve as long as the process lives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Servers {
    /// Does what the first byte says.
    pub(super) data: u16,
    /// Ends each connection at once.
    pub(super) closing: u16,
}

impl Servers {
    /// Starts them.
    pub(super) fn start() -> Result<Self> {
        let data = listen(|stream| {
            let thread = thread::Builder::new().name("server".to_owned());
            // A client that has gone away has what it wanted.
            let _ = thread.spawn(move || serve(stream));
        })?;
        Ok(Self {
            data,
            closing: listen(drop)?,
        })
    }
}

/// Listens on a port of both families; the port.
fn listen(mut each: impl FnMut(TcpStream) + Send + 'static) -> Result<u16> {
    let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
    let port = four.local_addr()?.port();
    let six = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).context("listen on ::1")?;
    let (stream, streams) = std::sync::mpsc::sync_channel(64);
    for listener in [four, six] {
        // As the guest has it: no clock paces what is sent.
        setsockopt(&listener, sockopt::TcpCongestion, &"reno".into())?;
        let stream = stream.clone();
        thread::spawn(move || {
            for accepted in listener.incoming().flatten() {
                if stream.send(accepted).is_err() {
                    return;
                }
            }
        });
    }
    thread::spawn(move || {
        for accepted in streams {
            each(accepted);
        }
    });
    Ok(port)
}

fn serve(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    let [first] = first;
    let mut buffer = vec![b'x'; CHUNK];
    match first {
        UPLOAD => {
            let mut total = 0_u64;
            // The last piece begins with zero. An end of the stream would do, but not every
            // peer passes on half of one.
            while buffer.first() != Some(&0) {
                stream.read_exact(&mut buffer)?;
                total += u64::try_from(CHUNK)?;
            }
            stream.write_all(&total.to_be_bytes())?;
        }
        DOWNLOAD => loop {
            stream.write_all(&buffer)?;
        },
        ECHO => loop {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            stream.write_all(buffer.get(..count).unwrap_or_default())?;
        },
        _ => bail!("{first} is no request"),
    }
    Ok(())
}

fn connect(address: IpAddr, port: u16) -> Result<TcpStream> {
    let to = SocketAddr::new(address, port);
    let stream =
        TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Bytes in a second that one connection carries to the server, which has to say that it has
/// them all.
pub(super) fn upload(address: IpAddr, port: u16, time: Duration) -> Result<f64> {
    let mut stream = connect(address, port)?;
    let mut buffer = vec![b'x'; CHUNK];
    stream.write_all(&[UPLOAD])?;
    let begun = Instant::now();
    let mut sent = 0_u64;
    while buffer.first() != Some(&0) {
        if begun.elapsed() > time
            && let Some(first) = buffer.first_mut()
        {
            *first = 0;
        }
        stream.write_all(&buffer)?;
        sent += u64::try_from(CHUNK)?;
    }
    let mut total = [0; 8];
    stream
        .read_exact(&mut total)
        .context("wait for the server's count")?;
    let rate = rate(sent, begun.elapsed());
    ensure!(u64::from_be_bytes(total) == sent, "bytes were lost");
    Ok(rate)
}

/// Bytes in a second that one connection carries from the server.
pub(super) fn download(address: IpAddr, port: u16, time: Duration) -> Result<f64> {
    let mut stream = connect(address, port)?;
    let mut buffer = vec![0; CHUNK];
    stream.write_all(&[DOWNLOAD])?;
    let begun = Instant::now();
    let mut received = 0_u64;
    while begun.elapsed() < time {
        let count = stream.read(&mut buffer).context("read from the server")?;
        ensure!(count > 0, "the server has ended");
        received += u64::try_from(count)?;
    }
    Ok(rate(received, begun.elapsed()))
}

#[allow(clippy::cast_precision_loss, reason = "nobody reads so many digits")]
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64()
}

/// Nanoseconds for one byte there and one back, the middle one of many.
pub(super) fn round_trip(address: IpAddr, port: u16) -> Result<f64> {
    let mut stream = connect(address, port)?;
    stream.write_all(&[ECHO])?;
    let mut times = Vec::with_capacity(TRIPS);
    let mut byte = [0];
    for _ in 0..TRIPS {
        let begun = Instant::now();
        stream.write_all(&[1])?;
        stream.read_exact(&mut byte)?;
        times.push(begun.elapsed());
    }
    times.sort();
    let middle = times.get(TRIPS / 2).copied().unwrap_or_default();
    Ok(middle.as_secs_f64() * 1e9)
}

/// Connections in a second, one after the other, each of which the server ends.
pub(super) fn connections(address: IpAddr, port: u16, time: Duration) -> Result<f64> {
    let begun = Instant::now();
    let mut made = 0_u32;
    while begun.elapsed() < time {
        let mut stream = connect(address, port)?;
        match stream.read(&mut [0]) {
            Ok(0) => made += 1,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => made += 1,
            other => bail!("{other:?} where a connection should end"),
        }
    }
    Ok(f64::from(made) / begun.elapsed().as_secs_f64())
}

/// A process that ends with this.
pub(super) struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a part of this benchmark in a process of its own; the first line that it says.
fn start(words: &[String]) -> Result<(Kept, String)> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = Kept(command.spawn().context("start a part of the benchmark")?);
    let output = child.0.stdout.take().context("it has no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    ensure!(!line.is_empty(), "{words:?} failed");
    Ok((child, line.trim().to_owned()))
}

/// A server for connections that say nothing, in a process of its own, as their clients are
/// ([`start_idle`]): no process may have descriptors for both. And its port.
pub(super) fn start_silent() -> Result<(Kept, u16)> {
    let (server, port) = start(&["net-silent".to_owned()])?;
    Ok((server, port.parse().context("the port of a server")?))
}

/// So many connections from the namespace of this thread.
pub(super) fn start_idle(address: IpAddr, port: u16, count: usize) -> Result<Kept> {
    let words = [address.to_string(), port.to_string(), count.to_string()];
    let words: Vec<_> = ["net-idle".to_owned()].into_iter().chain(words).collect();
    Ok(start(&words)?.0)
}

/// `flashpan-bench net-silent`: a server that keeps each connection, and says nothing but its
/// port.
pub(crate) fn silent() -> Result<()> {
    let mut kept = Vec::new();
    let port = listen(move |stream| kept.push(stream))?;
    println!("{port}");
    loop {
        thread::park();
    }
}

/// `flashpan-bench net-idle`: so many connections that stay.
pub(crate) fn idle(address: &str, port: &str, count: &str) -> Result<()> {
    let (address, port) = (address.parse()?, port.parse()?);
    let made: Vec<_> = (0..count.parse::<usize>()?)
        .map(|made| connect(address, port).with_context(|| format!("{made} were made before")))
        .collect::<Result<_>>()?;
    println!("{}", made.len());
    loop {
        thread::park();
    }
}
