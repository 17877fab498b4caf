//! The flashpan command: arguments in, text and exit codes out. What it does is
//! in the libraries.

mod archive_stdio;
mod bench;
mod config_file;
mod detached;
mod doctor;
mod environment;
mod escape;
mod failure;
mod format;
mod full;
mod generate;
mod given;
mod image;
mod kernel;
mod parse;
mod pin;
mod policy;
mod privilege;
mod program;
mod progress;
mod publish;
mod reach;
mod run;
mod secrets;
mod signals;
mod stdio;
mod terminal;
mod timeline_file;
mod version;
mod vm;
mod vms;
mod volume;

use std::future::Future;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::failure::Failure;

const EXAMPLES: &str = "\
First steps:
  flashpan doctor                  can this machine run VMs, and what is missing
  flashpan kernel build            build the guest's kernel, once
  flashpan run -- echo hello       run a command in a new VM
  flashpan run -it                 a shell in a new VM
  flashpan run --image python:3.12-slim -- python3 -c 'print(6*7)'
  flashpan run -d --name dev --image python:3.12-slim     a VM that stays
  flashpan exec -it dev bash                              a shell in it
  flashpan rm -f dev                                      away with it

`flashpan COMMAND --help` has examples for each command.";

/// Runs untrusted programs in micro-VMs
#[derive(Debug, Parser)]
#[command(name = "flashpan", version, after_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Create(Box<run::CreateArgs>),
    Start(vms::StartArgs),
    Exec(Box<vms::ExecArgs>),
    Cp(vms::CpArgs),
    PortForward(vms::PortForwardArgs),
    Events(vms::EventsArgs),
    Ls(vms::LsArgs),
    Ps(vms::PsArgs),
    Inspect(vms::InspectArgs),
    Logs(vms::LogsArgs),
    Stats(vms::StatsArgs),
    Wait(vms::WaitArgs),
    Pause(vms::PauseArgs),
    Unpause(vms::UnpauseArgs),
    Stop(vms::StopArgs),
    Restart(vms::RestartArgs),
    Kill(vms::KillArgs),
    Rename(vms::RenameArgs),
    Rm(vms::RmArgs),
    Prune(vms::PruneArgs),
    #[command(name = "allow-list")]
    AllowList(vms::AllowListArgs),
    Policy(policy::PolicyArgs),
    Secret(vms::SecretArgs),
    #[command(hide = true)]
    Supervise(detached::SuperviseArgs),
    #[command(name = "__complete", hide = true)]
    Complete(generate::CompleteArgs),
    Doctor(doctor::DoctorArgs),
    Image(image::ImageArgs),
    Pull(image::PullArgs),
    Kernel(kernel::KernelArgs),
    Volume(volume::VolumeArgs),
    Bench(bench::BenchArgs),
    Version(version::VersionArgs),
    Completion(generate::CompletionArgs),
    Man(generate::ManArgs),
}

fn main() -> ExitCode {
    let started_ns = flashpan::timeline::now_ns();
    signals::let_writes_fail();
    let result = match parse_arguments() {
        Ok(cli) => dispatch(cli.command, started_ns),
        Err(error) => usage(&error),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.code)
        }
    }
}

fn parse_arguments() -> Result<Cli, clap::Error> {
    let arguments: Vec<_> = std::env::args_os().collect();
    let (mut command, mut matches) = environment::matches(Cli::command(), &arguments)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

fn dispatch(command: Command, started_ns: u64) -> Result<u8, Failure> {
    match command {
        // Before anything is opened.
        Command::Supervise(_) => detached::supervisor(),
        Command::Run(args) => run::run(&args, started_ns),
        Command::Create(args) => run::create(&args),
        Command::Start(args) => vms::start(&args),
        Command::Exec(args) => vms::exec(&args),
        Command::Cp(args) => vms::cp(&args),
        Command::PortForward(args) => vms::port_forward(&args),
        Command::Events(args) => vms::events(&args),
        Command::AllowList(args) => vms::allow_list(&args),
        Command::Policy(args) => policy::policy(&args, started_ns),
        Command::Secret(args) => vms::secret(&args),
        Command::Ls(args) => vms::ls(&args),
        Command::Ps(args) => vms::ps(&args),
        Command::Inspect(args) => vms::inspect(&args),
        Command::Logs(args) => vms::logs(&args),
        Command::Stats(args) => vms::stats(&args),
        Command::Wait(args) => vms::wait(&args),
        Command::Pause(args) => vms::pause(&args),
        Command::Unpause(args) => vms::unpause(&args),
        Command::Stop(args) => vms::stop(&args),
        Command::Restart(args) => vms::restart(&args),
        Command::Kill(args) => vms::kill(&args),
        Command::Rename(args) => vms::rename(&args),
        Command::Rm(args) => vms::rm(&args),
        Command::Prune(args) => vms::prune(&args),
        Command::Complete(args) => generate::complete(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Image(args) => image::image(&args),
        Command::Pull(args) => image::pull(&args).map(|()| 0),
        Command::Kernel(args) => kernel::kernel(&args),
        Command::Volume(args) => volume::volume(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Version(args) => version::version(&args),
        Command::Completion(args) => generate::completion(&args),
        Command::Man(args) => generate::man(&args),
    }
}

/// Help and version as clap prints them; anything else as one line.
fn usage(error: &clap::Error) -> Result<u8, Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            failure::print(&error.render().to_string())?;
            Ok(0)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Err(Failure::new("there is no command; see `flashpan --help`"))
        }
        _ => Err(Failure::new(one_line(&error.render().to_string()))),
    }
}

