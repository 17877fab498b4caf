//! Starting, stopping and everything in between.

use std::time::Duration;

use clap::Args;
use flashpan::state::{Status, Vm, Vms};
use flashpan::supervise::{StartOptions, WITHIN};
use flashpan::{Exit, ExitReason, Sandbox};

use crate::detached;
use crate::failure::{Failure, each, print, say};
use crate::parse;
use crate::runtime;
use crate::vms::{alive, attach, find, of};

/// How long it may do so before the user is told what is waited for.
const LONG: Duration = Duration::from_secs(10);

/// How long what is left of a VM may take to go, once it has been told to.
const GONE_WITHIN: Duration = Duration::from_secs(30);

const START_EXAMPLES: &str = "\
Examples:
  flashpan create --name web --image nginx && flashpan start web
  flashpan start web db

The VM has the disk that it had when it stopped. Its command, if it has one, begins
anew; what it writes is in `flashpan logs`.";

const STOP_EXAMPLES: &str = "\
Examples:
  flashpan stop web
  flashpan stop --time 60s web db

The VM's command gets the signal that its image wants for that (StopSignal), all programs
get SIGTERM, and SIGKILL when --time is over; then the guest writes its disks and powers
off. `flashpan start` starts it again.";

const KILL_EXAMPLES: &str = "\
Examples:
  flashpan kill web
  flashpan kill --all

What the guest has not synced is lost; its file systems recover when it is started
again.";

const WAIT_EXAMPLES: &str = "\
Examples:
  flashpan wait build
  test $(flashpan wait build) = 0 && flashpan logs build

Waits for the end of the VM's command, and of the VM where it has none, and prints
the command's exit status: 128 plus the signal if one ended it, 124 if the VM's time was
up first, 0 if there was no command, 125 if nobody knows.";

const PAUSE_EXAMPLES: &str = "\
Examples:
  flashpan pause web
  flashpan unpause web";

const UNPAUSE_EXAMPLES: &str = "\
Examples:
  flashpan unpause web";

const RENAME_EXAMPLES: &str = "\
Examples:
  flashpan rename vm-0a1b2c3d web";

/// Starts VMs that were created, or have ended
#[derive(Debug, Args)]
#[command(after_help = START_EXAMPLES)]
pub(crate) struct StartArgs {
    /// Ids, their beginnings, or names.
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,
}

/// Shuts VMs down in order
#[derive(Debug, Args)]
#[command(after_help = STOP_EXAMPLES)]
pub(crate) struct StopArgs {
    /// Ids, their beginnings, or names.
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,

    /// How long programs may take to end, e.g. 10s; a plain number is seconds. As
    /// `run --graceful-shutdown` said otherwise, or 10s.
    #[arg(long, short, value_name = "DURATION", value_parser = grace)]
    time: Option<Duration>,
}

/// Ends VMs at once
#[derive(Debug, Args)]
#[command(after_help = KILL_EXAMPLES)]
pub(crate) struct KillArgs {
    /// Ids, their beginnings, or names.
    #[arg(
        value_name = "VM",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    vms: Vec<String>,

    /// All that run.
    #[arg(long)]
    all: bool,
}

/// Waits until VMs, or their commands, have ended
#[derive(Debug, Args)]
#[command(after_help = WAIT_EXAMPLES)]
pub(crate) struct WaitArgs {
    /// Ids, their beginnings, or names.
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,
}

/// Lets VMs stand still
#[derive(Debug, Args)]
#[command(after_help = PAUSE_EXAMPLES)]
pub(crate) struct PauseArgs {
    /// Ids, their beginnings, or names.
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,
}

/// Lets VMs that were paused go on
#[derive(Debug, Args)]
#[command(after_help = UNPAUSE_EXAMPLES, visible_alias = "resume")]
pub(crate) struct UnpauseArgs {
    /// Ids, their beginnings, or names.
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,
}

/// Gives a VM another name
#[derive(Debug, Args)]
#[command(after_help = RENAME_EXAMPLES)]
pub(crate) struct RenameArgs {
    /// Its id, the beginning of it, or its name.
    #[arg(value_name = "VM")]
    vm: String,

    /// Its new name: letters, digits, `_`, `.` and `-`.
    #[arg(value_name = "NAME")]
    name: String,
}

/// As every duration, but programs may get none at all.
fn grace(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        text => parse::duration(text),
    }
}

pub(crate) fn start(args: &StartArgs) -> Result<u8, Failure> {
    each_with_code(&args.vms, |text| {
        let vm = find(text)?;
        let options = StartOptions {
            run_command: true,
            remove_unless_ready: false,
        };
        detached::start(&vm, options)?;
        print(&format!("{text}\n"))
    })
}

/// As [`each`]; alone, a failure has its own exit status.
fn each_with_code(
    things: &[String],
    mut act: impl FnMut(&String) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    match things {
        [only] => act(only)?,
        several => each(several, act)?,
    }
    Ok(0)
}

pub(crate) fn stop(args: &StopArgs) -> Result<u8, Failure> {
    each(&args.vms, |text| {
        let vm = find(text)?;
        let exit = shut_down(&vm, args.time.unwrap_or_else(|| vm.record().grace()))?;
        // Of one that was still starting nothing can be lost.
        let came_up =
            |exit: &std::sync::Arc<Exit>| !matches!(exit.reason, ExitReason::Other { .. });
        if let Some(exit) = exit.filter(came_up)
            && !exit.reason.is_orderly()
        {
            return Err(Failure::new(format!(
                "the VM {} did not shut down in order ({}); what it wrote last may be lost",
                vm.id(),
                exit.reason
            )));
        }
        print(&format!("Stopped {}\n", vm.id()))
    })?;
    Ok(0)
}

