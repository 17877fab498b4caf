//! `policy`: what a guest may reach, without one.

mod learn;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use flashpan::api::Config;
use flashpan::{Explained, explain_offline};
use serde::Serialize;

use self::learn::LearnArgs;
use crate::config_file;
use crate::failure::{Failure, print, print_json_line};
use crate::reach::ReachArgs;
use crate::runtime;
use crate::vms;

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  flashpan policy explain --allow-host '*.example.com' api.example.com
  flashpan policy explain -f sandbox.toml --method POST https://api.example.com/v1/items
  flashpan policy explain --vm web db.internal:5432
  flashpan policy explain --network open --policy-script policy.rhai https://example.com/

Says whether a connection or request would be allowed, by which pattern or rule, and what to
do if it would not. Nothing is looked up and nothing is connected to: a name that leads to a
private address is refused only when that is known. A policy script is shown a request
without headers. Exit status 1: it would be refused.";

const TEST_EXAMPLES: &str = "\
Examples:
  flashpan policy test -f sandbox.toml cases.txt
  flashpan policy test --json -f sandbox.toml cases.txt | jq '.wrong[].line'
  printf 'allow GET https://a.test/\\ndeny b.test:22\\n' | flashpan policy test --allow-host a.test -

Each line of the file is `allow` or `deny`, a method where it is a URL (GET otherwise), and a
host or URL as of `policy explain`. Blank lines and those that begin with # are passed over.
Prints the lines that do not hold; exit status 1 if there are any.";

const EXAMPLES: &str = "\
Examples:
  flashpan policy explain --allow-host '*.example.com' api.example.com
  flashpan policy test -f sandbox.toml cases.txt
  flashpan policy learn --image python:3.12 -- pip install requests";

/// Explains, tests and learns what a guest may reach
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Explain(Box<ExplainArgs>),
    Test(Box<TestArgs>),
    Learn(Box<LearnArgs>),
}

/// Says what would become of a connection or request
#[derive(Debug, Args)]
#[command(after_help = EXPLAIN_EXAMPLES)]
struct ExplainArgs {
    /// A host, `HOST:PORT`, `udp:HOST:PORT`, or a URL of HTTP.
    #[arg(value_name = "HOST|URL")]
    target: String,

    /// The method of a request.
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,

    /// Of this VM, which runs: its id, the beginning of it, or its name.
    #[arg(long, value_name = "VM", conflicts_with_all = ["file", "allow_hosts", "deny_hosts", "rules", "policy_script"])]
    vm: Option<String>,

    /// Print it as JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    of: Of,
}

/// Checks a policy against what it should do
#[derive(Debug, Args)]
#[command(after_help = TEST_EXAMPLES)]
struct TestArgs {
    /// What it should do; `-` is standard input.
    #[arg(value_name = "CASES")]
    cases: PathBuf,

    /// Print it as JSON: how many cases there are, and those that do not hold.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    of: Of,
}

/// Where a policy comes from.
#[derive(Debug, Args)]
struct Of {
    /// A configuration, as of `run`.
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    reach: ReachArgs,
}

impl Of {
    fn config(&self) -> Result<Config, Failure> {
        let mut options = Config::default();
        self.reach.apply_to(&mut options)?;
        let file = self.file.as_deref().map(config_file::read).transpose()?;
        let config = file.unwrap_or_default().merge(options);
        config.validate().map_err(flashpan::Error::from)?;
        if let Some(file) = &self.file {
            config_file::warn(&file.display().to_string(), &config);
        }
        Ok(config)
    }

    fn explain(&self, config: &Config, method: &str, target: &str) -> Result<Explained, Failure> {
        explain_offline(config, self.reach.network, method, target).map_err(Failure::from)
    }
}

#[derive(Serialize)]
struct Shown {
    target: String,
    allowed: bool,
    rule: Option<String>,
    code: Option<String>,
    hint: Option<String>,
    inspected: bool,
}

impl From<Explained> for Shown {
    fn from(explained: Explained) -> Self {
        Self {
            target: explained.target,
            allowed: explained.allowed,
            rule: explained.rule,
            code: explained.code,
            hint: explained.hint,
            inspected: explained.inspected,
        }
    }
}

