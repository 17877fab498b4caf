//! The life of a supervisor: from the claim on its VM to the word on how it ended.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use flashpan_protocol::agent::ExitStatus;
use flashpan_protocol::supervisor::Activity;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::api::SecretValue;
use crate::error::{Error, Result};
use crate::events::VmEvent;
use crate::exit::Exit;
use crate::forward::{BoundPorts, PortForwarding};
use crate::pump::Task;
use crate::sandbox::Sandbox;
use crate::state::{
    Claim, CommandEnd, EventLog, ExitRecord, LogFile, LogStream, Publish, Record, Status, Vms,
};
use crate::supervise::command::{OwnCommand, SharedLog};
use crate::supervise::detach::{Channel, Starter};
use crate::supervise::doing::Doing;
use crate::supervise::server::Clients;
use crate::supervise::start::{NotStarted, Order};
use crate::supervise::tell::tell;

/// How long a guest may write its disks after its programs have ended, when its VM is
/// stopped or its time is up.
pub const WITHIN: Duration = Duration::from_secs(300);

/// The same for a guest that has nothing to write.
const WITHIN_WITHOUT_DISKS: Duration = Duration::from_secs(10);

/// How long the last events may take to be written down.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// What a VM is launched from.
#[derive(Debug)]
pub struct Launching {
    record: Record,
    directory: PathBuf,
    console: Option<LogFile>,
    output: SharedLog,
    secrets: BTreeMap<String, SecretValue>,
    keeps_nothing: Arc<AtomicBool>,
    secrets_given: BTreeSet<String>,
}

impl Launching {
    /// Says that nothing of the VM stays ([`crate::Launch::keeps_something`]): nobody waits
    /// long for a guest that does not end.
    pub fn keeps_nothing(&self) {
        self.keeps_nothing.store(true, Ordering::Relaxed);
    }

    /// What the VM is.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Where its files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The values of its secrets, by name. Once.
    pub fn take_secrets(&mut self) -> BTreeMap<String, SecretValue> {
        std::mem::take(&mut self.secrets)
    }

    /// Names of secrets that are not what their sources have
    /// ([`crate::HostOptions::secrets_given`]). Once.
    pub fn take_secrets_given(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.secrets_given)
    }

    /// Where its console goes: [`crate::SandboxBuilder::console_sink`]. Once.
    pub fn take_console(&mut self) -> Option<impl Write + Send + use<>> {
        self.console.take()
    }

    /// Where goes what its own command writes: [`crate::SandboxBuilder::output_sink`].
    #[must_use]
    pub fn output(&self) -> impl Write + Send + use<> {
        self.output.clone()
    }
}

/// What the main loop and the tasks of clients share.
#[derive(Debug)]
pub(super) struct Shared {
    claim: Arc<Claim>,
    events: EventLog,
    doing: Doing,
    sandbox: OnceLock<Arc<Sandbox>>,
    /// Whether the VM is not wanted any more although it is not there yet.
    abort: watch::Sender<bool>,
    /// How the VM is to be shut down: the time for its programs, and then for the rest.
    stop: watch::Sender<Option<(Duration, Duration)>>,
    keeps_nothing: Arc<AtomicBool>,
    command: watch::Sender<Option<ExitStatus>>,
    finished: watch::Sender<Option<Arc<str>>>,
    /// Tells when all events of the guest are written down.
    told: Mutex<Option<oneshot::Receiver<()>>>,
    begun: Instant,
}

impl Shared {
    pub(super) fn activity(&self) -> Activity {
        self.doing.now()
    }

    /// Says what the VM does now. One that shuts down does nothing else any more.
    pub(super) fn say(&self, now: Activity) {
        self.doing
            .change(now, || self.events.vm(Status::of(now), None));
    }

    pub(super) fn sandbox(&self) -> Option<&Arc<Sandbox>> {
        self.sandbox.get()
    }

    pub(super) fn uptime_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Waits until what the VM did so far is written down, unless that takes long.
    pub(super) async fn written(&self) {
        self.doing.noted().await;
        self.events.written().await;
    }

    /// Writes down what happened in the guest.
    pub(super) fn tell(&self, event: &VmEvent) {
        self.events.program(event);
    }

    /// Writes down that so many events could not be, all of the network or none.
    pub(super) fn lost(&self, count: u64, network: bool) {
        self.events.lost(count, network);
    }

