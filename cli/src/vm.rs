//! Options that describe a VM, and what they stand for.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::{Args, ValueEnum};
use flashpan::api::HostIpMapping;
use flashpan::{
    BootProtocol, Console, Disk, DiskMount, DiskRole, DiskSource, FsType, FullDisk, Root, Sandbox,
    SandboxBuilder, Upper,
};
use flashpan_kernel::image as kernel_image;
use flashpan_rootfs::cache::Cache;
use flashpan_rootfs::image_config::RunConfig;
use flashpan_rootfs::platform::Platform;
use flashpan_rootfs::probe::{self, RootImage};
use flashpan_rootfs::store::Held;
use flashpan_rootfs::volume::Volumes;
use flashpan_rootfs::{builtin, directory, disk};

use crate::failure::{Failure, say};
use crate::image::{self, PullPolicy, RegistryArgs};
use crate::progress::Progress;
use crate::{full, kernel, parse};

/// What programs of a container image can write unless asked otherwise, in MiB.
/// It is sparse.
const IMAGE_DISK_MIB: u64 = 5 * 1024;

/// The environment variable that names a kernel.
pub(crate) const KERNEL_VARIABLE: &str = "FLASHPAN_KERNEL";

/// The kernel that the environment names.
pub(crate) fn named_kernel() -> Option<PathBuf> {
    let name = std::env::var_os(KERNEL_VARIABLE)?;
    // As everywhere, an empty variable is one that is not set.
    (!name.is_empty()).then(|| name.into())
}

/// Options of every command that boots a VM.
#[derive(Debug, Args)]
#[command(next_help_heading = "The VM")]
pub(crate) struct VmArgs {
    /// Kernel to boot: a file (vmlinux or bzImage), or a kernel that `flashpan
    /// kernel ls` shows, by its hash or the start of it. Otherwise
    /// $FLASHPAN_KERNEL, otherwise the newest kernel with the default
    /// configuration.
    #[arg(long, value_name = "FILE|HASH")]
    kernel: Option<PathBuf>,

    /// Root file system: a directory (made into an image once, and again when
    /// it changes), an EROFS image or an ext4 image. Otherwise a small built-in
    /// one with busybox. The guest never writes to it.
    #[arg(long, value_name = "DIR|IMAGE")]
    rootfs: Option<PathBuf>,

    /// Container image whose root file system it is, and which says what runs
    /// and how; pulled if it is not there (see `flashpan image`). The guest
    /// never writes to it.
    #[arg(long, value_name = "IMAGE", conflicts_with = "rootfs")]
    image: Option<String>,

    /// When to pull the image.
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        requires = "image"
    )]
    pull: PullPolicy,

    /// Of an image for several platforms, which one.
    #[arg(
        long,
        value_name = "OS/ARCH[/VARIANT]",
        default_value_t,
        requires = "image"
    )]
    platform: Platform,

    /// Take the guest's writes to its root on a disk of this size, e.g. 512M or
    /// 10G; a plain number is MiB. It is sparse, and is gone at the end. Without
    /// this option and the next two it has 5 GiB with --image; otherwise writes go
    /// to the guest's memory.
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

    /// Number of processors, e.g. 2 or 0.5, at most 32. The VM has as many virtual
    /// CPUs as the next whole number, and of a fraction its programs get no more.
    #[arg(long, value_name = "N", value_parser = parse::cpus,
          default_value_t = f64::from(flashpan::DEFAULT_CPUS))]
    cpus: f64,

    /// Most processes and threads that all programs of the guest may have together;
    /// otherwise as many as its memory allows.
    #[arg(long, value_name = "N")]
    pids_limit: Option<u32>,

    /// Memory of the guest, e.g. 512M or 2G.
    #[arg(long, short, value_name = "SIZE", value_parser = parse::memory_mib,
          default_value = "256M")]
    memory: u64,

    /// Host name of the guest.
    #[arg(long, value_name = "NAME", default_value = "flashpan")]
    hostname: String,

    /// Give a name an address in the guest's /etc/hosts, e.g. db:10.0.0.7; may be
    /// repeated.
    #[arg(long = "add-host", value_name = "NAME:IP")]
    add_hosts: Vec<HostIpMapping>,

    /// One more argument for the guest's kernel; may be repeated.
    #[arg(long = "kernel-arg", value_name = "ARG", allow_hyphen_values = true)]
    kernel_args: Vec<String>,

    /// How the kernel is entered.
    #[arg(long, value_enum, default_value_t, value_name = "PROTOCOL")]
    boot_protocol: Entry,

    /// How long the guest may take to become ready, e.g. 10s or 5m.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, default_value = "60s")]
    boot_timeout: Duration,

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

