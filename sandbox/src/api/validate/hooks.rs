//! Checks of `network.interception`.

use std::collections::BTreeMap;

use super::super::hook::{
    HookPhase, NetworkHookAction, NetworkHookRule, NetworkInterceptionConfig,
};
use super::super::normal::header_name;
use super::super::pattern::check_path_pattern;
use super::super::problem::{FieldPath, ProblemKind, Problems, Warnings, quoted};
use super::network::check_hosts;

pub(super) fn check(interception: &NetworkInterceptionConfig, problems: &mut Problems) {
    let top = FieldPath::top("network").field("interception");
    for (index, rule) in interception.rules.iter().enumerate() {
        let at = top.field("rules").index(index);
        check_rule(rule, &at, problems);
        if !rule.callback_id.is_empty() && interception.callback_socket.is_empty() {
            let why = format!("needs {}, where it is asked", top.field("callback_socket"));
            problems.add(&at.field("callback_id"), ProblemKind::Required, why);
        }
    }
    let socket = &interception.callback_socket;
    let at = top.field("callback_socket");
    if socket.contains('\0') {
        problems.add(&at, ProblemKind::Malformed, "contains a NUL");
    } else if !socket.is_empty() && !socket.starts_with('/') {
        // Whoever asks there may be a process with another working directory.
        let why = format!("{} is not an absolute path", quoted(socket));
        problems.add(&at, ProblemKind::Malformed, why);
    }
}

fn check_rule(rule: &NetworkHookRule, at: &FieldPath, problems: &mut Problems) {
    check_phase(&rule.phase, at, problems);
    if let NetworkHookAction::Other(text) = &rule.action {
        let why = format!(
            "unknown action {} (use allow, block or mutate)",
            quoted(text)
        );
        problems.add(&at.field("action"), ProblemKind::Unsupported, why);
    }
    check_hosts(
        rule.hosts.iter().map(|host| host.trim()),
        &at.field("hosts"),
        problems,
    );
    for (index, method) in rule.methods.iter().enumerate() {
        if !is_token(method.trim()) {
            let why = format!("{} is not an HTTP method", quoted(method));
            problems.add(
                &at.field("methods").index(index),
                ProblemKind::Malformed,
                why,
            );
        }
    }
    check_pattern(&rule.path, at, problems);
    check_set(&rule.set_headers, &at.field("set_headers"), problems);
    check_names(&rule.delete_headers, &at.field("delete_headers"), problems);
    let path = rule.rewrite_path.as_str();
    if !path.is_empty() && (!path.starts_with('/') || path.contains(char::is_control)) {
        let why = "must begin with `/` and have no control characters";
        problems.add(&at.field("rewrite_path"), ProblemKind::Malformed, why);
    }
    let at_response = at.field("set_response_headers");
    check_set(&rule.set_response_headers, &at_response, problems);
    let at_response = at.field("delete_response_headers");
    check_names(&rule.delete_response_headers, &at_response, problems);
}

/// Checks a rule's `phase`.
pub(super) fn check_phase(phase: &HookPhase, at: &FieldPath, problems: &mut Problems) {
    if let HookPhase::Other(text) = phase {
        let why = format!("unknown phase {} (use before or after)", quoted(text));
        problems.add(&at.field("phase"), ProblemKind::Unsupported, why);
    }
}

/// Checks a rule's `path`.
pub(super) fn check_pattern(pattern: &str, at: &FieldPath, problems: &mut Problems) {
    if let Err(why) = check_path_pattern(pattern) {
        problems.add(&at.field("path"), ProblemKind::Malformed, why);
    }
}

fn check_set(headers: &BTreeMap<String, String>, at: &FieldPath, problems: &mut Problems) {
    let mut seen = BTreeMap::new();
    for (name, value) in headers {
        let at = at.field(name);
        if let Some(first) = seen.insert(header_name(name), name) {
            let why = format!("is the same header as {}", quoted(first));
            problems.add(&at, ProblemKind::Duplicate, why);
        }
        if !is_token(name.trim()) {
            problems.add(&at, ProblemKind::Malformed, "is not the name of a header");
        }
        if value.contains(['\r', '\n', '\0']) {
            problems.add(
                &at,
                ProblemKind::Malformed,
                "the value contains a line break or NUL",
            );
        }
    }
}

fn check_names(headers: &[String], at: &FieldPath, problems: &mut Problems) {
    for (index, name) in headers.iter().enumerate() {
        if !is_token(name.trim()) {
            let why = format!("{} is not the name of a header", quoted(name));
            problems.add(&at.index(index), ProblemKind::Malformed, why);
        }
    }
}

/// Whether a text is a token (RFC 9110 §5.6.2).
fn is_token(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(allowed)
}

pub(super) fn warn(interception: &NetworkInterceptionConfig, warnings: &mut Warnings) {
    let rules = FieldPath::top("network")
        .field("interception")
        .field("rules");
    for (index, rule) in interception.rules.iter().enumerate() {
        let at = rules.index(index);
        let other_phase = match rule.phase {
            HookPhase::After => rule.changes_request(),
            _ => rule.changes_response(),
        };
        if other_phase {
            let why = "has changes for the other phase, which have no effect";
            warnings.add(&at, why);
        }
        let idle = rule.action != NetworkHookAction::Block && !rule.changes_its_phase();
        if idle && rule.callback_id.is_empty() {
            warnings.add(
                &at,
                "neither blocks nor changes nor asks anything; it has no effect",
            );
        }
        if rule.fail_open && rule.callback_id.is_empty() {
            let at = at.field("fail_open");
            warnings.add(
                &at,
                "is for a rule that asks; without callback_id it has no effect",
            );
        }
        for (index, change) in rule.body_replacements.iter().enumerate() {
            if change.find.is_empty() {
                let at = at.field("body_replacements").index(index).field("find");
                warnings.add(&at, "is empty; the replacement has no effect");
            }
        }
    }
}
