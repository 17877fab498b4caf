//! Commands for VMs with a life of their own.

mod allow_list;
mod copy;
mod events;
mod exec;
mod form;
mod forward;
mod inspect;
mod life;
mod list;
mod logs;
mod outcome;
mod programs;
mod remove;
mod secret;
mod stats;

use std::time::Duration;

use flashpan::state::{Status, Vm, Vms};
use flashpan::{Explained, Sandbox};
use tokio::time::timeout;

use crate::failure::Failure;
use crate::signals::Signals;

pub(crate) use allow_list::{AllowListArgs, allow_list};
pub(crate) use copy::{CpArgs, cp};
pub(crate) use events::{EventsArgs, events};
pub(crate) use exec::{ExecArgs, attend, exec};
pub(crate) use forward::{PortForwardArgs, port_forward};
pub(crate) use inspect::{InspectArgs, inspect};
pub(crate) use life::{
    KillArgs, PauseArgs, RenameArgs, RestartArgs, StartArgs, StopArgs, UnpauseArgs, WaitArgs, kill,
    pause, rename, restart, start, stop, unpause, wait,
};
pub(crate) use list::{LsArgs, ls};
pub(crate) use logs::{LogsArgs, logs};
pub(crate) use outcome::Outcome;
pub(crate) use programs::{PsArgs, ps};
pub(crate) use remove::{PruneArgs, RmArgs, prune, rm};
pub(crate) use secret::{SecretArgs, secret};
pub(crate) use stats::{StatsArgs, stats};

/// The VM that a user names.
pub(crate) fn find(text: &str) -> Result<Vm, Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    vms.find(text).map_err(Failure::new)
}

/// A handle to a VM that runs.
async fn attach(vm: &Vm) -> Result<Sandbox, Failure> {
    Sandbox::attach(vm).await.map_err(|error| of(vm, error))
}

/// The same within the time that the user allows, unless a signal ends the command first:
/// a supervisor that hangs keeps nobody.
pub(crate) async fn attach_in_time(
    vm: &Vm,
    limit: Option<Duration>,
    signals: &mut Signals,
) -> Result<Sandbox, Failure> {
    let attached = async {
        let Some(limit) = limit else {
            return attach(vm).await;
        };
        timeout(limit, attach(vm)).await.unwrap_or_else(|_| {
            Err(Failure::timed_out(format!(
                "the supervisor of the VM {} did not answer within {limit:?}",
                vm.id()
            )))
        })
    };
    tokio::select! {
        sandbox = attached => sandbox,
        signal = signals.ending() => Err(Failure::signalled(signal)),
    }
}

/// Refuses a VM that still was starting when it was looked for.
fn must_have_begun(vm: &Vm) -> Result<(), Failure> {
    match vm.status() {
        Status::Starting => Err(of(vm, flashpan::Error::Starting)),
        _ => Ok(()),
    }
}

/// What went wrong with a VM, and with which.
fn of(vm: &Vm, error: flashpan::Error) -> Failure {
    use flashpan::Error;
    let id = vm.id();
    match error {
        Error::Paused => Failure::new(format!(
            "the VM {id} is paused; let it go on with `flashpan unpause`"
        )),
        Error::NotPaused => Failure::new(format!("the VM {id} is not paused")),
        Error::Starting => Failure::new(format!("the VM {id} is still starting; wait a moment")),
        // Between the look and the call: in the words of one that had before.
        Error::NotRunning => Failure::new(format!(
            "the VM {id} is stopped; start it with `flashpan start`"
        )),
        error => error.into(),
    }
}

/// What would become of a connection or request of a VM.
pub(crate) async fn explain(vm: &str, method: &str, target: &str) -> Result<Explained, Failure> {
    let vm = find(vm)?;
    let sandbox = attach(&vm).await?;
    let explained = sandbox.explain(method, target).await;
    explained.map_err(|error| of(&vm, error))
}

/// Names of VMs for a shell to complete, each with its id.
pub(crate) fn names() -> Result<Vec<String>, Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    let listing = vms.list().map_err(Failure::new)?;
    let words = listing.vms.iter().flat_map(|vm| {
        let name = vm.name().map(str::to_owned);
        name.into_iter().chain([vm.id().to_owned()])
    });
    Ok(words.collect())
}

/// `Ok` if a VM may get that name, for now: before anything that takes time.
pub(crate) fn check_free(name: &str) -> Result<(), Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    vms.check_free(name).map_err(Failure::new)
}

/// All VMs that have a supervisor.
fn alive() -> Result<Vec<Vm>, Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    let listing = vms.list().map_err(Failure::new)?;
    let alive = |vm: &Vm| Status::is_alive(vm.status());
    Ok(listing.vms.into_iter().filter(alive).collect())
}
