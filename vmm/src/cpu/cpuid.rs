//! CPUID as the guest sees it: the host's, as far as KVM supports it, with the
//! topology of this machine.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use crate::error::BootError;

/// Leaf 1, ECX: the local APIC timer has the TSC-deadline mode. KVM emulates
/// it on every host; without the bit, Linux calibrates the timer against the
/// PIT, for about 200 ms.
const ECX_TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor, see leaf 0x4000_0000.
const ECX_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, ECX: VMX, and the register that describes performance counters. A
/// guest gets neither: their registers are not part of its saved state, and
/// nested virtualisation is much code of KVM's for a hostile guest to try.
const ECX_NOT_OFFERED: u32 = (1 << 5) | (1 << 15);
/// Leaf 7, EDX: last branch records, which are performance counters too.
const EDX_ARCH_LBR: u32 = 1 << 19;
/// AMD, leaf 0x8000_0001, ECX: SVM, instruction sampling and the three kinds of
/// extended performance counters, for the same reasons.
const AMD_ECX_NOT_OFFERED: u32 = (1 << 2) | (1 << 10) | (1 << 23) | (1 << 24) | (1 << 28);

/// EBX, EDX, ECX of leaf 0 by which AMD's CPUs, and those made after them, are
/// known: "AuthenticAMD" and "HygonGenuine".
const AMD_VENDORS: [[u32; 3]; 2] = [
    [0x6874_7541, 0x6974_6e65, 0x444d_4163],
    [0x6f67_7948, 0x6e65_476e, 0x656e_6975],
];

/// Leaf 1, EDX: several logical processors in the package.
const EDX_HTT: u32 = 1 << 28;

/// Leaf 0xb, ECX bits 15:8: the level is cores.
const LEVEL_CORE: u32 = 2 << 8;
/// Leaf 0xb, ECX bits 15:8: the level is threads of a core.
const LEVEL_THREAD: u32 = 1 << 8;

/// What KVM on this host can offer to a guest.
///
/// # Errors
/// If KVM does not answer.
pub fn supported(kvm: &Kvm) -> Result<CpuId, BootError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|e| BootError::kvm("tell which CPU features it supports", e))
}

/// The CPUID of processor `id` of `count`, one thread per core, all in one
/// package.
///
/// # Errors
/// If it would have more entries than KVM takes.
pub fn for_vcpu(supported: &CpuId, id: u8, count: u8) -> Result<CpuId, BootError> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        // Topology leaves are written anew: the host's say nothing of us. Those
        // of nested virtualisation, last branch records, instruction sampling
        // and AMD's performance counters go with their feature bits.
        .filter(|entry| {
            !matches!(
                entry.function,
                0xb | 0x1c | 0x1f | 0x8000_000a | 0x8000_001b | 0x8000_001e | 0x8000_0022
            )
        })
        .copied()
        .collect();
    let amd = is_amd(&entries);
    let apic = u32::from(id);
    let cores = u32::from(count);
    for entry in &mut entries {
        match entry.function {
            0x1 => {
                entry.ecx |= ECX_TSC_DEADLINE | ECX_HYPERVISOR;
                entry.ecx &= !ECX_NOT_OFFERED;
                let brand_and_flush = entry.ebx & 0x0000_ffff;
                entry.ebx = brand_and_flush | (cores << 16) | (apic << 24);
                entry.edx = if count > 1 {
                    entry.edx | EDX_HTT
                } else {
                    entry.edx & !EDX_HTT
                };
            }
            // Deterministic cache parameters: caches are each core's own, except
            // the last level; the package has `count` cores.
            0x4 if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 0x7;
                let sharing = if level >= 3 {
                    cores.saturating_sub(1)
                } else {
                    0
                };
                entry.eax = (entry.eax & !0xffff_c000)
                    | (sharing << 14)
                    | (cores.saturating_sub(1).min(0x3f) << 26);
            }
            0x7 if entry.index == 0 => entry.edx &= !EDX_ARCH_LBR,
            // No performance counters, which `KvmVm` turns off as well.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0x8000_0001 => entry.ecx &= !AMD_ECX_NOT_OFFERED,
            // AMD: number of cores, and bits of APIC id that number them.
            // Reserved elsewhere.
            0x8000_0008 if amd => {
                let bits = cores.next_power_of_two().trailing_zeros();
                entry.ecx = (bits << 12) | cores.saturating_sub(1);
            }
            // AMD: caches shared by as many.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 0x7;
                let sharing = if level >= 3 {
                    cores.saturating_sub(1)
                } else {
                    0
                };
                entry.eax = (entry.eax & !0x03ff_c000) | (sharing << 14);
            }
            _ => {}
        }
    }
    entries.extend(topology(0xb, apic, cores));
    CpuId::from_entries(&entries)
        .map_err(|_| BootError::request(format!("{} CPUID leaves are too many", entries.len())))
}

