use proptest::prelude::*;

use super::*;
use crate::api::{arbitrary, problem::MAX_LISTED};

fn json_error(json: &str) -> String {
    Config::from_json(json.as_bytes()).unwrap_err().to_string()
}

fn toml_error(text: &str) -> String {
    Config::from_toml(text).unwrap_err().to_string()
}

/// A configuration with every field, in JSON and in TOML.
const ALL_JSON: &str = r#"{
  "image": "alpine", "privileged": true, "launch_entrypoint": true,
  "resources": {"cpus": 2, "memory_mb": 64, "disk_size_mb": 32, "timeout_seconds": 1},
  "network": {
    "allowed_hosts": ["a.com"], "add_hosts": [{"host": "h", "ip": "10.0.0.1"}],
    "block_private_ips": false, "intercept": true,
    "interception": {
      "callback_socket": "/s",
      "rules": [{"name": "n", "phase": "after", "action": "mutate", "callback_id": "c",
                 "body_replacements": [{"find": "x", "replace": "y"}]}]
    },
    "secrets": {"KEY": {"value": "v", "hosts": ["a.com"]}},
    "dns_servers": ["1.1.1.1"], "hostname": "h", "mtu": 1400
  },
  "vfs": {
    "workspace": "/w",
    "mounts": {"/w": {"type": "memory"}, "/w/a b": {"type": "overlay", "host_path": "/x"}},
    "interception": {"emit_events": true, "rules": [{"ops": ["read"], "action": "block"}]}
  },
  "env": {"A": "1"},
  "extra_disks": [{"host_path": "/d", "guest_mount": "/e", "readonly": true}],
  "image_config": {"user": "u", "entrypoint": [], "env": {}}
}"#;

const ALL_TOML: &str = r#"
image = "alpine"
privileged = true
launch_entrypoint = true
env.A = "1"

[resources]
cpus = 2
memory_mb = 64
disk_size_mb = 32
timeout_seconds = 1

[network]
allowed_hosts = ["a.com"]
add_hosts = [{ host = "h", ip = "10.0.0.1" }]
block_private_ips = false
intercept = true
secrets.KEY = { value = "v", hosts = ["a.com"] }
dns_servers = ["1.1.1.1"]
hostname = "h"
mtu = 1400

[network.interception]
callback_socket = "/s"

[[network.interception.rules]]
name = "n"
phase = "after"
action = "mutate"
callback_id = "c"
body_replacements = [{ find = "x", replace = "y" }]

[vfs]
workspace = "/w"
mounts."/w" = { type = "memory" }
mounts."/w/a b" = { type = "overlay", host_path = "/x" }
interception = { emit_events = true, rules = [{ ops = ["read"], action = "block" }] }

[[extra_disks]]
host_path = "/d"
guest_mount = "/e"
readonly = true

[image_config]
user = "u"
entrypoint = []
env = {}
"#;

#[test]
fn json_and_toml_say_the_same() {
    let json = Config::from_json(ALL_JSON.as_bytes()).unwrap();
    let toml = Config::from_toml(ALL_TOML).unwrap();
    assert_eq!(json, toml);
    assert_eq!(json.warnings, []);
    json.config.validate().unwrap();
}

#[test]
fn unknown_fields_are_passed_over_and_reported() {
    let json = r#"{"image":"a","kernel":{"ref":"x"},"network":{"mtuu":1},
        "vfs":{"workspace":"/w","mounts":{"/w":{"type":"memory","owner_uid":0}}},
        "extra_disks":[{"host_path":"/d","guest_mount":"/e","sise":1}]}"#;
    let parsed = Config::from_json(json.as_bytes()).unwrap();
    let warnings: Vec<_> = parsed.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "kernel: unknown field; it has no effect",
            "network.mtuu: unknown field; it has no effect",
            "vfs.mounts[\"/w\"].owner_uid: unknown field; it has no effect",
            "extra_disks[0].sise: unknown field; it has no effect",
        ]
    );
    assert_eq!(parsed.config.image, "a");
    let toml = Config::from_toml("imag = 'a'\n[network]\nmtuu = 1\n").unwrap();
    let fields: Vec<_> = toml.warnings.iter().map(|w| w.field.as_str()).collect();
    assert_eq!(fields, ["imag", "network.mtuu"]);
}

#[test]
fn the_number_of_warnings_is_bounded() {
    let fields: Vec<_> = (0..1000).map(|n| format!("\"x{n}\":0")).collect();
    let json = format!("{{{}}}", fields.join(","));
    let parsed = Config::from_json(json.as_bytes()).unwrap();
    assert_eq!(parsed.warnings.len(), MAX_LISTED);
}

