//! Rules for requests and their responses, as clients of the JSON interface write them:
//! all that match act, in their order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::network::Protocol;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, request};
use thiserror::Error;

use super::callback::Callback;
use super::glob::{Glob, GlobError};
use super::head;
use super::query;
use crate::host::{Host, shown};
use crate::policy::{Pattern, PatternError};

/// How long a callback may take unless its rule says otherwise.
pub const CALLBACK_DEADLINE: Duration = Duration::from_secs(5);
/// The longest path that a request can be given.
const MAX_PATH: usize = 16 << 10;

/// When a rule acts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// On the request.
    #[default]
    Before,
    /// On the response.
    After,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Action {
    /// Lets it pass, with the rule's changes.
    #[default]
    Allow,
    /// Refuses it.
    Block,
}

/// Whom a rule asks.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Who answers.
    pub callback: Arc<dyn Callback>,
    /// How long that may take.
    pub deadline: Duration,
    /// Whether what is asked about may pass if there is no answer.
    pub fail_open: bool,
}

impl Ask {
    /// Asks somebody, who has [`CALLBACK_DEADLINE`]; without an answer nothing passes.
    #[must_use]
    pub fn new(callback: Arc<dyn Callback>) -> Self {
        Self {
            callback,
            deadline: CALLBACK_DEADLINE,
            fail_open: false,
        }
    }
}

impl From<Arc<dyn Callback>> for Ask {
    /// [`Self::new`].
    fn from(callback: Arc<dyn Callback>) -> Self {
        Self::new(callback)
    }
}

/// A rule as it is written. Fields of the other phase have no effect.
#[derive(Debug, Clone, Default)]
pub struct HookSpec {
    /// A name for messages; may be empty.
    pub name: String,
    /// When it acts.
    pub phase: Phase,
    /// Patterns of hosts; empty: all.
    pub hosts: Vec<String>,
    /// Methods, in any case; empty: all.
    pub methods: Vec<String>,
    /// A [`Glob`] of the path, its encodings undone; empty: all.
    pub path: String,
    /// What it does.
    pub action: Action,
    /// Whom it asks, after its own changes.
    pub ask: Option<Ask>,
    /// Headers that a request gets in place of those of the same name.
    pub set_headers: BTreeMap<String, String>,
    /// Headers that a request loses.
    pub delete_headers: Vec<String>,
    /// Parameters that a query gets in place of those of the same name.
    pub set_query: BTreeMap<String, String>,
    /// Parameters that a query loses.
    pub delete_query: Vec<String>,
    /// The path that a request gets, not encoded; empty: unchanged.
    pub rewrite_path: String,
    /// Headers that a response gets in place of those of the same name.
    pub set_response_headers: BTreeMap<String, String>,
    /// Headers that a response loses.
    pub delete_response_headers: Vec<String>,
    /// What is replaced in the body of a response, and by what, in order.
    pub body_replacements: Vec<(String, String)>,
}

