//! `flashpan run`: one command in one new VM.

mod end;
mod stay;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use flashpan::api::{Config, parse_env_file};
use flashpan::launch::{ExecDefaults, LaunchError, Overrides};
use flashpan::learn::Learner;
use flashpan::{
    Console, Events, ExecOptions, ExitReason, Launch, Sandbox, SandboxBuilder, VmEventKind,
};
use flashpan_rootfs::image_config::ComposeError;

use self::end::End;
use crate::failure::{Failure, say};
use crate::given::Given;
use crate::parse::{self, Variable};
use crate::privilege::PrivilegeArgs;
use crate::program::{Attended, time_up};
use crate::publish::{Held, PublishArgs};
use crate::signals::Signals;
use crate::stdio::Patient;
use crate::timeline_file::TimelineFile;
use crate::vm::{VmArgs, Wanted};
use crate::{config_file, reach, runtime, terminal, vm};

pub(crate) use stay::{CreateArgs, create};

pub(crate) const EXAMPLES: &str = "\
Examples:
  flashpan run -- uname -a
  flashpan run -it                                   a shell in the built-in root
  flashpan run --image alpine -- cat /etc/os-release
  flashpan run --image python:3.12-slim -it
  flashpan run --image redis --entrypoint sh -- -c 'id; env'
  flashpan run --rootfs ./debian -- python3 -c 'print(6*7)'
  flashpan run --rootfs root.erofs --cpus 4 -m 2G -e LANG=C -- make -j4
  tar c src | flashpan run -i -- sh -c 'cd /tmp && tar x && ls'
  flashpan run -d --name web --image nginx           a VM that stays: exec, logs, stop
  flashpan run --disk-size 10G --rootfs ./debian -- make -C /src
  flashpan run --disk @cache:/root/.cache --disk data.ext4:/data:ro -- ls /data
  flashpan run -p 8080:80 --image nginx              http://127.0.0.1:8080/
  flashpan run -p 0.0.0.0:8080:80 --image nginx      the same for other machines too
  flashpan run -f sandbox.toml -e DEBUG=1 -- pytest
  flashpan run --cpus 0.5 --pids-limit 100 -- ./untrusted
  flashpan run --cap-add NET_ADMIN -- ip link add dummy0 type dummy
  flashpan run --allow-new-privileges --user 1000 --image debian -- su -c id
  flashpan run --privileged -- mount -t tmpfs none /mnt
  flashpan run --network open --image alpine -- apk add curl
  flashpan run --timeline boot.json -- true          where the time went
  flashpan run --timeline - --console -- true        the same as a picture

Exit status: that of the command, 128 plus the signal that ended it, 127 if it
was not found, 126 if it cannot be executed, 124 after --timeout, 125 if flashpan
itself failed.

The command is confined as in a container (docs/privilege.md): root without the
capabilities by which the guest is administered. --privileged and its like lift that.

Guests reach nothing but what --allow-host and --rule allow, unless the network is open:
then the internet, but not this machine and its networks (docs/network.md). What a guest writes to its root file system is
lost at the end, unless the VM stays (-d, --rm=false); what it writes to a --disk is kept. Signals are passed on to the command; the third interrupt ends the VM.
With -it every key goes to the command, but Ctrl-] three times within one second ends
the VM at once, whatever the guest is doing; exit status 130.

An option that was not given is taken from the environment variable beside it, if
that is set and not empty.";

