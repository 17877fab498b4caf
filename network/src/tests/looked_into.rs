//! Flows to ports of HTTP, which are looked into.

use super::*;
use crate::host::Host;
use crate::http::{Connected, Dial, Plain};
use crate::tls::{Authority, ClientCertificate, Upstream};
use crate::{Inspection, dial};

/// A gateway that looks into HTTP.
fn inspecting(policy: Policy, reporter: Reporter) -> Arc<Gateway> {
    let mut settings = settings(policy, reporter);
    settings.inspection = Some(Inspection {
        authority: Arc::new(Authority::new().unwrap()),
        upstream: Arc::new(Upstream::new(&[], Vec::new()).unwrap()),
        editor: Arc::new(Plain),
    });
    Arc::new(Gateway::new(settings))
}

#[tokio::test]
async fn a_host_that_gets_a_certificate_is_not_spoken_to_by_the_guest_itself() {
    let mut settings = settings(policy(true), report::channel(64).0);
    let (client, _) = ClientCertificate::made_up(&["api.test:443"]);
    settings.inspection = Some(Inspection {
        authority: Arc::new(Authority::new().unwrap()),
        upstream: Arc::new(Upstream::new(&[], vec![client]).unwrap()),
        editor: Arc::new(Plain),
    });
    let gateway = Gateway::new(settings);
    let splices = |host: &str, port| gateway.splices(&host.parse().unwrap(), port);
    assert!(!splices("api.test", 443));
    assert!(splices("api.test", 8443) && splices("other.test", 443));
}

#[tokio::test]
async fn connections_are_kept_alive() {
    use nix::sys::socket::{getsockopt, sockopt};

    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let outside = dial::connect(address, dial::CONNECT_WITHIN).await.unwrap();
    assert!(getsockopt(&outside, sockopt::KeepAlive).unwrap());
    // The quickest of those that translate addresses forget a connection after four minutes.
    assert!(getsockopt(&outside, sockopt::TcpKeepIdle).unwrap() < 4 * 60);
}

/// So that servers that speak first are not looked for in vain.
#[tokio::test]
async fn a_connection_to_a_port_of_http_that_says_nothing_is_told_of() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let odd = server.local_addr().unwrap();
    let policy = Policy {
        rules: vec![format!("deny PUT *:{}", odd.port()).parse().unwrap()],
        ..policy(true)
    };
    for (destination, scheme) in [
        (odd, Scheme::Tcp),
        ("192.0.2.1:443".parse().unwrap(), Scheme::Tls),
        ("192.0.2.1:80".parse().unwrap(), Scheme::Http),
    ] {
        let (reporter, mut reports) = report::channel(64);
        let policy = match destination == odd {
            true => policy.clone(),
            // Nothing is connected to before it says something.
            false => Policy {
                allow: vec!["a.test".parse().unwrap()],
                ..Policy::default()
            },
        };
        let gateway = inspecting(policy, reporter);
        let (guest, mut answers, flow) = begin(&gateway, destination);
        assert_eq!(next(&mut answers).await, Answer::Accept);
        tokio::time::pause();
        let (_, report) = reports.next().await.unwrap();
        tokio::time::resume();
        assert_eq!(report.scheme, scheme);
        assert_eq!(report.destination, Some(destination));
        let Outcome::Refused(denial) = report.outcome else {
            panic!("{destination} was allowed");
        };
        assert_eq!(denial.code, Code::UnknownProtocol, "{destination}");
        assert_eq!(denial.host, destination.to_string());
        flow.abort();
        drop(guest);
    }
}

#[tokio::test]
async fn connections_that_are_looked_into_are_bounded() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let gateway = inspecting(policy(true), report::channel(64).0);
    let (host, port) = (Host::from(address.ip()), address.port());
    let dial = || gateway.proxy(None).unwrap().dial;
    let mut all = Vec::new();
    for _ in 0..dial::MAX_CONNECTIONS {
        all.push(dial().dial(&host, port).await.unwrap());
        drop(server.accept().await.unwrap());
    }
    tokio::time::pause();
    let denial = dial().dial(&host, port).await.unwrap_err();
    tokio::time::resume();
    assert_eq!(
        (denial.code, denial.host),
        (Code::Crowded, address.to_string())
    );
    // So is the one that is made before anything was said.
    let port_of_http = Policy {
        rules: vec![format!("deny PUT *:{port}").parse().unwrap()],
        ..policy(true)
    };
    gateway.change(|policy| *policy = port_of_http);
    let (_guest, mut answers, _) = begin(&gateway, address);
    tokio::time::pause();
    assert_eq!(next(&mut answers).await, Answer::Refuse(Refusal::Host));
    tokio::time::resume();
    // There is room when one ends, or is passed on as it is.
    all.pop();
    let more = dial().dial(&host, port).await.unwrap();
    let _passed_on = Connected::into_stream(more);
    dial().dial(&host, port).await.unwrap();
}

/// A connection that is passed on as it is ends when its port comes to be looked into: what it
/// carries nobody has seen, whether its host is denied then or not.
#[tokio::test]
async fn a_connection_that_nobody_sees_ends_when_its_port_is_looked_into() {
    for denies_host in [false, true] {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let gateway = inspecting(policy(true), report::channel(64).0);
        let (_guest, mut answers, _flow) = begin(&gateway, address);
        assert_eq!(next(&mut answers).await, Answer::Accept);
        let _accepted = server.accept().await.unwrap();
        gateway.change(|policy| {
            let rule = format!("deny PUT *:{}", address.port());
            policy.rules = vec![rule.parse().unwrap()];
            if denies_host {
                policy.deny.push("127.0.0.0/8".parse().unwrap());
            }
            policy.allow.push("other.test".parse().unwrap());
        });
        assert_eq!(next(&mut answers).await, Answer::Close, "{denies_host}");
    }
}

/// A connection is judged again by the address that it was allowed for, not by where that
/// leads.
#[tokio::test]
async fn a_connection_stays_as_long_as_its_address_is_allowed() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let named = Policy {
        allow: vec![format!("198.18.0.1:{port}").parse().unwrap()],
        ..Policy::default()
    };
    let gateway = inspecting(named.clone(), report::channel(64).0);
    let dial = gateway.proxy(None).unwrap().dial;
    let host: Host = "198.18.0.1".parse().unwrap();
    let address = dial.dial(&host, port).await.unwrap().address();
    assert_eq!(address.to_string(), "198.18.0.1");
    let code = |policy: &Policy, host: &Host| {
        let stays = dial.may_stay(policy, host, port, address);
        stays.err().map(|denial| denial.code)
    };
    assert_eq!(code(&named, &host), None);
    // The gateway and the loopback interface are one host.
    for denied in ["198.18.0.1", "127.0.0.0/8"] {
        let policy = Policy {
            deny: vec![denied.parse().unwrap()],
            ..named.clone()
        };
        assert_eq!(code(&policy, &host), Some(Code::Denied), "{denied}");
    }
    let name: Host = "db.test".parse().unwrap();
    for (private, host, expected) in [
        (true, &host, None),
        (false, &host, Some(Code::Private)),
        (false, &name, Some(Code::ResolvedToPrivate)),
    ] {
        assert_eq!(code(&policy(private), host), expected);
    }
}
