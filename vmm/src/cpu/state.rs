//! The state of a vCPU, to be saved and restored.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// `IA32_TIME_STAMP_COUNTER`.
const MSR_TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`: must be set after the TSC, or a timer that is due
/// never fires.
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Which call of KVM failed.
#[derive(Debug, Error)]
pub enum StateError {
    /// A read or write of a register group.
    #[error("KVM could not {what}: {error}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: kvm_ioctls::Error,
    },
    /// The vCPUs run.
    #[error("the state of vCPUs that run cannot be saved or restored: pause them first")]
    Running,
    /// An MSR that was saved cannot be set.
    #[error("KVM refused MSR {index:#x} of the saved state")]
    Msr {
        /// Its number.
        index: u32,
    },
    /// The saved state has lists that are too long.
    #[error("the saved state has too many {0}")]
    TooMany(&'static str),
}

/// Everything of a vCPU that its guest can notice.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// The XSAVE area, as KVM lays it out.
    xsave: Vec<u32>,
    xcrs: kvm_xcrs,
    debugregs: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    msrs: Vec<kvm_msr_entry>,
}

/// Names the call that failed.
pub(crate) fn tried<T>(
    what: &'static str,
    result: Result<T, kvm_ioctls::Error>,
) -> Result<T, StateError> {
    result.map_err(|error| StateError::Kvm { what, error })
}

/// Reads the state of a vCPU that stands still. `msrs` are the numbers of the
/// registers to save, as KVM lists them for the host.
///
/// # Errors
/// If KVM does not give a register.
pub fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<VcpuState, StateError> {
    // The multiprocessing state first: reading it lets KVM finish what is
    // pending in the local APIC.
    let mp_state = tried("read the run state", vcpu.get_mp_state())?;
    Ok(VcpuState {
        mp_state,
        regs: tried("read the registers", vcpu.get_regs())?,
        sregs: tried("read the special registers", vcpu.get_sregs())?,
        xsave: tried("read the FPU", vcpu.get_xsave())?.region.to_vec(),
        xcrs: tried("read the extended control registers", vcpu.get_xcrs())?,
        debugregs: tried("read the debug registers", vcpu.get_debug_regs())?,
        lapic: tried("read the local APIC", vcpu.get_lapic())?,
        tsc_khz: tried("read the TSC frequency", vcpu.get_tsc_khz())?,
        cpuid: tried("read the CPUID", vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES))?
            .as_slice()
            .to_vec(),
        msrs: with_due_timer(save_msrs(vcpu, msrs)?),
        events: tried("read the pending events", vcpu.get_vcpu_events())?,
    })
}

/// Gives a fresh vCPU a saved state.
///
/// # Errors
/// If KVM refuses a register, as on a host with another CPU.
pub fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), StateError> {
    let cpuid =
        CpuId::from_entries(&state.cpuid).map_err(|_| StateError::TooMany("CPUID entries"))?;
    tried("set the CPUID", vcpu.set_cpuid2(&cpuid))?;
    tried("set the TSC frequency", vcpu.set_tsc_khz(state.tsc_khz))?;
    tried("set the run state", vcpu.set_mp_state(state.mp_state))?;
    tried("set the registers", vcpu.set_regs(&state.regs))?;
    tried("set the special registers", vcpu.set_sregs(&state.sregs))?;
    let region = state.xsave.as_slice().try_into();
    let region = region.map_err(|_| StateError::TooMany("bytes of FPU state"))?;
    let xsave = kvm_xsave {
        region,
        ..Default::default()
    };
    #[allow(unsafe_code)] // kvm-ioctls leaves the size of the buffer to us.
    // SAFETY: no XSAVE feature beyond the 4 KiB of `kvm_xsave` is enabled for
    // this process, which KVM requires before it uses more.
    tried("set the FPU", unsafe { vcpu.set_xsave(&xsave) })?;
    tried(
        "set the extended control registers",
        vcpu.set_xcrs(&state.xcrs),
    )?;
    tried(
        "set the debug registers",
        vcpu.set_debug_regs(&state.debugregs),
    )?;
    tried("set the local APIC", vcpu.set_lapic(&state.lapic))?;
    let (last, first): (Vec<_>, Vec<_>) = state
        .msrs
        .iter()
        .copied()
        .partition(|msr| msr.index == MSR_TSC_DEADLINE);
    restore_msrs(vcpu, &first)?;
    restore_msrs(vcpu, &last)?;
    tried(
        "set the pending events",
        vcpu.set_vcpu_events(&state.events),
    )
}

/// A deadline of zero is a timer that is not set, or one that has expired and
/// whose interrupt KVM has not delivered yet, which is not part of what it gives.
/// A guest that waits for that one would wait for ever; so the deadline is now.
/// To a guest that had set none this is one interrupt without a cause, which
/// every guest has to bear.
fn with_due_timer(mut msrs: Vec<kvm_msr_entry>) -> Vec<kvm_msr_entry> {
    let tsc = msrs.iter().find(|msr| msr.index == MSR_TSC);
    if let Some(now) = tsc.map(|msr| msr.data) {
        for msr in &mut msrs {
            if msr.index == MSR_TSC_DEADLINE && msr.data == 0 {
                msr.data = now;
            }
        }
    }
    msrs
}

/// Reads those of `indices` that this vCPU has.
fn save_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, StateError> {
    let mut saved = Vec::new();
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<_> = rest
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| StateError::TooMany("MSRs"))?;
        let read = tried("read the MSRs", vcpu.get_msrs(&mut msrs))?;
        saved.extend(msrs.as_slice().iter().take(read));
        // KVM stops at the first one that the vCPU does not have: skip it.
        rest = rest.get(read.saturating_add(1)..).unwrap_or_default();
    }
    Ok(saved)
}

fn restore_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), StateError> {
    let msrs = Msrs::from_entries(entries).map_err(|_| StateError::TooMany("MSRs"))?;
    let set = tried("set the MSRs", vcpu.set_msrs(&msrs))?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => Err(StateError::Msr {
            index: refused.index,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(deadline: u64) -> Vec<(u32, u64)> {
        let msr = |index, data| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let msrs = vec![
            msr(0x174, 0),
            msr(MSR_TSC_DEADLINE, deadline),
            msr(MSR_TSC, 5000),
        ];
        let msrs = with_due_timer(msrs);
        msrs.iter().map(|msr| (msr.index, msr.data)).collect()
    }

    /// A timer that has expired, but whose interrupt is still to come, fires
    /// after the restore; one that is still to expire is as it was.
    #[test]
    fn an_expired_timer_is_due_after_a_restore() {
        let expected = |deadline| [(0x174, 0), (MSR_TSC_DEADLINE, deadline), (MSR_TSC, 5000)];
        assert_eq!(saved(0), expected(5000));
        assert_eq!(saved(7000), expected(7000));
    }
}