/// Runs a command in a new VM and exits as it does
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RunArgs {
    /// Set a variable of the command: NAME=VALUE, or NAME to pass yours on; may
    /// be repeated. Nothing else of your environment is passed on.
    #[arg(long = "env", short, value_name = "NAME[=VALUE]",
          value_parser = OsStringValueParser::new().try_map(|text| parse::variable(&text)))]
    env: Vec<Variable>,

    /// Set the variables in this file, each as by --env, one per line; may be
    /// repeated. --env goes before it. Empty lines and those with # are passed over.
    #[arg(
        long = "env-file",
        value_name = "FILE",
        env = "FLASHPAN_ENV_FILE",
        hide_env_values = true
    )]
    env_files: Vec<PathBuf>,

    /// Working directory of the command in the guest; otherwise the image's.
    /// With an image it is made if it is missing.
    #[arg(
        long,
        short,
        value_name = "DIR",
        env = "FLASHPAN_WORKDIR",
        hide_env_values = true,
        value_parser = OsStringValueParser::new().try_map(parse::not_empty_os)
    )]
    workdir: Option<OsString>,

    /// Run as this user of the guest; otherwise as the image says, or as root.
    #[arg(
        long,
        short,
        value_name = "NAME|UID[:GROUP|GID]",
        env = "FLASHPAN_USER",
        hide_env_values = true,
        value_parser = parse::not_empty
    )]
    user: Option<String>,

    /// Program to run instead of the image's entrypoint; the image's command
    /// does not count then. Empty for none.
    #[arg(long, value_name = "PROGRAM", allow_hyphen_values = true)]
    entrypoint: Option<OsString>,

    /// Pass standard input on; otherwise the command reads /dev/null.
    #[arg(long, short)]
    interactive: bool,

    /// Run on a terminal. With -i, standard input has to be one, and every key
    /// goes to the command; Ctrl-] three times within one second ends the VM.
    #[arg(long, short)]
    tty: bool,

    /// Show the guest's console (kernel messages) on standard error.
    #[arg(long)]
    console: bool,

    /// Leave the VM running, print its id, and end; it stays until `flashpan rm`,
    /// see --rm. What the command writes is in `flashpan logs`.
    #[arg(long, short, conflicts_with_all = ["interactive", "tty", "timeline"])]
    detach: bool,

    /// Say which VM was made as JSON, where its id is printed: by `create`, and with -d.
    #[arg(long)]
    json: bool,

    /// Name of a VM that stays (-d or --rm=false).
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Whether the VM ends with its command and nothing of it stays, as without -d, or
    /// goes on after that and can be stopped and started again, as with -d.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    rm: Option<bool>,

    /// End the VM if it runs for longer once it has booted, e.g. 30s or 1h30m; exit
    /// status 124.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration,
          env = "FLASHPAN_TIMEOUT", hide_env_values = true)]
    timeout: Option<Duration>,

    /// At the end, give programs that the command left behind this long to end in
    /// order, e.g. 10s. Otherwise, or with 0, the VM is ended at once, but one with
    /// disks to keep gives them 5 seconds.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration_or_zero,
          env = "FLASHPAN_GRACEFUL_SHUTDOWN", hide_env_values = true)]
    graceful_shutdown: Option<Duration>,

    /// Write when which phase was reached, and the VM exits, to this file as
    /// JSON; `-` draws a picture on standard error.
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,

    /// The command and its arguments; otherwise that of the image, or without
    /// an image /bin/sh with -it.
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,

    #[command(flatten)]
    privilege: PrivilegeArgs,

    #[command(flatten)]
    publish: PublishArgs,

    #[command(flatten)]
    vm: VmArgs,
}

/// Why `--json` is refused where the output is the command's.
const NO_JSON: &str =
    "--json says which VM was made: use it with -d; the output of a command is as it is";

/// Runs the command; `started_ns` is when this process began.
pub(crate) fn run(args: &RunArgs, started_ns: u64) -> Result<u8, Failure> {
    args.attended().check_terminal()?;
    match args.stays() {
        true => stay::stay(args),
        false => once(args, started_ns, None),
    }
}

/// Runs the command in an open network, and takes in what it does there.
pub(crate) fn observe(
    args: &RunArgs,
    started_ns: u64,
    learner: &mut Learner,
) -> Result<u8, Failure> {
    args.attended().check_terminal()?;
    if args.stays() {
        return Err(Failure::new(
            "what is learned is told when the VM has ended: leave out -d and --rm=false",
        ));
    }
    once(args, started_ns, Some(learner))
}

