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
        // Topology leaves are written anew: the host's say nothing of us.
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_001e))
        .copied()
        .collect();
    let apic = u32::from(id);
    let cores = u32::from(count);
    for entry in &mut entries {
        match entry.function {
            0x1 => {
                entry.ecx |= ECX_TSC_DEADLINE | ECX_HYPERVISOR;
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
            // No performance counters: their MSRs are not part of our state.
            0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // AMD: number of cores, and bits of APIC id that number them.
            0x8000_0008 => {
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
        let leaf = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0x1, 0, 0x0710_0800, 0, EDX_HTT),
            leaf(0xb, 1, 2, 0x100, 9),
            leaf(0x8000_0008, 0, 0, 0x701f, 0),
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
}
