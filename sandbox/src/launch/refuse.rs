//! What a configuration may ask for and this version does not have.
//!
//! Each field that nothing obeys yet is refused by name, unless what it asks for is
//! the case anyway: guests have no network unless the host gives them one, so
//! `no_network`, `block_private_ips` and the usual packet size are kept to.

use std::fmt;

use crate::api::{Config, NetworkConfig, VfsConfig};
use crate::network::Network;

/// Fields of a configuration that this version cannot obey: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    fields: Vec<(&'static str, &'static str)>,
}

/// Why a field cannot be obeyed.
const NO_NETWORK: &str = "the VM is to have no network; leave one of them out";
const NETWORK: &str = "the VM is to have a network; leave one of them out";
const NO_MOUNTS: &str =
    "not supported by this version: guests see no files of the host; use a disk";

impl Unsupported {
    /// Paths of the fields, e.g. `network.allowed_hosts`.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(field, _)| *field)
    }

    /// The same paths, each with why it cannot be obeyed.
    pub fn reasons(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(field, why)| (*field, *why))
    }

    /// What of a configuration cannot be obeyed.
    pub(super) fn check(config: &Config, has: Network) -> Result<(), Self> {
        let mut fields = Vec::new();
        let mut refuse = |asked: bool, field, why| {
            if asked {
                fields.push((field, why));
            }
        };
        if let Some(network) = &config.network {
            check_network(network, has, &mut refuse);
        }
        if let Some(vfs) = &config.vfs {
            check_vfs(vfs, &mut refuse);
        }
        match fields.is_empty() {
            true => Ok(()),
            false => Err(Self { fields }),
        }
    }
}

fn check_network(
    network: &NetworkConfig,
    has: Network,
    refuse: &mut impl FnMut(bool, &'static str, &'static str),
) {
    // Servers of names, sizes of packets and addresses that are out of reach mean nothing
    // where there is no card, and are no contradiction.
    let none = has == Network::None;
    let hosts = !network.allowed_hosts.is_empty();
    let why = NO_NETWORK;
    for (asked, field) in [
        (none && hosts, "network.allowed_hosts"),
        (none && !network.rules.is_empty(), "network.rules"),
        (none && network.intercept, "network.intercept"),
        (
            none && network.interception.is_some(),
            "network.interception",
        ),
        (none && !network.secrets.is_empty(), "network.secrets"),
    ] {
        refuse(asked, field, why);
    }
    let asked = !none && network.no_network;
    refuse(asked, "network.no_network", NETWORK);
}

fn check_vfs(vfs: &VfsConfig, refuse: &mut impl FnMut(bool, &'static str, &'static str)) {
    for (asked, field) in [
        (vfs.workspace().is_some(), "vfs.workspace"),
        (!vfs.mounts.is_empty(), "vfs.mounts"),
        (!vfs.direct_mounts.is_empty(), "vfs.direct_mounts"),
        (vfs.interception.is_some(), "vfs.interception"),
    ] {
        refuse(asked, field, NO_MOUNTS);
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (field, why)) in self.reasons().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{field}: {why}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Unsupported {}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> Vec<String> {
        let config = Config::from_json(json.as_bytes()).unwrap().config;
        match Unsupported::check(&config, Network::None) {
            Ok(()) => Vec::new(),
            Err(refused) => refused.fields().map(str::to_owned).collect(),
        }
    }

    #[test]
    fn defaults_however_they_are_written_pass() {
        assert_eq!(
            Unsupported::check(&Config::default(), Network::None),
            Ok(())
        );
        assert_eq!(
            Unsupported::check(&Config::with_defaults(), Network::None),
            Ok(())
        );
        for json in [
            r#"{"network":{},"vfs":{},"resources":{"cpus":0.5}}"#,
            r#"{"network":{"add_hosts":[{"host":"a","ip":"10.0.0.1"}]}}"#,
            r#"{"network":{"no_network":true,"hostname":"h","policy_script":"p"}}"#,
            r#"{"network":{"block_private_ips":true,"mtu":0,"dns_servers":[],"secrets":null}}"#,
            r#"{"network":{"mtu":1500,"allowed_hosts":null,"intercept":false}}"#,
            r#"{"network":{"no_network":true,"mtu":1400,"dns_servers":["1.1.1.1"],
                           "block_private_ips":false}}"#,
            r#"{"vfs":{"workspace":"","mounts":{},"interception":null}}"#,
        ] {
            assert_eq!(refused(json), [""; 0], "{json}");
        }
    }

    #[test]
    fn what_nothing_obeys_is_refused_by_name() {
        for (json, fields) in [
            (
                r#"{"network":{"allowed_hosts":["a"],"mtu":1400}}"#,
                vec!["network.allowed_hosts"],
            ),
            (
                r#"{"network":{"intercept":true}}"#,
                vec!["network.intercept"],
            ),
            (
                r#"{"network":{"interception":{}}}"#,
                vec!["network.interception"],
            ),
            (
                r#"{"network":{"secrets":{"K":{"value":"v","hosts":["a"]}}}}"#,
                vec!["network.secrets"],
            ),
            (
                r#"{"vfs":{"workspace":"/w","mounts":{"/w":{"type":"memory"}}}}"#,
                vec!["vfs.workspace", "vfs.mounts"],
            ),
            (
                r#"{"vfs":{"direct_mounts":{"/d":{"host_path":"/d"}}}}"#,
                vec!["vfs.direct_mounts"],
            ),
            (r#"{"vfs":{"interception":{}}}"#, vec!["vfs.interception"]),
        ] {
            assert_eq!(refused(json), fields, "{json}");
        }
        let config =
            Config::from_json(br#"{"vfs":{"interception":{}},"network":{"intercept":true}}"#);
        let refused = Unsupported::check(&config.unwrap().config, Network::None).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "network.intercept: the VM is to have no network; leave one of them out; \
             vfs.interception: not supported by this version: guests see no files of the \
             host; use a disk"
        );
    }
}
