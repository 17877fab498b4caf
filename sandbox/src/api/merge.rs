//! One configuration over another, field by field.

use super::config::Config;
use super::hook::NetworkInterceptionConfig;
use super::network::NetworkConfig;
use super::resources::Resources;
use super::vfs::{VfsConfig, VfsInterceptionConfig};

impl Config {
    /// This configuration with what `over` sets in place of its own.
    ///
    /// * A field that `over` does not set stays, within objects too: setting one
    ///   field of `network` does not touch the others.
    /// * A text or list that is not empty replaces the one before.
    /// * Maps are joined; of entries with one key that of `over` counts.
    /// * `privileged`, `launch_entrypoint`, `no_network`, `intercept` and
    ///   `emit_events` can only be switched on.
    /// * The lists and the map of `image_config` replace the ones before also if
    ///   they are empty.
    #[must_use]
    pub fn merge(self, over: Self) -> Self {
        Self {
            id: text(self.id, over.id),
            image: text(self.image, over.image),
            privileged: self.privileged || over.privileged,
            launch_entrypoint: self.launch_entrypoint || over.launch_entrypoint,
            resources: both(self.resources, over.resources, |own, over| {
                resources(&own, &over)
            }),
            network: both(self.network, over.network, network),
            vfs: both(self.vfs, over.vfs, vfs),
            env: joined(self.env, over.env),
            extra_disks: list(self.extra_disks, over.extra_disks),
            image_config: both(self.image_config, over.image_config, |own, over| {
                own.merge(over)
            }),
        }
    }
}

fn resources(own: &Resources, over: &Resources) -> Resources {
    Resources {
        cpus: over.cpus.or(own.cpus),
        memory_mb: over.memory_mb.or(own.memory_mb),
        disk_size_mb: over.disk_size_mb.or(own.disk_size_mb),
        timeout_seconds: over.timeout_seconds.or(own.timeout_seconds),
    }
}

fn network(own: NetworkConfig, over: NetworkConfig) -> NetworkConfig {
    NetworkConfig {
        allowed_hosts: list(own.allowed_hosts, over.allowed_hosts),
        denied_hosts: list(own.denied_hosts, over.denied_hosts),
        rules: list(own.rules, over.rules),
        add_hosts: list(own.add_hosts, over.add_hosts),
        block_private_ips: over.block_private_ips.or(own.block_private_ips),
        no_network: own.no_network || over.no_network,
        intercept: own.intercept || over.intercept,
        interception: both(own.interception, over.interception, |own, over| {
            NetworkInterceptionConfig {
                rules: list(own.rules, over.rules),
                callback_socket: text(own.callback_socket, over.callback_socket),
            }
        }),
        secrets: joined(own.secrets, over.secrets),
        forbid_range: own.forbid_range || over.forbid_range,
        splice: own.splice || over.splice,
        scrub: over.scrub.or(own.scrub),
        policy_script: text(own.policy_script, over.policy_script),
        synthetic_names: own.synthetic_names || over.synthetic_names,
        dns_servers: list(own.dns_servers, over.dns_servers),
        hostname: text(own.hostname, over.hostname),
        mtu: over.mtu.or(own.mtu),
    }
}

fn vfs(own: VfsConfig, over: VfsConfig) -> VfsConfig {
    VfsConfig {
        workspace: text(own.workspace, over.workspace),
        direct_mounts: joined(own.direct_mounts, over.direct_mounts),
        mounts: joined(own.mounts, over.mounts),
        interception: both(own.interception, over.interception, |own, over| {
            VfsInterceptionConfig {
                emit_events: own.emit_events || over.emit_events,
                rules: list(own.rules, over.rules),
            }
        }),
    }
}

fn both<T>(own: Option<T>, over: Option<T>, merge: impl FnOnce(T, T) -> T) -> Option<T> {
    match (own, over) {
        (Some(own), Some(over)) => Some(merge(own, over)),
        (own, over) => over.or(own),
    }
}

fn text(own: String, over: String) -> String {
    if over.is_empty() { own } else { over }
}

fn list<T>(own: Vec<T>, over: Vec<T>) -> Vec<T> {
    if over.is_empty() { own } else { over }
}

type Map<T> = std::collections::BTreeMap<String, T>;