impl VmArgs {
    /// A description of the VM. A root directory is made into an image here,
    /// with a progress bar if that takes long.
    pub(crate) fn resolve(&self) -> Result<Template, Failure> {
        let kernel = self.kernel()?;
        let boot_protocol = match self.boot_protocol {
            Entry::Auto => BootProtocol::Auto,
            Entry::Linux64 => BootProtocol::Linux64,
            Entry::Pvh => BootProtocol::Pvh,
        };
        let mut template = Template {
            kernel,
            // Not known yet; nothing looks at it before it is.
            root: Root::new(PathBuf::new(), FsType::Erofs),
            image: None,
            cpus: self.cpus,
            pids_limit: self.pids_limit,
            hosts: self.add_hosts.clone(),
            memory_mib: self.memory,
            hostname: self.hostname.clone(),
            kernel_args: self.kernel_args.join(" "),
            boot_protocol,
            boot_timeout: self.boot_timeout,
            scratch_mib: self.scratch_mib(),
            first_scratch: Mutex::default(),
            read_only: self.read_only,
            disks: Vec::new(),
        };
        // All that can be wrong before the root image, which may take minutes to
        // pull or to make. What is open stays open, and with it its lock.
        template.bare_builder(Console::Off).validate()?;
        kernel_image::check(&template.kernel).map_err(Failure::new)?;
        if let Some(mib) = template.scratch_mib {
            disk::check_size(mib.saturating_mul(parse::MIB)).map_err(Failure::new)?;
        }
        template.disks = self
            .disks
            .iter()
            .map(OpenDisk::open)
            .collect::<Result<_, _>>()?;
        template.with_disks(Console::Off)?.validate()?;
        let image = self.image.as_deref();
        let wanted =
            image.map(|name| image::Wanted::new(name, self.pull, &self.platform, &self.registries));
        let wanted = wanted.transpose()?;
        let first = template.scratch_mib.map(scratch).transpose()?;
        template.first_scratch = Mutex::new(first);
        match (wanted, &self.rootfs) {
            (Some(wanted), _) => {
                let (root, image) = image_root(wanted)?;
                template.root = root;
                template.image = Some(image);
            }
            (None, Some(path)) => template.root = root_from(path)?,
            (None, None) => template.root = builtin_root()?,
        }
        Ok(template)
    }

    /// The size of the disk that takes the writes to the root, if it is a disk.
    fn scratch_mib(&self) -> Option<u64> {
        let usual =
            (self.image.is_some() && !self.ephemeral && !self.read_only).then_some(IMAGE_DISK_MIB);
        self.disk_size.or(usual)
    }

    /// The name of the container image, if one is asked for.
    pub(crate) fn has_image(&self) -> bool {
        self.image.is_some()
    }

    /// Host name of the guest.
    pub(crate) fn hostname(&self) -> &str {
        &self.hostname
    }

    fn kernel(&self) -> Result<PathBuf, Failure> {
        let named = self.kernel.clone().or_else(named_kernel);
        kernel::resolve(named.as_deref())
    }
}

/// The root file system of a container image.
fn image_root(wanted: image::Wanted<'_>) -> Result<(Root, InUse), Failure> {
    let name = wanted.name;
    let (image, held) = wanted.obtain()?;
    if image.config.architecture != NATIVE {
        let is_for = &image.info.platform;
        return Err(Failure::new(format!(
            "the image {name} is for {is_for}, and guests are linux/{NATIVE}; pull it with \
             --platform linux/{NATIVE}"
        )));
    }
    // The VMM gets the same open file, and with it the lock.
    let file = duplicate(held.file(), held.path())?;
    let root = Root::opened(held.path(), Arc::new(file), FsType::Erofs);
    let config = image.config.run;
    Ok((
        root,
        InUse {
            config,
            _held: held,
        },
    ))
}

