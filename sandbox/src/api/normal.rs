//! Rules in the one form in which they act.

use std::collections::BTreeMap;

use super::hook::{
    HookPhase, NetworkBodyTransform, NetworkHookAction, NetworkHookRule, NetworkInterceptionConfig,
};
use super::vfs::{VfsHookAction, VfsHookRule, VfsInterceptionConfig};

impl NetworkInterceptionConfig {
    /// The rules that do something, in order and in one form: texts are trimmed,
    /// methods in capitals, names of headers as `X-Api-Key`; what belongs to the
    /// other phase or has no effect is gone, and so are rules that neither block
    /// nor change nor ask anything. `allow` with changes is `mutate`.
    ///
    /// Of a configuration that [`crate::api::Config::validate`] accepts: mistakes
    /// are not looked for.
    #[must_use]
    pub fn effective_rules(&self) -> Vec<NetworkHookRule> {
        let rules = self.rules.iter().map(normal);
        rules.filter(acts).collect()
    }
}

impl VfsInterceptionConfig {
    /// The rules that do something, in order: those that block.
    ///
    /// Of a configuration that [`crate::api::Config::validate`] accepts: mistakes
    /// are not looked for.
    #[must_use]
    pub fn effective_rules(&self) -> Vec<VfsHookRule> {
        let rules = self.rules.iter();
        let blocks = |rule: &&VfsHookRule| rule.action == VfsHookAction::Block;
        rules.filter(blocks).cloned().collect()
    }

    /// Whether operations have to be looked at at all.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.emit_events || !self.effective_rules().is_empty()
    }
}

fn acts(rule: &NetworkHookRule) -> bool {
    rule.action == NetworkHookAction::Block
        || rule.changes_its_phase()
        || !rule.callback_id.is_empty()
}

fn normal(rule: &NetworkHookRule) -> NetworkHookRule {
    let mut normal = NetworkHookRule {
        name: rule.name.trim().to_owned(),
        phase: rule.phase.clone(),
        hosts: trimmed(&rule.hosts),
        methods: trimmed(&rule.methods),
        path: rule.path.clone(),
        action: rule.effective_action(),
        callback_id: rule.callback_id.trim().to_owned(),
        fail_open: rule.fail_open,
        timeout_ms: rule.timeout_ms,
        ..NetworkHookRule::default()
    };
    normal
        .methods
        .iter_mut()
        .for_each(|method| method.make_ascii_uppercase());
    if rule.phase == HookPhase::After {
        normal.set_response_headers = headers(&rule.set_response_headers);
        normal.delete_response_headers = names(&rule.delete_response_headers);
        let changes = rule.body_replacements.iter();
        let real = |change: &&NetworkBodyTransform| !change.find.is_empty();
        normal.body_replacements = changes.filter(real).cloned().collect();
    } else {
        normal.set_headers = headers(&rule.set_headers);
        normal.delete_headers = names(&rule.delete_headers);
        let parameters = rule.set_query.iter();
        let parameters = parameters.map(|(name, value)| (name.trim().to_owned(), value.clone()));
        normal.set_query = parameters.filter(|(name, _)| !name.is_empty()).collect();
        normal.delete_query = trimmed(&rule.delete_query);
        normal.rewrite_path.clone_from(&rule.rewrite_path);
    }
    normal
}

/// Without surrounding blanks and blank entries.
fn trimmed(list: &[String]) -> Vec<String> {
    let list = list.iter().map(|entry| entry.trim());
    list.filter(|entry| !entry.is_empty())
        .map(str::to_owned)
        .collect()
}

fn names(list: &[String]) -> Vec<String> {
    list.iter().map(|name| header_name(name)).collect()
}

fn headers(map: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let entries = map.iter();
    entries
        .map(|(name, value)| (header_name(name), value.clone()))
        .collect()
}

/// The name of a header as it is usually written: the first letter and those
/// after `-` are capitals.
pub(super) fn header_name(name: &str) -> String {
    let mut capital = true;
    let letter = |c: char| {
        let written = match capital {
            true => c.to_ascii_uppercase(),
            false => c.to_ascii_lowercase(),
        };
        capital = c == '-';
        written
    };
    name.trim().chars().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective(rules: &str) -> String {
        let json = format!(r#"{{"rules":{rules}}}"#);
        let config: NetworkInterceptionConfig = serde_json::from_str(&json).unwrap();
        serde_json::to_string(&config.effective_rules()).unwrap()
    }

    #[test]
    fn rules_have_one_form() {
        let rules = r#"[
            {"name":" n ","hosts":[" a.com "],"methods":["get "],"action":"allow",
             "set_headers":{" x-api-KEY":"1"},"delete_headers":["COOKIE"],
             "set_query":{" q ":"1"," ":"2"},"delete_query":[" r "],"rewrite_path":"/x",
             "set_response_headers":{"A":"1"},"body_replacements":[{"find":"a"}]},
            {"phase":"AFTER","set_headers":{"A":"1"},"set_response_headers":{"b":"1"},
             "delete_response_headers":["set-cookie"],
             "body_replacements":[{"find":"","replace":"x"},{"find":" a "}]}]"#;
        assert_eq!(
            effective(rules),
            concat!(
                r#"[{"name":"n","hosts":["a.com"],"methods":["GET"],"action":"mutate","#,
                r#""set_headers":{"X-Api-Key":"1"},"delete_headers":["Cookie"],"#,
                r#""set_query":{"q":"1"},"delete_query":["r"],"rewrite_path":"/x"},"#,
                r#"{"phase":"after","action":"mutate","set_response_headers":{"B":"1"},"#,
                r#""delete_response_headers":["Set-Cookie"],"#,
                r#""body_replacements":[{"find":" a "}]}]"#
            )
        );
    }

    #[test]
    fn rules_that_do_nothing_are_gone() {
        let rules = r#"[{}, {"action":"mutate"}, {"callback_id":" "}, {"delete_query":[" "]},
            {"phase":"after","rewrite_path":"/x"}, {"phase":"after","body_replacements":[{}]},
            {"action":"block"}, {"callback_id":"c"}, {"phase":"after","action":"block"}]"#;
        assert_eq!(
            effective(rules),
            concat!(
                r#"[{"action":"block"},{"callback_id":"c"},"#,
                r#"{"phase":"after","action":"block"}]"#
            )
        );
    }

    #[test]
    fn of_rules_for_files_those_that_block_are_left() {
        let config = |json: &str| -> VfsInterceptionConfig { serde_json::from_str(json).unwrap() };
        let idle = config(r#"{"rules":[{"action":"allow"},{"action":"exec_after"},{}]}"#);
        assert_eq!(idle.effective_rules(), []);
        assert!(!idle.is_active());
        assert!(config(r#"{"emit_events":true}"#).is_active());
        let blocks = config(r#"{"rules":[{"name":"n","action":"Block"}]}"#);
        assert_eq!(blocks.effective_rules(), blocks.rules);
        assert!(blocks.is_active());
    }
}
