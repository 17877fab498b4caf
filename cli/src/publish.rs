//! Ports of the guest that a run makes reachable.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use clap::Args;
use flashpan::state::Publish;
use flashpan::{BoundPorts, Forward, ForwardBinding, PortForwarding, Sandbox, Transport};

use crate::failure::say;
use crate::stdio::Patient;

/// Which ports lead into the guest, and from where.
#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    /// Make a TCP or UDP port of the guest reachable on a port of this machine,
    /// the same if only one is given; may be repeated. An IPv6 address is in brackets:
    /// [::1]:8080:80.
    #[arg(long, short, value_name = FORMS, value_parser = forward)]
    publish: Vec<Forward>,

    /// Address of this machine on which each --publish without one listens; may be
    /// repeated. Otherwise 127.0.0.1, which only this machine can reach.
    #[arg(
        long,
        value_name = "ADDRESS",
        value_parser = address,
        requires = "publish"
    )]
    address: Vec<IpAddr>,
}

/// How a port is written.
const FORMS: &str = "[[ADDRESS:]LOCAL:]REMOTE[/udp]";

fn forward(text: &str) -> Result<Forward, String> {
    let parsed = text.parse::<Forward>();
    parsed.map_err(|error| {
        format!("{error}; write e.g. 80, 8080:80, 5353:53/udp, 127.0.0.1:8080:80 or [::1]:8080:80")
    })
}

fn address(text: &str) -> Result<IpAddr, String> {
    match text.trim() {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        text => text
            .parse()
            .map_err(|_| format!("`{text}` is not an IP address; write e.g. 127.0.0.1 or ::1")),
    }
}

impl PublishArgs {
    /// What a VM that stays keeps of them.
    pub(crate) fn kept(&self) -> Publish {
        Publish {
            ports: self.publish.clone(),
            addresses: self.address.clone(),
        }
    }

    /// Says what could not be listened on, before anything that takes time.
    pub(crate) fn check(&self) -> flashpan::Result<()> {
        self.hold().map(drop)
    }

    /// Holds the ports until there is a guest.
    pub(crate) fn hold(&self) -> flashpan::Result<Held> {
        let wanted = Some(self.kept()).filter(|ports| !ports.is_empty());
        Ok(Held(wanted.map(|ports| ports.bind()).transpose()?))
    }
}

/// Ports that do not lead anywhere yet.
pub(crate) struct Held(Option<BoundPorts>);

impl Held {
    /// Makes them lead into the guest, and says where they are.
    pub(crate) async fn start(self, sandbox: &Sandbox) -> flashpan::Result<Published> {
        match self.0 {
            Some(bound) => {
                let published = start(sandbox, bound).await?;
                tell(published.bindings());
                Ok(published)
            }
            None => Ok(Published(None)),
        }
    }
}

/// Ports that a command is there for.
#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    /// TCP or UDP ports of the guest, and where on this machine they are reachable:
    /// on the same port if only one is given. An IPv6 address is in brackets.
    #[arg(value_name = FORMS, required = true, value_parser = forward)]
    ports: Vec<Forward>,

    /// Address of this machine to listen on for each port without one; may be repeated.
    /// Otherwise 127.0.0.1, which only this machine can reach.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    address: Vec<IpAddr>,
}

impl PortArgs {
    /// Listens.
    pub(crate) async fn start(&self, sandbox: &Sandbox) -> flashpan::Result<Published> {
        let ports = Publish {
            ports: self.ports.clone(),
            addresses: self.address.clone(),
        };
        start(sandbox, ports.bind()?).await
    }
}

impl Published {
    /// Where it is listened.
    pub(crate) fn bindings(&self) -> &[ForwardBinding] {
        match &self.0 {
            Some(forwarding) => forwarding.bindings(),
            None => &[],
        }
    }
}

async fn start(sandbox: &Sandbox, bound: BoundPorts) -> flashpan::Result<Published> {
    let forwarding = sandbox.forward_bound(bound).await?;
    Ok(Published(Some(forwarding)))
}

/// Says where ports of a guest are reachable.
pub(crate) fn tell(bindings: &[ForwardBinding]) {
    let line = |binding: &ForwardBinding| {
        let transport = match binding.transport {
            Transport::Tcp => "",
            Transport::Udp => "/udp",
        };
        let (local, remote) = (binding.address, binding.remote_port);
        format!("Forwarding {local}{transport} -> sandbox:{remote}{transport}\n")
    };
    let lines: String = bindings.iter().map(line).collect();
    // With standard error gone there is nobody to tell.
    let _ = Patient::new(io::stderr().as_fd())
        .and_then(|mut stderr| stderr.write_all(lines.as_bytes()));
}

/// Ports that lead into the guest, until it is dropped.
pub(crate) struct Published(Option<PortForwarding>);

impl Published {
    /// Says what went wrong meanwhile.
    pub(crate) fn report(self) {
        let Some(forwarding) = self.0 else { return };
        let failed = forwarding.counts().failed;
        if let Some(last) = forwarding.take_errors().pop() {
            let what = match failed {
                1 => "a forwarded connection failed".to_owned(),
                _ => format!("{failed} forwarded connections failed, the last one so"),
            };
            say("warning", &format!("{what}: {last}"));
        }
    }
}
