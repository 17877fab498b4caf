//! Servers on the host's loopback interface, and their clients in the guest.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// What is read and written at once.
const CHUNK: usize = 256 * 1024;

/// A peer that says nothing for so long is broken.
const PATIENCE: Duration = Duration::from_secs(20);

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
    /// Keeps each connection, and says nothing.
    pub(super) silent: u16,
}

impl Servers {
    /// Starts them.
    pub(super) fn start() -> Result<Self> {
        let data = listen(|stream| {
            thread::spawn(move || {
                // A client that has gone away has what it wanted.
                let _ = serve(stream);
            });
        })?;
        let mut kept = Vec::new();
        Ok(Self {
            data,
            closing: listen(drop)?,
            silent: listen(move |stream| kept.push(stream))?,
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
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    count => total += u64::try_from(count)?,
                }
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
    let buffer = vec![b'x'; CHUNK];
    stream.write_all(&[UPLOAD])?;
    let begun = Instant::now();
    let mut sent = 1_u64;
    while begun.elapsed() < time {
        stream.write_all(&buffer)?;
        sent += u64::try_from(buffer.len())?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total).context("wait for the server's count")?;
    let rate = rate(sent, begun.elapsed());
    ensure!(u64::from_be_bytes(total) + 1 == sent, "bytes were lost");
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

/// So many connections that stay.
pub(super) fn idle(address: IpAddr, port: u16, count: usize) -> Result<Vec<TcpStream>> {
    (0..count)
        .map(|made| connect(address, port).with_context(|| format!("{made} were made before")))
        .collect()
}
