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

/// QEMU with nothing but this machine, so much memory and this kernel.
fn machine(machine: &str, memory_mib: u32, kernel: &Path) -> Command {
    let mut qemu = Command::new(QEMU);
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    qemu.args(["-display", "none", "-enable-kvm", "-cpu", "host"]);
    qemu.args(["-smp", "1", "-m", &memory_mib.to_string()]);
    qemu.args(["-M", machine, "-kernel"]).arg(kernel);
    qemu
}

/// The command that boots `kernel` with `initramfs`.
pub(crate) fn command(kernel: &Path, initramfs: &Path) -> Command {
    let mut qemu = machine(MACHINE, MEMORY_MIB, kernel);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf1a4,iosize=0x1"]);
    qemu.arg("-initrd").arg(initramfs);
    qemu.args(["-append", KERNEL_ARGUMENTS]);
    qemu
}

/// Where the machine has its virtio devices, and their interrupts: all it may have, since it
/// does not say which are there.
const TRANSPORTS: [(u32, u32); 8] = [
    (0xfeb0_0000, 5),
    (0xfeb0_0200, 6),
    (0xfeb0_0400, 7),
    (0xfeb0_0600, 8),
    (0xfeb0_0800, 9),
    (0xfeb0_0a00, 10),
    (0xfeb0_0c00, 11),
    (0xfeb0_0e00, 12),
];

/// The command that boots `kernel` with the root in the EROFS image `root`, and a card on
/// QEMU's user networking. Its PID 1 sets that up, runs `program`, and waits to be ended.
pub(crate) fn with_network(kernel: &Path, root: &Path, program: &str) -> Command {
    // It would write where its devices are behind what is PID 1's.
    let name = format!("{MACHINE},auto-kernel-cmdline=off,ioapic2=off");
    let mut qemu = machine(&name, 512, kernel);
    let drive = format!(
        "id=root,format=raw,if=none,readonly=on,file={}",
        root.display()
    );
    qemu.args(["-drive", &drive, "-device", "virtio-blk-device,drive=root"]);
    qemu.args([
        "-netdev",
        "user,id=net",
        "-device",
        "virtio-net-device,netdev=net",
    ]);
    let transports = TRANSPORTS.map(|(at, irq)| format!("virtio_mmio.device=512@{at:#x}:{irq}"));
    let transports = transports.join(" ");
    let init = format!(
        "mount -t proc proc /proc; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp; ip link set lo up; \
         ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up; \
         ip route add default via 10.0.2.2; {program}; sleep 1000"
    );
    let words = format!(
        "{KERNEL_ARGUMENTS} {transports} root=/dev/vda ro rootfstype=erofs init=/bin/sh -- \
         -c \"{init}\""
    );
    qemu.args(["-append", &words]);
    qemu
}
