//! Options that describe a VM, and what they stand for.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::{Args, ValueEnum};
use flashpan::api::{self, Config};
use flashpan::launch::{
    Cancel, Event, HostOptions, ImageSource, Platform, Progress as Watch, RootEvent, RootSource,
    SecretSource, TimeLimit, UpperSource,
};
use flashpan::{BootProtocol, DiskMount, DiskSource, Error, FullDisk, Launch, Network, RateLimit};

use crate::failure::{Failure, say};
use crate::given::Given;
use crate::image::{self, ImageProgress, PullPolicy, RegistryArgs};
use crate::progress::Progress;
use crate::reach::ReachArgs;
use crate::{config_file, environment, full, kernel, parse, runtime};

/// The memory of a VM in MiB where neither an option nor a file says it.
const MEMORY_MIB: u64 = 256;

/// The host name of a guest where neither an option nor a file says it.
const HOSTNAME: &str = "flashpan";

/// The environment variable that names a kernel.
pub(crate) const KERNEL_VARIABLE: &str = "FLASHPAN_KERNEL";

/// The kernel that the environment names.
pub(crate) fn named_kernel() -> Option<PathBuf> {
    variable(KERNEL_VARIABLE).map(Into::into)
}

/// A variable of the environment. As everywhere, an empty one is not set.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// What an option that was not given has from the environment. Options that exclude
/// each other are read so: one that is given counts, whatever the environment says
/// of the other.
fn from_environment<T>(
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, Failure> {
    let Some(value) = variable(name) else {
        return Ok(None);
    };
    let value = value
        .into_string()
        .map_err(|_| Failure::new(format!("{name}: it is not UTF-8")))?;
    let parsed = parse(&value).map_err(|why| Failure::new(format!("{name}: {why}")))?;
    Ok(Some(parsed))
}

/// Options of every command that boots a VM.
#[derive(Debug, Args)]
#[command(next_help_heading = "The VM")]
pub(crate) struct VmArgs {
    /// A whole configuration in TOML, or in JSON if its name ends so (see
    /// docs/config.md). Options go before what it says. With a file, what neither
    /// says has the defaults of configurations: 512M, 300 seconds.
    #[arg(
        long,
        short,
        value_name = "FILE",
        env = "FLASHPAN_FILE",
        hide_env_values = true
    )]
    file: Option<PathBuf>,

    /// Kernel to boot: a file (vmlinux or bzImage), or a kernel that `flashpan
    /// kernel ls` shows, by its hash or the start of it. Otherwise
    /// $FLASHPAN_KERNEL, otherwise the newest kernel with the default
    /// configuration.
    #[arg(long, value_name = "FILE|HASH")]
    kernel: Option<PathBuf>,

    /// Root file system: a directory (made into an image once, and again when
    /// it changes), an EROFS image or an ext4 image. Otherwise $FLASHPAN_ROOTFS,
    /// otherwise a small built-in one with busybox. The guest never writes to it.
    #[arg(long, value_name = "DIR|IMAGE")]
    rootfs: Option<PathBuf>,

    /// Container image whose root file system it is, and which says what runs
    /// and how; pulled if it is not there (see `flashpan image`). The guest
    /// never writes to it. Otherwise $FLASHPAN_IMAGE.
    #[arg(long, value_name = "IMAGE", conflicts_with = "rootfs")]
    image: Option<String>,

    /// When to pull the image. Otherwise $FLASHPAN_PULL, otherwise if it is
    /// missing.
    #[arg(long, value_enum, value_name = "WHEN")]
    pull: Option<PullPolicy>,

    /// Of an image for several platforms, which one. Otherwise
    /// $FLASHPAN_PLATFORM, otherwise linux/amd64.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,

    /// Take the guest's writes to its root on a disk of this size, e.g. 512M or
    /// 10G; a plain number is MiB. It is sparse, and is gone with the VM. Without
    /// this option and the next two it has $FLASHPAN_DISK_SIZE, or 5 GiB with an
    /// image and where the VM stays; otherwise writes go to the guest's memory.
    #[arg(long, value_name = "SIZE", value_parser = parse::disk_size_mib,
          conflicts_with_all = ["ephemeral", "read_only"])]
    disk_size: Option<u64>,

    /// Take the guest's writes to its root in its memory.
    #[arg(long, conflicts_with = "read_only")]
    ephemeral: bool,

    /// Refuse the guest's writes to its root.
    #[arg(long)]
    read_only: bool,

    /// Mount an ext4 image, or a volume (see `flashpan volume`), in the guest;
    /// may be repeated. One VM at a time may write to it, or several read it.
    #[arg(long = "disk", value_name = "FILE|@VOLUME:DIR[:ro]",
          value_parser = |text: &str| text.parse::<DiskMount>().map_err(|e| e.to_string()))]
    disks: Vec<DiskMount>,

    /// Most bytes that each disk reads and writes in a second, e.g. 100M; a plain
    /// number is bytes. Every disk has this limit for itself, those of the root
    /// included, and after a rest does as much at once; otherwise there is none.
    #[arg(long, value_name = "SIZE[/s]", value_parser = parse::bytes_per_second,
          env = "FLASHPAN_DISK_BPS", hide_env_values = true)]
    disk_bps: Option<u64>,

    /// Most operations of each disk in a second, as --disk-bps: every read, write or
    /// flush is one.
    #[arg(
        long,
        value_name = "N",
        env = "FLASHPAN_DISK_IOPS",
        hide_env_values = true
    )]
    disk_iops: Option<u64>,

    /// Number of processors, e.g. 2 or 0.5, at most 32; 1 otherwise. The VM has as many
    /// virtual CPUs as the next whole number, and of a fraction its programs get no more.
    #[arg(long, value_name = "N", value_parser = parse::cpus, env = "FLASHPAN_CPUS", hide_env_values = true)]
    cpus: Option<f64>,

    /// Most processes and threads that all programs of the guest may have together;
    /// otherwise as many as its memory allows.
    #[arg(
        long,
        value_name = "N",
        env = "FLASHPAN_PIDS_LIMIT",
        hide_env_values = true
    )]
    pids_limit: Option<u32>,

    /// Memory of the guest, e.g. 512M or 2G; a plain number is MiB. 256M otherwise.
    #[arg(long, short, value_name = "SIZE", value_parser = parse::memory_mib,
          env = "FLASHPAN_MEMORY", hide_env_values = true)]
    memory: Option<u64>,

    /// Host name of the guest; `flashpan` otherwise.
    #[arg(
        long,
        value_name = "NAME",
        env = "FLASHPAN_HOSTNAME",
        hide_env_values = true,
        value_parser = parse::not_empty
    )]
    hostname: Option<String>,

    /// One more argument for the guest's kernel; may be repeated.
    #[arg(long = "kernel-arg", value_name = "ARG", allow_hyphen_values = true)]
    kernel_args: Vec<String>,

    /// How the kernel is entered.
    #[arg(long, value_enum, default_value_t, value_name = "PROTOCOL")]
    boot_protocol: Entry,

    /// How long the guest may take to become ready, e.g. 10s or 5m.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, default_value = "60s",
          env = "FLASHPAN_BOOT_TIMEOUT", hide_env_values = true)]
    boot_timeout: Duration,

    #[command(flatten)]
    reach: ReachArgs,

    #[command(flatten)]
    registries: RegistryArgs,
}

