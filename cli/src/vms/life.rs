//! Starting, stopping and everything in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use flashpan::api::SecretValue;
use flashpan::state::{Status, Vm, Vms};
use flashpan::supervise::{StartOptions, WITHIN};
use flashpan::{Exit, ExitReason, Sandbox};

use crate::detached;
use crate::failure::{Failure, each, say};
use crate::parse;
use crate::runtime;
use crate::secrets::{self, SourceArgs};
use crate::vms::outcome::{Outcome, OutcomeArgs};
use crate::vms::{alive, find, of};

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

const RESTART_EXAMPLES: &str = "\
Examples:
  flashpan restart web
  flashpan restart -t 60s web db

Shuts each VM down as `flashpan stop` does and starts it again; one that does not run is
just started.";

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

    /// The value of a secret that was not kept when the VM was made, NAME=VALUE, or NAME of
    /// your variable of that name; may be repeated.
    #[arg(long = "secret", value_name = "NAME[=VALUE]")]
    secrets: Vec<String>,

    #[command(flatten)]
    secret_sources: SourceArgs,

    #[command(flatten)]
    outcome: OutcomeArgs,
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

    #[command(flatten)]
    outcome: OutcomeArgs,
}

/// Shuts VMs down in order and starts them again
#[derive(Debug, Args)]
#[command(after_help = RESTART_EXAMPLES)]
pub(crate) struct RestartArgs {
    /// Ids, their beginnings, or names.
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,

    /// How long programs may take to end, as for `stop`.
    #[arg(long, short, value_name = "DURATION", value_parser = grace)]
    time: Option<Duration>,

    /// The value of a secret that was not kept, as for `start`; may be repeated.
    #[arg(long = "secret", value_name = "NAME[=VALUE]")]
    secrets: Vec<String>,

    #[command(flatten)]
    secret_sources: SourceArgs,

    #[command(flatten)]
    outcome: OutcomeArgs,
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

    #[command(flatten)]
    outcome: OutcomeArgs,
}

/// Waits until VMs, or their commands, have ended
#[derive(Debug, Args)]
#[command(after_help = WAIT_EXAMPLES)]
pub(crate) struct WaitArgs {
    /// Ids, their beginnings, or names.
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,

    #[command(flatten)]
    outcome: OutcomeArgs,
}

/// Lets VMs stand still
#[derive(Debug, Args)]
#[command(after_help = PAUSE_EXAMPLES)]
pub(crate) struct PauseArgs {
    /// Ids, their beginnings, or names.
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,

    #[command(flatten)]
    outcome: OutcomeArgs,
}

/// Lets VMs that were paused go on
#[derive(Debug, Args)]
#[command(after_help = UNPAUSE_EXAMPLES, visible_alias = "resume")]
pub(crate) struct UnpauseArgs {
    /// Ids, their beginnings, or names.
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,

    #[command(flatten)]
    outcome: OutcomeArgs,
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

    #[command(flatten)]
    outcome: OutcomeArgs,
}

/// As every duration, but programs may get none at all.
fn grace(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        text => parse::duration(text),
    }
}

pub(crate) fn start(args: &StartArgs) -> Result<u8, Failure> {
    let secrets = secrets::values(&args.secrets, &args.secret_sources)?;
    each_with_code(&args.vms, |text| {
        let vm = find(text)?;
        start_again(&vm, secrets.clone())?;
        done(args.outcome, &vm, text)
    })
}

fn start_again(vm: &Vm, given: BTreeMap<String, SecretValue>) -> Result<(), Failure> {
    let names = given.keys().cloned().collect();
    start_with(vm, detached::secrets_of(vm, given)?, names)
}

fn start_with(
    vm: &Vm,
    secrets: BTreeMap<String, SecretValue>,
    secrets_given: BTreeSet<String>,
) -> Result<(), Failure> {
    let options = StartOptions {
        run_command: true,
        remove_unless_ready: false,
        secrets,
        secrets_given,
    };
    detached::start(vm, options)
}

/// What was asked of a VM is done: as with docker, its name is printed as it was given,
/// and nothing else.
fn done(outcome: OutcomeArgs, vm: &Vm, text: &str) -> Result<(), Failure> {
    let done = Outcome {
        id: vm.id(),
        name: vm.name(),
        ..Outcome::default()
    };
    outcome.say(done, text)
}

pub(crate) fn restart(args: &RestartArgs) -> Result<u8, Failure> {
    let given = secrets::values(&args.secrets, &args.secret_sources)?;
    each_with_code(&args.vms, |text| {
        let vm = find(text)?;
        // Before it is stopped: what cannot be started again goes on.
        let secrets = detached::secrets_of(&vm, given.clone())?;
        if vm.status().is_alive() {
            if vm.record().remove {
                return Err(Failure::new(format!(
                    "the VM {} is removed when it ends (--rm), so it cannot be started again",
                    vm.id()
                )));
            }
            // One that has ended, however that went, can be started.
            stop_in_order(&vm, args.time).or_else(|failure| match find(vm.id()) {
                Ok(now) if !now.status().is_alive() => {
                    say("warning", failure.message());
                    Ok(())
                }
                _ => Err(failure),
            })?;
        }
        start_with(&vm, secrets, given.keys().cloned().collect())?;
        done(args.outcome, &vm, text)
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
        match vm.status() {
            Status::Created => return Err(does_not_run(&vm)),
            status if status.is_alive() => stop_in_order(&vm, args.time)?,
            // That is as good.
            _ => say("note", does_not_run(&vm).message()),
        }
        done(args.outcome, &vm, text)
    })?;
    Ok(0)
}

