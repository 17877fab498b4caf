//! `flashpan exec`: a program in a VM that runs.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use flashpan::api::ExecResult;
use flashpan::state::Vm;
use flashpan::{Error, ExecOptions, ExitStatus, Sandbox};
use serde::Serialize;

use crate::failure::{Failure, print_json_line};
use crate::given::Given;
use crate::parse::{self, Variable};
use crate::privilege::PrivilegeArgs;
use crate::program::Attended;
use crate::runtime;
use crate::signals::Signals;
use crate::terminal;
use crate::vms::{attach, attach_in_time, find, of};

/// Most bytes of each stream of a program that is told of in JSON.
const MAX_OUTPUT: usize = 16 << 20;

const EXAMPLES: &str = "\
Examples:
  flashpan exec web -- cat /etc/hostname
  flashpan exec --pid vm web -- kill 55              a process that `flashpan ps` shows
  flashpan exec -it web sh
  flashpan exec --privileged web -- mount -t tmpfs none /mnt
  flashpan exec -e LANG=C -w /src build make -j4
  tar c src | flashpan exec -i build tar x -C /work
  flashpan exec -d web sh -c 'sleep 60; touch /tmp/later'
  flashpan exec --timeout 5m build make test
  flashpan exec --json web uname -r | jq -r .stdout | base64 -d

Variables, directory, user and what the program may do are those of the VM (its image
and `flashpan run`) unless set here. It sees its own processes only, unless --pid vm is given. Exit
status: that of the program, 128 plus the signal that ended it, 127 if it was not found,
126 if it cannot be executed, 124 after --timeout, 125 if flashpan itself failed.";

/// Runs a program in a VM that runs, and exits as it does
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExecArgs {
    /// Set a variable of the program: NAME=VALUE, or NAME to pass yours on; may be
    /// repeated.
    #[arg(long = "env", short, value_name = "NAME[=VALUE]",
          value_parser = OsStringValueParser::new().try_map(|text| parse::variable(&text)))]
    env: Vec<Variable>,

    /// Its working directory in the guest.
    #[arg(long, short, value_name = "DIR",
          value_parser = OsStringValueParser::new().try_map(parse::not_empty_os))]
    workdir: Option<OsString>,

    /// Run as this user of the guest.
    #[arg(long, short, value_name = "NAME|UID[:GROUP|GID]", value_parser = parse::not_empty)]
    user: Option<String>,

    /// Pass standard input on; otherwise the program reads /dev/null.
    #[arg(long, short)]
    interactive: bool,

    /// Run on a terminal. With -i, standard input has to be one.
    #[arg(long, short)]
    tty: bool,

    /// Leave it running in the background; its output is thrown away.
    #[arg(long, short, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,

    /// Print what became of it as one JSON object: exit_code (-1 if a signal ended it, or
    /// --timeout: then timed_out is true), stdout and stderr in base64, duration_ms. At
    /// most 16 MiB of each stream.
    #[arg(long, conflicts_with_all = ["interactive", "tty", "detach"])]
    json: bool,

    /// End it if it runs for longer, e.g. 30s or 1h30m: with SIGTERM, and SIGKILL 2
    /// seconds later; exit status 124.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration,
          conflicts_with = "detach")]
    timeout: Option<Duration>,

    /// The VM: its id, the beginning of it, or its name.
    #[arg(value_name = "VM")]
    vm: String,

    /// The program and its arguments.
    #[arg(trailing_var_arg = true, value_name = "COMMAND", required = true)]
    command: Vec<OsString>,

    #[command(flatten)]
    privilege: PrivilegeArgs,
}

/// Runs `flashpan exec`.
pub(crate) fn exec(args: &ExecArgs) -> Result<u8, Failure> {
    let attended = Attended {
        interactive: args.interactive,
        tty: args.tty,
        what: "the program",
    };
    attended.check_terminal()?;
    let vm = find(&args.vm)?;
    let options = args.options(&vm)?;
    runtime(async {
        if args.detach {
            let sandbox = attach(&vm).await?;
            sandbox
                .spawn(options)
                .await
                .map_err(|error| of(&vm, error))?;
            return Ok(0);
        }
        let mut signals =
            Signals::watch().map_err(|e| Failure::new(format!("cannot watch signals: {e}")))?;
        let sandbox = attach_in_time(&vm, args.timeout, &mut signals).await?;
        match args.json {
            true => reported(&vm, &sandbox, options, &mut signals).await,
            false => attend(&vm, &sandbox, attended, options, &mut signals).await,
        }
    })
}

/// What became of a program, in JSON.
#[derive(Debug, Serialize)]
struct Told {
    #[serde(flatten)]
    result: ExecResult,
    /// Whether its time, or that of its VM, was up.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    timed_out: bool,
}

/// Runs a program to its end and prints what became of it as JSON: also if it was not
/// started, or its time was up.
async fn reported(
    vm: &Vm,
    sandbox: &Sandbox,
    options: ExecOptions,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let begun = Instant::now();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let ended = async {
        let process = sandbox.exec(options).await?;
        let collected = process.collect_into(&mut stdout, &mut stderr, MAX_OUTPUT);
        collected.await
    };
    let ended = tokio::select! {
        ended = ended => ended,
        // The program ends with what waits for it.
        signal = signals.ending() => return Err(Failure::signalled(signal)),
    };
    let timed_out = matches!(
        ended,
        Err(Error::ProgramTimeout { .. } | Error::VmTimeout { .. })
    );
    let (code, end) = match ended {
        Ok(status @ ExitStatus::Code(code)) => (code.into(), Ok(status.shell_code())),
        Ok(status @ ExitStatus::Signal(_)) => (-1, Ok(status.shell_code())),
        Err(error) => {
            let not_started = matches!(error, Error::StartFailed { .. });
            let failure = of(vm, error);
            let code = match failure.code {
                _ if timed_out => -1,
                code @ (126 | 127) if not_started => code.into(),
                // Nothing became of it.
                _ => return Err(failure),
            };
            (code, Err(failure))
        }
    };
    let mut result = ExecResult::new(code, begun.elapsed());
    (result.stdout, result.stderr) = (stdout, stderr);
    print_json_line(&Told { result, timed_out })?;
    end
}

/// Runs a program to its end in a VM of somebody else's.
pub(crate) async fn attend(
    vm: &Vm,
    sandbox: &Sandbox,
    attended: Attended,
    options: ExecOptions,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    attended
        .run(sandbox, options, signals, |error| of(vm, error))
        .await
}

impl ExecArgs {
    fn options(&self, vm: &Vm) -> Result<ExecOptions, Failure> {
        let mut options = vm.record().programs.options(&self.command);
        if self.tty {
            if let Some(term) = std::env::var_os("TERM") {
                options = options.default_env("TERM", term);
            }
            options = options.terminal(terminal::size());
        }
        for (name, value) in self.env.iter().cloned().map(Variable::into_pair) {
            options = options.env(name, value);
        }
        if let Some(directory) = &self.workdir {
            options = options.working_dir(directory).make_working_dir(false);
        }
        if let Some(user) = &self.user {
            options = options.user(user);
        }
        let otherwise = vm.record().programs.privilege.clone();
        if let Some(timeout) = self.timeout {
            options = options.timeout(timeout);
        }
        options = options
            .stdin(self.interactive)
            .privilege(self.privilege.privilege(otherwise));
        let mut given = Given::default();
        given.add(!self.env.is_empty(), "--env");
        given.add(self.user.is_some(), "--user");
        given.add(self.workdir.is_some(), "--workdir");
        options.validate().map_err(|error| given.failure(error))?;
        Ok(options)
    }
}
