//! A program while it lives: its leader process, its group, its descriptors.

use std::os::fd::AsFd;

use flashpan_protocol::agent::{ExitStatus, StartFailure, StartFailureKind, TerminalSize};
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::EpollFlags;
use nix::unistd::read;

use crate::agent::{Shared, Source, token};
use crate::cgroup::{Removal, RunGroup, Tree};
use crate::plan::Plan;
use crate::poller::Watched;
use crate::reaper::Reaper;
use crate::spawn::{self, Privileges, REPORT, Spawned, Surroundings, no_resources};
use crate::stdio::{self, Input, OurStdio, Output, Terminal};
use crate::sys::{self, Children};

/// Whether the child has become the program.
#[derive(Debug)]
pub(crate) enum Launch {
    /// Not known yet.
    Pending,
    /// `execve` has succeeded.
    Started,
    /// It never will.
    Failed(StartFailure),
}

/// What is left of a program whose leader has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remains {
    /// Nothing, or only what may stay.
    None,
    /// Processes in its group; [`Source::Group`] tells when they are gone.
    Processes,
}

/// A started program.
#[derive(Debug)]
pub(crate) struct Run {
    pid: i32,
    /// Until the leader is reaped.
    pidfd: Option<Watched>,
    /// With its plan, for messages, until the outcome of `execve` is known.
    status: Option<(Watched, Plan)>,
    /// How the leader ended.
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) input: Input,
    pub(crate) output: Output,
    pub(crate) errors: Option<Output>,
    terminal: Option<Terminal>,
    group: Option<RunGroup>,
    /// PID 1 of its process namespace. Not dropped while the leader lives: it ends
    /// when it has no children, and the leader is none of them.
    reaper: Option<Reaper>,
    /// Armed while the group is waited for.
    group_events: Option<Watched>,
    pub(crate) linger: bool,
}

impl Run {
    /// Forks the program of `plan`; what becomes of it, [`Run::launch`] tells.
    pub(crate) fn start(plan: Plan, id: u64, shared: &mut Shared) -> Result<Self, StartFailure> {
        let group = match shared.groups.as_mut().map(Tree::new_run).transpose() {
            Ok(group) => group,
            Err(errno) => {
                return Err(no_resources("make a control group for the program", errno));
            }
        };
        let (stdio, spawned, reaper) = match Self::fork(&plan, group.as_ref(), shared) {
            Ok(forked) => forked,
            Err(failure) => {
                let busy = group.filter(|group| group.remove() == Removal::Busy);
                shared.leftovers.extend(busy);
                return Err(failure);
            }
        };
        let poller = &shared.poller;
        let watched = |fd, source| Watched::new(poller, fd, token(id, source));
        let output = |fd, source| Output::new(poller, fd, token(id, source));
        let on_terminal = stdio.terminal.is_some();
        Ok(Self {
            pid: spawned.child.pid,
            pidfd: Some(watched(spawned.child.pidfd, Source::Child)),
            linger: plan.linger,
            status: Some((watched(spawned.status, Source::Status), plan)),
            exit: None,
            input: Input::new(poller, stdio.input, on_terminal, token(id, Source::Stdin)),
            output: output(stdio.output, Source::Stdout),
            errors: stdio.errors.map(|fd| output(fd, Source::Stderr)),
            terminal: stdio.terminal,
            group,
            reaper,
            group_events: None,
        })
    }

    /// Drops the program's ends of its streams: only the program holds them.
    fn fork(
        plan: &Plan,
        group: Option<&RunGroup>,
        shared: &Shared,
    ) -> Result<(OurStdio, Spawned, Option<Reaper>), StartFailure> {
        let (ours, theirs) = stdio::make(plan, &shared.anchors)
            .map_err(|errno| no_resources("make the program's input and output", errno))?;
        let surroundings = match shared.privileges {
            Privileges::Set => Self::surroundings(plan, shared)?,
            #[cfg(test)]
            Privileges::Keep => Surroundings::default(),
        };
        let group = group.map(AsFd::as_fd);
        let spawned = spawn::spawn(plan, &theirs, group, &surroundings, shared.privileges)
            .map_err(|errno| no_resources("start a process", errno))?;
        Ok((ours, spawned, surroundings.reaper))
    }

    fn surroundings(plan: &Plan, shared: &Shared) -> Result<Surroundings, StartFailure> {
        let confinement = &plan.confinement;
        let started = confinement.private_processes().then(Reaper::start);
        let started = started.transpose().map_err(|errno| match errno {
            Errno::EINVAL => StartFailure {
                kind: StartFailureKind::Resources,
                message: "the guest's kernel has no process namespaces (CONFIG_PID_NS); use a \
                          kernel that has, or run the program among those of the VM"
                    .to_owned(),
            },
            errno => no_resources("make a process namespace", errno),
        })?;
        let devices = confinement.own_devices().then(|| {
            let devices = shared.devices.as_ref().ok_or(Errno::ENODEV)?;
            devices.copy()
        });
        let devices = devices
            .transpose()
            .map_err(|errno| no_resources("make a /dev for the program", errno))?;
        let (reaper, harmless) = started.unzip();
        Ok(Surroundings {
            reaper,
            harmless,
            devices,
        })
    }