/// [`BootProtocol`] on the command line.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Entry {
    /// PVH if the kernel has its note, otherwise linux64.
    #[default]
    Auto,
    /// The 64-bit entry of the Linux boot protocol.
    Linux64,
    /// The 32-bit entry of the PVH ABI.
    Pvh,
}

/// A VM as its user wants it.
pub(crate) struct Wanted {
    pub(crate) config: Config,
    pub(crate) options: HostOptions,
    pub(crate) given: Given,
}

impl Wanted {
    /// Whether its root is a container image's.
    pub(crate) fn has_image(&self) -> bool {
        matches!(self.options.root, RootSource::Image(_))
    }

    /// In a network in which everything public can be reached, and is looked into.
    pub(crate) fn observe(&mut self) -> Result<(), Failure> {
        let network = self.config.network.get_or_insert_default();
        if self.options.network == Network::None || network.no_network {
            let option = environment::variable_of("--network").unwrap_or("--network none");
            return Err(Failure::new(format!(
                "without a network there is nothing to be learned; leave out {option}"
            )));
        }
        self.options.network = Network::Open;
        network.intercept = true;
        Ok(())
    }
}

impl VmArgs {
    /// What the file, the environment and the options say together, and in `over`
    /// what else the command's options say. Nothing is looked at but the file. One
    /// that `stays` has a disk unless that is refused.
    pub(crate) fn wanted(
        &self,
        over: Config,
        time_limit: Option<Duration>,
        stays: bool,
    ) -> Result<Wanted, Failure> {
        let file = self.file.as_deref().map(config_file::read).transpose()?;
        let from_file = file.is_some();
        let (own, secret_sources) = self.config()?;
        let mut config = file.unwrap_or_default().merge(over).merge(own);
        let image_before = config.image.clone();
        let root = self.root(&mut config)?;
        let has_own_image = config.image != image_before;
        let disk_size = match self.ephemeral || self.read_only {
            true => None,
            false => match self.disk_size {
                Some(mib) => Some(mib),
                None => from_environment("FLASHPAN_DISK_SIZE", parse::disk_size_mib)?,
            },
        };
        let resources = config.resources.get_or_insert_default();
        resources.disk_size_mb = disk_size.or(resources.disk_size_mb);
        if let Some(limit) = time_limit {
            // As the whole number that a configuration holds; the limit itself is
            // an option of the host.
            let whole = limit
                .as_secs()
                .saturating_add((limit.subsec_nanos() > 0).into());
            resources.timeout_seconds = Some(whole.min(u32::MAX.into()));
        }
        if !from_file {
            resources.memory_mb.get_or_insert(MEMORY_MIB);
            let network = config.network.get_or_insert_default();
            if network.hostname.is_empty() {
                HOSTNAME.clone_into(&mut network.hostname);
            }
        }
        let is_image = matches!(root, RootSource::Image(_));
        let mut options = HostOptions::new(
            self.kernel
                .clone()
                .or_else(named_kernel)
                .unwrap_or_default(),
        )
        .root(root);
        let has_disk = is_image
            || stays
            || config
                .resources
                .as_ref()
                .is_some_and(|all| all.disk_size_mb.is_some());
        options.upper = match () {
            () if self.read_only => UpperSource::ReadOnly,
            () if self.ephemeral || !has_disk => UpperSource::Memory,
            () => UpperSource::Scratch,
        };
        options.time_limit = match (time_limit, from_file) {
            (Some(limit), _) => TimeLimit::After(limit),
            (None, true) => TimeLimit::Configured,
            (None, false) => TimeLimit::Unlimited,
        };
        options.kernel_args = self.kernel_args.join(" ");
        options.boot_protocol = match self.boot_protocol {
            Entry::Auto => BootProtocol::Auto,
            Entry::Linux64 => BootProtocol::Linux64,
            Entry::Pvh => BootProtocol::Pvh,
        };
        options.boot_timeout = self.boot_timeout;
        options.pids_limit = self.pids_limit;
        options.disk_rate = self.disk_rate();
        options.network = self.reach.network;
        options.secret_sources = secret_sources;
        options.secret_refresh = self.reach.secret_refresh;
        (options.upstream_ca_files).clone_from(&self.reach.upstream_ca_files);
        (options.client_certificates).clone_from(&self.reach.client_certificates);
        options.network_rate =
            (self.reach.network_bps).map(|bytes| RateLimit::default().bytes_per_second(bytes));
        // The runtime of every command stays on its main thread.
        options.end_with_thread = true;
        let mut given = Given::in_file(self.file.as_deref()).and(self.given());
        given.add(has_own_image, "--image");
        given.add(disk_size.is_some(), "--disk-size");
        given.add(time_limit.is_some(), "--timeout");
        Ok(Wanted {
            config,
            options,
            given,
        })
    }

