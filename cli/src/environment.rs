//! Variables of the environment that stand in for options. One that is empty is not set;
//! an option that was written goes before all of them; and what is wrong with one is told
//! by its name, since nobody wrote the option.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::OnceLock;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// Options that are read with their variables elsewhere, since others exclude them.
const ELSEWHERE: [(&str, &str); 2] = [
    ("disk-size", "FLASHPAN_DISK_SIZE"),
    ("image", "FLASHPAN_IMAGE"),
];

/// What an option may say, and options that ask for the opposite. Written side by side they
/// are a mistake; a variable gives way.
const OPPOSITES: [(&str, &str, &[&str]); 2] = [
    (
        "network",
        "none",
        &["allow-host", "tcp", "rule", "secret", "network-intercept"],
    ),
    ("network", "open", &["no-network"]),
];

/// The variables that stand in for options in this command, by the options.
static IN_PLACE: OnceLock<BTreeMap<String, String>> = OnceLock::new();

/// The variable that an option was taken from, if it was.
pub(crate) fn variable_of(option: &str) -> Option<&'static str> {
    let variables = IN_PLACE.get()?;
    variables.get(option).map(String::as_str)
}

/// Reads arguments, and what variables say besides.
pub(crate) fn matches(
    command: Command,
    arguments: &[OsString],
) -> Result<(Command, ArgMatches), clap::Error> {
    let mut written = without_variables(command.clone());
    let alone = written.try_get_matches_from_mut(arguments)?;
    let mut command = with_variables(command, Some(&alone));
    match command.try_get_matches_from_mut(arguments) {
        Ok(matches) => {
            let mut variables = BTreeMap::new();
            each_from_variable(&command, &matches, &mut |argument, variable| {
                if let Some(long) = argument.get_long() {
                    variables.insert(format!("--{long}"), variable.to_owned());
                }
            });
            // Arguments are read once.
            let _ = IN_PLACE.set(variables);
            Ok((command, matches))
        }
        // What was written is right, so a variable is not.
        Err(error) => Err(blaming_variables(&command, &alone, &error)),
    }
}

fn without_variables(command: Command) -> Command {
    command
        .mut_args(|argument| argument.env(Resettable::Reset))
        .mut_subcommands(without_variables)
}

/// The command with the variables that count beside what was written.
fn with_variables(command: Command, written: Option<&ArgMatches>) -> Command {
    let left_out: Vec<_> = command
        .get_arguments()
        .filter(|argument| !counts(&command, argument, written))
        .map(|argument| argument.get_id().clone())
        .collect();
    let chosen = written.and_then(ArgMatches::subcommand);
    command
        .mut_args(|argument| match left_out.contains(argument.get_id()) {
            true => argument.env(Resettable::Reset),
            false => argument,
        })
        .mut_subcommands(|sub| {
            let matches = chosen.filter(|(name, _)| *name == sub.get_name());
            with_variables(sub, matches.map(|of| of.1))
        })
}

/// Whether the variable of an argument counts: it holds something, and excludes nothing
/// that was written.
fn counts(command: &Command, argument: &Arg, written: Option<&ArgMatches>) -> bool {
    if !argument.get_env().is_some_and(is_set) {
        return false;
    }
    let Some(written) = written else { return true };
    let excludes = |one: &Arg, other: &Arg| {
        let mut excluded = command.get_arg_conflicts_with(one).into_iter();
        excluded.any(|excluded| excluded.get_id() == other.get_id())
    };
    let mut others = command
        .get_arguments()
        .filter(|other| is_from(written, other, ValueSource::CommandLine));
    !others.any(|other| {
        excludes(argument, other)
            || excludes(other, argument)
            || is_opposite(argument, other, written)
    })
}

/// Whether what the variable of an argument holds is the opposite of what another, which was
/// written, asks for.
fn is_opposite(argument: &Arg, other: &Arg, written: &ArgMatches) -> bool {
    let held = argument.get_env().and_then(std::env::var_os);
    let says = |word: &str| {
        let mut words = written
            .get_raw(other.get_id().as_str())
            .into_iter()
            .flatten();
        words.any(|said| said == word)
    };
    OPPOSITES.iter().any(|(option, word, others)| {
        let is_among = |one: &Arg| one.get_long().is_some_and(|long| others.contains(&long));
        let is_it = |one: &Arg| one.get_long() == Some(option);
        (is_it(argument) && is_among(other) && held.as_ref().is_some_and(|held| held == word))
            || (is_among(argument) && is_it(other) && says(word))
    })
}

/// As everywhere, one that is empty is not set; clap would take it for an empty value.
fn is_set(variable: &OsStr) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

fn is_from(matches: &ArgMatches, argument: &Arg, source: ValueSource) -> bool {
    let id = argument.get_id().as_str();
    let known = matches.try_contains_id(id).is_ok();
    known && matches.value_source(id) == Some(source)
}

/// Every argument of the chosen command that a variable stands in for, and the variable.
fn each_from_variable(command: &Command, matches: &ArgMatches, seen: &mut impl FnMut(&Arg, &str)) {
    for argument in command.get_arguments() {
        if let Some(variable) = argument.get_env().and_then(OsStr::to_str)
            && is_from(matches, argument, ValueSource::EnvVariable)
        {
            seen(argument, variable);
        }
        let elsewhere = ELSEWHERE.iter().find(|(long, variable)| {
            argument.get_long() == Some(long) && is_set(OsStr::new(variable))
        });
        if let Some((_, variable)) = elsewhere
            && !is_from(matches, argument, ValueSource::CommandLine)
        {
            seen(argument, variable);
        }
    }
    if let Some((name, matches)) = matches.subcommand()
        && let Some(sub) = command.find_subcommand(name)
    {
        each_from_variable(sub, matches, seen);
    }
}

/// The error with variables in place of the options that they stand in for.
fn blaming_variables(command: &Command, written: &ArgMatches, error: &clap::Error) -> clap::Error {
    let mut text = error.render().to_string();
    let mut no_text = Vec::new();
    let (mut command, mut matches) = (command, written);
    loop {
        for argument in command.get_arguments() {
            if let Some(variable) = argument.get_env().and_then(OsStr::to_str)
                && !is_from(matches, argument, ValueSource::CommandLine)
            {
                text = text.replace(&format!("'{argument}'"), &format!("'{variable}'"));
                if !holds_text(argument, variable) {
                    no_text.push(variable);
                }
            }
        }
        let Some((name, below)) = matches.subcommand() else {
            break;
        };
        let Some(sub) = command.find_subcommand(name) else {
            break;
        };
        (command, matches) = (sub, below);
    }
    // That error names no argument.
    if error.kind() == ErrorKind::InvalidUtf8 && !no_text.is_empty() {
        let it = if no_text.len() == 1 {
            "it is"
        } else {
            "they are"
        };
        text = format!("{}: {it} not UTF-8", no_text.join(", "));
    }
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    clap::Error::raw(error.kind(), text)
}

/// Whether a variable holds text, if its argument wants text.
fn holds_text(argument: &Arg, variable: &str) -> bool {
    let of = argument.get_value_parser().type_id();
    of == TypeId::of::<PathBuf>()
        || of == TypeId::of::<OsString>()
        || std::env::var_os(variable).is_none_or(|value| value.to_str().is_some())
}
