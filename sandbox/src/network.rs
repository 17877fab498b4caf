//! Whether a VM has a network, and what becomes of the flows that its guest asks for.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Weak};

use flashpan_network::policy::Policy;
use flashpan_network::report::{self, Reports};
use flashpan_network::script::Script;
use flashpan_network::{Answer, Gateway};
use flashpan_network::{dns, edit};
use flashpan_protocol::control::{IoRate, Request};
use flashpan_protocol::network::{End, Link, MTU, Protocol, Refusal, Tuple};
use flashpan_protocol::supervisor::MAX_PATTERNS;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::api::{self, Config, DEFAULT_NETWORK_MTU};
use crate::config::SandboxBuilder;
use crate::error::{Error, Result};
use crate::inspection::Inspected;
use crate::rate::RateLimit;
use crate::secret_refresh::{Refresh, refresh};
use crate::shared::Shared;

/// Reports that wait to be told. What comes when so many do is counted, and lost.
const REPORTS: usize = 1024;

/// Answers that wait to be sent to the VMM. Flows wait when there are more.
const ANSWERS: usize = 64;

/// What network a VM has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Network {
    /// None: the guest has no card.
    None,
    /// One in which nothing can be reached but what is allowed
    /// ([`SandboxBuilder::allow_host`], `network.allowed_hosts` and `network.rules`).
    #[default]
    Sealed,
    /// The internet: every public address that is not denied. Addresses of the host, of its
    /// networks and of cloud metadata services are out of reach unless
    /// [`SandboxBuilder::block_private_ips`] says otherwise, or they are allowed.
    Open,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "sealed" => Ok(Self::Sealed),
            "open" => Ok(Self::Open),
            _ => Err("give none, sealed or open".to_owned()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Sealed => "sealed",
            Self::Open => "open",
        })
    }
}

/// The settings of a VM's network.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) network: Network,
    pub(crate) allow: Vec<String>,
    pub(crate) deny: Vec<String>,
    pub(crate) rules: Vec<String>,
    /// Empty: there is none.
    pub(crate) script: String,
    pub(crate) dns_servers: Vec<String>,
    pub(crate) synthetic_names: bool,
    /// Names whose addresses the host says.
    pub(crate) hosts: Vec<(String, IpAddr)>,
    pub(crate) block_private_ips: bool,
    pub(crate) mtu: u32,
    pub(crate) rate: Option<RateLimit>,
    pub(crate) inspected: Inspected,
    /// Secrets whose values are read again.
    pub(crate) refresh: Refresh,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            network: Network::default(),
            allow: Vec::new(),
            deny: Vec::new(),
            rules: Vec::new(),
            script: String::new(),
            dns_servers: Vec::new(),
            synthetic_names: false,
            hosts: Vec::new(),
            block_private_ips: true,
            mtu: DEFAULT_NETWORK_MTU,
            rate: None,
            inspected: Inspected::default(),
            refresh: Refresh::default(),
        }
    }
}

impl Settings {
    /// What a configuration says of a network.
    pub(crate) fn of(config: &Config, network: Network) -> Self {
        let mut settings = Self {
            network,
            ..Self::default()
        };
        if let Some(config) = &config.network {
            settings.block_private_ips = config.blocks_private_ips();
            settings.mtu = config.mtu_or_default();
            settings.allow = config.reachable_hosts();
            settings.deny.clone_from(&config.denied_hosts);
            settings.rules.clone_from(&config.rules);
            settings.script.clone_from(&config.policy_script);
            settings.dns_servers.clone_from(&config.dns_servers);
            settings.synthetic_names = config.synthetic_names;
            let hosts = config.add_hosts.iter();
            // What is no address was refused.
            let known =
                hosts.filter_map(|entry| Some((entry.host.clone(), entry.ip.parse().ok()?)));
            settings.hosts = known.collect();
            settings.inspected.all = config.intercept;
            settings
                .inspected
                .interception
                .clone_from(&config.interception);
            settings.inspected.secrets.clone_from(&config.secrets);
        }
        settings
    }

    /// How names are resolved.
    fn dns(&self) -> Result<dns::Settings> {
        let server = |text: &String| {
            let wrong = |_| Error::config("network.dns_servers", format!("{text:?} is no address"));
            let address: IpAddr = text.parse().map_err(wrong)?;
            Ok(SocketAddr::new(address, 53))
        };
        // Names that only /etc/hosts may have are no business of the resolver's.
        let host = |(name, address): &(String, IpAddr)| Some((name.parse().ok()?, *address));
        Ok(dns::Settings {
            servers: self.dns_servers.iter().map(server).collect::<Result<_>>()?,
            hosts: self.hosts.iter().filter_map(host).collect(),
            synthetic: self.synthetic_names,
        })
    }

