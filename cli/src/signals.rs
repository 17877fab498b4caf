//! Signals that users send to `flashpan run`, and what they mean.

use std::io;
use std::task::{Context, Poll, Waker};

use nix::libc;
use nix::sys::signal::{SigSet, Signal as Number};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that end a run while it boots, and go to the command afterwards.
const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Signals that go to the command, and mean nothing before there is one: all
/// that can be caught, but for
///
/// * SIGCHLD, SIGPIPE and SIGURG, which the kernel sends for reasons of ours;
/// * SIGTTIN and SIGTTOU, which stop a background job that uses its terminal;
/// * those for faults and exceeded limits of this process: SIGILL, SIGTRAP,
///   SIGBUS, SIGFPE, SIGSEGV, SIGSYS, SIGXCPU, SIGXFSZ;
/// * SIGWINCH, which is a new size of the terminal.
const PASSED_ON: [i32; 11] = [
    libc::SIGABRT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGSTKFLT,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
];

/// How many times a user interrupts a command that does not obey before the
/// run is ended for it.
const PATIENCE: u32 = 3;

/// Has a write past the limit of file sizes (`ulimit -f`) fail, instead of ending
/// the process (SIGXFSZ): an error can be told. To be called before there are
/// threads, which inherit it, as do programs such as mkfs.
pub(crate) fn let_writes_fail() {
    let mut never = SigSet::empty();
    never.add(Number::SIGXFSZ);
    // It fails only for what is no set of signals.
    let _ = never.thread_block();
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// This signal is for the command, or ends the boot.
    Deliver(i32),
    /// The terminal has another size.
    Resize,
    /// The user has asked often enough.
    GiveUp(i32),
}

/// Watches signals. From its creation on none of them ends this process.
#[derive(Debug)]
pub(crate) struct Signals {
    ending: Group,
    passed_on: Group,
    resize: Group,
    interrupts: u32,
}

impl Signals {
    pub(crate) fn watch() -> io::Result<Self> {
        let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
        Ok(Self {
            ending: Group::watch(ENDING)?,
            passed_on: Group::watch(PASSED_ON.into_iter().chain(real_time))?,
            resize: Group::watch([libc::SIGWINCH])?,
            interrupts: 0,
        })
    }

    /// The next signal that ends a boot. Cancel safe.
    pub(crate) async fn ending(&mut self) -> i32 {
        std::future::poll_fn(|cx| self.ending.poll(cx)).await
    }

    /// Forgets what has come so far and means nothing before there is a
    /// command.
    pub(crate) async fn command_begins(&mut self) {
        // The kernel may have told of the guest first: after this, signals that came
        // before it are known.
        tokio::task::yield_now().await;
        let mut now = Context::from_waker(Waker::noop());
        for group in [&mut self.passed_on, &mut self.resize] {
            while group.poll(&mut now).is_ready() {}
        }
    }

    /// The next signal of any kind. Cancel safe.
    pub(crate) async fn next(&mut self) -> Asked {
        let number = tokio::select! {
            number = std::future::poll_fn(|cx| self.ending.poll(cx)) => number,
            number = std::future::poll_fn(|cx| self.passed_on.poll(cx)) => number,
            _ = std::future::poll_fn(|cx| self.resize.poll(cx)) => return Asked::Resize,
        };
        if matches!(number, libc::SIGINT | libc::SIGTERM) {
            self.interrupts = self.interrupts.saturating_add(1);
            if self.interrupts >= PATIENCE {
                return Asked::GiveUp(number);
            }
        }
        Asked::Deliver(number)
    }
}

/// Signals and their numbers.
#[derive(Debug)]
struct Group(Vec<(i32, Signal)>);

impl Group {
    fn watch(numbers: impl IntoIterator<Item = i32>) -> io::Result<Self> {
        let on = |number| Ok((number, signal(SignalKind::from_raw(number))?));
        numbers
            .into_iter()
            .map(on)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// One that has come. The stream of a signal never ends.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<i32> {
        let come = |(number, signal): &mut (i32, Signal)| {
            signal.poll_recv(cx).is_ready().then_some(*number)
        };
        match self.0.iter_mut().find_map(come) {
            Some(number) => Poll::Ready(number),
            None => Poll::Pending,
        }
    }
}
