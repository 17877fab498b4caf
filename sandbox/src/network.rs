//! Whether a VM has a network, and what its guest may reach there.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use flashpan_network::policy::Policy;
use flashpan_network::script::Script;
use flashpan_network::{dns, edit};
use flashpan_protocol::control::IoRate;
use flashpan_protocol::network::{Link, MTU};
use flashpan_protocol::supervisor::MAX_PATTERNS;
use serde::{Deserialize, Serialize};

use crate::api::{self, Config, DEFAULT_NETWORK_MTU};
use crate::client_certificate::ClientCertificate;
use crate::config::SandboxBuilder;
use crate::error::{Error, Result};
use crate::inspection::Inspected;
use crate::rate::RateLimit;
use crate::secret_refresh::Refresh;

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
    /// The internet: every public address that is not denied. Addresses of the host and of its
    /// networks are out of reach unless [`SandboxBuilder::block_private_ips`] says otherwise, or
    /// they are allowed; those of cloud metadata services unless they are allowed.
    Open,
}

impl Network {
    /// What network a VM of this configuration has, where this one was said or left.
    pub(crate) fn of(self, config: &Config) -> Self {
        let network = config.network.as_ref();
        match network.is_some_and(|network| network.no_network) && self == Self::Sealed {
            true => Self::None,
            false => self,
        }
    }
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
            let options = &mut settings.inspected.options;
            options.forbid_range = config.forbid_range;
            options.splice = config.splice;
            options.scrub = config.scrubs();
        }
        settings
    }

    /// How names are resolved.
    pub(crate) fn dns(&self) -> Result<dns::Settings> {
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
            splices: !self.inspected.is_of_all(),
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

    /// Whether addresses that are not of the internet are out of reach: those of the host and
    /// of its networks. True otherwise. Services that tell a cloud's machines of themselves
    /// have to be allowed by address in any case.
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
    /// hosts can be reached ([`api::Secret::reachable_hosts`]). Without a placeholder it gets
    /// a random one.
    pub fn secret(mut self, name: impl Into<String>, secret: api::Secret) -> Self {
        self.network.allow.extend(secret.reachable_hosts());
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

    /// Whether requests to hosts of secrets lose their `Range`: part by part a guest could
    /// read a value that such a host says back. Not otherwise.
    pub fn forbid_range(mut self, forbid: bool) -> Self {
        self.network.inspected.options.forbid_range = forbid;
        self
    }

    /// Whether TLS to hosts that no secret and no rule for requests is for is passed on as it
    /// is, after its name was looked at. Not otherwise, if there is a secret or
    /// [`Self::interception`]; [`Self::intercept`] looks into it all the same.
    pub fn splice(mut self, splice: bool) -> Self {
        self.network.inspected.options.splice = splice;
        self
    }

    /// Whether values of secrets are taken out of what their hosts answer; they are
    /// otherwise.
    pub fn scrub(mut self, scrub: bool) -> Self {
        self.network.inspected.options.scrub = scrub;
        self
    }

    /// Has every request to these hosts (patterns; none: all) looked at by a function of the
    /// host's ([`edit::on_request`](flashpan_network::edit::on_request)), or by one of which
    /// an [`edit::Ask`] says how long it may take and whether a request may pass without its
    /// answer.
    pub fn on_request<I>(self, hosts: I, hook: impl Into<edit::Ask>) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.hook(edit::Phase::Before, hosts, hook.into())
    }

    /// The same for responses ([`edit::on_response`](flashpan_network::edit::on_response)).
    pub fn on_response<I>(self, hosts: I, hook: impl Into<edit::Ask>) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.hook(edit::Phase::After, hosts, hook.into())
    }

    fn hook<I>(mut self, phase: edit::Phase, hosts: I, ask: edit::Ask) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        let hosts = hosts.into_iter().map(Into::into).collect();
        self.network.inspected.hooks.push((phase, hosts, ask));
        self
    }

    /// A file with authorities, in PEM, that hosts are verified by besides those that this
    /// host trusts.
    pub fn upstream_ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.network.inspected.upstream_ca_files.push(path.into());
        self
    }

    /// A certificate that hosts get which ask for one.
    pub fn client_certificate(mut self, certificate: ClientCertificate) -> Self {
        let certificates = &mut self.network.inspected.client_certificates;
        certificates.push(certificate);
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

    /// The largest packet of the network, 576 to 65520 bytes; 1500 otherwise.
    pub fn network_mtu(mut self, mtu: u32) -> Self {
        self.network.mtu = mtu;
        self
    }
}

