//! `flashpan stats`: what VMs use of their host.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use flashpan::state::{StateError, Vm, Vms};
use flashpan::{Sandbox, Usage};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::failure::{Failure, print, print_json_line, say};
use crate::format::{Row, Style, Template, print_rows, table};
use crate::image::size;
use crate::runtime;
use crate::vms::{alive, must_have_begun, of};

/// How often VMs are looked at: CPU use is that of this time.
const EVERY: Duration = Duration::from_secs(1);

/// How long one of all VMs may take to answer; who names it waits longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// One that does not is asked again after so many looks.
const AGAIN: u32 = 10;

/// Most VMs that are asked at once: each takes a descriptor or two.
const AT_ONCE: usize = 64;

/// To the upper left corner of a terminal, and everything behind it away.
const CLEAR: &str = "\x1b[H\x1b[J";

const EXAMPLES: &str = "\
Examples:
  flashpan stats                       all VMs that run, every second
  flashpan stats --no-stream web db
  flashpan stats --no-stream --json
  flashpan stats --no-stream --format '{{.Name}} {{.CPU}}'

CPU is that of the last second: 100% is one processor of the host. MEMORY is what the
VM's process has of the host now, and what the guest may have. Fields of --format:
ID, Name, CPU, Memory, Read, Written, Received, Sent, Up; {{json .}} for all. Received
and Sent are what passed the VM's network card, in bytes, and - without one.";

/// Shows what VMs use of CPU, memory, disk and network
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatsArgs {
    /// Ids, their beginnings, or names; otherwise all that run.
    #[arg(value_name = "VM")]
    vms: Vec<String>,

    /// Once, and not again and again.
    #[arg(long)]
    no_stream: bool,

    /// As JSON, one line each time.
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// Each by a template, e.g. '{{.CPU}}'.
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<Template>,
}

#[derive(Debug, Serialize)]
struct Used {
    id: String,
    name: Option<String>,
    cpu_percent: f64,
    cpu_ns: u64,
    vcpus: u32,
    resident_bytes: u64,
    memory_bytes: u64,
    read_bytes: Option<u64>,
    written_bytes: Option<u64>,
    received_bytes: Option<u64>,
    sent_bytes: Option<u64>,
    uptime_ns: u64,
    exits: u64,
}

impl Used {
    fn new(vm: &Vm, usage: &Usage, before: Option<&Usage>) -> Self {
        let passed = before.map_or(usage.uptime_ns, |before| {
            usage.uptime_ns.saturating_sub(before.uptime_ns)
        });
        let cpu = usage
            .cpu_ns
            .saturating_sub(before.map_or(0, |before| before.cpu_ns));
        let counts = usage.vmm.exits.iter().map(|exit| exit.count);
        Self {
            id: vm.id().to_owned(),
            name: vm.name().map(str::to_owned),
            cpu_percent: percent(cpu, passed),
            cpu_ns: usage.cpu_ns,
            vcpus: usage.vcpus,
            resident_bytes: usage.resident_bytes,
            memory_bytes: usage.memory_bytes,
            read_bytes: usage.read_bytes,
            written_bytes: usage.written_bytes,
            received_bytes: usage.vmm.network.map(|all| all.received_bytes),
            sent_bytes: usage.vmm.network.map(|all| all.sent_bytes),
            uptime_ns: usage.uptime_ns,
            exits: counts.fold(0, u64::saturating_add),
        }
    }
}

/// To a hundredth.
fn percent(part: u64, whole: u64) -> f64 {
    let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
    f64::from(u32::try_from(hundredths).unwrap_or(u32::MAX)) / 100.0
}

impl Row for Used {
    const FIELDS: &'static [(&'static str, &'static str)] = &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("CPU", "CPU"),
        ("Memory", "MEMORY"),
        ("Read", "READ"),
        ("Written", "WRITTEN"),
        ("Received", "RECEIVED"),
        ("Sent", "SENT"),
        ("Up", "UP"),
    ];

    fn values(&self) -> Vec<String> {
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), size);
        let seconds = self.uptime_ns / 1_000_000_000;
        vec![
            self.id.clone(),
            self.name.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{:.2}%", self.cpu_percent),
            format!(
                "{} / {}",
                size(self.resident_bytes),
                size(self.memory_bytes)
            ),
            bytes(self.read_bytes),
            bytes(self.written_bytes),
            bytes(self.received_bytes),
            bytes(self.sent_bytes),
            format!(
                "{}:{:02}:{:02}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            ),
        ]
    }
}

const COLUMNS: [&str; 9] = [
    "ID", "Name", "CPU", "Memory", "Read", "Written", "Received", "Sent", "Up",
];

/// Runs `flashpan stats`.
pub(crate) fn stats(args: &StatsArgs) -> Result<u8, Failure> {
    let mut looks = Looks::begin(&args.vms)?;
    runtime(async {
        // Measuring takes a beginning and an end.
        looks.take().await?;
        loop {
            tokio::time::sleep(EVERY).await;
            let rows = looks.take().await?;
            match Style::of(args.format.as_ref(), args.json, &COLUMNS) {
                Style::Template(template) => print_rows(&rows, Style::Template(template))?,
                Style::Json => print_json_line(&rows)?,
                Style::Table(columns) => {
                    let clear = !args.no_stream && io::stdout().is_terminal();
                    let clear = if clear { CLEAR } else { "" };
                    print(&format!("{clear}{}", table(&rows, columns)))?;
                    if !clear.is_empty() {
                        // What was said before is gone.
                        looks.left_out.keys().for_each(|id| looks.warn_of(id));
                    }
                }
            }
            if args.no_stream || (rows.is_empty() && !args.vms.is_empty()) {
                return Ok(0);
            }
        }
    })
}

