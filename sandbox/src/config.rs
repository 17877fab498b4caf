//! What VM to make, and the check that it can be made.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flashpan_protocol::agent::{self, FsType, GuestConfig, MountConfig, RootConfig};
use flashpan_protocol::control::{
    BootProtocol, Console, DiskSpec, MAX_DISKS, MAX_PACKET, VCPUS, VmSpec,
};

use crate::api::{Config, HostIpMapping, vcpu_count};
use crate::disk::{Disk, DiskRole, Upper, check_guest_paths};
use crate::error::{Error, Result};
use crate::launch::ExecDefaults;
use crate::log::VmLog;
use crate::network::Settings;
use crate::rate::RateLimit;
use crate::sandbox::{LIMIT_GRACE, POWER_OFF_TIMEOUT};
use crate::shared::Shared;
use crate::surroundings::Surroundings;

/// vCPUs of a VM unless asked otherwise.
pub const DEFAULT_CPUS: u32 = 1;

/// Guest memory in MiB unless asked otherwise.
pub const DEFAULT_MEMORY_MIB: u64 = 256;

/// Least guest memory in MiB: below it the kernel cannot unpack its initramfs.
pub const MIN_MEMORY_MIB: u64 = 48;

/// How long a guest may take to become ready unless asked otherwise.
pub const DEFAULT_BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest host name (Linux `__NEW_UTS_LEN`).
const MAX_HOSTNAME: usize = 64;

/// Longest addition to the kernel command line. x86's `COMMAND_LINE_SIZE` is
/// 2048, and the VMM's own part stays well below the other half.
const MAX_KERNEL_ARGS: usize = 1024;

/// A root file system image. The guest never writes to it: writes go to the
/// [`Upper`].
#[derive(Debug, Clone)]
pub struct Root {
    /// The image file.
    pub path: PathBuf,
    /// Its file system.
    pub fs_type: FsType,
    pub(crate) file: Option<Arc<File>>,
}

impl Root {
    /// The image at `path`, which is opened when a VM boots, with a shared lock
    /// (flock(2)) that lasts as long as the VM: what somebody writes to is
    /// refused.
    pub fn new(path: impl Into<PathBuf>, fs_type: FsType) -> Self {
        Self {
            path: path.into(),
            fs_type,
            file: None,
        }
    }

    /// An image that is open already: what happens to `path`, which is for
    /// messages only, does not matter. A lock that the file holds is held by the
    /// VMM too.
    pub fn opened(path: impl Into<PathBuf>, file: Arc<File>, fs_type: FsType) -> Self {
        Self {
            path: path.into(),
            fs_type,
            file: Some(file),
        }
    }
}

/// Where console output goes as it comes, besides the tail that is kept.
pub(crate) type ConsoleSink = Box<dyn Write + Send>;

/// Settings of a VM; made by [`crate::Sandbox::builder`].
#[must_use = "a builder does nothing until `boot`"]
pub struct SandboxBuilder {
    pub(crate) kernel: PathBuf,
    pub(crate) root: Root,
    pub(crate) cpus: f64,
    pub(crate) pids_limit: Option<u32>,
    pub(crate) hosts: Vec<HostIpMapping>,
    pub(crate) memory_mib: u64,
    pub(crate) hostname: String,
    pub(crate) console: Console,
    pub(crate) console_sink: Option<ConsoleSink>,
    pub(crate) kernel_args: String,
    pub(crate) boot_protocol: BootProtocol,
    pub(crate) boot_timeout: Duration,
    pub(crate) process_start_ns: Option<u64>,
    pub(crate) vmm: Option<PathBuf>,
    pub(crate) guest_init: Option<PathBuf>,
    pub(crate) end_with_thread: bool,
    pub(crate) upper: Upper,
    pub(crate) disks: Vec<Disk>,
    pub(crate) disk_rate: Option<RateLimit>,
    pub(crate) network: Settings,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) time_limit_end: (Duration, Duration),
    pub(crate) described_by: Option<Arc<Config>>,
    pub(crate) surroundings: Surroundings,
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for SandboxBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxBuilder")
            .field("kernel", &self.kernel)
            .field("root", &self.root)
            .field("cpus", &self.cpus)
            .field("memory_mib", &self.memory_mib)
            .field("hostname", &self.hostname)
            .field("upper", &self.upper)
            .field("disks", &self.disks)
            .finish_non_exhaustive()
    }
}