    /// The options that were given, by what they set.
    fn given(&self) -> Given {
        let mut given = self.reach.given();
        for (is_given, option) in [
            (self.cpus.is_some(), "--cpus"),
            (self.memory.is_some(), "--memory"),
            (self.hostname.is_some(), "--hostname"),
            (self.image.is_some(), "--image"),
            (self.disk_bps.is_some(), "--disk-bps"),
            (self.disk_iops.is_some(), "--disk-iops"),
            (self.pids_limit.is_some(), "--pids-limit"),
            (!self.kernel_args.is_empty(), "--kernel-arg"),
            // No file says it.
            (true, "--boot-timeout"),
        ] {
            given.add(is_given, option);
        }
        given.add_list(&self.disks, "--disk");
        given
    }

    /// The limit of each disk, if there is one.
    fn disk_rate(&self) -> Option<RateLimit> {
        let mut limit = RateLimit::default();
        limit.bytes_per_second = self.disk_bps;
        limit.operations_per_second = self.disk_iops;
        (limit != RateLimit::default()).then_some(limit)
    }

    /// The fields that options are for, and where values of secrets come from.
    fn config(&self) -> Result<(Config, BTreeMap<String, SecretSource>), Failure> {
        let mut config = Config::default();
        let sources = self.reach.apply_to(&mut config)?;
        let resources = config.resources.get_or_insert_default();
        resources.cpus = self.cpus;
        resources.memory_mb = self.memory;
        if let Some(hostname) = &self.hostname {
            let network = config.network.get_or_insert_default();
            network.hostname.clone_from(hostname);
        }
        config.extra_disks = self.disks.iter().map(disk_of).collect();
        Ok((config, sources))
    }

