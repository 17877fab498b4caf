//! What a guest may reach.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::hook::NetworkInterceptionConfig;
use super::host_entry::HostIpMapping;
use super::lenient;
use super::secret::Secret;

/// Largest packet of the guest's network in bytes, unless asked otherwise.
pub const DEFAULT_NETWORK_MTU: u32 = 1500;

/// Name servers of a guest of the reference's unless asked otherwise; see
/// [`NetworkConfig::dns_servers`].
pub const DEFAULT_DNS_SERVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// What a guest may reach, and what the host does with it.
///
/// Patterns of hosts: `*` is all; `*.x` is everything that ends in `.x`, at any
/// depth, but not `x`; `x.*` is everything that begins with `x.`; in any other
/// pattern each `*` is any run of characters, dots included. An address or a network
/// (`10.0.0.0/8`, `10.0.*`) means the addresses. A port or range of ports may follow, as in
/// `db.example.com:5432`; without one all ports of TCP are meant, and with `udp:` before it
/// UDP in place of TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NetworkConfig {
    /// Patterns of the hosts that the guest may reach; those of secrets are added.
    /// Empty, without secrets: what `rules` allow, and all where the host opens the
    /// network (`Network::Open`).
    #[serde(
        default,
        deserialize_with = "lenient::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub allowed_hosts: Vec<String>,
    /// Patterns of hosts that the guest may not reach, whatever else allows them.
    #[serde(
        default,
        deserialize_with = "lenient::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub denied_hosts: Vec<String>,
    /// Rules for requests, each `allow` or `deny`, methods if only some are meant, and a
    /// host with or without a path: `allow GET,HEAD api.example.com/repos/**`. The first
    /// one that means a request counts; then `allowed_hosts`.
    #[serde(
        default,
        deserialize_with = "lenient::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub rules: Vec<String>,
    /// Lines for the guest's `/etc/hosts`.
    #[serde(
        default,
        deserialize_with = "lenient::objects",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub add_hosts: Vec<HostIpMapping>,
    /// Whether the guest is kept from private addresses: those of the host, of
    /// its networks and of cloud metadata services. Default true, also when other
    /// fields are set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_private_ips: Option<bool>,
    /// No network at all. Not with `allowed_hosts`, `rules`, `secrets`, `intercept` and
    /// `interception`. Default false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub no_network: bool,
    /// Whether HTTP and HTTPS are inspected even if nothing else asks for it.
    /// Default false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub intercept: bool,
    /// Rules for HTTP and HTTPS.
    #[serde(
        default,
        deserialize_with = "lenient::object",
        skip_serializing_if = "Option::is_none"
    )]
    pub interception: Option<NetworkInterceptionConfig>,
    /// Secrets by the name of the variable that holds the placeholder in the
    /// guest.
    #[serde(
        default,
        deserialize_with = "lenient::object_map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub secrets: BTreeMap<String, Secret>,
    /// Whether requests to hosts of secrets lose their `Range`, so that a host which says
    /// back what it got cannot be asked for a value part by part. Default false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub forbid_range: bool,
    /// Whether TLS to hosts that no secret and no rule for requests is for is passed on as it
    /// is, after its name was looked at: programs that trust only their host's own authority
    /// reach it then. Without, all TLS is looked into as soon as there is a secret. Not with
    /// `intercept`. Default false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub splice: bool,
    /// Whether values are taken out of what hosts of secrets answer. Without, a guest that
    /// has a host say back what it sent knows the value. Absent: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<bool>,
    /// A script that may deny requests and connections of those that all else allows
    /// ([`Script`](flashpan_network::script::Script)). Empty: there is none.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub policy_script: String,
    /// Whether each name has an address of its own, so that connections on all ports are
    /// decided by name. Default false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub synthetic_names: bool,
    /// Addresses of name servers, which the host asks for the guest. Empty: those of
    /// the host.
    #[serde(
        default,
        deserialize_with = "lenient::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub dns_servers: Vec<String>,
    /// Name of the guest: 1 to 64 letters, digits, `-` and `.`. Empty: the VM's
    /// id.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub hostname: String,
    /// Largest packet in bytes, 576 to 65520; without IPv6 below 1280.
    /// Absent or 0: 1500.
    #[serde(
        default,
        deserialize_with = "lenient::zero",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(test, schemars(range(min = 0, max = 65520)))]
    pub mtu: Option<u32>,
}

impl NetworkConfig {
    /// The defaults that have a value, spelled out.
    #[must_use]
    pub fn with_defaults() -> Self {
        Self {
            block_private_ips: Some(true),
            mtu: Some(DEFAULT_NETWORK_MTU),
            ..Self::default()
        }
    }

