//! What clients of the interface send is understood, without a warning, and what
//! they check of answers is there.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use flashpan::api::{
    Config, Event, EventKind, ExecResult, MountConfig, NetworkConfig, Secret, VfsConfig,
};

/// A request of a client over the defaults, and the paths of fields that have no
/// effect.
fn request(json: &str) -> (Config, Vec<String>) {
    let parsed = Config::from_json(json.as_bytes()).unwrap();
    parsed.config.validate_request().unwrap();
    let config = Config::with_defaults().merge(parsed.config);
    config.validate().unwrap();
    let warnings = parsed.warnings.into_iter().chain(config.warnings());
    let fields = warnings.map(|warning| warning.field).collect();
    (config, fields)
}

#[test]
fn requests_of_clients_are_understood() {
    for json in [
        // Nothing but an image.
        r#"{"image": "alpine:latest"}"#,
        // All resources, as a client that always sends them does.
        r#"{"image":"alpine:latest","launch_entrypoint":true,"resources":{"cpus":1,
            "memory_mb":512,"disk_size_mb":5120,"timeout_seconds":300}}"#,
        // A network object that always has these two fields.
        r#"{"image": "a", "network": {"allowed_hosts": [], "block_private_ips": true,
            "intercept": true}}"#,
        r#"{"image": "a", "network": {"allowed_hosts": ["*.example.com"],
            "block_private_ips": true, "secrets": {"API_KEY": {"value": "sk-1",
            "hosts": ["api.example.com"]}}, "dns_servers": ["1.1.1.1"], "hostname": "box",
            "mtu": 1200, "add_hosts": [{"host": "db", "ip": "10.0.0.5"}]}}"#,
        // No network.
        r#"{"image": "a", "network": {"no_network": true, "dns_servers": ["1.1.1.1"],
            "hostname": "box"}}"#,
        // Rules with a callback.
        r#"{"image": "a", "network": {"allowed_hosts": [], "block_private_ips": true,
            "interception": {"callback_socket": "/tmp/hook.sock", "rules": [
            {"name": "cb", "phase": "after", "hosts": ["a.com"], "action": "allow",
             "callback_id": "network_hook_1", "timeout_ms": 1500},
            {"action": "mutate", "phase": "before", "methods": ["get"], "path": "/v1/*",
             "set_headers": {"X-A": "1"}, "delete_headers": ["Y"], "set_query": {"q": "1"},
             "delete_query": ["r"], "rewrite_path": "/v2"},
            {"action": "mutate", "phase": "after", "set_response_headers": {"X-B": "2"},
             "delete_response_headers": ["Z"],
             "body_replacements": [{"find": "a", "replace": "b"}]}]}}}"#,
        // Mounts, rules for files, variables, a disk, what overrides the image.
        r#"{"image": "a", "privileged": true, "vfs": {"workspace": "/workspace", "mounts": {
            "/workspace": {"type": "memory"},
            "/workspace/src": {"type": "host_fs", "host_path": "/src", "readonly": true},
            "/workspace/data": {"type": "overlay", "host_path": "/data"}},
            "interception": {"emit_events": true, "rules": [
            {"name": "no", "phase": "before", "ops": ["create"], "path": "/workspace/x",
             "action": "block"}]}}, "env": {"A": "1"},
            "extra_disks": [{"host_path": "/d.ext4", "guest_mount": "/var/data"}],
            "image_config": {"user": "nobody", "working_dir": "/app", "entrypoint": [],
            "cmd": ["sh"], "env": {"B": "2"}}}"#,
    ] {
        let (config, warnings) = request(json);
        assert_eq!(warnings, Vec::<String>::new(), "{json}");
        assert!(config.network.unwrap().blocks_private_ips(), "{json}");
    }
}

#[test]
fn fields_of_other_versions_do_no_harm() {
    let (_, warnings) = request(
        r#"{"image": "a", "kernel": {"ref": "file:///k"}, "network": {},
            "vfs": {"workspace": "/w", "mounts": {"/w": {"type": "host_fs", "host_path": "/x",
            "owner_uid": 1000, "owner_gid": 1000}}, "interception": {"rules": [
            {"phase": "after", "action": "exec_after"}]}}}"#,
    );
    assert_eq!(
        warnings,
        [
            "kernel",
            "vfs.mounts[\"/w\"].owner_uid",
            "vfs.mounts[\"/w\"].owner_gid",
            "vfs.interception.rules[0].action",
        ]
    );
}

#[test]
fn a_program_can_make_a_configuration() {
    let mut network = NetworkConfig::default();
    network.allowed_hosts = vec!["api.example.com".to_owned()];
    let secret = Secret::new("sk-1".to_owned(), ["api.example.com"]);
    network.secrets.insert("API_KEY".to_owned(), secret);
    let mut vfs = VfsConfig::default();
    vfs.workspace = "/workspace".to_owned();
    let project = MountConfig::overlay("/home/me/project");
    vfs.mounts.insert("/workspace".to_owned(), project);
    let mut config = Config::default();
    config.image = "alpine".to_owned();
    config.network = Some(network);
    config.vfs = Some(vfs);
    config.validate_request().unwrap();
    assert_eq!(
        serde_json::to_string(&config).unwrap(),
        concat!(
            r#"{"image":"alpine","network":{"allowed_hosts":["api.example.com"],"#,
            r#""secrets":{"API_KEY":{"value":"sk-1","hosts":["api.example.com"]}}},"#,
            r#""vfs":{"workspace":"/workspace","#,
            r#""mounts":{"/workspace":{"type":"overlay","host_path":"/home/me/project"}}}}"#
        )
    );
}

#[test]
fn answers_have_what_clients_read() {
    let result = serde_json::to_value(ExecResult::new(7, Duration::from_millis(33))).unwrap();
    assert_eq!(result["exit_code"], 7);
    assert_eq!(result["duration_ms"], 33);
    let json = r#"{"type":"file","timestamp":1,"file":{"op":"write","path":"/w/a","size":1}}"#;
    let event: Event = serde_json::from_str(json).unwrap();
    assert!(matches!(event.kind, EventKind::File(_)));
}
