//! Whether a VM has a network, and what becomes of the flows that its guest asks for.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::Arc;

use flashpan_network::policy::Policy;
use flashpan_network::{Answer, Gateway};
use flashpan_protocol::control::{IoRate, Request};
use flashpan_protocol::network::{End, Link, MTU, Protocol, Refusal, Tuple};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::api::DEFAULT_NETWORK_MTU;
use crate::config::SandboxBuilder;
use crate::error::{Error, Result};
use crate::rate::RateLimit;

/// Answers that wait to be sent to the VMM. Flows wait when there are more.
const ANSWERS: usize = 64;

/// What network a VM has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Network {
    /// None: the guest has no card.
    #[default]
    None,
    /// The internet: every public address. Addresses of the host, of its networks and of
    /// cloud metadata services are out of reach unless
    /// [`SandboxBuilder::block_private_ips`] says otherwise.
    Open,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "open" => Ok(Self::Open),
            _ => Err("give none or open".to_owned()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Open => "open",
        })
    }
}

/// The settings of a VM's network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) network: Network,
    pub(crate) block_private_ips: bool,
    pub(crate) mtu: u32,
    pub(crate) rate: Option<RateLimit>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            network: Network::None,
            block_private_ips: true,
            mtu: DEFAULT_NETWORK_MTU,
            rate: None,
        }
    }
}

impl Settings {
    /// The guest's link, if it has one.
    pub(crate) fn link(&self) -> Result<Option<Link>> {
        if self.network == Network::None {
            return Ok(None);
        }
        let mtu = u16::try_from(self.mtu).ok().filter(|mtu| MTU.contains(mtu));
        let mtu = mtu.ok_or_else(|| {
            let (least, most) = (MTU.start(), MTU.end());
            let why = format!("{} is not one of {least} to {most} bytes", self.mtu);
            Error::config("network.mtu", why)
        })?;
        Ok(Some(Link::standard(mtu)))
    }

    /// What passes the card at most.
    pub(crate) fn rate(&self) -> Result<IoRate> {
        self.rate.unwrap_or_default().checked(RATE, "")
    }

    fn policy(&self) -> Policy {
        Policy {
            private: !self.block_private_ips,
            ..Policy::open()
        }
    }
}

/// # The network
///
/// A guest has no network unless it is given one. Then what it wants to reach is decided
/// here, in the process that supervises it, and connections are made from here.
impl SandboxBuilder {
    /// What network the VM has; none otherwise.
    pub fn network(mut self, network: Network) -> Self {
        self.network.network = network;
        self
    }

    /// Whether addresses that are not of the internet are out of reach: those of the
    /// host, of its networks, and of cloud metadata services. True otherwise.
    pub fn block_private_ips(mut self, block: bool) -> Self {
        self.network.block_private_ips = block;
        self
    }

    /// Limits what passes the network card: bytes of frames, and frames, in each
    /// direction for itself. What is too much waits.
    pub fn network_rate(mut self, limit: RateLimit) -> Self {
        self.network.rate = Some(limit);
        self
    }

    /// The largest packet of the network, 1280 to 65520 bytes; 1500 otherwise.
    pub fn network_mtu(mut self, mtu: u32) -> Self {
        self.network.mtu = mtu;
        self
    }
}

/// The setting that is wrong, in errors.
const RATE: &str = "network rate";

/// Descriptors that flows leave for everything else.
const RESERVE: u64 = 256;

/// How many flows there may be: each takes two descriptors of this process.
fn most_flows() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let most = limit.map(|limit| limit.saturating_sub(RESERVE) / 2);
    most.map_or(usize::MAX, |most| {
        usize::try_from(most).unwrap_or(usize::MAX)
    })
}

/// Lets the process have as many descriptors as it may: what programs are given at first
/// is less than a guest's connections take, and is so low for those that use `select`,
/// as nothing here does.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum {
        // Without success there are fewer connections.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// The flows of a VM.
#[derive(Debug)]
pub(crate) struct Flows {
    /// None without a network.
    gateway: Option<Arc<Gateway>>,
    running: HashMap<u64, AbortHandle>,
    sender: mpsc::Sender<(u64, Answer)>,
    answers: mpsc::Receiver<(u64, Answer)>,
}

impl Flows {
    pub(crate) fn new(settings: &Settings, link: Option<Link>) -> Self {
        let gateway = link.map(|link| Arc::new(Gateway::new(settings.policy(), link)));
        if gateway.is_some() {
            raise_limit();
        }
        let (sender, answers) = mpsc::channel(ANSWERS);
        Self {
            gateway,
            running: HashMap::new(),
            sender,
            answers,
        }
    }

    /// The guest asks for a flow; what is to be said at once, if that is known.
    pub(crate) fn ask(
        &mut self,
        id: u64,
        protocol: Protocol,
        tuple: Tuple,
        socket: Option<OwnedFd>,
    ) -> Option<Request> {
        let refuse = |why| Some(Request::FlowRefuse { id, why });
        let Some(gateway) = &self.gateway else {
            return refuse(Refusal::Silence);
        };
        // A descriptor does not arrive where there is no room for it.
        let Some(socket) = socket.filter(|_| self.running.len() < most_flows()) else {
            return refuse(Refusal::Host);
        };
        let flow = gateway.begin(id, protocol, tuple, socket, self.sender.clone());
        // A VMM that uses a number twice cannot leave a task behind.
        if let Some(old) = self.running.insert(id, flow) {
            old.abort();
        }
        None
    }

    /// A flow is over on the guest's side.
    pub(crate) fn ended(&mut self, id: u64, how: End) {
        let Some(flow) = self.running.remove(&id) else {
            return;
        };
        match how {
            // What the guest has sent may still be on its way out; it ends by itself.
            End::Closed => {}
            End::Reset | End::Idle => flow.abort(),
        }
    }

    /// What the VMM is to be told next. Cancel safe.
    pub(crate) async fn next(&mut self) -> Request {
        match self.answers.recv().await {
            Some((id, Answer::Accept)) => Request::FlowAccept { id },
            Some((id, Answer::Refuse(why))) => {
                self.running.remove(&id);
                Request::FlowRefuse { id, why }
            }
            // The flow waits for its end on the guest's side.
            Some((id, Answer::Close)) => Request::FlowClose { id },
            // It fails only if all senders are gone, of which `self` holds one.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        for flow in self.running.values() {
            flow.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_names() {
        for network in [Network::None, Network::Open] {
            assert_eq!(network.to_string().parse(), Ok(network));
            let json = serde_json::to_string(&network).unwrap();
            assert_eq!(json, format!("\"{network}\""));
        }
        assert!("host".parse::<Network>().is_err());
    }

    #[test]
    fn a_link_has_a_packet_size_that_can_be() {
        let settings = |mtu| Settings {
            network: Network::Open,
            mtu,
            ..Settings::default()
        };
        assert_eq!(Settings::default().link().unwrap(), None);
        assert_eq!(settings(1400).link().unwrap().unwrap().mtu, 1400);
        for mtu in [0, 1279, 65_521, 70_000] {
            let error = settings(mtu).link().unwrap_err().to_string();
            assert!(error.contains("network.mtu"), "{error}");
        }
    }
}
