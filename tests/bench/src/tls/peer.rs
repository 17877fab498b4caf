//! mitmproxy, which opens TLS as we do.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail};

use super::Opener;
use crate::deadline::DEADLINE;

/// What mitmdump prints when it can be connected to.
const LISTENS: &str = "listening at";

/// The first line of what a process prints, within some time.
pub(super) fn first_line(child: &mut Child) -> Result<String> {
    line_with(child, "")
}

/// The first line with `mark` in it.
fn line_with(child: &mut Child, mark: &'static str) -> Result<String> {
    let output = child.stdout.take().context("its output is a pipe")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        // To its end, so that it never waits for a reader.
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let mut seen = Vec::new();
    loop {
        match lines.recv_timeout(DEADLINE) {
            Ok(line) if line.contains(mark) => return Ok(line),
            Ok(line) => seen.push(line),
            Err(_) => bail!("it does not say that it listens; it said {seen:?}"),
        }
    }
}

/// mitmdump before the server, from the distribution's package or any other place.
pub(super) fn mitmproxy(
    program: &Path,
    server: SocketAddr,
    trusted: &Path,
    home: &Path,
) -> Result<Opener> {
    // Its own choice of a port it does not tell.
    let free = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    let address = free.local_addr().context("see which port is free")?;
    drop(free);
    let directory = home.join("mitmproxy");
    let set = |name: &str, value: &str| [String::from("--set"), format!("{name}={value}")];
    let trusted = trusted.to_str().context("a path of text")?;
    let confdir = directory.to_str().context("a path of text")?;
    let child = Command::new(program)
        .args(["--listen-host", "127.0.0.1", "--listen-port"])
        .arg(address.port().to_string())
        .args([
            "--mode",
            &format!("reverse:https://127.0.0.1:{}", server.port()),
        ])
        .args(set("confdir", confdir))
        .args(set("ssl_verify_upstream_trusted_ca", trusted))
        .args(set("keep_host_header", "true"))
        // Not a word for each request, as we say none.
        .args(set("flow_detail", "0"))
        .args(set("http2", "false"))
        .env("PYTHONUNBUFFERED", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let mut opener = Opener {
        child,
        address,
        authority: directory.join("mitmproxy-ca-cert.pem"),
    };
    line_with(&mut opener.child, LISTENS).context("mitmproxy")?;
    Ok(opener)
}
