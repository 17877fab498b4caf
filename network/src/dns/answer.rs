//! What a question is answered.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::PTR;
use hickory_resolver::proto::rr::{self, DNSClass, RData, Record, RecordType};

use super::Transport;
use super::cache::Family;
use super::question::{self, Head, Read};
use super::reply::{Reason, encoded};
use super::resolver::{ResolveError, Resolver, Unreached, told};
use crate::host::{Name, shown};
use crate::meter::Meter;
use crate::names::{Names, is_synthetic};
use crate::policy::{Basis, Code, Denial, Policy};
use crate::report::{Outcome, Report, Reporter, Scheme};

/// For how long a guest may take an answer for true, in seconds. It asks again, and finds
/// out that the policy has changed, and what it connects to stays remembered.
const MAX_TTL: u32 = 300;

/// Most records of an answer.
const MAX_RECORDS: usize = 64;

/// What is said, and told of it.
#[derive(Debug)]
struct Said {
    code: ResponseCode,
    records: Vec<Record>,
    why: Option<(Reason, String)>,
    outcome: Outcome,
}

impl Said {
    fn records(basis: Basis, records: Vec<Record>) -> Self {
        Self {
            code: ResponseCode::NoError,
            records,
            why: None,
            outcome: Outcome::Allowed(basis),
        }
    }

    fn nothing(basis: Basis) -> Self {
        Self::records(basis, Vec::new())
    }

    fn denied(denial: Denial) -> Self {
        let reason = match denial.code {
            Code::Denied | Code::RuleDenied => Reason::Blocked,
            _ => Reason::Prohibited,
        };
        Self::error(ResponseCode::Refused, reason, denial)
    }

    fn error(code: ResponseCode, reason: Reason, denial: Denial) -> Self {
        let why = format!("{}: {}", denial.code, denial.hint());
        Self {
            code,
            records: Vec::new(),
            why: Some((reason, why)),
            outcome: Outcome::Refused(denial),
        }
    }

    fn unresolved(basis: Basis, error: &ResolveError) -> Self {
        let (code, reason) = match error {
            ResolveError::NoAddress(_) => return Self::nothing(basis),
            ResolveError::NoName(_) => {
                return Self {
                    code: ResponseCode::NXDomain,
                    why: None,
                    ..Self::error(ResponseCode::NXDomain, Reason::Other, error.denial())
                };
            }
            ResolveError::TooMany(_) => (ResponseCode::ServFail, Reason::Other),
            ResolveError::Failed { .. } => (ResponseCode::ServFail, Reason::NetworkError),
            ResolveError::Silent(_) | ResolveError::NoServer(_) => {
                (ResponseCode::ServFail, Reason::NoReachableAuthority)
            }
        };
        let mut said = Self::error(code, reason, error.denial());
        if matches!(error, ResolveError::TooMany(_)) {
            said.why = Some((reason, "too many questions: ask again later".to_owned()));
        }
        said
    }
}

impl Resolver {
    /// What a guest's message is answered; none if it is no question. What was answered is
    /// in `names` before it is given out.
    pub async fn answer(
        &self,
        policy: &Policy,
        names: &Names,
        reporter: &Reporter,
        transport: Transport,
        message: &[u8],
    ) -> Option<Vec<u8>> {
        let (head, query) = match question::read(message, transport) {
            Read::Nothing => return None,
            Read::Wrong(head, code) => return encoded(&head, code, Vec::new(), None),
            Read::Question(head, query) => (head, query),
        };
        let host = match question::host(query.name()) {
            Some(name) => name.to_string(),
            None => shown(&query.name().to_ascii()),
        };
        let mut report = Report::given_up(Scheme::Dns, host);
        report.method = query.query_type().to_string();
        // Who does not wait for the answer has asked all the same, and so may the host have.
        let mut meter = Meter::new(reporter.clone(), report);
        let said = self.say(policy, names, &query).await;
        let answer = said.encoded(&head);
        meter.report.outcome = said.outcome;
        answer
    }

    async fn say(&self, policy: &Policy, names: &Names, query: &Query) -> Said {
        let kind = query.query_type();
        if query.query_class() != DNSClass::IN || is_never_answered(kind) {
            let of = shown(&query.name().to_ascii());
            let denial = Denial {
                code: Code::Rule,
                host: of,
                rule: Some(format!("no questions of {} {kind}", query.query_class())),
            };
            return Said::error(ResponseCode::Refused, Reason::NotSupported, denial);
        }
        let Some(name) = question::host(query.name()) else {
            let denial = Denial {
                code: Code::Ambiguous,
                host: shown(&query.name().to_ascii()),
                rule: None,
            };
            // There are names of other things, of which no host has one.
            let code = match query.name().is_root() {
                true => ResponseCode::Refused,
                false => ResponseCode::NXDomain,
            };
            return Said::error(code, Reason::Prohibited, denial);
        };
        if kind == RecordType::PTR
            && let Some(address) = question::reverse(query.name())
            && let Some(said) = reverse(policy, names, query, &name, address)
        {
            return said;
        }
        let basis = match self.allowed(policy, &name) {
            Ok(basis) => basis,
            Err(denial) => return Said::denied(denial),
        };
        match kind {
            RecordType::A | RecordType::AAAA if self.is_synthetic() => {
                self.own(policy, names, (query, &name), basis).await
            }
            RecordType::A => {
                let of = (query, &name, Family::V4);
                self.addresses(policy, names, of, basis).await
            }
            RecordType::AAAA => {
                let of = (query, &name, Family::V6);
                self.addresses(policy, names, of, basis).await
            }
            // They have addresses, and keys that hide the name in TLS.
            RecordType::HTTPS | RecordType::SVCB => Said::nothing(basis),
            // What is not needed to reach a host can carry anything, both ways.
            _ if !policy.open => Said::nothing(basis),
            _ => match self.records(&name, kind).await {
                Ok(records) => Said::records(basis, passed(query, records)),
                Err(error) => Said::unresolved(basis, &error),
            },
        }
    }

