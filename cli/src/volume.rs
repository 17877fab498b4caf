//! `flashpan volume`: disks with names, which outlive VMs.

use std::convert::Infallible;
use std::fmt::Write as _;

use clap::{Args, Subcommand};
use flashpan::state::{Vm, Vms};
use flashpan_rootfs::cache::Cache;
use flashpan_rootfs::volume::{Volume, Volumes};
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Failure, each, print, print_json_line};
use crate::{full, parse};

const EXAMPLES: &str = "\
Examples:
  flashpan volume create cache --size 10G
  flashpan run --disk @cache:/root/.cache -- sh -c 'date >> /root/.cache/runs'
  flashpan volume ls

Volumes are sparse files with an ext4 file system: they take as much of the host
as is written to them, and give back what is deleted.";

const CREATE_EXAMPLES: &str = "\
Examples:
  flashpan volume create cache
  flashpan volume create work --size 512M --json";

const LS_EXAMPLES: &str = "\
Examples:
  flashpan volume ls
  flashpan volume ls --json";

const RM_EXAMPLES: &str = "\
Examples:
  flashpan volume rm cache work
  flashpan volume rm -f cache        also if a VM that has stopped has it
  flashpan volume rm --json cache";

const CP_EXAMPLES: &str = "\
Examples:
  flashpan volume cp work work-before-the-upgrade
  flashpan volume cp --json work copy";

const RESIZE_EXAMPLES: &str = "\
Examples:
  flashpan volume resize cache 20G
  flashpan volume resize --json cache 20G";

/// Looks after volumes: disks with names, which outlive VMs
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Debug, Subcommand)]
enum VolumeCommand {
    Create(CreateArgs),
    Ls(LsArgs),
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    Cp(CpArgs),
    Resize(ResizeArgs),
}

/// Makes an empty volume
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
struct CreateArgs {
    /// Its name: letters, digits, `_`, `.` and `-`.
    #[arg(value_name = "NAME", value_parser = trimmed)]
    name: String,

    /// Its size, e.g. 512M or 10G; a plain number is MiB.
    #[arg(long, value_name = "SIZE", value_parser = parse::disk_size_mib, default_value = "10G")]
    size: u64,

    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Lists volumes by name
#[derive(Debug, Args)]
#[command(after_help = LS_EXAMPLES, visible_alias = "list")]
struct LsArgs {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Removes volumes and all that is in them
#[derive(Debug, Args)]
#[command(after_help = RM_EXAMPLES)]
struct RmArgs {
    /// Their names.
    #[arg(value_name = "NAME", required = true, value_parser = trimmed)]
    names: Vec<String>,

    /// Also those that a VM has which does not run, and cannot start without.
    #[arg(long, short)]
    force: bool,

    /// Say which were removed as JSON, one a line.
    #[arg(long)]
    json: bool,
}

/// Copies a volume to a new one
#[derive(Debug, Args)]
#[command(after_help = CP_EXAMPLES, visible_alias = "copy")]
struct CpArgs {
    /// The volume to copy.
    #[arg(value_name = "FROM", value_parser = trimmed)]
    from: String,

    /// The name of the new one.
    #[arg(value_name = "TO", value_parser = trimmed)]
    to: String,

    /// Show the new one as JSON.
    #[arg(long)]
    json: bool,
}

/// Makes a volume larger or smaller
#[derive(Debug, Args)]
#[command(after_help = RESIZE_EXAMPLES)]
struct ResizeArgs {
    /// Its name.
    #[arg(value_name = "NAME", value_parser = trimmed)]
    name: String,

    /// Its new size, e.g. 512M or 10G; a plain number is MiB.
    #[arg(value_name = "SIZE", value_parser = parse::disk_size_mib)]
    size: u64,