impl SandboxBuilder {
    pub(crate) fn new(kernel: PathBuf, root: Root) -> Self {
        Self {
            kernel,
            root,
            cpus: f64::from(DEFAULT_CPUS),
            pids_limit: None,
            hosts: Vec::new(),
            memory_mib: DEFAULT_MEMORY_MIB,
            hostname: "flashpan".to_owned(),
            console: Console::default(),
            console_sink: None,
            kernel_args: String::new(),
            boot_protocol: BootProtocol::default(),
            boot_timeout: DEFAULT_BOOT_TIMEOUT,
            process_start_ns: None,
            vmm: None,
            guest_init: None,
            end_with_thread: false,
            upper: Upper::default(),
            disks: Vec::new(),
            disk_rate: None,
            network: Settings::default(),
            time_limit: None,
            time_limit_end: (LIMIT_GRACE, POWER_OFF_TIMEOUT),
            described_by: None,
            surroundings: Surroundings::None,
            shared: Arc::default(),
        }
    }

    /// Number of processors, more than 0 and at most 32; [`DEFAULT_CPUS`]
    /// otherwise. The VM has as many vCPUs as the next whole number; of a fraction
    /// the guest gives its programs, all together, no more than that (at least a
    /// hundredth).
    ///
    /// The guest keeps the fraction: a program that has become root there without
    /// being confined can lift it, but does not get more vCPUs.
    pub fn cpus(mut self, cpus: impl Into<f64>) -> Self {
        self.cpus = cpus.into();
        self
    }

    /// How many processes and threads all programs of the guest together may have,
    /// at least 1; as many as its memory allows otherwise, and never more.
    pub fn pids_limit(mut self, most: u32) -> Self {
        self.pids_limit = Some(most);
        self
    }

    /// Adds a line to the guest's `/etc/hosts`. Needs a root that takes writes.
    pub fn add_host(mut self, entry: HostIpMapping) -> Self {
        self.hosts.push(entry);
        self
    }

