//! The state in which a vCPU begins.

use flashpan_devices::virtio::GuestRam;
use flashpan_protocol::control::BootProtocol;
use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::boot::{Entry, write};
use crate::error::BootError;
use crate::layout::{BOOT_STACK, GDT, IDT, PAGE_TABLES, PVH_INFO, ZERO_PAGE};

/// CR0: protected mode.
const CR0_PE: u64 = 1;
/// CR0: the extension type bit, always one on x86-64.
const CR0_ET: u64 = 1 << 4;
/// CR0: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled, and active.
const EFER_LME_LMA: u64 = (1 << 8) | (1 << 10);
/// RFLAGS: the bit that is always one.
const RFLAGS_FIXED: u64 = 2;
/// x87 control word after FNINIT.
const FPU_CONTROL: u16 = 0x37f;
/// SSE control after reset.
const MXCSR: u32 = 0x1f80;

/// `IA32_MISC_ENABLE`.
const MSR_MISC_ENABLE: u32 = 0x1a0;
/// Its bit for fast string operations, which Linux checks for `rep movsb`.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// `IA32_MTRRdefType`.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back: guest memory is ordinary memory.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// Selectors of code and data: `__BOOT_CS` and `__BOOT_DS` of the 64-bit boot
/// protocol.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
/// Selector of the task segment, which a CPU must have.
const BOOT_TASK: u16 = 0x20;
/// Bytes of the descriptor table.
const GDT_LEN: u16 = 5 * 8;
const _: () = assert!(GDT + GDT_LEN as u64 <= IDT);

/// Local APIC register offsets of LVT LINT0 and LINT1.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery modes of an LVT register, bits 10:8.
const DELIVER_NMI: u32 = 0x400;
const DELIVER_EXT_INT: u32 = 0x700;

/// Page table entry bits: present and writable.
const PTE_RW: u64 = 3;
/// Page directory entry bit: maps 2 MiB.
const PDE_LARGE: u64 = 1 << 7;

/// Writes the tables that the entry state of vCPU 0 points to.
///
/// # Errors
/// If guest memory is too small.
pub fn write_tables(ram: &GuestRam, protocol: BootProtocol) -> Result<(), BootError> {
    let gdt: Vec<u8> = descriptors(protocol)
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    write(ram, GDT, &gdt, "the descriptor table")?;
    write(ram, IDT, &[0; 8], "the interrupt table")?;
    if protocol == BootProtocol::Linux64 {
        // The first GiB onto itself, in pages of 2 MiB.
        let (pdpt, pd) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
        write(
            ram,
            PAGE_TABLES,
            &(pdpt | PTE_RW).to_le_bytes(),
            "the page tables",
        )?;
        write(ram, pdpt, &(pd | PTE_RW).to_le_bytes(), "the page tables")?;
        let entries: Vec<u8> = (0..512_u64)
            .flat_map(|page| ((page << 21) | PDE_LARGE | PTE_RW).to_le_bytes())
            .collect();
        write(ram, pd, &entries, "the page tables")?;
    }
    Ok(())
}

/// Sets the registers of a vCPU. Only processor 0 begins at `entry`; the
/// others wait for the kernel to start them.
///
/// # Errors
/// If KVM refuses a register.
pub fn set_registers(vcpu: &VcpuFd, id: u8, entry: Entry) -> Result<(), BootError> {
    set_msrs(vcpu)?;
    set_local_interrupts(vcpu)?;
    if id != 0 {
        return Ok(());
    }
    let fpu = kvm_fpu {
        fcw: FPU_CONTROL,
        mxcsr: MXCSR,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(|e| BootError::kvm("set the FPU", e))?;
    let mut regs = kvm_regs {
        rip: entry.address,
        rflags: RFLAGS_FIXED,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        ..Default::default()
    };
    match entry.protocol {
        BootProtocol::Pvh => regs.rbx = PVH_INFO,
        _ => regs.rsi = ZERO_PAGE,
    }
    vcpu.set_regs(&regs)
        .map_err(|e| BootError::kvm("set the registers", e))?;
    set_special(vcpu, entry.protocol)
}

/// Segments, control registers and table pointers of processor 0.
fn set_special(vcpu: &VcpuFd, protocol: BootProtocol) -> Result<(), BootError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|e| BootError::kvm("read the special registers", e))?;
    make_special(&mut sregs, protocol);
    vcpu.set_sregs(&sregs)
        .map_err(|e| BootError::kvm("set the special registers", e))
}

/// Whatever was there: a CPU after reset has its caches off, for one.
fn make_special(sregs: &mut kvm_sregs, protocol: BootProtocol) {
    let [.., code, data, task] = descriptors(protocol);
    let data = segment(data, BOOT_DS);
    sregs.cs = segment(code, BOOT_CS);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(task, BOOT_TASK);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = GDT_LEN - 1;
    sregs.idt.base = IDT;
    sregs.idt.limit = 7;
    if protocol == BootProtocol::Pvh {
        (sregs.cr0, sregs.cr4, sregs.efer) = (CR0_PE | CR0_ET, 0, 0);
    } else {
        sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
        sregs.cr3 = PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME_LMA;
    }
}

