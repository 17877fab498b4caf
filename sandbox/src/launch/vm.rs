//! A VM that can be booted at any time.

use std::path::PathBuf;
use std::sync::Arc;

use super::check::{Checked, bare};
use super::defaults::ExecDefaults;
use super::disks::{OpenDisk, OpenUpper};
use super::error::LaunchError;
use super::options::HostOptions;
use crate::api::Config;
use crate::config::{Root, SandboxBuilder};
use crate::disk::DiskRole;
use crate::error::Result;
use crate::process::Process;
use crate::sandbox::Sandbox;

/// A VM that can be booted at any time: everything that it is made from is checked,
/// open and locked. The locks are those of the open files, which its VMs have as
/// well, so it need not outlive them.
#[derive(Debug)]
pub struct Launch {
    config: Arc<Config>,
    options: HostOptions,
    hostname: String,
    root: Root,
    disks: Vec<OpenDisk>,
    upper: OpenUpper,
    defaults: Arc<ExecDefaults>,
    image_id: Option<String>,
}

impl Launch {
    pub(super) fn of(
        checked: Checked,
        root: Root,
        defaults: ExecDefaults,
        image_id: Option<String>,
    ) -> Self {
        let Checked {
            config,
            options,
            hostname,
            disks,
            upper,
            ..
        } = checked;
        Self {
            config: Arc::new(config),
            options,
            hostname,
            root,
            disks,
            upper,
            defaults: Arc::new(defaults),
            image_id,
        }
    }

    /// Boots a VM and waits until its guest can run programs; with
    /// `launch_entrypoint` also until the image's own command has been started,
    /// which then runs as long as the VM does, with nothing to read; what it writes is in
    /// [`Sandbox::logs`]. If the future is dropped the VM is killed. Its start is the
    /// first event of whoever asks for [`Sandbox::events`] first.
    ///
    /// Several VMs can be booted, one after the other if they write to the same
    /// disks.
    ///
    /// # Errors
    /// What prevented the guest from coming up, or
    /// [`LaunchError::Entrypoint`].
    pub async fn boot(&self) -> Result<Sandbox> {
        self.boot_as(self.builder()?).await
    }

    /// [`Self::boot`] of a builder that came from [`Self::builder`] and was changed.
    ///
    /// # Errors
    /// As [`Self::boot`].
    pub async fn boot_as(&self, builder: SandboxBuilder) -> Result<Sandbox> {
        let sandbox = builder.boot().await?;
        if self.defaults.launches_entrypoint() {
            sandbox.shared.events.keep();
        }
        if let Some(entrypoint) = self.start_entrypoint(&sandbox).await? {
            sandbox.keep(entrypoint)?;
        }
        Ok(sandbox)
    }

    /// A builder for one VM, for what [`Self::boot`] has no words for.
    /// [`Self::start_entrypoint`] is then up to the caller.
    ///
    /// # Errors
    /// [`crate::Error::Launch`]: no other scratch disk can be made.
    pub fn builder(&self) -> Result<SandboxBuilder> {
        let mut builder = bare(
            &self.config,
            &self.options,
            &self.hostname,
            self.root.clone(),
        );
        for disk in &self.disks {
            builder = builder.disk(disk.disk()?);
        }
        let builder = builder.described_by(&self.config, &self.defaults);
        Ok(builder.upper(self.upper.upper()?))
    }

    /// Starts the image's own command in a VM, if the configuration wants that
    /// (`launch_entrypoint`). It has nothing to read. Dropping it ends it.
    ///
    /// # Errors
    /// [`LaunchError::Entrypoint`].
    pub async fn start_entrypoint(&self, sandbox: &Sandbox) -> Result<Option<Process>> {
        let Some(entrypoint) = self.defaults.entrypoint()? else {
            return Ok(None);
        };
        let started = sandbox.exec(entrypoint).await;
        let started = started.map_err(|error| LaunchError::Entrypoint(Box::new(error)))?;
        Ok(Some(started))
    }

    /// How programs of the VM are run unless the caller says otherwise; its
    /// [`Sandbox::exec`] obeys it.
    #[must_use]
    pub fn exec_defaults(&self) -> &ExecDefaults {
        &self.defaults
    }

    /// The configuration, with an id if it had none.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the host added to it.
    #[must_use]
    pub fn options(&self) -> &HostOptions {
        &self.options
    }

    /// Digest of the container image that the root is of, which stands for the very
    /// same image later.
    #[must_use]
    pub fn image_id(&self) -> Option<&str> {
        self.image_id.as_deref()
    }

    /// Host name of the guest.
    #[must_use]
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Whether the guest has something to save at the end: a VM of which this is
    /// not so can be killed.
    #[must_use]
    pub fn keeps_something(&self) -> bool {
        self.upper.is_kept() || self.disks.iter().any(OpenDisk::is_kept)
    }

    /// Where in the guest a disk is, and the directory of the host that it takes
    /// room in, if that is known.
    #[must_use]
    pub fn place_of(&self, disk: DiskRole) -> (String, Option<PathBuf>) {
        match disk {
            DiskRole::Added(index) => match self.disks.get(index) {
                Some(disk) => (disk.guest_mount().to_owned(), disk.directory()),
                None => ("a disk".to_owned(), None),
            },
            DiskRole::Root | DiskRole::Upper => ("its root".to_owned(), self.upper.directory()),
        }
    }
}