    /// Where the root comes from. An option goes before the environment, and that
    /// before the file.
    fn root(&self, config: &mut Config) -> Result<RootSource, Failure> {
        let (mut image, mut path) = (self.image.clone(), self.rootfs.clone());
        if image.is_none() && path.is_none() {
            image = from_environment("FLASHPAN_IMAGE", |name| Ok(name.to_owned()))?;
            path = variable("FLASHPAN_ROOTFS").map(Into::into);
            if image.is_some() && path.is_some() {
                return Err(Failure::new(
                    "FLASHPAN_IMAGE and FLASHPAN_ROOTFS are both set; name one by --image or --rootfs",
                ));
            }
        }
        if let Some(path) = path {
            config.image = String::new();
            self.needs_no_image()?;
            return Ok(RootSource::Path(path));
        }
        if let Some(image) = image {
            if image.is_empty() {
                return Err(Failure::new(
                    "--image is empty; name an image, or leave it out",
                ));
            }
            config.image = image;
        }
        if config.image.is_empty() {
            self.needs_no_image()?;
            return Ok(RootSource::BuiltIn);
        }
        let pull = match self.pull {
            Some(pull) => Some(pull),
            None => from_environment("FLASHPAN_PULL", |word| PullPolicy::from_str(word, true))?,
        };
        let platform = match &self.platform {
            Some(platform) => Some(platform.clone()),
            None => from_environment("FLASHPAN_PLATFORM", |text| {
                text.parse::<Platform>().map_err(|e| e.to_string())
            })?,
        };
        let mut source = ImageSource::default();
        source.pull = pull.unwrap_or_default().into();
        source.platform = platform.unwrap_or_default();
        source.registries = self.registries.options()?;
        Ok(RootSource::Image(source))
    }

    fn needs_no_image(&self) -> Result<(), Failure> {
        for (given, option) in [
            (self.pull.is_some(), "--pull"),
            (self.platform.is_some(), "--platform"),
        ] {
            if given {
                return Err(needs_image(option));
            }
        }
        Ok(())
    }