/// Why a rule makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HookError {
    /// A host of it is none.
    #[error(transparent)]
    Host(#[from] PatternError),
    /// Its path is none.
    #[error(transparent)]
    Path(#[from] GlobError),
    /// The name of a header is none.
    #[error("{0:?} is not the name of a header")]
    HeaderName(String),
    /// The value of a header is none.
    #[error("the value of the header {0:?} has control characters in it")]
    HeaderValue(String),
    /// What a path is to become is none.
    #[error("{0:?} is not the path of a URL: it has to begin with `/`, and be below 16 KiB")]
    Rewrite(String),
}

/// A rule for requests or responses.
#[derive(Debug, Clone)]
pub struct Hook {
    name: String,
    phase: Phase,
    hosts: Vec<Pattern>,
    methods: Vec<String>,
    path: Option<Glob>,
    pub(super) blocks: bool,
    pub(super) ask: Option<Ask>,
    set: Vec<(HeaderName, HeaderValue)>,
    delete: Vec<HeaderName>,
    set_query: Vec<(String, String)>,
    delete_query: Vec<String>,
    rewrite_path: Option<String>,
    /// What is replaced in bodies, in order.
    pub(super) replacements: Vec<(String, String)>,
}

impl Hook {
    /// Reads a rule. None if it has nothing to do: it neither blocks nor changes nor asks
    /// anything in its phase.
    ///
    /// # Errors
    /// Something of it makes no sense.
    pub fn new(spec: HookSpec) -> Result<Option<Self>, HookError> {
        let is_before = spec.phase == Phase::Before;
        let (set, delete) = match spec.phase {
            Phase::Before => (spec.set_headers, spec.delete_headers),
            Phase::After => (spec.set_response_headers, spec.delete_response_headers),
        };
        let set = set.into_iter().map(|(name, value)| {
            let wrong = || HookError::HeaderValue(shown(&name));
            let value = HeaderValue::from_str(&value).map_err(|_| wrong())?;
            Ok((header_name(&name)?, value))
        });
        let path = spec.rewrite_path;
        if !path.is_empty() && (!path.starts_with('/') || path.len() >= MAX_PATH) {
            return Err(HookError::Rewrite(shown(&path)));
        }
        let trimmed = |text: &String| text.trim().to_owned();
        let methods = spec.methods.iter().map(|text| text.trim());
        let set_query = spec.set_query.iter();
        let hook = Self {
            name: spec.name,
            phase: spec.phase,
            hosts: spec
                .hosts
                .iter()
                .map(|host| host.trim().parse())
                .collect::<Result<_, _>>()?,
            methods: methods.map(str::to_ascii_uppercase).collect(),
            path: match spec.path.as_str() {
                "" => None,
                path => Some(path.parse()?),
            },
            blocks: spec.action == Action::Block,
            ask: spec.ask,
            set: set.collect::<Result<_, HookError>>()?,
            delete: delete
                .iter()
                .map(|name| header_name(name))
                .collect::<Result<_, _>>()?,
            set_query: set_query
                .map(|(name, value)| (trimmed(name), value.clone()))
                .filter(|_| is_before)
                .collect(),
            delete_query: spec
                .delete_query
                .iter()
                .map(trimmed)
                .filter(|_| is_before)
                .collect(),
            rewrite_path: (is_before && !path.is_empty()).then(|| query::encode_path(&path)),
            replacements: spec
                .body_replacements
                .into_iter()
                .filter(|(find, _)| !is_before && !find.is_empty())
                .collect(),
        };
        let does_something = hook.blocks || hook.ask.is_some() || hook.changes();
        Ok(does_something.then_some(hook))
    }

    fn changes(&self) -> bool {
        !(self.set.is_empty()
            && self.delete.is_empty()
            && self.set_query.is_empty()
            && self.delete_query.is_empty()
            && self.rewrite_path.is_none()
            && self.replacements.is_empty())
    }

    /// Its name, if it has one.
    pub(super) fn name(&self) -> Option<&str> {
        Some(self.name.as_str()).filter(|name| !name.is_empty())
    }

    /// When it acts.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether requests to this host may concern it.
    #[must_use]
    pub fn is_for(&self, host: &Host, port: u16) -> bool {
        let is_for = |pattern: &Pattern| pattern.matches(Protocol::Tcp, host, port);
        self.hosts.is_empty() || self.hosts.iter().any(is_for)
    }

    /// Whether it asks somebody without whose answer what is asked about passes.
    #[must_use]
    pub fn fails_open(&self) -> bool {
        self.ask.as_ref().is_some_and(|ask| ask.fail_open)
    }

    /// Whether a request concerns it. The path is encoded.
    pub(super) fn matches(&self, host: &Host, port: u16, method: &str, path: &str) -> bool {
        self.is_for(host, port)
            && (self.methods.is_empty() || self.methods.iter().any(|of| of == method))
            && self
                .path
                .as_ref()
                .is_none_or(|glob| glob.matches(&query::decode_path(path)))
    }

    /// Whether what becomes of a request depends on its method: who is asked sees it.
    pub(super) fn judges_methods(&self) -> bool {
        self.ask.is_some() || !self.methods.is_empty()
    }

    /// Whether it depends on its path.
    pub(super) fn judges_paths(&self) -> bool {
        self.ask.is_some() || self.path.is_some()
    }

    /// Whether it may want to change bodies.
    pub(super) fn is_of_bodies(&self) -> bool {
        !self.replacements.is_empty() || (self.phase == Phase::After && self.ask.is_some())
    }

    /// Changes a request. None if the URL is too long then.
    pub(super) fn change_request(&self, parts: &mut request::Parts) -> Option<()> {
        head::change(&mut parts.headers, &self.set, &self.delete);
        if !(self.set_query.is_empty() && self.delete_query.is_empty()) {
            let mut parameters = query::parse(head::query(parts));
            for (name, value) in &self.set_query {
                let values = vec![value.clone().into_bytes()];
                parameters.insert(name.clone().into_bytes(), values);
            }
            for name in &self.delete_query {
                parameters.remove(name.as_bytes());
            }
            let path = head::path(parts).to_owned();
            head::set_target(parts, &path, &query::write(&parameters))?;
        }
        if let Some(path) = &self.rewrite_path {
            let query = head::query(parts).to_owned();
            head::set_target(parts, path, &query)?;
        }
        Some(())
    }

    /// Changes the head of a response.
    pub(super) fn change_response(&self, headers: &mut HeaderMap) {
        head::change(headers, &self.set, &self.delete);
    }
}

fn header_name(text: &str) -> Result<HeaderName, HookError> {
    let name = HeaderName::from_bytes(text.trim().as_bytes());
    name.map_err(|_| HookError::HeaderName(shown(text)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A request with these headers.
    pub(in super::super) fn request(
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> request::Parts {
        let mut builder = http::Request::builder().method(method).uri(target);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    pub(in super::super) fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    pub(in super::super) fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn hook(spec: HookSpec) -> Hook {
        Hook::new(spec).unwrap().unwrap()
    }

    #[test]
    fn what_has_nothing_to_do_is_dropped() {
        let block = |phase| HookSpec {
            phase,
            action: Action::Block,
            ..HookSpec::default()
        };
        let set = |phase| HookSpec {
            phase,
            set_headers: map(&[("A", "1")]),
            ..HookSpec::default()
        };
        let find = |phase, find: &str| HookSpec {
            phase,
            body_replacements: vec![(find.to_owned(), String::new())],
            ..HookSpec::default()
        };
        for (spec, is_kept) in [
            (HookSpec::default(), false),
            (block(Phase::Before), true),
            (block(Phase::After), true),
            (set(Phase::Before), true),
            (set(Phase::After), false),
            (find(Phase::Before, "a"), false),
            (find(Phase::After, "a"), true),
            (find(Phase::After, ""), false),
        ] {
            let text = format!("{spec:?}");
            assert_eq!(Hook::new(spec).unwrap().is_some(), is_kept, "{text}");
        }
    }

    #[test]
    fn hosts_methods_and_paths_have_to_match() {
        let with = |hosts: &[&str], methods: &[&str], path: &str| {
            hook(HookSpec {
                hosts: strings(hosts),
                methods: strings(methods),
                path: path.to_owned(),
                action: Action::Block,
                ..HookSpec::default()
            })
        };
        for (hosts, methods, path, is_match) in [
            (&[][..], &[][..], "", true),
            (&[" *.test "], &[" get "], "/v1/*", true),
            (&["b.test", "A.TEST"], &["POST", "GET"], "/v?/a b", true),
            (&["b.test"], &[], "", false),
            (&[], &["POST"], "", false),
            (&[], &[], "/v1", false),
            (&[], &[], "/v1/a%20b", false),
        ] {
            let hook = with(hosts, methods, path);
            let host = "a.test".parse().unwrap();
            assert_eq!(
                hook.matches(&host, 443, "GET", "/v1/a%20b"),
                is_match,
                "{hook:?}"
            );
        }
        let host = "a.test".parse().unwrap();
        assert!(with(&[], &[], "/").matches(&host, 443, "GET", ""));
    }

    #[test]
    fn a_request_is_changed_in_order() {
        let hook = hook(HookSpec {
            set_headers: map(&[
                (" x-new ", "1"),
                ("X-Both", "2"),
                ("Host", "evil.test"),
                ("Content-Length", "0"),
            ]),
            delete_headers: strings(&["x-both", "X-OLD", "host"]),
            set_query: map(&[("b", "x y"), (" c ", "&=")]),
            delete_query: strings(&["d"]),
            rewrite_path: "/to/a b".to_owned(),
            ..HookSpec::default()
        });
        let headers = [("host", "a.test"), ("x-old", "0"), ("content-length", "5")];
        let mut parts = request("GET", "/from?d=1&b=1&b=2&a=3", &headers);
        hook.change_request(&mut parts).unwrap();
        assert_eq!(parts.uri, "/to/a%20b?a=3&b=x+y&c=%26%3D");
        let headers = head::seen(&parts.headers);
        let named: Vec<_> = headers.keys().collect();
        assert_eq!(named, ["Content-Length", "X-New"]);
        assert_eq!(headers["Content-Length"], ["5"]);
        assert_eq!(parts.headers["host"], "a.test");
    }

    /// Only a query that is touched is written anew.
    #[test]
    fn a_query_stays_as_it_is() {
        let hook = hook(HookSpec {
            rewrite_path: "/to".to_owned(),
            ..HookSpec::default()
        });
        let mut parts = request("GET", "/from?b=1;&a=%7e", &[]);
        hook.change_request(&mut parts).unwrap();
        assert_eq!(parts.uri, "/to?b=1;&a=%7e");
    }

    #[test]
    fn what_is_no_rule() {
        let broken = [
            HookSpec {
                hosts: strings(&["a b"]),
                ..HookSpec::default()
            },
            HookSpec {
                path: "[".to_owned(),
                ..HookSpec::default()
            },
            HookSpec {
                set_headers: map(&[("a b", "1")]),
                ..HookSpec::default()
            },
            HookSpec {
                set_headers: map(&[("a", "1\r\nb: 2")]),
                ..HookSpec::default()
            },
            HookSpec {
                delete_headers: strings(&["a:"]),
                ..HookSpec::default()
            },
            HookSpec {
                rewrite_path: "x".to_owned(),
                ..HookSpec::default()
            },
        ];
        for spec in broken {
            let text = format!("{spec:?}");
            assert!(Hook::new(spec).is_err(), "{text}");
        }
    }
}
