//! A peer: QEMU's microvm machine without ACPI, entered by PVH from the same
//! uncompressed kernel.
//!
//! Everything is off that a guest without ACPI can do without. Some boots then
//! wait for a second or more, so the least of several runs is what counts.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::MEMORY_MIB;

/// QEMU's program.
const QEMU: &str = "qemu-system-x86_64";

/// The machine with what is off.
const MACHINE: &str = "microvm,pit=off,pic=off,rtc=off,isa-serial=off,acpi=off";

/// What QEMU ends with when the guest writes 1 to `isa-debug-exit`.
pub(crate) const STATUS_OF_EXIT_PORT: i32 = 3;

/// The same words as flashpan gives its guests, without a console.
const KERNEL_ARGUMENTS: &str = "reboot=k panic=-1 tsc=reliable no_timer_check \
                                random.trust_cpu=on swiotlb=noforce cryptomgr.notests \
                                quiet loglevel=0 8250.nr_uarts=0";

/// Its name and version.
pub(crate) fn name() -> Result<String> {
    let output = Command::new(QEMU)
        .arg("--version")
        .output()
        .context("start QEMU")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .split_whitespace()
        .nth(3)
        .unwrap_or("of unknown version");
    Ok(format!("qemu-microvm {version}"))
}

/// The command that boots `kernel` with `initramfs`.
pub(crate) fn command(kernel: &Path, initramfs: &Path) -> Command {
    let mut qemu = Command::new(QEMU);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    qemu.args(["-M", MACHINE]);
    qemu.args([
        "-enable-kvm",
        "-cpu",
        "host",
        "-smp",
        "1",
        "-m",
        &MEMORY_MIB.to_string(),
    ]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf1a4,iosize=0x1"]);
    qemu.arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs);
    qemu.args(["-append", KERNEL_ARGUMENTS]);
    qemu
}