fn duplicate(file: &File, path: impl AsRef<Path>) -> Result<File, Failure> {
    file.try_clone().map_err(|e| {
        let path = path.as_ref().display();
        Failure::new(format!("cannot duplicate a descriptor of {path}: {e}"))
    })
}

/// Everything about a VM that does not depend on the run.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) kernel: PathBuf,
    root: Root,
    /// The container image that the root is of.
    image: Option<InUse>,
    cpus: f64,
    pids_limit: Option<u32>,
    hosts: Vec<HostIpMapping>,
    memory_mib: u64,
    hostname: String,
    kernel_args: String,
    boot_protocol: BootProtocol,
    boot_timeout: Duration,
    scratch_mib: Option<u64>,
    /// The disk for the writes of the first VM.
    first_scratch: Mutex<Option<File>>,
    read_only: bool,
    disks: Vec<OpenDisk>,
}

/// A disk of the user's, open and locked. VMs that have it one after the other
/// have the same open file.
#[derive(Debug)]
struct OpenDisk {
    mount: DiskMount,
    file: File,
}

/// The architecture of guests, as images call it.
const NATIVE: &str = "amd64";

/// A container image that nobody removes while this lives.
#[derive(Debug)]
struct InUse {
    config: RunConfig,
    _held: Held,
}

impl Template {
    /// Whether the guest has something to save at the end.
    pub(crate) fn keeps_something(&self) -> bool {
        self.disks.iter().any(|disk| !disk.mount.read_only)
    }

    /// What the container image says about its programs.
    pub(crate) fn image_config(&self) -> Option<&RunConfig> {
        self.image.as_ref().map(|image| &image.config)
    }

    /// What to say of a disk of a VM that the host had no room for.
    pub(crate) fn full_disk(&self, full: FullDisk) -> String {
        let (what, directory) = match full.role {
            DiskRole::Added(index) => match self.disks.get(index) {
                Some(disk) => (disk.mount.guest_path.clone(), disk.directory()),
                None => ("a disk".to_owned(), None),
            },
            _ => {
                let cache = Cache::user().ok();
                (
                    "its root".to_owned(),
                    cache.map(|cache| cache.path().to_owned()),
                )
            }
        };
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

    /// A builder for one VM.
    pub(crate) fn builder(&self, console: Console) -> Result<SandboxBuilder, Failure> {
        let builder = self.with_disks(console)?;
        let mut first = self
            .first_scratch
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(match (first.take(), self.scratch_mib) {
            (Some(disk), _) => builder.upper(Upper::Scratch(disk)),
            (None, Some(mib)) => builder.upper(Upper::Scratch(scratch(mib)?)),
            (None, None) if self.read_only => builder.upper(Upper::ReadOnly),
            (None, None) => builder,
        })
    }

    fn with_disks(&self, console: Console) -> Result<SandboxBuilder, Failure> {
        let mut builder = self.bare_builder(console);
        for OpenDisk { mount, file } in &self.disks {
            let disk = Disk::new(duplicate(file, mount.to_string())?, &mount.guest_path);
            builder = builder.disk(disk.read_only(mount.read_only));
        }
        Ok(builder)
    }

    fn bare_builder(&self, console: Console) -> SandboxBuilder {
        let mut builder = Sandbox::builder(&self.kernel, self.root.clone());
        if let Some(most) = self.pids_limit {
            builder = builder.pids_limit(most);
        }
        if self.read_only {
            builder = builder.upper(Upper::ReadOnly);
        }
        for entry in &self.hosts {
            builder = builder.add_host(entry.clone());
        }
        builder
            .cpus(self.cpus)
            .memory_mib(self.memory_mib)
            .hostname(&self.hostname)
            .kernel_args(&self.kernel_args)
            .boot_protocol(self.boot_protocol)
            .boot_timeout(self.boot_timeout)
            .console(console)
            .end_with_thread(true)
    }
}

impl OpenDisk {
    fn open(mount: &DiskMount) -> Result<Self, Failure> {
        let file = match &mount.source {
            DiskSource::File(path) => disk::open(path, mount.read_only).map_err(Failure::new)?,
            DiskSource::Volume(name) => {
                let volumes = Volumes::user().map_err(Failure::new)?;
                volumes.open(name, mount.read_only).map_err(Failure::new)?
            }
        };
        let mount = mount.clone();
        Ok(Self { mount, file })
    }

