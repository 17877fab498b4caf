//! VMs from a configuration, VMs that others supervise, and what happens in them.

use std::sync::Arc;
use std::time::Duration;

use super::{Process, Runtime, Sandbox};
use crate::api::{Config, SecretValue};
use crate::launch::{ExecDefaults, HostOptions};
use crate::state::{Vm, Vms};
use crate::{
    Activity, BoundPorts, ExecOptions, ExitStatus, Explained, PortForwarding, ProgramInfo,
    Reachable, Result, Usage, VmEvent,
};

// The documentation is that of the methods of the same name.
#[allow(clippy::missing_errors_doc)]
impl Sandbox {
    /// [`crate::Sandbox::create`].
    pub fn create(config: Config, options: HostOptions) -> Result<Self> {
        let runtime = Runtime::start()?;
        let inner = runtime.run(crate::Sandbox::create(config, options))?;
        Ok(Self { inner, runtime })
    }

    /// [`crate::Sandbox::attach`].
    pub fn attach(vm: &Vm) -> Result<Self> {
        let runtime = Runtime::start()?;
        let inner = runtime.run(crate::Sandbox::attach(vm))?;
        Ok(Self { inner, runtime })
    }

    /// [`crate::Sandbox::end`].
    pub fn end(vms: &Vms, id: &str) -> Result<()> {
        Runtime::start()?.run(crate::Sandbox::end(vms, id))
    }

    /// [`crate::Sandbox::id`].
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.inner.id()
    }

    /// [`crate::Sandbox::config`].
    #[must_use]
    pub fn config(&self) -> Option<&Config> {
        self.inner.config()
    }

    /// [`crate::Sandbox::exec_defaults`].
    #[must_use]
    pub fn exec_defaults(&self) -> Option<&ExecDefaults> {
        self.inner.exec_defaults()
    }

    /// [`crate::Sandbox::spawn`].
    pub fn spawn(&self, options: ExecOptions) -> Result<u32> {
        self.run(self.inner.spawn(options))
    }

    /// [`crate::Sandbox::wait_for_command`].
    pub fn wait_for_command(&self) -> Result<Option<ExitStatus>> {
        self.run(self.inner.wait_for_command())
    }

    /// [`crate::Sandbox::time_is_up`].
    pub fn time_is_up(&self) -> Duration {
        self.run(self.inner.time_is_up())
    }

    /// [`crate::Sandbox::pause`].
    pub fn pause(&self) -> Result<()> {
        self.run(self.inner.pause())
    }

    /// [`crate::Sandbox::resume`].
    pub fn resume(&self) -> Result<()> {
        self.run(self.inner.resume())
    }

    /// [`crate::Sandbox::activity`].
    pub fn activity(&self) -> Result<Activity> {
        self.run(self.inner.activity())
    }

    /// [`crate::Sandbox::usage`].
    pub fn usage(&self) -> Result<Usage> {
        self.run(self.inner.usage())
    }

    /// [`crate::Sandbox::programs`].
    pub fn programs(&self) -> Result<Vec<ProgramInfo>> {
        self.run(self.inner.programs())
    }

    /// [`crate::Sandbox::events`].
    pub fn events(&self) -> Result<Events> {
        // Some of it needs a runtime to begin with.
        let inner = self.run(async { self.inner.events() })?;
        let runtime = Arc::clone(&self.runtime);
        Ok(Events { inner, runtime })
    }

    /// [`crate::Sandbox::logs`].
    pub fn logs(&self) -> Result<Logs> {
        // As above.
        let inner = self.run(async { self.inner.logs() })?;
        let runtime = Arc::clone(&self.runtime);
        Ok(Logs { inner, runtime })
    }

    /// [`crate::Sandbox::reachable`].
    pub fn reachable(&self) -> Result<Reachable> {
        self.run(self.inner.reachable())
    }

    /// [`crate::Sandbox::allow_hosts`].
    pub fn allow_hosts<I>(&self, patterns: I) -> Result<Reachable>
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.run(self.inner.allow_hosts(patterns))
    }

    /// [`crate::Sandbox::disallow_hosts`].
    pub fn disallow_hosts<I>(&self, patterns: I) -> Result<Reachable>
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.run(self.inner.disallow_hosts(patterns))
    }

    /// [`crate::Sandbox::explain`].
    pub fn explain(&self, method: &str, target: &str) -> Result<Explained> {
        self.run(self.inner.explain(method, target))
    }

    /// [`crate::Sandbox::set_secret`].
    pub fn set_secret(&self, name: &str, value: &SecretValue) -> Result<()> {
        self.run(self.inner.set_secret(name, value))
    }

    /// [`crate::Sandbox::revoke_secret`].
    pub fn revoke_secret(&self, name: &str) -> Result<()> {
        self.run(self.inner.revoke_secret(name))
    }

    /// [`crate::Sandbox::forward_bound`]. It goes on as long as this VM.
    pub fn forward_bound(&self, ports: BoundPorts) -> Result<PortForwarding> {
        self.run(self.inner.forward_bound(ports))
    }

    pub(super) fn started(&self, process: crate::Process) -> Process {
        Process::new(process, &self.runtime)
    }
}

/// What happens in a VM; [`crate::Events`]. It ends when the guest is gone.
#[derive(Debug)]
pub struct Events {
    inner: crate::Events,
    runtime: Arc<Runtime>,
}

impl Iterator for Events {
    type Item = VmEvent;

    fn next(&mut self) -> Option<Self::Item> {
        self.runtime.run(self.inner.next())
    }
}

/// What a VM's own command writes; [`crate::Logs`]. It ends when the VM has ended.
#[derive(Debug)]
pub struct Logs {
    inner: crate::Logs,
    runtime: Arc<Runtime>,
}

#[allow(clippy::missing_errors_doc)] // As above.
impl Logs {
    /// [`crate::Logs::available`].
    pub fn available(&mut self) -> Result<Vec<u8>> {
        self.inner.available()
    }

    /// [`crate::Logs::take_lost`].
    pub fn take_lost(&mut self) -> bool {
        self.inner.take_lost()
    }
}

impl Iterator for Logs {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.runtime.run(self.inner.next()).transpose()
    }
}
