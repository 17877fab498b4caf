//! Names to addresses, as the host has them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{self, RData, RecordType};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::cache::{Cache, Family, Outcome};
use super::limits::{Bucket, QUESTIONS_AT_ONCE, QUESTIONS_PER_SECOND, Spread};
use super::upstream::Upstream;
use super::{Settings, servers, upstream};
use crate::host::Name;
use crate::policy::{Basis, Code, Denial, Policy};

/// How long it may take to find an answer. A guest asks again after five seconds: it is to
/// know by then that there is none.
const ANSWER_WITHIN: Duration = Duration::from_millis(4500);

/// How long the addresses of one family are waited for when those of the other are known.
const OTHER_WITHIN: Duration = Duration::from_millis(300);

/// Most addresses of one family.
const MAX_ADDRESSES: usize = 32;

/// Most name servers that are waited for at once.
const MAX_AT_ONCE: usize = 64;

/// For how long an answer counts, at least and at most: less would make each connection a
/// question, more would keep a host that has moved out of reach.
const ANSWER_COUNTS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));

/// The same of the answer that there is nothing.
const NOTHING_COUNTS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// For how long it counts that servers failed (RFC 9520: at least a second).
const FAILURE_COUNTS: Duration = Duration::from_secs(2);

/// What is said of an address that is known and does not change.
const KNOWN_COUNTS: Duration = Duration::from_secs(60);

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// It does not exist.
    #[error("{0}: there is no such name; look whether it is spelt right")]
    NoName(Name),
    /// It exists, and has none.
    #[error("{0}: the name has no address")]
    NoAddress(Name),
    /// No server has answered in time.
    #[error("{0}: no name server has answered in time; look whether they can be reached")]
    Silent(Name),
    /// They could not say.
    #[error("{name}: the name servers failed: {why}")]
    Failed {
        /// The name.
        name: Name,
        /// What they said.
        why: String,
    },
    /// There is nobody to ask.
    #[error("{0}: there is no name server; /etc/resolv.conf names none, and none was given")]
    NoServer(Name),
    /// Too many were asked for.
    #[error("{0}: more names were asked for than {QUESTIONS_PER_SECOND} in a second; ask again")]
    TooMany(Name),
}

impl ResolveError {
    /// Of which name.
    #[must_use]
    pub fn name(&self) -> &Name {
        match self {
            Self::NoName(name)
            | Self::NoAddress(name)
            | Self::Silent(name)
            | Self::Failed { name, .. }
            | Self::NoServer(name)
            | Self::TooMany(name) => name,
        }
    }

    /// What went wrong, without the name.
    fn why(&self) -> String {
        let whole = self.to_string();
        let why = whole.strip_prefix(&format!("{}: ", self.name()));
        why.unwrap_or(&whole).to_owned()
    }

    /// What is told of it.
    #[must_use]
    pub fn denial(&self) -> Denial {
        Denial {
            code: Code::Resolve,
            host: self.name().to_string(),
            rule: Some(self.why()),
        }
    }
}

/// What a name was resolved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Its addresses, at least one, those of IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// For how long they count.
    pub ttl: Duration,
}

/// What a name was resolved to that may be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// What allows it.
    pub basis: Basis,
    /// Those of its addresses that may be connected to on some port, at least one.
    pub addresses: Vec<IpAddr>,
    /// For how long they count.
    pub ttl: Duration,
}

/// Why a name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unreached {
    /// It may not, or none of its addresses.
    #[error("{0}")]
    Denied(Denial),
    /// It may, and does not.
    #[error(transparent)]
    Unresolved(#[from] ResolveError),
}

impl Unreached {
    /// What is told of it.
    #[must_use]
    pub fn denial(&self) -> Denial {
        match self {
            Self::Denied(denial) => denial.clone(),
            Self::Unresolved(error) => error.denial(),
        }
    }
}

/// What has failed, and for how long that counts.
type Failure = (ResolveError, Duration);

/// Resolves names for one guest, within its limits.
#[derive(Debug)]
pub struct Resolver {
    hosts: HashMap<Name, Vec<IpAddr>>,
    synthetic: bool,
    servers: Vec<SocketAddr>,
    /// Made for the first question that leaves the host: most guests have none, and it wants
    /// random numbers before it is asked anything.
    upstream: OnceLock<Option<Upstream>>,
    cache: Cache,
    questions: Bucket,
    at_once: Semaphore,
    spread: Spread,
}

