//! `flashpan run`: one command in one new VM.

use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use flashpan::timeline::Report;
use flashpan::{Console, ExecOptions, ExitReason, ExitStatus, Process, Sandbox, SandboxBuilder};
use flashpan_rootfs::image_config::{Overrides, RunConfig, compose};
use tokio::sync::oneshot;

use crate::failure::{Failure, say};
use crate::parse::{self, Variable};
use crate::privilege::PrivilegeArgs;
use crate::signals::{Asked, Signals};
use crate::stdio::{Input, Patient, Stopped};
use crate::terminal::{self, RawMode};
use crate::vm::{Template, VmArgs};
use crate::{runtime, stdio};

/// How long programs that the command left behind may take to end, where a disk
/// has to be left in order.
const GRACE: Duration = Duration::from_secs(5);

/// How long a guest may write its disks before the user is told what is waited for.
const LONG: Duration = Duration::from_secs(10);

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
  flashpan run --disk-size 10G --rootfs ./debian -- apt-get install -y gcc
  flashpan run --disk @cache:/root/.cache --disk data.ext4:/data:ro -- ls /data
  flashpan run --cpus 0.5 --pids-limit 100 -- ./untrusted
  flashpan run --cap-add NET_ADMIN -- ip link add dummy0 type dummy
  flashpan run --allow-new-privileges --user 1000 --image debian -- su -c id
  flashpan run --privileged -- mount -t tmpfs none /mnt
  flashpan run --timeline boot.json -- true          where the time went
  flashpan run --timeline - --console -- true        the same as a picture

Exit status: that of the command, 128 plus the signal that ended it, 127 if it
was not found, 126 if it cannot be executed, 124 after --timeout, 125 if flashpan
itself failed.

The command is confined as in a container (docs/privilege.md): root without the
capabilities by which the guest is administered. --privileged and its like lift that.

The guest's writes to its root file system are lost at the end; what it writes to
a --disk is kept. Signals are passed on to the command; the third interrupt ends the VM.
With -it every key goes to the command, but Ctrl-] three times within one second ends
the VM at once, whatever the guest is doing; exit status 130.";

/// Runs a command in a new VM and exits as it does
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RunArgs {
    /// Set a variable of the command: NAME=VALUE, or NAME to pass yours on; may
    /// be repeated. Nothing else of your environment is passed on.
    #[arg(long = "env", short, value_name = "NAME[=VALUE]",
          value_parser = OsStringValueParser::new().try_map(|text| parse::variable(&text)))]
    env: Vec<Variable>,

    /// Working directory of the command in the guest; otherwise the image's.
    /// With --image it is made if it is missing.
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<OsString>,

    /// Run as this user of the guest; otherwise as the image says, or as root.
    #[arg(long, short, value_name = "NAME|UID[:GROUP|GID]")]
    user: Option<String>,

    /// Program to run instead of the image's entrypoint; the image's command
    /// does not count then. Empty for none.
    #[arg(
        long,
        value_name = "PROGRAM",
        requires = "image",
        allow_hyphen_values = true
    )]
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

    /// End the VM if it runs for longer, e.g. 30s or 1h30m; exit status 124.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    timeout: Option<Duration>,

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
    vm: VmArgs,
}

