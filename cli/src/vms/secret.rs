//! `secret`: the values of a running VM's secrets.

use clap::{Args, Subcommand};
use flashpan::state::Vm;
use serde::Serialize;

use crate::failure::{Failure, print_json_line};
use crate::runtime;
use crate::secrets::{self, SourceArgs};
use crate::vms::{attach, find, of};

const EXAMPLES: &str = "\
Examples:
  flashpan secret set web --secret-file API_KEY=key.txt
  flashpan secret set web API_KEY                 from the variable of that name
  flashpan secret revoke web API_KEY

What is changed holds for requests that begin from now on, and until the VM stops.";

const SET_EXAMPLES: &str = "\
Examples:
  flashpan secret set web --secret-file API_KEY=key.txt
  API_KEY=abc flashpan secret set web API_KEY
  flashpan secret set --json web API_KEY

The value that a secret had before is still taken out of responses.";

const REVOKE_EXAMPLES: &str = "\
Examples:
  flashpan secret revoke web API_KEY
  flashpan secret revoke --json web API_KEY

Requests with the secret's placeholder are refused from now on.";

/// Changes values of a running VM's secrets
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SecretArgs {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Gives secrets other values
    #[command(after_help = SET_EXAMPLES)]
    Set(SetArgs),
    /// Takes values of secrets away
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
struct SetArgs {
    /// Its id, the beginning of it, or its name.
    #[arg(value_name = "VM")]
    vm: String,

    /// Secrets whose value is in the variable of that name, or is given.
    #[arg(value_name = "NAME[=VALUE]", id = "secrets")]
    values: Vec<String>,

    /// Say which were set as JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    from: SourceArgs,
}

#[derive(Debug, Args)]
struct RevokeArgs {
    /// Its id, the beginning of it, or its name.
    #[arg(value_name = "VM")]
    vm: String,

    /// Names of secrets.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    /// Say which were taken away as JSON.
    #[arg(long)]
    json: bool,
}

/// Secrets of a VM that were changed, in JSON. Their names only.
#[derive(Debug, Serialize)]
struct Changed<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    secrets: Vec<&'a str>,
}

fn say<'a>(vm: &Vm, secrets: impl Iterator<Item = &'a String>) -> Result<(), Failure> {
    print_json_line(&Changed {
        id: vm.id(),
        name: vm.name(),
        secrets: secrets.map(String::as_str).collect(),
    })
}

pub(crate) fn secret(args: &SecretArgs) -> Result<u8, Failure> {
    match &args.command {
        Action::Set(args) => set(args),
        Action::Revoke(args) => revoke(args),
    }
}

fn set(args: &SetArgs) -> Result<u8, Failure> {
    if args.values.is_empty() && args.from.is_empty() {
        return Err(Failure::new("name a secret; see --help"));
    }
    let values = secrets::values(&args.values, &args.from)?;
    let vm = find(&args.vm)?;
    runtime(async {
        let sandbox = attach(&vm).await?;
        for (name, value) in &values {
            let set = sandbox.set_secret(name, value).await;
            set.map_err(|error| of(&vm, error))?;
        }
        Ok(())
    })?;
    if args.json {
        say(&vm, values.keys())?;
    }
    Ok(0)
}

fn revoke(args: &RevokeArgs) -> Result<u8, Failure> {
    let vm = find(&args.vm)?;
    runtime(async {
        let sandbox = attach(&vm).await?;
        for name in &args.names {
            let revoked = sandbox.revoke_secret(name).await;
            revoked.map_err(|error| of(&vm, error))?;
        }
        Ok(())
    })?;
    if args.json {
        say(&vm, args.names.iter())?;
    }
    Ok(0)
}