#[test]
fn null_is_the_same_as_nothing() {
    let json = r#"{"id":null,"image":null,"privileged":null,"launch_entrypoint":null,
        "resources":null,"network":null,"vfs":null,"env":null,"extra_disks":null,
        "image_config":null}"#;
    assert_eq!(
        Config::from_json(json.as_bytes()).unwrap().config,
        Config::default()
    );
    let json = r#"{"network":{"allowed_hosts":null,"add_hosts":null,"block_private_ips":null,
        "no_network":null,"intercept":null,"interception":null,"secrets":null,
        "policy_script":null,"dns_servers":null,"hostname":null,"mtu":null}}"#;
    let network = Config::from_json(json.as_bytes()).unwrap().config.network;
    assert_eq!(network, Some(crate::api::NetworkConfig::default()));
}

#[test]
fn errors_say_where_they_are() {
    for (json, error) in [
        (
            "{\n  \"image\": 1\n}",
            "configuration: line 2, column 12: image: found integer, expected a string",
        ),
        (
            r#"{"network":{"mtu":-1}}"#,
            "configuration: line 1, column 20: network.mtu: must be 0 or more",
        ),
        (
            r#"{"network":{"mtu":4294967296}}"#,
            "configuration: line 1, column 28: network.mtu: is too large a number",
        ),
        (
            r#"{"resources":{"memory_mb":1.5}}"#,
            "configuration: line 1, column 29: resources.memory_mb: \
             found floating point, expected a whole number",
        ),
        (
            r#"{"resources":{"cpus":"2"}}"#,
            "configuration: line 1, column 24: resources.cpus: found string, expected a number",
        ),
        (
            r#"{"vfs":{"mounts":{"/w a":{"readonly":"yes"}}}}"#,
            "configuration: line 1, column 42: vfs.mounts[\"/w a\"].readonly: \
             found string, expected a boolean",
        ),
        (
            r#"{"extra_disks":[{},[]]}"#,
            "configuration: line 1, column 19: extra_disks[1]: found sequence, expected an object",
        ),
        (
            "[]",
            "configuration: line 1, column 1: found sequence, expected an object",
        ),
        (
            r#"{"image":"a","image":"b"}"#,
            "configuration: line 1, column 20: duplicate field `image`",
        ),
    ] {
        assert_eq!(json_error(json), error);
    }
    for (json, reason) in [
        ("", "EOF while parsing"),
        ("{", "EOF while parsing"),
        ("{}x", "trailing characters"),
        ("\u{feff}{}", "expected value"),
    ] {
        let found = json_error(json);
        assert!(
            found.starts_with("configuration is not JSON: line 1, column "),
            "{found}"
        );
        assert!(found.contains(reason), "{found}");
    }
}

#[test]
fn errors_in_toml_say_where_they_are() {
    for (text, error) in [
        (
            "image = 'a'\n[network]\nmtu = 'ü'\n",
            "configuration: line 3, column 7: network.mtu: found string, expected a whole number",
        ),
        (
            "[resources]\ntimeout_seconds = -1\n",
            "configuration: line 2, column 19: resources.timeout_seconds: must be 0 or more",
        ),
        (
            "image = 'a'\n[[extra_disks]]\nhost_path = 1\n",
            "configuration: line 3, column 13: extra_disks[0].host_path: \
             found integer, expected a string",
        ),
        (
            "image = 'a'\nimage = 'b'\n",
            "configuration is not TOML: line 2, column 1: duplicate key",
        ),
    ] {
        assert_eq!(toml_error(text), error);
    }
    let found = toml_error("image = 'a'\nenv = {\n");
    assert!(
        found.starts_with("configuration is not TOML: line "),
        "{found}"
    );
}