    /// Show it as JSON.
    #[arg(long)]
    json: bool,
}

/// Blanks around a name are not part of it.
#[expect(clippy::unnecessary_wraps, reason = "what clap calls may fail")]
fn trimmed(name: &str) -> Result<String, Infallible> {
    Ok(name.trim().to_owned())
}

/// Runs `flashpan volume`.
pub(crate) fn volume(args: &VolumeArgs) -> Result<u8, Failure> {
    let volumes = Volumes::user().map_err(Failure::new)?;
    let directory = volumes.directory();
    match &args.command {
        VolumeCommand::Create(args) => create(&volumes, args)?,
        VolumeCommand::Ls(args) => list(&volumes.list().map_err(Failure::new)?, args.json)?,
        VolumeCommand::Rm(args) => remove(&volumes, args)?,
        VolumeCommand::Cp(CpArgs { from, to, json }) => {
            let used = volumes.describe(from).ok().map(|volume| volume.used);
            let copied = volumes.copy(from, to);
            let volume = copied.map_err(|e| full::failure(&e, &[directory], used))?;
            if *json {
                print_json_line(&Listed::from(&volume))?;
                return Ok(0);
            }
            print(&format!("Copied volume {from} to {to}\n"))?;
        }
        VolumeCommand::Resize(args) => {
            let size = args.size.saturating_mul(parse::MIB);
            let used = volumes.describe(&args.name).ok().map(|volume| volume.used);
            let resized = volumes.resize(&args.name, size);
            let volume = resized.map_err(|e| full::failure(&e, &[directory], used))?;
            if args.json {
                print_json_line(&Listed::from(&volume))?;
                return Ok(0);
            }
            let size = mebibytes(volume.size);
            print(&format!("Resized volume {} to {size}\n", volume.name))?;
        }
    }
    Ok(0)
}

fn create(volumes: &Volumes, args: &CreateArgs) -> Result<(), Failure> {
    if args.size == 0 {
        return Err(Failure::new("create named volume: size must be > 0 MB"));
    }
    let cache = Cache::user().map_err(Failure::new)?;
    let places = [volumes.directory(), cache.path()];
    let size = args.size.saturating_mul(parse::MIB);
    let volume = volumes
        .create(&args.name, size, &cache)
        .map_err(|e| full::failure(&e, &places, None))?;
    if args.json {
        return print_json_line(&Created {
            name: &volume.name,
            size: mebibytes(volume.size),
            path: volume.path.display().to_string(),
        });
    }
    print(&format!(
        "Created volume {} ({} MB)\n",
        volume.name, args.size
    ))
}

fn remove(volumes: &Volumes, args: &RmArgs) -> Result<(), Failure> {
    let listing = match args.force {
        true => None,
        false => {
            let listing = Vms::user().and_then(|vms| vms.list());
            Some(listing.map_err(Failure::new)?)
        }
    };
    let vms = listing.as_ref().map_or(&[][..], |listing| &listing.vms);
    let damaged = listing.as_ref().and_then(|listing| listing.damaged.first());
    if let Some((id, error)) = damaged {
        return Err(Failure::new(format!(
            "which volumes the VM {id} has cannot be told ({error}); `flashpan rm {id}` first, or \
             use -f"
        )));
    }
    each(&args.names, |name| {
        if let Some(vm) = vms.iter().find(|vm| has(vm, name)) {
            let vm = vm.name().unwrap_or(vm.id());
            return Err(Failure::new(format!(
                "the VM {vm} has the volume {name}: `flashpan rm {vm}` first, or remove it with -f"
            )));
        }
        volumes.remove(name).map_err(Failure::new)?;
        if args.json {
            return print_json_line(&Removed { name });
        }
        print(&format!("Removed volume {name}\n"))
    })
}

/// Whether a VM is made with a volume. One that runs holds it besides.
fn has(vm: &Vm, volume: &str) -> bool {
    let disks = vm.record().launch.pointer("/config/extra_disks");
    let mut disks = disks.and_then(Value::as_array).into_iter().flatten();
    disks.any(|disk| {
        let path = disk.get("host_path").and_then(Value::as_str);
        path.and_then(|path| path.strip_prefix('@')) == Some(volume)
    })
}

/// A new volume in JSON.
#[derive(Debug, Serialize)]
struct Created<'a> {
    name: &'a str,
    size: String,
    path: String,
}

/// A volume that is gone, in JSON.
#[derive(Debug, Serialize)]
struct Removed<'a> {
    name: &'a str,
}

/// A volume in a list in JSON.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    size: String,
    path: String,
    size_bytes: u64,
    used_bytes: u64,
}

impl From<&Volume> for Listed {
    fn from(volume: &Volume) -> Self {
        Self {
            name: volume.name.clone(),
            size: mebibytes(volume.size),
            path: volume.path.display().to_string(),
            size_bytes: volume.size,
            used_bytes: volume.used,
        }
    }
}

fn list(volumes: &[Volume], json: bool) -> Result<(), Failure> {
    if json {
        return print_json_line(&volumes.iter().map(Listed::from).collect::<Vec<_>>());
    }
    let widest = volumes.iter().map(|volume| volume.name.len()).max();
    let width = widest.unwrap_or(0).max("NAME".len());
    let mut text = format!("{:width$}  {:>12}  {:>12}\n", "NAME", "SIZE", "USED");
    for volume in volumes {
        let (size, used) = (mebibytes(volume.size), mebibytes(volume.used));
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:width$}  {size:>12}  {used:>12}", volume.name);
    }
    print(&text)
}

/// Bytes in MiB with one decimal, which programs of others read as well.
fn mebibytes(bytes: u64) -> String {
    let tenths = u128::from(bytes) * 10 / u128::from(parse::MIB);
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal() {
        assert_eq!(mebibytes(16 << 20), "16.0 MB");
        assert_eq!(mebibytes((1 << 20) + (1 << 19)), "1.5 MB");
        assert_eq!(mebibytes(0), "0.0 MB");
        assert_eq!(mebibytes(u64::MAX), "17592186044415.9 MB");
    }
}
