//! What a guest may reach: every start path, every protocol, plain and encrypted, asks
//! here, and nowhere else.
//!
//! * [`Pattern`] – hosts and ports;
//! * [`Rule`] – requests, the first that means one counts;
//! * [`path`] – the one form of a path, and patterns;
//! * [`Denial`] – why not.

mod denial;
mod explain;
pub mod path;
mod pattern;
mod rule;

use std::net::IpAddr;

use flashpan_protocol::network::Protocol;

pub use self::denial::{Code, Denial};
pub use self::explain::{Explanation, Target, TargetError};
pub use self::pattern::{Pattern, PatternError};
pub use self::rule::{Rule, RuleError, Verdict};

use crate::host::{Host, Name};
use crate::script::{Connection, Script};
use crate::{address, neighbours};

/// Whether a port is one of HTTP without being named: plain on 80, in TLS on 443.
#[must_use]
pub fn is_http(port: u16) -> bool {
    matches!(port, 80 | 443)
}

/// What a guest may reach.
///
/// What is in [`Self::deny`] may not be reached. Of [`Self::rules`] the first one counts
/// that means a request. Then what is in [`Self::allow`] may be reached, and all else if
/// [`Self::open`]. Addresses that are not of the internet, however they were come by, have
/// to be named in `allow` as addresses besides, or [`Self::private`] be set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Whether hosts may be reached that nothing names.
    pub open: bool,
    /// Whether it may reach addresses that are not of the internet
    /// ([`address::is_public`]): those of the host, of its networks. The gateway's address
    /// is the host's loopback interface then. Addresses of services that tell a cloud's
    /// machines of themselves have to be named all the same.
    pub private: bool,
    /// Whether requests are looked at, whatever the rules say: there are secrets, hooks or
    /// callbacks. HTTP/3, which cannot be looked at, is refused then.
    pub inspects: bool,
    /// Whether TLS to hosts that neither rules nor [`Self::inspected`] name is passed on as it
    /// is all the same. It is only told by [`Self::explain`]: who decides is the
    /// [`Editor`](crate::http::Editor).
    pub splices: bool,
    /// Hosts whose requests are looked at for another reason than rules. The ports that they
    /// name are ports of HTTP.
    pub inspected: Vec<Pattern>,
    /// What may be reached.
    pub allow: Vec<Pattern>,
    /// What may not be.
    pub deny: Vec<Pattern>,
    /// Rules for requests, in their order.
    pub rules: Vec<Rule>,
    /// What may deny of what all this allows. It allows nothing by itself.
    pub script: Option<Script>,
}

/// What allows something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Basis {
    /// Nothing denies it, and the policy is open.
    Open,
    /// A pattern or rule.
    Rule(String),
    /// It asks for names, which are answered here whomever it asks.
    Names,
}

/// The port of name servers. Whatever server a guest asks there, it is answered here.
pub(crate) const NAMES: u16 = 53;

impl Policy {
    /// A policy that allows all public addresses.
    #[must_use]
    pub fn open() -> Self {
        Self {
            open: true,
            ..Self::default()
        }
    }

    /// Whether a connection to this host may be, as far as its name or address says.
    /// Where rules tell requests from each other, one of them may be allowed.
    ///
    /// # Errors
    /// Why not.
    pub fn connection(&self, protocol: Protocol, host: &Host, port: u16) -> Result<Basis, Denial> {
        self.decide(protocol, host, port, |rule| {
            let counts = rule.verdict() == Verdict::Allow || !rule.is_of_requests();
            counts && rule.is_for(protocol, host, port)
        })
    }

    /// Whether a request may be. `path` has been through [`path::normal`].
    ///
    /// # Errors
    /// Why not.
    pub fn request(
        &self,
        host: &Host,
        port: u16,
        method: &str,
        path: &str,
    ) -> Result<Basis, Denial> {
        // Some servers take `post` for POST, and rules do not.
        if self.has_rules_for(host, port) && method.bytes().any(|byte| byte.is_ascii_lowercase()) {
            return Err(Denial {
                code: Code::Ambiguous,
                host: named(host, Protocol::Tcp, port),
                rule: None,
            });
        }
        let means = |rule: &Rule| rule.matches(host, port, method, path);
        self.decide(Protocol::Tcp, host, port, means)
    }

