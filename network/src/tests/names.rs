//! Flows for names.

use std::net::Ipv4Addr;

use super::*;

/// A question for the addresses of a name, as a guest's resolver sends it.
fn question(name: &str) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The IPv4 addresses in the answer to such a question.
fn addresses(answer: &[u8]) -> Vec<Ipv4Addr> {
    let answer = hickory_resolver::proto::op::Message::from_vec(answer).unwrap();
    let of = |record: &hickory_resolver::proto::rr::Record| match &record.data {
        hickory_resolver::proto::rr::RData::A(address) => Some(address.0),
        _ => None,
    };
    answer.answers.iter().filter_map(of).collect()
}

/// Asks whatever server for a name.
async fn resolve(gateway: &Arc<Gateway>, name: &str) -> Vec<Ipv4Addr> {
    let kind = SockType::SeqPacket;
    let (guest, host) =
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let (sender, mut answers) = mpsc::channel(4);
    let tuple = to("203.0.113.9:53".parse().unwrap());
    let flow = gateway.begin(7, Protocol::Udp, tuple, host, sender);
    assert_eq!(next(&mut answers).await, Answer::Accept);
    let guest = Messages::new(guest).unwrap();
    guest.send(&question(name)).await.unwrap();
    let mut buffer = [0; 1500];
    let len = timeout(PATIENCE, guest.receive(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    flow.abort();
    addresses(&buffer[..len])
}

fn named(policy: Policy, synthetic: bool, reporter: Reporter) -> Arc<Gateway> {
    let mut settings = settings(policy, reporter);
    settings.dns.synthetic = synthetic;
    let known = [
        ("db.test", Ipv4Addr::LOCALHOST),
        ("evil.test", Ipv4Addr::LOCALHOST),
    ];
    let known = known.map(|(name, address)| (name.parse().unwrap(), address.into()));
    settings.dns.hosts = known.to_vec();
    Arc::new(Gateway::new(settings))
}

/// A policy for one name.
fn only_db(port: u16) -> Policy {
    Policy {
        allow: vec![
            format!("db.test:{port}").parse().unwrap(),
            // So that names may lead there at all.
            "127.0.0.0/8:1".parse().unwrap(),
        ],
        private: true,
        ..Policy::default()
    }
}

/// What is said to a connection that the guest gives up then.
async fn ask(gateway: &Arc<Gateway>, address: Ipv4Addr, port: u16) -> Answer {
    let (_guest, mut answers, _flow) = begin(gateway, (address, port).into());
    next(&mut answers).await
}

/// What is not HTTP is decided by the names that its address was the answer for.
#[tokio::test]
async fn a_connection_may_be_for_the_name_that_was_asked_for() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    for synthetic in [false, true] {
        let (reporter, mut reports) = report::channel(64);
        let gateway = named(only_db(port), synthetic, reporter);
        let ask = async |address, port| ask(&gateway, address, port).await;
        let refused = Answer::Refuse(Refusal::Reset);
        // Nobody has asked for a name yet.
        assert_eq!(ask(Ipv4Addr::LOCALHOST, port).await, refused);
        assert!(resolve(&gateway, "evil.test").await.is_empty());
        let found = resolve(&gateway, "DB.test").await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0] == Ipv4Addr::LOCALHOST, !synthetic);
        assert_eq!(ask(found[0], port).await, Answer::Accept);
        drop(server.accept().await.unwrap());
        assert_eq!(ask(found[0], port ^ 1).await, refused);
        let mut told = Vec::new();
        while told.len() < 5 {
            let report = timeout(PATIENCE, reports.next()).await.unwrap().unwrap().1;
            told.push((report.scheme, report.host, report.outcome));
        }
        let by = Outcome::Allowed(Basis::Rule(format!("db.test:{port}")));
        assert!(
            told.contains(&(Scheme::Tcp, format!("db.test:{port}"), by)),
            "{told:?}"
        );
        let of_evil = |(scheme, host, outcome): &(Scheme, String, Outcome)| {
            *scheme == Scheme::Dns
                && host == "evil.test"
                && matches!(outcome, Outcome::Refused(denial) if denial.code == Code::NotAllowed)
        };
        assert!(told.iter().any(of_evil), "{told:?}");
    }
}

