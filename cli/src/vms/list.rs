//! `flashpan ls`.

use clap::Args;
use flashpan::api::Timestamp;
use flashpan::state::{Vm, Vms};
use serde::Serialize;

use crate::failure::{Failure, print, say};
use crate::format::{Row, Style, Template, print_rows};

const EXAMPLES: &str = "\
Examples:
  flashpan ls
  flashpan ls --running -q
  flashpan ls --format '{{.ID}} {{.Status}}'
  flashpan ls --format 'table {{.Name}}\\t{{.Image}}'
  flashpan ls -q | xargs -r flashpan rm -f            all of them away

A VM is created, starting, running, paused, stopping, stopped (however it ended: `inspect`
has the reason) or crashed (nobody knows how). Exit is the command's, which the VM outlives. Fields of
--format: ID, Name, Status, Image, Created, Command, Exit, Size, Ports; {{json .}} for
all.";

/// Lists VMs, the newest first
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, visible_alias = "list")]
pub(crate) struct LsArgs {
    /// Only VMs that run.
    #[arg(long)]
    running: bool,

    /// Only ids.
    #[arg(long, short, conflicts_with_all = ["json", "format"])]
    quiet: bool,

    /// As JSON.
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// Each by a template, e.g. '{{.ID}}'; fields are listed below.
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<Template>,
}

/// A VM in a list.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    id: String,
    name: Option<String>,
    status: flashpan::state::Status,
    image: Option<String>,
    created_at: Timestamp,
    command: Vec<String>,
    /// Status of the VM's command in its last run.
    exit_code: Option<u8>,
    disk_bytes: u64,
    /// Where ports of the guest are reachable now.
    ports: Vec<String>,
}

impl From<&Vm> for Listed {
    fn from(vm: &Vm) -> Self {
        let record = vm.record();
        let in_run = vm.run().and_then(|run| run.command);
        let command = vm.exit().and_then(|exit| exit.command).or(in_run);
        Self {
            id: vm.id().to_owned(),
            name: record.name.clone(),
            status: vm.status(),
            image: record.image.clone(),
            created_at: record.created_at,
            command: record.programs.command.clone(),
            exit_code: command.map(|command| command.code),
            // It may be removed meanwhile.
            disk_bytes: vm.disk_bytes().unwrap_or(0),
            ports: vm
                .run()
                .filter(|_| vm.status().is_alive())
                .map(|run| run.ports.iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
        }
    }
}

impl Row for Listed {
    const FIELDS: &'static [(&'static str, &'static str)] = &[
        ("ID", "ID"),
        ("Status", "STATUS"),
        ("Image", "IMAGE"),
        ("Created", "CREATED"),
        ("Name", "NAME"),
        ("Command", "COMMAND"),
        ("Exit", "EXIT"),
        ("Size", "SIZE"),
        ("Ports", "PORTS"),
    ];

    fn values(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        vec![
            self.id.clone(),
            self.status.to_string(),
            or_dash(self.image.clone()),
            minute(self.created_at),
            or_dash(self.name.clone()),
            flashpan::api::shell_quote_args(&self.command),
            or_dash(self.exit_code.map(|code| code.to_string())),
            crate::image::size(self.disk_bytes),
            self.ports.join(", "),
        ]
    }
}

/// A time as lists show it: `2026-01-31 12:00`, in UTC.
pub(super) fn minute(time: Timestamp) -> String {
    let text = time.to_string();
    let minute = text.get(..16).unwrap_or(&text);
    minute.replace('T', " ")
}

/// Runs `flashpan ls`.
pub(crate) fn ls(args: &LsArgs) -> Result<u8, Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    let listing = vms.list().map_err(Failure::new)?;
    let shown = |vm: &&Vm| !args.running || vm.status().is_alive();
    let shown = listing.vms.iter().filter(shown);
    if args.quiet {
        let lines: String = shown.map(|vm| format!("{}\n", vm.id())).collect();
        print(&lines)?;
    } else {
        let rows: Vec<_> = shown.map(Listed::from).collect();
        let fields = ["ID", "Status", "Image", "Created", "Ports", "Name"];
        let style = Style::of(args.format.as_ref(), args.json, &fields);
        print_rows(&rows, style)?;
    }
    for (id, error) in &listing.damaged {
        say("warning", &format!("the VM {id} is left out: {error}"));
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_to_the_minute() {
        let time = "2026-01-31T12:34:56.789Z".parse().unwrap();
        assert_eq!(minute(time), "2026-01-31 12:34");
    }
}