/// Which VMs are looked at, and what was seen of them.
struct Looks {
    vms: Vms,
    /// Ids of those that the user names; otherwise all are.
    named: Option<Vec<String>>,
    before: HashMap<String, Usage>,
    /// Those that are left out, by their ids.
    left_out: BTreeMap<String, LeftOut>,
}

/// A VM that does not answer.
struct LeftOut {
    why: String,
    /// After so many looks it is asked again.
    looks: u32,
}

impl Looks {
    /// Those that are named have to run.
    fn begin(named: &[String]) -> Result<Self, Failure> {
        let vms = Vms::user().map_err(Failure::new)?;
        let id = |text: &String| {
            let vm = vms.find(text).map_err(Failure::new)?;
            vm.must_live().map_err(Failure::new)?;
            must_have_begun(&vm)?;
            Ok(vm.id().to_owned())
        };
        let ids = named.iter().map(id).collect::<Result<Vec<_>, Failure>>()?;
        Ok(Self {
            named: (!ids.is_empty()).then_some(ids),
            vms,
            before: HashMap::new(),
            left_out: BTreeMap::new(),
        })
    }

    /// Says that a VM is left out.
    fn warn_of(&self, id: &str) {
        if let Some(LeftOut { why, .. }) = self.left_out.get(id) {
            say("warning", &format!("the VM {id} is left out: {why}"));
        }
    }

    /// Those that are there now.
    fn now(&mut self) -> Result<Vec<Vm>, Failure> {
        let Some(named) = &self.named else {
            let mut vms = alive()?;
            let left_out = &mut self.left_out;
            left_out.retain(|id, _| vms.iter().any(|vm| vm.id() == id));
            vms.retain(|vm| left_out.get(vm.id()).is_none_or(|of| of.looks == 0));
            return Ok(vms);
        };
        let mut vms = Vec::new();
        for id in named {
            match self.vms.find(id) {
                Ok(vm) => vms.push(vm),
                // It has ended, and nothing of it stays.
                Err(StateError::NotFound(_)) => {}
                Err(error) => return Err(Failure::new(error)),
            }
        }
        Ok(vms)
    }

    /// What the VMs have used so far, and since the last look.
    async fn take(&mut self) -> Result<Vec<Used>, Failure> {
        for left_out in self.left_out.values_mut() {
            left_out.looks = left_out.looks.saturating_sub(1);
        }
        let vms = self.now()?;
        let patience = self.named.is_none().then_some(PATIENCE);
        // Side by side: one that hangs keeps none of the others.
        let mut asked = JoinSet::new();
        let mut answers = BTreeMap::new();
        let mut left = vms.iter().cloned().enumerate();
        loop {
            for (index, vm) in left.by_ref().take(AT_ONCE.saturating_sub(asked.len())) {
                asked.spawn(async move { (index, usage(&vm, patience).await) });
            }
            let Some(answer) = asked.join_next().await else {
                break;
            };
            let (index, usage) = answer.map_err(Failure::new)?;
            answers.insert(index, usage);
        }
        let mut rows = Vec::new();
        for (vm, usage) in vms.iter().zip(answers.into_values()) {
            match usage {
                Ok(Some(usage)) => {
                    rows.push(Used::new(vm, &usage, self.before.get(vm.id())));
                    self.before.insert(vm.id().to_owned(), usage);
                    self.left_out.remove(vm.id());
                }
                Ok(None) => drop(self.left_out.remove(vm.id())),
                Err(failure) if self.named.is_some() => return Err(failure),
                Err(failure) => {
                    let why = failure.message().to_owned();
                    let left_out = LeftOut { why, looks: AGAIN };
                    let is_new = self.left_out.insert(vm.id().to_owned(), left_out);
                    if is_new.is_none() {
                        self.warn_of(vm.id());
                    }
                }
            }
        }
        Ok(rows)
    }
}

/// What a VM uses; `None` if it has ended, or is not there yet.
async fn usage(vm: &Vm, patience: Option<Duration>) -> Result<Option<Usage>, Failure> {
    let usage = async { Sandbox::attach(vm).await?.usage().await };
    let usage = match patience {
        None => usage.await,
        Some(patience) => match timeout(patience, usage).await {
            Ok(usage) => usage,
            Err(_) => {
                let why = format!("its supervisor did not answer within {patience:?}");
                return Err(Failure::new(why));
            }
        },
    };
    match usage {
        Ok(usage) => Ok(Some(usage)),
        Err(
            flashpan::Error::NotRunning
            | flashpan::Error::Starting
            | flashpan::Error::State(_)
            | flashpan::Error::VmEnded(_),
        ) => Ok(None),
        Err(error) => Err(of(vm, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_told_to_a_hundredth_and_never_divided_by_nothing() {
        assert!((percent(1, 3) - 33.33).abs() < 1e-9);
        assert!((percent(3, 2) - 150.0).abs() < 1e-9);
        assert!(percent(0, 0).abs() < 1e-9);
    }
}