    /// The addresses of one family, those that may be told.
    async fn addresses(
        &self,
        policy: &Policy,
        names: &Names,
        (query, name, family): (&Query, &Name, Family),
        basis: Basis,
    ) -> Said {
        let resolved = match self.family(name, family).await {
            Ok(resolved) => resolved,
            Err(error) => return Said::unresolved(basis, &error),
        };
        let addresses = match told(policy, name, resolved.addresses) {
            Ok(addresses) => addresses,
            Err(denial) => return Said::denied(denial),
        };
        names.learn(name, &addresses, resolved.ttl);
        let ttl = ttl(resolved.ttl);
        let record = |address| Record::from_rdata(query.name().clone(), ttl, RData::from(address));
        Said::records(basis, addresses.into_iter().map(record).collect())
    }

    /// The address that the name has of its own, if it leads somewhere.
    async fn own(
        &self,
        policy: &Policy,
        names: &Names,
        (query, name): (&Query, &Name),
        basis: Basis,
    ) -> Said {
        let reached = match self.reach(policy, name).await {
            Ok(reached) => reached,
            Err(Unreached::Denied(denial)) => return Said::denied(denial),
            Err(Unreached::Unresolved(error)) => return Said::unresolved(basis, &error),
        };
        let Some((ipv4, ipv6)) = names.synthetic(name) else {
            let denial = ResolveError::TooMany(name.clone()).denial();
            return Said::error(ResponseCode::ServFail, Reason::Other, denial);
        };
        let address = match query.query_type() {
            RecordType::AAAA => IpAddr::V6(ipv6),
            _ => IpAddr::V4(ipv4),
        };
        let ttl = ttl(reached.ttl);
        let record = Record::from_rdata(query.name().clone(), ttl, RData::from(address));
        Said::records(basis, vec![record])
    }
}

impl Said {
    fn encoded(&self, head: &Head) -> Option<Vec<u8>> {
        let why = self.why.as_ref();
        let why = why.map(|(reason, text)| (*reason, text.as_str()));
        encoded(head, self.code, self.records.clone(), why)
    }
}

/// Whether a type is none that has records: those that mean several, or the whole of a
/// zone, or the message itself. And NULL, which is there to carry anything.
fn is_never_answered(kind: RecordType) -> bool {
    matches!(u16::from(kind), 0 | 10 | 41 | 128..=255 | 65_535)
}

fn ttl(ttl: Duration) -> u32 {
    let seconds = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
    seconds.clamp(1, MAX_TTL)
}

/// The names that an address was told for. None: somebody else has to be asked, if that
/// may be.
fn reverse(
    policy: &Policy,
    names: &Names,
    query: &Query,
    name: &Name,
    address: IpAddr,
) -> Option<Said> {
    let own = names.of_synthetic(address);
    let mut known = names.of(address);
    known.extend(own);
    // A name that may no longer be looked up is not told either.
    let mut basis = None;
    let mut told = Vec::new();
    for known in known {
        if let Ok(by) = policy.lookup(&known)
            && let Ok(full) = rr::Name::from_ascii(format!("{known}."))
        {
            basis.get_or_insert(by);
            let data = RData::PTR(PTR(full));
            told.push(Record::from_rdata(query.name().clone(), 1, data));
        }
    }
    if let Some(basis) = basis {
        return Some(Said::records(basis, told));
    }
    // The names of the host's own network are its own.
    match policy.told(address, name) {
        Err(mut denial) => {
            if denial.code == Code::ResolvedToPrivate {
                denial.code = Code::Private;
            }
            Some(Said::denied(denial))
        }
        Ok(()) if is_synthetic(address) => Some(Said {
            code: ResponseCode::NXDomain,
            ..Said::nothing(Basis::Open)
        }),
        Ok(()) => None,
    }
}

/// What is passed on of the records of a server: those that were asked for, and the way
/// to them.
fn passed(query: &Query, records: Vec<Record>) -> Vec<Record> {
    let kind = query.query_type();
    let is_of_it = |record: &Record| {
        record.dns_class == DNSClass::IN
            && (record.record_type() == kind || record.record_type() == RecordType::CNAME)
    };
    let mut records: Vec<Record> = records.into_iter().filter(is_of_it).collect();
    records.truncate(MAX_RECORDS);
    for record in &mut records {
        record.ttl = record.ttl.clamp(1, MAX_TTL);
    }
    records
}