    /// Shuts the VM down. It goes on whoever asked, and the shortest time of all who ask
    /// counts.
    pub(super) fn stop(&self, grace: Duration, within: Duration) {
        self.say(Activity::Stopping);
        let Some(sandbox) = self.sandbox.get().map(Arc::clone) else {
            self.abort.send_replace(true);
            return;
        };
        let within = match self.keeps_nothing.load(Ordering::Relaxed) {
            true => within.min(WITHIN_WITHOUT_DISKS),
            false => within,
        };
        let is_first = self.stop.send_if_modified(|order| {
            let is_first = order.is_none();
            order.get_or_insert((grace, within));
            is_first
        });
        if is_first {
            return;
        }
        // The guest is told again: it keeps to the shortest time of all.
        tokio::spawn(async move { sandbox.shutdown_within(grace, within).await });
    }

    pub(super) fn kill(&self) {
        self.say(Activity::Stopping);
        match self.sandbox.get().map(Arc::clone) {
            Some(sandbox) => drop(tokio::spawn(async move { sandbox.kill().await })),
            None => drop(self.abort.send_replace(true)),
        }
    }

    /// Waits until the VM has ended and that is written down. Cancel safe.
    pub(super) async fn finished(&self) -> Arc<str> {
        let mut finished = self.finished.subscribe();
        let record = match finished.wait_for(Option::is_some).await {
            Ok(record) => record.clone(),
            Err(_) => None,
        };
        match record {
            Some(record) => record,
            None => std::future::pending().await,
        }
    }

    /// Waits until the VM's command has ended, for ever if it has none. Cancel safe.
    pub(super) async fn command_ended(&self) -> ExitStatus {
        let mut command = self.command.subscribe();
        match command
            .wait_for(Option::is_some)
            .await
            .map(|status| *status)
        {
            Ok(Some(status)) => status,
            _ => std::future::pending().await,
        }
    }

    /// Waits for how the VM is to be shut down. Cancel safe.
    async fn to_stop(&self) -> (Duration, Duration) {
        let mut stop = self.stop.subscribe();
        match stop.wait_for(Option::is_some).await.map(|order| *order) {
            Ok(Some(order)) => order,
            _ => std::future::pending().await,
        }
    }

