//! `policy learn`: what a command does in an open network, as the rules for it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use flashpan::api::shell_quote_args;
use flashpan::learn::{Learned, Learner};
use flashpan::text::plain;
use serde_json::json;

use crate::failure::{Failure, print};
use crate::run::{self, RunArgs};

const EXAMPLES: &str = "\
Examples:
  flashpan policy learn --image python:3.12 -- pip install requests
  flashpan policy learn --format toml -o network.toml -- ./agent
  flashpan policy learn -f sandbox.toml --format json -o - -- make

Runs the command once, as `flashpan run` does, in a network in which it reaches the
internet, but neither this machine and its networks nor metadata services, unless options
say so. What it did there is printed at the end as what would have to be allowed: HTTP and
TLS are looked into, so that there is a rule for each method and path, in which what looks
like a number or a hash is `*`, and a directory with many names in it ends in `/**`.
--deny-host and deny rules hold meanwhile. A request with a `*` in its path is left out, and
told of: the rule would allow more.

Read what is printed before it is used: a program that was up to something has taught that
too. Programs that do not trust the VM's authority cannot be looked into, and are listed as
refused. Exit status: that of the command.";

/// How what was learned is written.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum Format {
    /// Options of `flashpan run`.
    #[default]
    Args,
    /// A part of a configuration file.
    Toml,
    /// All of it, for programs.
    Json,
}

/// Runs a command in an open network, and prints what would have to be allowed for it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LearnArgs {
    /// How it is written: options, a part of a configuration, or all that was seen.
    #[arg(long, value_enum, default_value_t, value_name = "args|toml|json")]
    format: Format,

    /// Write it to this file, which is replaced; `-` is standard output, where it comes
    /// after what the command writes.
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,

    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn learn(args: &LearnArgs, started_ns: u64) -> Result<u8, Failure> {
    let failed = |file: &Path, error: std::io::Error| {
        let file = file.display();
        Failure::new(format!(
            "cannot write {file}: {error}; name another with -o"
        ))
    };
    // What cannot be written is said before anything is done.
    let file = Some(&args.output).filter(|file| file.as_os_str() != "-");
    let file = file.map(|path| match File::create(path) {
        Ok(file) => Ok((path, file)),
        Err(error) => Err(failed(path, error)),
    });
    let file = file.transpose()?;
    let mut learner = Learner::new();
    let result = run::observe(&args.run, started_ns, &mut learner);
    // Of a run that failed there is what was seen until then, but not of one that never was.
    let learned = learner.learned();
    if result.is_err() && learned == Learned::default() {
        return result;
    }
    let text = match args.format {
        Format::Args => arguments(&learned),
        Format::Toml => toml(&learned),
        Format::Json => json(&learned)?,
    };
    match file {
        Some((path, mut file)) => {
            let written = file.write_all(text.as_bytes());
            written.map_err(|error| failed(path, error))?;
        }
        None => print(&text)?,
    }
    result
}

/// What is not a rule, in lines that are comments in all that is not JSON.
fn notes(learned: &Learned) -> String {
    let mut notes = String::new();
    let mut note = |text: &str| {
        let _ = writeln!(notes, "# {}", plain(text));
    };
    if learned.lost > 0 {
        note(&format!(
            "{} events are missing: there may be more to allow",
            learned.lost
        ));
    }
    if !learned.names_only.is_empty() {
        note(&format!(
            "asked for, and not connected to: {}",
            learned.names_only.join(", ")
        ));
    }
    for refused in &learned.refused {
        let times = match refused.times {
            1 => String::new(),
            times => format!(" ({times} times)"),
        };
        let (target, code, hint) = (&refused.target, &refused.code, &refused.hint);
        note(&format!("refused: {target}: {code}{times}; {hint}"));
    }
    for request in &learned.left_out {
        note(&format!(
            "left out: {request}: a `*` in a rule means more than itself; if all of that may be, \
             write it yourself"
        ));
    }
    let is_nothing = learned.allowed_hosts.is_empty() && learned.rules.is_empty();
    if is_nothing && learned.left_out.is_empty() {
        note("nothing has to be allowed");
    }
    notes
}

