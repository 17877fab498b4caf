//! The PVH ABI: a 32-bit entry with a `hvm_start_info` in EBX
//! (Xen's docs/misc/pvh.pandoc; Linux calls it `CONFIG_PVH`).

use flashpan_devices::virtio::GuestRam;
use flashpan_protocol::phase::{CODE_KERNEL_ENTRY, PHASE_PORT};

use super::{Placed, low32, usable_ram, write};
use crate::error::BootError;
use crate::layout::{CMDLINE, ENTRY_STUB, PVH_INFO, PVH_MEMORY_MAP, PVH_MODULES};

/// `hvm_start_info.magic`.
const MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const VERSION: u32 = 1;
/// Memory map type of usable RAM.
const RAM: u32 = 1;

/// Writes the start info and the entry stub; returns the stub's address.
pub(super) fn configure(
    ram: &GuestRam,
    _cmdline_len: usize,
    initramfs: Option<Placed>,
    entry: u64,
) -> Result<u64, BootError> {
    let mut map = Vec::new();
    let usable = usable_ram(ram);
    for piece in &usable {
        map.extend(piece.address.to_le_bytes());
        map.extend(piece.len.to_le_bytes());
        map.extend(RAM.to_le_bytes());
        map.extend(0_u32.to_le_bytes());
    }
    write(ram, PVH_MEMORY_MAP, &map, "the memory map")?;
    if let Some(module) = initramfs {
        let words = [module.address, module.len, 0, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        write(ram, PVH_MODULES, &bytes, "the module list")?;
    }
    let mut info = Vec::new();
    info.extend(MAGIC.to_le_bytes());
    info.extend(VERSION.to_le_bytes());
    info.extend(0_u32.to_le_bytes()); // flags
    info.extend(u32::from(initramfs.is_some()).to_le_bytes());
    info.extend(PVH_MODULES.to_le_bytes());
    info.extend(CMDLINE.to_le_bytes());
    info.extend(0_u64.to_le_bytes()); // no ACPI tables
    info.extend(PVH_MEMORY_MAP.to_le_bytes());
    info.extend(u32::try_from(usable.len()).unwrap_or(0).to_le_bytes());
    info.extend(0_u32.to_le_bytes());
    write(ram, PVH_INFO, &info, "the start info")?;
    write(
        ram,
        ENTRY_STUB,
        &stub(low32(entry, "the kernel's PVH entry")?),
        "the entry stub",
    )?;
    Ok(ENTRY_STUB)
}

/// `out PHASE_PORT, CODE_KERNEL_ENTRY; jmp entry`, keeping EBX.
fn stub(entry: u32) -> Vec<u8> {
    let [low, high] = PHASE_PORT.to_le_bytes();
    let mut code = vec![
        0xb0,
        CODE_KERNEL_ENTRY, // mov al, code
        0x66,
        0xba,
        low,
        high, // mov dx, port
        0xee, // out dx, al
        0xb8, // mov eax, …
    ];
    code.extend(entry.to_le_bytes());
    code.extend([0xff, 0xe0]); // jmp eax
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn the_start_info_has_the_layout_of_the_abi() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let initramfs = Placed {
            address: 0x70_0000,
            len: 0x1234,
        };
        configure(&ram, 0, Some(initramfs), 0x10_0000).unwrap();
        let info: hvm_start_info = ram.read_obj(GuestAddress(PVH_INFO)).unwrap();
        assert_eq!((info.magic, info.version, info.nr_modules), (MAGIC, 1, 1));
        assert_eq!((info.memmap_entries, info.cmdline_paddr), (2, CMDLINE));
        let high: hvm_memmap_table_entry =
            ram.read_obj(GuestAddress(info.memmap_paddr + 24)).unwrap();
        assert_eq!((high.addr, high.size, high.type_), (0x10_0000, 7 << 20, 1));
    }

    #[test]
    fn the_longest_tables_do_not_run_into_each_other() {
        // Two pieces below and above the gap and conventional memory.
        const { assert!(PVH_MEMORY_MAP + 3 * 24 <= crate::layout::ZERO_PAGE) };
        const { assert!(PVH_INFO + 56 <= PVH_MODULES && PVH_MODULES + 32 <= PVH_MEMORY_MAP) };
    }
}
