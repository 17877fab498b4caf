//! The flows of a VM: begun where its guest asks for them, told of, and ended with it.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use flashpan_network::report::{self, Report, Reports};
use flashpan_network::{Answer, Flow, Gateway};
use flashpan_protocol::control::Request;
use flashpan_protocol::network::{End, Link, Protocol, Refusal, Tuple};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

use crate::error::Result;
use crate::network::Settings;
use crate::secret_refresh::refresh;
use crate::shared::Shared;

/// Reports that wait to be told. What comes when so many do is counted, and lost.
const REPORTS: usize = 1024;

/// Answers that wait to be sent to the VMM. Flows wait when there are more.
const ANSWERS: usize = 64;

/// How long the last bytes of a guest that is gone may be on their way to hosts.
const LAST_BYTES_WITHIN: Duration = Duration::from_secs(1);

/// How long what goes on may take to end when it was told to. It waits for nothing.
const ENDED_WITHIN: Duration = Duration::from_secs(1);

/// Descriptors that flows leave for everything else: connections to hosts of guests that have
/// many of them on one of their own (`docs/network.md`), and what is no flow.
const RESERVE: u64 = 512;

/// How many flows there may be, whatever the VMM says: as many as its stack has at most.
const MAX_FLOWS: usize = 12_000;

/// How many flows there may be: each takes up to three descriptors of this process.
fn most_flows() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let most = limit.map(|limit| limit.saturating_sub(RESERVE) / 3);
    most.map_or(MAX_FLOWS, |most| {
        usize::try_from(most).unwrap_or(MAX_FLOWS).min(MAX_FLOWS)
    })
}

/// Lets the process have as many descriptors as it may: what programs are given at first
/// is less than a guest's connections take, and is so low for those that use `select`,
/// as nothing here does.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if limit.current != limit.maximum {
        // Without success there are fewer connections.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

/// Passes on what is told of flows, as long as there is somebody who could tell: the
/// gateway, which `shared` holds. Told that this was all, it passes on what is there, and ends.
async fn tell(mut reports: Reports, shared: Weak<Shared>, all: oneshot::Receiver<()>) {
    let pass_on = |(lost, report): (u64, Report)| {
        let shared = shared.upgrade()?;
        if lost > 0 {
            shared.events.lost(lost);
        }
        shared.events.network(report.into());
        Some(())
    };
    let for_ever = async { while reports.next().await.and_then(pass_on).is_some() {} };
    tokio::select! {
        () = for_ever => return,
        // Nobody says so of flows that are simply dropped.
        Ok(()) = all => {}
    }
    while reports.next_now().and_then(pass_on).is_some() {}
}

/// The task that tells of flows, and what says that there will be no more of them.
#[derive(Debug)]
struct Telling {
    task: JoinHandle<()>,
    all: oneshot::Sender<()>,
}

/// The flows of a VM.
#[derive(Debug)]
pub(crate) struct Flows {
    /// None without a network.
    gateway: Option<Arc<Gateway>>,
    /// The certificate that the guest has to trust, if there is anything for it.
    pub(crate) authority: Option<String>,
    /// Variables of the guest's programs.
    pub(crate) placeholders: Vec<(String, String)>,
    /// Until the end was told.
    telling: Option<Telling>,
    running: HashMap<u64, Flow>,
    /// Flows that are over on the guest's side, whose last bytes are on their way out.
    ending: HashMap<u64, Flow>,
    /// Flows of which the VMM was told that they broke.
    broken: HashSet<u64>,
    /// What reads values of secrets again, if anything does.
    refreshing: Option<AbortHandle>,
    sender: mpsc::Sender<(u64, Answer)>,
    answers: mpsc::Receiver<(u64, Answer)>,
}