    /// These, if nothing about them is wrong.
    pub(crate) fn checked(&self) -> Result<&Self> {
        let policy = self.policy()?;
        self.dns()?;
        self.inspected.check()?;
        let names_something = !(policy.allow.is_empty() && policy.rules.is_empty());
        if self.network == Network::None && names_something {
            let why = "there is none in which hosts could be allowed; let it be sealed or open";
            return Err(Error::config("network", why));
        }
        Ok(self)
    }

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

    /// What may be reached.
    pub(crate) fn policy(&self) -> Result<Policy> {
        Ok(Policy {
            open: self.network == Network::Open,
            private: !self.block_private_ips,
            allow: parsed(&self.allow, "network.allowed_hosts")?,
            deny: parsed(&self.deny, "network.denied_hosts")?,
            rules: parsed(&self.rules, "network.rules")?,
            script: self.script()?,
            inspects: self.inspected.is_any(),
            inspected: parsed(&self.inspected.hosts(), "network.secrets")?,
        })
    }

    fn script(&self) -> Result<Option<Script>> {
        if self.script.is_empty() {
            return Ok(None);
        }
        let script = Script::new(&self.script);
        let script = script.map_err(|why| Error::config("network.policy_script", why.to_string()));
        script.map(Some)
    }
}

fn parsed<T>(texts: &[String], field: &'static str) -> Result<Vec<T>>
where
    T: FromStr<Err: fmt::Display>,
{
    let parse = |text: &String| {
        let wrong = |error: T::Err| Error::config(field, error.to_string());
        text.parse().map_err(wrong)
    };
    if texts.len() > MAX_PATTERNS {
        let why = format!("{}; at most {MAX_PATTERNS} are allowed", texts.len());
        return Err(Error::config(field, why));
    }
    texts.iter().map(parse).collect()
}

/// # The network
///
/// A guest reaches nothing unless it is allowed. What it wants to reach is decided here, in
/// the process that supervises it, and connections are made from here.
impl SandboxBuilder {
    /// What network the VM has; a sealed one otherwise.
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

    /// Lets the guest reach hosts: a name, a pattern of names, an address or a network, with
    /// or without ports ([`Pattern`](flashpan_network::policy::Pattern)).
    pub fn allow_host(mut self, pattern: impl Into<String>) -> Self {
        self.network.allow.push(pattern.into());
        self
    }

    /// Keeps the guest from hosts, whatever else allows them.
    pub fn deny_host(mut self, pattern: impl Into<String>) -> Self {
        self.network.deny.push(pattern.into());
        self
    }

    /// Adds a rule for requests ([`Rule`](flashpan_network::policy::Rule)); the first that
    /// means one counts.
    pub fn network_rule(mut self, rule: impl Into<String>) -> Self {
        self.network.rules.push(rule.into());
        self
    }

    /// A script that may deny requests and connections of those that all else allows
    /// ([`Script`]); it is shown placeholders of secrets, never their values.
    pub fn policy_script(mut self, source: impl Into<String>) -> Self {
        self.network.script = source.into();
        self
    }

    /// A secret, whose placeholder programs of the guest have in the variable `name`. Its
    /// hosts can be reached. Without a placeholder it gets a random one.
    pub fn secret(mut self, name: impl Into<String>, secret: api::Secret) -> Self {
        let hosts = secret.hosts.iter().cloned();
        self.network.allow.extend(hosts);
        self.network.inspected.secrets.insert(name.into(), secret);
        self
    }

    /// Whether all requests are looked at, whether anything else asks for that or not.
    pub fn intercept(mut self, all: bool) -> Self {
        self.network.inspected.all = all;
        self
    }

    /// Rules for requests and responses, and the socket at which some of them ask.
    pub fn interception(mut self, interception: api::NetworkInterceptionConfig) -> Self {
        self.network.inspected.interception = Some(interception);
        self
    }

    /// Has every request to these hosts (patterns; none: all) looked at by a function of the
    /// host's ([`edit::on_request`](flashpan_network::edit::on_request)).
    pub fn on_request<I>(self, hosts: I, hook: Arc<dyn edit::Callback>) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.hook(edit::Phase::Before, hosts, hook)
    }

    /// The same for responses ([`edit::on_response`](flashpan_network::edit::on_response)).
    pub fn on_response<I>(self, hosts: I, hook: Arc<dyn edit::Callback>) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.hook(edit::Phase::After, hosts, hook)
    }

    fn hook<I>(mut self, phase: edit::Phase, hosts: I, hook: Arc<dyn edit::Callback>) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        let hosts = hosts.into_iter().map(Into::into).collect();
        self.network.inspected.hooks.push((phase, hosts, hook));
        self
    }

    /// A file with authorities, in PEM, that hosts are verified by besides those that this
    /// host trusts.
    pub fn upstream_ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.network.inspected.upstream_ca_files.push(path.into());
        self
    }

    /// Whether each name has an address of its own, so that connections on all ports are
    /// decided by name. Programs that know an address already do not get there then, unless
    /// it is allowed.
    pub fn synthetic_names(mut self, synthetic: bool) -> Self {
        self.network.synthetic_names = synthetic;
        self
    }

    /// A name server to ask, in place of those of this host.
    pub fn dns_server(mut self, address: IpAddr) -> Self {
        self.network.dns_servers.push(address.to_string());
        self
    }

    /// All of it as a configuration says.
    pub(crate) fn network_settings(mut self, settings: Settings) -> Self {
        self.network = settings;
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

/// How many flows there may be: each takes up to three descriptors of this process.
fn most_flows() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let most = limit.map(|limit| limit.saturating_sub(RESERVE) / 3);
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

/// Passes on what is told of flows, as long as there is somebody who could tell: the
/// gateway, which `shared` holds.
async fn tell(mut reports: Reports, shared: Weak<Shared>) {
    while let Some((lost, report)) = reports.next().await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if lost > 0 {
            shared.events.lost(lost);
        }
        shared.events.network(report.into());
    }
}

