//! The 64-bit entry of the Linux/x86 boot protocol
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use flashpan_devices::virtio::GuestRam;
use flashpan_protocol::phase::{CODE_KERNEL_ENTRY, PHASE_PORT};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::ByteValued;

use super::{Placed, low32, usable_ram, write};
use crate::error::BootError;
use crate::layout::{CMDLINE, ENTRY_STUB, SETUP_DATA, ZERO_PAGE};

/// `setup_header.boot_flag`.
const BOOT_FLAG: u16 = 0xaa55;
/// `setup_header.header`, "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// `type_of_loader`: none that has a number.
const LOADER_OTHER: u8 = 0xff;
/// `kernel_alignment` of x86-64.
const KERNEL_ALIGNMENT: u32 = 0x0100_0000;
/// `e820` type of usable RAM.
const E820_RAM: u32 = 1;
/// `setup_data` type of a random seed.
const SETUP_RNG_SEED: u32 = 9;
/// Bytes of seed: what the kernel's generator takes.
const SEED_LEN: usize = 32;

#[derive(Clone, Copy)]
#[repr(transparent)]
struct ZeroPage(boot_params);

#[allow(unsafe_code)] // vm-memory's way to see a C structure as bytes.
// SAFETY: boot_params is a packed structure of integers without padding, for
// which all bit patterns are valid.
unsafe impl ByteValued for ZeroPage {}

/// Writes the zero page and the entry stub; returns the stub's address.
pub(super) fn configure(
    ram: &GuestRam,
    cmdline_len: usize,
    initramfs: Option<Placed>,
    entry: u64,
) -> Result<u64, BootError> {
    write(ram, SETUP_DATA, &seed()?, "the random seed")?;
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    params.hdr.cmd_line_ptr = low32(CMDLINE, "the command line")?;
    params.hdr.cmdline_size = u32::try_from(cmdline_len).unwrap_or(0);
    params.hdr.setup_data = SETUP_DATA;
    if let Some(initramfs) = initramfs {
        params.hdr.ramdisk_image = low32(initramfs.address, "the initramfs")?;
        params.hdr.ramdisk_size = low32(initramfs.len, "the size of the initramfs")?;
    }
    let mut entries = 0_u8;
    let mut table = params.e820_table;
    for (slot, piece) in table.iter_mut().zip(usable_ram(ram)) {
        *slot = boot_e820_entry {
            addr: piece.address,
            size: piece.len,
            r#type: E820_RAM,
        };
        entries = entries.saturating_add(1);
    }
    params.e820_table = table;
    params.e820_entries = entries;
    write(
        ram,
        ZERO_PAGE,
        ZeroPage(params).as_slice(),
        "the boot parameters",
    )?;
    write(ram, ENTRY_STUB, &stub(entry), "the entry stub")?;
    Ok(ENTRY_STUB)
}

/// `out PHASE_PORT, CODE_KERNEL_ENTRY; jmp entry`, keeping RSI, which points
/// to the zero page.
fn stub(entry: u64) -> Vec<u8> {
    let [low, high] = PHASE_PORT.to_le_bytes();
    let mut code = vec![
        0xb0,
        CODE_KERNEL_ENTRY, // mov al, code
        0x66,
        0xba,
        low,
        high, // mov dx, port
        0xee, // out dx, al
        0x49,
        0xbb, // mov r11, …
    ];
    code.extend(entry.to_le_bytes());
    code.extend([0x41, 0xff, 0xe3]); // jmp r11
    code
}

/// A `setup_data` entry with fresh random bytes.
fn seed() -> Result<Vec<u8>, BootError> {
    let mut random = [0_u8; SEED_LEN];
    #[allow(unsafe_code)] // std offers no random bytes.
    // SAFETY: the pointer and length are those of `random`.
    let got = unsafe { libc::getrandom(random.as_mut_ptr().cast(), SEED_LEN, 0) };
    if usize::try_from(got) != Ok(SEED_LEN) {
        let error = std::io::Error::last_os_error();
        return Err(BootError::host(
            "get random bytes for the guest's seed",
            &error,
        ));
    }
    let mut data = Vec::with_capacity(16 + SEED_LEN);
    data.extend(0_u64.to_le_bytes()); // next: none
    data.extend(SETUP_RNG_SEED.to_le_bytes());
    data.extend(u32::try_from(SEED_LEN).unwrap_or(0).to_le_bytes());
    data.extend(random);
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn the_zero_page_tells_of_all_memory_and_the_initramfs() {
        let ram = GuestRam::from_ranges(&[
            (GuestAddress(0), 8 << 20),
            (GuestAddress(0x1_0000_0000), 4 << 20),
        ])
        .unwrap();
        let initramfs = Placed {
            address: 0x70_0000,
            len: 0x1234,
        };
        configure(&ram, 10, Some(initramfs), 0x10_0000).unwrap();
        let ZeroPage(params) = ram.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        let hdr = params.hdr;
        assert_eq!({ hdr.ramdisk_image }, 0x70_0000);
        assert_eq!({ hdr.ramdisk_size }, 0x1234);
        assert_eq!(params.e820_entries, 3);
        let table = params.e820_table;
        let seen: Vec<_> = table[..3].iter().map(|e| (e.addr, e.size)).collect();
        let expected = [
            (0, 0x9_fc00),
            (0x10_0000, 7 << 20),
            (0x1_0000_0000, 4 << 20),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn two_seeds_differ() {
        assert_ne!(seed().unwrap(), seed().unwrap());
    }
}