/// What became of a file of cases.
#[derive(Default, Serialize)]
struct Tested {
    cases: u64,
    wrong: Vec<Wrong>,
}

/// A case that does not hold.
#[derive(Serialize)]
struct Wrong {
    line: u64,
    expected: &'static str,
    method: String,
    #[serde(flatten)]
    shown: Shown,
}

pub(crate) fn policy(args: &PolicyArgs, started_ns: u64) -> Result<u8, Failure> {
    match &args.command {
        Action::Explain(args) => explain(args),
        Action::Test(args) => test(args),
        Action::Learn(args) => learn::learn(args, started_ns),
    }
}

fn explain(args: &ExplainArgs) -> Result<u8, Failure> {
    let explained = match &args.vm {
        Some(vm) => runtime(vms::explain(vm, &args.method, &args.target))?,
        None => (args.of).explain(&args.of.config()?, &args.method, &args.target)?,
    };
    let allowed = explained.allowed;
    match args.json {
        true => print_json_line(&Shown::from(explained))?,
        false => print(&format!("{}\n", told(&explained)))?,
    }
    Ok(u8::from(!allowed))
}

/// What would become of it, on a line.
fn told(explained: &Explained) -> String {
    let target = &explained.target;
    let by = match (&explained.rule, explained.allowed, &explained.hint) {
        (Some(rule), _, _) => format!("by {rule:?}"),
        (None, true, Some(why)) => why.clone(),
        (None, true, None) => "the network is open".to_owned(),
        (None, false, _) if explained.code.as_deref() == Some("no_network") => {
            "there is no network".to_owned()
        }
        (None, false, _) => "nothing allows it".to_owned(),
    };
    let what = match (explained.allowed, &explained.code) {
        (true, _) => "allowed".to_owned(),
        (false, Some(code)) => format!("refused ({code})"),
        (false, None) => "refused".to_owned(),
    };
    let looked = match explained.inspected {
        true => "; requests are looked into",
        false => "",
    };
    let hint = match (&explained.hint, &explained.rule) {
        (Some(hint), None) if !explained.allowed => format!("; {hint}"),
        _ => String::new(),
    };
    format!("{target}: {what}, {by}{looked}{hint}")
}

fn test(args: &TestArgs) -> Result<u8, Failure> {
    let shown = args.cases.display();
    let failed = |error: std::io::Error| {
        Failure::new(format!(
            "cannot read the cases {shown}: {error}; name another"
        ))
    };
    let text = match args.cases.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()).map_err(failed)?,
        false => std::fs::read_to_string(&args.cases).map_err(failed)?,
    };
    let config = args.of.config()?;
    let mut tested = Tested::default();
    for (number, line) in (1_u64..).zip(text.lines()) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (verdict, method, target) = match words.as_slice() {
            [] => continue,
            [first, ..] if first.starts_with('#') => continue,
            [verdict, target] => (*verdict, "GET", *target),
            [verdict, method, target] => (*verdict, *method, *target),
            _ => ("", "", ""),
        };
        let at = format!("{shown}:{number}");
        let expected = match verdict {
            "allow" => "allow",
            "deny" => "deny",
            _ => {
                let why = "give allow or deny, a method if it is not GET, and a host or URL";
                return Err(Failure::new(format!("{at}: {line:?} is no case; {why}")));
            }
        };
        let explained = (args.of.explain(&config, method, target))
            .map_err(|failure| Failure::new(format!("{at}: {}", failure.message())))?;
        tested.cases += 1;
        if explained.allowed == (expected == "allow") {
            continue;
        }
        if !args.json {
            print(&format!(
                "{at}: expected {expected}: {}\n",
                told(&explained)
            ))?;
        }
        tested.wrong.push(Wrong {
            line: number,
            expected,
            method: method.to_owned(),
            shown: explained.into(),
        });
    }
    if args.json {
        print_json_line(&tested)?;
    }
    Ok(u8::from(!tested.wrong.is_empty()))
}
