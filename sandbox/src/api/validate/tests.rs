mod files;
mod network;

use super::*;
use crate::api::{FieldError, MAX_LISTED};

fn config(json: &str) -> Config {
    Config::from_json(json.as_bytes()).unwrap().config
}

fn errors(json: &str) -> Vec<FieldError> {
    match config(json).validate() {
        Ok(()) => Vec::new(),
        Err(errors) => errors.errors().to_vec(),
    }
}

/// What is said of a configuration with one mistake.
fn message(json: &str) -> String {
    let found = errors(json);
    assert_eq!(found.len(), 1, "{json}: {found:?}");
    config(json).validate().unwrap_err().to_string()
}

#[test]
fn texts_of_the_interface() {
    for (json, text) in [
        (
            r#"{"network":{"no_network":true,"allowed_hosts":["a"]}}"#,
            "network.no_network cannot be combined with network.allowed_hosts",
        ),
        (
            r#"{"network":{"no_network":true,"secrets":{"K":{"value":"v","hosts":["a"]}}}}"#,
            "network.no_network cannot be combined with network.secrets",
        ),
        (
            r#"{"network":{"no_network":true,"intercept":true}}"#,
            "network.no_network cannot be combined with network.intercept",
        ),
        (
            r#"{"network":{"no_network":true,"interception":{}}}"#,
            "network.no_network cannot be combined with network.interception",
        ),
        (
            r#"{"vfs":{"workspace":"/w"}}"#,
            "vfs.workspace requires at least one vfs.mounts entry",
        ),
        (
            r#"{"vfs":{"mounts":{"/w":{"type":"memory"}}}}"#,
            "vfs.workspace is required when vfs.mounts is set",
        ),
        (
            r#"{"vfs":{"workspace":"  ","mounts":{"/w":{"type":"memory"}}}}"#,
            "vfs.workspace is required when vfs.mounts is set",
        ),
        (
            r#"{"vfs":{"interception":{}}}"#,
            "vfs.interception requires at least one vfs.mounts entry",
        ),
        (
            r#"{"vfs":{"workspace":"/w w","mounts":{"/w w":{"type":"memory"}}}}"#,
            "vfs.workspace: invalid guest mount path \"/w w\": must be absolute and contain only \
             alphanumeric, '/', '_', '.', '-'",
        ),
        (
            r#"{"vfs":{"workspace":"/w","mounts":{"a":{"type":"memory"}}}}"#,
            "guest path must be absolute: \"a\" (vfs.mounts.a)",
        ),
        (
            r#"{"vfs":{"workspace":"/w","mounts":{"/w2/":{"type":"memory"}}}}"#,
            "guest path must be within workspace: \"/w2\" not in \"/w\" (vfs.mounts[\"/w2/\"])",
        ),
    ] {
        assert_eq!(message(json), format!("invalid configuration: {text}"));
    }
}

#[test]
fn every_mistake_is_told_at_once() {
    let json = r#"{"resources":{"cpus":-1,"memory_mb":1},
        "network":{"no_network":true,"allowed_hosts":["a"],"intercept":true,"mtu":1},
        "vfs":{"workspace":"/w"},"env":{"A=B":"1"}}"#;
    let errors = config(json).validate().unwrap_err();
    assert_eq!(
        errors.to_string(),
        "invalid configuration: \
         network.no_network cannot be combined with network.allowed_hosts; \
         network.no_network cannot be combined with network.intercept; \
         network.mtu: 1 is not between 576 and 65520; \
         vfs.workspace requires at least one vfs.mounts entry; \
         resources.cpus: must be a finite number > 0, not -1; \
         resources.memory_mb: 1 MiB is too little: want 48 MiB to 4294967295 MiB; \
         env[\"A=B\"]: the name of a variable contains `=` or a NUL"
    );
    assert_eq!(errors.code().as_str(), "config_invalid");
    let first = serde_json::to_value(&errors.errors()[0]).unwrap();
    assert_eq!(first["field"], "network.no_network");
    assert_eq!(first["kind"], "conflict");
}

