//! The state of a whole machine except its memory, to be saved and restored.
//!
//! Memory is the caller's, who reads it from the one machine and writes it to
//! the other through [`Vm::memory`](crate::Vm::memory). A state belongs to a
//! machine of the same description on a host with the same CPU.
//!
//! For users of the library only: the control protocol has no request for it.

use flashpan_devices::state::RestoreError;
use flashpan_devices::transport::TransportState;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cpu::state::{StateError, VcpuState, tried};
use crate::kvm::KvmVm;
use crate::legacy::LegacyState;

/// Why a machine could not be saved or restored.
#[derive(Debug, Error)]
pub enum MachineStateError {
    /// A vCPU or interrupt controller.
    #[error(transparent)]
    Kvm(#[from] StateError),
    /// A device.
    #[error(transparent)]
    Device(#[from] RestoreError),
    /// The state is that of another machine.
    #[error("the saved state has {saved} {what}, this machine {here}")]
    Mismatch {
        /// What was counted.
        what: &'static str,
        /// How many in the state.
        saved: usize,
        /// How many here.
        here: usize,
    },
    /// The machine has ended meanwhile.
    #[error("the machine has ended")]
    Ended,
}

/// A machine that stands still, without its memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmState {
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) kvm: KvmState,
    pub(crate) devices: Vec<TransportState>,
    pub(crate) legacy: LegacyState,
}

/// The parts of a machine that KVM emulates, apart from vCPUs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KvmState {
    clock: kvm_clock_data,
    pit: kvm_pit_state2,
    irqchips: Vec<kvm_irqchip>,
}

/// The interrupt controllers by KVM's numbers.
const IRQCHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

impl KvmVm {
    /// Reads clock, timer and interrupt controllers.
    pub(crate) fn save(&self) -> Result<KvmState, StateError> {
        let mut irqchips = Vec::new();
        for chip_id in IRQCHIPS {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            tried(
                "read an interrupt controller",
                self.vm().get_irqchip(&mut chip),
            )?;
            irqchips.push(chip);
        }
        let mut clock = tried("read the clock", self.vm().get_clock())?;
        // What KVM reports of its clock is not what it takes.
        clock.flags = 0;
        let pit = tried("read the timer", self.vm().get_pit2())?;
        Ok(KvmState {
            clock,
            pit,
            irqchips,
        })
    }

    /// Gives clock, timer and interrupt controllers a saved state.
    pub(crate) fn restore(&self, state: &KvmState) -> Result<(), StateError> {
        for chip in &state.irqchips {
            tried("set an interrupt controller", self.vm().set_irqchip(chip))?;
        }
        tried("set the timer", self.vm().set_pit2(&state.pit))?;
        tried("set the clock", self.vm().set_clock(&state.clock))
    }

    /// The numbers of the MSRs that the host's KVM saves.
    pub(crate) fn saved_msrs(&self) -> Result<Vec<u32>, StateError> {
        let list = tried("list the MSRs", self.kvm().get_msr_index_list())?;
        Ok(list.as_slice().to_vec())
    }
}