    /// Whether private addresses are out of reach: yes, unless that was switched
    /// off.
    #[must_use]
    pub fn blocks_private_ips(&self) -> bool {
        self.block_private_ips.unwrap_or(true)
    }

    /// Whether values are taken out of answers: yes, unless that was switched off.
    #[must_use]
    pub fn scrubs(&self) -> bool {
        self.scrub.unwrap_or(true)
    }

    /// The name servers: as set, or [`DEFAULT_DNS_SERVERS`], as the reference has it. A VM
    /// whose configuration names none uses those of its host instead.
    #[must_use]
    pub fn dns_servers_or_default(&self) -> Vec<String> {
        if self.dns_servers.is_empty() {
            return DEFAULT_DNS_SERVERS.map(str::to_owned).to_vec();
        }
        self.dns_servers.clone()
    }

    /// Largest packet in bytes: as set, or [`DEFAULT_NETWORK_MTU`].
    #[must_use]
    pub fn mtu_or_default(&self) -> u32 {
        self.mtu.unwrap_or(DEFAULT_NETWORK_MTU)
    }

    /// The patterns of hosts that the guest may reach, those of secrets included
    /// ([`Secret::reachable_hosts`]), each once. Empty: see [`Self::allowed_hosts`].
    #[must_use]
    pub fn reachable_hosts(&self) -> Vec<String> {
        let of_secrets = self.secrets.values().flat_map(Secret::reachable_hosts);
        let mut seen = BTreeSet::new();
        let hosts = self.allowed_hosts.iter().cloned().chain(of_secrets);
        hosts.filter(|host| seen.insert(host.clone())).collect()
    }

    /// Whether HTTP and HTTPS have to be inspected for anything that was asked
    /// for.
    #[must_use]
    pub fn needs_interception(&self) -> bool {
        !self.no_network
            && (self.intercept
                || self.interception.is_some()
                || !self.allowed_hosts.is_empty()
                || !self.rules.is_empty()
                || !self.secrets.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(json: &str) -> NetworkConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn protection_is_on_unless_it_was_switched_off() {
        assert!(network("{}").blocks_private_ips());
        assert!(network(r#"{"mtu":1400}"#).blocks_private_ips());
        assert!(network(r#"{"block_private_ips":null}"#).blocks_private_ips());
        assert!(network(r#"{"scrub":null}"#).scrubs());
        assert!(!network(r#"{"scrub":false}"#).scrubs());
        let off = network(r#"{"block_private_ips":false}"#);
        assert!(!off.blocks_private_ips());
        assert_eq!(
            serde_json::to_string(&off).unwrap(),
            r#"{"block_private_ips":false}"#
        );
    }

    #[test]
    fn defaults_are_there_without_being_set() {
        let network = network(r#"{"mtu":0,"dns_servers":null}"#);
        assert_eq!(network.mtu_or_default(), 1500);
        assert_eq!(network.dns_servers_or_default(), ["8.8.8.8", "8.8.4.4"]);
        assert_eq!(serde_json::to_string(&network).unwrap(), "{}");
    }

    #[test]
    fn hosts_of_secrets_can_be_reached() {
        let network = network(
            r#"{"allowed_hosts":["a","b:80"],"secrets":{"K":{"value":"v","hosts":["b","c:8443"]}}}"#,
        );
        let hosts = network.reachable_hosts();
        assert_eq!(hosts, ["a", "b:80", "b:443", "c:8443"]);
    }

    #[test]
    fn inspection_is_for_what_needs_it() {
        for (json, needed) in [
            ("{}", false),
            (
                r#"{"block_private_ips":true,"dns_servers":["1.1.1.1"]}"#,
                false,
            ),
            (r#"{"intercept":true}"#, true),
            (r#"{"intercept":true,"no_network":true}"#, false),
            (r#"{"interception":{}}"#, true),
            (r#"{"interception":null}"#, false),
            (r#"{"allowed_hosts":["a"]}"#, true),
            (r#"{"secrets":{"K":{"value":"v","hosts":["a"]}}}"#, true),
        ] {
            assert_eq!(network(json).needs_interception(), needed, "{json}");
        }
    }

    #[test]
    fn json_has_the_names() {
        let json = concat!(
            r#"{"allowed_hosts":["a"],"add_hosts":[{"host":"h","ip":"10.0.0.1"}],"#,
            r#""block_private_ips":true,"no_network":true,"intercept":true,"#,
            r#""interception":{"rules":[{"action":"block"}],"callback_socket":"/s"},"#,
            r#""secrets":{"K":{"value":"v","hosts":["a"]}},"policy_script":"p","#,
            r#""dns_servers":["1.1.1.1"],"hostname":"h","mtu":1400}"#
        );
        assert_eq!(serde_json::to_string(&network(json)).unwrap(), json);
    }
}
