//! What a device waits for besides kicks: sockets of the host, and deadlines.
//!
//! All of it is behind one epoll descriptor, which is itself watched by the
//! event loop: sockets come and go without the loop knowing.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use event_manager::EventSet;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

/// Tokens that are not ids of sockets, which count up from 1.
const TIMER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

/// Reports taken at once. What does not fit is reported at the next run.
const MAX_REPORTS: usize = 64;

/// Something that is ready.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ready {
    /// A socket can be read or written, or both its directions are shut.
    Socket {
        id: u64,
        input: bool,
        output: bool,
        gone: bool,
    },
    /// A deadline has passed.
    Timer,
}

/// See the [module](self).
pub(crate) struct Reactor {
    epoll: Epoll,
    timer: TimerFd,
    /// When the timer goes off.
    armed: Option<Instant>,
    wake: EventFd,
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (f.debug_struct("Reactor"))
            .field("fd", &self.epoll.as_raw_fd())
            .field("armed", &self.armed)
            .finish_non_exhaustive()
    }
}

impl Reactor {
    /// What was tried comes with the error if the host refuses.
    pub(crate) fn new() -> Result<Self, (&'static str, io::Error)> {
        let failed = |what| move |error| (what, error);
        let epoll = Epoll::new().map_err(failed("create an epoll descriptor"))?;
        let timer = (TimerFd::new().map_err(io::Error::from)).map_err(failed("create a timer"))?;
        let wake = EventFd::new(EFD_NONBLOCK).map_err(failed("create an event descriptor"))?;
        let add = |fd: RawFd, interest, token| {
            let event = EpollEvent::new(interest, token);
            (epoll.ctl(ControlOperation::Add, fd, event)).map_err(failed("watch a descriptor"))
        };
        add(timer.as_raw_fd(), EventSet::IN, TIMER)?;
        // Edge-triggered: each write is one report, and need not be read.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        add(wake.as_raw_fd(), edge, WAKE)?;
        Ok(Self {
            epoll,
            timer,
            armed: None,
            wake,
        })
    }

    /// Makes the event loop run the device soon.
    pub(crate) fn wake(&self) {
        // Fails only if the counter is full, after 2⁶⁴ writes.
        let _ = self.wake.write(1);
    }

    /// What is ready now.
    pub(crate) fn poll(&mut self) -> Vec<Ready> {
        let mut events = [EpollEvent::default(); MAX_REPORTS];
        // Fails only if interrupted by a signal: it will be reported again.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        let has = |event: &EpollEvent, any: EventSet| event.events() & any.bits() != 0;
        (events.iter().take(count))
            .filter_map(|event| match event.data() {
                WAKE => None,
                TIMER => Some(Ready::Timer),
                id => Some(Ready::Socket {
                    id,
                    input: has(event, EventSet::IN | EventSet::READ_HANG_UP),
                    output: has(event, EventSet::OUT),
                    gone: has(event, EventSet::HANG_UP | EventSet::ERROR),
                }),
            })
            .collect()
    }

    /// Watches socket `id` for `interest`; `watched` is what it was watched for
    /// up to now, and is brought up to date.
    pub(crate) fn watch(
        &self,
        id: u64,
        socket: &impl AsRawFd,
        watched: &mut Option<EventSet>,
        interest: Option<EventSet>,
    ) -> io::Result<()> {
        if interest == *watched {
            return Ok(());
        }
        let operation = match (*watched, interest) {
            (None, _) => ControlOperation::Add,
            (Some(_), Some(_)) => ControlOperation::Modify,
            (Some(_), None) => ControlOperation::Delete,
        };
        let event = EpollEvent::new(interest.unwrap_or(EventSet::empty()), id);
        self.epoll.ctl(operation, socket.as_raw_fd(), event)?;
        *watched = interest;
        Ok(())
    }

    /// Watches a socket no more. Closing it is not enough: whoever has handed
    /// it in may keep a copy of the descriptor.
    pub(crate) fn forget(&self, socket: &impl AsRawFd, watched: &mut Option<EventSet>) {
        if watched.take().is_some() {
            let fd = socket.as_raw_fd();
            let _ = self
                .epoll
                .ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
    }

    /// Sets the timer to the next deadline, if that has changed.
    pub(crate) fn set_timer(&mut self, deadline: Option<Instant>) {
        if self.armed == deadline {
            return;
        }
        // Setting it also clears a report, so that it need not be read.
        let set = match deadline {
            Some(deadline) => {
                // Zero would mean never.
                let left = deadline.saturating_duration_since(Instant::now());
                self.timer.reset(left.max(Duration::from_nanos(1)), None)
            }
            None => self.timer.clear(),
        };
        // Fails only for values that are out of range.
        if set.is_ok() {
            self.armed = deadline;
        }
    }

    /// The timer went off: it has to be set again even to the same deadline.
    pub(crate) fn timer_expired(&mut self) {
        let _ = self.timer.clear();
        self.armed = None;
    }
}

impl AsRawFd for Reactor {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