/// The setting that is wrong, in errors.
const RATE: &str = "network rate";

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

    /// On another port nobody would look into what the host answers, the value in it.
    #[test]
    fn a_secret_opens_no_port_that_is_not_looked_into() {
        let secret = api::Secret::new("hunter22".to_owned(), ["api.test", "b.test:8443"]);
        let json =
            r#"{"network":{"secrets":{"K":{"value":"v","hosts":["api.test","b.test:8443"]}}}}"#;
        let config: Config = serde_json::from_str(json).unwrap();
        let built = crate::Sandbox::builder(
            "k",
            crate::Root::new("", flashpan_protocol::agent::FsType::Erofs),
        )
        .secret("K", secret);
        for settings in [Settings::of(&config, Network::Sealed), built.network] {
            let policy = settings.policy().unwrap();
            for (target, reached) in [
                ("api.test:443", true),
                ("api.test:80", true),
                ("api.test:8443", false),
                ("api.test:22", false),
                ("b.test:8443", true),
                ("b.test:443", false),
            ] {
                let explained = policy.explain(&target.parse().unwrap(), "GET");
                assert_eq!(explained.decision.is_ok(), reached, "{target}");
                assert!(explained.inspected || !reached, "{target}");
            }
        }
    }

    #[test]
    fn what_is_looked_into_and_taken_out_can_be_set() {
        let settings = |json: &str| {
            let config: api::NetworkConfig = serde_json::from_str(json).unwrap();
            let config = Config {
                network: Some(config),
                ..Config::default()
            };
            Settings::of(&config, Network::Open)
        };
        let secret = r#""secrets":{"K":{"value":"hunter22","hosts":["api.test"]}}"#;
        let rules = |hosts: &str| {
            format!(r#""interception":{{"rules":[{{"action":"block","hosts":[{hosts}]}}]}}"#)
        };
        let (one, all) = (rules("\"r.test\""), rules(""));
        for (json, hosts) in [
            (
                format!("{{{secret}}}"),
                ["api.test", "r.test", "other.test"].as_slice(),
            ),
            (format!("{{{secret},\"splice\":true}}"), &["api.test"]),
            (format!("{{{one}}}"), &["api.test", "r.test", "other.test"]),
            (format!("{{{one},\"splice\":true}}"), &["r.test"]),
            (
                format!("{{{secret},{one},\"splice\":true}}"),
                &["api.test", "r.test"],
            ),
            (
                format!("{{{all},\"splice\":true}}"),
                &["api.test", "r.test", "other.test"],
            ),
            ("{\"splice\":true}".to_owned(), &[]),
        ] {
            let settings = settings(&json);
            let policy = settings.policy().unwrap();
            let editor = settings.inspected.make().unwrap().inspection.editor;
            for host in ["api.test", "r.test", "other.test"] {
                let is_opened = hosts.contains(&host);
                let needs = editor.needs(&host.parse().unwrap(), 443);
                assert_eq!(needs, is_opened, "{json} {host}");
                // What is told of it is what is done.
                let explained = policy.explain(&host.parse().unwrap(), "GET");
                assert_eq!(explained.inspected, is_opened, "{json} {host}");
            }
        }
        assert!(settings("{}").inspected.options.scrub);
        assert!(!settings(r#"{"scrub":false}"#).inspected.options.scrub);
    }

    #[test]
    fn a_callback_may_fail_open() {
        let silent = || edit::on_request(|_| std::future::pending());
        let rule = |fail_open: bool| {
            let json = format!(
                r#"{{"rules":[{{"callback_id":"c","fail_open":{fail_open}}}],"callback_socket":"/s"}}"#
            );
            let interception: api::NetworkInterceptionConfig = serde_json::from_str(&json).unwrap();
            interception
        };
        let root = || crate::Root::new("", flashpan_protocol::agent::FsType::Erofs);
        let builder = || crate::Sandbox::builder("k", root());
        let ask = edit::Ask {
            fail_open: true,
            ..edit::Ask::new(silent())
        };
        for (builder, is_open) in [
            (builder().interception(rule(false)), false),
            (builder().interception(rule(true)), true),
            (builder().on_request(["a.test"], silent()), false),
            (builder().on_request(["a.test"], ask), true),
        ] {
            let rules = builder.network.inspected.rules().unwrap();
            let asks: Vec<_> = rules.iter().map(edit::Hook::fails_open).collect();
            assert_eq!(asks, [is_open]);
        }
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
        for mtu in [0, 575, 65_521, 70_000] {
            let error = settings(mtu).link().unwrap_err().to_string();
            assert!(error.contains("network.mtu"), "{error}");
        }
    }
}