/// Shuts down a VM that runs. One that ends by itself meanwhile has ended as well.
fn stop_in_order(vm: &Vm, time: Option<Duration>) -> Result<(), Failure> {
    let exit = shut_down(vm, time.unwrap_or_else(|| vm.record().grace()))?;
    let Some(exit) = exit else {
        return Ok(());
    };
    // Of one that was still starting nothing can be lost.
    let came_up = !matches!(exit.reason, ExitReason::Other { .. });
    if came_up && !exit.reason.is_orderly() && !is_removed(vm, &exit.reason) {
        return Err(Failure::new(format!(
            "the VM {} did not shut down in order ({}); what it wrote last may be lost",
            vm.id(),
            exit.reason
        )));
    }
    Ok(())
}

/// Whether nothing of it is to stay, so that nothing is lost, and nothing did.
fn is_removed(vm: &Vm, reason: &ExitReason) -> bool {
    // One that went before it could answer has removed it first.
    vm.record().remove && (*reason != ExitReason::SupervisorDied || !vm.directory().exists())
}

/// How it ended; `None` if it had before it could be told to.
fn shut_down(vm: &Vm, grace: Duration) -> Result<Option<Arc<Exit>>, Failure> {
    let exit = runtime(async {
        let Some(sandbox) = attach_unless_ended(vm).await? else {
            return Ok(None);
        };
        let ended = sandbox.shutdown_within(grace, WITHIN);
        let mut ended = std::pin::pin!(ended);
        let patience = tokio::time::sleep(grace.saturating_add(LONG));
        tokio::select! {
            exit = &mut ended => return Ok(Some(exit)),
            () = patience => say("note", &format!(
                "waiting for the guest of {} to write its disks; `flashpan kill` ends it now",
                vm.id()
            )),
        }
        Ok(Some(ended.await))
    })?;
    gone(vm.id())?;
    Ok(exit)
}

/// A handle to a VM that ran a moment ago; `None` if it has ended since.
async fn attach_unless_ended(vm: &Vm) -> Result<Option<Sandbox>, Failure> {
    match Sandbox::attach(vm).await {
        Ok(sandbox) => Ok(Some(sandbox)),
        Err(flashpan::Error::NotRunning) => Ok(None),
        Err(error) => Err(of_running(vm, error)),
    }
}

/// That there is nothing to end or to pause: to start it would not help whoever asks.
fn does_not_run(vm: &Vm) -> Failure {
    let (id, status) = (vm.id(), vm.status());
    Failure::new(format!("the VM {id} does not run: it is {status}"))
}

/// A handle to a VM for what is no use to one that does not run.
async fn attach_running(vm: &Vm) -> Result<Sandbox, Failure> {
    match Sandbox::attach(vm).await {
        Ok(sandbox) => Ok(sandbox),
        Err(error) => Err(of_running(vm, error)),
    }
}

fn of_running(vm: &Vm, error: flashpan::Error) -> Failure {
    match error {
        flashpan::Error::State(_) if !vm.status().is_alive() => does_not_run(vm),
        flashpan::Error::NotRunning => Failure::new(format!("the VM {} has just ended", vm.id())),
        error => of(vm, error),
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
    let ended = vms.wait_until_ended(id, GONE_WITHIN);
    match ended.map_err(Failure::new)? {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "the VM {id} has been told to end and has not in {GONE_WITHIN:?}"
        ))),
    }
}

pub(crate) fn kill(args: &KillArgs) -> Result<u8, Failure> {
    let killed = |vm: &Vm, text: &str| {
        if !vm.status().is_alive() {
            return Err(does_not_run(vm));
        }
        end(vm.id())?;
        done(args.outcome, vm, text)
    };
    match args.all {
        true => each(&alive()?, |vm| killed(vm, vm.id()))?,
        false => each(&args.vms, |text| killed(&find(text)?, text))?,
    }
    Ok(0)
}

/// What is printed where the VM's time was up.
const TIMED_OUT: u8 = 124;

/// What is printed where nobody knows how a command ended.
const UNKNOWN: u8 = 125;

pub(crate) fn wait(args: &WaitArgs) -> Result<u8, Failure> {
    each(&args.vms, |text| {
        let vm = find(text)?;
        let code = code_of(&vm)?;
        let ended = Outcome {
            id: vm.id(),
            name: vm.name(),
            exit_code: Some(code),
        };
        args.outcome.say(ended, &code.to_string())
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
        Status::Created => Err(vm
            .must_live()
            .map_or_else(Failure::new, |()| does_not_run(vm))),
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
            let sandbox = attach_running(&vm).await?;
            let done = sandbox.pause().await;
            done.map_err(|error| of_running(&vm, error))
        })?;
        done(args.outcome, &vm, text)
    })?;
    Ok(0)
}

pub(crate) fn unpause(args: &UnpauseArgs) -> Result<u8, Failure> {
    each(&args.vms, |text| {
        let vm = find(text)?;
        runtime(async {
            let sandbox = attach_running(&vm).await?;
            let done = sandbox.resume().await;
            done.map_err(|error| of_running(&vm, error))
        })?;
        done(args.outcome, &vm, text)
    })?;
    Ok(0)
}

pub(crate) fn rename(args: &RenameArgs) -> Result<u8, Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    let id = vms.resolve(&args.vm).map_err(Failure::new)?;
    vms.rename(&id, &args.name).map_err(Failure::new)?;
    // In words nothing is printed, as by docker.
    if args.outcome.is_json() {
        let renamed = Outcome {
            id: &id,
            name: Some(&args.name),
            ..Outcome::default()
        };
        args.outcome.say(renamed, "")?;
    }
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