    fn decide(
        &self,
        protocol: Protocol,
        host: &Host,
        port: u16,
        means: impl Fn(&Rule) -> bool,
    ) -> Result<Basis, Denial> {
        let deny = |code, rule: Option<&str>| Denial {
            code,
            host: named(host, protocol, port),
            rule: rule.map(str::to_owned),
        };
        let is_for = |pattern: &&Pattern| pattern.matches(protocol, host, port);
        let denies = |pattern: &&Pattern| pattern.denies(protocol, host, port);
        if let Some(pattern) = self.deny.iter().find(denies) {
            return Err(deny(Code::Denied, Some(pattern.as_str())));
        }
        if let Some(rule) = self.rules.iter().find(|rule| means(rule)) {
            return match rule.verdict() {
                Verdict::Allow => Ok(Basis::Rule(rule.as_str().to_owned())),
                Verdict::Deny => Err(deny(Code::RuleDenied, Some(rule.as_str()))),
            };
        }
        if let Some(pattern) = self.allow.iter().find(is_for) {
            return Ok(Basis::Rule(pattern.as_str().to_owned()));
        }
        let is_http3 = protocol == Protocol::Udp && self.is_http(port);
        match self.open && !(is_http3 && self.looks_at_requests()) {
            true => Ok(Basis::Open),
            false => Err(deny(Code::NotAllowed, None)),
        }
    }

    /// Whether requests to this host have to be looked at for the rules, or for the script.
    #[must_use]
    pub fn has_rules_for(&self, host: &Host, port: u16) -> bool {
        let is_for = |rule: &&Rule| rule.is_of_requests() && rule.is_for(Protocol::Tcp, host, port);
        let is_judged = self.judges_requests() && self.is_http(port);
        is_judged || self.rules.iter().any(|rule| is_for(&rule))
    }

    /// Whether any requests are looked at.
    fn looks_at_requests(&self) -> bool {
        self.inspects || self.judges_requests() || self.rules.iter().any(Rule::is_of_requests)
    }

    /// Whether there is a script for requests.
    fn judges_requests(&self) -> bool {
        self.script.as_ref().is_some_and(Script::judges_requests)
    }

    /// Whether a request may go on that this script was asked about, if any: one that another
    /// would have to be asked about would have to be sent again.
    ///
    /// # Errors
    /// There is another script for requests now.
    pub(crate) fn still_judged_by(
        &self,
        script: Option<&Script>,
        host: &Host,
        port: u16,
    ) -> Result<(), Denial> {
        let now = self.script.as_ref().filter(|of| of.judges_requests());
        match now.is_none() || now == script {
            true => Ok(()),
            false => Err(Denial {
                code: Code::ScriptFailed,
                host: format!("{host}:{port}"),
                rule: Some("policy_script: it has changed since the request began".to_owned()),
            }),
        }
    }

    /// Whether there is a script for connections.
    #[must_use]
    pub fn judges_connections(&self) -> bool {
        (self.script.as_ref()).is_some_and(Script::judges_connections)
    }

    /// What the script says of a connection that is about to be made, and that nothing else
    /// denies.
    ///
    /// # Errors
    /// It denies it, or failed.
    pub async fn judge_connection(
        &self,
        protocol: Protocol,
        host: &Host,
        address: IpAddr,
        port: u16,
    ) -> Result<(), Denial> {
        match &self.script {
            Some(script) if script.judges_connections() => {
                let connection = Connection::new(protocol, host.clone(), Some(address), port);
                script.connection(connection).await
            }
            _ => Ok(()),
        }
    }

