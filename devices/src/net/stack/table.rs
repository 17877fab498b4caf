//! All flows: by number, by tuple, and by the time when they have to be looked after.

use std::collections::{BTreeSet, HashMap, VecDeque};

use flashpan_protocol::network::{Protocol, Tuple};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;

use super::tcp::TcpFlow;
use super::udp::UdpFlow;
use crate::net::{MAX_ASKED, MAX_FLOWS};

/// A flow, or what is to become one.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) protocol: Protocol,
    pub(super) tuple: Tuple,
    /// Who speaks for its source on the link.
    pub(super) peer: EthernetAddress,
    pub(super) state: State,
    /// Waits for its turn.
    queued: bool,
    due: Option<Instant>,
}

/// How far a flow has come.
#[derive(Debug)]
pub(super) enum State {
    /// The host was asked.
    Asked(Asked),
    /// A connection.
    Tcp(Box<TcpFlow>),
    /// A conversation.
    Udp(UdpFlow),
}

/// A flow that the host was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    /// The stack's end of the socket pair.
    pub(super) socket: std::os::fd::OwnedFd,
    /// The packet that asked, from its IP header on.
    pub(super) first: Vec<u8>,
    /// Payloads of the datagrams that have come.
    pub(super) waiting: VecDeque<Vec<u8>>,
    /// The guest has taken it back: the answer is waited for all the same.
    pub(super) withdrawn: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Table {
    flows: HashMap<u64, Flow>,
    by_tuple: HashMap<(Protocol, Tuple), u64>,
    due: BTreeSet<(Instant, u64)>,
    line: VecDeque<u64>,
    /// Questions that are open, for streams and for datagrams.
    asked: [usize; 2],
    next_id: u64,
    most: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            flows: HashMap::new(),
            by_tuple: HashMap::new(),
            due: BTreeSet::new(),
            line: VecDeque::new(),
            asked: [0; 2],
            next_id: 1,
            most: MAX_FLOWS,
        }
    }

    /// Lets there be no more than so many.
    pub(super) fn limit(&mut self, most: usize) {
        self.most = most.min(MAX_FLOWS);
    }

    /// Whether one more may be asked for.
    pub(super) fn has_room(&self, protocol: Protocol) -> bool {
        let [streams, datagrams] = self.asked;
        let asked = match protocol {
            Protocol::Tcp => streams,
            Protocol::Udp => datagrams,
        };
        !self.is_full() && asked < MAX_ASKED
    }

    /// Whether there may be no flow more.
    pub(super) fn is_full(&self) -> bool {
        self.flows.len() >= self.most
    }

    fn asked(&mut self, protocol: Protocol) -> &mut usize {
        let [streams, datagrams] = &mut self.asked;
        match protocol {
            Protocol::Tcp => streams,
            Protocol::Udp => datagrams,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Takes in a flow that the host is asked for, or that it opens; its number.
    pub(super) fn add(
        &mut self,
        protocol: Protocol,
        tuple: Tuple,
        peer: EthernetAddress,
        state: State,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if matches!(state, State::Asked(_)) {
            *self.asked(protocol) += 1;
        }
        self.by_tuple.insert((protocol, tuple), id);
        let flow = Flow {
            protocol,
            tuple,
            peer,
            state,
            queued: false,
            due: None,
        };
        self.flows.insert(id, flow);
        id
    }

    pub(super) fn find(&self, protocol: Protocol, tuple: Tuple) -> Option<u64> {
        self.by_tuple.get(&(protocol, tuple)).copied()
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Flow> {
        self.flows.get_mut(&id)
    }

    /// Makes a flow of one that was asked for.
    pub(super) fn accepted(
        &mut self,
        id: u64,
        make: impl FnOnce(Protocol, &Tuple, Asked) -> State,
    ) {
        let Some(flow) = self.flows.remove(&id) else {
            return;
        };
        let state = match flow.state {
            State::Asked(asked) => {
                let open = self.asked(flow.protocol);
                *open = open.saturating_sub(1);
                make(flow.protocol, &flow.tuple, asked)
            }
            other => other,
        };
        self.flows.insert(id, Flow { state, ..flow });
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        self.by_tuple.remove(&(flow.protocol, flow.tuple));
        if let Some(due) = flow.due {
            self.due.remove(&(due, id));
        }
        if matches!(flow.state, State::Asked(_)) {
            let open = self.asked(flow.protocol);
            *open = open.saturating_sub(1);
        }
        Some(flow)
    }

    /// All there are, for good.
    pub(super) fn drain(&mut self) -> Vec<(u64, Flow)> {
        self.by_tuple.clear();
        self.due.clear();
        self.line.clear();
        self.asked = [0; 2];
        self.flows.drain().collect()
    }

    /// Puts a flow into the line, if it is not in it.
    pub(super) fn queue(&mut self, id: u64) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !flow.queued
        {
            flow.queued = true;
            self.line.push_back(id);
        }
    }

    /// The next one in the line, taken out of it.
    pub(super) fn next(&mut self) -> Option<u64> {
        while let Some(id) = self.line.pop_front() {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.queued = false;
                return Some(id);
            }
        }
        None
    }

    /// Whether anybody is in the line.
    pub(super) fn has_work(&self) -> bool {
        !self.line.is_empty()
    }

    /// The flow has to be looked after at this time, and not before.
    pub(super) fn set_due(&mut self, id: u64, due: Option<Instant>) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if flow.due == due {
            return;
        }
        if let Some(old) = flow.due {
            self.due.remove(&(old, id));
        }
        flow.due = due;
        if let Some(due) = due {
            self.due.insert((due, id));
        }
    }

    /// A flow whose time has come.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<u64> {
        let &(due, id) = self.due.first()?;
        if due > now {
            return None;
        }
        self.due.pop_first();
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.due = None;
        }
        Some(id)
    }

    /// When the next one's time comes.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|&(due, _)| due)
    }
}
