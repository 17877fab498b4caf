//! Where things are in the guest's physical address space.
//!
//! ```text
//! 0x0000_0500  GDT, IDT
//! 0x0000_6000  PVH start info, modules, memory map
//! 0x0000_7000  boot_params ("zero page")
//! 0x0000_8000  entry stub
//! 0x0000_9000  page tables: PML4, PDPT, PD
//! 0x0000_c000  setup_data (random seed)
//! 0x0002_0000  kernel command line
//! 0x0009_fc00  MP table                     end of conventional memory
//! 0x0010_0000  kernel, then anything; initramfs at the end of low RAM
//! 0xc000_0000  end of low RAM               MMIO gap
//! 0xd000_0000  virtio-mmio devices, one page each
//! 0xfec0_0000  IO-APIC        0xfee0_0000  local APICs
//! 0x1_0000_0000  RAM that did not fit below the gap
//! ```

/// Global descriptor table for the entry state.
pub const GDT: u64 = 0x500;
/// Interrupt descriptor table for the entry state; empty.
pub const IDT: u64 = 0x540;
/// `hvm_start_info` of the PVH ABI.
pub const PVH_INFO: u64 = 0x6000;
/// `hvm_modlist_entry` array.
pub const PVH_MODULES: u64 = 0x6040;
/// `hvm_memmap_table_entry` array.
pub const PVH_MEMORY_MAP: u64 = 0x6080;
/// `boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// The few instructions that mark the kernel's entry and jump there.
pub const ENTRY_STUB: u64 = 0x8000;
/// Page map level 4; the next two pages are PDPT and PD.
pub const PAGE_TABLES: u64 = 0x9000;
/// What these map onto itself.
pub const IDENTITY_MAPPED: u64 = 1 << 30;
/// A `setup_data` entry with a random seed.
pub const SETUP_DATA: u64 = 0xc000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line including its NUL: `COMMAND_LINE_SIZE` of x86 Linux.
pub const CMDLINE_MAX: usize = 2048;
/// Initial stack pointer; nothing uses it before the kernel sets its own.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The MP table: the last KiB of conventional memory, where Linux looks.
pub const MP_TABLE: u64 = 0x9_fc00;
/// Room for the MP table.
pub const MP_TABLE_MAX: usize = 0x400;
/// Where RAM goes on after the legacy hole.
pub const HIGH_RAM: u64 = 0x10_0000;
/// First address below 4 GiB that is not RAM.
pub const GAP_START: u64 = 0xc000_0000;
/// First address above the gap.
pub const GAP_END: u64 = 0x1_0000_0000;
/// First virtio-mmio device.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Bytes of address space per virtio-mmio device.
pub const MMIO_STRIDE: u64 = 0x1000;
/// IO-APIC registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM on Intel wants for real mode.
pub const KVM_TSS: usize = 0xfffb_d000;
/// First interrupt line of a virtio device; below are the PC's own.
pub const FIRST_IRQ: u32 = 5;
/// Last pin of the IO-APIC.
pub const LAST_IRQ: u32 = 23;
/// Most virtio-mmio devices: one interrupt line each.
pub const MAX_DEVICES: usize = (LAST_IRQ - FIRST_IRQ + 1) as usize;