    /// Where its file is.
    fn directory(&self) -> Option<PathBuf> {
        match &self.mount.source {
            DiskSource::File(path) => {
                let path = std::path::absolute(path).ok()?;
                Some(path.parent()?.to_owned())
            }
            DiskSource::Volume(_) => Some(Volumes::user().ok()?.directory().to_owned()),
        }
    }
}

fn scratch(mib: u64) -> Result<File, Failure> {
    let cache = Cache::user().map_err(Failure::new)?;
    let size = mib.saturating_mul(parse::MIB);
    disk::scratch(size, &cache).map_err(|e| full::failure(&e, &[cache.path()], None))
}

fn root_from(path: &Path) -> Result<Root, Failure> {
    // Opened once: what is looked at here, and locked, is what the VMM gets.
    let (image, file) = probe::open(path).map_err(Failure::new)?;
    let fs_type = match image {
        RootImage::Directory => return directory_root(path),
        RootImage::Erofs { compressed, .. } => {
            if compressed {
                let path = path.display();
                say(
                    "warning",
                    &format!(
                        "{path} is compressed, which flashpan's own kernels cannot read; make it without -z"
                    ),
                );
            }
            FsType::Erofs
        }
        RootImage::Ext4 {
            needs_recovery: true,
            ..
        } => {
            let path = path.display();
            return Err(Failure::new(format!(
                "cannot use {path} as a root file system: it was not unmounted, and a guest mounts \
                 it read-only; run `e2fsck -p {path}` first"
            )));
        }
        RootImage::Ext4 { .. } => FsType::Ext4,
    };
    Ok(Root::opened(path, Arc::new(file), fs_type))
}

fn directory_root(path: &Path) -> Result<Root, Failure> {
    let cache = Cache::user().map_err(Failure::new)?;
    let mut progress = ImageProgress::new(format!("image of {}", path.display()));
    let options = directory::Options::default();
    let cached = directory::image(path, &options, &cache, &mut |event| progress.on(event))
        .map_err(|e| full::failure(&e, &[cache.path()], None))?;
    Ok(Root::opened(
        cached.path,
        Arc::new(cached.file),
        FsType::Erofs,
    ))
}

fn builtin_root() -> Result<Root, Failure> {
    let cache = Cache::user().map_err(Failure::new)?;
    let mut progress = ImageProgress::new("built-in root file system".to_owned());
    let cached = builtin::image(&cache, &mut |event| progress.on(event))
        .map_err(|e| full::failure(&e, &[cache.path()], None))?;
    Ok(Root::opened(
        cached.path,
        Arc::new(cached.file),
        FsType::Erofs,
    ))
}

/// Progress of making an image. There is nothing to see when it is cached.
struct ImageProgress {
    what: String,
    progress: Option<Progress>,
}

impl ImageProgress {
    fn new(what: String) -> Self {
        Self {
            what,
            progress: None,
        }
    }

    fn on(&mut self, event: directory::Event) {
        match event {
            directory::Event::LeftOut(path) => say(
                "warning",
                &format!(
                    "{} is left empty in the guest: another file system is mounted there",
                    path.display()
                ),
            ),
            directory::Event::Waiting => {
                say(
                    "note",
                    &format!("waiting for another flashpan that makes the {}", self.what),
                );
            }
            directory::Event::Copied(copied) => {
                let what = &self.what;
                let progress = self
                    .progress
                    .get_or_insert_with(|| Progress::bytes(what, copied.total));
                progress.set(copied.done);
            }
        }
    }
}