/// The flows of a VM.
#[derive(Debug)]
pub(crate) struct Flows {
    /// None without a network.
    gateway: Option<Arc<Gateway>>,
    /// The certificate that the guest has to trust, if there is anything for it.
    pub(crate) authority: Option<String>,
    /// Variables of the guest's programs.
    pub(crate) placeholders: Vec<(String, String)>,
    running: HashMap<u64, AbortHandle>,
    /// Flows that are over on the guest's side, whose last bytes are on their way out.
    ending: HashMap<u64, AbortHandle>,
    /// Flows of which the VMM was told that they broke.
    broken: HashSet<u64>,
    /// What reads values of secrets again, if anything does.
    refreshing: Option<AbortHandle>,
    sender: mpsc::Sender<(u64, Answer)>,
    answers: mpsc::Receiver<(u64, Answer)>,
}

impl Flows {
    pub(crate) fn new(
        settings: &Settings,
        link: Option<Link>,
        shared: &Arc<Shared>,
    ) -> Result<Self> {
        let (reporter, reports) = report::channel(REPORTS);
        let mut authority = None;
        let mut placeholders = Vec::new();
        let mut refreshing = None;
        let gateway = match link {
            None => None,
            Some(link) => {
                let policy = settings.policy()?;
                let made = settings.inspected.make()?;
                // Where nothing is looked into nobody sees certificates of ours but with
                // what is refused anyway.
                let has_rules = !(policy.allow.is_empty() && policy.rules.is_empty());
                let shows = has_rules || policy.inspects || policy.script.is_some();
                authority = shows.then_some(made.authority);
                if !settings.refresh.sources.is_empty() {
                    let secrets = Arc::clone(&made.secrets);
                    let of = settings.refresh.clone();
                    let refresh = refresh(of, secrets, Arc::downgrade(shared));
                    refreshing = Some(tokio::spawn(refresh).abort_handle());
                }
                shared.set_secrets(made.secrets);
                placeholders = made.placeholders;
                Some(Arc::new(Gateway::new(flashpan_network::Settings {
                    link,
                    policy,
                    dns: settings.dns()?,
                    inspection: Some(made.inspection),
                    reporter,
                })))
            }
        };
        if let Some(gateway) = &gateway {
            raise_limit();
            shared.set_gateway(Arc::clone(gateway));
            tokio::spawn(tell(reports, Arc::downgrade(shared)));
        }
        let (sender, answers) = mpsc::channel(ANSWERS);
        Ok(Self {
            gateway,
            authority,
            placeholders,
            running: HashMap::new(),
            ending: HashMap::new(),
            broken: HashSet::new(),
            refreshing,
            sender,
            answers,
        })
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
        self.ending.retain(|_, flow| !flow.is_finished());
        let flows = self.running.len().saturating_add(self.ending.len());
        let Some(socket) = socket.filter(|_| flows < most_flows()) else {
            return refuse(Refusal::Host);
        };
        let flow = gateway.begin(id, protocol, tuple, socket, self.sender.clone());
        // A VMM that uses a number twice cannot leave a task behind.
        self.broken.remove(&id);
        let old = self.running.insert(id, flow).into_iter();
        for old in old.chain(self.ending.remove(&id)) {
            old.abort();
        }
        None
    }

