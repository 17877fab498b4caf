//! What each question is answered.

use std::time::{Duration, Instant};

use hickory_resolver::proto::op::Edns;
use hickory_resolver::proto::rr::DNSClass;
use hickory_resolver::proto::rr::rdata::{CNAME, PTR, TXT};

use super::server::{Had, Say, record};
use super::*;
use crate::policy::Basis;
use crate::report::Scheme;

const A: RecordType = RecordType::A;
const AAAA: RecordType = RecordType::AAAA;

#[tokio::test]
async fn a_name_that_may_be_reached_has_its_addresses() {
    let mut guest = Guest::new(&["api.allowed.test"]).await;
    guest.upstream.has("api.allowed.test", &[PUBLIC, PUBLIC_V6]);
    // Letters of both cases, and options, are a way out for data.
    let mut asked = question("aPi.ALLOWED.test.", A);
    let edns = asked.edns.as_mut().unwrap();
    for (code, data) in [
        (8, &[0, 1, 24, 0, 192, 0, 2][..]),
        (10, b"01234567"),
        (12, &[0; 16]),
        (65_001, b"0123456789abcdef"),
    ] {
        let option = EdnsOption::Unknown(code, data.to_vec());
        edns.options_mut().insert(option);
    }
    let answer = guest.send(&asked, Transport::Udp).await;
    assert_eq!(addresses(&answer), [PUBLIC.parse::<IpAddr>().unwrap()]);
    assert_eq!(answer.id, 0x1234);
    assert_eq!(answer.message_type, MessageType::Response);
    assert!(answer.recursion_available && answer.recursion_desired);
    assert!(answer.queries[0].name().eq_case(asked.queries[0].name()));
    assert!(answer.answers[0].name.eq_case(asked.queries[0].name()));
    assert!((200..=300).contains(&answer.answers[0].ttl));
    assert_eq!(answer.edns.as_ref().unwrap().options().as_ref().len(), 0);
    let had = Had {
        name: "api.allowed.test".to_owned(),
        kind: A,
        options: 0,
        is_tcp: false,
    };
    assert_eq!(guest.upstream.had(), [had]);
    let names = Arc::clone(&guest.server.names);
    assert_eq!(
        names.of(PUBLIC.parse().unwrap()),
        [name("api.allowed.test")]
    );

    let report = guest.told().await;
    assert_eq!(report.scheme, Scheme::Dns);
    assert_eq!(
        (report.host.as_str(), report.method.as_str()),
        ("api.allowed.test", "A")
    );
    let basis = Basis::Rule("api.allowed.test".to_owned());
    assert_eq!(report.outcome, Outcome::Allowed(basis));

    let answer = guest.ask("api.allowed.test.", AAAA).await;
    assert_eq!(addresses(&answer), [PUBLIC_V6.parse::<IpAddr>().unwrap()]);
    assert_eq!(guest.upstream.had().len(), 1);
    // Whatever is known already is not asked for again.
    for kind in [A, AAAA] {
        assert_eq!(guest.ask("api.allowed.test.", kind).await.answers.len(), 1);
    }
    assert_eq!(guest.upstream.had(), []);
}

#[tokio::test]
async fn a_question_that_many_have_is_asked_once() {
    let guest = Guest::new(&["a.test"]).await;
    let until = Arc::new(tokio::sync::Notify::new());
    let records = vec![record(
        "a.test",
        RData::from(PUBLIC.parse::<IpAddr>().unwrap()),
    )];
    guest
        .upstream
        .says("a.test", A, Say::Held(Arc::clone(&until), records));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let server = guest.server.clone();
        let question = question("a.test.", A).to_vec().unwrap();
        asking.spawn(async move { server.answer(Transport::Udp, &question).await });
    }
    until.notify_one();
    let answers = asking.join_all().await;
    assert_eq!(answers.len(), 20);
    for answer in answers {
        assert_eq!(
            Message::from_vec(&answer.unwrap()).unwrap().answers.len(),
            1
        );
    }
    assert_eq!(guest.upstream.had().len(), 1);
}

