//! From a builder to a VM whose guest can run programs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::agent::GuestConfig;
use flashpan_protocol::control::{BootFailureKind, IoRate};
use flashpan_protocol::phase::Phase;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;

use crate::agent::BootLink;
use crate::api::Config;
use crate::config::{ConsoleSink, SandboxBuilder};
use crate::console;
use crate::driver::{ConsoleTap, Driver, DriverHandle};
use crate::error::{Error, Result};
use crate::exit::{Exit, ExitReason};
use crate::flows::Flows;
use crate::pump::Task;
use crate::sandbox::{Sandbox, Way, end_after, wait};
use crate::shared::Shared;
use crate::surroundings::Surroundings;
use crate::timeline::now_ns;
use crate::vmm_process::VmmProcess;

/// Chunks of console output that wait for a slow sink.
const CONSOLE_CHUNKS: usize = 4;

impl SandboxBuilder {
    /// Boots the VM and waits until its guest can run programs. If the future
    /// is dropped the VM is killed.
    ///
    /// A kernel that is a bzImage is unpacked first, on the calling thread; that
    /// takes up to a second. An uncompressed ELF kernel is passed on as it is.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], or what prevented the guest from coming up.
    pub async fn boot(mut self) -> Result<Sandbox> {
        let start = self.process_start_ns.unwrap_or_else(now_ns);
        let spec = self.vm_spec()?;
        let shared = Arc::clone(&self.shared);
        shared.timeline().mark(Phase::ProcessStart, start);
        let vcpus = spec.vcpus;
        let mut guest = self.guest_config();
        shared.set_disks(self.disk_roles());
        // What is limited is what the guest does, and not what the host does with it.
        if spec.network.is_some() && spec.network_rate == IoRate::default() {
            shared.set_fast_card();
        }
        let flows = Flows::new(&self.network, spec.network, &shared)?;
        guest.authority.clone_from(&flows.authority);
        let bytes = |text: &String| text.as_bytes().to_vec().into();
        let placeholders = flows.placeholders.iter();
        guest.variables = placeholders
            .map(|(name, placeholder)| (bytes(name), bytes(placeholder)))
            .collect();
        let vmm = VmmProcess::start(&mut self, spec)?;
        let tap = self.console_sink.take().map(console_thread).transpose()?;
        let driver = Driver::start(vmm, Arc::clone(&shared), tap, flows);
        // The files alone: of the builder, which has a sink, the future could not be
        // sent to another thread.
        let about = About {
            kernel: &self.kernel,
            root: &self.root.path,
            vcpus: u32::from(vcpus),
            memory_mib: self.memory_mib,
            time_limit: self.time_limit,
            time_limit_end: self.time_limit_end,
            described_by: self.described_by.clone(),
            surroundings: self.surroundings.clone(),
        };
        match timeout(self.boot_timeout, come_up(about, guest, driver, &shared)).await {
            Ok(result) => result,
            Err(_) => Err(Error::BootTimeout {
                after: self.boot_timeout,
                reached: shared
                    .timeline()
                    .latest()
                    .filter(|phase| *phase > Phase::ProcessStart),
                console: console::last_line(&shared.console()),
            }),
        }
    }
}

/// What of a builder is still needed when it has become a VMM.
struct About<'a> {
    kernel: &'a Path,
    root: &'a Path,
    vcpus: u32,
    memory_mib: u64,
    time_limit: Option<Duration>,
    time_limit_end: (Duration, Duration),
    described_by: Option<Arc<Config>>,
    surroundings: Surroundings,
}

/// Waits for the guest's PID 1 and gets it ready.
async fn come_up(
    about: About<'_>,
    guest: GuestConfig,
    driver: DriverHandle,
    shared: &Arc<Shared>,
) -> Result<Sandbox> {
    let DriverHandle {
        commands,
        kill,
        ended,
        boot,
        pid,
    } = driver;
    let establish = async {
        // The driver drops its end when the VM ends before PID 1 called.
        let Ok(stream) = boot.await else {
            return Ok(None);
        };
        BootLink::establish(stream, guest, Arc::clone(shared)).await
    };
    let link = tokio::select! {
        biased;
        link = establish => match link? {
            Some(link) => link,
            None => {
                let exit = wait(ended).await;
                return Err(boot_failure(&about, shared, &exit));
            }
        },
        exit = wait(ended.clone()) => return Err(boot_failure(&about, shared, &exit)),
    };
    let (writer, listen) = link.serve();
    let boot_writer = Arc::new(Mutex::new(writer));
    let time_limit = about.time_limit.map(|after| {
        let (writer, shared) = (Arc::clone(&boot_writer), Arc::clone(shared));
        // Not handles that keep the VM alive.
        let (commands, kill) = (commands.downgrade(), kill.downgrade());
        let end = about.time_limit_end;
        Task::spawn(end_after(after, end, writer, shared, commands, kill))
    });
    Ok(Sandbox {
        way: Way::Own {
            commands,
            kill,
            boot_writer,
            pid,
            vcpus: about.vcpus,
            memory_mib: about.memory_mib,
        },
        ended,
        shared: Arc::clone(shared),
        config: about.described_by,
        surroundings: about.surroundings,
        kept: std::sync::Mutex::default(),
        _listener: Task::spawn(listen),
        _time_limit: time_limit,
    })
}

/// Why there is no guest. Names the file that the VMM, which was given a
/// descriptor, knows nothing of; and what a guest that shut itself down left on
/// its console.
fn boot_failure(&About { kernel, root, .. }: &About<'_>, shared: &Shared, exit: &Exit) -> Error {
    let (class, message) = match &exit.reason {
        ExitReason::BootFailed { class, message } => (class, message),
        ExitReason::PowerOff | ExitReason::Reboot => {
            return Error::GaveUp {
                message: console::init_message(&exit.console),
                console: console::last_line(&exit.console),
                connected: shared.timeline().has(Phase::AgentConnected),
            };
        }
        reason => return Error::ended(reason.clone()),
    };
    let file = match *class {
        BootFailureKind::Kernel => Some(("kernel", kernel)),
        BootFailureKind::Disk => Some(("root image", root)),
        _ => None,
    };
    let message = match file {
        Some((what, path)) => format!("{what} {}: {message}", path.display()),
        None => message.clone(),
    };
    Error::BootFailed { message }
}

/// Starts the thread that writes console output to a sink.
fn console_thread(mut sink: ConsoleSink) -> Result<ConsoleTap> {
    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(CONSOLE_CHUNKS);
    let (done_sender, done) = oneshot::channel();
    std::thread::Builder::new()
        .name("console".to_owned())
        .spawn(move || {
            while let Some(chunk) = chunks.blocking_recv() {
                if sink.write_all(&chunk).and_then(|()| sink.flush()).is_err() {
                    break;
                }
            }
            let _ = done_sender.send(());
        })
        .map_err(Error::host("start the console's thread"))?;
    Ok(ConsoleTap { sender, done })
}