impl Resolver {
    /// A resolver with these settings. `/etc/resolv.conf` is read now, if it counts.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let servers = match settings.servers.is_empty() {
            true => servers::of_host(),
            false => settings.servers,
        };
        let mut hosts: HashMap<Name, Vec<IpAddr>> = HashMap::new();
        for (name, address) in settings.hosts {
            hosts.entry(name).or_default().push(address);
        }
        let second = Duration::from_secs(1);
        Self {
            hosts,
            synthetic: settings.synthetic,
            servers,
            upstream: OnceLock::new(),
            cache: Cache::default(),
            questions: Bucket::new(QUESTIONS_PER_SECOND, second, QUESTIONS_AT_ONCE),
            at_once: Semaphore::new(MAX_AT_ONCE),
            spread: Spread::new(),
        }
    }

    /// Whether a guest gets addresses that each name has of its own.
    #[must_use]
    pub fn is_synthetic(&self) -> bool {
        self.synthetic
    }

    /// The addresses of a name, whatever may be reached.
    ///
    /// # Errors
    /// If it has none, or nobody knows.
    pub async fn resolve(&self, name: &Name) -> Result<Resolved, ResolveError> {
        let mut ipv4 = pin!(self.family(name, Family::V4));
        let mut ipv6 = pin!(self.family(name, Family::V6));
        let late = |_| Err(ResolveError::Silent(name.clone()));
        let (first, second) = tokio::select! {
            first = &mut ipv4 => match first.is_ok() {
                true => (first, timeout(OTHER_WITHIN, ipv6).await.unwrap_or_else(late)),
                false => (first, ipv6.await),
            },
            second = &mut ipv6 => match second.is_ok() {
                true => (timeout(OTHER_WITHIN, ipv4).await.unwrap_or_else(late), second),
                false => (ipv4.await, second),
            },
        };
        match (first, second) {
            (Ok(first), Ok(second)) => Ok(Resolved {
                addresses: [first.addresses, second.addresses].concat(),
                ttl: first.ttl.min(second.ttl),
            }),
            (Ok(found), Err(_)) | (Err(_), Ok(found)) => Ok(found),
            // That there is no such name is said of both families.
            (Err(error @ ResolveError::NoName(_)), _)
            | (_, Err(error @ ResolveError::NoName(_)))
            | (Err(ResolveError::NoAddress(_)), Err(error))
            | (Err(error), Err(_)) => Err(error),
        }
    }

    /// The addresses of a name that may be reached.
    ///
    /// # Errors
    /// If it may not be looked up, has no addresses, or none that may be reached.
    pub async fn reach(&self, policy: &Policy, name: &Name) -> Result<Reached, Unreached> {
        let basis = self.allowed(policy, name).map_err(Unreached::Denied)?;
        let resolved = self.resolve(name).await?;
        let addresses = told(policy, name, resolved.addresses).map_err(Unreached::Denied)?;
        Ok(Reached {
            basis,
            addresses,
            ttl: resolved.ttl,
        })
    }

    /// All the addresses of a name that may be looked up, whether they may be reached or
    /// not.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) async fn reachable(&self, policy: &Policy, name: &Name) -> Result<Resolved, Denial> {
        self.allowed(policy, name)?;
        self.resolve(name).await.map_err(|error| error.denial())
    }

    /// Whether a name may be looked up, and the limits allow it.
    pub(super) fn allowed(&self, policy: &Policy, name: &Name) -> Result<Basis, Denial> {
        let basis = policy.lookup(name)?;
        let Some(glob) = policy.glob_of(name) else {
            return Ok(basis);
        };
        match self.hosts.contains_key(name) || self.spread.allows(name, Instant::now()) {
            true => Ok(basis),
            // Naming it exactly is what helps, and what the hint says.
            false => Err(Denial {
                code: Code::NotAllowed,
                host: name.to_string(),
                rule: Some(format!(
                    "{glob}, of which these are too many names, or too long"
                )),
            }),
        }
    }

    /// The addresses of one family.
    pub(super) async fn family(
        &self,
        name: &Name,
        family: Family,
    ) -> Result<Resolved, ResolveError> {
        if let Some(known) = self.hosts.get(name) {
            let known = known.iter().copied();
            let addresses: Vec<IpAddr> = known.filter(|address| family.has(address)).collect();
            return match addresses.is_empty() {
                true => Err(ResolveError::NoAddress(name.clone())),
                false => Ok(Resolved {
                    addresses,
                    ttl: KNOWN_COUNTS,
                }),
            };
        }
        let cell = self.cache.cell(name, family, Instant::now());
        let outcome = cell.get_or_init(|| self.ask(name, family)).await;
        let addresses = outcome.found.clone()?;
        Ok(Resolved {
            addresses,
            ttl: outcome.until.saturating_duration_since(Instant::now()),
        })
    }

    async fn ask(&self, name: &Name, family: Family) -> Outcome {
        let kind = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        let (found, counts) = match self.look_up(name, kind).await {
            Ok(lookup) => addresses(name, &lookup, family),
            Err((error, counts)) => (Err(error), counts),
        };
        Outcome {
            found,
            until: Instant::now() + counts,
        }
    }

    /// The records of one type. Those of addresses are not for this.
    pub(super) async fn records(
        &self,
        name: &Name,
        kind: RecordType,
    ) -> Result<Vec<rr::Record>, ResolveError> {
        let lookup = self.look_up(name, kind).await;
        let lookup = lookup.map_err(|(error, _)| error)?;
        Ok(lookup.answers().to_vec())
    }

    /// Asks the name servers.
    async fn look_up(&self, name: &Name, kind: RecordType) -> Result<Lookup, Failure> {
        let name_of = || name.clone();
        let upstream = (self.upstream).get_or_init(|| upstream::asking(&self.servers));
        let Some(upstream) = upstream else {
            return Err((ResolveError::NoServer(name_of()), FAILURE_COUNTS));
        };
        // With its dot at the end no domain is searched.
        let Ok(full) = rr::Name::from_ascii(format!("{name}.")) else {
            return Err((ResolveError::NoName(name_of()), NOTHING_COUNTS.1));
        };
        if !self.questions.take(Instant::now()) {
            return Err((ResolveError::TooMany(name_of()), Duration::ZERO));
        }
        let asking = async {
            // It is never closed.
            let _permit = self.at_once.acquire().await;
            upstream.lookup(full, kind).await
        };
        match timeout(ANSWER_WITHIN, asking).await {
            Ok(Ok(lookup)) => Ok(lookup),
            Ok(Err(error)) => Err(failure(name, &error)),
            Err(_) => Err((ResolveError::Silent(name_of()), FAILURE_COUNTS)),
        }
    }
}