/// Runs the command in a VM that ends with it.
fn once(args: &RunArgs, started_ns: u64, mut learner: Option<&mut Learner>) -> Result<u8, Failure> {
    if args.name.is_some() {
        return Err(Failure::new(
            "--name is for a VM that stays: use it with -d or --rm=false",
        ));
    }
    if args.json {
        return Err(Failure::new(NO_JSON));
    }
    // Before anything that takes time.
    let mut wanted = args.wanted(false)?;
    if learner.is_some() {
        wanted.observe()?;
    }
    args.check_command(&wanted)?;
    // What cannot be written is said before anything is done.
    let timeline = args.timeline.as_deref().map(TimelineFile::open);
    let timeline = timeline.transpose()?;
    // Making an image of a directory happens here, where signals still end
    // this process at once; a pull ends in order.
    let has_image = wanted.has_image();
    args.publish.check()?;
    let launch = args.vm.resolve(wanted)?;
    reach::tell(&launch);
    let exec = args.exec_options(launch.exec_defaults(), has_image)?;
    runtime(async {
        let mut signals =
            Signals::watch().map_err(|e| Failure::new(format!("cannot watch signals: {e}")))?;
        let builder = args.builder(&launch, started_ns)?;
        let log = builder.log();
        let ports = args.publish.hold()?;
        let boot = args.boot(builder, &mut signals);
        let result = match boot.await {
            Ok(sandbox) => {
                let seen = match &learner {
                    Some(_) => Some(tokio::spawn(watched(sandbox.events()?))),
                    None => None,
                };
                let published = args.published(&launch, &sandbox, ports, exec, &mut signals);
                let result = published.await;
                // The third interrupt means now.
                let at_once = result.as_ref().is_err_and(Failure::is_at_once);
                // What is told of a connection is told at its end.
                let end = End::of(&launch, args.graceful_shutdown)
                    .or(seen.as_ref().map(|_| End::with_programs()));
                let result = if let Some(end) = end
                    && !at_once
                {
                    end.in_order(&sandbox, result, &mut signals).await
                } else {
                    // What is written goes with the VM: there is nothing to
                    // save, so nothing to wait for.
                    let exit = sandbox.kill().await;
                    if let reason @ ExitReason::VmmStuck { .. } = &exit.reason {
                        warn_unless_told(&reason.to_string(), &result);
                    }
                    result
                };
                drop(sandbox);
                if let (Some(learner), Some(seen)) = (learner.as_deref_mut(), seen) {
                    *learner = seen.await.unwrap_or_default();
                }
                result
            }
            Err(failure) => Err(failure),
        };
        for warning in log.take_warnings() {
            say("warning", &format!("guest: {warning}"));
        }
        for full in log.full_disks() {
            say("warning", &vm::full_disk(&launch, full));
        }
        // Above all of runs that failed. The command's result stands in any
        // case.
        if let Some(file) = timeline
            && let Err(failure) = file.write(&log.timeline())
        {
            say("warning", &failure);
        }
        result
    })
}

/// What is seen of a VM's network until it ends.
async fn watched(mut events: Events) -> Learner {
    let mut learner = Learner::new();
    while let Some(event) = events.next().await {
        match event.kind {
            VmEventKind::Network(activity) => learner.see(&activity),
            VmEventKind::Lost(number) => learner.lose(number),
            _ => {}
        }
    }
    learner
}

impl RunArgs {
    fn attended(&self) -> Attended {
        Attended {
            interactive: self.interactive,
            tty: self.tty,
            what: match self.stays() {
                true => "the command",
                false => "the VM",
            },
        }
    }

    /// The VM, as far as that is known before anything is looked at.
    fn wanted(&self, stays: bool) -> Result<Wanted, Failure> {
        let mut wanted = self.vm.wanted(self.config()?, self.timeout, stays)?;
        wanted.given = wanted.given.and(self.given());
        wanted.options.console = match self.console {
            true => Console::Full,
            false => Console::Panic,
        };
        Ok(wanted)
    }

    /// Checks the configuration before the command: where a variable comes from is known
    /// of the configuration's only.
    pub(crate) fn check_config(wanted: &Wanted) -> Result<(), Failure> {
        let valid = wanted.config.validate();
        valid.map_err(|errors| wanted.given.failure(errors.into()))?;
        if let Some(file) = wanted.given.file() {
            config_file::warn(file, &wanted.config);
        }
        Ok(())
    }

    /// Checks what can be checked of the command without an image.
    fn check_command(&self, wanted: &Wanted) -> Result<(), Failure> {
        if self.entrypoint.is_some() && !wanted.has_image() {
            return Err(vm::needs_image("--entrypoint"));
        }
        Self::check_config(wanted)?;
        let expected = ExecDefaults::expected(&wanted.config, &wanted.options);
        let entrypoint = expected.entrypoint();
        entrypoint.map_err(|error| wanted.given.command_failure(&error))?;
        self.exec_options(&expected, wanted.has_image()).map(drop)
    }