impl Flows {
    pub(crate) fn new(
        settings: &Settings,
        link: Option<Link>,
        shared: &Arc<Shared>,
    ) -> Result<Self> {
        let (reporter, reports) = report::channel(REPORTS);
        let mut authority = None;
        let mut placeholders = Vec::new();
        let mut refreshing = None;
        let gateway = match link {
            None => None,
            Some(link) => {
                let policy = settings.policy()?;
                let made = settings.inspected.make()?;
                let dns = settings.dns()?;
                // Where nothing is looked into nobody sees certificates of ours but with
                // what is refused anyway.
                let has_rules = !(policy.allow.is_empty() && policy.rules.is_empty());
                let shows = has_rules || policy.inspects || policy.script.is_some();
                authority = shows.then_some(made.authority);
                if !settings.refresh.sources.is_empty() {
                    let secrets = Arc::clone(&made.secrets);
                    let of = settings.refresh.clone();
                    let refresh = refresh(of, secrets, Arc::downgrade(shared));
                    refreshing = Some(tokio::spawn(refresh).abort_handle());
                }
                shared.set_secrets(made.secrets);
                placeholders = made.placeholders;
                Some(Arc::new(Gateway::new(flashpan_network::Settings {
                    link,
                    policy,
                    dns,
                    inspection: Some(made.inspection),
                    reporter,
                })))
            }
        };
        let mut telling = None;
        if let Some(gateway) = &gateway {
            raise_limit();
            shared.set_gateway(Arc::clone(gateway));
            let (all, is_all) = oneshot::channel();
            let task = tokio::spawn(tell(reports, Arc::downgrade(shared), is_all));
            telling = Some(Telling { task, all });
        }
        let (sender, answers) = mpsc::channel(ANSWERS);
        Ok(Self {
            gateway,
            authority,
            placeholders,
            telling,
            running: HashMap::new(),
            ending: HashMap::new(),
            broken: HashSet::new(),
            refreshing,
            sender,
            answers,
        })
    }

    /// The guest asks for a flow; what is to be said at once, if that is known.
    pub(crate) fn ask(
        &mut self,
        id: u64,
        protocol: Protocol,
        tuple: Tuple,
        socket: Option<OwnedFd>,
    ) -> Option<Request> {
        let refuse = |why| Some(Request::FlowRefuse { id, why });
        let Some(gateway) = &self.gateway else {
            return refuse(Refusal::Silence);
        };
        // A descriptor does not arrive where there is no room for it.
        self.ending.retain(|_, flow| !flow.is_finished());
        let flows = self.running.len().saturating_add(self.ending.len());
        let Some(socket) = socket.filter(|_| flows < most_flows()) else {
            return refuse(Refusal::Host);
        };
        let flow = gateway.begin(id, protocol, tuple, socket, self.sender.clone());
        // A VMM that uses a number twice cannot leave a task behind.
        self.broken.remove(&id);
        let old = self.running.insert(id, flow).into_iter();
        for old in old.chain(self.ending.remove(&id)) {
            old.abort();
        }
        None
    }

    /// A flow is over on the guest's side.
    pub(crate) fn ended(&mut self, id: u64, how: End) {
        let Some(flow) = self.running.remove(&id) else {
            return;
        };
        let was_broken = self.broken.remove(&id);
        match how {
            // What the guest has sent may still be on its way out; it ends by itself, unless
            // it broke meanwhile.
            End::Closed if !was_broken => drop(self.ending.insert(id, flow)),
            End::GivenUp => flow.give_up(),
            End::Closed | End::Reset | End::Idle => flow.abort(),
        }
    }

    /// The guest is gone: ends all flows, and waits until all of them are told of.
    pub(crate) async fn end(&mut self) {
        let (Some(gateway), Some(telling)) = (&self.gateway, self.telling.take()) else {
            return;
        };
        // Nobody tells the VMM anything any more, and nobody waits for that.
        self.answers.close();
        for flow in self.running.values() {
            flow.abort();
        }
        self.ending.retain(|_, flow| !flow.is_finished());
        if !self.ending.is_empty() {
            let _ = timeout(LAST_BYTES_WITHIN, gateway.all_told()).await;
            for flow in self.ending.values() {
                flow.abort();
            }
        }
        // Whatever is not told of by then is lost.
        let told = async {
            gateway.all_told().await;
            // It fails if the task has ended, which it does only at the end.
            let _ = telling.all.send(());
            let _ = telling.task.await;
        };
        let _ = timeout(ENDED_WITHIN, told).await;
    }