#[test]
fn accepted() {
    for json in [
        "{}",
        r#"{"network":{"no_network":true,"block_private_ips":true,"mtu":1400,"hostname":"h",
            "dns_servers":["1.1.1.1"],"add_hosts":[{"host":"h","ip":"::1"}]}}"#,
        r#"{"network":{"allowed_hosts":["*"]}}"#,
        r#"{"vfs":{}}"#,
        r#"{"vfs":{"workspace":"  "}}"#,
        r#"{"vfs":{"workspace":"/w","mounts":{"/w":{"type":"memory"},"/w/a":{"type":"host_fs",
            "host_path":"/x","readonly":true},"/w/b/../c":{"type":"overlay","host_path":"x"}}}}"#,
        r#"{"vfs":{"workspace":"/w","mounts":{"/w":{"type":""}},"interception":{"rules":[
            {"ops":["read_dir","write"],"path":"/w/*","action":"block"},
            {"action":"exec_after","phase":"after"}]}}}"#,
        r#"{"vfs":{"direct_mounts":{"/d":{"host_path":"/x"}}}}"#,
        r#"{"extra_disks":[{"host_path":"/x","guest_mount":"/d"},
            {"host_path":"/x","guest_mount":"/d/e"}]}"#,
        r#"{"resources":{"cpus":0.5,"memory_mb":48,"disk_size_mb":16,"timeout_seconds":1}}"#,
        r#"{"resources":{"cpus":32}}"#,
        r#"{"image_config":{"user":"1000:1000","working_dir":"/","entrypoint":[""],"env":{}}}"#,
    ] {
        assert_eq!(errors(json), [], "{json}");
    }
}

