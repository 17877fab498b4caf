//! Attempts to get around the policy of a network, from inside a real guest whose program is
//! root there, against an internet that writes down all that it sees.
//!
//! Each attempt has an id, and says what the guest sees, what is told of it, and what anybody
//! outside may have seen. After each, something that is allowed has to work.

#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod attempt;
mod guest;

use attempt::{
    Policy, addresses, changes, http, make, names, nothing, protocols, secrets, secure, web,
};
use flashpan::Network;
use flashpan_tests::internet::Internet;

/// A list of hosts that may be reached, and nothing else.
const SEALED: Policy = Policy {
    network: Network::Sealed,
    allow: &[
        "alive.allowed.test",
        "api.allowed.test",
        "port.allowed.test:7000",
        "literal.allowed.test",
        "web.allowed.test",
        "udp:time.allowed.test:123",
        "*.glob.test",
        // Somebody's own network, by one port.
        "10.1.0.0/16:5432",
    ],
    private: false,
    more: nothing,
};

/// The internet.
const OPEN: Policy = Policy {
    network: Network::Open,
    allow: &[],
    private: false,
    more: nothing,
};

/// Addresses of networks besides, but not named.
const PRIVATE: Policy = Policy {
    network: Network::Open,
    allow: &[],
    private: true,
    more: nothing,
};

/// Some hosts, and secrets for others.
const SECRET: Policy = Policy {
    network: Network::Sealed,
    allow: &[
        "alive.allowed.test",
        "web.allowed.test",
        "turn.allowed.test",
    ],
    private: false,
    more: secrets::kept,
};

/// Some hosts, all of whose requests are looked at.
const HTTP: Policy = Policy {
    network: Network::Sealed,
    allow: &["alive.allowed.test", "*.allowed.test", "*.glob.test"],
    private: false,
    more: http::kept,
};

/// A script, a callback and rules that requests with a secret are shown to.
const SHOWN: Policy = Policy {
    network: Network::Sealed,
    allow: &["alive.allowed.test"],
    private: false,
    more: secrets::shown,
};

fn prepare(internet: &mut Internet) {
    for (name, addresses) in names::ZONES {
        internet.name(name, addresses);
    }
    for (name, addresses) in web::ZONES {
        internet.name(name, addresses);
    }
    for (name, addresses) in addresses::ZONES {
        internet.name(name, addresses);
    }
    for port in [21, 22, 25, 443, 853, 5432] {
        internet.serve_tcp(port);
    }
    internet.serve_http(80);
    internet.flood_tcp(7001);
    internet.serve_udp("93.184.216.12", 123);
    internet.serve_udp("93.184.216.10", 443);
    internet.host_service(6000);
}

#[test]
fn a_list_of_hosts_cannot_be_walked_around() {
    make(
        SEALED,
        prepare,
        &[
            names::HOSTS,
            addresses::RESOLVED,
            names::DNS,
            protocols::SEALED,
            web::HOSTS,
            web::PROTOCOLS,
            names::LIMITS,
        ],
    );
}

#[test]
fn the_internet_is_not_the_host_nor_its_networks() {
    make(OPEN, prepare, &[addresses::SPECIAL, protocols::OPEN]);
}

#[test]
fn what_clouds_tell_their_machines_has_to_be_named() {
    make(PRIVATE, prepare, &[addresses::METADATA]);
}

fn prepare_web(internet: &mut Internet) {
    for (name, addresses) in secure::ZONES {
        internet.name(name, addresses);
    }
    internet.serve_web(secrets::VALUES);
}

#[test]
fn a_secret_and_what_keeps_it_cannot_be_got_at() {
    make(
        SECRET,
        prepare_web,
        &[
            secure::HTTP2,
            secure::TLS,
            secure::SECRETS,
            secrets::PLACES,
            changes::WHILE_IT_RUNS,
        ],
    );
}

#[test]
fn who_looks_at_requests_sees_no_secret() {
    make(SHOWN, prepare_web, &[secrets::SHOWN]);
}

#[test]
fn a_request_has_one_meaning_whatever_it_looks_like() {
    let prepare = |internet: &mut Internet| {
        for (name, addresses) in http::ZONES {
            internet.name(name, addresses);
        }
        internet.serve_web(&["c4n4ry of nobody"]);
    };
    make(
        HTTP,
        prepare,
        &[http::FRAMING, http::RULES, http::FRAMES, http::HOSTS],
    );
}
