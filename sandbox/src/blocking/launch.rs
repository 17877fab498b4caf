//! From a configuration to a VM, step by step.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Process, Runtime, Sandbox};
use crate::api::Config;
use crate::launch::{Cancel, ExecDefaults, HostOptions, Progress};
use crate::{DiskRole, Result, SandboxBuilder};

/// Everything about a VM that can be wrong; [`crate::launch::Checked`].
#[derive(Debug)]
pub struct Checked {
    inner: crate::launch::Checked,
}

// The documentation is that of the methods of the same name.
#[allow(clippy::missing_errors_doc)]
impl Checked {
    /// [`crate::launch::Checked::is_to_pull`].
    #[must_use]
    pub fn is_to_pull(&self) -> bool {
        self.inner.is_to_pull()
    }

    /// [`crate::launch::Checked::pull`].
    pub fn pull(&mut self, cancel: &Cancel) -> Result<()> {
        Runtime::start()?.run(self.inner.pull(cancel))
    }

    /// [`crate::launch::Checked::finish`].
    pub fn finish(self) -> Result<Launch> {
        let inner = self.inner.finish()?;
        Ok(Launch { inner })
    }
}

/// A VM that can be booted at any time; [`crate::Launch`].
#[derive(Debug)]
pub struct Launch {
    inner: crate::Launch,
}

#[allow(clippy::missing_errors_doc)] // As above.
impl Launch {
    /// [`crate::Launch::check`].
    pub fn check(
        config: Config,
        options: HostOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<Checked> {
        let inner = crate::Launch::check(config, options, progress)?;
        Ok(Checked { inner })
    }

    /// [`crate::Launch::new`].
    pub fn new(config: Config, options: HostOptions, progress: Arc<dyn Progress>) -> Result<Self> {
        let runtime = Runtime::start()?;
        let inner = runtime.run(crate::Launch::new(config, options, progress))?;
        Ok(Self { inner })
    }

    /// [`crate::Launch::boot`].
    pub fn boot(&self) -> Result<Sandbox> {
        self.boot_as(self.inner.builder()?)
    }

    /// [`crate::Launch::boot_as`].
    pub fn boot_as(&self, builder: SandboxBuilder) -> Result<Sandbox> {
        let runtime = Runtime::start()?;
        let inner = runtime.run(self.inner.boot_as(builder))?;
        Ok(Sandbox { inner, runtime })
    }

    /// [`crate::Launch::builder`].
    pub fn builder(&self) -> Result<SandboxBuilder> {
        self.inner.builder()
    }

    /// [`crate::Launch::start_entrypoint`].
    pub fn start_entrypoint(&self, sandbox: &Sandbox) -> Result<Option<Process>> {
        let started = sandbox.run(self.inner.start_entrypoint(&sandbox.inner))?;
        Ok(started.map(|process| sandbox.started(process)))
    }

    /// [`crate::Launch::exec_defaults`].
    #[must_use]
    pub fn exec_defaults(&self) -> &ExecDefaults {
        self.inner.exec_defaults()
    }

    /// [`crate::Launch::config`].
    #[must_use]
    pub fn config(&self) -> &Config {
        self.inner.config()
    }

    /// [`crate::Launch::options`].
    #[must_use]
    pub fn options(&self) -> &HostOptions {
        self.inner.options()
    }

    /// [`crate::Launch::image_id`].
    #[must_use]
    pub fn image_id(&self) -> Option<&str> {
        self.inner.image_id()
    }

    /// [`crate::Launch::hostname`].
    #[must_use]
    pub fn hostname(&self) -> &str {
        self.inner.hostname()
    }

    /// [`crate::Launch::keeps_something`].
    #[must_use]
    pub fn keeps_something(&self) -> bool {
        self.inner.keeps_something()
    }

    /// [`crate::Launch::place_of`].
    #[must_use]
    pub fn place_of(&self, disk: DiskRole) -> (String, Option<PathBuf>) {
        self.inner.place_of(disk)
    }
}