    /// Guest memory in MiB, from [`MIN_MEMORY_MIB`] to the memory of the host;
    /// [`DEFAULT_MEMORY_MIB`] otherwise.
    pub fn memory_mib(mut self, memory_mib: u64) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Host name of the guest: 1 to 64 letters, digits, `-` and `.`.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = hostname.into();
        self
    }

    /// What takes the guest's writes to its root; [`Upper::Memory`] otherwise.
    pub fn upper(mut self, upper: Upper) -> Self {
        self.upper = upper;
        self
    }

    /// Adds a disk. Disks are mounted in the order in which they are added.
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// What the serial port is for. [`Console::Panic`] costs nothing while all
    /// is well; [`Console::Full`] slows the boot down.
    pub fn console(mut self, console: Console) -> Self {
        self.console = console;
        self
    }

    /// Copies console output to `sink` as it comes. A thread of its own writes
    /// there; when it is slow the VMM drops output rather than stop the guest.
    pub fn console_sink(mut self, sink: impl Write + Send + 'static) -> Self {
        self.console_sink = Some(Box::new(sink));
        self
    }

    /// More kernel arguments, printable ASCII, at most 1024 bytes. Whoever
    /// chooses them controls the guest entirely.
    pub fn kernel_args(mut self, kernel_args: impl Into<String>) -> Self {
        self.kernel_args = kernel_args.into();
        self
    }

    /// How the kernel is entered.
    pub fn boot_protocol(mut self, boot_protocol: BootProtocol) -> Self {
        self.boot_protocol = boot_protocol;
        self
    }

    /// How long the guest may take to become ready;
    /// [`DEFAULT_BOOT_TIMEOUT`] otherwise.
    pub fn boot_timeout(mut self, boot_timeout: Duration) -> Self {
        self.boot_timeout = boot_timeout;
        self
    }

    /// How long the VM may run once its guest is ready. Then it is ended in order
    /// ([`crate::Sandbox::shutdown`] with a grace period of 5 seconds), its
    /// [`crate::ExitReason`] is `TimedOut`, and what waits for it gets
    /// [`Error::VmTimeout`]. As long as it likes otherwise.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// How the VM is ended when its time is up: how long its programs may take, and how
    /// long its guest may write its disks after that, before it is killed. 5 and 10
    /// seconds otherwise.
    pub fn time_limit_end(mut self, grace: Duration, within: Duration) -> Self {
        self.time_limit_end = (grace, within);
        self
    }

    /// Writes what the VM's own command writes to this as well, beside
    /// [`crate::Sandbox::logs`], as it comes, on threads of its own: of a VM of
    /// [`crate::Launch::boot_as`] with `launch_entrypoint`. A program waits for a sink
    /// that is slow; what one refuses is lost.
    pub fn output_sink(self, sink: impl Write + Send + 'static) -> Self {
        self.shared.output.set_sink(Box::new(sink));
        self
    }

    /// The configuration that these settings come from, and how programs are run by it.
    pub(crate) fn described_by(
        mut self,
        config: &Arc<Config>,
        defaults: &Arc<ExecDefaults>,
    ) -> Self {
        self.described_by = Some(Arc::clone(config));
        self.surroundings = Surroundings::Launched(Arc::clone(defaults));
        self
    }

    /// When the timeline begins, in nanoseconds of [`crate::timeline::now_ns`];
    /// the call of `boot` otherwise.
    pub fn process_start_ns(mut self, at_ns: u64) -> Self {
        self.process_start_ns = Some(at_ns);
        self
    }

    /// Path of the VMM program; looked up otherwise ([`crate::vmm_program`]).
    pub fn vmm(mut self, program: impl Into<PathBuf>) -> Self {
        self.vmm = Some(program.into());
        self
    }

    /// Path of the guest's PID 1; looked up otherwise
    /// ([`crate::guest_init_program`]).
    pub fn guest_init(mut self, program: impl Into<PathBuf>) -> Self {
        self.guest_init = Some(program.into());
        self
    }

    /// Whether the VMM is killed when the thread that polls
    /// [`SandboxBuilder::boot`] first ends. A VMM ends in any case when this
    /// process does, but one that is busy loading a kernel notices only after
    /// that. For programs whose runtime stays on their main thread: elsewhere
    /// threads come and go.
    pub fn end_with_thread(mut self, end_with_thread: bool) -> Self {
        self.end_with_thread = end_with_thread;
        self
    }

    /// What becomes known of the VM from now on, also if it fails to boot.
    #[must_use]
    pub fn log(&self) -> VmLog {
        VmLog::new(Arc::clone(&self.shared))
    }

    /// Checks all settings.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for the first one that is out of its range.
    pub fn validate(&self) -> Result<()> {
        self.vm_spec().map(drop)
    }

    /// The settings as the VMM takes them.
    pub(crate) fn vm_spec(&self) -> Result<VmSpec> {
        let vcpus = vcpu_count(self.cpus).and_then(|n| u8::try_from(n).ok());
        let vcpus = vcpus.filter(|n| VCPUS.contains(n)).ok_or_else(|| {
            let most = VCPUS.end();
            let why = format!("{} is not more than 0 and at most {most}", self.cpus);
            Error::config("cpus", why)
        })?;
        if self.pids_limit == Some(0) {
            let why = "0 leaves no room for a program; use 1 or more, or leave it out";
            return Err(Error::config("pids limit", why));
        }
        self.host_entries()?;
        let memory_mib = check_memory(self.memory_mib, host_memory_mib())?;
        check_hostname(&self.hostname)?;
        check_kernel_args(&self.kernel_args)?;
        check_guest_paths(self.disks.iter().map(|disk| disk.guest_path.as_str()))?;
        let disks = self.disk_specs()?;
        if disks.len() > MAX_DISKS {
            let why = format!(
                "{} with those of the root; at most {MAX_DISKS} fit",
                disks.len()
            );
            return Err(Error::config("disks", why));
        }
        if self.boot_timeout.is_zero() {
            return Err(Error::config("boot timeout", "0 leaves no time to boot"));
        }
        if self.time_limit.is_some_and(|limit| limit.is_zero()) {
            return Err(Error::config("time limit", "0 leaves no time to run"));
        }
        Ok(VmSpec {
            vcpus,
            memory_mib,
            boot_protocol: self.boot_protocol,
            initramfs: true,
            console: self.console,
            kernel_args: self.kernel_args.clone(),
            disks,
            rng: true,
            network: self.network.checked()?.link()?,
            network_rate: self.network.rate()?,
            shared_memory: false,
        })
    }

    /// All disks: the root image, what takes the writes to it, the others.
    fn disk_specs(&self) -> Result<Vec<DiskSpec>> {
        let (every, own) = self.disk_rates()?;
        let spec = |id: String, read_only, volatile, rate| DiskSpec {
            read_only,
            id,
            volatile,
            rate,
        };
        let mut specs = vec![spec("root".to_owned(), true, false, every)];
        match self.upper {
            Upper::Memory | Upper::ReadOnly => {}
            Upper::Scratch(_) => specs.push(spec("upper".to_owned(), false, true, every)),
            Upper::Disk(_) => specs.push(spec("upper".to_owned(), false, false, every)),
        }
        let others = self.disks.iter().zip(own).enumerate();
        specs.extend(
            others.map(|(n, (disk, rate))| spec(format!("disk{n}"), disk.read_only, false, rate)),
        );
        Ok(specs)
    }

    /// What the disks are for, in the order of [`Self::disk_specs`].
    pub(crate) fn disk_roles(&self) -> Vec<DiskRole> {
        let upper = match self.upper {
            Upper::Memory | Upper::ReadOnly => None,
            Upper::Scratch(_) | Upper::Disk(_) => Some(DiskRole::Upper),
        };
        let added = (0..self.disks.len()).map(DiskRole::Added);
        let roles = std::iter::once(DiskRole::Root).chain(upper);
        roles.chain(added).collect()
    }

    /// The settings, which were checked, as the guest takes them.
    pub(crate) fn guest_config(&self) -> GuestConfig {
        let mut devices = DEVICES.iter().map(|device| (*device).to_owned());
        // There are as many names as there may be disks.
        let mut device = || devices.next().unwrap_or_default();
        let root = device();
        let upper = match self.upper {
            Upper::Memory => agent::Upper::Tmpfs,
            Upper::ReadOnly => agent::Upper::None,
            Upper::Scratch(_) | Upper::Disk(_) => agent::Upper::Disk(device()),
        };
        let mounts = self.disks.iter().map(|disk| MountConfig {
            device: device(),
            path: disk.guest_path.clone(),
            read_only: disk.read_only,
        });
        GuestConfig {
            hostname: self.hostname.clone(),
            mounts: mounts.collect(),
            root: RootConfig {
                device: root,
                fs_type: self.root.fs_type,
                upper,
            },
            hosts: self.host_entries().unwrap_or_default(),
            cpu_quota: self.cpu_quota(),
            pids_limit: self.pids_limit,
            // It was checked.
            network: self.network.link().ok().flatten(),
            authority: None,
            variables: Vec::new(),
        }
    }
}