    /// Whether a port is one of HTTP: always, or because a rule for requests names it.
    #[must_use]
    pub fn is_http(&self, port: u16) -> bool {
        let names_it = |rule: &Rule| {
            let host = rule.host();
            rule.is_of_requests() && host.has_ports() && host.has_port(port)
        };
        let is_inspected = |pattern: &Pattern| pattern.has_ports() && pattern.has_port(port);
        is_http(port) || self.rules.iter().any(names_it) || self.inspected.iter().any(is_inspected)
    }

    /// Whether which hosts there are matters at all: without, a flow is decided by its
    /// address alone.
    #[must_use]
    pub fn is_of_names(&self) -> bool {
        let says_more = !(self.deny.is_empty() && self.rules.is_empty()) || self.script.is_some();
        !self.open || self.looks_at_requests() || says_more
    }

    /// Whether there is anything that may be reached.
    #[must_use]
    pub fn allows_something(&self) -> bool {
        let allows = |rule: &Rule| rule.verdict() == Verdict::Allow;
        self.open || !self.allow.is_empty() || self.rules.iter().any(allows)
    }

    /// Whether a name may be looked up: something of the host may be reached.
    ///
    /// # Errors
    /// Why not.
    pub fn lookup(&self, name: &Name) -> Result<Basis, Denial> {
        let deny = |code, rule: Option<&str>| Denial {
            code,
            host: name.to_string(),
            rule: rule.map(str::to_owned),
        };
        let is_denied = |pattern: &&Pattern| pattern.denies_all() && pattern.has_name(name);
        if let Some(pattern) = self.deny.iter().find(is_denied) {
            return Err(deny(Code::Denied, Some(pattern.as_str())));
        }
        let is_all = |rule: &Rule| !rule.is_of_requests() && rule.host().denies_all();
        for rule in self.rules.iter().filter(|rule| rule.host().has_name(name)) {
            match rule.verdict() {
                Verdict::Allow => return Ok(Basis::Rule(rule.as_str().to_owned())),
                Verdict::Deny if is_all(rule) => {
                    return Err(deny(Code::RuleDenied, Some(rule.as_str())));
                }
                Verdict::Deny => {}
            }
        }
        let pattern = self.allow.iter().find(|pattern| pattern.has_name(name));
        match pattern {
            Some(pattern) => Ok(Basis::Rule(pattern.as_str().to_owned())),
            None if self.open => Ok(Basis::Open),
            None => Err(deny(Code::NotAllowed, None)),
        }
    }

    /// Whether this address may be connected to, for a host that may be reached. `name` is
    /// the name that it was resolved from.
    ///
    /// # Errors
    /// Why not.
    pub fn address(
        &self,
        protocol: Protocol,
        address: IpAddr,
        port: u16,
        name: Option<&Name>,
    ) -> Result<(), Denial> {
        let address = address::plain(address);
        let deny = |code| Denial {
            code,
            host: match name {
                Some(name) => format!("{name}:{port} ({address})"),
                None => named(&Host::Address(address), protocol, port),
            },
            rule: None,
        };
        if address.is_unspecified() {
            // The host would take it for its own, as which nothing denies it.
            return Err(deny(of_name(name)));
        }
        self.not_denied(protocol, address, port)?;
        let names_it = |pattern: &Pattern| pattern.names_address(protocol, address, port);
        if self.allowing().any(names_it) {
            return Ok(());
        }
        self.unnamed(address, name).map_err(deny)
    }

    /// Whether an address is not denied as one, whatever name leads there; nor the one of IPv4
    /// to which some networks take one of IPv6.
    ///
    /// # Errors
    /// It is.
    pub fn not_denied(&self, protocol: Protocol, address: IpAddr, port: u16) -> Result<(), Denial> {
        if let Some(embedded) = address::embedded_in(address) {
            self.not_denied_as_such(protocol, embedded, port)?;
        }
        self.not_denied_as_such(protocol, address, port)
    }

