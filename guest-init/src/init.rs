//! The order of work, and the event loop.

use std::convert::Infallible;
use std::path::Path;
use std::time::{Duration, Instant};

use flashpan_protocol::agent::{
    EXEC_PORT, GuestConfig, GuestMessage, HOST_CID, HostMessage, MAX_VARIABLES,
};
use flashpan_protocol::file::FILE_PORT;
use flashpan_protocol::forward::FORWARD_PORT;
use flashpan_protocol::phase::{CODE_INIT_READY, CODE_INIT_START, ExitRequest};
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::agent::{Agent, FIRST_TOKEN};
use crate::anchors::Anchors;
use crate::boot::{self, Connecting};
use crate::cgroup::Tree;
use crate::connection::{Connection, Received};
use crate::device_tree::{self, DeviceTree};
use crate::disks::{self, Writable};
use crate::failure::{During, Failure};
use crate::mounts::CGROUPS;
use crate::poller::{Poller, Watched};
use crate::shutdown::{self, Ending};
use crate::spawn::Privileges;
use crate::trust::{self, Trust};
use crate::{link, mounts, network, ports, reap, root, sys, vsock};

/// Tokens of PID 1's own descriptors, besides [`boot::TOKEN`].
const LISTENER: u64 = 1;
const SIGNALS: u64 = 2;
const FILE_LISTENER: u64 = 3;
const FORWARD_LISTENER: u64 = 4;

/// Open files of PID 1, and most that a program may raise its own limit to
/// (systemd's number).
const OPEN_FILES: u64 = 512 * 1024;

/// How long no connection is accepted after the kernel could not.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Most signals that are taken before other events have their turn. Programs can
/// send them as fast as they are taken.
const SIGNALS_PER_TURN: usize = 64;

/// Warnings that wait for a supervisor that does not read them.
const WARNINGS_MAX: usize = 64 * 1024;

/// Sets the guest up and serves it until the VM ends.
///
/// As any other process than PID 1 it only says what it is.
pub fn run() -> ! {
    if std::process::id() != 1 {
        // As root this program would take the machine apart that it runs on.
        eprintln!("flashpan-guest-init is PID 1 of flashpan's guests; it does nothing elsewhere");
        std::process::exit(125);
    }
    ports::mark(CODE_INIT_START);
    boot::report_panics();
    match set_up().and_then(Init::serve) {
        Ok(never) => match never {},
        Err(failure) => boot::fatal(failure),
    }
}

/// Everything that PID 1 owns while the guest runs.
struct Init {
    poller: Poller,
    boot: Connection,
    listener: Watched,
    file_listener: Watched,
    forward_listener: Watched,
    /// When to listen again.
    accept_again: Option<Instant>,
    signals: SignalFd,
    /// Whether there may be children to reap.
    children_ended: bool,
    agent: Agent,
    /// File systems to freeze at the end.
    writable: Vec<Writable>,
    ending: Option<Ending>,
}

