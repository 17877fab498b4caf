//! `flashpan ps`: the programs in a VM.

use clap::Args;
use flashpan::ProgramInfo;
use serde::Serialize;

use crate::failure::Failure;
use crate::format::{Row, Style, Template, print_rows};
use crate::image::size;
use crate::runtime;
use crate::vms::{attach, find, of};

const EXAMPLES: &str = "\
Examples:
  flashpan ps web
  flashpan ps --json web
  flashpan ps --format '{{.PID}} {{.Command}}' web

VMs are listed by `flashpan ls`. Fields of --format: PID, PPID, UID, State, Time,
Memory, Command; {{json .}} for all. The guest's agent reads its /proc, so the guest
needs no `ps` of its own. `flashpan exec` shows a program its own processes only, unless
--pid vm is given: `flashpan exec --pid vm web -- kill 55`.";

/// Lists the programs in a VM
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, visible_alias = "top")]
pub(crate) struct PsArgs {
    /// Its id, the beginning of it, or its name.
    #[arg(value_name = "VM")]
    vm: String,

    /// As JSON.
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// Each by a template, e.g. '{{.PID}}'.
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<Template>,
}

#[derive(Debug, Serialize)]
struct Program {
    #[serde(flatten)]
    info: ProgramInfo,
}

impl Row for Program {
    const FIELDS: &'static [(&'static str, &'static str)] = &[
        ("PID", "PID"),
        ("PPID", "PPID"),
        ("UID", "UID"),
        ("State", "STATE"),
        ("Time", "TIME"),
        ("Memory", "MEMORY"),
        ("Command", "COMMAND"),
    ];

    fn values(&self) -> Vec<String> {
        let info = &self.info;
        let (minutes, ms) = (info.cpu_ms / 60_000, info.cpu_ms % 60_000);
        vec![
            info.pid.to_string(),
            info.parent.to_string(),
            info.uid.to_string(),
            info.state.to_string(),
            format!("{minutes}:{:02}.{:02}", ms / 1000, ms % 1000 / 10),
            size(info.resident_bytes),
            info.command.clone(),
        ]
    }
}

/// Runs `flashpan ps`.
pub(crate) fn ps(args: &PsArgs) -> Result<u8, Failure> {
    let vm = find(&args.vm)?;
    let programs = runtime(async {
        let sandbox = attach(&vm).await?;
        sandbox.programs().await.map_err(|error| of(&vm, error))
    })?;
    let rows: Vec<_> = programs.into_iter().map(|info| Program { info }).collect();
    let fields = ["PID", "PPID", "UID", "State", "Time", "Memory", "Command"];
    let style = Style::of(args.format.as_ref(), args.json, &fields);
    print_rows(&rows, style)?;
    Ok(0)
}