/// Null twice, code, data and task descriptor, flat, as the protocol wants
/// them.
fn descriptors(protocol: BootProtocol) -> [u64; 5] {
    // Flags: bits 3:0 granularity, default size, long, available; then the
    // access byte (Intel SDM vol. 3, 3.4.5).
    if protocol == BootProtocol::Pvh {
        [
            0,
            0,
            descriptor(0xc, 0x9b),
            descriptor(0xc, 0x93),
            descriptor(0, 0x8b),
        ]
    } else {
        [
            0,
            0,
            descriptor(0xa, 0x9b),
            descriptor(0xc, 0x93),
            descriptor(0x8, 0x8b),
        ]
    }
}

/// A descriptor with base 0 and limit 0xfffff (in units that `flags` choose),
/// except for a task segment of bytes, whose limit is 0x67.
fn descriptor(flags: u64, access: u64) -> u64 {
    let limit: u64 = if access == 0x8b && flags == 0 {
        0x67
    } else {
        0xf_ffff
    };
    (limit & 0xffff) | (access << 40) | ((limit >> 16) << 48) | (flags << 52)
}

/// The unpacked form of a descriptor, with its selector.
fn segment(descriptor: u64, selector: u16) -> kvm_segment {
    let bits = |low: u32, count: u32| -> u8 {
        let mask = (1_u64 << count) - 1;
        u8::try_from((descriptor >> low) & mask).unwrap_or(0)
    };
    let raw = (descriptor & 0xffff) | ((descriptor >> 32) & 0xf_0000);
    let granular = bits(55, 1);
    let limit = if granular == 1 {
        (raw << 12) | 0xfff
    } else {
        raw
    };
    kvm_segment {
        base: 0,
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
        selector,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: granular,
        unusable: 0,
        padding: 0,
    }
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), BootError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| BootError::request("too many model specific registers"))?;
    let set = vcpu
        .set_msrs(&msrs)
        .map_err(|e| BootError::kvm("set the MSRs", e))?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => Err(BootError::new(
            flashpan_protocol::control::BootFailureKind::Kvm,
            format!("KVM refused to set MSR {:#x}", refused.index),
        )),
    }
}

/// LINT0 takes the 8259's interrupts, LINT1 is NMI, as the MP table says.
fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), BootError> {
    let mut lapic = vcpu
        .get_lapic()
        .map_err(|e| BootError::kvm("read the local APIC (is it in KVM?)", e))?;
    for (offset, mode) in [(LVT_LINT0, DELIVER_EXT_INT), (LVT_LINT1, DELIVER_NMI)] {
        if let Some(register) = lapic.regs.get_mut(offset..offset + 4) {
            for (to, from) in register.iter_mut().zip(mode.to_le_bytes()) {
                *to = i8::from_le_bytes([from]);
            }
        }
    }
    vcpu.set_lapic(&lapic)
        .map_err(|e| BootError::kvm("set the local APIC", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_unpack_to_what_the_protocols_ask_for() {
        let [_, _, code, data, _] = descriptors(BootProtocol::Linux64);
        let code = segment(code, BOOT_CS);
        assert_eq!(
            (code.l, code.db, code.type_, code.limit),
            (1, 0, 0xb, u32::MAX)
        );
        let data = segment(data, BOOT_DS);
        assert_eq!((data.l, data.db, data.type_, data.selector), (0, 1, 3, 24));
        let [_, _, code, _, task] = descriptors(BootProtocol::Pvh);
        let code = segment(code, BOOT_CS);
        assert_eq!((code.l, code.db, code.limit), (0, 1, u32::MAX));
        let task = segment(task, BOOT_TASK);
        assert_eq!((task.limit, task.type_, task.s), (0x67, 0xb, 0));
    }

    /// boot.rst, "64-bit Boot Protocol": `__BOOT_CS` and `__BOOT_DS`, paging on,
    /// and nothing left of the state after reset, in which caches are off.
    #[test]
    fn the_entry_state_is_that_of_the_protocol() {
        let reset = || kvm_sregs {
            cr0: 0x6000_0010,
            cr4: u64::MAX,
            efer: u64::MAX,
            ..Default::default()
        };
        let mut linux = reset();
        make_special(&mut linux, BootProtocol::Linux64);
        assert_eq!(linux.cs.selector, 0x10);
        for data in [linux.ds, linux.es, linux.ss] {
            assert_eq!(data.selector, 0x18);
        }
        assert_eq!((linux.cr0, linux.cr4), (0x8000_0011, 0x20));
        assert_eq!(linux.efer, 0x500);
        let mut pvh = reset();
        make_special(&mut pvh, BootProtocol::Pvh);
        assert_eq!((pvh.cr0, pvh.cr4, pvh.efer), (0x11, 0, 0));

        // The table in memory is the one that the selectors mean.
        let ram = GuestRam::from_ranges(&[(vm_memory::GuestAddress(0), 1 << 20)]).unwrap();
        write_tables(&ram, BootProtocol::Linux64).unwrap();
        let entry = |selector: u16| -> u64 {
            let at = GDT + u64::from(selector);
            vm_memory::Bytes::read_obj(&ram, vm_memory::GuestAddress(at)).unwrap()
        };
        assert_eq!(entry(0x10), 0x00af_9b00_0000_ffff);
        assert_eq!(entry(0x18), 0x00cf_9300_0000_ffff);
        assert!(usize::from(linux.gdt.limit) + 1 == 40);
    }
}
