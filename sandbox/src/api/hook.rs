//! Rules for requests of the guest and their responses.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::lenient;
use super::words::words;

words! {
    /// When a rule acts.
    pub enum HookPhase: Before {
        /// Before the operation: on the request.
        Before = "before",
        /// After the operation: on the response.
        After = "after",
    }
}

words! {
    /// What a rule does with a request or response.
    pub enum NetworkHookAction: Allow {
        /// Lets it pass, changed if the rule has changes for its phase.
        Allow = "allow",
        /// Answers 403.
        Block = "block",
        /// Changes it.
        Mutate = "mutate",
    }
}

/// Rules for the HTTP and HTTPS traffic of a guest.
///
/// That there is one, even without rules, makes the host inspect all HTTP and
/// HTTPS connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NetworkInterceptionConfig {
    /// The rules, in the order in which they act. All that match act.
    #[serde(
        default,
        deserialize_with = "lenient::objects",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub rules: Vec<NetworkHookRule>,
    /// Absolute path of a Unix socket where rules with a `callback_id` ask what to do;
    /// empty: none.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub callback_socket: String,
}

/// A rule for requests of the guest or their responses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NetworkHookRule {
    /// A name for messages; may be empty.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub name: String,
    /// Whether it acts on the request (`before`, the default) or on the response
    /// (`after`).
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub phase: HookPhase,
    /// Patterns of hosts; empty: all.
    #[serde(
        default,
        deserialize_with = "lenient::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub hosts: Vec<String>,
    /// HTTP methods, in any case; empty: all.
    #[serde(
        default,
        deserialize_with = "lenient::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub methods: Vec<String>,
    /// Pattern of the decoded path of the URL: `*` and `?` do not match `/`,
    /// `[a-z]` and `[^a-z]` are classes, a backslash takes a meaning away. Empty:
    /// all.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub path: String,
    /// `allow` (the default), `block` or `mutate`.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub action: NetworkHookAction,
    /// What the callback socket is asked about; empty: it is not asked.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub callback_id: String,
    /// Milliseconds that the callback may take; absent or 0: as long as the host
    /// allows.
    #[serde(
        default,
        deserialize_with = "lenient::zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout_ms: Option<u32>,
    /// Whether what is asked about may pass if the callback fails, is late, or its answer
    /// makes no sense. Default false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub fail_open: bool,
    /// Headers that a request gets in place of those of the same name. `before`
    /// only.
    #[serde(
        default,
        deserialize_with = "lenient::map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub set_headers: BTreeMap<String, String>,
    /// Headers that a request loses. `before` only.
    #[serde(
        default,
        deserialize_with = "lenient::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub delete_headers: Vec<String>,
    /// Parameters that a query gets in place of those of the same name. `before`
    /// only.
    #[serde(
        default,
        deserialize_with = "lenient::map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub set_query: BTreeMap<String, String>,
    /// Parameters that a query loses. `before` only.
    #[serde(
        default,
        deserialize_with = "lenient::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub delete_query: Vec<String>,
    /// The path that a request gets; begins with `/`. Empty: unchanged. `before`
    /// only.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub rewrite_path: String,
    /// Headers that a response gets in place of those of the same name. `after`
    /// only.
    #[serde(
        default,
        deserialize_with = "lenient::map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub set_response_headers: BTreeMap<String, String>,
    /// Headers that a response loses. `after` only.
    #[serde(
        default,
        deserialize_with = "lenient::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub delete_response_headers: Vec<String>,
    /// Texts that are replaced in the body of a response, in order. `after` only.
    #[serde(
        default,
        deserialize_with = "lenient::objects",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub body_replacements: Vec<NetworkBodyTransform>,
}

impl NetworkHookRule {
    /// Whether it has changes for requests.
    #[must_use]
    pub fn changes_request(&self) -> bool {
        !(self.set_headers.is_empty()
            && self.delete_headers.is_empty()
            && self.set_query.is_empty()
            && self.delete_query.is_empty()
            && self.rewrite_path.is_empty())
    }