/// The first paragraph of clap's message, and its tip if it has one.
fn one_line(rendered: &str) -> String {
    let mut paragraphs = rendered.split("\n\n");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let first = words(paragraphs.next().unwrap_or_default());
    let first = first.strip_prefix("error: ").unwrap_or(&first);
    match paragraphs.map(words).find(|text| text.starts_with("tip: ")) {
        Some(tip) => format!("{first}; {tip}"),
        None => format!("{first}; see --help"),
    }
}

/// Runs a future on this thread. Whatever VM it leaves is gone when this
/// returns, but for a process that the host does not let end: dropping the runtime
/// waits for them.
fn runtime<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("cannot start the event loop: {e}")))?;
    runtime.block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands() {
                let help = sub
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                assert!(
                    help.contains("flashpan "),
                    "{} has no examples",
                    sub.get_name()
                );
                check(sub);
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn what_every_command_says_is_there_as_json() {
        // What these print is a text of its own form.
        const OTHERWISE: [&str; 4] = ["completion", "man", "supervise", "__complete"];
        fn check(command: &clap::Command) {
            for sub in command.get_subcommands() {
                let has_json = sub.get_arguments().any(|arg| arg.get_id() == "json");
                let is_group = sub.get_subcommands().next().is_some();
                assert!(
                    has_json || is_group || OTHERWISE.contains(&sub.get_name()),
                    "{} has no --json",
                    sub.get_name()
                );
                check(sub);
            }
        }
        check(&Cli::command());
    }

    #[test]
    fn usage_errors_are_one_line_and_125() {
        for arguments in [
            &["flashpan", "run", "--cpus", "many"][..],
            &["flashpan", "run", "--memory", "536870912", "true"],
            &["flashpan", "run", "--user", "", "true"],
            &["flashpan", "run", "--workdir", "", "true"],
            &["flashpan", "run", "--hostname", "", "true"],
            &["flashpan", "exec", "--user", "", "web", "true"],
            &["flashpan", "exec", "--workdir", "", "web", "true"],
            &["flashpan", "run", "--no-such-option"],
            &["flashpan", "rum"],
            &["flashpan"],
            &["flashpan", "run", "--timeout", "soon", "true"],
        ] {
            let failure = usage(&Cli::try_parse_from(arguments).unwrap_err()).unwrap_err();
            assert_eq!(failure.code, 125);
        }
        let error =
            Cli::try_parse_from(["flashpan", "run", "-m", "536870912", "true"]).unwrap_err();
        let line = one_line(&error.render().to_string());
        assert!(line.contains("did you mean 536870912B?"), "{line}");
        assert!(!line.contains('\n'));
        for command in ["logs", "events"] {
            let error = Cli::try_parse_from(["flashpan", command, "-n", "-1", "web"]).unwrap_err();
            let line = one_line(&error.render().to_string());
            assert!(line.contains("`-1` is not a number of lines"), "{line}");
        }
    }

    #[test]
    fn everything_after_the_command_is_its_own() {
        let cli = Cli::try_parse_from(["flashpan", "run", "-i", "sh", "-c", "-i"]).unwrap();
        let Command::Run(args) = cli.command else {
            panic!("not run")
        };
        assert_eq!(format!("{args:?}").matches("\"-c\"").count(), 1);
    }
}
