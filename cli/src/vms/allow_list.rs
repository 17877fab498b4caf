//! `allow-list`: what a guest may reach, while it runs.

use clap::{Args, Subcommand};
use flashpan::Reachable;
use flashpan::policy::Pattern;
use serde::Serialize;

use crate::failure::{Failure, print};
use crate::runtime;
use crate::vms::{attach, find, of};

const EXAMPLES: &str = "\
Examples:
  flashpan allow-list add web api.example.com '*.pypi.org:443'
  flashpan allow-list delete web api.example.com
  flashpan allow-list list web

What is changed holds from now on and until the VM stops. Connections and requests that
may not be any more are ended.";

const ADD_EXAMPLES: &str = "\
Examples:
  flashpan allow-list add web api.example.com
  flashpan allow-list add web '*.example.com:443' db.internal:5432 10.0.0.0/8

Prints what is allowed now and was not before.";

const DELETE_EXAMPLES: &str = "\
Examples:
  flashpan allow-list delete web api.example.com

Takes patterns back, and prints those that are gone; one that was not there is an error. What
else allows a host (an open network, another pattern) still does.";

const LIST_EXAMPLES: &str = "\
Examples:
  flashpan allow-list list web
  flashpan allow-list list --json web";

/// Shows and changes what a running VM may reach
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AllowListArgs {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Allows hosts
    #[command(after_help = ADD_EXAMPLES)]
    Add(ChangeArgs),
    /// Takes back what was allowed
    #[command(alias = "rm", after_help = DELETE_EXAMPLES)]
    Delete(ChangeArgs),
    /// Shows what may be reached
    #[command(alias = "ls", after_help = LIST_EXAMPLES)]
    List(ListArgs),
}

#[derive(Debug, Args)]
struct ChangeArgs {
    /// Its id, the beginning of it, or its name.
    #[arg(value_name = "VM")]
    vm: String,

    /// Names, patterns of names, addresses or networks, with or without ports.
    #[arg(value_name = "HOST", required = true, value_delimiter = ',')]
    hosts: Vec<String>,

    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Its id, the beginning of it, or its name.
    #[arg(value_name = "VM")]
    vm: String,

    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    network: &'static str,
    allow_private_ips: bool,
    allowed_hosts: &'a [String],
    denied_hosts: &'a [String],
    rules: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<&'a [String]>,
}

/// Those of the patterns that mean the same as none of the others.
fn not_among<'a>(patterns: &'a [String], others: &[String]) -> Vec<&'a str> {
    let parsed = |text: &String| text.trim().parse::<Pattern>().ok();
    let others: Vec<Pattern> = others.iter().filter_map(parsed).collect();
    let is_there = |text: &String| {
        parsed(text).is_some_and(|pattern| others.iter().any(|other| other.is_same(&pattern)))
    };
    let missing = patterns.iter().filter(|text| !is_there(text));
    missing.map(String::as_str).collect()
}

pub(crate) fn allow_list(args: &AllowListArgs) -> Result<u8, Failure> {
    let (vm, hosts, json) = match &args.command {
        Action::Add(args) | Action::Delete(args) => (&args.vm, Some(&args.hosts), args.json),
        Action::List(args) => (&args.vm, None, args.json),
    };
    let vm = find(vm)?;
    let reachable = runtime(async {
        let sandbox = attach(&vm).await?;
        let hosts = hosts.into_iter().flatten();
        let done = match &args.command {
            Action::Add(_) => sandbox.allow_hosts(hosts).await,
            Action::Delete(_) => sandbox.disallow_hosts(hosts).await,
            Action::List(_) => sandbox.reachable().await,
        };
        done.map_err(|error| of(&vm, error))
    })?;
    let is_change = !matches!(args.command, Action::List(_));
    match (json, is_change) {
        (true, _) => {
            let shown = Shown {
                network: mode(&reachable),
                allow_private_ips: reachable.private,
                allowed_hosts: &reachable.allowed,
                denied_hosts: &reachable.denied,
                rules: &reachable.rules,
                changed: is_change.then_some(&reachable.changed),
            };
            print(&format!(
                "{}\n",
                serde_json::to_string(&shown).map_err(Failure::new)?
            ))?;
        }
        (false, true) => {
            for host in &reachable.changed {
                print(&format!("{host}\n"))?;
            }
        }
        (false, false) => {
            print(&format!("network {}\n", mode(&reachable)))?;
            if reachable.private {
                print("private addresses allowed\n")?;
            }
            for rule in &reachable.rules {
                print(&format!("rule {rule}\n"))?;
            }
            for host in &reachable.denied {
                print(&format!("deny {host}\n"))?;
            }
            for host in &reachable.allowed {
                print(&format!("allow {host}\n"))?;
            }
        }
    }
    if let Action::Delete(args) = &args.command {
        let missing = not_among(&args.hosts, &reachable.changed);
        if !missing.is_empty() {
            let id = vm.id();
            return Err(Failure::new(format!(
                "the allow-list of {id} has no {}; `flashpan allow-list list {id}` says what it has",
                missing.join(", ")
            )));
        }
    }
    Ok(0)
}

fn mode(reachable: &Reachable) -> &'static str {
    match (reachable.has_network, reachable.open) {
        (false, _) => "none",
        (true, false) => "sealed",
        (true, true) => "open",
    }
}
