//! What a policy would do with a host or a request, without one.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use flashpan_protocol::network::Protocol;
use http::uri::PathAndQuery;
use thiserror::Error;

use super::{Basis, Code, Denial, NAMES, Pattern, Policy, path};
use crate::host::{Authority, Host, HostError, shown};
use crate::script::{Connection, Request, Script};

/// Why a text is nothing that a guest could reach.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The host of it is none.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The scheme is none that there are rules for.
    #[error(
        "{0:?} is neither of http:// nor of https://; give a host and port for other protocols"
    )]
    Scheme(String),
    /// The path is one that no request can have.
    #[error("{0:?} is no path of a URL; encode what is not ASCII, and blanks, with `%`")]
    Path(String),
}

/// What a guest could reach: `HOST[:PORT]`, `udp:HOST:PORT`, or a URL of HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    protocol: Protocol,
    host: Host,
    port: u16,
    /// As it would be sent, if it is a request.
    path: Option<String>,
    /// What follows a `?` in it.
    query: String,
    scheme: &'static str,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (scheme, rest) = match text.split_once("://") {
            None => return connection(text),
            Some(("http", rest)) => ("http", rest),
            Some(("https", rest)) => ("https", rest),
            Some(_) => return Err(TargetError::Scheme(shown(text))),
        };
        let rest = rest.split('#').next().unwrap_or(rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let authority: Authority = authority.parse()?;
        let is_path = path.is_ascii() && PathAndQuery::try_from(path).is_ok();
        let path = Some(path).filter(|_| is_path);
        let path = path.ok_or_else(|| TargetError::Path(shown(rest)))?;
        Ok(Self {
            protocol: Protocol::Tcp,
            host: authority.host,
            port: authority
                .port
                .unwrap_or(if scheme == "http" { 80 } else { 443 }),
            path: Some(path.to_owned()),
            query: query.to_owned(),
            scheme,
        })
    }
}

fn connection(text: &str) -> Result<Target, TargetError> {
    let (protocol, rest) = match text.split_once(':') {
        Some(("udp", rest)) => (Protocol::Udp, rest),
        Some(("tcp", rest)) => (Protocol::Tcp, rest),
        _ => (Protocol::Tcp, text),
    };
    let bare: Result<Host, _> = rest.parse();
    let (host, port) = match bare {
        Ok(host) => (host, None),
        Err(_) => {
            let authority: Authority = rest.parse()?;
            (authority.host, authority.port)
        }
    };
    Ok(Target {
        protocol,
        host,
        port: port.unwrap_or(443),
        path: None,
        query: String::new(),
        scheme: if protocol == Protocol::Udp {
            "udp"
        } else {
            "tcp"
        },
    })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port, scheme) = (&self.host, self.port, self.scheme);
        match &self.path {
            Some(path) => {
                let normal = path::normal(path);
                let path = normal.as_ref().unwrap_or(path);
                write!(f, "{scheme}://{host}:{port}{path}")
            }
            None => write!(f, "{scheme}:{host}:{port}"),
        }
    }
}

/// What a policy would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What allows it, or why not.
    pub decision: Result<Basis, Denial>,
    /// Whether requests to this host are looked into.
    pub inspected: bool,
}

/// What a script says of a connection, and of a request if there is a path of one.
fn judged(
    script: &Script,
    target: &Target,
    method: &str,
    path: Option<&str>,
) -> Result<(), Denial> {
    let (host, port) = (target.host.clone(), target.port);
    let connection = Connection::new(target.protocol, host.clone(), None, port);
    let Some(path) = path else {
        return script.connection_now(connection);
    };
    let tls = target.scheme == "https";
    let request = Request::new(host, port, tls, method, path, &target.query);
    script.request_now(request)?;
    script.connection_now(connection)
}

impl Policy {
    /// What would become of a connection, or of a request with this method and no headers.
    /// Names are not resolved for it: where one leads to a special address, that is refused
    /// later. It takes as long as a script may.
    #[must_use]
    pub fn explain(&self, target: &Target, method: &str) -> Explanation {
        let Target {
            protocol,
            host,
            port,
            path,
            ..
        } = target;
        if *port == NAMES
            && let Some(decision) = self.name_server(target)
        {
            return Explanation {
                decision,
                inspected: false,
            };
        }
        let inspected = self.looks_into(target);
        let path = path.as_deref().map(|path| self.path(host, *port, path));
        let mut decision = match &path {
            Some(Ok(path)) => self.request(host, *port, method, path),
            Some(Err(denial)) => Err(denial.clone()),
            None => self.connection(*protocol, host, *port),
        };
        if path.is_some() && inspected && matches!(method, "CONNECT" | "TRACE") {
            // Whoever may not connect is not asked what for.
            let connection = self.connection(*protocol, host, *port);
            decision = connection.and_then(|_| {
                Err(Denial {
                    code: Code::Denied,
                    host: super::named(host, *protocol, *port),
                    rule: Some(format!("no {method}")),
                })
            });
        }
        if let (Ok(_), Host::Address(address)) = (&decision, host) {
            let special = self.address(*protocol, *address, *port, None);
            decision = special.and(decision);
        }
        if let (Ok(_), Some(script)) = (&decision, &self.script) {
            let path = path.and_then(Result::ok);
            decision = judged(script, target, method, path.as_deref()).and(decision);
        }
        Explanation {
            decision,
            inspected,
        }
    }

