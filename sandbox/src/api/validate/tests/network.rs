//! Mistakes in `network`.

use super::{config, errors};

/// A configuration with this network, and what is wrong with it.
fn of_network(network: &str) -> (String, String) {
    let found = errors(&format!(r#"{{"network":{network}}}"#));
    assert_eq!(found.len(), 1, "{network}: {found:?}");
    (found[0].field.clone(), found[0].message.clone())
}

#[test]
fn mistakes_in_network() {
    let secret = |fields: &str| format!(r#"{{"secrets":{{"K":{{{fields}}}}}}}"#);
    let rule = |fields: &str| format!(r#"{{"interception":{{"rules":[{{}},{{{fields}}}]}}}}"#);
    for (network, field, why) in [
        (
            r#"{"mtu":575}"#.to_owned(),
            "network.mtu",
            "575 is not between 576 and 65520",
        ),
        (
            r#"{"interception":{"callback_socket":"run/hooks.sock"}}"#.to_owned(),
            "network.interception.callback_socket",
            "is not an absolute path",
        ),
        (r#"{"mtu":65521}"#.to_owned(), "network.mtu", "not between"),
        (
            r#"{"allowed_hosts":["a",""]}"#.to_owned(),
            "network.allowed_hosts[1]",
            "is empty",
        ),
        (
            r#"{"allowed_hosts":["https://a/"]}"#.to_owned(),
            "network.allowed_hosts[0]",
            "without scheme and path",
        ),
        (
            r#"{"allowed_hosts":["a:99999"]}"#.to_owned(),
            "network.allowed_hosts[0]",
            "\"99999\" is no port",
        ),
        (
            r#"{"denied_hosts":["10.0.0.1/8"]}"#.to_owned(),
            "network.denied_hosts[0]",
            "is no network",
        ),
        (
            r#"{"rules":["allow a","allow get a"]}"#.to_owned(),
            "network.rules[1]",
            "is no list of methods",
        ),
        (
            r#"{"policy_script":"fn request(req) {\n  if\n}"}"#.to_owned(),
            "network.policy_script",
            "network.policy_script: line 3, column 1: ",
        ),
        (
            secret(r#""value":"v","hosts":["a"],"places":["path","cookie"]"#),
            "network.secrets.K.places",
            "\"cookie\" is no place of a request",
        ),
        (
            r#"{"policy_script":"fn other(x) {}"}"#.to_owned(),
            "network.policy_script",
            "it judges nothing; write `fn request(req)",
        ),
        (
            r#"{"add_hosts":[{"host":"a b","ip":"::1"}]}"#.to_owned(),
            "network.add_hosts[0]",
            "network.add_hosts[0]: invalid add-host hostname: \"a b\" contains whitespace",
        ),
        (
            r#"{"add_hosts":[{"host":"a"}]}"#.to_owned(),
            "network.add_hosts[0]",
            "invalid add-host ip: empty ip",
        ),
        (
            r#"{"dns_servers":["1.1.1.1","dns.google"]}"#.to_owned(),
            "network.dns_servers[1]",
            "\"dns.google\" is not an IP address",
        ),
        (
            r#"{"hostname":"a b"}"#.to_owned(),
            "network.hostname",
            "' ' is not allowed",
        ),
        (
            format!(r#"{{"hostname":"{}"}}"#, "x".repeat(65)),
            "network.hostname",
            "65 bytes long; at most 64",
        ),
        (
            secret(r#""hosts":["a"]"#),
            "network.secrets.K.value",
            "is empty",
        ),
        (
            secret(r#""value":"v\n","hosts":["a"]"#),
            "network.secrets.K.value",
            "line break",
        ),
        (
            secret(r#""value":"v","hosts":[]"#),
            "network.secrets.K.hosts",
            "name at least one",
        ),
        (
            secret(r#""value":"v""#),
            "network.secrets.K.hosts",
            "name at least one",
        ),
        (
            secret(r#""value":"v","hosts":["a",""]"#),
            "network.secrets.K.hosts[1]",
            "is empty",
        ),
        (
            secret(r#""value":"v","hosts":["*"]"#),
            "network.secrets.K.hosts[0]",
            "every host",
        ),
        (
            secret(r#""value":"v","hosts":["*.*"]"#),
            "network.secrets.K.hosts[0]",
            "every host",
        ),
        (
            secret(r#""value":"v","hosts":["a.test","tcp:*"]"#),
            "network.secrets.K.hosts[1]",
            "every host",
        ),
        (
            secret(r#""value":"v","hosts":["a.test","**:1-65535"]"#),
            "network.secrets.K.hosts[1]",
            "every host",
        ),
        (
            secret(r#""value":"v","hosts":["a.test","::/0"]"#),
            "network.secrets.K.hosts[1]",
            "every host",
        ),
        (
            secret(r#""value":"v","hosts":["a.test","udp:api.test"]"#),
            "network.secrets.K.hosts[1]",
            "name the host without `udp:`",
        ),
        (
            secret(r#""value":"v","hosts":["a"],"placeholder":"short""#),
            "network.secrets.K.placeholder",
            "5 bytes long, not 8 to 1024",
        ),
        (
            secret(r#""value":"v","hosts":["a"],"placeholder":"with blank""#),
            "network.secrets.K.placeholder",
            "printable ASCII",
        ),
        (
            secret(r#""value":"value","hosts":["a"],"placeholder":"my-value-1""#),
            "network.secrets.K.placeholder",
            "contains the secret's value",
        ),
        (
            r#"{"secrets":{"":{"value":"v","hosts":["a"]}}}"#.to_owned(),
            "network.secrets[\"\"]",
            "name of a variable is empty",
        ),
        (
            rule(r#""phase":"later""#),
            "network.interception.rules[1].phase",
            "unknown phase \"later\" (use before or after)",
        ),
        (
            rule(r#""action":"blok""#),
            "network.interception.rules[1].action",
            "unknown action \"blok\" (use allow, block or mutate)",
        ),
        (
            rule(r#""hosts":[" "]"#),
            "network.interception.rules[1].hosts[0]",
            "is empty",
        ),
        (
            rule(r#""methods":["G T"]"#),
            "network.interception.rules[1].methods[0]",
            "not an HTTP",
        ),
        (
            rule(r#""path":"[""#),
            "network.interception.rules[1].path",
            "has a `[",
        ),
        (
            rule(r#""callback_id":"c""#),
            "network.interception.rules[1].callback_id",
            "needs network.interception.callback_socket",
        ),
        (
            rule(r#""set_headers":{"A B":"1"}"#),
            "network.interception.rules[1].set_headers[\"A B\"]",
            "not the name of a header",
        ),
        (
            rule(r#""set_headers":{"X-A":"1","x-a":"2"}"#),
            "network.interception.rules[1].set_headers.x-a",
            "is the same header as \"X-A\"",
        ),
        (
            rule(r#""set_response_headers":{"A":"1\r\nB: 2"}"#),
            "network.interception.rules[1].set_response_headers.A",
            "line break",
        ),
        (
            rule(r#""delete_headers":[""]"#),
            "network.interception.rules[1].delete_headers[0]",
            "not the name of a header",
        ),
        (
            rule(r#""rewrite_path":"x""#),
            "network.interception.rules[1].rewrite_path",
            "begin",
        ),
    ] {
        let (found, text) = of_network(&network);
        assert_eq!(found, field, "{network}");
        assert!(
            text.contains(why) && text.contains(field),
            "{network}: {text}"
        );
    }
}

#[test]
fn placeholders_do_not_contain_each_other() {
    let secrets = |one: &str, two: &str| {
        format!(
            r#"{{"network":{{"secrets":{{
                "A":{{"value":"v","hosts":["a"],"placeholder":"{one}"}},
                "B":{{"value":"w","hosts":["a"],"placeholder":"{two}"}}}}}}}}"#
        )
    };
    assert_eq!(errors(&secrets("AAAAAAAA", "BBBBBBBB")), []);
    for (one, two, field) in [
        ("AAAAAAAA", "AAAAAAAA", "network.secrets.B.placeholder"),
        ("AAAAAAAA", "xAAAAAAAA", "network.secrets.B.placeholder"),
        ("xAAAAAAAAx", "AAAAAAAA", "network.secrets.A.placeholder"),
    ] {
        let found = errors(&secrets(one, two));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].field, field);
    }
}

#[test]
fn no_message_contains_a_secret() {
    let json = r#"{"network":{"no_network":true,"secrets":{
        "A":{"value":"hunter2\n","hosts":["*"],"placeholder":"hunter2\n"},
        "B=":{"value":"hunter2\n","hosts":[],"placeholder":"xxhunter2\nxx"}}}}"#;
    let errors = config(json).validate().unwrap_err();
    assert!(errors.errors().len() > 6);
    let shown = format!("{errors} {errors:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}
