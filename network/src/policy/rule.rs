//! Rules for requests, one line each: `allow GET,HEAD api.github.com/repos/**`.

use std::fmt;
use std::str::FromStr;

use flashpan_protocol::network::Protocol;
use thiserror::Error;

use super::path::{PathError, PathPattern};
use super::pattern::{Pattern, PatternError};
use crate::host::{Host, shown};

/// Most methods of a rule.
const MAX_METHODS: usize = 32;

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RuleError {
    /// It has not the parts of one.
    #[error(
        "{0:?} is no rule: give `allow` or `deny`, methods if only some are meant, and a host, as in `allow GET,HEAD api.example.com/repos/**`"
    )]
    Form(String),
    /// It is for requests, and by UDP.
    #[error("{0:?} is no rule: requests are sent by TCP; leave `udp:` out, or methods and path")]
    Udp(String),
    /// A method is none.
    #[error("{0:?} is no list of methods: they are in capitals, with commas between them")]
    Method(String),
    /// The host of it is none.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The path of it is none.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// What a rule does with what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be.
    Allow,
    /// It may not be.
    Deny,
}

/// A rule: `allow|deny [METHOD,…] HOST[:PORT][/PATH]`.
///
/// Of rules that mean a request the first one counts. `HOST` is a [`Pattern`]; `PATH` a
/// [`PathPattern`], without which all paths are meant, as all methods are without one. A
/// rule with methods or a path means only HTTP, on ports 80 and 443 if it names none.
///
/// ```
/// use flashpan_network::policy::Rule;
///
/// let rule: Rule = "deny POST *.github.com/**/git-receive-pack".parse()?;
/// assert!(rule.is_of_requests());
/// # Ok::<(), flashpan_network::policy::RuleError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    text: String,
    verdict: Verdict,
    methods: Vec<String>,
    host: Pattern,
    path: Option<PathPattern>,
}

impl Rule {
    /// The rule as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it does.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The hosts that it is for.
    #[must_use]
    pub fn host(&self) -> &Pattern {
        &self.host
    }

    /// Whether it tells requests to one host from each other, so that they have to be
    /// looked at.
    #[must_use]
    pub fn is_of_requests(&self) -> bool {
        !self.methods.is_empty() || self.path.is_some()
    }

    /// Whether it may mean a connection or request to this host.
    #[must_use]
    pub fn is_for(&self, protocol: Protocol, host: &Host, port: u16) -> bool {
        if !self.is_of_requests() {
            return match self.verdict {
                Verdict::Allow => self.host.matches(protocol, host, port),
                Verdict::Deny => self.host.denies(protocol, host, port),
            };
        }
        let may_be_http = self.host.has_ports() || super::is_http(port);
        self.host.matches(protocol, host, port) && may_be_http
    }

    /// Whether it means this request, whose path has been through [`super::path::normal`].
    #[must_use]
    pub fn matches(&self, host: &Host, port: u16, method: &str, path: &str) -> bool {
        self.is_for(Protocol::Tcp, host, port)
            && (self.methods.is_empty() || self.methods.iter().any(|of| of == method))
            && self.path.as_ref().is_none_or(|of| of.matches(path))
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let wrong = || RuleError::Form(shown(text));
        let mut words = text.split_ascii_whitespace();
        let verdict = match words.next() {
            Some("allow") => Verdict::Allow,
            Some("deny") => Verdict::Deny,
            _ => return Err(wrong()),
        };
        let second = words.next().ok_or_else(wrong)?;
        let (methods, target) = match words.next() {
            Some(target) => (parse_methods(second)?, target),
            // Methods, and the host was forgotten.
            None if parse_methods(second).is_ok() => return Err(wrong()),
            None => (Vec::new(), second),
        };
        if words.next().is_some() {
            return Err(wrong());
        }
        let (host, path) = split_path(target);
        let rule = Self {
            text: text.to_owned(),
            verdict,
            methods,
            host: host.parse()?,
            path: path.map(str::parse).transpose()?,
        };
        match rule.is_of_requests() && rule.host.protocol() == Protocol::Udp {
            true => Err(RuleError::Udp(shown(text))),
            false => Ok(rule),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The path begins at the first slash, unless that is one of a network.
fn split_path(target: &str) -> (&str, Option<&str>) {
    match target.find('/') {
        Some(at) if target.parse::<Pattern>().is_err() => {
            let (host, path) = target.split_at(at);
            (host, Some(path))
        }
        _ => (target, None),
    }
}

fn parse_methods(text: &str) -> Result<Vec<String>, RuleError> {
    let wrong = || RuleError::Method(shown(text));
    let methods: Vec<String> = text.split(',').map(str::to_owned).collect();
    // RFC 9110 §9.1 has more characters; no registered method has.
    let is_method = |method: &String| {
        let is_plain = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
        !method.is_empty() && method.len() <= 32 && method.bytes().all(is_plain)
    };
    match methods.len() <= MAX_METHODS && methods.iter().all(is_method) {
        true => Ok(methods),
        false => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn rules_have_a_verdict_methods_a_host_and_a_path() {
        for (rule, host, port, method, path, is_match) in [
            ("allow a.test", "a.test", 22, "GET", "/", true),
            (
                "allow GET,HEAD a.test/x/**",
                "a.test",
                443,
                "HEAD",
                "/x/y",
                true,
            ),
            (
                "allow GET,HEAD a.test/x/**",
                "a.test",
                443,
                "POST",
                "/x/y",
                false,
            ),
            (
                "allow GET,HEAD a.test/x/**",
                "a.test",
                443,
                "get",
                "/x/y",
                false,
            ),
            (
                "allow GET,HEAD a.test/x/**",
                "b.test",
                443,
                "GET",
                "/x/y",
                false,
            ),
            (
                "allow GET,HEAD a.test/x/**",
                "a.test",
                443,
                "GET",
                "/y",
                false,
            ),
            ("deny PUT *.test:8080/", "a.test", 8080, "PUT", "/", true),
            ("deny PUT *.test:8080/", "a.test", 80, "PUT", "/", false),
            ("deny GET *", "a.test", 8080, "GET", "/", false),
            ("deny 192.0.2.0/24", "192.0.2.9", 80, "GET", "/", true),
            ("deny GET 192.0.2.1/24", "192.0.2.1", 80, "GET", "/24", true),
        ] {
            let parsed: Rule = rule.parse().unwrap();
            let host = host.parse().unwrap();
            assert_eq!(
                parsed.matches(&host, port, method, path),
                is_match,
                "{rule}"
            );
        }
    }

    #[test]
    fn what_is_no_rule() {
        for rule in [
            "",
            "allow",
            "permit a.test",
            "allow GET",
            "allow get a.test",
            "allow GET, a.test",
            "allow GET a.test b.test",
            "allow GET a.test/../b",
            "allow GET a test/x",
            "allow G\u{395}T a.test",
        ] {
            assert!(rule.parse::<Rule>().is_err(), "{rule}");
        }
    }
}