/// Where a name leads is known to a script, whatever address stands for it.
#[tokio::test]
async fn a_script_is_shown_the_name_and_where_it_leads() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    for synthetic in [false, true] {
        let body = "if conn.host != \"db.test\" { deny(conn.host) } \
             if !conn.address_is(\"127.0.0.0/8\") { deny(conn.address) }";
        let policy = Policy {
            script: judge(body),
            ..policy(true)
        };
        let gateway = named(policy, synthetic, report::channel(64).0);
        let ask = async |address| ask(&gateway, address, port).await;
        let found = resolve(&gateway, "db.test").await;
        assert_eq!(ask(found[0]).await, Answer::Accept);
        let evil = resolve(&gateway, "evil.test").await;
        assert_eq!(ask(evil[0]).await, Answer::Refuse(Refusal::Reset));
        // Synthetic addresses are of one name, others of all that lead there.
        let answer = ask(found[0]).await;
        assert_eq!(answer == Answer::Accept, synthetic);
    }
}

/// Of two names with one address the one that is denied counts.
#[tokio::test]
async fn an_address_of_a_denied_name_is_denied() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let policy = Policy {
        private: true,
        deny: vec!["evil.test:1-65535".parse().unwrap()],
        ..Policy::open()
    };
    let gateway = named(policy, false, report::channel(64).0);
    let ask = async || ask(&gateway, Ipv4Addr::LOCALHOST, port).await;
    assert_eq!(resolve(&gateway, "db.test").await, [Ipv4Addr::LOCALHOST]);
    assert_eq!(ask().await, Answer::Accept);
    assert_eq!(resolve(&gateway, "evil.test").await, [Ipv4Addr::LOCALHOST]);
    assert_eq!(ask().await, Answer::Refuse(Refusal::Reset));
}

/// What names an address has is forgotten after a while; what a flow was decided by is not.
#[tokio::test]
async fn a_flow_outlives_what_is_remembered_of_names() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let gateway = named(only_db(port), false, report::channel(64).0);
    let found = resolve(&gateway, "db.test").await;
    let (mut guest, mut answers, _flow) = begin(&gateway, (found[0], port).into());
    assert_eq!(next(&mut answers).await, Answer::Accept);
    let (mut outside, _) = server.accept().await.unwrap();
    // Others take its place.
    let names = &gateway.dialer().names;
    for number in 0..100 {
        let other = format!("other{number}.test").parse().unwrap();
        names.learn(&other, &[found[0].into()], Duration::from_secs(7200));
    }
    assert!(
        !names
            .of(found[0].into())
            .iter()
            .any(|name| name.as_str() == "db.test")
    );
    let more = "more.test".parse().unwrap();
    gateway.change(|policy| policy.allow.push(more));
    guest.write_all(b"x").await.unwrap();
    assert_eq!(outside.read_u8().await.unwrap(), b'x');
    // A change that changes nothing is none.
    let mut changes = gateway.changes();
    gateway.change(|_| ());
    assert!(!changes.has_changed().unwrap());
    changes.mark_unchanged();
    // It ends when its own name may not be reached any more.
    gateway.change(|policy| policy.allow.remove(0));
    assert_eq!(next(&mut answers).await, Answer::Close);
}

/// A flow for a name goes on to an address, which may come to be denied.
#[tokio::test]
async fn a_flow_for_a_name_ends_for_its_address() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let (reporter, mut reports) = report::channel(64);
    let gateway = named(policy(true), true, reporter);
    let found = resolve(&gateway, "db.test").await;
    let (_guest, mut answers, _) = begin(&gateway, (found[0], port).into());
    assert_eq!(next(&mut answers).await, Answer::Accept);
    let (mut outside, _) = server.accept().await.unwrap();
    gateway.change(|policy| policy.deny.push("evil.test".parse().unwrap()));
    gateway.change(|policy| policy.deny.push("127.0.0.0/8".parse().unwrap()));
    assert_eq!(next(&mut answers).await, Answer::Close);
    assert!(outside.read_u8().await.is_err());
    loop {
        let (_, report) = timeout(PATIENCE, reports.next()).await.unwrap().unwrap();
        if report.scheme == Scheme::Tcp {
            let outcome = report.outcome;
            assert!(matches!(outcome, Outcome::Refused(denial) if denial.code == Code::Denied));
            break;
        }
    }
}
