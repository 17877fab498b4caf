//! A VM that another process may supervise: reaching it, letting it stand still, and
//! what its supervisor knows of it.

use std::sync::Arc;

use flashpan_protocol::agent::ExitStatus;
use flashpan_protocol::supervisor::{Activity, Answer, Request, Usage};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::attach::{Attachment, unexpected};
use crate::driver::{Command, Ended};
use crate::error::{Error, Result};
use crate::exec::ExecOptions;
use crate::pump::Task;
use crate::sandbox::{START_TIMEOUT, Sandbox, VMM_TIMEOUT, Way};
use crate::state::{Vm, Vms};
use crate::surroundings::Surroundings;
use crate::usage;

/// # VMs with a life of their own
/// A VM that is being paused, and is not if this is dropped.
struct Undo<'a>(&'a Sandbox);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Way::Own { commands, .. } = &self.0.way {
            let (reply, _) = oneshot::channel();
            // Its driver takes commands one by one, and this after the other.
            let _ = commands.try_send(Command::Pause(false, reply));
        }
        self.0.shared.set_paused(false);
    }
}

impl Sandbox {
    /// Reaches a VM that another process of this user supervises. What this handle
    /// does, runs and transfers is as if the VM were its own; dropping it ends what it
    /// began, and not the VM.
    ///
    /// [`Sandbox::console`], [`Sandbox::timeline`] and [`Sandbox::take_warnings`] know
    /// only what happened through this handle: nothing, mostly. The console is in the
    /// VM's log ([`crate::state::LogReader`]).
    ///
    /// # Errors
    /// [`Error::State`] if the VM does not run, with what it does instead,
    /// [`Error::NotRunning`] if it has just ended (both have the code `vm_not_running`), [`Error::Supervisor`] if its supervisor does not answer.
    pub async fn attach(vm: &Vm) -> Result<Self> {
        vm.must_live()?;
        let attachment = Attachment::to(vm);
        let (ended, listen) = attachment.watch().await?;
        let surroundings = Surroundings::Kept(Arc::new(vm.record().programs.clone()));
        Ok(Self::by(attachment, surroundings, ended, listen))
    }

    /// A handle of a VM that another process supervises, which hears of its end as long as
    /// it is there.
    fn by(
        attachment: Attachment,
        surroundings: Surroundings,
        ended: Ended,
        listen: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self {
            way: Way::Attached(attachment),
            ended,
            shared: Arc::default(),
            config: None,
            surroundings,
            kept: std::sync::Mutex::default(),
            _listener: Task::spawn(listen),
            _time_limit: None,
        }
    }

    /// Ends a VM that another process supervises, whatever that is doing: asks it to,
    /// and ends the supervisor itself, and with it the VM, if it has not in 10 seconds,
    /// or has no room for another client. The VM's files need not be understood. That
    /// they say that it has ended is for [`Vms::wait_until_ended`].
    ///
    /// # Errors
    /// [`Error::Host`] or [`Error::Supervisor`] if the supervisor cannot be ended.
    pub async fn end(vms: &Vms, id: &str) -> Result<()> {
        Attachment::at(id, vms.directory(id)).kill().await
    }

    /// Lets the VM stand still: its guest's programs do not run, and its clock goes
    /// on. Only [`Sandbox::resume`], the end of the VM and questions about it are
    /// possible then.
    ///
    /// # Errors
    /// [`Error::Paused`] if it stands still already, [`Error::NotRunning`] if it has
    /// ended, [`Error::Timeout`] if the VMM does not answer.
    pub async fn pause(&self) -> Result<()> {
        match &self.way {
            Way::Own { .. } if !self.shared.set_paused(true) => Err(Error::Paused),
            Way::Own { .. } => {
                // A VMM that does not answer in time may do it later, and whoever asked
                // may go away: then it is told to go on, and the VM counts as running.
                let undo = Undo(self);
                self.stand_still(true).await?;
                std::mem::forget(undo);
                Ok(())
            }
            Way::Attached(attachment) => attachment.ask(&Request::Pause).await?.done().await,
        }
    }

    /// Lets a VM that was paused go on.
    ///
    /// # Errors
    /// [`Error::NotPaused`] if it does not stand still, and as [`Sandbox::pause`].
    pub async fn resume(&self) -> Result<()> {
        match &self.way {
            Way::Own { .. } if !self.shared.set_paused(false) => Err(Error::NotPaused),
            Way::Own { .. } => {
                let resumed = self.stand_still(false).await;
                if matches!(resumed, Err(Error::Timeout { .. })) {
                    // It can be tried again.
                    self.shared.set_paused(true);
                }
                resumed
            }
            Way::Attached(attachment) => attachment.ask(&Request::Resume).await?.done().await,
        }
    }

    async fn stand_still(&self, pause: bool) -> Result<()> {
        let (reply, done) = oneshot::channel();
        let what = if pause { "stand still" } else { "go on" };
        self.command(Command::Pause(pause, reply)).await?;
        match timeout(VMM_TIMEOUT, done).await {
            Ok(done) => done.map_err(|_| Error::NotRunning),
            Err(_) => Err(Error::Timeout {
                what,
                after: VMM_TIMEOUT,
            }),
        }
    }

