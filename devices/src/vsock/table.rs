//! All connections: by id, by ports, and by deadline.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use event_manager::EventSet;

use super::connection::{Connection, Control, Phase};
use super::packet::{Op, Ports};
use super::{BUF_ALLOC, MAX_CONNECTIONS, MAX_LARGE_PROMISES, SMALL_BUF_ALLOC};

/// Host ports of connections that the host makes: away from those that it may
/// listen on, and from `VMADDR_PORT_ANY` (2³² - 1).
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// A connection with its host end.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) connection: Connection,
    pub(super) stream: UnixStream,
    /// The id that the host gave, if it made the connection.
    pub(super) host_id: Option<u64>,
    /// What epoll watches the stream for; none if it does not.
    pub(super) watched: Option<EventSet>,
    /// The stream may have something to read that was not read yet.
    pub(super) readable: bool,
    /// Both directions of the stream are shut.
    pub(super) hung_up: bool,
    /// Waits for its turn to give packets to the guest.
    pub(super) queued: bool,
    deadline: Option<Instant>,
}

impl Entry {
    /// What the stream has to be watched for. None if nothing may be learned
    /// any more: epoll reports a hang-up whether it is asked to or not.
    pub(super) fn interest(&self) -> Option<EventSet> {
        if self.hung_up {
            return None;
        }
        let mut interest = EventSet::empty();
        if self.connection.reads_host() && !self.readable {
            interest |= EventSet::IN | EventSet::READ_HANG_UP;
        }
        if self.connection.keeps_data() {
            interest |= EventSet::OUT;
        }
        Some(interest)
    }

    /// Whether there is data that the guest has room for.
    fn has_data(&self) -> bool {
        self.readable && self.connection.reads_host() && self.connection.credit() > 0
    }

    /// The control packet to be sent next, before any data.
    pub(super) fn due(&self) -> Option<Control> {
        // A host that closed may have sent data before: once that is read, one
        // SHUTDOWN tells of both directions.
        (self.connection.due()).filter(|control| control.op != Op::Shutdown || !self.has_data())
    }

    /// Whether something can be given to the guest now.
    pub(super) fn find_work(&mut self) -> bool {
        if self.readable && self.connection.reads_host() && self.connection.credit() == 0 {
            self.connection.stalled();
        }
        self.has_data() || self.connection.due().is_some()
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Table {
    entries: HashMap<u64, Entry>,
    by_ports: HashMap<Ports, u64>,
    deadlines: BTreeSet<(Instant, u64)>,
    next_id: u64,
    next_port: u32,
    /// How many there may be.
    most: usize,
    /// Sum of all promises of [`BUF_ALLOC`].
    promised: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            entries: HashMap::new(),
            by_ports: HashMap::new(),
            deadlines: BTreeSet::new(),
            next_id: 1,
            next_port: FIRST_PORT,
            most: MAX_CONNECTIONS,
            promised: 0,
        }
    }

    /// Lets there be no more than so many.
    pub(super) fn limit(&mut self, most: usize) {
        self.most = most.min(MAX_CONNECTIONS);
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= self.most
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    /// The connection that the guest knows under these ports.
    pub(super) fn find(&self, ports: Ports) -> Option<u64> {
        self.by_ports.get(&ports).copied()
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.entries.keys().copied().collect()
    }

    /// The ports of all connections that the guest may know.
    pub(super) fn known_ports(&self) -> impl Iterator<Item = Ports> + '_ {
        (self.by_ports.iter())
            .filter(|(_, id)| {
                let entry = self.entries.get(*id);
                entry.is_some_and(|entry| entry.connection.is_known_to_guest())
            })
            .map(|(ports, _)| *ports)
    }

    /// The credit to be promised to the next connection.
    pub(super) fn promise(&self) -> u32 {
        if self.promised < MAX_LARGE_PROMISES {
            BUF_ALLOC
        } else {
            SMALL_BUF_ALLOC
        }
    }

    /// A host port that is not in use towards this guest port.
    pub(super) fn allocate_port(&mut self, guest: u32) -> Option<Ports> {
        // There are fewer connections than tries: one try must succeed.
        for _ in 0..=MAX_CONNECTIONS {
            let host = self.next_port;
            self.set_next_port(host.wrapping_add(1));
            let ports = Ports { host, guest };
            if !self.by_ports.contains_key(&ports) {
                return Some(ports);
            }
        }
        None
    }

    pub(super) fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Values outside the range begin it anew.
    pub(super) fn set_next_port(&mut self, port: u32) {
        self.next_port = if (FIRST_PORT..=LAST_PORT).contains(&port) {
            port
        } else {
            FIRST_PORT
        };
    }

    /// Adds a connection, whose ports must be free, and returns its id, which
    /// is never used again.
    pub(super) fn insert(
        &mut self,
        connection: Connection,
        stream: UnixStream,
        host_id: Option<u64>,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if connection.buf_alloc() == BUF_ALLOC {
            self.promised += BUF_ALLOC as usize;
        }
        self.by_ports.insert(connection.ports(), id);
        let entry = Entry {
            connection,
            stream,
            host_id,
            watched: None,
            readable: false,
            hung_up: false,
            queued: false,
            deadline: None,
        };
        self.entries.insert(id, entry);
        id
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Entry> {
        self.set_deadline(id, None);
        let entry = self.entries.remove(&id)?;
        if entry.connection.buf_alloc() == BUF_ALLOC {
            self.promised -= BUF_ALLOC as usize;
        }
        let ports = entry.connection.ports();
        if self.by_ports.get(&ports) == Some(&id) {
            self.by_ports.remove(&ports);
        }
        Some(entry)
    }

    /// The guest is done with this connection: its ports are free.
    pub(super) fn drain(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        // After this the ports may belong to another connection.
        let ports = entry.connection.ports();
        if self.by_ports.get(&ports) == Some(&id) {
            self.by_ports.remove(&ports);
        }
        entry.connection.drain();
        if entry.connection.phase() == Phase::Draining {
            self.set_deadline(id, None);
        }
    }

    pub(super) fn set_deadline(&mut self, id: u64, deadline: Option<Instant>) {
        if let Some(entry) = self.entries.get_mut(&id) {
            if let Some(old) = entry.deadline.take() {
                self.deadlines.remove(&(old, id));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, id));
                entry.deadline = Some(new);
            }
        }
    }

    /// Puts all deadlines off.
    pub(super) fn postpone(&mut self, by: Duration) {
        let deadlines = std::mem::take(&mut self.deadlines);
        for (deadline, id) in deadlines {
            let later = deadline + by;
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.deadline = Some(later);
            }
            self.deadlines.insert((later, id));
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// A connection whose deadline has passed. The caller has to remove it or
    /// to set another deadline.
    pub(super) fn expired(&self, now: Instant) -> Option<u64> {
        let (deadline, id) = self.deadlines.first()?;
        (*deadline <= now).then_some(*id)
    }
}