    /// What the VMM is to be told next. Cancel safe.
    pub(crate) async fn next(&mut self) -> Request {
        loop {
            let answer = self.answers.recv().await;
            if let Some((id, Answer::Close)) = answer
                && let Some(flow) = self.ending.remove(&id)
            {
                // It waits for an end that was there already.
                flow.abort();
                continue;
            }
            return self.request(answer).await;
        }
    }

    async fn request(&mut self, answer: Option<(u64, Answer)>) -> Request {
        match answer {
            Some((id, Answer::Accept)) => Request::FlowAccept { id },
            Some((id, Answer::Refuse(why))) => {
                self.running.remove(&id);
                Request::FlowRefuse { id, why }
            }
            // The flow waits for its end on the guest's side.
            Some((id, Answer::Close)) => {
                if self.running.contains_key(&id) {
                    self.broken.insert(id);
                }
                Request::FlowClose { id }
            }
            // It fails only if all senders are gone, of which `self` holds one.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        for flow in self.running.values().chain(self.ending.values()) {
            flow.abort();
        }
        if let Some(refreshing) = &self.refreshing {
            refreshing.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Network;

    fn waiting() -> Flow {
        tokio::spawn(std::future::pending::<()>())
            .abort_handle()
            .into()
    }

    /// However the two ends of a flow come, its task does not outlive both.
    #[tokio::test]
    async fn a_flow_that_broke_and_is_over_leaves_nothing() {
        let settings = Settings::default();
        let mut flows = Flows::new(&settings, None, &Arc::default()).unwrap();
        let (first, second) = (waiting(), waiting());
        flows.running.insert(1, first.clone());
        flows.running.insert(2, second.clone());
        // Over in the guest before the word that it broke.
        flows.ended(1, End::Closed);
        flows.sender.send((1, Answer::Close)).await.unwrap();
        flows.sender.send((2, Answer::Close)).await.unwrap();
        assert_eq!(flows.next().await, Request::FlowClose { id: 2 });
        // And after it.
        flows.ended(2, End::Closed);
        while !(first.is_finished() && second.is_finished()) {
            tokio::task::yield_now().await;
        }
        assert!(flows.ending.is_empty() && flows.broken.is_empty());
    }

    /// What went on when the guest ended is told of before the last event.
    #[tokio::test]
    async fn flows_at_the_end_of_a_vm_are_told_of() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Settings {
            network: Network::Open,
            block_private_ips: false,
            ..Settings::default()
        };
        let shared = Arc::<Shared>::default();
        let mut events = shared.events.subscribe();
        let link = settings.link().unwrap();
        let mut flows = Flows::new(&settings, link, &shared).unwrap();
        let mut guests = Vec::new();
        for id in [1, 2] {
            let (guest, host) = std::os::unix::net::UnixStream::pair().unwrap();
            let tuple = Tuple {
                source: "198.18.0.2:40000".parse().unwrap(),
                destination: server.local_addr().unwrap(),
            };
            let asked = flows.ask(id, Protocol::Tcp, tuple, Some(host.into()));
            assert_eq!(asked, None);
            assert_eq!(flows.next().await, Request::FlowAccept { id });
            guests.push((guest, server.accept().await.unwrap()));
        }
        // Of one the guest has sent all, which the host has not taken yet.
        flows.ended(2, End::Closed);
        flows.end().await;
        shared.events.close();
        for _ in guests {
            let event = events.next().await.unwrap();
            let crate::events::VmEventKind::Network(activity) = event.kind else {
                panic!("{event:?}");
            };
            assert_eq!(
                (activity.scheme.as_str(), activity.code.as_deref()),
                ("tcp", None)
            );
        }
        assert!(events.next().await.is_none());
    }
}
