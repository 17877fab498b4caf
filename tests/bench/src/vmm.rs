//! Our VMM alone, in one process, without supervisor and agent: what compares
//! with a peer that has neither.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::{env, io};

use anyhow::{Context, Result, bail};
use flashpan_protocol::control::{BootProtocol, Console, ExitReason, IoRate, VmSpec};
use flashpan_vmm::{Host, Observer, Resources, Vm, VmEvent};
use serde_json::json;

use crate::MEMORY_MIB;

/// Nobody is told anything.
struct Nobody;

impl Observer for Nobody {
    fn event(&self, _: VmEvent) {}
}

/// This program again, as the VMM.
pub(crate) fn command(kernel: &Path, initramfs: &Path) -> io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("vmm").arg(kernel).arg(initramfs);
    Ok(command)
}

/// Boots and prints the counters as JSON.
pub(crate) fn run(kernel: &Path, initramfs: &Path) -> Result<()> {
    let spec = VmSpec {
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        boot_protocol: BootProtocol::Auto,
        initramfs: true,
        console: Console::Off,
        kernel_args: String::new(),
        disks: Vec::new(),
        rng: true,
        network: None,
        network_rate: IoRate::default(),
        shared_memory: false,
    };
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let resources = Resources {
        kernel: open(kernel)?,
        initramfs: Some(open(initramfs)?),
        console: None,
        disks: Vec::new(),
    };
    let report = Vm::boot(Host::open()?, &spec, resources, Arc::new(Nobody))?.run();
    if !matches!(report.reason, ExitReason::Requested(_)) {
        bail!("the guest ended by {:?}", report.reason);
    }
    let exits: u64 = report.stats.exits.iter().map(|exit| exit.count).sum();
    println!(
        "{}",
        json!({ "exits": exits, "by_reason": report.stats.exits })
    );
    Ok(())
}