    /// Gets ready what a VM is made from. A root directory is made into an image
    /// here, with a progress bar if that takes long.
    pub(crate) fn resolve(&self, wanted: Wanted) -> Result<Launch, Failure> {
        let Wanted {
            config,
            mut options,
            given,
        } = wanted;
        let named = Some(options.kernel.as_path()).filter(|name| !name.as_os_str().is_empty());
        options.kernel = kernel::resolve(named)?;
        let shown = Arc::new(Shown::default());
        let watch: Arc<dyn Watch> = shown.clone();
        let checked = Launch::check(config, options, watch);
        let mut checked = checked.map_err(|error| match error {
            error @ Error::Launch(_) => failed(error, None),
            error => given.failure(error),
        })?;
        if checked.is_to_pull() {
            let cancel = Cancel::default();
            let pull = checked.pull(&cancel);
            runtime(image::in_order(&cancel, pull, |e| failed(e, shown.bytes())))?;
            shown.pulled();
        }
        // Here signals end this process at once.
        checked.finish().map_err(|e| failed(e, None))
    }
}

/// What to say of an option that is for images.
pub(crate) fn needs_image(option: &str) -> Failure {
    Failure::new(format!(
        "{option} is for container images; name one by --image"
    ))
}

/// A failure to get a VM's parts ready. `needed` is how many bytes of room that
/// takes, if it is known.
fn failed(error: Error, needed: Option<u64>) -> Failure {
    match &error {
        Error::Launch(launch) => {
            let places = launch.places();
            let places: Vec<_> = places.iter().map(PathBuf::as_path).collect();
            full::failure(&**launch, &places, needed)
        }
        _ => error.into(),
    }
}

/// What `--disk` says, as it is in a configuration.
fn disk_of(mount: &DiskMount) -> api::DiskMount {
    let mut disk = api::DiskMount::default();
    disk.host_path = match &mount.source {
        // What looks like the name of a volume is a path all the same.
        DiskSource::File(path) if path.to_string_lossy().starts_with('@') => {
            format!("./{}", path.display())
        }
        // Made from UTF-8.
        DiskSource::File(path) => path.display().to_string(),
        DiskSource::Volume(name) => format!("@{name}"),
    };
    disk.guest_mount.clone_from(&mount.guest_path);
    disk.readonly = mount.read_only;
    disk
}

/// What to say of a disk of a VM that the host had no room for.
pub(crate) fn full_disk(launch: &Launch, full: FullDisk) -> String {
    let (what, directory) = launch.place_of(full.role);
    let failures = match full.failures {
        1 => "a write".to_owned(),
        failures => format!("{failures} writes"),
    };
    let advice = directory.map(|directory| format!("; {}", full::advice(&directory)));
    format!(
        "the host's disk is full: {failures} of the guest to {what} failed{}",
        advice.unwrap_or_default()
    )
}

/// Shows what happens while a VM's parts are got ready. There is nothing to see of
/// what is cached.
#[derive(Default)]
struct Shown {
    image: Mutex<Option<ImageProgress>>,
    root: Mutex<Option<Progress>>,
}

impl Shown {
    /// Bytes of an image's layers as they are packed, if that has become known.
    fn bytes(&self) -> Option<u64> {
        lock(&self.image).as_ref()?.bytes()
    }

    /// Takes the bars of a pull off the terminal.
    fn pulled(&self) {
        lock(&self.image).take();
    }

    fn on_root(&self, what: &str, event: RootEvent) {
        match event {
            RootEvent::LeftOut(path) => say(
                "warning",
                &format!(
                    "{} is left empty in the guest: another file system is mounted there",
                    path.display()
                ),
            ),
            RootEvent::Waiting => say(
                "note",
                &format!("waiting for another flashpan that makes the {what}"),
            ),
            RootEvent::Copied(copied) => {
                let mut bar = lock(&self.root);
                let bar = bar.get_or_insert_with(|| Progress::bytes(what, copied.total));
                bar.set(copied.done);
            }
        }
    }
}

impl Watch for Shown {
    fn on(&self, event: Event) {
        match event {
            Event::Image { name, event } => {
                let mut progress = lock(&self.image);
                let progress = progress.get_or_insert_with(|| ImageProgress::new(&name, false));
                progress.on(event);
            }
            Event::Root { what, event } => self.on_root(&what, event),
            Event::Note(text) => say("note", &text),
            Event::Warning(text) => say("warning", &text),
            _ => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