    /// Whether it has changes for responses.
    #[must_use]
    pub fn changes_response(&self) -> bool {
        !(self.set_response_headers.is_empty()
            && self.delete_response_headers.is_empty()
            && self
                .body_replacements
                .iter()
                .all(|change| change.find.is_empty()))
    }

    /// Whether it has changes for its own phase.
    #[must_use]
    pub fn changes_its_phase(&self) -> bool {
        match self.phase {
            HookPhase::After => self.changes_response(),
            _ => self.changes_request(),
        }
    }

    /// What it does: `allow` with changes for its phase is `mutate`.
    #[must_use]
    pub fn effective_action(&self) -> NetworkHookAction {
        match self.action {
            NetworkHookAction::Allow if self.changes_its_phase() => NetworkHookAction::Mutate,
            ref action => action.clone(),
        }
    }
}

/// A text of a body and what takes its place, byte for byte, wherever it occurs.
/// In a `text/event-stream` only what follows `data:` is searched, line by line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NetworkBodyTransform {
    /// The text; one that is empty is passed over.
    #[serde(default, deserialize_with = "lenient::null")]
    pub find: String,
    /// What takes its place; may be empty.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub replace: String,
}

impl NetworkBodyTransform {
    /// Replaces `find` by `replace`.
    pub fn new(find: impl Into<String>, replace: impl Into<String>) -> Self {
        Self {
            find: find.into(),
            replace: replace.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_people_write_them() {
        for (text, phase) in [
            ("", HookPhase::Before),
            ("before", HookPhase::Before),
            (" AFTER ", HookPhase::After),
            ("later", HookPhase::Other("later".to_owned())),
        ] {
            assert_eq!(HookPhase::from(text), phase);
        }
    }

    #[test]
    fn a_rule_with_changes_for_its_phase_changes() {
        let rule = |json: &str| -> NetworkHookRule { serde_json::from_str(json).unwrap() };
        for (json, action) in [
            ("{}", NetworkHookAction::Allow),
            (r#"{"set_headers":{"A":"1"}}"#, NetworkHookAction::Mutate),
            (r#"{"delete_query":["a"]}"#, NetworkHookAction::Mutate),
            (
                r#"{"action":"block","rewrite_path":"/"}"#,
                NetworkHookAction::Block,
            ),
            (
                r#"{"phase":"after","set_headers":{"A":"1"}}"#,
                NetworkHookAction::Allow,
            ),
            (
                r#"{"phase":"after","body_replacements":[{"find":"a"}]}"#,
                NetworkHookAction::Mutate,
            ),
            (
                r#"{"phase":"after","body_replacements":[{"find":""}]}"#,
                NetworkHookAction::Allow,
            ),
        ] {
            assert_eq!(rule(json).effective_action(), action, "{json}");
        }
    }

    #[test]
    fn json_has_the_names_and_leaves_out_what_is_empty() {
        let all = concat!(
            r#"{"name":"n","phase":"after","hosts":["*.a"],"methods":["GET"],"path":"/*","#,
            r#""action":"mutate","callback_id":"c","timeout_ms":5,"set_headers":{"A":"1"},"#,
            r#""delete_headers":["B"],"set_query":{"q":"1"},"delete_query":["r"],"#,
            r#""rewrite_path":"/x","set_response_headers":{"C":"2"},"#,
            r#""delete_response_headers":["D"],"#,
            r#""body_replacements":[{"find":"x","replace":"y"},{"find":"z"}]}"#
        );
        let rule: NetworkHookRule = serde_json::from_str(all).unwrap();
        assert_eq!(serde_json::to_string(&rule).unwrap(), all);
        let none = r#"{"name":null,"phase":null,"hosts":null,"timeout_ms":0,"action":""}"#;
        let rule: NetworkHookRule = serde_json::from_str(none).unwrap();
        assert_eq!(serde_json::to_string(&rule).unwrap(), "{}");
    }
}