/// Whether the CPU has AMD's leaves.
fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    let vendor = entries.iter().find(|entry| entry.function == 0);
    vendor.is_some_and(|leaf| AMD_VENDORS.contains(&[leaf.ebx, leaf.edx, leaf.ecx]))
}

/// The extended topology leaf: one thread per core, `cores` cores.
fn topology(function: u32, apic: u32, cores: u32) -> [kvm_cpuid_entry2; 3] {
    const SIGNIFICANT_INDEX: u32 = 1;
    let leaf = |index: u32, eax: u32, ebx: u32, level: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: SIGNIFICANT_INDEX,
        eax,
        ebx,
        ecx: level | index,
        edx: apic,
        ..Default::default()
    };
    let core_bits = cores.next_power_of_two().trailing_zeros();
    [
        leaf(0, 0, 1, LEVEL_THREAD),
        leaf(1, core_bits, cores, LEVEL_CORE),
        leaf(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let [amd, _] = AMD_VENDORS;
        host_of(amd)
    }

    /// A host that has everything.
    fn host_of([b, d, c]: [u32; 3]) -> CpuId {
        let leaf = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0x0, 0x20, b, c, d),
            leaf(0x1, 0, 0x0710_0800, !ECX_TSC_DEADLINE, EDX_HTT),
            leaf(0x7, 0, 0, 0, u32::MAX),
            leaf(0xa, 0x0730_0402, 1, 2, 3),
            leaf(0xb, 1, 2, 0x100, 9),
            leaf(0x1c, 1, 2, 3, 4),
            leaf(0x8000_0001, 0, 0, u32::MAX, u32::MAX),
            leaf(0x8000_0008, 0, 0, 0x701f, 0),
            leaf(0x8000_000a, 1, 8, 0, 0x1_bcff),
            leaf(0x8000_001b, 0x3ff, 0, 0, 0),
            leaf(0x8000_0022, 1, 6, 0, 0),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = cpuid
            .as_slice()
            .iter()
            .filter(|e| e.function == function && e.index == index);
        let entry = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x} is there twice");
        entry
    }

    #[test]
    fn the_deadline_timer_is_always_there() {
        let leaf = find(&for_vcpu(&host(), 0, 1).unwrap(), 1, 0);
        assert_ne!(leaf.ecx & ECX_TSC_DEADLINE, 0);
        assert_eq!(leaf.edx & EDX_HTT, 0, "one CPU is not several");
    }

    #[test]
    fn each_cpu_sees_its_own_number_and_the_count() {
        let cpuid = for_vcpu(&host(), 5, 8).unwrap();
        assert_eq!(find(&cpuid, 1, 0).ebx, 0x0508_0800);
        let core = find(&cpuid, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.edx), (3, 8, 5));
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 0x3007);
    }

    /// What is not part of a saved state is not offered either.
    #[test]
    fn there_is_no_nested_virtualisation_and_no_performance_counter() {
        let cpuid = for_vcpu(&host(), 0, 1).unwrap();
        let (vmx, pdcm) = (1 << 5, 1 << 15);
        assert_eq!(find(&cpuid, 0x1, 0).ecx & (vmx | pdcm), 0);
        assert_eq!(find(&cpuid, 0x7, 0).edx & 1 << 19, 0, "ARCH_LBR");
        let counters = find(&cpuid, 0xa, 0);
        assert_eq!((counters.eax, counters.edx), (0, 0));
        let amd = find(&cpuid, 0x8000_0001, 0).ecx;
        for (bit, name) in [
            (2, "SVM"),
            (10, "IBS"),
            (23, "PERFCTR_CORE"),
            (24, "PERFCTR_NB"),
            (28, "PERFCTR_LLC"),
        ] {
            assert_eq!(amd & 1 << bit, 0, "{name}");
        }
        for leaf in [0x1c, 0x8000_000a, 0x8000_001b, 0x8000_0022] {
            let mut leaves = cpuid.as_slice().iter();
            assert!(leaves.all(|entry| entry.function != leaf), "{leaf:#x}");
        }
        // Nothing else was taken away.
        let taken = 32 - 2;
        assert_eq!(find(&cpuid, 0x1, 0).ecx.count_ones(), taken);
        assert_eq!(amd.count_ones(), 32 - 5);
    }

    #[test]
    fn amd_leaves_are_written_on_amd_only() {
        let [_, hygon] = AMD_VENDORS;
        let intel = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];
        let cores = |vendor| {
            let cpuid = for_vcpu(&host_of(vendor), 5, 8).unwrap();
            find(&cpuid, 0x8000_0008, 0).ecx
        };
        assert_eq!(cores(hygon), 0x3007);
        assert_eq!(cores(intel), 0x701f, "as the host has it");
    }
}