    fn not_denied_as_such(
        &self,
        protocol: Protocol,
        address: IpAddr,
        port: u16,
    ) -> Result<(), Denial> {
        let host = Host::from(address);
        let deny = |code, rule: &str| Denial {
            code,
            host: named(&host, protocol, port),
            rule: Some(rule.to_owned()),
        };
        if let Some(pattern) = self.deny.iter().find(|of| of.denies(protocol, &host, port)) {
            return Err(deny(Code::Denied, pattern.as_str()));
        }
        let means = |rule: &&Rule| !rule.is_of_requests() && rule.is_for(protocol, &host, port);
        // A rule for all hosts is one for names, which were decided.
        let of_addresses = |rule: &&Rule| !rule.host().is_all();
        match self.rules.iter().filter(of_addresses).find(means) {
            Some(rule) if rule.verdict() == Verdict::Deny => {
                Err(deny(Code::RuleDenied, rule.as_str()))
            }
            _ => Ok(()),
        }
    }

    /// Whether this address may be told for a name that may be looked up: on some port it
    /// may be connected to.
    ///
    /// # Errors
    /// Why not.
    pub fn told(&self, address: IpAddr, name: &Name) -> Result<(), Denial> {
        let address = address::plain(address);
        let denies = |pattern: &&Pattern| pattern.denies_all() && pattern.has_address(address);
        if let Some(pattern) = self.deny.iter().find(denies) {
            return Err(Denial {
                code: Code::Denied,
                host: format!("{name} ({address})"),
                rule: Some(pattern.as_str().to_owned()),
            });
        }
        if self.allowing().any(|pattern| pattern.has_address(address)) {
            return Ok(());
        }
        self.unnamed(address, Some(name)).map_err(|code| Denial {
            code,
            host: format!("{name} ({address})"),
            rule: None,
        })
    }

    /// What allows connections by itself.
    fn allowing(&self) -> impl Iterator<Item = &Pattern> {
        let allows = |rule: &&Rule| rule.verdict() == Verdict::Allow && !rule.is_of_requests();
        let of_rules = self.rules.iter().filter(allows).map(Rule::host);
        self.allow.iter().chain(of_rules)
    }

    /// Whether an address may be reached that nothing names.
    fn unnamed(&self, address: IpAddr, name: Option<&Name>) -> Result<(), Code> {
        if address::is_known_metadata(address) {
            return Err(Code::Metadata);
        }
        if !self.private && (!address::is_public(address) || neighbours::has(address)) {
            return Err(of_name(name));
        }
        // Where private addresses may be reached, those that could be such services may not.
        if address::is_metadata(address) {
            return Err(Code::Metadata);
        }
        Ok(())
    }

    /// The pattern that allows this name to be looked up without naming it: one with a `*`
    /// that stands for a part of it.
    #[must_use]
    pub(crate) fn glob_of(&self, name: &Name) -> Option<&Pattern> {
        if self.open {
            return None;
        }
        let allows = |rule: &&Rule| rule.verdict() == Verdict::Allow;
        let of_rules = self.rules.iter().filter(allows).map(Rule::host);
        let all = self.allow.iter().chain(of_rules);
        let mut meant = all.filter(|pattern| pattern.has_name(name));
        let first = meant.next()?;
        let is_free = |pattern: &Pattern| pattern.is_exact() || pattern.is_all();
        (!is_free(first) && !meant.any(is_free)).then_some(first)
    }
}

/// What an address is refused for that is not of the internet.
fn of_name(name: Option<&Name>) -> Code {
    match name {
        Some(_) => Code::ResolvedToPrivate,
        None => Code::Private,
    }
}

/// How a host and port are told, and can be allowed.
fn named(host: &Host, protocol: Protocol, port: u16) -> String {
    match protocol {
        Protocol::Tcp => format!("{host}:{port}"),
        Protocol::Udp => format!("udp:{host}:{port}"),
    }
}

#[cfg(test)]
mod tests;