/// Those that may be told.
pub(super) fn told(
    policy: &Policy,
    name: &Name,
    addresses: Vec<IpAddr>,
) -> Result<Vec<IpAddr>, Denial> {
    let mut denied = None;
    let may_be = |address: &IpAddr| match policy.told(*address, name) {
        Ok(()) => true,
        Err(denial) => {
            denied.get_or_insert(denial);
            false
        }
    };
    let told: Vec<IpAddr> = addresses.into_iter().filter(may_be).collect();
    match denied {
        Some(denial) if told.is_empty() => Err(denial),
        _ => Ok(told),
    }
}

fn addresses(
    name: &Name,
    lookup: &Lookup,
    family: Family,
) -> (Result<Vec<IpAddr>, ResolveError>, Duration) {
    let records = lookup.answers();
    let address = |record: &rr::Record| match (&record.data, family) {
        (RData::A(address), Family::V4) => Some(IpAddr::V4(address.0)),
        // What is an IPv4 address in this form is no address of IPv6.
        (RData::AAAA(address), Family::V6) => {
            (address.0.to_ipv4_mapped().is_none()).then_some(IpAddr::V6(address.0))
        }
        _ => None,
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in records.iter().filter_map(address) {
        if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return (Err(ResolveError::NoAddress(name.clone())), NOTHING_COUNTS.0);
    }
    let ttl = records.iter().map(|record| record.ttl).min();
    let ttl = Duration::from_secs(ttl.unwrap_or_default().into());
    (Ok(addresses), ttl.clamp(ANSWER_COUNTS.0, ANSWER_COUNTS.1))
}

fn failure(name: &Name, error: &NetError) -> Failure {
    let name = name.clone();
    if let NetError::Dns(DnsError::NoRecordsFound(NoRecords {
        response_code,
        negative_ttl,
        ..
    })) = error
    {
        let nothing = match response_code {
            ResponseCode::NXDomain => Some(ResolveError::NoName(name.clone())),
            ResponseCode::NoError => Some(ResolveError::NoAddress(name.clone())),
            _ => None,
        };
        if let Some(nothing) = nothing {
            let counts = Duration::from_secs(negative_ttl.unwrap_or_default().into());
            return (nothing, counts.clamp(NOTHING_COUNTS.0, NOTHING_COUNTS.1));
        }
    }
    let error = match error {
        NetError::Timeout => ResolveError::Silent(name),
        error => ResolveError::Failed {
            name,
            why: crate::host::shown(&error.to_string()),
        },
    };
    (error, FAILURE_COUNTS)
}
