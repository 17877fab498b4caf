//! All connections but the first: those of programs, those of files, and those
//! that are forwarded.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use flashpan_protocol::agent::{Bytes, MAX_DATA, StartFailure, StartFailureKind};
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::EpollFlags;

use crate::anchors::Anchors;
use crate::cgroup::{Removal, RunGroup, Tree};
use crate::device_tree::DeviceTree;
use crate::events::Events;
use crate::exec::Exec;
use crate::files::Files;
use crate::forward::Forwards;
use crate::poller::Poller;
use crate::spawn::Privileges;
use crate::sys::{self, Children};

/// Most programs at a time. Each takes a few descriptors and at most about
/// 3 MiB of PID 1's memory.
const EXECS_MAX: usize = 256;

/// Part of an exec connection that can have events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Socket,
    Status,
    Child,
    Stdin,
    Stdout,
    Stderr,
    Group,
    /// The socket in the guest of a forwarded connection.
    Local,
}

const SOURCES: [Source; 8] = [
    Source::Socket,
    Source::Status,
    Source::Child,
    Source::Stdin,
    Source::Stdout,
    Source::Stderr,
    Source::Group,
    Source::Local,
];

/// Bits of a token below the connection's number.
const SOURCE_BITS: u32 = 3;

/// Tokens below this belong to PID 1 itself: connections count from 1.
pub(crate) const FIRST_TOKEN: u64 = 1 << SOURCE_BITS;

/// The epoll token of a part of connection `id`.
pub(crate) fn token(id: u64, source: Source) -> u64 {
    (id << SOURCE_BITS) | source as u64
}

/// What all connections use.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) poller: Poller,
    pub(crate) anchors: Anchors,
    /// `None` where the kernel has no control groups.
    pub(crate) groups: Option<Tree>,
    /// The `/dev` of confined programs; `None` where it could not be made.
    pub(crate) devices: Option<DeviceTree>,
    pub(crate) privileges: Privileges,
    /// Variables of every program, in place of what it was given.
    pub(crate) variables: Vec<(Bytes, Bytes)>,
    /// What happened to programs, for the supervisor.
    pub(crate) events: Events,
    /// Bytes on their way from one descriptor to another.
    pub(crate) scratch: Vec<u8>,
    /// Groups in which processes were allowed to stay, or could not be ended.
    pub(crate) leftovers: Vec<RunGroup>,
    /// Programs that were started and whose groups are not given up yet.
    running: usize,
    /// Whether processes of a program were ever allowed to stay.
    lingered: bool,
}

impl Shared {
    /// A program was started.
    pub(crate) fn run_started(&mut self) {
        self.running = self.running.saturating_add(1);
    }

    /// A program has ended with its group; what was in that may stay if it
    /// may `linger`.
    ///
    /// A process that has moved to another group belongs to nobody. It goes
    /// when no program is left that could have started it, unless one was
    /// asked to leave something behind: this may be it.
    pub(crate) fn run_ended(&mut self, linger: bool) {
        self.running = self.running.saturating_sub(1);
        self.lingered |= linger;
        // Every process descends from PID 1: without children there is none.
        let alone = || sys::wait(Children::Any, false) == Err(Errno::ECHILD);
        if self.running == 0 && !self.lingered && is_init() && !alone() {
            let _ = sys::kill(-1, libc::SIGKILL);
        }
    }
}

/// Whether this process is PID 1, so that all others are programs'.
fn is_init() -> bool {
    std::process::id() == 1
}

/// The agent: runs programs, works on files and forwards connections for
/// whoever connects.
#[derive(Debug)]
pub(crate) struct Agent {
    execs: Vec<Exec>,
    files: Files,
    forwards: Forwards,
    next: u64,
    shared: Shared,
}

impl Agent {
    /// An agent whose events arrive at `poller`.
    pub(crate) fn new(
        poller: &Poller,
        anchors: Anchors,
        groups: Option<Tree>,
        devices: Option<DeviceTree>,
        privileges: Privileges,
    ) -> Self {
        Self {
            execs: Vec::new(),
            files: Files::default(),
            forwards: Forwards::default(),
            next: 1,
            shared: Shared {
                poller: poller.clone(),
                anchors,
                groups,
                devices,
                privileges,
                variables: Vec::new(),
                events: Events::default(),
                scratch: vec![0; MAX_DATA],
                leftovers: Vec::new(),
                running: 0,
                lingered: false,
            },
        }
    }

    /// With variables that every program has, in place of what it was given.
    pub(crate) fn with_variables(mut self, variables: Vec<(Bytes, Bytes)>) -> Self {
        self.shared.variables = variables;
        self
    }

