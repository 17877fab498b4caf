//! `flashpan run` and `create` of a VM that outlives the command.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::Args;
use flashpan::api::SecretValue;
use flashpan::launch::{ExecDefaults, LaunchError};
use flashpan::state::{Programs, Vm, Vms};
use flashpan::supervise::StartOptions;
use flashpan_rootfs::image_config::ComposeError;

use super::{NO_JSON, RunArgs};
use crate::failure::{Failure, print, print_json_line, say};
use crate::given::Given;
use crate::signals::Signals;
use crate::vms::Outcome;
use crate::{detached, pin, reach, runtime, terminal, vm, vms};

const CREATE_EXAMPLES: &str = "\
Examples:
  flashpan create --name web --image nginx
  flashpan create --name dev --image python:3.12-slim --disk-size 20G
  flashpan start web && flashpan logs -f web

Options are those of `flashpan run -d`.";

/// Makes a VM that `flashpan start` starts, and prints its id
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    run: RunArgs,
}

/// Runs `flashpan create`.
pub(crate) fn create(args: &CreateArgs) -> Result<u8, Failure> {
    let args = &args.run;
    if args.interactive || args.tty || args.timeline.is_some() {
        return Err(Failure::new(
            "a VM that is only created has no terminal, no input and no timeline; leave -i, -t \
             and --timeline out, and use `flashpan exec -it` once it runs",
        ));
    }
    let (vm, _) = args.make(args.rm.unwrap_or(false))?;
    args.say(&vm)?;
    Ok(0)
}

/// `flashpan run` of a VM that outlives it.
pub(super) fn stay(args: &RunArgs) -> Result<u8, Failure> {
    if args.timeline.is_some() {
        return Err(Failure::new(
            "--timeline is of a VM that ends with its command; leave it out, or -d and --rm=false",
        ));
    }
    if args.json && !args.detach {
        return Err(Failure::new(NO_JSON));
    }
    // Its supervisor finds out too, but after an image was pulled.
    args.publish.check()?;
    let (vm, secrets) = args.make(args.rm.unwrap_or(false))?;
    // One that is not ready when this command ends is not wanted.
    let options = StartOptions {
        run_command: args.detach,
        remove_unless_ready: true,
        secrets,
        // They have just been read.
        ..StartOptions::default()
    };
    detached::start(&vm, options).inspect_err(|_| abandon(&vm))?;
    if args.detach {
        args.say(&vm)?;
        return Ok(0);
    }
    let id = vm.id();
    say(
        "note",
        &format!(
            "the VM {id} stays; `flashpan exec -it {id} sh`, `flashpan stop {id}`, `flashpan rm -f {id}`"
        ),
    );
    let Some(mut exec) = vm.record().programs.own_command() else {
        return Ok(0);
    };
    exec = exec.stdin(args.interactive);
    if args.tty {
        if let Some(term) = std::env::var_os("TERM") {
            exec = exec.default_env("TERM", term);
        }
        exec = exec.terminal(terminal::size());
    }
    runtime(async {
        let mut signals =
            Signals::watch().map_err(|e| Failure::new(format!("cannot watch signals: {e}")))?;
        let vm = vms::find(id)?;
        let sandbox = vms::attach_in_time(&vm, None, &mut signals).await?;
        vms::attend(&vm, &sandbox, args.attended(), exec, &mut signals).await
    })
}

/// Removes a VM that was made and could not even be given to a supervisor.
fn abandon(vm: &Vm) {
    if let Ok(vms) = Vms::user() {
        // A supervisor that came so far has removed it.
        let _ = vms.remove(vm.id());
    }
    pin::release(vm.id());
}

impl RunArgs {
    /// Whether the VM goes on when this command ends.
    pub(super) fn stays(&self) -> bool {
        self.detach || self.rm == Some(false)
    }

    /// Says which VM it is.
    fn say(&self, vm: &Vm) -> Result<(), Failure> {
        match self.json {
            true => print_json_line(&Outcome {
                id: vm.id(),
                name: vm.name(),
                ..Outcome::default()
            }),
            false => print(&format!("{}\n", vm.id())),
        }
    }

    /// Makes a VM that is started later, and by another process; and the values of its
    /// secrets, which are kept nowhere.
    fn make(&self, remove: bool) -> Result<(Vm, BTreeMap<String, SecretValue>), Failure> {
        if let Some(name) = &self.name {
            vms::check_free(name)?;
        }
        // A port that is taken now may be free when the VM is started.
        self.publish.kept().check()?;
        let mut wanted = self.wanted(true)?;
        if self.entrypoint.is_some() && !wanted.has_image() {
            return Err(vm::needs_image("--entrypoint"));
        }
        // Said before anything that takes time.
        Self::check_config(&wanted)?;
        let expected = ExecDefaults::expected(&wanted.config, &wanted.options);
        self.kept_programs(&expected)?;
        let entrypoint = expected.entrypoint();
        entrypoint.map_err(|error| wanted.given.command_failure(&error))?;
        let is_to_launch = wanted.config.launch_entrypoint;
        let given = Given::in_file(wanted.given.file().map(Path::new));
        // Run in the foreground it is the VM's command, and not launched besides.
        if self.command.is_empty() {
            wanted.config.launch_entrypoint = false;
        }
        let new = detached::begin()?;
        new.id().clone_into(&mut wanted.config.id);
        let image = wanted.has_image().then(|| wanted.config.image.clone());
        let launch = self.vm.resolve(wanted)?;
        reach::tell(&launch);
        let network = launch.config().network.as_ref();
        let secrets = network.into_iter().flat_map(|network| &network.secrets);
        let secrets = secrets.map(|(name, secret)| (name.clone(), secret.value.clone()));
        let secrets = secrets.collect();
        let entrypoint = launch.exec_defaults().entrypoint();
        entrypoint.map_err(|error| given.command_failure(&error))?;
        let programs = self.kept_programs(launch.exec_defaults())?;
        if is_to_launch && programs.command.is_empty() {
            // Nor has the image, now that it is here.
            let nothing = LaunchError::Command(ComposeError::NothingToLaunch);
            return Err(given.command_failure(&nothing));
        }
        let wishes = detached::Wishes {
            name: self.name.as_deref(),
            image,
            remove,
            publish: self.publish.kept(),
            grace: self.graceful_shutdown,
            programs,
        };
        Ok((detached::create(new, wishes, launch)?, secrets))
    }

    /// The command, if there is one, and what its VM's programs have in common.
    fn kept_programs(&self, defaults: &ExecDefaults) -> Result<Programs, Failure> {
        let mut wishes = self.wishes();
        let (command, has_command) = match defaults.program(&wishes) {
            Ok(command) => (command, true),
            Err(LaunchError::Command(
                ComposeError::NoCommand | ComposeError::NoCommandAfterEntrypoint,
            )) => {
                // For all else that it says.
                wishes.command = vec![OsString::from("true")];
                wishes.entrypoint = None;
                (defaults.program(&wishes).map_err(Failure::new)?, false)
            }
            Err(error) => return Err(Failure::new(error)),
        };
        let privilege = self.privilege.privilege(defaults.privilege());
        let command = command.privilege(privilege);
        let valid = command.validate();
        valid.map_err(|error| self.given().failure(error))?;
        let mut programs = Programs::of(&command).map_err(Failure::new)?;
        if !has_command {
            programs.command.clear();
        }
        programs.stop_signal = defaults.stop_signal();
        Ok(programs)
    }
}
