//! `flashpan rm` and `prune`.

use std::collections::HashMap;

use clap::Args;
use flashpan::state::{StateError, Status, Vm, Vms};

use crate::failure::{Failure, each, print};
use crate::pin;
use crate::vms::life::end;
use crate::vms::outcome::{Outcome, OutcomeArgs};

const RM_EXAMPLES: &str = "\
Examples:
  flashpan rm web
  flashpan rm -f web             also if it runs
  flashpan rm --stopped          all that have stopped or crashed

A VM's disk and logs go with it; volumes and other disks stay.";

const PRUNE_EXAMPLES: &str = "\
Examples:
  flashpan prune
  flashpan prune --json

Removes all VMs that have stopped or crashed, and what killed commands left.";

/// Removes VMs with their disks and logs
#[derive(Debug, Args)]
#[command(after_help = RM_EXAMPLES, visible_alias = "remove")]
pub(crate) struct RmArgs {
    /// Ids, their beginnings, or names.
    #[arg(
        value_name = "VM",
        required_unless_present = "stopped",
        conflicts_with = "stopped"
    )]
    vms: Vec<String>,

    /// End those that run.
    #[arg(long, short)]
    force: bool,

    /// All that have stopped or crashed.
    #[arg(long)]
    stopped: bool,

    #[command(flatten)]
    outcome: OutcomeArgs,
}

/// Removes all VMs that have stopped or crashed
#[derive(Debug, Args)]
#[command(after_help = PRUNE_EXAMPLES)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    outcome: OutcomeArgs,
}

pub(crate) fn rm(args: &RmArgs) -> Result<u8, Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    if args.stopped {
        return prune_all(&vms, args.outcome).map(|_| 0);
    }
    each(&args.vms, |text| {
        let id = vms.resolve(text).map_err(Failure::new)?;
        // A damaged one's is not known.
        let name = vms.find(&id).ok();
        let name = name.as_ref().and_then(|vm| vm.name());
        remove(&vms, &id, args.force)?;
        pin::release(&id);
        let removed = Outcome {
            id: &id,
            name,
            ..Outcome::default()
        };
        args.outcome.say(removed, text)
    })?;
    Ok(0)
}

fn remove(vms: &Vms, id: &str, force: bool) -> Result<(), Failure> {
    // A damaged one can be removed, too, and cannot be ended in order.
    let alive = match vms.find(id) {
        Ok(vm) if vm.status().is_alive() => Some(vm),
        Ok(_) => None,
        Err(StateError::Damaged { .. } | StateError::Newer { .. }) if force => {
            end(id)?;
            None
        }
        Err(StateError::Damaged { .. } | StateError::Newer { .. }) => None,
        // It was there just now, and removed itself at its end.
        Err(StateError::NotFound(_)) if force => return Ok(()),
        Err(error) => return Err(Failure::new(error)),
    };
    if let Some(vm) = alive.filter(|_| force) {
        end(id)?;
        let removes_itself = vm.record().remove && vm.status() != Status::Created;
        return match vms.remove(id) {
            Err(StateError::NotFound(_)) if removes_itself => Ok(()),
            removed => removed.map_err(Failure::new),
        };
    }
    vms.remove(id).map_err(Failure::new)
}

pub(crate) fn prune(args: &PruneArgs) -> Result<u8, Failure> {
    let vms = Vms::user().map_err(Failure::new)?;
    let number = prune_all(&vms, args.outcome)?;
    if args.outcome.is_json() {
        return Ok(0);
    }
    let things = if number == 1 { "VM" } else { "VMs" };
    print(&format!("Pruned {number} {things}\n"))?;
    Ok(0)
}

/// A VM's id and name, if it has one.
fn named(vm: &Vm) -> Option<(String, String)> {
    Some((vm.id().to_owned(), vm.name()?.to_owned()))
}

fn prune_all(vms: &Vms, outcome: OutcomeArgs) -> Result<usize, Failure> {
    // Those of VMs that are gone are known to nobody.
    let names: HashMap<_, _> = match vms.list() {
        Ok(listing) => listing.vms.iter().filter_map(named).collect(),
        Err(_) => HashMap::new(),
    };
    let (removed, failures) = vms.prune().map_err(Failure::new)?;
    removed.iter().for_each(|id| pin::release(id));
    for id in &removed {
        let removed = Outcome {
            id,
            name: names.get(id).map(String::as_str),
            ..Outcome::default()
        };
        outcome.say(removed, id)?;
    }
    each(&failures, |failure| Err(Failure::new(failure)))?;
    Ok(removed.len())
}