/// Runs the command; `started_ns` is when this process began.
pub(crate) fn run(args: &RunArgs, started_ns: u64) -> Result<u8, Failure> {
    args.check_terminal()?;
    // Before anything that takes time.
    args.check_command()?;
    // What cannot be written is said before anything is done.
    let timeline = args.timeline.as_deref().map(TimelineFile::open);
    let timeline = timeline.transpose()?;
    // Making an image of a directory happens here, where signals still end
    // this process at once; a pull ends in order.
    let template = args.vm.resolve()?;
    let exec = args.exec_options(Some(&template))?;
    runtime(async {
        let mut signals =
            Signals::watch().map_err(|e| Failure::new(format!("cannot watch signals: {e}")))?;
        let mut deadline = Deadline::new(args.timeout);
        let builder = args.builder(&template, started_ns)?;
        let log = builder.log();
        let boot = args.boot(builder, &mut signals, &mut deadline);
        let result = match boot.await {
            Ok(sandbox) => {
                let result = args
                    .command(&sandbox, exec, &mut signals, &mut deadline)
                    .await;
                // The third interrupt means now.
                let at_once = result.as_ref().is_err_and(Failure::is_at_once);
                if template.keeps_something() && !at_once {
                    end_in_order(&sandbox, result, &mut signals, &mut deadline).await
                } else {
                    // What is written goes with the VM: there is nothing to
                    // save, so nothing to wait for.
                    let exit = sandbox.kill().await;
                    if let reason @ ExitReason::VmmStuck { .. } = &exit.reason {
                        warn_unless_told(&reason.to_string(), &result);
                    }
                    result
                }
            }
            Err(failure) => Err(failure),
        };
        for warning in log.take_warnings() {
            say("warning", &format!("guest: {warning}"));
        }
        for full in log.full_disks() {
            say("warning", &template.full_disk(full));
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

impl RunArgs {
    fn check_terminal(&self) -> Result<(), Failure> {
        if self.tty && self.interactive && !terminal::stdin_is_terminal() {
            return Err(Failure::new(
                "-it needs a terminal on standard input, and it is none; leave -t out",
            ));
        }
        Ok(())
    }

    /// Checks what can be checked of the command without an image.
    fn check_command(&self) -> Result<(), Failure> {
        if !self.vm.has_image() {
            return self.exec_options(None).map(drop);
        }
        // Stands in for what an image may say.
        let image = RunConfig {
            cmd: vec!["true".to_owned()],
            ..RunConfig::default()
        };
        of_image(self.vm.hostname(), &image, &self.wishes(), self.tty)?.validate()?;
        Ok(())
    }

    fn wishes(&self) -> Overrides {
        let variables = self.env.iter().cloned().filter_map(Variable::resolve);
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
    fn exec_options(&self, template: Option<&Template>) -> Result<ExecOptions, Failure> {
        let wishes = self.wishes();
        let hostname = self.vm.hostname();
        let mut exec = match template.and_then(Template::image_config) {
            Some(config) => of_image(hostname, config, &wishes, self.tty)?,
            None => self.of_user(wishes)?,
        };
        exec = exec.stdin(self.interactive);
        exec = exec.privilege(self.privilege.privilege());
        if self.tty {
            exec = exec.terminal(terminal::size());
        }
        exec.validate()?;
        Ok(exec)
    }

    fn of_user(&self, wishes: Overrides) -> Result<ExecOptions, Failure> {
        let argv = match wishes.command.as_slice() {
            [] if self.tty && self.interactive => vec![OsString::from("/bin/sh")],
            [] => {
                return Err(Failure::new(
                    "there is no command to run; write `flashpan run -- COMMAND`, or -it for a shell",
                ));
            }
            command => command.to_vec(),
        };
        let mut exec = ExecOptions::argv(argv);
        if self.tty
            && let Some(term) = std::env::var_os("TERM")
        {
            exec = exec.env("TERM", term);
        }
        for (name, value) in wishes.env {
            exec = exec.env(name, value);
        }
        if let Some(dir) = wishes.working_dir {
            exec = exec.working_dir(dir);
        }
        if let Some(user) = wishes.user {
            exec = exec.user(user);
        }
        Ok(exec)
    }

    fn builder(&self, template: &Template, started_ns: u64) -> Result<SandboxBuilder, Failure> {
        let console = if self.console {
            Console::Full
        } else {
            Console::Panic
        };
        let mut builder = template.builder(console)?.process_start_ns(started_ns);
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
        deadline: &mut Deadline,
    ) -> Result<Sandbox, Failure> {
        tokio::select! {
            sandbox = builder.boot() => Ok(sandbox?),
            signal = signals.ending() => Err(Failure::signalled(signal)),
            failure = deadline.passed("booting") => Err(failure),
        }
    }

    /// Runs the command to its end; the exit code.
    async fn command(
        &self,
        sandbox: &Sandbox,
        mut exec: ExecOptions,
        signals: &mut Signals,
        deadline: &mut Deadline,
    ) -> Result<u8, Failure> {
        signals.command_begins();
        if self.tty {
            // Now: a change from here on is a signal.
            exec = exec.terminal(terminal::size());
        }
        let mut process = tokio::select! {
            process = sandbox.exec(exec) => process?,
            signal = signals.ending() => return Err(Failure::signalled(signal)),
            failure = deadline.passed("starting the command") => return Err(failure),
        };
        // Not before there is a command to get the keys: until then Ctrl-C ends the
        // run. Without -i they are never the command's, or nothing could end it.
        let (_raw, input) = match self.tty && self.interactive {
            true => {
                let raw = RawMode::enter().map_err(|e| {
                    Failure::new(format!("cannot set the terminal to raw mode: {e}"))
                })?;
                (Some(raw), Input::Keys)
            }
            false => (None, Input::Data),
        };
        let streams = |e| Failure::new(format!("cannot serve a standard stream: {e}"));
        let stdin = process.stdin.take().map(|to| stdio::copy_in(to, input));
        let mut stdin = stdin.transpose().map_err(streams)?;
        let stdout = process
            .stdout
            .take()
            .map(|o| stdio::copy_out(o, io::stdout()));
        let stderr = process
            .stderr
            .take()
            .map(|o| stdio::copy_out(o, io::stderr()));
        let mut stdout = Copy::new(stdout.transpose().map_err(streams)?);
        let mut stderr = Copy::new(stderr.transpose().map_err(streams)?);
        let mut status = None;
        loop {
            tokio::select! {
                ended = process.wait(), if status.is_none() => match ended {
                    Ok(ended) => status = Some(ended),
                    Err(flashpan::Error::VmEnded(reason)) => return Err(ended_early(&reason)),
                    Err(e) => return Err(e.into()),
                },
                result = &mut stdout, if !stdout.done => result?,
                result = &mut stderr, if !stderr.done => result?,
                stopped = stopped(&mut stdin) => return Err(match stopped {
                    Stopped::Broken { error, .. } => {
                        Failure::new(format!("cannot read standard input: {error}"))
                    }
                    Stopped::Escaped => Failure::escaped(),
                }),
                asked = signals.next() => self.obey(asked, &process)?,
                failure = deadline.passed("running the command") => return Err(failure),
            }
            if let Some(status) = status
                && stdout.done
                && stderr.done
            {
                return Ok(ExitStatus::shell_code(status));
            }
        }
    }

    fn obey(&self, asked: Asked, process: &Process) -> Result<(), Failure> {
        // A command that has just ended takes no more requests, and its end is
        // the news that counts.
        match asked {
            Asked::Deliver(signal) => drop(process.signal(signal)),
            Asked::Resize if self.tty => drop(process.resize(terminal::size())),
            Asked::Resize => {}
            Asked::GiveUp(signal) => return Err(Failure::given_up(signal)),
        }
        Ok(())
    }
}

/// Ends a VM with disks that are kept: its guest writes them first, which takes as
/// long as it takes.
async fn end_in_order(
    sandbox: &Sandbox,
    mut result: Result<u8, Failure>,
    signals: &mut Signals,
    deadline: &mut Deadline,
) -> Result<u8, Failure> {
    let shutdown = sandbox.shutdown_within(GRACE, Duration::MAX);
    let mut shutdown = std::pin::pin!(shutdown);
    let mut long = std::pin::pin!(tokio::time::sleep(LONG));
    let mut told = false;
    let exit = loop {
        let failure = tokio::select! {
            exit = &mut shutdown => break exit,
            asked = signals.next() => match asked {
                Asked::GiveUp(signal) => Failure::given_up(signal),
                Asked::Deliver(_) | Asked::Resize => continue,
            },
            failure = deadline.passed("writing its disks") => failure,
            () = &mut long, if !told => {
                told = true;
                say("note", "waiting for the guest to write its disks; three interrupts end it now");
                continue;
            }
        };
        // What came first counts: time may have been up before.
        result = result.and(Err(failure));
        break sandbox.kill().await;
    };
    if exit.reason.is_orderly() {
        return result;
    }
    let lost = format!(
        "the guest did not shut down in order ({}); what it wrote last to its disks may be lost",
        exit.reason
    );
    match result {
        Ok(_) => Err(Failure::new(lost)),
        Err(failure) => {
            say("warning", &lost);
            Err(failure)
        }
    }
}

/// Tells the user, unless it is why the command failed.
fn warn_unless_told(message: &str, result: &Result<u8, Failure>) {
    if result.as_ref().err().map(Failure::message) != Some(message) {
        say("warning", message);
    }
}

/// Waits for the news that standard input is no longer copied. Cancel safe.
async fn stopped(stdin: &mut Option<oneshot::Receiver<Stopped>>) -> Stopped {
    if let Some(news) = stdin {
        if let Ok(why) = news.await {
            return why;
        }
        // It was read to its end, or as far as anybody wanted it.
        *stdin = None;
    }
    std::future::pending().await
}

/// What an image and a user want together, and the variables that docker sets.
fn of_image(
    hostname: &str,
    config: &RunConfig,
    wishes: &Overrides,
    tty: bool,
) -> Result<ExecOptions, Failure> {
    let command = compose(config, wishes).map_err(Failure::new)?;
    let mut exec = ExecOptions::argv(command.argv)
        .env("HOSTNAME", hostname)
        .working_dir(command.working_dir)
        .make_working_dir(true);
    if tty && let Some(term) = std::env::var_os("TERM") {
        exec = exec.env("TERM", term);
    }
    for (name, value) in command.env {
        exec = exec.env(name, value);
    }
    if let Some(user) = command.user {
        exec = exec.user(user);
    }
    Ok(exec)
}

/// What to say when the VM ended under the command.
fn ended_early(reason: &ExitReason) -> Failure {
    match reason {
        ExitReason::PowerOff | ExitReason::Reboot | ExitReason::AskedByProgram { .. } => {
            Failure::new(format!("{reason} before the command ended"))
        }
        reason => Failure::new(reason),
    }
}

/// One of our output streams, until all is written.
struct Copy {
    result: Option<oneshot::Receiver<io::Result<()>>>,
    done: bool,
}

impl Copy {
    fn new(result: Option<oneshot::Receiver<io::Result<()>>>) -> Self {
        Self {
            done: result.is_none(),
            result,
        }
    }
}

impl Future for Copy {
    type Output = Result<(), Failure>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let Some(receiver) = &mut self.result else {
            return std::task::Poll::Ready(Ok(()));
        };
        let result = std::task::ready!(std::pin::Pin::new(receiver).poll(cx));
        self.done = true;
        std::task::Poll::Ready(match result {
            Ok(Err(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
                // Whoever read it has had enough: end as a program of this
                // machine would.
                Err(Failure::signalled(nix::libc::SIGPIPE))
            }
            Ok(Err(e)) => Err(Failure::new(format!(
                "cannot write the command's output: {e}"
            ))),
            Ok(Ok(())) | Err(_) => Ok(()),
        })
    }
}

/// The end of the time that the user allowed.
struct Deadline {
    after: Option<(Duration, std::pin::Pin<Box<tokio::time::Sleep>>)>,
}

impl Deadline {
    fn new(after: Option<Duration>) -> Self {
        Self {
            after: after.map(|after| (after, Box::pin(tokio::time::sleep(after)))),
        }
    }

    /// Waits for it, for ever if there is none. Cancel safe.
    async fn passed(&mut self, doing: &str) -> Failure {
        match &mut self.after {
            Some((after, sleep)) => {
                sleep.as_mut().await;
                Failure::timed_out(format!(
                    "time is up: {after:?} have passed (--timeout) while {doing}"
                ))
            }
            None => std::future::pending().await,
        }
    }
}

/// Where the timeline goes; opened before the VM boots.
struct TimelineFile {
    path: PathBuf,
    /// `None` is the picture on standard error.
    file: Option<File>,
}

impl TimelineFile {
    fn open(path: &Path) -> Result<Self, Failure> {
        let file = match path == Path::new("-") {
            true => None,
            false => Some(File::create(path).map_err(|e| {
                Failure::new(format!(
                    "cannot write the timeline to {}: {e}; name a file that you may write to",
                    path.display()
                ))
            })?),
        };
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    fn write(self, report: &Report) -> Result<(), String> {
        let Some(mut file) = self.file else {
            // A picture that nobody can see is not worth a word.
            let _ = io::stderr().lock().write_all(report.picture().as_bytes());
            return Ok(());
        };
        let failed = |e: io::Error| {
            let path = self.path.display();
            format!("cannot write the timeline to {path}: {e}")
        };
        let mut json = serde_json::to_vec_pretty(report).map_err(|e| failed(e.into()))?;
        json.push(b'\n');
        file.write_all(&json).map_err(failed)
    }
}
