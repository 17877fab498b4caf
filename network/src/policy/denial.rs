//! Why something was refused: a stable word for programs, a line for people.

use std::fmt;

/// Why something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// Nothing allows it.
    NotAllowed,
    /// It is refused by name: it is in the list of what is denied.
    Denied,
    /// A rule of the policy denies it.
    RuleDenied,
    /// The address is of the host, of its networks, or of nobody.
    Private,
    /// The address is that of a service which tells a cloud's machines of themselves.
    Metadata,
    /// The name may be reached; its addresses, which are private, may not.
    ResolvedToPrivate,
    /// The name of the TLS connection and that of the request are not the same.
    HostMismatch,
    /// A TLS connection that does not say whom it wants to reach.
    NoServerName,
    /// What was sent is not the protocol of this port.
    UnknownProtocol,
    /// The request could be read in more than one way.
    Ambiguous,
    /// A rule for changing requests, or a callback, refused the request.
    Rule,
    /// A placeholder of a secret was sent to a host that may not have the secret.
    SecretLeak,
    /// A callback failed, or was silent for too long.
    Callback,
    /// The policy's script denies it.
    ScriptDenied,
    /// The policy's script failed, or took too long: what it cannot judge may not be.
    ScriptFailed,
    /// The name servers do not answer, or not with an address.
    Resolve,
    /// The host cannot be reached.
    Connect,
    /// The host could not prove who it is.
    Certificate,
    /// The guest does not trust who vouches for the hosts that are looked into.
    Distrust,
    /// There are too many connections to hosts already.
    Crowded,
    /// The guest went away before there was a connection or an answer.
    GivenUp,
}

impl Code {
    /// The word for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAllowed => "host_not_allowed",
            Self::Denied => "host_denied",
            Self::RuleDenied => "rule_denied",
            Self::Private => "private_address",
            Self::Metadata => "metadata_address",
            Self::ResolvedToPrivate => "resolved_to_private",
            Self::HostMismatch => "host_mismatch",
            Self::NoServerName => "no_server_name",
            Self::UnknownProtocol => "unknown_protocol",
            Self::Ambiguous => "ambiguous_request",
            Self::Rule => "blocked_by_rule",
            Self::SecretLeak => "secret_leak",
            Self::Callback => "callback_failed",
            Self::ScriptDenied => "script_denied",
            Self::ScriptFailed => "script_failed",
            Self::Resolve => "name_not_resolved",
            Self::Connect => "upstream_unreachable",
            Self::Certificate => "upstream_certificate",
            Self::Distrust => "authority_not_trusted",
            Self::Crowded => "too_many_connections",
            Self::GivenUp => "given_up",
        }
    }

    /// Whether a policy refused it. Otherwise it was allowed, and failed.
    #[must_use]
    pub fn is_policy(self) -> bool {
        !matches!(
            self,
            Self::Resolve
                | Self::Connect
                | Self::Certificate
                | Self::Distrust
                | Self::Crowded
                | Self::GivenUp
        )
    }

    /// Whether something names it to be refused. Otherwise nothing allows it, or it is refused
    /// for what it is.
    pub(crate) fn is_named(self) -> bool {
        matches!(self, Self::Denied | Self::RuleDenied)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Why.
    pub code: Code,
    /// Of what: a host and, where there is one, its port.
    pub host: String,
    /// The pattern or rule that refused it, if one did; or what went wrong, if that is known.
    pub rule: Option<String>,
}

impl Denial {
    /// What whoever is allowed to can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        let host = &self.host;
        match self.code {
            Code::NotAllowed => format!("allow it with --allow-host {host}"),
            Code::Denied | Code::RuleDenied | Code::Rule => match &self.rule {
                Some(rule) => format!("the rule that refuses it is {rule:?}"),
                None => "a rule refuses it".to_owned(),
            },
            Code::Private | Code::ResolvedToPrivate => {
                "name the address with --allow-host, or give --allow-private-ips".to_owned()
            }
            Code::Metadata => "name the address with --allow-host".to_owned(),
            Code::HostMismatch => {
                "the name in TLS and the host of the request have to be the same".to_owned()
            }
            Code::NoServerName => "connect by name, not by address".to_owned(),
            Code::UnknownProtocol => {
                "this port is for HTTP and TLS, of which the guest speaks first; other protocols \
                 have other ports"
                    .to_owned()
            }
            Code::Ambiguous => "send a request that can be read in one way only".to_owned(),
            Code::SecretLeak => "the secret is for other hosts".to_owned(),
            Code::Callback => match &self.rule {
                Some(why) => format!("the callback has to answer in time ({why})"),
                None => "the callback has to answer in time".to_owned(),
            },
            Code::ScriptDenied | Code::ScriptFailed => {
                let what = match self.code {
                    Code::ScriptDenied => "the policy script denies it",
                    _ => "the policy script failed, and what it cannot judge is refused",
                };
                match &self.rule {
                    Some(rule) => format!("{what} ({rule})"),
                    None => what.to_owned(),
                }
            }
            Code::Resolve => match &self.rule {
                Some(why) => format!("the name was not resolved: {why}"),
                None => "look whether the name exists, and the name servers answer".to_owned(),
            },
            Code::Connect => match &self.rule {
                Some(why) => format!("the host cannot be used: {why}"),
                None => "look whether the host runs, and listens there".to_owned(),
            },
            Code::Crowded => "close connections that are not used any more".to_owned(),
            Code::GivenUp => "the guest did not wait for it".to_owned(),
            Code::Certificate => match &self.rule {
                Some(why) => format!("the host's certificate cannot be verified: {why}"),
                None => "the host's certificate cannot be verified".to_owned(),
            },
            Code::Distrust => "the program in the guest does not trust the authority of its \
                 network: it has certificates of its own, or knows the host's"
                .to_owned(),
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.host, self.code, self.hint())
    }
}
