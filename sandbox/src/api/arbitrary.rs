//! Any valid configuration, for tests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Any text without NUL.
const TEXT: &str = "[^\0]{0,12}";

/// The name of a variable.
const NAME: &str = "[^=\0\\s][^=\0]{0,8}";

const HOST: &str = "(\\*\\.)?[a-z][a-z0-9-]{0,6}(\\.com)?";

/// The name of a header or method.
const TOKEN: &str = "[A-Za-z][A-Za-z0-9-]{0,8}";

/// The name of a header; two are never the same in another case.
const HEADER: &str = "[a-z][a-z0-9-]{0,8}";

/// The value of a header.
const LINE: &str = "[^\0\r\n]{0,8}";

fn map(name: &'static str, value: &'static str) -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(name, value, 0..4)
}

fn resources() -> impl Strategy<Value = Resources> {
    let cpus = prop_oneof![(1..=32_u32).prop_map(f64::from), 0.001..32.0];
    let parts = (
        option::of(cpus),
        option::of(48..=u64::from(u32::MAX)),
        option::of(16..=16_777_215_u64),
        option::of(1..=u64::from(u32::MAX)),
    );
    parts.prop_map(
        |(cpus, memory_mb, disk_size_mb, timeout_seconds)| Resources {
            cpus,
            memory_mb,
            disk_size_mb,
            timeout_seconds,
        },
    )
}

fn secret() -> impl Strategy<Value = Secret> {
    let value = "[^\0\r\n]{1,12}";
    let place = select(vec!["header:X-Key", "basic", "query", "path", "body"]);
    let places = vec(place.prop_map(str::to_owned), 0..3);
    let all = (value, vec(HOST, 1..3), places, any::<bool>());
    all.prop_map(|(value, hosts, places, plain_http)| {
        let mut secret = Secret::new(value, hosts);
        (secret.places, secret.plain_http) = (places, plain_http);
        secret
    })
}

fn hook_rule() -> impl Strategy<Value = NetworkHookRule> {
    let phase = select(vec![HookPhase::Before, HookPhase::After]);
    let action = select(vec![
        NetworkHookAction::Allow,
        NetworkHookAction::Block,
        NetworkHookAction::Mutate,
    ]);
    let matching = (
        TEXT,
        phase,
        vec(HOST, 0..3),
        vec(TOKEN, 0..3),
        "(/[a-z*?]{0,5})?",
        action,
    );
    let request = (
        map(HEADER, LINE),
        vec(TOKEN, 0..3),
        map(TEXT, TEXT),
        vec(TEXT, 0..3),
    );
    let change = (TEXT, TEXT).prop_map(|(find, replace)| NetworkBodyTransform::new(find, replace));
    let response = (map(HEADER, LINE), vec(TOKEN, 0..3), vec(change, 0..3));
    let callback = ("[a-z_0-9]{0,8}", option::of(1..u32::MAX), "(/[a-z]{0,5})?");
    (matching, request, response, callback).prop_map(|(matching, request, response, callback)| {
        NetworkHookRule {
            name: matching.0,
            phase: matching.1,
            hosts: matching.2,
            methods: matching.3,
            path: matching.4,
            action: matching.5,
            callback_id: callback.0,
            timeout_ms: callback.1,
            fail_open: callback.1.is_some(),
            rewrite_path: callback.2,
            set_headers: request.0,
            delete_headers: request.1,
            set_query: request.2,
            delete_query: request.3,
            set_response_headers: response.0,
            delete_response_headers: response.1,
            body_replacements: response.2,
        }
    })
}