fn joined<T>(mut own: Map<T>, over: Map<T>) -> Map<T> {
    own.extend(over);
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        serde_json::from_str(json).unwrap()
    }

    fn merged(own: &str, over: &str) -> String {
        serde_json::to_string(&config(own).merge(config(over))).unwrap()
    }

    #[test]
    fn no_network_field_switches_protection_off() {
        for over in [
            r#"{"network":{}}"#,
            r#"{"network":{"block_private_ips":null}}"#,
            r#"{"network":{"mtu":1400}}"#,
            r#"{"network":{"hostname":"h"}}"#,
            r#"{"network":{"dns_servers":["1.1.1.1"]}}"#,
            r#"{"network":{"allowed_hosts":["a"]}}"#,
            r#"{"network":{"intercept":true}}"#,
            r#"{"network":{"interception":{}}}"#,
            r#"{"network":{"no_network":true}}"#,
            r#"{"network":{"secrets":{"K":{"value":"v","hosts":["a"]}}}}"#,
        ] {
            let merged = Config::with_defaults().merge(config(over));
            assert!(merged.network.unwrap().blocks_private_ips(), "{over}");
        }
        let off = config(r#"{"network":{"block_private_ips":false}}"#);
        let merged = Config::with_defaults().merge(off);
        assert!(!merged.network.unwrap().blocks_private_ips());
    }

    #[test]
    fn what_is_not_set_stays() {
        let all = concat!(
            r#"{"id":"vm-1","image":"a","privileged":true,"launch_entrypoint":true,"#,
            r#""resources":{"cpus":2,"memory_mb":64,"disk_size_mb":32,"timeout_seconds":1},"#,
            r#""network":{"allowed_hosts":["a"],"add_hosts":[{"host":"h","ip":"10.0.0.1"}],"#,
            r#""block_private_ips":false,"no_network":true,"intercept":true,"#,
            r#""interception":{"rules":[{"action":"block"}],"callback_socket":"/s"},"#,
            r#""secrets":{"K":{"value":"v","hosts":["a"]}},"policy_script":"p","#,
            r#""dns_servers":["1.1.1.1"],"hostname":"h","mtu":1400},"#,
            r#""vfs":{"workspace":"/w","direct_mounts":{"/d":{"host_path":"/d"}},"#,
            r#""mounts":{"/w":{"type":"memory"}},"#,
            r#""interception":{"emit_events":true,"rules":[{"action":"block"}]}},"#,
            r#""env":{"A":"1"},"extra_disks":[{"host_path":"/d","guest_mount":"/e"}],"#,
            r#""image_config":{"user":"u","working_dir":"/w","entrypoint":["e"],"cmd":["c"],"#,
            r#""env":{"A":"1"}}}"#
        );
        let nothing = concat!(
            r#"{"id":"","image":"","privileged":false,"launch_entrypoint":false,"#,
            r#""resources":{"cpus":0,"memory_mb":0},"network":{"no_network":false,"#,
            r#""allowed_hosts":[],"interception":{"rules":[]},"secrets":{}},"#,
            r#""vfs":{"workspace":"","mounts":{},"interception":{"emit_events":false}},"#,
            r#""env":{},"extra_disks":[],"image_config":{"cmd":null}}"#
        );
        assert_eq!(merged(all, nothing), all);
        assert_eq!(merged(all, "{}"), all);
        assert_eq!(merged("{}", all), all);
        assert_eq!(merged(all, all), all);
    }

    #[test]
    fn what_is_set_wins() {
        for (own, over, result) in [
            (r#"{"image":"a"}"#, r#"{"image":"b"}"#, r#"{"image":"b"}"#),
            (
                r#"{"resources":{"cpus":1,"memory_mb":64}}"#,
                r#"{"resources":{"cpus":2.5}}"#,
                r#"{"resources":{"cpus":2.5,"memory_mb":64}}"#,
            ),
            (
                r#"{"env":{"A":"1","B":"1"}}"#,
                r#"{"env":{"B":"2","C":"2"}}"#,
                r#"{"env":{"A":"1","B":"2","C":"2"}}"#,
            ),
            (
                r#"{"network":{"allowed_hosts":["a"],"mtu":1400}}"#,
                r#"{"network":{"allowed_hosts":["b"]}}"#,
                r#"{"network":{"allowed_hosts":["b"],"mtu":1400}}"#,
            ),
            (
                r#"{"vfs":{"mounts":{"/w":{"type":"memory"},"/w/a":{"type":"memory"}}}}"#,
                r#"{"vfs":{"mounts":{"/w":{"type":"overlay","host_path":"/x"}}}}"#,
                concat!(
                    r#"{"vfs":{"mounts":{"/w":{"type":"overlay","host_path":"/x"},"#,
                    r#""/w/a":{"type":"memory"}}}}"#
                ),
            ),
            (
                r#"{"image_config":{"cmd":["a"],"env":{"A":"1"}}}"#,
                r#"{"image_config":{"cmd":[],"env":{"B":"1"}}}"#,
                r#"{"image_config":{"cmd":[],"env":{"B":"1"}}}"#,
            ),
        ] {
            assert_eq!(merged(own, over), result);
        }
    }
}
