//! mitmproxy, which opens TLS as we do.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::Opener;
use crate::deadline::Running;
use crate::lines::Lines;

/// What mitmdump prints when it can be connected to.
const LISTENS: &str = "listening at";

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
        running: Running(child),
        address,
        authority: directory.join("mitmproxy-ca-cert.pem"),
    };
    let listens = |line: &str| line.contains(LISTENS).then_some(());
    let lines = Lines::of(&mut opener.running.0)?;
    lines.find(listens).context("mitmproxy")?;
    Ok(opener)
}