fn network() -> impl Strategy<Value = NetworkConfig> {
    let entry = (HOST, any::<IpAddr>()).prop_map(|(host, ip)| HostIpMapping::new(host, ip));
    let servers = vec(any::<IpAddr>().prop_map(|ip| ip.to_string()), 0..3);
    let interception =
        (vec(hook_rule(), 0..3), "/[a-z]{1,8}").prop_map(|(rules, callback_socket)| {
            NetworkInterceptionConfig {
                rules,
                callback_socket,
            }
        });
    let hosts = (
        vec(HOST, 0..3),
        vec(entry, 0..3),
        btree_map(NAME, secret(), 0..3),
    );
    let script = option::of(TEXT).prop_map(|text| {
        let script = |text: String| {
            let comment = text.replace(['\n', '\r'], " ");
            format!("// {comment}\nfn request(req) {{}}\n")
        };
        text.map(script).unwrap_or_default()
    });
    let rest = (
        option::of(any::<bool>()),
        any::<[bool; 2]>(),
        script,
        servers,
    );
    let more = (
        "[a-zA-Z0-9.-]{0,64}",
        option::of(576..=65520_u32),
        option::of(interception),
    );
    (hosts, rest, more).prop_map(|(hosts, rest, more)| {
        let [no_network, intercept] = rest.1;
        let network = NetworkConfig {
            allowed_hosts: hosts.0.clone(),
            rules: hosts
                .0
                .iter()
                .map(|host| format!("deny GET {host}/"))
                .collect(),
            denied_hosts: hosts.0,
            add_hosts: hosts.1,
            secrets: hosts.2,
            block_private_ips: rest.0,
            no_network,
            intercept,
            policy_script: rest.2,
            forbid_range: rest.0.is_some(),
            splice: rest.0.is_some() && !intercept,
            scrub: rest.0,
            synthetic_names: rest.0.is_some(),
            dns_servers: rest.3,
            hostname: more.0,
            mtu: more.1,
            interception: more.2,
        };
        if !no_network {
            return network;
        }
        NetworkConfig {
            allowed_hosts: Vec::new(),
            rules: Vec::new(),
            secrets: BTreeMap::new(),
            intercept: false,
            interception: None,
            ..network
        }
    })
}

fn vfs() -> impl Strategy<Value = VfsConfig> {
    let path = "/[^\0]{1,8}";
    let mount = prop_oneof![
        any::<bool>().prop_map(|readonly| MountConfig {
            readonly,
            ..MountConfig::memory()
        }),
        (path, any::<bool>()).prop_map(|(path, readonly)| MountConfig::host_fs(path, readonly)),
        path.prop_map(MountConfig::overlay),
    ];
    let rule = (
        TEXT,
        vec(select(FileOp::WORDS), 0..3),
        "(/[a-z*?]{0,5})?",
        any::<bool>(),
    )
        .prop_map(|(name, ops, path, block)| VfsHookRule {
            name,
            phase: if block {
                HookPhase::Before
            } else {
                HookPhase::After
            },
            ops: ops.into_iter().map(FileOp::from).collect(),
            path,
            action: if block {
                VfsHookAction::Block
            } else {
                VfsHookAction::Allow
            },
            timeout_ms: block.then_some(1),
        });
    let interception = (any::<bool>(), vec(rule, 0..3))
        .prop_map(|(emit_events, rules)| VfsInterceptionConfig { emit_events, rules });
    let direct =
        (path, any::<bool>()).prop_map(|(path, readonly)| DirectMount::new(path, readonly));
    let mounts = btree_map("/w/[a-z]{1,4}", mount, 0..3);
    let direct = btree_map("/direct-[a-z]{1,4}", direct, 0..3);
    (mounts, direct, option::of(interception)).prop_map(|(mounts, direct_mounts, interception)| {
        let some = !mounts.is_empty();
        VfsConfig {
            workspace: if some { "/w".to_owned() } else { String::new() },
            direct_mounts,
            mounts,
            interception: interception.filter(|_| some),
        }
    })
}

fn disks() -> impl Strategy<Value = Vec<DiskMount>> {
    btree_map(
        "/disk-[a-z0-9._-]{1,4}",
        ("/[^\0]{1,8}", any::<bool>()),
        0..3,
    )
    .prop_map(|disks| {
        let disk = |(guest_mount, (host_path, readonly))| DiskMount {
            host_path,
            guest_mount,
            readonly,
        };
        disks.into_iter().map(disk).collect()
    })
}

fn image_config() -> impl Strategy<Value = ImageConfig> {
    let words = || option::of(vec(TEXT, 0..3));
    let parts = (
        TEXT,
        "(/[^\0]{0,8})?",
        words(),
        words(),
        option::of(map(NAME, TEXT)),
    );
    parts.prop_map(|(user, working_dir, entrypoint, cmd, env)| ImageConfig {
        user,
        working_dir,
        entrypoint,
        cmd,
        env,
    })
}

/// Any valid configuration.
pub(super) fn config() -> impl Strategy<Value = Config> {
    let own = (
        "(vm-[0-9a-f]{8})?",
        "[a-z/:.]{0,12}",
        any::<[bool; 2]>(),
        map(NAME, TEXT),
    );
    let objects = (
        option::of(resources()),
        option::of(network()),
        option::of(vfs()),
        option::of(image_config()),
        disks(),
    );
    (own, objects).prop_map(|(own, objects)| Config {
        id: own.0,
        image: own.1,
        privileged: own.2[0],
        launch_entrypoint: own.2[1],
        env: own.3,
        resources: objects.0,
        network: objects.1,
        vfs: objects.2,
        image_config: objects.3,
        extra_disks: objects.4,
    })
}