    /// A flow is over on the guest's side.
    pub(crate) fn ended(&mut self, id: u64, how: End) {
        let Some(flow) = self.running.remove(&id) else {
            return;
        };
        let was_broken = self.broken.remove(&id);
        match how {
            // What the guest has sent may still be on its way out; it ends by itself, unless
            // it broke meanwhile.
            End::Closed if !was_broken => drop(self.ending.insert(id, flow)),
            End::Closed | End::Reset | End::Idle => flow.abort(),
        }
    }

    /// What the VMM is to be told next. Cancel safe.
    pub(crate) async fn next(&mut self) -> Request {
        loop {
            let answer = self.answers.recv().await;
            if let Some((id, Answer::Close)) = answer
                && let Some(flow) = self.ending.remove(&id)
            {
                // It waits for an end that was there already.
                flow.abort();
                continue;
            }
            return self.request(answer).await;
        }
    }

    async fn request(&mut self, answer: Option<(u64, Answer)>) -> Request {
        match answer {
            Some((id, Answer::Accept)) => Request::FlowAccept { id },
            Some((id, Answer::Refuse(why))) => {
                self.running.remove(&id);
                Request::FlowRefuse { id, why }
            }
            // The flow waits for its end on the guest's side.
            Some((id, Answer::Close)) => {
                if self.running.contains_key(&id) {
                    self.broken.insert(id);
                }
                Request::FlowClose { id }
            }
            // It fails only if all senders are gone, of which `self` holds one.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        let flows = self.running.values().chain(self.ending.values());
        for flow in flows.chain(&self.refreshing) {
            flow.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_names() {
        for network in [Network::None, Network::Sealed, Network::Open] {
            assert_eq!(network.to_string().parse(), Ok(network));
            let json = serde_json::to_string(&network).unwrap();
            assert_eq!(json, format!("\"{network}\""));
        }
        assert!("host".parse::<Network>().is_err());
    }

    fn waiting() -> AbortHandle {
        tokio::spawn(std::future::pending::<()>()).abort_handle()
    }

    /// However the two ends of a flow come, its task does not outlive both.
    #[tokio::test]
    async fn a_flow_that_broke_and_is_over_leaves_nothing() {
        let settings = Settings::default();
        let mut flows = Flows::new(&settings, None, &Arc::default()).unwrap();
        let (first, second) = (waiting(), waiting());
        flows.running.insert(1, first.clone());
        flows.running.insert(2, second.clone());
        // Over in the guest before the word that it broke.
        flows.ended(1, End::Closed);
        flows.sender.send((1, Answer::Close)).await.unwrap();
        flows.sender.send((2, Answer::Close)).await.unwrap();
        assert_eq!(flows.next().await, Request::FlowClose { id: 2 });
        // And after it.
        flows.ended(2, End::Closed);
        while !(first.is_finished() && second.is_finished()) {
            tokio::task::yield_now().await;
        }
        assert!(flows.ending.is_empty() && flows.broken.is_empty());
    }

    #[test]
    fn a_link_has_a_packet_size_that_can_be() {
        let settings = |mtu| Settings {
            network: Network::Open,
            mtu,
            ..Settings::default()
        };
        let none = Settings {
            network: Network::None,
            ..Settings::default()
        };
        assert_eq!(none.link().unwrap(), None);
        assert_eq!(settings(1400).link().unwrap().unwrap().mtu, 1400);
        for mtu in [0, 1279, 65_521, 70_000] {
            let error = settings(mtu).link().unwrap_err().to_string();
            assert!(error.contains("network.mtu"), "{error}");
        }
    }
}
