//! `flashpan inspect`.

use clap::Args;
use flashpan::state::Vm;
use serde::Serialize;

use crate::failure::{Failure, print_json};
use crate::format::{Style, Template, print_rows};
use crate::vms::find;
use crate::vms::list::Listed;

const EXAMPLES: &str = "\
Examples:
  flashpan inspect web
  flashpan inspect vm-0a1b2c3d | jq '.[0].exit.message'
  flashpan inspect --format '{{.Status}}' web

Fields of --format are those of `flashpan ls`.";

/// Shows everything about VMs, as JSON
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InspectArgs {
    /// Ids, their beginnings, or names.
    #[arg(value_name = "VM", required = true)]
    vms: Vec<String>,

    /// Each by a template, e.g. '{{.Status}}'.
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<Template>,

    /// As JSON, as without it.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Inspected {
    #[serde(flatten)]
    vm: Vm,
    disk_bytes: u64,
}

/// Runs `flashpan inspect`.
pub(crate) fn inspect(args: &InspectArgs) -> Result<u8, Failure> {
    let vms = args.vms.iter().map(|text| find(text));
    let vms: Vec<Vm> = vms.collect::<Result<_, _>>()?;
    if let Some(template) = &args.format {
        let rows: Vec<_> = vms.iter().map(Listed::from).collect();
        print_rows(&rows, Style::Template(template))?;
        return Ok(0);
    }
    let inspected = vms.into_iter().map(|vm| Inspected {
        disk_bytes: vm.disk_bytes().unwrap_or(0),
        vm,
    });
    print_json(&inspected.collect::<Vec<_>>())?;
    Ok(0)
}
