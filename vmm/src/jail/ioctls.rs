//! The requests that the VMM makes of KVM, by number.
//!
//! The numbers are computed as `linux/kvm.h` does, from the size of what the
//! request passes.

use kvm_bindings::{
    KVMIO, kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_enable_cap, kvm_fpu, kvm_ioeventfd,
    kvm_irqchip, kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msr_list, kvm_msrs, kvm_pit_config,
    kvm_pit_state2, kvm_regs, kvm_sregs, kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

/// What only building and restoring a machine need.
pub(super) const BUILDING: &[u64] = &[
    plain(0x01),              // KVM_CREATE_VM
    plain(0x03),              // KVM_CHECK_EXTENSION
    plain(0x04),              // KVM_GET_VCPU_MMAP_SIZE
    both::<kvm_cpuid2>(0x05), // KVM_GET_SUPPORTED_CPUID
    // The machine.
    plain(0x41),                                // KVM_CREATE_VCPU
    write::<kvm_userspace_memory_region>(0x46), // KVM_SET_USER_MEMORY_REGION
    plain(0x47),                                // KVM_SET_TSS_ADDR
    plain(0x60),                                // KVM_CREATE_IRQCHIP
    read::<kvm_irqchip>(0x63),                  // KVM_SET_IRQCHIP
    write::<kvm_irqfd>(0x76),                   // KVM_IRQFD
    write::<kvm_pit_config>(0x77),              // KVM_CREATE_PIT2
    write::<kvm_ioeventfd>(0x79),               // KVM_IOEVENTFD
    write::<kvm_clock_data>(0x7b),              // KVM_SET_CLOCK
    write::<kvm_pit_state2>(0xa0),              // KVM_SET_PIT2
    write::<kvm_enable_cap>(0xa3),              // KVM_ENABLE_CAP
    // Its vCPUs.
    write::<kvm_regs>(0x82),        // KVM_SET_REGS
    write::<kvm_sregs>(0x84),       // KVM_SET_SREGS
    write::<kvm_msrs>(0x89),        // KVM_SET_MSRS
    write::<kvm_fpu>(0x8d),         // KVM_SET_FPU
    write::<kvm_lapic_state>(0x8f), // KVM_SET_LAPIC
    write::<kvm_cpuid2>(0x90),      // KVM_SET_CPUID2
    write::<kvm_mp_state>(0x99),    // KVM_SET_MP_STATE
    write::<kvm_vcpu_events>(0xa0), // KVM_SET_VCPU_EVENTS
    plain(0xa2),                    // KVM_SET_TSC_KHZ
    write::<kvm_debugregs>(0xa2),   // KVM_SET_DEBUGREGS
    write::<kvm_xsave>(0xa5),       // KVM_SET_XSAVE
    write::<kvm_xcrs>(0xa7),        // KVM_SET_XCRS
];

/// What a running machine needs: to run, to be saved, and to say where a vCPU
/// was that KVM gave up. The first is made for every VM exit.
pub(super) const RUNNING: &[u64] = &[
    plain(0x80), // KVM_RUN
    // The machine's state.
    both::<kvm_msr_list>(0x02),   // KVM_GET_MSR_INDEX_LIST
    both::<kvm_irqchip>(0x62),    // KVM_GET_IRQCHIP
    read::<kvm_clock_data>(0x7c), // KVM_GET_CLOCK
    read::<kvm_pit_state2>(0x9f), // KVM_GET_PIT2
    // A vCPU's state.
    read::<kvm_regs>(0x81),        // KVM_GET_REGS
    read::<kvm_sregs>(0x83),       // KVM_GET_SREGS
    both::<kvm_msrs>(0x88),        // KVM_GET_MSRS
    read::<kvm_lapic_state>(0x8e), // KVM_GET_LAPIC
    both::<kvm_cpuid2>(0x91),      // KVM_GET_CPUID2
    read::<kvm_mp_state>(0x98),    // KVM_GET_MP_STATE
    read::<kvm_vcpu_events>(0x9f), // KVM_GET_VCPU_EVENTS
    read::<kvm_debugregs>(0xa1),   // KVM_GET_DEBUGREGS
    plain(0xa3),                   // KVM_GET_TSC_KHZ
    read::<kvm_xsave>(0xa4),       // KVM_GET_XSAVE
    read::<kvm_xcrs>(0xa6),        // KVM_GET_XCRS
    plain(0xad),                   // KVM_KVMCLOCK_CTRL
];

/// `_IO`: a number, or nothing at all.
const fn plain(number: u32) -> u64 {
    ioctl_expr(_IOC_NONE, KVMIO, number, 0)
}

/// `_IOR`: KVM writes a `T`.
const fn read<T>(number: u32) -> u64 {
    ioctl_expr(_IOC_READ, KVMIO, number, size::<T>())
}

/// `_IOW`: KVM reads a `T`.
const fn write<T>(number: u32) -> u64 {
    ioctl_expr(_IOC_WRITE, KVMIO, number, size::<T>())
}

/// `_IOWR`: both.
const fn both<T>(number: u32) -> u64 {
    ioctl_expr(_IOC_READ | _IOC_WRITE, KVMIO, number, size::<T>())
}

#[allow(clippy::cast_possible_truncation, reason = "checked right here")]
const fn size<T>() -> u32 {
    // The field has 14 bits.
    assert!(size_of::<T>() < 1 << 14);
    size_of::<T>() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers as `strace` and the documentation of KVM have them.
    #[test]
    fn numbers_are_those_of_the_kernel() {
        assert_eq!(RUNNING[0], 0xae80, "KVM_RUN");
        for number in [0x8090_ae81, 0x8138_ae83, 0x8400_ae8e, 0x9000_aea4] {
            assert!(RUNNING.contains(&number), "{number:#x}");
        }
        for number in [0x4020_ae46, 0x4020_ae76, 0x4040_ae79, 0x8208_ae63] {
            assert!(BUILDING.contains(&number), "{number:#x}");
        }
    }

    /// What would change a running machine is not in the second list.
    #[test]
    fn a_running_machine_is_not_rebuilt() {
        assert!(BUILDING.iter().all(|number| !RUNNING.contains(number)));
    }
}