    /// The process id of the leader.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Looks whether `execve` has succeeded.
    pub(crate) fn launch(&mut self) -> Launch {
        let Some((status, plan)) = &self.status else {
            return Launch::Started;
        };
        let mut report = [0_u8; REPORT];
        let launch = match read(status, &mut report) {
            Err(Errno::EAGAIN | Errno::EINTR) => return Launch::Pending,
            Ok(n) => spawn::explain(report.get(..n).unwrap_or_default(), plan),
            Err(_) => None,
        };
        self.status = None;
        launch.map_or(Launch::Started, Launch::Failed)
    }

    /// Whether [`Run::launch`] has given its answer.
    pub(crate) fn is_launched(&self) -> bool {
        self.status.is_none()
    }

    /// Sends `signal` to the process group of the leader.
    pub(crate) fn signal(&self, signal: i32) {
        // Once the leader is reaped its number may belong to somebody else.
        if self.exit.is_none() && sys::kill(-self.pid, signal) == Err(Errno::ESRCH) {
            // It has not made its process group yet.
            let _ = sys::kill(self.pid, signal);
        }
    }

    /// Asks the program to end.
    pub(crate) fn terminate(&self) {
        if self.terminal.is_some() {
            // An interactive shell ignores SIGTERM, but not that its terminal
            // is gone.
            self.signal(libc::SIGHUP);
        }
        self.signal(libc::SIGTERM);
        // A stopped process does not see it before it continues.
        self.signal(libc::SIGCONT);
    }

    /// Ends the program and everything that it started.
    pub(crate) fn kill(&self) {
        self.signal(libc::SIGKILL);
        if let Some(group) = &self.group {
            let _ = group.kill();
        }
        // What has left the group is still in the namespace.
        if let Some(reaper) = &self.reaper {
            reaper.kill();
        }
    }

    /// After the leader's end, when nothing is left in its group or it may stay:
    /// gives up the namespace, with all that is in it unless that may stay.
    pub(crate) fn leave_namespace(&mut self) {
        if let Some(reaper) = self.reaper.take()
            && !self.linger
        {
            reaper.kill();
        }
    }

    /// Sets the size of the terminal, if there is one.
    pub(crate) fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = &self.terminal {
            terminal.resize(size);
        }
    }

    /// Notes how the leader ended, if it has.
    pub(crate) fn reap(&mut self) {
        if self.exit.is_some() {
            return;
        }
        if self.group.is_none() && !self.linger && self.has_ended() {
            // Before its number is given up: then it stands for this group.
            let _ = sys::kill(-self.pid, libc::SIGKILL);
            if let Some(reaper) = &self.reaper {
                reaper.kill();
            }
        }
        if let Ok(Some(ended)) = sys::wait(Children::One(self.pid), true) {
            self.exit = Some(ended.status);
            self.pidfd = None;
        }
    }

    /// The leader has ended, and somebody who traces it keeps how. Its programs
    /// go with it, and the tracer is one of them as a rule.
    pub(crate) fn end_tracers(&self) {
        if self.exit.is_none() && !self.linger {
            self.kill();
        }
    }

    fn has_ended(&self) -> bool {
        matches!(sys::wait(Children::One(self.pid), false), Ok(Some(_)))
    }

    /// Gives up on a leader that does not even react to SIGKILL, for instance
    /// because it waits for a device.
    pub(crate) fn abandon(&mut self) {
        if self.exit.is_none() {
            self.exit = Some(ExitStatus::Signal(libc::SIGKILL));
            self.pidfd = None;
            self.status = None;
        }
    }

    /// After the leader's end: removes the group if nothing is left in it.
    pub(crate) fn clear_group(&mut self, id: u64, shared: &Shared) -> Remains {
        let Some(group) = &self.group else {
            return Remains::None;
        };
        if group.remove() == Removal::Removed {
            self.group = None;
            self.group_events = None;
            return Remains::None;
        }
        if self.group_events.is_none()
            && let Ok(events) = group.watch_empty()
        {
            let mut events = Watched::new(&shared.poller, events, token(id, Source::Group));
            if events.watch(Some(EpollFlags::EPOLLPRI)).is_ok() {
                self.group_events = Some(events);
            }
        }
        Remains::Processes
    }

    /// Leaves the group to be removed later, when what is in it has ended.
    pub(crate) fn give_up_group(&mut self) -> Option<RunGroup> {
        self.group_events = None;
        self.group.take()
    }

    /// Watches for everything that can happen next; output only if there is
    /// `room` for it.
    pub(crate) fn watch(&mut self, room: bool) -> nix::Result<()> {
        if let Some((status, _)) = &mut self.status {
            status.watch(Some(EpollFlags::EPOLLIN))?;
        }
        if let Some(pidfd) = &mut self.pidfd {
            // By the edge: of a process that somebody traces the end is seen
            // before it can be waited for, and seen again when it can.
            pidfd.watch(Some(EpollFlags::EPOLLIN | EpollFlags::EPOLLET))?;
        }
        // That it was started is said first of all.
        if !self.is_launched() {
            return Ok(());
        }
        self.input.watch()?;
        self.output.watch(room)?;
        self.errors
            .as_mut()
            .map_or(Ok(()), |errors| errors.watch(room))
    }
}