/// From the first instruction to ready.
fn set_up() -> Result<Init, Failure> {
    // Signals arrive as events; none may be lost before the loop runs.
    sys::block_all_signals();
    mounts::devices()?;
    let connecting = Connecting::start()?;
    // Everything that does not depend on the configuration is done while the
    // supervisor accepts…
    let mut warnings = mounts::kernel_file_systems()?;
    let poller = Poller::new().during("make an epoll instance")?;
    let mut boot = connecting.finish(&poller)?;
    // … and while it answers.
    let devices = match DeviceTree::make(device_tree::DIRECTORY) {
        Ok(devices) => Some(devices),
        Err(errno) => {
            warnings.push(format!("make /dev for confined programs: {}", errno.desc()));
            None
        }
    };
    let groups = match Tree::create(Path::new(CGROUPS)) {
        Ok((groups, more)) => {
            warnings.extend(more);
            Some(groups)
        }
        Err(errno) => {
            warnings.push(format!("use control groups: {}", errno.desc()));
            None
        }
    };
    let listen = |port, token| {
        let mut listener = Watched::new(&poller, vsock::listen_on(port)?, token);
        listener.watch(Some(EpollFlags::EPOLLIN)).map(|()| listener)
    };
    let what = "listen for the supervisor (vsock ports 1025 to 1027)";
    let listener = listen(EXEC_PORT, LISTENER).during(what)?;
    let file_listener = listen(FILE_PORT, FILE_LISTENER).during(what)?;
    let forward_listener = listen(FORWARD_PORT, FORWARD_LISTENER).during(what)?;
    let signals = watch_signals(&poller)?;

    let config = boot.configuration()?;
    network::set_hostname(&config.hostname)?;
    limit(groups.as_ref(), &config)?;
    if let Some(link) = &config.network {
        link::set_up(link)?;
    }
    let resolver = config.network.map(|link| link.gateway4);
    let root = root::enter(&config.root, &config.hostname, &config.hosts, resolver)?;
    let trust = match &config.authority {
        Some(certificate) => {
            let has_upper = config.root.upper != flashpan_protocol::agent::Upper::None;
            trust::install(certificate, has_upper, devices.as_ref())
        }
        None => Trust::default(),
    };
    let mut variables = trust.variables;
    variables.extend(config.variables.iter().take(MAX_VARIABLES).cloned());
    let mut writable = disks::mount_all(&config.mounts)?;
    writable.extend(root.disk);
    let anchors = Anchors::take().during("open the root directory, /dev/null and /dev/pts")?;
    let agent =
        Agent::new(&poller, anchors, groups, devices, Privileges::Set).with_variables(variables);
    let mut boot = boot.into_connection();
    ports::mark(CODE_INIT_READY);
    boot.send(&GuestMessage::Ready);
    // Nothing runs before the loop does, so this overlaps with the supervisor's
    // first request.
    warnings.extend(prepare_for_programs());
    warnings.extend(root.warnings);
    warnings.extend(trust.warnings);
    for warning in warnings {
        boot.send(&GuestMessage::Warning(warning));
    }
    boot.watch().during("watch the boot connection")?;
    Ok(Init {
        poller,
        boot,
        listener,
        file_listener,
        forward_listener,
        accept_again: None,
        signals,
        children_ended: false,
        agent,
        writable,
        ending: None,
    })
}

/// Sets the limits of all programs together, before there are any. One that was
/// asked for and cannot be kept is no warning.
fn limit(groups: Option<&Tree>, config: &GuestConfig) -> Result<(), Failure> {
    let groups = groups.ok_or(Errno::ENODEV);
    if let Some(thousandths) = config.cpu_quota {
        let limited = groups.and_then(|groups| groups.limit_processors(thousandths));
        let what = "limit the processors of programs (CONFIG_CFS_BANDWIDTH, cgroup v2)";
        limited.during(what)?;
    }
    if let Some(most) = config.pids_limit {
        let limited = groups.and_then(|groups| groups.limit_processes(most));
        limited.during("limit the number of processes (CONFIG_CGROUP_PIDS, cgroup v2)")?;
    }
    Ok(())
}

/// What programs expect but can do without; returns what did not work.
fn prepare_for_programs() -> Vec<String> {
    let limit = |resource, value| setrlimit(resource, value, value);
    let steps = [
        ("raise the loopback interface", network::loopback_up()),
        (
            "be exempt from the out-of-memory killer",
            mounts::never_kill_me(),
        ),
        (
            "raise RLIMIT_NOFILE",
            limit(Resource::RLIMIT_NOFILE, OPEN_FILES),
        ),
        // The control group has a limit instead.
        (
            "raise RLIMIT_NPROC",
            limit(Resource::RLIMIT_NPROC, RLIM_INFINITY),
        ),
    ];
    let failed = |(what, result): (&str, nix::Result<()>)| {
        result
            .err()
            .map(|errno| format!("{what}: {}", errno.desc()))
    };
    steps.into_iter().filter_map(failed).collect()
}

fn watch_signals(poller: &Poller) -> Result<SignalFd, Failure> {
    let what = "receive signals";
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&SigSet::all(), flags).during(what)?;
    poller
        .add(&signals, EpollFlags::EPOLLIN, SIGNALS)
        .during(what)?;
    Ok(signals)
}

