//! What policies decide.
#![allow(clippy::unwrap_used)]

use flashpan_protocol::network::Protocol;

use std::net::IpAddr;

use super::{Basis, Code, Policy, Rule, RuleError};
use crate::host::Name;

fn all<T: std::str::FromStr>(texts: &[&str]) -> Vec<T>
where
    T::Err: std::fmt::Debug,
{
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn connection(policy: &Policy, host: &str, port: u16) -> Result<Basis, Code> {
    let denied = policy.connection(Protocol::Tcp, &host.parse().unwrap(), port);
    denied.map_err(|denial| denial.code)
}

fn by(rule: &str) -> Result<Basis, Code> {
    Ok(Basis::Rule(rule.to_owned()))
}

#[test]
fn nothing_may_be_reached_unless_it_is_allowed() {
    let sealed = Policy::default();
    for host in ["a.test", "192.0.2.1", "2606:4700::1111"] {
        assert_eq!(connection(&sealed, host, 443), Err(Code::NotAllowed));
        assert_eq!(connection(&Policy::open(), host, 443), Ok(Basis::Open));
    }
    let listed = Policy {
        allow: all(&["a.test", "*.b.test:443", "192.0.2.0/24"]),
        ..Policy::default()
    };
    assert_eq!(connection(&listed, "A.TEST.", 22), by("a.test"));
    assert_eq!(connection(&listed, "x.b.test", 443), by("*.b.test:443"));
    assert_eq!(connection(&listed, "x.b.test", 80), Err(Code::NotAllowed));
    assert_eq!(connection(&listed, "192.0.2.7", 80), by("192.0.2.0/24"));
    assert_eq!(connection(&listed, "192.0.3.7", 80), Err(Code::NotAllowed));
}

#[test]
fn what_is_denied_stays_denied() {
    for open in [true, false] {
        let policy = Policy {
            open,
            allow: all(&["*"]),
            deny: all(&["evil.test", "*.evil.test", "192.0.2.1"]),
            ..Policy::default()
        };
        for host in ["evil.test", "a.evil.test", "::ffff:192.0.2.1"] {
            assert_eq!(connection(&policy, host, 443), Err(Code::Denied));
        }
        assert_eq!(connection(&policy, "good.test", 443), by("*"));
    }
}

#[test]
fn datagrams_are_for_those_that_are_listed() {
    let udp = |policy: &Policy, host: &str, port| {
        policy
            .connection(Protocol::Udp, &host.parse().unwrap(), port)
            .is_ok()
    };
    let policy = Policy {
        allow: all(&["a.test", "udp:time.test:123"]),
        ..Policy::default()
    };
    assert!(!udp(&policy, "a.test", 443));
    assert!(udp(&policy, "time.test", 123));
    assert!(!udp(&policy, "time.test", 124));
    // HTTP/3 would go past whatever looks at requests.
    assert!(udp(&Policy::open(), "a.test", 443));
    let looked_at = |policy| Policy {
        open: true,
        ..policy
    };
    let rules = looked_at(Policy {
        rules: all(&["deny POST a.test"]),
        ..Policy::default()
    });
    let inspects = looked_at(Policy {
        inspects: true,
        ..Policy::default()
    });
    for policy in [rules, inspects] {
        assert!(!udp(&policy, "b.test", 443));
        assert!(udp(&policy, "b.test", 123));
    }
}

#[test]
fn the_first_rule_that_means_a_request_counts() {
    let policy = Policy {
        rules: all(&[
            "deny POST *.test/**/git-receive-pack",
            "allow GET,HEAD a.test/repos/**",
            "deny a.test",
            "allow b.test",
        ]),
        allow: all(&["a.test", "c.test"]),
        ..Policy::default()
    };
    let request = |host: &str, port, method, path| {
        let decided = policy.request(&host.parse().unwrap(), port, method, path);
        decided.map_err(|denial| denial.code)
    };
    let get = "allow GET,HEAD a.test/repos/**";
    assert_eq!(request("a.test", 443, "GET", "/repos/x"), by(get));
    assert_eq!(
        request("a.test", 443, "PUT", "/repos/x"),
        Err(Code::RuleDenied)
    );
    assert_eq!(request("a.test", 80, "GET", "/user"), Err(Code::RuleDenied));
    let push = "/o/r.git/git-receive-pack";
    assert_eq!(request("b.test", 443, "POST", push), Err(Code::RuleDenied));
    assert_eq!(request("b.test", 443, "POST", "/x"), by("allow b.test"));
    assert_eq!(request("c.test", 443, "POST", "/x"), by("c.test"));
    assert_eq!(request("d.test", 443, "GET", "/"), Err(Code::NotAllowed));
    // A connection may be for the sake of one of its requests.
    assert_eq!(connection(&policy, "a.test", 443), by(get));
    assert_eq!(connection(&policy, "a.test", 22), Err(Code::RuleDenied));
    assert_eq!(connection(&policy, "b.test", 22), by("allow b.test"));
    let host = "a.test".parse().unwrap();
    assert!(policy.has_rules_for(&host, 443));
    assert!(!policy.has_rules_for(&host, 22));
}

/// A rule for requests on a port of its own makes that one of HTTP.
#[test]
fn ports_of_rules_are_looked_at() {
    let policy = Policy {
        rules: all(&["allow GET a.test:8000-8080/x"]),
        ..Policy::default()
    };
    assert!(policy.is_http(443));
    assert!(policy.is_http(8080));
    assert!(!policy.is_http(22));
    assert!(policy.has_rules_for(&"a.test".parse().unwrap(), 8080));
    assert_eq!(connection(&policy, "a.test", 443), Err(Code::NotAllowed));
}

#[test]
fn names_are_looked_up_that_lead_somewhere() {
    let policy = Policy {
        allow: all(&["a.test:443", "udp:time.test", "10.0.0.0/8"]),
        deny: all(&["bad.a.test", "x.test:25"]),
        rules: all(&[
            "deny GET r.test/x",
            "allow GET r.test",
            "deny *.no.test",
            "allow *.no.test",
        ]),
        ..Policy::default()
    };
    let lookup = |policy: &Policy, name: &str| policy.lookup(&name.parse().unwrap()).is_ok();
    for (name, found) in [
        ("a.test", true),
        ("b.a.test", false),
        ("time.test", true),
        ("r.test", true),
        ("a.no.test", false),
        ("evil.test", false),
    ] {
        assert_eq!(lookup(&policy, name), found, "{name}");
    }
    let open = Policy {
        open: true,
        ..policy
    };
    assert!(lookup(&open, "evil.test"));
    assert!(lookup(&open, "x.test"));
    assert!(!lookup(&open, "bad.a.test"));
}

#[test]
fn special_addresses_have_to_be_named_as_addresses() {
    let address = |policy: &Policy, address: &str, name: Option<&str>| {
        let name = name.map(|name| name.parse().unwrap());
        let address = address.parse().unwrap();
        let decided = policy.address(Protocol::Tcp, address, 443, name.as_ref());
        decided.map_err(|denial| denial.code)
    };
    let all_names = Policy {
        allow: all(&["*", "a.test"]),
        ..Policy::default()
    };
    for policy in [&all_names, &Policy::open()] {
        assert_eq!(address(policy, "93.184.216.34", None), Ok(()));
        assert_eq!(address(policy, "10.0.0.1", None), Err(Code::Private));
        let resolved = address(policy, "10.0.0.1", Some("a.test"));
        assert_eq!(resolved, Err(Code::ResolvedToPrivate));
        assert_eq!(
            address(policy, "169.254.169.254", None),
            Err(Code::Metadata)
        );
        assert_eq!(address(policy, "168.63.129.16", None), Err(Code::Metadata));
    }
    let named = Policy {
        allow: all(&["10.0.0.0/8:443", "169.254.169.254"]),
        ..Policy::default()
    };
    assert_eq!(address(&named, "10.0.0.1", Some("a.test")), Ok(()));
    assert_eq!(address(&named, "::ffff:10.0.0.1", None), Ok(()));
    assert_eq!(address(&named, "169.254.169.254", None), Ok(()));
    assert_eq!(address(&named, "127.0.0.1", None), Err(Code::Private));
    let private = Policy {
        open: true,
        private: true,
        ..Policy::default()
    };
    assert_eq!(address(&private, "127.0.0.1", None), Ok(()));
    assert_eq!(
        address(&private, "fd00:ec2::254", None),
        Err(Code::Metadata)
    );
}

#[test]
fn addresses_are_told_that_may_be_connected_to_on_some_port() {
    let told = |policy: &Policy, address: &str| {
        let told = policy.told(address.parse().unwrap(), &"a.test".parse().unwrap());
        told.map_err(|denial| denial.code)
    };
    let policy = Policy {
        allow: all(&["*", "10.0.0.0/8:22", "udp:192.168.0.1:53"]),
        rules: all(&["allow 127.0.0.1:8080", "allow GET 127.0.0.2/x"]),
        ..Policy::default()
    };
    for address in [
        "93.184.216.34",
        "10.1.2.3",
        "::ffff:10.1.2.3",
        "192.168.0.1",
        "127.0.0.1",
    ] {
        assert_eq!(told(&policy, address), Ok(()), "{address}");
    }
    for address in ["192.168.0.2", "127.0.0.2", "::1", "198.18.0.1", "0.0.0.0"] {
        let private = Err(Code::ResolvedToPrivate);
        assert_eq!(told(&policy, address), private, "{address}");
    }
    let metadata = Err(Code::Metadata);
    assert_eq!(told(&policy, "169.254.169.254"), metadata);
    let private = Policy {
        private: true,
        ..Policy::open()
    };
    assert_eq!(told(&private, "192.168.0.2"), Ok(()));
    assert_eq!(told(&private, "169.254.169.254"), metadata);
}

#[test]
fn a_name_that_only_a_glob_allows_is_known_as_one() {
    let glob = |allow: &[&str], rules: &[&str], open: bool| {
        let policy = Policy {
            allow: all(allow),
            rules: all(rules),
            open,
            ..Policy::default()
        };
        let glob = policy.glob_of(&"a.x.test".parse().unwrap());
        glob.map(|glob| glob.as_str().to_owned())
    };
    let wild = Some("*.x.test".to_owned());
    assert_eq!(glob(&["*.x.test"], &[], false), wild);
    assert_eq!(glob(&[], &["allow *.x.test"], false), wild);
    assert_eq!(glob(&["*.x.test"], &["deny a.x.test/y"], false), wild);
    assert_eq!(glob(&["*.x.test"], &[], true), None);
    assert_eq!(glob(&["*.x.test", "a.x.test:80"], &[], false), None);
    assert_eq!(glob(&["*.x.test"], &["allow GET a.x.test/y"], false), None);
    assert_eq!(glob(&["*.x.test", "*:80"], &[], false), None);
    assert_eq!(glob(&["b.x.test"], &[], false), None);
}

/// A name that leads to what is denied leads nowhere.
#[test]
fn a_denied_address_is_denied_by_whatever_name() {
    let name = "a.test".parse().unwrap();
    let address = |policy: &Policy, address: &str| {
        let address = address.parse().unwrap();
        let decided = policy.address(Protocol::Tcp, address, 443, Some(&name));
        decided.map_err(|denial| denial.code)
    };
    let of_list = Policy {
        allow: all(&["*", "10.0.0.0/8"]),
        deny: all(&["10.0.0.7", "93.184.216.34"]),
        ..Policy::default()
    };
    let of_rules = Policy {
        allow: all(&["*", "10.0.0.0/8"]),
        rules: all(&["allow 10.0.0.6", "deny 10.0.0.0/29", "deny 93.184.216.34"]),
        ..Policy::default()
    };
    for (policy, code) in [(of_list, Code::Denied), (of_rules, Code::RuleDenied)] {
        assert_eq!(address(&policy, "10.0.0.7"), Err(code));
        assert_eq!(address(&policy, "::ffff:10.0.0.7"), Err(code));
        assert_eq!(address(&policy, "93.184.216.34"), Err(code));
        assert_eq!(address(&policy, "10.0.0.9"), Ok(()));
    }
}

#[test]
fn what_is_denied_is_denied_by_every_protocol() {
    let policy = Policy {
        deny: all(&["192.0.2.1", "a.test:443", "tcp:b.test"]),
        rules: all(&["deny c.test"]),
        ..Policy::open()
    };
    let udp = |host: &str, port| {
        let decided = policy.connection(Protocol::Udp, &host.parse().unwrap(), port);
        decided.is_ok()
    };
    assert!(!udp("192.0.2.1", 443));
    assert!(!udp("a.test", 443));
    assert!(udp("a.test", 53));
    assert!(udp("b.test", 443));
    assert!(!udp("c.test", 443));
}

#[test]
fn what_rules_could_miss_is_refused() {
    let policy = Policy {
        allow: all(&["a.test", "b.test"]),
        rules: all(&["deny POST a.test/**"]),
        inspected: all(&["c.test:8443"]),
        ..Policy::default()
    };
    let request = |host: &str, method| {
        let decided = policy.request(&host.parse().unwrap(), 443, method, "/x");
        decided.map(drop).map_err(|denial| denial.code)
    };
    assert_eq!(request("a.test", "post"), Err(Code::Ambiguous));
    assert_eq!(request("a.test", "PUT"), Ok(()));
    assert_eq!(request("b.test", "post"), Ok(()));
    assert!(policy.is_http(8443) && !policy.is_http(8444));
}

/// What is denied by one protocol may be reached by the other.
#[test]
fn a_denial_by_one_protocol_denies_no_name() {
    let name: Name = "a.test".parse().unwrap();
    let address: IpAddr = "8.8.8.8".parse().unwrap();
    for (deny, is_denied) in [
        ("udp:*", false),
        ("udp:a.test", false),
        ("tcp:a.test", false),
        ("a.test", true),
        ("*", true),
    ] {
        let listed = Policy {
            deny: vec![deny.parse().unwrap()],
            ..Policy::open()
        };
        let ruled = Policy {
            rules: vec![format!("deny {deny}").parse().unwrap()],
            ..Policy::open()
        };
        for policy in [listed, ruled] {
            assert_eq!(policy.lookup(&name).is_err(), is_denied, "{deny}");
        }
    }
    for (deny, is_denied) in [("udp:8.8.8.8", false), ("8.8.8.8", true)] {
        let policy = Policy {
            deny: vec![deny.parse().unwrap()],
            ..Policy::open()
        };
        assert_eq!(policy.told(address, &name).is_err(), is_denied, "{deny}");
    }
}

/// Some networks take one of IPv6 there.
#[test]
fn an_address_that_is_denied_is_so_in_ipv6() {
    let policy = Policy {
        deny: vec!["8.8.8.8".parse().unwrap()],
        private: true,
        ..Policy::open()
    };
    for address in ["8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"] {
        let denied = policy.address(Protocol::Tcp, address.parse().unwrap(), 443, None);
        assert_eq!(denied.unwrap_err().code, Code::Denied, "{address}");
    }
    let other = "64:ff9b::808:809".parse().unwrap();
    assert!(policy.address(Protocol::Tcp, other, 443, None).is_ok());
}

#[test]
fn requests_are_not_sent_by_udp() {
    for rule in ["allow GET udp:a.test", "deny udp:a.test/x"] {
        let refused = rule.parse::<Rule>();
        assert!(matches!(refused, Err(RuleError::Udp(_))), "{rule}");
    }
    assert!("allow udp:a.test:123".parse::<Rule>().is_ok());
}

/// It is the host, whatever is denied of that.
#[test]
fn the_unspecified_address_is_no_address() {
    let policy = Policy {
        allow: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        deny: vec!["127.0.0.0/8".parse().unwrap()],
        private: true,
        ..Policy::open()
    };
    for address in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
        let denied = policy.address(Protocol::Tcp, address.parse().unwrap(), 80, None);
        assert_eq!(denied.unwrap_err().code, Code::Private, "{address}");
        let name: Name = "null.test".parse().unwrap();
        let denied = policy.address(Protocol::Tcp, address.parse().unwrap(), 80, Some(&name));
        assert_eq!(
            denied.unwrap_err().code,
            Code::ResolvedToPrivate,
            "{address}"
        );
    }
}