/// `None` if it did not run, which is as good.
fn shut_down(vm: &Vm, grace: Duration) -> Result<Option<std::sync::Arc<Exit>>, Failure> {
    if !vm.status().is_alive() {
        return match vm.status() {
            Status::Created => Err(vm_must_live(vm)),
            _ => Ok(None),
        };
    }
    let exit = runtime(async {
        let sandbox = attach(vm).await?;
        let ended = sandbox.shutdown_within(grace, WITHIN);
        let mut ended = std::pin::pin!(ended);
        let patience = tokio::time::sleep(grace.saturating_add(LONG));
        tokio::select! {
            exit = &mut ended => return Ok(exit),
            () = patience => say("note", &format!(
                "waiting for the guest of {} to write its disks; `flashpan kill` ends it now",
                vm.id()
            )),
        }
        Ok(ended.await)
    })?;
    gone(vm.id())?;
    Ok(Some(exit))
}

fn vm_must_live(vm: &Vm) -> Failure {
    match vm.must_live() {
        Ok(()) => Failure::new(format!("the VM {} runs", vm.id())),
        Err(error) => Failure::new(error),
    }
}

/// Ends a VM whatever it is doing, also if its files cannot be understood.
pub(super) fn end(id: &str) -> Result<(), Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    runtime(async { Ok(Sandbox::end(&vms, id).await?) })?;
    gone(id)
}

/// Returns when a VM that was told to end has no supervisor any more.
fn gone(id: &str) -> Result<(), Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    match vms.wait_until_ended(id, GONE_WITHIN) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(format!(
            "the VM {id} has been told to end and has not in {GONE_WITHIN:?}"
        ))),
        Err(error) => Err(Failure::new(error)),
    }
}

pub(crate) fn kill(args: &KillArgs) -> Result<u8, Failure> {
    let killed = |vm: &Vm| {
        if !vm.status().is_alive() {
            return Err(vm_must_live(vm));
        }
        end(vm.id())?;
        print(&format!("Killed {}\n", vm.id()))
    };
    match args.all {
        true => each(&alive()?, killed)?,
        false => each(&args.vms, |text| killed(&find(text)?))?,
    }
    Ok(0)
}

/// What is printed where the VM's time was up.
const TIMED_OUT: u8 = 124;

/// What is printed where nobody knows how a command ended.
const UNKNOWN: u8 = 125;

pub(crate) fn wait(args: &WaitArgs) -> Result<u8, Failure> {
    each(&args.vms, |text| {
        let code = code_of(&find(text)?)?;
        print(&format!("{code}\n"))
    })?;
    Ok(0)
}

fn code_of(vm: &Vm) -> Result<u8, Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    if vm.status().is_alive() {
        let waited = runtime(async {
            match Sandbox::attach(vm).await {
                Ok(sandbox) => Ok(Some(sandbox.wait_for_command().await)),
                Err(flashpan::Error::NotRunning) => Ok(None),
                Err(error) => Err(of(vm, error)),
            }
        })?;
        match waited {
            Some(Ok(Some(status))) => return Ok(status.shell_code()),
            // The supervisor went away, unless it has not.
            Some(Err(error)) => gone(vm.id()).map_err(|_| of(vm, error))?,
            // The VM before its command: the files say how.
            Some(Ok(None)) | None => gone(vm.id())?,
        }
        return match vms.find(vm.id()) {
            Ok(vm) => Ok(last_code(&vm)),
            // Removed at its end.
            Err(_) if !has_command(vm) => Ok(0),
            Err(_) => Ok(UNKNOWN),
        };
    }
    match vm.status() {
        Status::Created => Err(vm_must_live(vm)),
        _ => Ok(last_code(vm)),
    }
}

/// Whether the VM's command runs by itself: `run --rm=false` runs it at its terminal.
fn has_command(vm: &Vm) -> bool {
    let attended = vm.run().is_some_and(|run| run.attended);
    !attended && !vm.record().programs.command.is_empty()
}

/// The status of the command in a run that is over.
fn last_code(vm: &Vm) -> u8 {
    match vm.exit() {
        Some(exit) => match exit.command {
            Some(command) => command.code,
            None if exit.timed_out => TIMED_OUT,
            None if !has_command(vm) => 0,
            None => UNKNOWN,
        },
        None => UNKNOWN,
    }
}

pub(crate) fn pause(args: &PauseArgs) -> Result<u8, Failure> {
    each(&args.vms, |text| {
        let vm = find(text)?;
        runtime(async {
            let sandbox = attach(&vm).await?;
            sandbox.pause().await.map_err(|error| of(&vm, error))
        })?;
        print(&format!("Paused {}\n", vm.id()))
    })?;
    Ok(0)
}

pub(crate) fn unpause(args: &UnpauseArgs) -> Result<u8, Failure> {
    each(&args.vms, |text| {
        let vm = find(text)?;
        runtime(async {
            let sandbox = attach(&vm).await?;
            sandbox.resume().await.map_err(|error| of(&vm, error))
        })?;
        print(&format!("Unpaused {}\n", vm.id()))
    })?;
    Ok(0)
}

pub(crate) fn rename(args: &RenameArgs) -> Result<u8, Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    let id = vms.resolve(&args.vm).map_err(Failure::new)?;
    vms.rename(&id, &args.name).map_err(Failure::new)?;
    print(&format!("Renamed {id} to {}\n", args.name))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_may_get_no_time_at_all() {
        assert_eq!(grace("0"), Ok(Duration::ZERO));
        assert_eq!(grace("90"), Ok(Duration::from_secs(90)));
        assert!(grace("soon").is_err());
    }
}