impl Init {
    fn serve(mut self) -> Result<Infallible, Failure> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let deadline = self.deadline();
            let count = self
                .poller
                .wait(&mut events, deadline)
                .during("wait for events")?;
            for event in events.iter().take(count) {
                match event.data() {
                    boot::TOKEN => self.on_boot(event.events()),
                    token @ (LISTENER | FILE_LISTENER | FORWARD_LISTENER) => {
                        self.on_connection(token);
                    }
                    SIGNALS => self.on_signals(),
                    token if token >= FIRST_TOKEN => self.agent.handle(token, event.events()),
                    _ => {}
                }
            }
            self.after_events();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let ending = self.ending.as_ref().map(Ending::deadline);
        let now = self.children_ended.then(Instant::now);
        let all = [now, ending, self.accept_again, self.agent.deadline()];
        all.into_iter().flatten().min()
    }

    fn after_events(&mut self) {
        if self.children_ended {
            self.children_ended = reap::some(&mut self.agent);
        }
        let now = Instant::now();
        self.agent.expire(now);
        self.agent.events().send(&mut self.boot);
        if self.accept_again.is_some_and(|again| now >= again) {
            self.accept_again = None;
            let _ = self.listener.watch(Some(EpollFlags::EPOLLIN));
            let _ = self.file_listener.watch(Some(EpollFlags::EPOLLIN));
            let _ = self.forward_listener.watch(Some(EpollFlags::EPOLLIN));
        }
        if let Some(ending) = &mut self.ending
            && ending.is_over(&mut self.agent)
        {
            shutdown::power_off(ending.request, &self.writable);
        }
        if self.boot.is_closed() || self.boot.watch().is_err() {
            self.abandoned();
        }
    }

    /// The supervisor is gone: nobody waits for anything any more.
    fn abandoned(&mut self) -> ! {
        self.agent.kill_all();
        shutdown::power_off(ExitRequest::PowerOff, &self.writable)
    }

    fn on_boot(&mut self, events: EpollFlags) {
        if events.contains(EpollFlags::EPOLLOUT) {
            self.boot.flush();
        }
        let mut scratch = [0_u8; 256];
        if self.boot.receive(&mut scratch) != Received::Bytes {
            return;
        }
        loop {
            match self.boot.next() {
                Ok(Some(HostMessage::Shutdown { grace_ms })) => {
                    let grace = Duration::from_millis(u64::from(grace_ms));
                    self.end(ExitRequest::PowerOff, grace);
                }
                Ok(Some(HostMessage::Hello { .. } | HostMessage::Configure(_))) => {
                    self.warn("the supervisor configured the guest twice; ignored");
                }
                Ok(None) => return,
                // Nothing that follows can be understood.
                Err(_) => return self.boot.close(),
            }
        }
    }

    fn warn(&mut self, message: &str) {
        if self.boot.queued() < WARNINGS_MAX {
            self.boot.send(&GuestMessage::Warning(message.to_owned()));
        }
    }

    fn end(&mut self, request: ExitRequest, grace: Duration) {
        // Who asks again asks for less patience, at most.
        let sooner = Instant::now().checked_add(grace);
        let earlier = self.ending.as_ref().map(Ending::deadline);
        if earlier.is_none() || sooner.is_some_and(|sooner| Some(sooner) < earlier) {
            let request = self
                .ending
                .as_ref()
                .map_or(request, |ending| ending.request);
            self.ending = Some(Ending::start(request, grace, &mut self.agent));
        }
    }

    fn on_connection(&mut self, token: u64) {
        let listener = match token {
            FILE_LISTENER => &mut self.file_listener,
            FORWARD_LISTENER => &mut self.forward_listener,
            _ => &mut self.listener,
        };
        match sys::accept_vsock(&*listener) {
            // Programs in the guest must not become root by asking the agent.
            Ok((socket, HOST_CID)) if token == FILE_LISTENER => self.agent.connect_files(socket),
            Ok((socket, HOST_CID)) if token == FORWARD_LISTENER => {
                self.agent.connect_forward(socket);
            }
            Ok((socket, HOST_CID)) => self.agent.connect(socket),
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(_) => {
                // Out of descriptors or memory: the connection stays in the
                // backlog and would wake the loop at once.
                let _ = listener.watch(None);
                self.accept_again = Some(Instant::now() + ACCEPT_AGAIN);
            }
        }
    }

    fn on_signals(&mut self) {
        for _ in 0..SIGNALS_PER_TURN {
            let Ok(Some(signal)) = self.signals.read_signal() else {
                return;
            };
            self.children_ended |= i32::try_from(signal.ssi_signo) == Ok(nix::libc::SIGCHLD);
            if let Some(request) = shutdown::asked_by(signal.ssi_signo)
                && self.ending.is_none()
            {
                let reboot = request == ExitRequest::Reboot;
                self.boot.send(&GuestMessage::ShuttingDown { reboot });
                self.end(request, shutdown::GUEST_GRACE);
            }
        }
    }
}