#[test]
fn a_secret_in_the_wrong_place_is_not_shown() {
    for json in [
        r#"{"network":{"secrets":{"KEY":"hunter2"}}}"#,
        r#"{"network":{"secrets":"hunter2"}}"#,
        r#"{"network":{"secrets":["hunter2"]}}"#,
        r#"{"network":{"secrets":{"KEY":{"value":["hunter2"]}}}}"#,
        r#"{"network":{"secrets":{"KEY":{"value":"v","hosts":"hunter2, expected x"}}}}"#,
        r#"{"network":{"mtu":"hunter2"}}"#,
        r#"{"network":{"secrets":{"KEY":{"value":"hunter2"#,
        r#"{"network":{"secrets":{"KEY":{"value":"hunter2" x"#,
    ] {
        let error = Config::from_json(json.as_bytes()).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    for text in [
        "network.secrets.KEY = 'hunter2'",
        "network.secrets = ['hunter2']",
        "network.secrets.KEY = { value = hunter2 }",
        "network.secrets.KEY = { value = 'hunter2 }",
        "network.secrets.KEY = { value = 'hunter2' 'hunter2' }",
        "network.secrets.KEY.value = \"hunter2\\q\"",
        "hunter2",
    ] {
        let error = Config::from_toml(text).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn lengths_are_bounded() {
    let long = vec![b' '; MAX_CONFIG_BYTES + 1];
    let error = Config::from_json(&long).unwrap_err();
    assert_eq!(
        error.to_string(),
        "configuration has 2097153 bytes; at most 2097152 are read"
    );
    assert_eq!(error.code().as_str(), "config_too_long");
    let long = String::from_utf8(long).unwrap();
    assert_eq!(Config::from_toml(&long).unwrap_err(), error);

    let rules = vec!["{}"; 4097].join(",");
    let json = format!(r#"{{"network":{{"interception":{{"rules":[{rules}]}}}}}}"#);
    assert!(json_error(&json).ends_with("has more than 4096 entries"));
    let env: Vec<_> = (0..4097).map(|n| format!("\"{n}\":\"\"")).collect();
    let json = format!(r#"{{"env":{{{}}}}}"#, env.join(","));
    assert!(json_error(&json).ends_with("has more than 4096 entries"));
}

#[test]
fn depth_is_bounded() {
    let depth = 100_000;
    let nested = format!(
        r#"{{"vfs":{{"mounts":{{"/w":{}"#,
        r#"{"upper":"#.repeat(depth)
    );
    assert!(json_error(&nested).contains("recursion limit"));
    let nested = format!("vfs.mounts.w = {}", "{upper=".repeat(depth));
    assert!(toml_error(&nested).starts_with("configuration is not TOML: "));
    let dotted = "a.".repeat(depth);
    for text in [
        format!("{dotted}a = 1"),
        format!("[{dotted}a]"),
        format!("[[{dotted}a]]"),
    ] {
        let _ = Config::from_toml(&text);
    }
    let unknown = format!("{{\"x\":{}", "[".repeat(depth));
    assert!(json_error(&unknown).contains("EOF while parsing"));
}

/// JSON that is nearly a configuration: the names of fields with values of any
/// type.
fn nearly_a_config() -> impl Strategy<Value = String> {
    let name = proptest::sample::select(vec![
        "image",
        "resources",
        "cpus",
        "memory_mb",
        "network",
        "allowed_hosts",
        "add_hosts",
        "block_private_ips",
        "interception",
        "rules",
        "phase",
        "action",
        "timeout_ms",
        "secrets",
        "value",
        "hosts",
        "vfs",
        "workspace",
        "mounts",
        "type",
        "upper",
        "direct_mounts",
        "host_path",
        "ops",
        "env",
        "extra_disks",
        "image_config",
        "cmd",
        "mtu",
        "unknown",
    ]);
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "[a-z/*.]{0,6}".prop_map(Into::into),
    ];
    let value = leaf.prop_recursive(6, 64, 6, move |inner| {
        let entry = (name.clone().prop_map(str::to_owned), inner.clone());
        prop_oneof![
            1 => proptest::collection::vec(inner, 0..4).prop_map(Into::into),
            4 => proptest::collection::vec(entry, 0..6)
                .prop_map(|entries| entries.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    });
    value.prop_map(|value| value.to_string())
}

proptest! {
    #[test]
    fn no_bytes_are_a_problem(bytes in any::<Vec<u8>>(), text in any::<String>()) {
        let _ = Config::from_json(&bytes);
        let _ = Config::from_json(text.as_bytes());
        let _ = Config::from_toml(&text);
        let _ = Config::from_toml_strict(&text);
    }

    #[test]
    fn an_unknown_field_is_found_in_its_line(
        above in "(# [ -~]{0,8}\n|\n){0,5}",
        table in "(\\[x[a-z]{0,3}\\]\n)?",
        key in "x[a-z_é]{0,6}",
    ) {
        let quoted = format!("\"{key}\"");
        let text = format!("{above}{table}{quoted} = 1\n");
        let error = Config::from_toml_strict(&text).unwrap_err();
        // The table itself is what nobody knows, if there is one.
        let line = above.lines().count() + 1;
        let shown = error.to_string();
        let begin = format!("configuration: line {line}, column ");
        prop_assert!(shown.starts_with(&begin), "{text:?}: {shown}");
    }

    #[test]
    fn no_json_is_a_problem(json in nearly_a_config()) {
        if let Ok(parsed) = Config::from_json(json.as_bytes()) {
            let _ = parsed.config.validate();
            let _ = parsed.config.warnings();
            let again = serde_json::to_string(&parsed.config).unwrap();
            let again = Config::from_json(again.as_bytes()).unwrap();
            prop_assert_eq!(again.config, parsed.config);
            prop_assert_eq!(again.warnings, []);
        }
    }

    #[test]
    fn no_damage_is_a_problem(at in 0..ALL_JSON.len(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = ALL_JSON.as_bytes().to_vec();
        bytes[at] = byte;
        bytes.truncate(if cut { at } else { bytes.len() });
        let _ = Config::from_json(&bytes).map(|parsed| parsed.config.validate());
        let mut text = ALL_TOML.as_bytes().to_vec();
        text[at.min(ALL_TOML.len() - 1)] = byte;
        let text = String::from_utf8_lossy(&text);
        let _ = Config::from_toml(&text).map(|parsed| parsed.config.validate());
    }

    #[test]
    fn no_damage_shows_a_secret(at in 0..ALL_TOML.len(), damage in "[ -~\n]", more in any::<bool>()) {
        for (text, json) in [(ALL_JSON, true), (ALL_TOML, false)] {
            let mut text = text.replace("\"v\"", "\"hunter2\"");
            let at = at.min(text.len() - 1);
            text.replace_range(at..if more { at } else { at + 1 }, &damage);
            let error = match json {
                true => Config::from_json(text.as_bytes()).err(),
                false => Config::from_toml(&text).err(),
            };
            let shown = error.map(|error| format!("{error} {error:?}")).unwrap_or_default();
            prop_assert!(!shown.contains("hunter2"), "{}", shown);
        }
    }

    #[test]
    fn a_valid_configuration_is_the_same_after_json_and_toml(config in arbitrary::config()) {
        prop_assert_eq!(config.validate(), Ok(()));
        let json = serde_json::to_string(&config).unwrap();
        let again = Config::from_json(json.as_bytes()).unwrap();
        prop_assert_eq!(&again.config, &config);
        prop_assert_eq!(again.warnings, []);
        let again = Config::from_toml(&toml::to_string(&config).unwrap()).unwrap();
        prop_assert_eq!(&again.config, &config);
        prop_assert_eq!(again.warnings, []);
    }

    #[test]
    fn merging_with_nothing_changes_nothing(config in arbitrary::config()) {
        prop_assert_eq!(config.clone().merge(Config::default()), config.clone());
        prop_assert_eq!(Config::default().merge(config.clone()), config);
    }

    #[test]
    fn only_an_explicit_no_switches_protection_off(over in arbitrary::config()) {
        let explicit = over.network.as_ref().and_then(|network| network.block_private_ips);
        let merged = Config::with_defaults().merge(over).network.unwrap();
        prop_assert_eq!(merged.blocks_private_ips(), explicit != Some(false));
    }
}

#[test]
fn a_mistyped_field_of_a_file_is_found_where_it_is() {
    for (text, message) in [
        ("imgae = 'a'", "line 1, column 1: imgae"),
        (
            "# a\nimage = 'a'\n\n[network]\n  alowed_hosts = []\n",
            "line 5, column 3: network.alowed_hosts",
        ),
        ("[netwrok]\nmtu = 1400\n", "line 1, column 2: netwrok"),
        (
            "[[extra_disks]]\nhost_path='a'\n[[extra_disks]]\nguest = 'b'\n",
            "line 4, column 1: extra_disks[1].guest",
        ),
        (
            "network.secrets.K = { value = 'v', host = [] }",
            "line 1, column 36: network.secrets.K.host",
        ),
    ] {
        let error = Config::from_toml_strict(text).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("configuration: {message}: unknown field"),
            "{text}"
        );
        assert_eq!(error.code(), ErrorCode::ConfigField);
        // For a client's text the same is a warning.
        assert_eq!(Config::from_toml(text).unwrap().warnings.len(), 1);
    }
    let config = Config::from_toml_strict("image = 'a'").unwrap();
    assert_eq!(config.image, "a");
    assert!(Config::from_toml_strict("image = 1").is_err());
}