#[test]
fn mistakes_in_the_rest() {
    for (json, field) in [
        (r#"{"id":"vm-1"}"#, "id"),
        (r#"{"id":"vm-../../xx"}"#, "id"),
        (r#"{"id":"00000000"}"#, "id"),
        (r#"{"image":"a b"}"#, "image"),
        (r#"{"env":{"":"1"}}"#, "env[\"\"]"),
        (r#"{"env":{"A":"\u0000"}}"#, "env.A"),
        (r#"{"image_config":{"user":"\u0000"}}"#, "image_config.user"),
        (
            r#"{"image_config":{"working_dir":"x"}}"#,
            "image_config.working_dir",
        ),
        (
            r#"{"image_config":{"working_dir":"/\u0000"}}"#,
            "image_config.working_dir",
        ),
        (
            r#"{"image_config":{"cmd":["a","\u0000"]}}"#,
            "image_config.cmd[1]",
        ),
        (
            r#"{"image_config":{"env":{"A=":"1"}}}"#,
            "image_config.env[\"A=\"]",
        ),
        (r#"{"resources":{"cpus":32.5}}"#, "resources.cpus"),
        (r#"{"resources":{"memory_mb":47}}"#, "resources.memory_mb"),
        (
            r#"{"resources":{"disk_size_mb":15}}"#,
            "resources.disk_size_mb",
        ),
        (
            r#"{"resources":{"disk_size_mb":16777216}}"#,
            "resources.disk_size_mb",
        ),
        (
            r#"{"resources":{"timeout_seconds":4294967296}}"#,
            "resources.timeout_seconds",
        ),
    ] {
        let found = errors(json);
        assert_eq!(found.len(), 1, "{json}: {found:?}");
        assert_eq!(found[0].field, field, "{json}");
    }
    let endless = Config {
        resources: Some(Resources {
            cpus: Some(f64::NAN),
            ..Resources::default()
        }),
        ..Config::default()
    };
    assert!(
        endless
            .validate()
            .unwrap_err()
            .to_string()
            .contains("finite number > 0")
    );
}

#[test]
fn a_host_has_what_is_asked_for() {
    let host = HostLimits {
        cpus: Some(2),
        memory_mb: Some(1024),
    };
    let check = |json: &str| config(json).validate_on(&host).map_err(|e| e.to_string());
    assert_eq!(
        check(r#"{"resources":{"cpus":2,"memory_mb":1024}}"#),
        Ok(())
    );
    assert_eq!(
        check(r#"{"resources":{"cpus":2.5,"memory_mb":1025}}"#),
        Err(
            "invalid configuration: resources.cpus: must be <= host cpus (2), not 2.5; \
             resources.memory_mb: 1025 MiB is too much: want 48 MiB to 1024 MiB"
                .to_owned()
        )
    );
    let this = HostLimits::of_this_host();
    assert!(this.cpus.is_some_and(|cpus| cpus > 0));
    assert!(this.memory_mb.is_some_and(|memory| memory > 0));
}

#[test]
fn a_request_has_an_image_and_no_id() {
    let check = |json: &str| {
        config(json)
            .validate_request()
            .map_err(|e| (e.code(), e.to_string()))
    };
    assert_eq!(check(r#"{"image":"alpine"}"#), Ok(()));
    for (json, code, text) in [
        (
            "{}",
            "image_required",
            "image is required (e.g., alpine:latest)",
        ),
        (
            r#"{"id":"vm-1"}"#,
            "image_required",
            "image is required (e.g., alpine:latest)",
        ),
        (
            r#"{"id":"vm-1","image":"a"}"#,
            "id_given",
            "id is internal-only and cannot be set",
        ),
        (
            r#"{"image":"a","vfs":{"workspace":"/w"}}"#,
            "config_invalid",
            "invalid configuration: vfs.workspace requires at least one vfs.mounts entry",
        ),
    ] {
        let (found, message) = check(json).unwrap_err();
        assert_eq!(found.as_str(), code);
        assert_eq!(message, text);
        assert_eq!(found.rpc_code().number(), -32602);
    }
}

#[test]
fn what_has_no_effect_is_told() {
    let json = r#"{"network":{"interception":{"callback_socket":"/s","rules":[
            {}, {"action":"mutate"}, {"callback_id":"c"}, {"action":"block"},
            {"phase":"after","set_headers":{"A":"1"},"body_replacements":[{"find":""}]}]}},
        "vfs":{"workspace":"/w","mounts":{"/w":{}},"interception":{"rules":[
            {"action":"exec_after"},{"action":"Mutate_Write"},{"action":"block"}]}}}"#;
    assert_eq!(errors(json), []);
    let warnings = config(json).warnings();
    let fields: Vec<_> = warnings
        .iter()
        .map(|warning| warning.field.as_str())
        .collect();
    assert_eq!(
        fields,
        [
            "network.interception.rules[0]",
            "network.interception.rules[1]",
            "network.interception.rules[4]",
            "network.interception.rules[4]",
            "network.interception.rules[4].body_replacements[0].find",
            "vfs.interception.rules[0].action",
            "vfs.interception.rules[1].action",
        ]
    );
    assert_eq!(
        config(r#"{"network":{"intercept":true},"vfs":{}}"#).warnings(),
        []
    );
}

#[test]
fn a_configuration_full_of_mistakes_makes_no_endless_message() {
    let hosts = vec!["\"a b\""; 4096].join(",");
    let json = format!(r#"{{"network":{{"allowed_hosts":[{hosts}]}}}}"#);
    let errors = config(&json).validate().unwrap_err();
    assert_eq!(errors.errors().len(), MAX_LISTED);
    assert_eq!(errors.more(), 4096 - MAX_LISTED);
    assert!(errors.to_string().ends_with("and 4032 more"));

    let secret = |n: usize| {
        let placeholder = format!("{n:0>1000}");
        format!(r#""K{n}":{{"value":"v","hosts":["a"],"placeholder":"{placeholder}"}}"#)
    };
    let secrets: Vec<_> = (0..257).map(secret).collect();
    let json = format!(r#"{{"network":{{"secrets":{{{}}}}}}}"#, secrets.join(","));
    assert!(message(&json).contains("257 secrets; at most 256 are allowed"));
}
