//! Checks of `network`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flashpan_network::edit::Places;
use flashpan_network::policy::{Pattern, Rule};
use flashpan_network::script::Script;
use flashpan_protocol::network::{MTU, Protocol};

use super::super::network::NetworkConfig;
use super::super::pattern::check_host_pattern;
use super::super::problem::{FieldPath, ProblemKind, Problems, Warnings, quoted};
use super::super::secret::Secret;
use super::{check_variable_name, hooks};

/// Longest host name (Linux `__NEW_UTS_LEN`).
const MAX_HOSTNAME: usize = 64;

/// Most secrets. Placeholders are compared with each other.
const MAX_SECRETS: usize = 256;

/// Lengths of placeholders: short ones occur by chance.
const PLACEHOLDER: std::ops::RangeInclusive<usize> = 8..=1024;

pub(super) fn check(network: &NetworkConfig, problems: &mut Problems) {
    let top = FieldPath::top("network");
    if network.no_network {
        for (name, set) in [
            ("allowed_hosts", !network.allowed_hosts.is_empty()),
            ("rules", !network.rules.is_empty()),
            ("secrets", !network.secrets.is_empty()),
            ("intercept", network.intercept),
            ("interception", network.interception.is_some()),
        ] {
            if set {
                let at = top.field("no_network");
                let message = format!("{at} cannot be combined with {}", top.field(name));
                problems.whole(&at, ProblemKind::Conflict, message);
            }
        }
    }
    if network.splice && network.intercept {
        let at = top.field("splice");
        let message = format!("{at} cannot be combined with {}", top.field("intercept"));
        problems.whole(&at, ProblemKind::Conflict, message);
    }
    check_hosts(
        network.allowed_hosts.iter().map(String::as_str),
        &top.field("allowed_hosts"),
        problems,
    );
    check_hosts(
        network.denied_hosts.iter().map(String::as_str),
        &top.field("denied_hosts"),
        problems,
    );
    for (index, rule) in network.rules.iter().enumerate() {
        if let Err(why) = rule.parse::<Rule>() {
            let at = top.field("rules").index(index);
            problems.add(&at, ProblemKind::Malformed, why);
        }
    }
    for (index, entry) in network.add_hosts.iter().enumerate() {
        if let Err(why) = entry.validate() {
            let at = top.field("add_hosts").index(index);
            problems.add(&at, ProblemKind::Malformed, why);
        }
    }
    if !network.policy_script.is_empty()
        && let Err(why) = Script::new(&network.policy_script)
    {
        problems.add(&top.field("policy_script"), ProblemKind::Malformed, why);
    }
    check_secrets(&network.secrets, &top.field("secrets"), problems);
    for (index, server) in network.dns_servers.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            let at = top.field("dns_servers").index(index);
            let why = format!("{} is not an IP address", quoted(server));
            problems.add(&at, ProblemKind::Malformed, why);
        }
    }
    check_hostname(&network.hostname, &top.field("hostname"), problems);
    let fits = |mtu: &u32| u16::try_from(*mtu).is_ok_and(|mtu| MTU.contains(&mtu));
    if let Some(mtu) = network.mtu.filter(|mtu| !fits(mtu)) {
        let why = format!("{mtu} is not between {} and {}", MTU.start(), MTU.end());
        problems.add(&top.field("mtu"), ProblemKind::OutOfRange, why);
    }
    if let Some(interception) = &network.interception {
        hooks::check(interception, problems);
    }
}

pub(super) fn warn(network: &NetworkConfig, warnings: &mut Warnings) {
    if let Some(interception) = &network.interception {
        hooks::warn(interception, warnings);
    }
}

/// Checks patterns of hosts.
pub(super) fn check_hosts<'a>(
    hosts: impl IntoIterator<Item = &'a str>,
    at: &FieldPath,
    problems: &mut Problems,
) {
    for (index, host) in hosts.into_iter().enumerate() {
        if let Err(why) = check_host_pattern(host) {
            problems.add(&at.index(index), ProblemKind::Malformed, why);
        }
    }
}