    /// Whether the VM boots, runs, stands still or shuts down. Of a VM of this
    /// process only whether it stands still is known.
    ///
    /// # Errors
    /// [`Error::NotRunning`] if it has ended.
    pub async fn activity(&self) -> Result<Activity> {
        if self.exit().is_some() {
            return Err(Error::NotRunning);
        }
        match &self.way {
            Way::Own { .. } if self.shared.is_paused() => Ok(Activity::Paused),
            Way::Own { .. } => Ok(Activity::Running),
            Way::Attached(attachment) => {
                match attachment.ask(&Request::Status).await?.answer().await? {
                    Answer::Status(activity) => Ok(activity),
                    _ => Err(unexpected()),
                }
            }
        }
    }

    /// Runs a program that outlives this handle; its output is thrown away. Its
    /// process id in the guest. Only the supervisor of a VM can do that, so only an
    /// attached handle.
    ///
    /// # Errors
    /// As [`Sandbox::exec`]; [`Error::InvalidConfig`] on a handle that is not attached, and
    /// for what takes somebody who watches: [`ExecOptions::stdin`] and
    /// [`ExecOptions::timeout`].
    pub async fn spawn(&self, options: ExecOptions) -> Result<u32> {
        options.need_nobody()?;
        let Way::Attached(attachment) = &self.way else {
            let why = "only the supervisor of a VM can run a program that nobody watches";
            return Err(Error::config("spawn", why));
        };
        let options = self.surroundings.around(options);
        options.validate()?;
        let request = Request::Spawn(Box::new(options.into_request()?));
        // Starting takes as long as the guest takes.
        let mut asked = attachment.ask(&request).await?;
        match timeout(START_TIMEOUT, asked.answer()).await {
            Ok(Ok(Answer::Started { pid })) => Ok(pid),
            Ok(Ok(_)) => Err(unexpected()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout {
                what: "start the program",
                after: START_TIMEOUT,
            }),
        }
    }

    /// Waits until the VM's own command has ended; `None` if the VM has none, or ended
    /// first. Cancel safe. Only an attached handle knows of such a command.
    ///
    /// # Errors
    /// [`Error::Supervisor`] if the supervisor does not answer.
    pub async fn wait_for_command(&self) -> Result<Option<ExitStatus>> {
        let Way::Attached(attachment) = &self.way else {
            self.wait().await;
            return Ok(None);
        };
        let mut asked = attachment.ask(&Request::WaitCommand).await?;
        match asked.next().await? {
            Answer::CommandEnded(status) => Ok(Some(status)),
            Answer::Ended { .. } => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// What the VM uses of its host.
    ///
    /// # Errors
    /// As [`Sandbox::stats`].
    pub async fn usage(&self) -> Result<Usage> {
        match &self.way {
            Way::Own {
                pid,
                vcpus,
                memory_mib,
                ..
            } => {
                let mut usage = Usage {
                    vmm: self.stats().await?,
                    vcpus: *vcpus,
                    memory_bytes: memory_mib.saturating_mul(1 << 20),
                    ..Usage::default()
                };
                usage::add_process(&mut usage, *pid);
                Ok(usage)
            }
            Way::Attached(attachment) => {
                match attachment.ask(&Request::Usage).await?.answer().await? {
                    Answer::Usage(usage) => Ok(*usage),
                    _ => Err(unexpected()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::events::VmEventKind;
    use crate::state::{LoggedEvent, LoggedKind};

    const LONG: Duration = Duration::from_secs(60);

    /// A handle of a VM whose end is never told.
    fn attached(directory: &std::path::Path) -> Sandbox {
        let (teller, ended) = tokio::sync::watch::channel(None);
        let listen = async move {
            std::future::pending::<()>().await;
            drop(teller);
        };
        let attachment = Attachment::at("vm-00000001", directory.to_owned());
        Sandbox::by(attachment, Surroundings::None, ended, listen)
    }

    #[tokio::test]
    async fn events_and_logs_of_a_handle_end_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = attached(dir.path());
        let mut events = sandbox.events().unwrap();
        let mut logs = sandbox.logs().unwrap();
        // They wait as long as it is there.
        tokio::select! {
            biased;
            event = events.next() => panic!("{event:?}"),
            bytes = logs.next() => panic!("{bytes:?}"),
            () = std::future::ready(()) => {}
        }
        let lost = LoggedEvent {
            time: SystemTime::UNIX_EPOCH.into(),
            vm: "vm-00000001".to_owned(),
            kind: LoggedKind::Lost {
                count: 5,
                network: false,
            },
        };
        let line = format!("{}\n", serde_json::to_string(&lost).unwrap());
        std::fs::write(dir.path().join("events.log"), line).unwrap();
        drop(sandbox);
        // What was written by then is still told.
        let lost = timeout(LONG, events.next()).await.unwrap().unwrap();
        assert!(matches!(lost.kind, VmEventKind::Lost(5)), "{lost:?}");
        assert!(timeout(LONG, events.next()).await.unwrap().is_none());
        let rest = timeout(LONG, logs.next()).await.unwrap();
        assert!(rest.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_program_that_nobody_watches_has_neither_input_nor_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = attached(dir.path());
        let plain = ExecOptions::argv(["sleep", "9"]);
        for (options, named) in [
            (plain.clone().stdin(true), "stdin"),
            (plain.clone().timeout(LONG), "timeout"),
        ] {
            match sandbox.spawn(options).await {
                Err(Error::InvalidConfig { field, .. }) => assert_eq!(field, named),
                other => panic!("{other:?}"),
            }
        }
        // All else is for the supervisor, which is not there.
        let without = sandbox.spawn(plain.stdin(false)).await;
        assert!(matches!(without, Err(Error::NotRunning)), "{without:?}");
    }
}
