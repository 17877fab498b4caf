//! Loads an uncompressed ELF kernel. Compressed images are unpacked before
//! they come here (`flashpan_kernel::image`), outside the jail's reach.

use std::fs::File;
use std::io::{Read, Seek};

use flashpan_devices::virtio::GuestRam;
use flashpan_protocol::control::BootFailureKind;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{Error as LoaderError, KernelLoader, KernelLoaderResult};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::error::BootError;
use crate::layout::{GAP_START, HIGH_RAM};
use crate::memory::MIB;

/// `e_machine` of x86-64.
const EM_X86_64: u16 = 62;

/// Most program headers of a kernel; Linux has five.
const MAX_PROGRAM_HEADERS: u16 = 64;

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// Address of the 64-bit entry.
    pub entry: u64,
    /// Address of the 32-bit PVH entry, if the kernel has the note.
    pub pvh_entry: Option<u64>,
    /// First address after the kernel and its zeroed data.
    pub end: u64,
}

/// Loads `file` to the addresses that it asks for.
///
/// # Errors
/// If it is not an x86-64 ELF kernel, is truncated, or does not fit.
pub fn load(ram: &GuestRam, file: &mut File) -> Result<Image, BootError> {
    check_header(file)?;
    let low_end = ram.last_addr().0.saturating_add(1).min(GAP_START);
    let loaded: KernelLoaderResult = Elf::load(ram, None, file, Some(GuestAddress(HIGH_RAM)))
        .map_err(|error| explain(&error, low_end))?;
    let (entry, end) = (loaded.kernel_load.0, loaded.kernel_end);
    if end > low_end {
        return Err(too_small(end, low_end));
    }
    if !(HIGH_RAM..end).contains(&entry) {
        return Err(BootError::new(
            BootFailureKind::Kernel,
            format!("not a bootable kernel: its entry {entry:#x} is outside its own segments"),
        ));
    }
    let pvh_entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => {
            Some(address.0).filter(|a| (HIGH_RAM..end).contains(a))
        }
        _ => None,
    };
    Ok(Image {
        entry,
        pvh_entry,
        end,
    })
}

/// Tells apart, before anything is loaded, what is not a kernel for us.
fn check_header(file: &mut File) -> Result<(), BootError> {
    let bad = |message: String| BootError::new(BootFailureKind::Kernel, message);
    let mut header = [0_u8; 64];
    let read = file.rewind().and_then(|()| file.read_exact(&mut header));
    if let Err(error) = read {
        return Err(bad(format!(
            "not a kernel: its first 64 bytes could not be read ({error}); \
             give an uncompressed x86-64 vmlinux"
        )));
    }
    let word = |at: usize| match (header.get(at), header.get(at + 1)) {
        (Some(low), Some(high)) => u16::from_le_bytes([*low, *high]),
        _ => 0,
    };
    if !header.starts_with(b"\x7fELF") {
        return Err(bad(
            "not a kernel: the file is not an ELF image; give an uncompressed x86-64 vmlinux"
                .to_owned(),
        ));
    }
    let (class, data, machine) = (header.get(4), header.get(5), word(18));
    if class != Some(&2) || data != Some(&1) || machine != EM_X86_64 {
        return Err(bad(format!(
            "wrong architecture: the kernel is an ELF image for machine {machine}, \
             not for x86-64 (machine {EM_X86_64})"
        )));
    }
    let headers = word(56);
    if headers == 0 || headers > MAX_PROGRAM_HEADERS {
        return Err(bad(format!(
            "not a kernel: {headers} program headers where a kernel has 1 to \
             {MAX_PROGRAM_HEADERS}; is it an object file or a module?"
        )));
    }
    Ok(())
}

/// A loader's error in the user's terms.
fn explain(error: &LoaderError, low_end: u64) -> BootError {
    use linux_loader::loader::elf::Error as ElfError;
    if matches!(error, LoaderError::Elf(ElfError::ReadKernelImage)) {
        return BootError::new(
            BootFailureKind::Kernel,
            format!(
                "could not load the kernel: either the file is truncated, or guest memory of \
                 {} MiB is too small for it",
                low_end / MIB
            ),
        );
    }
    BootError::new(
        BootFailureKind::Kernel,
        format!("could not load the kernel: {error}"),
    )
}