#[tokio::test]
async fn nobody_hears_of_a_name_that_may_not_be_reached() {
    let mut guest = Guest::new(&["api.allowed.test", "*.wild.test"]).await;
    for refused in [
        "c2VjcmV0.evil.test.",
        "c2VjcmV0.api.allowed.test.",
        "allowed.test.",
        "xapi.allowed.test.",
        "api.allowed.test.evil.test.",
        "wild.test.",
        "localhost.",
        "metadata.google.internal.",
        "host.docker.internal.",
    ] {
        for kind in [A, AAAA, RecordType::HTTPS, RecordType::TXT, RecordType::MX] {
            let answer = guest.ask(refused, kind).await;
            assert_eq!(
                answer.response_code,
                ResponseCode::Refused,
                "{refused} {kind}"
            );
            let (number, text) = why(&answer).unwrap();
            assert_eq!(number, 18);
            let hint = refused.trim_end_matches('.').to_lowercase();
            let hint = format!("host_not_allowed: allow it with --allow-host {hint}");
            assert_eq!(text, hint);
            assert_eq!(guest.told_code().await, Code::NotAllowed);
        }
    }
    assert_eq!(guest.upstream.had(), []);

    guest.policy.send_modify(|policy| {
        let policy = Arc::make_mut(policy);
        policy.deny = vec!["api.allowed.test".parse().unwrap()];
    });
    let answer = guest.ask("api.allowed.test.", A).await;
    assert_eq!(answer.response_code, ResponseCode::Refused);
    assert_eq!(why(&answer).unwrap().0, 15);
    assert_eq!(guest.told_code().await, Code::Denied);
    assert_eq!(guest.upstream.had(), []);

    // Who does not know of extensions gets none.
    let mut asked = question("evil.test.", A);
    asked.edns = None;
    let answer = guest.send(&asked, Transport::Udp).await;
    assert_eq!(answer.response_code, ResponseCode::Refused);
    assert_eq!(answer.edns, None);
}

#[tokio::test]
async fn questions_of_other_kinds_carry_nothing() {
    let mut guest = Guest::with(Policy::open(), |_| {}).await;
    for kind in [
        RecordType::ANY,
        RecordType::AXFR,
        RecordType::IXFR,
        RecordType::NULL,
        RecordType::Unknown(250),
    ] {
        let answer = guest.ask("a.test.", kind).await;
        assert_eq!(answer.response_code, ResponseCode::Refused, "{kind}");
        assert_eq!(guest.told_code().await, Code::Rule);
    }
    let mut asked = question("version.bind.", RecordType::TXT);
    asked.queries[0].set_query_class(DNSClass::CH);
    let answer = guest.send(&asked, Transport::Udp).await;
    assert_eq!(answer.response_code, ResponseCode::Refused);
    for kind in [RecordType::HTTPS, RecordType::SVCB] {
        assert!(is_nothing(&guest.ask("a.test.", kind).await));
    }
    assert_eq!(guest.upstream.had(), []);

    let guest = Guest::new(&["a.test"]).await;
    for kind in [
        RecordType::TXT,
        RecordType::MX,
        RecordType::SRV,
        RecordType::NS,
        RecordType::SOA,
        RecordType::CAA,
        RecordType::CNAME,
        RecordType::NAPTR,
        RecordType::HTTPS,
        RecordType::PTR,
    ] {
        assert!(is_nothing(&guest.ask("a.test.", kind).await), "{kind}");
    }
    assert_eq!(guest.upstream.had(), []);
}

#[tokio::test]
async fn names_of_no_host_are_not_looked_up() {
    let mut guest = Guest::with(Policy::open(), |_| {}).await;
    for labels in [
        &[&b"evil"[..], b"test\0", b"allowed", b"test"][..],
        &[b"evil.allowed", b"test"],
        &[b"a b", b"test"],
        &[b"a\n", b"test"],
        &["b\u{fc}cher".as_bytes(), b"example"],
        &[b"b\xfccher", b"example"],
        &[b"xn--a-", b"test"],
        &[b"*", b"test"],
        &[b"a@b", b"test"],
        &[b"2130706433"],
        &[b"127", b"1"],
        &[b"0x7f", b"1"],
        &[b"0177", b"0", b"0", b"1"],
    ] {
        let mut asked = question("a.test.", A);
        let mut no_host = rr::Name::from_labels(labels.iter().copied()).unwrap();
        no_host.set_fqdn(true);
        asked.queries[0].set_name(no_host);
        let answer = guest.send(&asked, Transport::Udp).await;
        assert_eq!(answer.response_code, ResponseCode::NXDomain, "{labels:?}");
        assert_eq!(answer.queries, asked.queries);
        assert_eq!(guest.told_code().await, Code::Ambiguous, "{labels:?}");
    }
    let answer = guest.ask(".", RecordType::NS).await;
    assert_eq!(answer.response_code, ResponseCode::Refused);
    assert_eq!(guest.upstream.had(), []);
}