    async fn aborted(&self) {
        let mut abort = self.abort.subscribe();
        if abort.wait_for(|abort| *abort).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Signals that end a supervisor.
struct Ending([Signal; 3]);

impl Ending {
    fn watch() -> Result<Self> {
        let on = |kind| signal(kind).map_err(Error::host("watch signals"));
        Ok(Self([
            on(SignalKind::terminate())?,
            on(SignalKind::interrupt())?,
            on(SignalKind::hangup())?,
        ]))
    }

    /// The next one. Cancel safe.
    async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// What is made before the VM is.
struct Begun {
    shared: Arc<Shared>,
    listener: UnixListener,
    launching: Launching,
    ending: Ending,
}

/// Supervises a VM from its start to its end: `launch` boots it. The starter hears how
/// that went; there is nobody to tell anything afterwards.
///
/// Needs a tokio runtime with everything enabled, and nothing else in its process.
pub async fn supervise<L, F>(mut starter: Starter, launch: L)
where
    L: FnOnce(Launching) -> F,
    F: Future<Output = Result<Sandbox, NotStarted>>,
{
    let Some((mut order, vms)) = starter.order() else {
        return;
    };
    let Ok(channel) = starter.channel() else {
        return;
    };
    let secrets = std::mem::take(&mut order.secrets);
    match begin(&order, secrets, &vms) {
        Ok(begun) => live(begun, &order, channel, launch).await,
        Err(why) => channel.failed(&why).await,
    }
}

fn begin(
    order: &Order,
    secrets: BTreeMap<String, SecretValue>,
    vms: &Vms,
) -> Result<Begun, NotStarted> {
    // From here on a signal ends the VM in order, and not this process.
    let ending = Ending::watch()?;
    let (claim, listener) = vms.claim(&order.id, !order.run_command)?;
    let claim = Arc::new(claim);
    let directory = claim.directory().to_owned();
    let prepared = (|| {
        let log = |stream: LogStream| LogFile::open(directory.join(stream.file_name()));
        let events = EventLog::open(&order.id, &directory)?;
        let noted = Arc::clone(&claim);
        let doing = Doing::starting(move |activity| noted.say(activity))?;
        let listener = UnixListener::from_std(listener)?;
        let logs = (log(LogStream::Console)?, log(LogStream::Output)?);
        Ok((listener, logs, events, doing))
    })();
    let (listener, (console, output), events, doing) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let error: std::io::Error = error;
            let why = format!(
                "cannot make the VM's files in {}: {error}",
                directory.display()
            );
            let _ = claim.end(&ExitRecord::new(claim.run(), Err(&why), None), false);
            return Err(NotStarted::new(why));
        }
    };
    events.vm(Status::Starting, None);
    let keeps_nothing = Arc::<AtomicBool>::default();
    let launching = Launching {
        record: claim.record().clone(),
        directory,
        console: Some(console),
        output: SharedLog::new(output),
        secrets,
        keeps_nothing: Arc::clone(&keeps_nothing),
        secrets_given: order.secrets_given.clone(),
    };
    let shared = Arc::new(Shared {
        claim,
        events,
        doing,
        sandbox: OnceLock::new(),
        abort: watch::Sender::new(false),
        stop: watch::Sender::new(None),
        keeps_nothing,
        command: watch::Sender::new(None),
        finished: watch::Sender::new(None),
        told: Mutex::new(None),
        begun: Instant::now(),
    });
    Ok(Begun {
        shared,
        listener,
        launching,
        ending,
    })
}

async fn live<L, F>(begun: Begun, order: &Order, mut channel: Channel, launch: L)
where
    L: FnOnce(Launching) -> F,
    F: Future<Output = Result<Sandbox, NotStarted>>,
{
    let Begun {
        shared,
        listener,
        launching,
        mut ending,
    } = begun;
    let record = launching.record.clone();
    let output = launching.output.clone();
    let clients = Arc::new(Clients::none());
    let server = {
        let (clients, shared) = (Arc::clone(&clients), Arc::clone(&shared));
        Task::spawn(async move { clients.serve(listener, shared).await })
    };
    let boot = async {
        // One that is taken is known before anything is booted.
        let bound = bind(&record)?;
        let sandbox = Arc::new(launch(launching).await?);
        let _ = shared.sandbox.set(Arc::clone(&sandbox));
        let told = tell(sandbox.events()?, Arc::clone(&shared));
        *shared.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        // Before its command, which may call for whoever is there.
        let ports = publish(bound, &sandbox, &shared.claim).await?;
        let command = match order.run_command.then(|| record.programs.own_command()) {
            Some(Some(options)) => {
                let process = sandbox.exec(options).await?;
                Some(OwnCommand::new(process, &output)?)
            }
            _ => None,
        };
        Ok((sandbox, command, ports))
    };
    let booted = tokio::select! {
        // What is not wanted any more is not said to be there.
        biased;
        () = shared.aborted() => Err(NotStarted::new("the VM was ended while it started")),
        // Its guest is there already, and its command is not waited for.
        (grace, within) = shared.to_stop() => {
            if let Some(sandbox) = shared.sandbox.get() {
                sandbox.shutdown_within(grace, within).await;
            }
            Err(NotStarted::new("the VM was ended while it started"))
        }
        () = channel.gone() => Err(NotStarted::new("the command that started the VM ended")),
        () = ending.next() => Err(NotStarted::new("the VM's supervisor was ended by a signal")),
        booted = boot => booted,
    };
    let (sandbox, command, ports) = match booted {
        Ok(booted) => booted,
        Err(why) => {
            if let Some(sandbox) = shared.sandbox.get() {
                sandbox.kill().await;
            }
            let exit = ExitRecord::new(shared.claim.run(), Err(&why.message), None);
            let remove = order.remove_unless_ready || record.remove;
            finish(&shared, &clients, server, &exit, remove).await;
            return channel.failed(&why).await;
        }
    };
    shared.say(Activity::Running);
    // Whoever started it looks for that.
    shared.written().await;
    let wanted = channel.ready(sandbox.take_warnings()).await;
    if !wanted {
        shared.kill();
    }
    let exit = run(&shared, &record, &sandbox, command, &mut ending).await;
    // The ports are there as long as the VM is: free when it is said to have ended.
    drop(ports);
    let remove = record.remove || (order.remove_unless_ready && !wanted);
    finish(&shared, &clients, server, &exit, remove).await;
}

/// Holds the VM's ports, if it has any.
fn bind(record: &Record) -> std::result::Result<Option<BoundPorts>, NotStarted> {
    let wanted = Some(&record.publish).filter(|ports| !ports.is_empty());
    Ok(wanted.map(Publish::bind).transpose()?)
}

/// Makes the VM's ports reachable.
async fn publish(
    bound: Option<BoundPorts>,
    sandbox: &Sandbox,
    claim: &Claim,
) -> std::result::Result<Option<PortForwarding>, NotStarted> {
    let Some(bound) = bound else {
        return Ok(None);
    };
    let forwarding = sandbox.forward_bound(bound).await?;
    claim.published(forwarding.bindings())?;
    Ok(Some(forwarding))
}

/// Shuts the VM down. Its command is asked first if it wants another signal than all
/// programs get then.
async fn shut_down(
    shared: Arc<Shared>,
    sandbox: Arc<Sandbox>,
    asked_first: bool,
    (grace, within): (Duration, Duration),
) {
    let begun = Instant::now();
    if asked_first {
        // A guest that stands still hears nothing.
        let _ = sandbox.resume().await;
        let _ = timeout(grace, shared.command_ended()).await;
    }
    let left = grace.saturating_sub(begun.elapsed());
    sandbox.shutdown_within(left, within).await;
}

/// From ready to the end.
async fn run(
    shared: &Arc<Shared>,
    record: &Record,
    sandbox: &Arc<Sandbox>,
    mut command: Option<OwnCommand>,
    ending: &mut Ending,
) -> ExitRecord {
    let grace = record.grace();
    let mut stopping = false;
    let (mut timed_out, mut signals) = (false, 0_u32);
    let mut status = None;
    let exit: Arc<Exit> = loop {
        tokio::select! {
            exit = sandbox.wait() => break exit,
            () = ending.next() => {
                signals = signals.saturating_add(1);
                match signals {
                    1 => shared.stop(grace, WITHIN),
                    _ => shared.kill(),
                }
            }
            order = shared.to_stop(), if !stopping => {
                stopping = true;
                let own = record.programs.stop_signal;
                let command = command.as_ref().filter(|_| !matches!(own, 0 | libc::SIGTERM));
                if let Some(command) = command {
                    command.signal(own);
                }
                let (shared, sandbox) = (Arc::clone(shared), Arc::clone(sandbox));
                tokio::spawn(shut_down(shared, sandbox, command.is_some(), order));
            }
            // The VM ends itself then.
            _ = sandbox.time_is_up(), if !timed_out => {
                timed_out = true;
                shared.say(Activity::Stopping);
            }
            ended = command_end(&mut command) => {
                if let Some(command) = command.take() {
                    command.written().await;
                }
                // Otherwise it ended with the VM, or its agent, and nobody knows how.
                if let Ok(ended) = ended {
                    status = Some(ended);
                    // Before it is told. On a full disk the end of the VM says it.
                    let _ = shared.claim.command_ended(ended.into());
                    shared.command.send_replace(status);
                }
                if record.remove {
                    shared.stop(grace, WITHIN);
                }
            }
        }
    };
    if let Some(command) = command {
        command.written().await;
    }
    sandbox.kept_written().await;
    ExitRecord::new(shared.claim.run(), Ok(&exit), status.map(CommandEnd::from))
}

async fn command_end(command: &mut Option<OwnCommand>) -> Result<ExitStatus> {
    match command {
        Some(command) => command.wait().await,
        None => std::future::pending().await,
    }
}

/// Writes down how it ended, lets go of the VM, and only then tells who waits: what
/// they do next must find it so.
async fn finish(shared: &Shared, clients: &Clients, server: Task, exit: &ExitRecord, remove: bool) {
    drop(server);
    let told = shared
        .told
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(told) = told {
        let _ = timeout(TOLD_WITHIN, told).await;
    }
    shared.events.end(&exit.message).await;
    // Nobody is left to tell why it could not be written; without it the VM has
    // crashed, which is how it looks.
    let _ = shared.claim.end(exit, remove);
    shared.finished.send_replace(Some(exit.document().into()));
    clients.farewell().await;
}
