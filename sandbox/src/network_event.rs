//! What is told of a guest's connections, requests and questions for names.

use std::net::SocketAddr;
use std::time::Duration;

use flashpan_network::policy::{Basis, Code, Denial};
use flashpan_network::report::{Outcome, Report, Scheme};
use serde::{Deserialize, Serialize};

use crate::api::{BlockReason, NetworkEvent};

/// A connection, request or question for a name that is over, or was refused.
///
/// There is no secret in it: a URL is as the guest sent it, with placeholders. Names and
/// URLs are what the guest says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkActivity {
    /// What the interface tells of it.
    pub network: NetworkEvent,
    /// `dns`, `tcp`, `udp`, `tls` (passed on as it was), `http` or `https`.
    pub scheme: String,
    /// Where the guest sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<SocketAddr>,
    /// Why it was refused, or failed; a stable word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The pattern or rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What can be done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Names of the secrets whose value was put in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets_substituted: Vec<String>,
    /// Names of the secrets whose placeholder was sent where the secret is not for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets_missed: Vec<String>,
    /// Names of the secrets whose placeholder was sent to a host that may not have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets_leaked: Vec<String>,
    /// How often a secret was taken out of a response.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub secrets_scrubbed: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl From<Report> for NetworkActivity {
    fn from(report: Report) -> Self {
        let is_of_connection = !matches!(report.scheme, Scheme::Http | Scheme::Https);
        let (basis, denial) = match report.outcome {
            Outcome::Allowed(basis) => (Some(basis), None),
            Outcome::Refused(denial) => (None, Some(denial)),
        };
        let hint = denial.as_ref().map(Denial::hint);
        let code = denial.as_ref().map(|denial| denial.code);
        let blocked = code.is_some_and(Code::is_policy);
        let rule = match (basis, denial) {
            (Some(Basis::Rule(rule)), _) => Some(rule),
            (_, denial) => denial.and_then(|denial| denial.rule),
        };
        Self {
            network: NetworkEvent {
                method: report.method,
                url: report.url,
                // The interface has a port only for what is no request.
                host: match is_of_connection {
                    true => report.host,
                    false => without_port(&report.host).to_owned(),
                },
                status_code: report.status,
                request_bytes: report.sent,
                response_bytes: report.received,
                duration_ms: milliseconds(report.duration),
                blocked,
                block_reason: code.filter(|_| blocked).map(reason),
            },
            scheme: report.scheme.as_str().to_owned(),
            destination: report.destination.filter(|_| is_of_connection),
            code: code.map(|code| code.as_str().to_owned()),
            rule,
            hint,
            secrets_substituted: report.secrets.substituted,
            secrets_missed: report.secrets.missed,
            secrets_leaked: report.secrets.leaked,
            secrets_scrubbed: report.secrets.scrubbed,
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A host alone, if there is a port as well; of IPv6 addresses, those in brackets.
fn without_port(host: &str) -> &str {
    let is_number = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match host.rsplit_once(':') {
        Some((alone, port))
            if is_number(port) && (alone.ends_with(']') || !alone.contains(':')) =>
        {
            alone
        }
        _ => host,
    }
}

/// The reason that the interface has for it.
fn reason(code: Code) -> BlockReason {
    match code {
        Code::SecretLeak => BlockReason::SecretLeak,
        Code::Denied
        | Code::RuleDenied
        | Code::Rule
        | Code::Callback
        | Code::Ambiguous
        | Code::UnknownProtocol
        | Code::ScriptDenied
        | Code::ScriptFailed => BlockReason::Policy,
        _ => BlockReason::HostNotAllowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn activity(scheme: Scheme, outcome: Outcome) -> NetworkActivity {
        let mut report = Report::new(scheme, "a.test:443".to_owned(), outcome);
        report.destination = "192.0.2.1:443".parse().ok();
        report.into()
    }

    #[test]
    fn a_refusal_says_why_and_what_can_be_done() {
        let denial = Denial {
            code: Code::NotAllowed,
            host: "a.test:443".to_owned(),
            rule: None,
        };
        let json = serde_json::to_value(activity(Scheme::Tcp, Outcome::Refused(denial))).unwrap();
        assert_eq!(json["network"]["blocked"], true);
        let event: NetworkEvent = serde_json::from_value(json["network"].clone()).unwrap();
        let refusal = event.refusal().unwrap();
        assert!(
            matches!(&refusal, Error::HostNotAllowed { host } if host == "a.test:443"),
            "{refusal:?}"
        );
        assert_eq!(json["network"]["block_reason"], "host not in allowlist");
        assert_eq!(json["code"], "host_not_allowed");
        assert_eq!(json["destination"], "192.0.2.1:443");
        assert_eq!(json["hint"], "allow it with --allow-host a.test:443");
    }

    #[test]
    fn what_failed_was_not_refused() {
        let denial = Denial {
            code: Code::Connect,
            host: "a.test:443".to_owned(),
            rule: None,
        };
        let failed = activity(Scheme::Https, Outcome::Refused(denial));
        assert!(!failed.network.blocked);
        assert!(failed.network.refusal().is_none());
        assert_eq!(failed.code.as_deref(), Some("upstream_unreachable"));
        let allowed = Outcome::Allowed(Basis::Rule("*.test".to_owned()));
        let allowed = activity(Scheme::Https, allowed);
        assert_eq!((allowed.code, allowed.hint), (None, None));
        assert_eq!(allowed.rule.as_deref(), Some("*.test"));
    }

    #[test]
    fn what_is_denied_is_so_by_the_policy_and_not_for_want_of_an_entry() {
        for (code, rule, text) in [
            (Code::Denied, "*.test", "host_denied"),
            (Code::RuleDenied, "deny POST a.test/x", "rule_denied"),
        ] {
            let denial = Denial {
                code,
                host: "a.test:443".to_owned(),
                rule: Some(rule.to_owned()),
            };
            let refused = activity(Scheme::Https, Outcome::Refused(denial));
            let json = serde_json::to_value(refused).unwrap();
            let reason = &json["network"]["block_reason"];
            assert_eq!(reason, "request blocked by policy");
            assert_eq!((&json["code"], &json["rule"]), (&text.into(), &rule.into()));
        }
    }

    #[test]
    fn the_host_of_a_request_is_told_without_its_port() {
        let allowed = || Outcome::Allowed(Basis::Open);
        assert_eq!(activity(Scheme::Https, allowed()).network.host, "a.test");
        assert_eq!(activity(Scheme::Tls, allowed()).network.host, "a.test:443");
        for (host, alone) in [
            ("a.test", "a.test"),
            ("[::1]:443", "[::1]"),
            ("::1", "::1"),
            ("a.test:", "a.test:"),
            ("", ""),
        ] {
            assert_eq!(without_port(host), alone);
        }
    }
}