#[tokio::test]
async fn an_open_policy_has_records_of_all_types() {
    let guest = Guest::with(Policy::open(), |_| {}).await;
    let text = RData::TXT(TXT::new(vec!["v=spf1 -all".to_owned()]));
    let foreign = record("a.test", RData::from(PUBLIC.parse::<IpAddr>().unwrap()));
    let records = vec![record("a.test", text.clone()), foreign];
    guest
        .upstream
        .says("a.test", RecordType::TXT, Say::Records(records));
    let answer = guest.ask("a.test.", RecordType::TXT).await;
    assert_eq!(answer.answers.len(), 1);
    assert_eq!(answer.answers[0].data, text);
    assert_eq!(answer.answers[0].ttl, 300);
    let answer = guest.ask("none.test.", RecordType::TXT).await;
    assert_eq!(answer.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn addresses_that_are_not_of_the_internet_are_left_out() {
    let mut guest = Guest::new(&["*.rebind.test", "10.0.0.7:22"]).await;
    let upstream = &guest.upstream;
    upstream.has("private.rebind.test", &["10.0.0.1", "::1"]);
    upstream.has("cloud.rebind.test", &["169.254.169.254"]);
    upstream.has(
        "mixed.rebind.test",
        &["192.168.0.1", PUBLIC, "127.0.0.1", "fd00::1"],
    );
    upstream.has("named.rebind.test", &["10.0.0.7"]);
    upstream.has("mapped.rebind.test", &["::ffff:10.0.0.7"]);
    for (asked, kind, code) in [
        ("private.rebind.test.", A, Code::ResolvedToPrivate),
        ("private.rebind.test.", AAAA, Code::ResolvedToPrivate),
        ("mixed.rebind.test.", AAAA, Code::ResolvedToPrivate),
        ("cloud.rebind.test.", A, Code::Metadata),
    ] {
        let answer = guest.ask(asked, kind).await;
        assert_eq!(answer.response_code, ResponseCode::Refused, "{asked}");
        assert!(why(&answer).unwrap().1.starts_with(code.as_str()));
        assert_eq!(guest.told_code().await, code);
    }
    let names = &guest.server.names;
    assert_eq!(names.of("10.0.0.1".parse().unwrap()), []);
    let answer = guest.ask("mixed.rebind.test.", A).await;
    assert_eq!(addresses(&answer), [PUBLIC.parse::<IpAddr>().unwrap()]);
    assert_eq!(names.of("127.0.0.1".parse().unwrap()), []);
    let answer = guest.ask("named.rebind.test.", A).await;
    assert_eq!(addresses(&answer), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
    assert!(is_nothing(&guest.ask("mapped.rebind.test.", AAAA).await));
}

#[tokio::test]
async fn what_is_not_there_is_told_as_it_is() {
    let mut guest = Guest::new(&["*.test"]).await;
    guest.upstream.has("v4.test", &[PUBLIC]);
    guest
        .upstream
        .says("v6fails.test", AAAA, Say::Code(ResponseCode::ServFail));
    let only = record(
        "v6fails.test",
        RData::from(PUBLIC.parse::<IpAddr>().unwrap()),
    );
    guest
        .upstream
        .says("v6fails.test", A, Say::Records(vec![only]));
    guest
        .upstream
        .says("broken.test", A, Say::Code(ResponseCode::ServFail));

    let answer = guest.ask("none.test.", A).await;
    assert_eq!(answer.response_code, ResponseCode::NXDomain);
    assert_eq!(guest.told_code().await, Code::Resolve);
    assert!(is_nothing(&guest.ask("v4.test.", AAAA).await));
    guest.told().await;
    let answer = guest.ask("broken.test.", A).await;
    assert_eq!(answer.response_code, ResponseCode::ServFail);
    assert_eq!(why(&answer).unwrap().0, 23);
    assert_eq!(guest.told_code().await, Code::Resolve);

    // One family does not need the other.
    assert_eq!(guest.ask("v6fails.test.", A).await.answers.len(), 1);
    let resolver = &guest.server.resolver;
    let resolved = resolver.resolve(&name("v6fails.test")).await.unwrap();
    assert_eq!(resolved.addresses, [PUBLIC.parse::<IpAddr>().unwrap()]);
    let error = resolver.resolve(&name("none.test")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "none.test: there is no such name; look whether it is spelt right"
    );
}

/// Time is not waited for: it passes when nothing else is to be done.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_is_told_before_the_guest_asks_again() {
    let mut guest = Guest::new(&["*.test"]).await;
    guest.upstream.says("silent.test", A, Say::Nothing);
    let began = tokio::time::Instant::now();
    let answer = guest.ask("silent.test.", A).await;
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(answer.response_code, ResponseCode::ServFail);
    assert_eq!(why(&answer).unwrap().0, 22);
    assert_eq!(guest.told_code().await, Code::Resolve);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_at_once() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let closed = socket.local_addr().unwrap();
    drop(socket);
    let guest = Guest::with(allowing(&["*.test"]), |settings| {
        settings.servers = vec![closed];
    });
    let guest = guest.await;
    let began = Instant::now();
    let answer = guest.ask("a.test.", A).await;
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(answer.response_code, ResponseCode::ServFail);
    assert!(matches!(why(&answer).unwrap().0, 22 | 23));
}

#[tokio::test]
async fn one_server_of_several_is_enough() {
    let silent = Upstream::new().await;
    silent.says("a.test", A, Say::Nothing);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let closed = socket.local_addr().unwrap();
    drop(socket);
    for other in [silent.address, closed] {
        let guest = Guest::with(allowing(&["*.test"]), |settings| {
            settings.servers.insert(0, other);
        });
        let guest = guest.await;
        guest.upstream.has("a.test", &[PUBLIC]);
        assert_eq!(guest.ask("a.test.", A).await.answers.len(), 1);
    }
}

#[tokio::test]
async fn a_flow_reaches_what_a_question_would_have_told() {
    let guest = Guest::new(&["*.rebind.test"]).await;
    let mixed = ["10.0.0.1", PUBLIC, PUBLIC_V6, "fd00::1"];
    guest.upstream.has("mixed.rebind.test", &mixed);
    guest.upstream.has("private.rebind.test", &["10.0.0.1"]);
    let policy = Arc::clone(&guest.server.policy.borrow());
    let reach = async |text: &str| {
        let reached = guest.server.resolver.reach(&policy, &name(text)).await;
        reached.map_err(|unreached| unreached.denial().code)
    };
    let reached = reach("mixed.rebind.test").await.unwrap();
    let public = [PUBLIC, PUBLIC_V6].map(|text| text.parse::<IpAddr>().unwrap());
    assert_eq!(reached.addresses, public);
    assert_eq!(reached.basis, Basis::Rule("*.rebind.test".to_owned()));
    assert!(reached.ttl > Duration::from_secs(3000));
    let private = reach("private.rebind.test").await;
    assert_eq!(private, Err(Code::ResolvedToPrivate));
    assert_eq!(reach("none.rebind.test").await, Err(Code::Resolve));
    guest.upstream.had();
    assert_eq!(reach("evil.test").await, Err(Code::NotAllowed));
    assert_eq!(guest.upstream.had(), []);
}

#[tokio::test]
async fn other_names_of_a_host_are_followed() {
    let guest = Guest::new(&["www.a.test"]).await;
    let alias = RData::CNAME(CNAME(rr::Name::from_ascii("cdn.b.test.").unwrap()));
    let alias = record("www.a.test", alias);
    guest.upstream.has("cdn.b.test", &[PUBLIC]);
    guest
        .upstream
        .says("www.a.test", A, Say::Records(vec![alias]));
    let answer = guest.ask("www.a.test.", A).await;
    assert_eq!(addresses(&answer), [PUBLIC.parse::<IpAddr>().unwrap()]);
    let asked: Vec<String> = guest
        .upstream
        .had()
        .into_iter()
        .map(|had| had.name)
        .collect();
    assert_eq!(asked, ["www.a.test", "cdn.b.test"]);
    // Its address stands for the name that was asked for, not for that of whoever serves it.
    let names = guest.server.names.of(PUBLIC.parse().unwrap());
    assert_eq!(names, [name("www.a.test")]);
}

#[tokio::test]
async fn an_answer_fits_or_says_that_it_does_not() {
    let guest = Guest::new(&["many.test", "huge.test"]).await;
    let many = (0..32).map(|number| {
        record(
            "many.test",
            RData::from(IpAddr::from([93, 184, 215, number])),
        )
    });
    // It does not fit for us either, and is fetched by TCP.
    guest
        .upstream
        .says("many.test", A, Say::Long(many.collect()));
    let mut asked = question("many.test.", A);
    assert_eq!(guest.send(&asked, Transport::Udp).await.answers.len(), 32);
    assert!(guest.upstream.had().iter().any(|had| had.is_tcp));
    for payload in [None, Some(0), Some(512)] {
        asked.edns = payload.map(|payload| {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            edns
        });
        let bytes = asked.to_vec().unwrap();
        let answer = guest.server.answer(Transport::Udp, &bytes).await.unwrap();
        assert!(answer.len() <= 512);
        let answer = Message::from_vec(&answer).unwrap();
        assert!(answer.truncation && answer.answers.is_empty());
        let answer = guest.send(&asked, Transport::Tcp).await;
        assert!(!answer.truncation && answer.answers.len() == 32);
    }
    // There is an end to it.
    let huge = (0..=255).map(|number| {
        record(
            "huge.test",
            RData::from(IpAddr::from([93, 184, 215, number])),
        )
    });
    guest
        .upstream
        .says("huge.test", A, Say::Long(huge.collect()));
    let answer = guest.ask("huge.test.", A).await;
    assert_eq!(answer.answers.len(), 32);
}

#[tokio::test]
async fn hosts_that_are_known_are_not_asked_for() {
    let hosts = [
        ("db.test", "10.0.0.7"),
        ("db.test", PUBLIC_V6),
        ("web.test", PUBLIC),
    ];
    let hosts = hosts.map(|(host, address)| (name(host), address.parse().unwrap()));
    let policy = allowing(&["db.test", "10.0.0.0/8"]);
    let guest = Guest::with(policy, |settings| settings.hosts = hosts.to_vec()).await;
    let answer = guest.ask("db.test.", A).await;
    assert_eq!(addresses(&answer), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
    let answer = guest.ask("db.test.", AAAA).await;
    assert_eq!(addresses(&answer), [PUBLIC_V6.parse::<IpAddr>().unwrap()]);
    // To be known is not to be allowed.
    let answer = guest.ask("web.test.", A).await;
    assert_eq!(answer.response_code, ResponseCode::Refused);
    assert_eq!(guest.upstream.had(), []);
}

#[tokio::test]
async fn an_address_has_the_names_that_it_was_told_for() {
    let mut guest = Guest::new(&["a.test", "b.test"]).await;
    guest.upstream.has("a.test", &["93.184.215.14"]);
    guest.ask("a.test.", A).await;
    guest.told().await;
    guest.upstream.had();
    let answer = guest
        .ask("14.215.184.93.in-addr.arpa.", RecordType::PTR)
        .await;
    let full = rr::Name::from_ascii("a.test.").unwrap();
    assert_eq!(answer.answers[0].data, RData::PTR(PTR(full)));
    guest.told().await;
    for unknown in [
        "1.0.0.10.in-addr.arpa.",
        "15.215.184.93.in-addr.arpa.",
        "93.in-addr.arpa.",
    ] {
        let answer = guest.ask(unknown, RecordType::PTR).await;
        assert_eq!(answer.response_code, ResponseCode::Refused, "{unknown}");
    }
    // What is refused by now is not told any more.
    guest
        .policy
        .send_modify(|policy| Arc::make_mut(policy).allow.clear());
    let answer = guest
        .ask("14.215.184.93.in-addr.arpa.", RecordType::PTR)
        .await;
    assert_eq!(answer.response_code, ResponseCode::Refused);
    assert_eq!(guest.upstream.had(), []);
}

#[tokio::test]
async fn each_name_has_an_address_of_its_own_if_that_is_wanted() {
    let policy = allowing(&["*.test"]);
    let mut guest = Guest::with(policy, |settings| settings.synthetic = true).await;
    guest.upstream.has("a.test", &[PUBLIC]);
    guest.upstream.has("b.test", &[PUBLIC]);
    guest.upstream.has("private.test", &["10.0.0.1"]);
    for (asked, ipv4, ipv6) in [
        ("a.test", "198.19.0.1", "fdf1:a5f1:a5f2::1"),
        ("b.test", "198.19.0.2", "fdf1:a5f1:a5f2::2"),
    ] {
        for (kind, address) in [(A, ipv4), (AAAA, ipv6), (A, ipv4)] {
            let answer = guest.ask(&format!("{asked}."), kind).await;
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(addresses(&answer), [address]);
            assert_eq!(guest.server.names.of_synthetic(address), Some(name(asked)));
        }
    }
    let answer = guest.ask("2.0.19.198.in-addr.arpa.", RecordType::PTR).await;
    let full = rr::Name::from_ascii("b.test.").unwrap();
    assert_eq!(answer.answers[0].data, RData::PTR(PTR(full)));
    // A name has one only if it leads somewhere.
    let answer = guest.ask("none.test.", A).await;
    assert_eq!(answer.response_code, ResponseCode::NXDomain);
    let answer = guest.ask("private.test.", A).await;
    assert_eq!(answer.response_code, ResponseCode::Refused);
    for _ in 0..8 {
        guest.told().await;
    }
    assert_eq!(guest.told_code().await, Code::ResolvedToPrivate);
}