    /// The fields of a configuration that options of this command are for. What is
    /// not UTF-8 has no place in it and is this command's only.
    fn config(&self) -> Result<Config, Failure> {
        let mut config = Config::default();
        config.env = self.variables_of_files()?;
        for (name, value) in self.env.iter().cloned().map(Variable::into_pair) {
            if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
                config.env.insert(name, value);
            }
        }
        let image = config.image_config.get_or_insert_default();
        image.user = self.user.clone().unwrap_or_default();
        let workdir = self.workdir.as_ref().and_then(|dir| dir.to_str());
        image.working_dir = workdir.unwrap_or_default().to_owned();
        if let Some(entrypoint) = self.entrypoint.as_ref().and_then(|word| word.to_str()) {
            let words = [entrypoint].into_iter().filter(|word| !word.is_empty());
            image.entrypoint = Some(words.map(str::to_owned).collect());
            // The image's command was for its own entrypoint.
            image.cmd = Some(Vec::new());
        }
        Ok(config)
    }

    fn variables_of_files(&self) -> Result<BTreeMap<String, String>, Failure> {
        let mut variables = BTreeMap::new();
        for file in &self.env_files {
            variables.extend(parse_env_file(file).map_err(Failure::new)?);
        }
        Ok(variables)
    }

    fn wishes(&self) -> Overrides {
        let variables = self.env.iter().cloned().map(Variable::into_pair);
        Overrides {
            entrypoint: self.entrypoint.clone(),
            command: self.command.clone(),
            env: variables.collect(),
            working_dir: self.workdir.clone(),
            user: self.user.clone(),
        }
    }

    /// What to run: what the user says, and where there is an image, what that
    /// says besides.
    fn exec_options(
        &self,
        defaults: &ExecDefaults,
        has_image: bool,
    ) -> Result<ExecOptions, Failure> {
        let mut wishes = self.wishes();
        let mut exec = defaults.program(&wishes);
        if let Err(LaunchError::Command(ComposeError::NoCommand)) = exec
            && !has_image
        {
            if !self.tty || !self.interactive {
                return Err(Failure::new(
                    "there is no command to run; write `flashpan run -- COMMAND`, or -it for a shell",
                ));
            }
            wishes.command = vec![OsString::from("/bin/sh")];
            exec = defaults.program(&wishes);
        }
        let privilege = self.privilege.privilege(defaults.privilege());
        let mut exec = exec.map_err(Failure::new)?.stdin(self.interactive);
        exec = exec.privilege(privilege);
        if self.tty {
            if let Some(term) = std::env::var_os("TERM") {
                exec = exec.default_env("TERM", term);
            }
            exec = exec.terminal(terminal::size());
        }
        exec.validate()
            .map_err(|error| self.given().failure(error))?;
        Ok(exec)
    }

    /// The options of the command that were given, by what they set.
    fn given(&self) -> Given {
        let mut given = Given::default();
        let variables = self.env.iter().cloned().map(Variable::into_pair);
        // What a variable holds is nobody's business.
        let names = variables.map(|(name, _)| {
            let name = name.to_string_lossy().into_owned();
            (name.clone(), name)
        });
        given.add_map(names, "--env");
        let of_files = self.variables_of_files().unwrap_or_default();
        given.add_map(
            of_files.into_keys().map(|name| (name.clone(), name)),
            "--env-file",
        );
        given.add(self.user.is_some(), "--user");
        given.add(self.workdir.is_some(), "--workdir");
        given.add(self.entrypoint.is_some(), "--entrypoint");
        given
    }

    fn builder(&self, launch: &Launch, started_ns: u64) -> Result<SandboxBuilder, Failure> {
        let mut builder = launch.builder()?.process_start_ns(started_ns);
        if self.console {
            let stderr = Patient::new(io::stderr().as_fd())
                .map_err(|e| Failure::new(format!("cannot show the console: {e}")))?;
            builder = builder.console_sink(stderr);
        }
        Ok(builder)
    }

    async fn boot(
        &self,
        builder: SandboxBuilder,
        signals: &mut Signals,
    ) -> Result<Sandbox, Failure> {
        tokio::select! {
            sandbox = builder.boot() => Ok(sandbox?),
            signal = signals.ending() => Err(Failure::signalled(signal)),
        }
    }

    /// Runs the programs, with the ports that lead to them.
    async fn published(
        &self,
        launch: &Launch,
        sandbox: &Sandbox,
        ports: Held,
        exec: ExecOptions,
        signals: &mut Signals,
    ) -> Result<u8, Failure> {
        let published = ports.start(sandbox).await?;
        let result = self.programs(launch, sandbox, exec, signals).await;
        published.report();
        result
    }

    /// Starts the image's own command, if the configuration wants that and it is not
    /// what runs in the foreground, and runs the command to its end; the exit code.
    async fn programs(
        &self,
        launch: &Launch,
        sandbox: &Sandbox,
        exec: ExecOptions,
        signals: &mut Signals,
    ) -> Result<u8, Failure> {
        let mut entrypoint = None;
        if !self.command.is_empty() {
            entrypoint = tokio::select! {
                started = launch.start_entrypoint(sandbox) => started?,
                signal = signals.ending() => return Err(Failure::signalled(signal)),
                failure = time_up(sandbox, "starting the image's command") => return Err(failure),
            };
        }
        // Nobody reads what it writes.
        if let Some(entrypoint) = &mut entrypoint {
            drop((entrypoint.stdout.take(), entrypoint.stderr.take()));
        }
        self.attended()
            .run(sandbox, exec, signals, Failure::from)
            .await
    }
}

/// Tells the user, unless it is why the command failed.
fn warn_unless_told(message: &str, result: &Result<u8, Failure>) {
    if result.as_ref().err().map(Failure::message) != Some(message) {
        say("warning", message);
    }
}