/// The names that the guest's kernel gives disks, in order.
const DEVICES: [&str; MAX_DISKS] = [
    "vda", "vdb", "vdc", "vdd", "vde", "vdf", "vdg", "vdh", "vdi", "vdj", "vdk", "vdl", "vdm",
    "vdn", "vdo", "vdp",
];

/// Memory of the host in MiB; `None` if the kernel does not say.
fn host_memory_mib() -> Option<u64> {
    nix::sys::sysinfo::sysinfo()
        .ok()
        .map(|info| info.ram_total() / (1024 * 1024))
}

fn check_memory(memory_mib: u64, host_mib: Option<u64>) -> Result<u32> {
    if memory_mib < MIN_MEMORY_MIB {
        let why = format!(
            "{memory_mib} MiB is too little for a kernel; use {MIN_MEMORY_MIB} MiB or more"
        );
        return Err(Error::config("memory", why));
    }
    if let Some(host) = host_mib.filter(|host| memory_mib > *host) {
        let why = format!("{memory_mib} MiB is more than the {host} MiB that this host has");
        return Err(Error::config("memory", why));
    }
    u32::try_from(memory_mib).map_err(|_| {
        Error::config(
            "memory",
            format!("{memory_mib} MiB is more than any host has"),
        )
    })
}

fn check_hostname(hostname: &str) -> Result<()> {
    if hostname.is_empty() || hostname.len() > MAX_HOSTNAME {
        let why = format!(
            "{} bytes long; it takes 1 to {MAX_HOSTNAME}",
            hostname.len()
        );
        return Err(Error::config("hostname", why));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    match hostname.chars().find(|c| !allowed(*c)) {
        Some(c) => {
            let why = format!("{c:?} is not allowed; use letters, digits, `-` and `.`");
            Err(Error::config("hostname", why))
        }
        None => Ok(()),
    }
}

fn check_kernel_args(arguments: &str) -> Result<()> {
    // The whole request has to fit one packet in any case.
    const { assert!(MAX_KERNEL_ARGS < MAX_PACKET / 2) };
    if arguments.len() > MAX_KERNEL_ARGS {
        let why = format!(
            "{} bytes long; at most {MAX_KERNEL_ARGS} fit",
            arguments.len()
        );
        return Err(Error::config("kernel arguments", why));
    }
    match arguments.chars().find(|c| !matches!(c, ' '..='~')) {
        Some(c) => Err(Error::config(
            "kernel arguments",
            format!("{c:?} is not printable ASCII"),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