fn check_secrets(secrets: &BTreeMap<String, Secret>, at: &FieldPath, problems: &mut Problems) {
    if secrets.len() > MAX_SECRETS {
        let why = format!(
            "{} secrets; at most {MAX_SECRETS} are allowed",
            secrets.len()
        );
        problems.add(at, ProblemKind::OutOfRange, why);
        return;
    }
    for (name, secret) in secrets {
        let at = at.field(name);
        check_variable_name(name, &at, problems);
        check_secret(secret, &at, problems);
    }
    check_placeholders(secrets, at, problems);
}

fn check_secret(secret: &Secret, at: &FieldPath, problems: &mut Problems) {
    let value = secret.value.expose();
    let at_value = at.field("value");
    if value.is_empty() {
        problems.add(&at_value, ProblemKind::Required, "is empty");
    } else if value.contains(['\r', '\n', '\0']) {
        let why = "contains a line break or NUL, which no header of a request can carry";
        problems.add(&at_value, ProblemKind::Malformed, why);
    }
    let hosts = at.field("hosts");
    if secret.hosts.is_empty() {
        let why = "a secret goes only to hosts that it names; name at least one";
        problems.add(&hosts, ProblemKind::Required, why);
    }
    check_hosts(secret.hosts.iter().map(String::as_str), &hosts, problems);
    for (index, host) in secret.hosts.iter().enumerate() {
        // What is none was told of.
        let Ok(pattern) = host.parse::<Pattern>() else {
            continue;
        };
        let why = if pattern.is_every_host() {
            "matches every host; name those that may have the secret"
        } else if pattern.protocol() == Protocol::Udp {
            "is of UDP, by which no request is sent; name the host without `udp:`"
        } else {
            continue;
        };
        let why = format!("{} {why}", quoted(host));
        problems.add(&hosts.index(index), ProblemKind::Unsupported, why);
    }
    let places = secret.places.iter().map(String::as_str);
    if !secret.places.is_empty()
        && let Err(why) = Places::of(places)
    {
        problems.add(&at.field("places"), ProblemKind::Malformed, why);
    }
    let placeholder = secret.placeholder.as_str();
    if placeholder.is_empty() {
        return;
    }
    let at = at.field("placeholder");
    if !PLACEHOLDER.contains(&placeholder.len()) {
        let (least, most) = (PLACEHOLDER.start(), PLACEHOLDER.end());
        let why = format!("{} bytes long, not {least} to {most}", placeholder.len());
        problems.add(&at, ProblemKind::OutOfRange, why);
    }
    if !placeholder.bytes().all(|b| b.is_ascii_graphic()) {
        let why = "has something else in it than printable ASCII without blanks";
        problems.add(&at, ProblemKind::Malformed, why);
    }
    if !value.is_empty() && placeholder.contains(value) {
        problems.add(&at, ProblemKind::Conflict, "contains the secret's value");
    }
}

/// No placeholder may contain another: replacing one would break the other.
fn check_placeholders(secrets: &BTreeMap<String, Secret>, at: &FieldPath, problems: &mut Problems) {
    let given: Vec<_> = secrets
        .iter()
        .filter(|(_, secret)| PLACEHOLDER.contains(&secret.placeholder.len()))
        .map(|(name, secret)| (secret.placeholder.as_str(), name.as_str()))
        .collect();
    for (index, (placeholder, name)) in given.iter().enumerate() {
        let other = given.iter().enumerate().find(|(other, (text, _))| {
            *other != index && placeholder.contains(text) && (placeholder != text || *other < index)
        });
        if let Some((_, (_, other))) = other {
            let at_own = at.field(name).field("placeholder");
            let why = format!("contains {}", at.field(other).field("placeholder"));
            problems.add(&at_own, ProblemKind::Duplicate, why);
        }
    }
}

fn check_hostname(hostname: &str, at: &FieldPath, problems: &mut Problems) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if hostname.len() > MAX_HOSTNAME {
        let why = format!(
            "{} bytes long; at most {MAX_HOSTNAME} are allowed",
            hostname.len()
        );
        problems.add(at, ProblemKind::OutOfRange, why);
    } else if let Some(c) = hostname.chars().find(|c| !allowed(*c)) {
        let why = format!("{c:?} is not allowed; use letters, digits, `-` and `.`");
        problems.add(at, ProblemKind::Malformed, why);
    }
}
