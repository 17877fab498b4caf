//! Questions of a guest, and a name server that keeps what it was asked.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod answers;
mod hostile;
mod limits;
mod serve;
mod server;

use std::net::IpAddr;
use std::sync::Arc;

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_resolver::proto::rr::{self, RData, RecordType};
use tokio::sync::watch;

use self::server::Server as Upstream;
use super::{Resolver, Server, Settings, Transport};
use crate::host::Name;
use crate::names::Names;
use crate::policy::{Code, Policy};
use crate::report::{self, Outcome, Report, Reports};

/// Addresses of the internet, which no server in these tests has.
const PUBLIC: &str = "93.184.215.14";
const PUBLIC_V6: &str = "2606:2800:21f:cb07:6820:80da:af6b:8b2c";

struct Guest {
    upstream: Upstream,
    server: Server,
    policy: watch::Sender<Arc<Policy>>,
    reports: Reports,
}

impl Guest {
    /// A guest that may reach these hosts.
    async fn new(allow: &[&str]) -> Self {
        Self::with(allowing(allow), |_| {}).await
    }

    async fn with(policy: Policy, set: impl FnOnce(&mut Settings)) -> Self {
        let upstream = Upstream::new().await;
        let mut settings = Settings {
            servers: vec![upstream.address],
            ..Settings::default()
        };
        set(&mut settings);
        let (reporter, reports) = report::channel(10_000);
        let (sender, policy) = watch::channel(Arc::new(policy));
        let server = Server {
            resolver: Arc::new(Resolver::new(settings)),
            names: Arc::new(Names::new()),
            reporter,
            policy,
        };
        Self {
            upstream,
            server,
            policy: sender,
            reports,
        }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        self.send(&question(name, kind), Transport::Udp).await
    }

    async fn send(&self, question: &Message, transport: Transport) -> Message {
        let question = question.to_vec().unwrap();
        let answer = self.server.answer(transport, &question).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }

    /// The one thing that was told.
    async fn told(&mut self) -> Report {
        let (lost, report) = self.reports.next().await.unwrap();
        assert_eq!(lost, 0);
        report
    }

    async fn told_code(&mut self) -> Code {
        match self.told().await.outcome {
            Outcome::Refused(denial) => denial.code,
            Outcome::Allowed(basis) => panic!("allowed by {basis:?}"),
        }
    }
}

fn allowing(allow: &[&str]) -> Policy {
    Policy {
        allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
        ..Policy::default()
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A question that wants to know why.
fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = rr::Name::from_ascii(name).unwrap();
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    message
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let address = |record: &rr::Record| match &record.data {
        RData::A(address) => IpAddr::V4(address.0),
        RData::AAAA(address) => IpAddr::V6(address.0),
        other => panic!("{other:?}"),
    };
    message.answers.iter().map(address).collect()
}

/// The number and text of RFC 8914.
fn why(message: &Message) -> Option<(u16, String)> {
    let option = message.edns.as_ref()?.option(EdnsCode::from(15))?;
    let EdnsOption::Unknown(15, data) = option else {
        panic!("{option:?}");
    };
    let number = u16::from_be_bytes([data[0], data[1]]);
    Some((number, String::from_utf8(data[2..].to_vec()).unwrap()))
}

fn is_nothing(message: &Message) -> bool {
    message.response_code == ResponseCode::NoError && message.answers.is_empty()
}
