//! Boots a kernel in this process, without a supervisor and without a jail:
//! the VMM as a library.
//!
//! ```sh
//! cargo run --release -p flashpan-vmm --example boot -- VMLINUX [INITRAMFS] [-- KERNEL ARGUMENTS]
//! ```
//!
//! Prints the guest's console and, at the end, why it ended and how often it
//! left for the VMM.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use flashpan_protocol::control::{BootProtocol, Console, IoRate, VmSpec};
use flashpan_vmm::{Host, Observer, Resources, Vm, VmEvent};

/// Prints phases as they come.
struct Print;

impl Observer for Print {
    fn event(&self, event: VmEvent) {
        if let VmEvent::Phase(stamp) = event {
            eprintln!("{:>16} ns  {:?}", stamp.at_ns, stamp.phase);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = std::env::args().skip(1);
    let kernel = files
        .next()
        .ok_or("usage: boot VMLINUX [INITRAMFS] [-- KERNEL ARGUMENTS]")?;
    let rest: Vec<_> = files.collect();
    let (files, arguments) = match rest.iter().position(|word| word == "--") {
        Some(at) => (
            rest.get(..at).unwrap_or_default(),
            rest.get(at + 1..).unwrap_or_default(),
        ),
        None => (rest.as_slice(), [].as_slice()),
    };
    let initramfs = files.first().map(File::open).transpose()?;

    // The serial port writes to a pipe, which a thread copies to our output.
    let (mut console, writer) = io::pipe()?;
    let printer = std::thread::spawn(move || -> io::Result<()> {
        let mut chunk = [0; 4096];
        loop {
            match console.read(&mut chunk)? {
                0 => return Ok(()),
                len => io::stdout().write_all(chunk.get(..len).unwrap_or_default())?,
            }
        }
    });

    let spec = VmSpec {
        vcpus: std::env::var("VCPUS").map_or(1, |v| v.parse().unwrap_or(1)),
        memory_mib: 128,
        boot_protocol: BootProtocol::Auto,
        initramfs: initramfs.is_some(),
        console: if std::env::var_os("QUIET").is_some() {
            Console::Panic
        } else {
            Console::Full
        },
        kernel_args: arguments.join(" "),
        disks: Vec::new(),
        rng: true,
        network: None,
        network_rate: IoRate::default(),
        shared_memory: false,
    };
    let resources = Resources {
        kernel: File::open(kernel)?,
        initramfs,
        console: Some(File::from(std::os::fd::OwnedFd::from(writer))),
        disks: Vec::new(),
    };
    let mut vm = Vm::boot(Host::open()?, &spec, resources, Arc::new(Print))?;
    let report = vm.run();
    // With the machine its end of the console goes, and the printer ends.
    drop(vm);

    printer.join().map_err(|_| "the console thread failed")??;
    println!("\nthe guest ended: {:?}", report.reason);
    for exit in &report.stats.exits {
        println!("{:>8}  {} {}", exit.count, exit.reason, exit.detail);
    }
    Ok(())
}