    /// Takes a new file connection: a non-blocking stream socket.
    pub(crate) fn connect_files(&mut self, socket: OwnedFd) {
        let id = self.new_id();
        let root = self.shared.anchors.root();
        let names = (id, token(id, Source::Socket));
        self.files.connect(names, socket, root, &self.shared.poller);
    }

    /// Takes a new connection to forward: a non-blocking stream socket.
    pub(crate) fn connect_forward(&mut self, socket: OwnedFd) {
        let id = self.new_id();
        self.forwards.connect(id, socket, &self.shared);
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        id
    }

    /// Takes a new exec connection: a non-blocking stream socket.
    pub(crate) fn connect(&mut self, socket: OwnedFd) {
        let id = self.new_id();
        // If it cannot even be watched, closing it says enough.
        let Ok(mut exec) = Exec::new(id, socket, &self.shared) else {
            return;
        };
        if self.execs.len() >= EXECS_MAX {
            exec.refuse(StartFailure {
                kind: StartFailureKind::Resources,
                message: format!("the guest already runs {EXECS_MAX} programs; end one first"),
            });
        }
        if !exec.is_done() {
            self.execs.push(exec);
        }
    }

    /// Dispatches an event with a token of [`token`]. One whose connection is
    /// gone since it was collected is ignored.
    pub(crate) fn handle(&mut self, token: u64, events: EpollFlags) {
        let id = token >> SOURCE_BITS;
        // It has only one event, its end.
        if self.files.ended(id) {
            return;
        }
        let source = usize::try_from(token & (FIRST_TOKEN - 1)).ok();
        let source = source.and_then(|index| SOURCES.get(index));
        let host = source == Some(&Source::Socket);
        if self.forwards.handle(id, host, events, &mut self.shared) {
            return;
        }
        let place = self.execs.iter().position(|exec| exec.id() == id);
        if let (Some(place), Some(source)) = (place, source)
            && let Some(exec) = self.execs.get_mut(place)
        {
            exec.handle(*source, events, &mut self.shared);
            if exec.is_done() {
                self.execs.swap_remove(place);
            }
        }
    }

    /// Takes note if the ended child `pid` leads a program. Returns whether it
    /// does; otherwise it is an orphan.
    pub(crate) fn child_ended(&mut self, pid: i32) -> bool {
        let shared = &mut self.shared;
        let place = self.execs.iter().position(|exec| exec.leads(pid));
        let leader = place.and_then(|place| Some((place, self.execs.get_mut(place)?)));
        let Some((place, exec)) = leader else {
            return false;
        };
        exec.child_ended(shared);
        let reaped = !exec.leads(pid);
        if exec.is_done() {
            self.execs.swap_remove(place);
        }
        reaped
    }

    /// Removes the groups of which an orphan may have been the last.
    pub(crate) fn orphans_ended(&mut self) {
        self.shared
            .leftovers
            .retain(|group| group.remove() == Removal::Busy);
    }

    /// When [`Agent::expire`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let execs = self.execs.iter().filter_map(Exec::deadline);
        execs.chain(self.forwards.deadline()).min()
    }

    /// Does what deadlines that have passed ask for.
    pub(crate) fn expire(&mut self, now: Instant) {
        for exec in self.execs.iter_mut() {
            exec.expire(now, &mut self.shared);
        }
        self.execs.retain(|exec| !exec.is_done());
        self.forwards.expire(now);
    }

    /// Asks all programs to end and kills them after `grace`. What is done to
    /// files may be completed in that time.
    pub(crate) fn cancel_all(&mut self, grace: Duration) {
        for exec in self.execs.iter_mut() {
            exec.cancel(grace);
        }
        self.files.end_watches();
    }

    /// Ends every process but this one at once, and what is done to files.
    pub(crate) fn kill_all(&mut self) {
        self.files.kill_all();
        let _ = sys::kill(-1, libc::SIGKILL);
        if let Some(groups) = &self.shared.groups {
            let _ = groups.kill();
        }
    }

    /// Ends what is done to files; a test cannot end every process.
    #[cfg(test)]
    pub(crate) fn kill_all_files(&mut self) {
        self.files.kill_all();
    }

    /// What happened to programs and was not told yet.
    pub(crate) fn events(&mut self) -> &mut Events {
        &mut self.shared.events
    }

    /// Whether nothing is under way that an end in order waits for. Forwarded
    /// connections end with the programs that they lead to.
    pub(crate) fn is_idle(&self) -> bool {
        self.execs.is_empty() && self.files.is_idle()
    }

    /// Whether nothing is forwarded.
    pub(crate) fn forwards_nothing(&self) -> bool {
        self.forwards.is_idle()
    }
}

#[cfg(test)]
mod tests;
