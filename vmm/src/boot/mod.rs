//! Everything that is put into guest memory before its first instruction:
//! kernel, initramfs, command line, MP table, and the parameters of one of two
//! boot protocols.

pub mod cmdline;
pub mod kernel;
pub mod linux64;
pub mod mptable;
pub mod pvh;

use std::fs::File;

use flashpan_devices::virtio::GuestRam;
use flashpan_protocol::control::BootProtocol;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::error::BootError;
use crate::layout::{CMDLINE, GAP_START, HIGH_RAM, IDENTITY_MAPPED, MP_TABLE};
use crate::memory::MIB;
use flashpan_protocol::control::BootFailureKind;

/// Where and how vCPU 0 begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Guest physical address of the first instruction: the entry stub.
    pub address: u64,
    /// The protocol, never [`BootProtocol::Auto`].
    pub protocol: BootProtocol,
}

/// A piece of guest memory that holds a boot artefact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u64,
}

/// Puts all of it into memory and says where to begin.
///
/// # Errors
/// If the kernel or initramfs is not usable or does not fit.
pub fn load(
    ram: &GuestRam,
    kernel: &mut File,
    initramfs: Option<&mut File>,
    protocol: BootProtocol,
    cmdline: &str,
    vcpus: u8,
) -> Result<Entry, BootError> {
    let image = kernel::load(ram, kernel)?;
    let initramfs = initramfs
        .map(|file| load_initramfs(ram, file, image.end))
        .transpose()?;
    write(
        ram,
        CMDLINE,
        &[cmdline.as_bytes(), b"\0"].concat(),
        "the command line",
    )?;
    write(ram, MP_TABLE, &mptable::build(vcpus), "the MP table")?;
    let (protocol, target) = match (protocol, image.pvh_entry) {
        (BootProtocol::Linux64, _) | (BootProtocol::Auto, None) => {
            (BootProtocol::Linux64, image.entry)
        }
        (BootProtocol::Pvh | BootProtocol::Auto, Some(entry)) => (BootProtocol::Pvh, entry),
        (BootProtocol::Pvh, None) => {
            return Err(BootError::new(
                BootFailureKind::Kernel,
                "the kernel has no PVH entry note: build it with CONFIG_PVH=y, \
                 or boot it by the 64-bit protocol",
            ));
        }
    };
    // The 64-bit entry finds the kernel by page tables, which map one GiB.
    if protocol == BootProtocol::Linux64 && image.end > IDENTITY_MAPPED {
        return Err(BootError::new(
            BootFailureKind::Kernel,
            format!(
                "the kernel ends at {} MiB, but the 64-bit boot protocol reaches {} MiB here; \
                 give one that is linked lower, or boot it by PVH",
                image.end.div_ceil(MIB),
                IDENTITY_MAPPED / MIB
            ),
        ));
    }
    let address = match protocol {
        BootProtocol::Pvh => pvh::configure(ram, cmdline.len(), initramfs, target)?,
        _ => linux64::configure(ram, cmdline.len(), initramfs, target)?,
    };
    Ok(Entry { address, protocol })
}

/// The RAM that the kernel may use, as address and length: conventional memory
/// below the MP table, then all from 1 MiB on.
pub(crate) fn usable_ram(ram: &GuestRam) -> Vec<Placed> {
    let mut usable = vec![Placed {
        address: 0,
        len: MP_TABLE,
    }];
    for region in ram.iter() {
        let start = region.start_addr().0.max(HIGH_RAM);
        let end = region.start_addr().0.saturating_add(region.len());
        usable.push(Placed {
            address: start,
            len: end.saturating_sub(start),
        });
    }
    usable
}

/// Writes `bytes` at a fixed address of the layout.
pub(crate) fn write(
    ram: &GuestRam,
    address: u64,
    bytes: &[u8],
    what: &str,
) -> Result<(), BootError> {
    ram.write_slice(bytes, GuestAddress(address))
        .map_err(|error| {
            BootError::new(
                BootFailureKind::Memory,
                format!("could not write {what} to guest memory at {address:#x}: {error}"),
            )
        })
}

/// Copies the initramfs to the end of low memory, page aligned, where it is
/// furthest from the kernel.
fn load_initramfs(ram: &GuestRam, file: &mut File, kernel_end: u64) -> Result<Placed, BootError> {
    let unreadable = |error: std::io::Error| {
        BootError::new(
            BootFailureKind::Kernel,
            format!("could not read the initramfs: {error}"),
        )
    };
    let len = file.metadata().map_err(unreadable)?.len();
    let low_end = ram.last_addr().0.saturating_add(1).min(GAP_START);
    let address = low_end.checked_sub(len).map(|start| start & !0xfff);
    let Some(address) = address.filter(|start| *start >= kernel_end) else {
        return Err(BootError::new(
            BootFailureKind::Memory,
            format!(
                "guest memory is too small: the kernel ends at {} KiB and the initramfs \
                 takes {} KiB, but there are only {} KiB; give the VM more memory",
                kernel_end / 1024,
                len / 1024,
                low_end / 1024
            ),
        ));
    };
    let count = usize::try_from(len).map_err(|e| unreadable(std::io::Error::other(e)))?;
    std::io::Seek::rewind(file).map_err(unreadable)?;
    ram.read_exact_volatile_from(GuestAddress(address), file, count)
        .map_err(|e| unreadable(std::io::Error::other(e)))?;
    Ok(Placed { address, len })
}

/// The 32-bit half of an address that the layout or a check keeps below 4 GiB.
pub(crate) fn low32(address: u64, what: &str) -> Result<u32, BootError> {
    u32::try_from(address).map_err(|_| {
        BootError::new(
            BootFailureKind::Kernel,
            format!("{what} at {address:#x} is above 4 GiB, where no boot protocol reaches it"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_beyond_the_first_page_tables_is_refused() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 2 << 30)]).unwrap();
        let boot = |memsz| {
            let mut kernel =
                kernel::tests::file(&kernel::tests::elf(62, HIGH_RAM, HIGH_RAM, memsz));
            load(&ram, &mut kernel, None, BootProtocol::Auto, "", 1)
        };
        let fits = IDENTITY_MAPPED - HIGH_RAM;
        assert_eq!(boot(fits).unwrap().protocol, BootProtocol::Linux64);
        let error = boot(fits + 1).unwrap_err();
        assert_eq!(error.kind, BootFailureKind::Kernel);
        assert!(error.message.contains("ends at 1025 MiB"), "{error}");
    }
}