    /// What becomes of what is sent to port 53 of a host: it is answered here, and it has to be
    /// questions. None for addresses at which nothing arrives.
    fn name_server(&self, target: &Target) -> Option<Result<Basis, Denial>> {
        if target.path.is_some() {
            return Some(Err(Denial {
                code: Code::Denied,
                host: super::named(&target.host, Protocol::Tcp, target.port),
                rule: Some(format!("no requests on port {NAMES}")),
            }));
        }
        match &target.host {
            // Without an address there is nowhere to send to.
            Host::Name(name) => Some(self.lookup(name).map(|_| Basis::Names)),
            Host::Address(IpAddr::V4(address)) if address.is_broadcast() => None,
            Host::Address(address) if address.is_unspecified() || address.is_multicast() => None,
            Host::Address(_) => Some(Ok(Basis::Names)),
        }
    }

    /// A path as it is judged: in its one form where rules tell paths from each other.
    fn path(&self, host: &Host, port: u16, path: &str) -> Result<String, Denial> {
        if !self.has_rules_for(host, port) {
            return Ok(path.to_owned());
        }
        path::normal(path).ok_or_else(|| Denial {
            code: Code::Ambiguous,
            host: super::named(host, Protocol::Tcp, port),
            rule: None,
        })
    }

    /// Whether requests to this host are looked into on this port.
    fn looks_into(&self, target: &Target) -> bool {
        let (host, port) = (&target.host, target.port);
        if target.protocol != Protocol::Tcp || !self.is_http(port) {
            return false;
        }
        let is_plain = match target.scheme {
            "http" => true,
            "https" => false,
            _ => port == 80,
        };
        let is_for = |pattern: &Pattern| pattern.matches(Protocol::Tcp, host, port);
        let opens = is_plain || !self.splices || self.inspected.iter().any(is_for);
        self.has_rules_for(host, port) || (self.inspects && opens)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn targets_are_hosts_and_urls() {
        for (text, target) in [
            ("A.test", "tcp:a.test:443"),
            ("a.test:22", "tcp:a.test:22"),
            ("udp:a.test:53", "udp:a.test:53"),
            ("::1", "tcp:[::1]:443"),
            ("[::1]:80", "tcp:[::1]:80"),
            ("http://a.test", "http://a.test:80/"),
            ("https://a.test:8443/%61?x=y#z", "https://a.test:8443/a"),
            ("https://a.test?x=/y", "https://a.test:443/"),
            ("https://a.test#/y", "https://a.test:443/"),
            ("https://a.test/a//b", "https://a.test:443/a//b"),
            ("https://a.test/../b", "https://a.test:443/../b"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), target);
        }
        for text in [
            "",
            "ftp://a.test",
            "http://",
            "http://a b/",
            "http://a.test/a b",
            "http://a.test/ä",
            "a:b",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_explanation_names_what_decides() {
        let policy = Policy {
            rules: vec!["allow GET a.test/x/**".parse().unwrap()],
            allow: vec!["10.0.0.1".parse().unwrap(), "*:22".parse().unwrap()],
            ..Policy::default()
        };
        let explain = |target: &str, method| policy.explain(&target.parse().unwrap(), method);
        let allowed = explain("https://a.test/x/y", "GET");
        assert_eq!(
            allowed.decision,
            Ok(Basis::Rule("allow GET a.test/x/**".into()))
        );
        assert!(allowed.inspected);
        let code = |target, method| explain(target, method).decision.unwrap_err().code;
        assert_eq!(code("https://a.test/x/y", "PUT"), Code::NotAllowed);
        assert_eq!(code("10.0.0.2:22", ""), Code::Private);
        assert!(explain("10.0.0.1:443", "").decision.is_ok());
        assert!(!explain("10.0.0.1:443", "").inspected);
    }

    /// As in [`crate::Gateway`], which has no other answer on that port.
    #[test]
    fn whoever_is_asked_for_names_answers_nothing_else() {
        let policy = Policy {
            allow: vec!["ns.test".parse().unwrap(), "a.test:53".parse().unwrap()],
            deny: vec!["9.9.9.9".parse().unwrap()],
            ..Policy::default()
        };
        let explain = |target: &str| policy.explain(&target.parse().unwrap(), "GET");
        for target in ["udp:8.8.8.8:53", "9.9.9.9:53", "10.0.0.1:53", "ns.test:53"] {
            assert_eq!(explain(target).decision, Ok(Basis::Names), "{target}");
        }
        for (target, code) in [
            ("http://a.test:53/x", Code::Denied),
            ("udp:b.test:53", Code::NotAllowed),
            ("udp:255.255.255.255:53", Code::NotAllowed),
            ("udp:[ff02::fb]:53", Code::NotAllowed),
            ("udp:0.0.0.0:53", Code::NotAllowed),
        ] {
            let denial = explain(target).decision.unwrap_err();
            assert_eq!(denial.code, code, "{target}");
        }
    }

    /// As requests are judged that come: a path is read only where something tells paths
    /// apart, and methods that are for more than the host are refused where they are seen.
    #[test]
    fn requests_are_refused_that_would_be() {
        let policy = Policy {
            inspects: true,
            rules: vec!["allow GET,TRACE ruled.test/**".parse().unwrap()],
            allow: vec!["a.test".parse().unwrap()],
            ..Policy::default()
        };
        let explain = |target: &str, method| policy.explain(&target.parse().unwrap(), method);
        let code = |target, method| explain(target, method).decision.map_err(|of| of.code);
        assert!(code("https://a.test/a//b", "GET").is_ok());
        let refused = [
            ("https://ruled.test/a//b", "GET", Code::Ambiguous),
            ("https://a.test/", "TRACE", Code::Denied),
            ("https://a.test/", "CONNECT", Code::Denied),
            ("http://ruled.test/", "TRACE", Code::Denied),
            ("https://b.test/", "TRACE", Code::NotAllowed),
        ];
        for (target, method, why) in refused {
            assert_eq!(code(target, method), Err(why), "{method} {target}");
        }
        let denial = explain("https://a.test/", "TRACE").decision.unwrap_err();
        assert_eq!(denial.rule.as_deref(), Some("no TRACE"));
        // Nobody looks there.
        assert!(code("https://a.test:8443/", "TRACE").is_ok());
        let open = Policy::open().explain(&"https://a.test/".parse().unwrap(), "TRACE");
        assert!(open.decision.is_ok() && !open.inspected);
    }

    #[test]
    fn requests_are_looked_into_on_ports_of_http() {
        let mut policy = Policy {
            inspects: true,
            inspected: vec!["s.test".parse().unwrap(), "p.test:8443".parse().unwrap()],
            allow: vec!["*".parse().unwrap(), "udp:*".parse().unwrap()],
            ..Policy::default()
        };
        let looks = |policy: &Policy, target: &str| {
            policy.explain(&target.parse().unwrap(), "GET").inspected
        };
        for (target, spliced, opened) in [
            ("https://s.test/", true, true),
            ("https://other.test/", false, true),
            ("other.test:443", false, true),
            ("http://other.test/", true, true),
            ("other.test:80", true, true),
            ("https://p.test:8443/", true, true),
            ("https://s.test:8443/", true, true),
            ("https://s.test:9443/", false, false),
            ("http://s.test:9443/", false, false),
            ("s.test:22", false, false),
            ("udp:s.test:443", false, false),
        ] {
            policy.splices = true;
            assert_eq!(looks(&policy, target), spliced, "{target}");
            policy.splices = false;
            assert_eq!(looks(&policy, target), opened, "{target}");
        }
    }

    #[test]
    fn a_script_is_asked_after_the_rest() {
        let script = "fn request(req) { if req.query == \"x=1\" { deny(\"x\") } }
            fn connection(conn) { if conn.port == 22 { throw \"y\" } }";
        let policy = Policy {
            allow: vec!["*".parse().unwrap()],
            script: Some(Script::new(script).unwrap()),
            ..Policy::default()
        };
        let explain = |target: &str| policy.explain(&target.parse().unwrap(), "GET");
        let denial = |target| explain(target).decision.unwrap_err();
        assert!(explain("https://a.test/?x=2").decision.is_ok());
        assert!(explain("https://a.test/").inspected);
        let denied = denial("https://a.test/?x=1#z");
        assert_eq!(denied.code, Code::ScriptDenied);
        assert_eq!(denied.rule.as_deref(), Some("policy_script:1: x"));
        assert_eq!(denial("a.test:22").code, Code::ScriptFailed);
        assert_eq!(denial("10.0.0.1:23").code, Code::Private);
        assert!(explain("a.test:23").decision.is_ok());
    }
}