fn too_small(end: u64, low_end: u64) -> BootError {
    BootError::new(
        BootFailureKind::Memory,
        format!(
            "guest memory of {} MiB is too small: the kernel alone ends at {} MiB; \
             give the VM more memory",
            low_end / MIB,
            end.div_ceil(MIB)
        ),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap()
    }

    pub(in crate::boot) fn file(bytes: &[u8]) -> File {
        let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        file.write_all(bytes).unwrap();
        file
    }

    /// The smallest ELF with one loadable segment of `memsz` bytes at `paddr`.
    pub(in crate::boot) fn elf(machine: u16, entry: u64, paddr: u64, memsz: u64) -> Vec<u8> {
        let mut image = vec![0_u8; 64 + 56 + 16];
        image[..4].copy_from_slice(b"\x7fELF");
        image[4..7].copy_from_slice(&[2, 1, 1]);
        image[16..18].copy_from_slice(&2_u16.to_le_bytes());
        image[18..20].copy_from_slice(&machine.to_le_bytes());
        image[20..24].copy_from_slice(&1_u32.to_le_bytes());
        image[24..32].copy_from_slice(&entry.to_le_bytes());
        image[32..40].copy_from_slice(&64_u64.to_le_bytes());
        image[52..54].copy_from_slice(&64_u16.to_le_bytes());
        image[54..56].copy_from_slice(&56_u16.to_le_bytes());
        image[56..58].copy_from_slice(&1_u16.to_le_bytes());
        image[64..68].copy_from_slice(&1_u32.to_le_bytes());
        image[72..80].copy_from_slice(&120_u64.to_le_bytes());
        image[88..96].copy_from_slice(&paddr.to_le_bytes());
        image[96..104].copy_from_slice(&16_u64.to_le_bytes());
        image[104..112].copy_from_slice(&memsz.to_le_bytes());
        image
    }

    fn refusal(bytes: &[u8]) -> String {
        let error = load(&ram(), &mut file(bytes)).unwrap_err();
        error.message
    }

    #[test]
    fn a_small_kernel_is_loaded_where_it_asks_to_be() {
        let image = load(&ram(), &mut file(&elf(62, 0x10_0000, 0x10_0000, 0x2000))).unwrap();
        assert_eq!(
            image,
            Image {
                entry: 0x10_0000,
                pvh_entry: None,
                end: 0x10_2000
            }
        );
    }

    #[test]
    fn what_is_not_a_kernel_is_named() {
        assert!(refusal(b"short").contains("first 64 bytes"));
        assert!(refusal(&[0; 200]).contains("not an ELF image"));
        assert!(refusal(&elf(183, 0x10_0000, 0x10_0000, 16)).contains("machine 183"));
        let mut object = elf(62, 0, 0, 0);
        object[56] = 0;
        assert!(refusal(&object).contains("program headers"));
    }

    #[test]
    fn a_truncated_kernel_is_named() {
        let mut image = elf(62, 0x10_0000, 0x10_0000, 16);
        image.truncate(125);
        assert!(refusal(&image).contains("truncated"));
    }

    #[test]
    fn zeroed_data_beyond_memory_is_too_small_a_memory() {
        let message = refusal(&elf(62, 0x10_0000, 0x10_0000, 64 << 20));
        assert!(
            message.contains("too small: the kernel alone ends at 65 MiB"),
            "{message}"
        );
    }

    #[test]
    fn an_entry_outside_the_kernel_is_refused() {
        let message = refusal(&elf(62, 0x20_0000, 0x10_0000, 16));
        assert!(message.contains("outside its own segments"), "{message}");
    }

    #[test]
    fn a_segment_over_the_end_of_the_address_space_is_refused() {
        let message = refusal(&elf(62, 0x10_0000, u64::MAX - 8, 16));
        assert!(message.contains("could not load"), "{message}");
    }
}
