//! Everything about a VM that can be wrong, found before anything takes long.

use std::fmt;
use std::sync::Arc;

use flashpan_kernel::image as kernel_image;
use flashpan_protocol::agent::FsType;
use flashpan_rootfs::image_config::RunConfig;
use flashpan_rootfs::store::Cancel;

use super::defaults::ExecDefaults;
use super::disks::{OpenDisk, OpenUpper};
use super::error::LaunchError;
use super::image::Wanted;
use super::options::{HostOptions, RootSource, TimeLimit};
use super::progress::Progress;
use super::refuse::Unsupported;
use super::root;
use super::vm::Launch;
use crate::api::{Config, Resources};
use crate::config::{Root, SandboxBuilder};
use crate::error::{Error, Result};
use crate::network::Settings;
use crate::sandbox::Sandbox;
use crate::secret_refresh::Refresh;

/// A VM of which everything is in order that can be found out quickly. Its disks
/// are locked.
pub struct Checked {
    pub(super) config: Config,
    pub(super) options: HostOptions,
    pub(super) hostname: String,
    pub(super) disks: Vec<OpenDisk>,
    pub(super) upper: OpenUpper,
    wanted: Option<Wanted>,
    progress: Arc<dyn Progress>,
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checked")
            .field("config", &self.config)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Launch {
    /// Checks what a VM is to be made from, in an order that tells what is wrong
    /// before it does anything: the configuration, the kernel, the disks, the
    /// image. Opens and locks the disks. Reads files, and makes the disk for the
    /// writes; that is a matter of milliseconds unless a disk of this size was
    /// never made before.
    ///
    /// # Errors
    /// [`Error::ConfigInvalid`], [`Error::Unsupported`], [`Error::InvalidConfig`],
    /// [`Error::Launch`].
    pub fn check(
        mut config: Config,
        options: HostOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<Checked> {
        config.validate()?;
        Unsupported::check(&config, options.network_of(&config))?;
        let image_name = image_name(&config, &options)?;
        let made = config.id_or_new().map(drop);
        let hostname = made.and_then(|()| config.hostname_or_id().map(str::to_owned));
        let hostname = hostname.map_err(Error::host("make an id for the VM"))?;
        bare(&config, &options, &hostname, no_root()).validate()?;
        if options.kernel.as_os_str().is_empty() {
            return Err(Error::config("kernel", "there is none; name one"));
        }
        kernel_image::check(&options.kernel).map_err(LaunchError::from)?;
        let disk_mib = resources(&config).disk_size_mb_or_default();
        OpenUpper::check(&options.upper, disk_mib)?;
        let disks = config.extra_disks.iter().map(OpenDisk::open);
        let disks: Vec<_> = disks.collect::<Result<_, LaunchError>>()?;
        let mut with_disks = bare(&config, &options, &hostname, no_root());
        for disk in &disks {
            with_disks = with_disks.disk(disk.disk()?);
        }
        with_disks.validate()?;
        drop(with_disks);
        let wanted = match (&options.root, image_name) {
            (RootSource::Image(source), Some(name)) => Some(Wanted::new(&name, source, &progress)?),
            _ => None,
        };
        let upper = OpenUpper::open(&options.upper, disk_mib)?;
        Ok(Checked {
            config,
            options,
            hostname,
            disks,
            upper,
            wanted,
            progress,
        })
    }

    /// Gets everything ready that a VM is made from: [`Launch::check`],
    /// [`Checked::pull`] and [`Checked::finish`], with what blocks on threads for
    /// that. A future that is dropped ends a pull; what was downloaded is kept for
    /// the next one.
    ///
    /// # Errors
    /// As those.
    pub async fn new(
        config: Config,
        options: HostOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<Self> {
        let mut checked = blocking(move || Self::check(config, options, progress)).await?;
        checked.pull(&Cancel::default()).await?;
        blocking(move || checked.finish()).await
    }
}

impl Checked {
    /// Whether the image has to be pulled.
    #[must_use]
    pub fn is_to_pull(&self) -> bool {
        self.wanted.as_ref().is_some_and(Wanted::is_to_pull)
    }

    /// Pulls the image if it has to be; `cancel` ends that in order.
    ///
    /// # Errors
    /// [`Error::Launch`]: the registry does not give it, or it is none that can be
    /// used.
    pub async fn pull(&mut self, cancel: &Cancel) -> Result<()> {
        if let Some(wanted) = &mut self.wanted {
            wanted.pull(&self.progress, cancel).await?;
        }
        Ok(())
    }

    /// Gets the root ready. Blocks, for minutes if an image of a large directory
    /// has to be made.
    ///
    /// # Errors
    /// [`Error::Launch`]: there can be no such root, or its image is not there
    /// ([`Checked::pull`] was not called).
    pub fn finish(mut self) -> Result<Launch> {
        let (root, image) = self.root()?;
        let (id, run) = image.unzip();
        let defaults = ExecDefaults::new(&self.config, &self.hostname, run);
        // Said before there is a VM.
        defaults.entrypoint()?;
        Ok(Launch::of(self, root, defaults, id))
    }

    /// With the digest of the image and what it says.
    fn root(&mut self) -> Result<(Root, Option<(String, RunConfig)>), LaunchError> {
        let progress = &*self.progress;
        if let Some(wanted) = self.wanted.take() {
            let (root, id, run) = wanted.root()?.ok_or(LaunchError::NotPulled)?;
            return Ok((root, Some((id, run))));
        }
        let root = match &self.options.root {
            RootSource::Path(path) => root::from_path(path, progress)?,
            RootSource::BuiltIn | RootSource::Image(_) => root::built_in(progress)?,
        };
        Ok((root, None))
    }
}

/// The image that the root is of; `None` for other roots.
fn image_name(config: &Config, options: &HostOptions) -> Result<Option<String>> {
    match (&options.root, config.image.as_str()) {
        (RootSource::Image(_), "") => Err(LaunchError::ImageRequired.into()),
        (RootSource::Image(_), name) => Ok(Some(name.to_owned())),
        (_, "") => Ok(None),
        (_, name) => {
            let why = format!("{name} is named, and another root file system as well");
            Err(Error::config("image", why))
        }
    }
}

pub(super) fn resources(config: &Config) -> Resources {
    config.resources.clone().unwrap_or_default()
}

/// A builder with everything but disks and root.
pub(super) fn bare(
    config: &Config,
    options: &HostOptions,
    hostname: &str,
    root: Root,
) -> SandboxBuilder {
    let resources = resources(config);
    let mut builder = Sandbox::builder(&options.kernel, root)
        .cpus(resources.cpus_or_default())
        .memory_mib(resources.memory_mb_or_default())
        .hostname(hostname)
        .kernel_args(&options.kernel_args)
        .boot_protocol(options.boot_protocol)
        .boot_timeout(options.boot_timeout)
        .console(options.console)
        .end_with_thread(options.end_with_thread);
    if let Some(most) = options.pids_limit {
        builder = builder.pids_limit(most);
    }
    if let Some(limit) = options.disk_rate {
        builder = builder.disk_rate(limit);
    }
    let mut network = Settings::of(config, options.network_of(config));
    let files = &options.upstream_ca_files;
    network.inspected.upstream_ca_files.clone_from(files);
    let certificates = &options.client_certificates;
    (network.inspected.client_certificates).clone_from(certificates);
    network.refresh = Refresh {
        sources: options.secret_sources.clone(),
        given: options.secrets_given.clone(),
        every: options.secret_refresh,
    };
    builder = builder.network_settings(network);
    if let Some(limit) = options.network_rate {
        builder = builder.network_rate(limit);
    }
    for entry in config.network.iter().flat_map(|network| &network.add_hosts) {
        builder = builder.add_host(entry.clone());
    }
    if let Some(vmm) = &options.vmm {
        builder = builder.vmm(vmm);
    }
    if let Some(init) = &options.guest_init {
        builder = builder.guest_init(init);
    }
    match options.time_limit {
        TimeLimit::Configured => builder.time_limit(resources.timeout()),
        TimeLimit::After(limit) => builder.time_limit(limit),
        TimeLimit::Unlimited => builder,
    }
}

/// In place of one that is not known yet; nothing looks at it.
fn no_root() -> Root {
    Root::new("", FsType::Erofs)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(LaunchError::Thread(error.to_string()).into()),
    }
}

#[cfg(test)]
mod tests;
