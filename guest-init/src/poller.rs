//! The epoll instance and the descriptors that it watches.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// An epoll instance, shared by everything that waits in it.
#[derive(Debug, Clone)]
pub(crate) struct Poller(Rc<Epoll>);

impl Poller {
    pub(crate) fn new() -> nix::Result<Self> {
        Ok(Self(Rc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)))
    }

    /// Watches `fd` for good; its events carry `token`.
    pub(crate) fn add(&self, fd: impl AsFd, interest: EpollFlags, token: u64) -> nix::Result<()> {
        self.0.add(fd, EpollEvent::new(interest, token))
    }

    /// Waits for events, at most until `deadline`; returns how many there are.
    pub(crate) fn wait(
        &self,
        events: &mut [EpollEvent],
        deadline: Option<Instant>,
    ) -> nix::Result<usize> {
        let timeout = deadline.map_or(EpollTimeout::NONE, |deadline| {
            // Rounded up: a wait that ends just before its deadline would be
            // repeated with a time-out of zero until the clock gets there.
            let left =
                deadline.saturating_duration_since(Instant::now()) + Duration::from_nanos(999_999);
            EpollTimeout::try_from(left.as_millis()).unwrap_or(EpollTimeout::MAX)
        });
        match self.0.wait(events, timeout) {
            Err(Errno::EINTR) => Ok(0),
            result => result,
        }
    }
}

/// A descriptor that is, or can be, watched.
///
/// Interest is changed only when it differs from before, so it can be computed
/// anew after every event without a system call.
#[derive(Debug)]
pub(crate) struct Watched {
    fd: OwnedFd,
    poller: Poller,
    token: u64,
    interest: Option<EpollFlags>,
}

impl Watched {
    /// Takes `fd`, whose events are to carry `token`; watches nothing yet.
    pub(crate) fn new(poller: &Poller, fd: OwnedFd, token: u64) -> Self {
        Self {
            fd,
            poller: poller.clone(),
            token,
            interest: None,
        }
    }

    /// Watches for `interest`; errors and hang-up are always included.
    /// `None` stops: a level-triggered hang-up that nobody handles yet would
    /// keep the loop busy.
    pub(crate) fn watch(&mut self, interest: Option<EpollFlags>) -> nix::Result<()> {
        if self.interest == interest {
            return Ok(());
        }
        let epoll = &self.poller.0;
        match (self.interest, interest) {
            (_, None) => epoll.delete(&self.fd)?,
            (None, Some(flags)) => epoll.add(&self.fd, EpollEvent::new(flags, self.token))?,
            (Some(_), Some(flags)) => {
                epoll.modify(&self.fd, &mut EpollEvent::new(flags, self.token))?;
            }
        }
        self.interest = interest;
        Ok(())
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Closing is not enough: a child between fork and exec still holds the
        // same open file, and epoll would go on reporting it.
        let _ = self.watch(None);
    }
}