fn arguments(learned: &Learned) -> String {
    let quoted = |option: &str, text: &str| format!("{option} {}", shell_quote_args(&[text]));
    // By TCP and with one port it is what --tcp is for.
    let hosts = learned.allowed_hosts.iter().map(|host| {
        let is_of_port = !host.starts_with("udp:")
            && host
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let is_plain = is_of_port && !host.contains('*');
        quoted(if is_plain { "--tcp" } else { "--allow-host" }, host)
    });
    let rules = learned.rules.iter().map(|rule| quoted("--rule", rule));
    let options: Vec<_> = hosts.chain(rules).collect();
    let mut text = notes(learned);
    if !options.is_empty() {
        text.push_str(&options.join(" \\\n"));
        text.push('\n');
    }
    text
}

fn toml(learned: &Learned) -> String {
    let mut text = notes(learned);
    text.push_str("[network]\n");
    for (name, entries) in [
        ("allowed_hosts", &learned.allowed_hosts),
        ("rules", &learned.rules),
    ] {
        if entries.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{name} = [");
        for entry in entries {
            // A text of JSON is one of TOML: there are no surrogates, all of it is ASCII.
            let _ = writeln!(text, "    {},", json!(entry));
        }
        text.push_str("]\n");
    }
    text
}

fn json(learned: &Learned) -> Result<String, Failure> {
    let shown = json!({
        "network": {
            "allowed_hosts": learned.allowed_hosts,
            "rules": learned.rules,
        },
        "names_only": learned.names_only,
        "refused": learned.refused,
        "left_out": learned.left_out,
        "lost": learned.lost,
    });
    let text = serde_json::to_string_pretty(&shown).map_err(Failure::new)?;
    Ok(format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use flashpan::api::Config;

    use super::*;

    fn learned() -> Learned {
        let mut learned = Learned::default();
        learned.allowed_hosts = [
            "db.internal:5432",
            "*.own.test:443",
            "udp:ntp.test:123",
            "[::1]:22",
        ]
        .map(str::to_owned)
        .to_vec();
        learned.rules = ["allow GET a.test/x/**", "allow GET,PUT a.test/it's\"$x"]
            .map(str::to_owned)
            .to_vec();
        learned.names_only = vec!["b.test".to_owned()];
        learned.left_out = vec!["GET https://a.test/**".to_owned()];
        learned.lost = 3;
        learned
    }

    #[test]
    fn options_are_those_of_run() {
        let text = arguments(&learned());
        assert_eq!(
            text,
            "# 3 events are missing: there may be more to allow\n\
             # asked for, and not connected to: b.test\n\
             # left out: GET https://a.test/**: a `*` in a rule means more than itself; \
             if all of that may be, write it yourself\n\
             --tcp db.internal:5432 \\\n\
             --allow-host \\*.own.test:443 \\\n\
             --allow-host udp:ntp.test:123 \\\n\
             --tcp \\[::1]:22 \\\n\
             --rule 'allow GET a.test/x/**' \\\n\
             --rule 'allow GET,PUT a.test/it'\\''s\"$x'\n"
        );
    }

    #[test]
    fn a_configuration_has_them_as_they_are() {
        let learned = learned();
        let config = Config::from_toml(&toml(&learned)).unwrap().config;
        let network = config.network.unwrap();
        assert_eq!(network.allowed_hosts, learned.allowed_hosts);
        assert_eq!(network.rules, learned.rules);
        let value: serde_json::Value = serde_json::from_str(&json(&learned).unwrap()).unwrap();
        assert_eq!(value["network"]["rules"][0], "allow GET a.test/x/**");
        assert_eq!(value["lost"], 3);
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        let nothing = Learned::default();
        assert_eq!(arguments(&nothing), "# nothing has to be allowed\n");
        let mut starred = Learned::default();
        starred.left_out = learned().left_out;
        assert!(!arguments(&starred).contains("nothing has to be allowed"));
        assert!(Config::from_toml(&toml(&nothing)).is_ok());
    }
}
