//! The virtual machine as KVM sees it: memory, interrupt controllers, vCPUs.
#![allow(unsafe_code)] // KVM is handed host addresses.

use std::io;

use flashpan_protocol::control::BootFailureKind;
use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_PMU_CAPABILITY, KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE,
    kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::error::BootError;
use crate::layout::KVM_TSS;
use crate::memory::GuestMemory;
use crate::resident::ResidentSize;

/// What we cannot do without.
const NEEDED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// What a VMM needs of its host by name. Opened first of all, so that nothing
/// has to be opened later.
#[derive(Debug)]
pub struct Host {
    pub(crate) kvm: Kvm,
    pub(crate) resident: ResidentSize,
}

impl Host {
    /// Opens KVM and checks that it is one that we can use.
    ///
    /// # Errors
    /// If there is none, it is forbidden, or it lacks something.
    pub fn open() -> Result<Self, BootError> {
        Ok(Self {
            kvm: open()?,
            resident: ResidentSize::open(),
        })
    }
}

/// A virtual machine in KVM.
#[derive(Debug)]
pub(crate) struct KvmVm {
    kvm: Kvm,
    vm: VmFd,
}

impl KvmVm {
    /// Makes a machine with this memory, an interrupt controller and a timer.
    pub(crate) fn new(kvm: Kvm, memory: &GuestMemory) -> Result<Self, BootError> {
        let vm = kvm
            .create_vm()
            .map_err(|e| BootError::kvm("create a virtual machine", e))?;
        disable_counters(&kvm, &vm)?;
        vm.set_tss_address(KVM_TSS)
            .map_err(|e| BootError::kvm("set the TSS address", e))?;
        vm.create_irq_chip()
            .map_err(|e| BootError::kvm("create interrupt controllers", e))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit)
            .map_err(|e| BootError::kvm("create a timer", e))?;
        for (slot, (guest, host, len)) in (0..).zip(memory.pieces()) {
            let region = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: guest,
                memory_size: len,
                userspace_addr: host,
                flags: 0,
            };
            // SAFETY: the range is a live shared mapping that nothing else in
            // this process treats as ordinary memory, and that is unmapped only
            // after this machine is gone (order of fields in `Vm`).
            unsafe { vm.set_user_memory_region(region) }
                .map_err(|e| BootError::kvm("take the guest's memory", e))?;
        }
        Ok(Self { kvm, vm })
    }

    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    pub(crate) fn vm(&self) -> &VmFd {
        &self.vm
    }

    pub(crate) fn create_vcpu(&self, id: u8) -> Result<VcpuFd, BootError> {
        self.vm
            .create_vcpu(u64::from(id))
            .map_err(|e| BootError::kvm("create a vCPU", e))
    }

    /// Lets KVM pulse interrupt line `irq` whenever `event` is written.
    pub(crate) fn bind_interrupt(&self, event: &EventFd, irq: u32) -> Result<(), BootError> {
        self.vm
            .register_irqfd(event, irq)
            .map_err(|e| BootError::kvm("bind an interrupt to an event", e))
    }

    /// Lets KVM write `event` whenever the guest writes `value` to `address`.
    pub(crate) fn bind_kick(
        &self,
        event: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), BootError> {
        self.vm
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(|e| BootError::kvm("bind a queue notification to an event", e))
    }
}

/// Takes the performance counters away, where KVM lets us (since Linux 5.18);
/// elsewhere the guest only does not learn of them. Before any vCPU is made.
fn disable_counters(kvm: &Kvm, vm: &VmFd) -> Result<(), BootError> {
    let offered = kvm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if u32::try_from(offered).is_ok_and(|offered| offered & KVM_PMU_CAP_DISABLE != 0) {
        let cap = kvm_enable_cap {
            cap: KVM_CAP_PMU_CAPABILITY,
            args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
            ..Default::default()
        };
        vm.enable_cap(&cap)
            .map_err(|e| BootError::kvm("disable performance counters", e))?;
    }
    Ok(())
}

/// Opens KVM and checks that it is one that we can use.
fn open() -> Result<Kvm, BootError> {
    let kvm = Kvm::new().map_err(|error| {
        let why = io::Error::from_raw_os_error(error.errno());
        let advice = match error.errno() {
            libc::ENOENT => {
                "the host has no KVM: load the module kvm_intel or kvm_amd, and \
                             enable virtualisation in the firmware (or nested virtualisation)"
            }
            libc::EACCES | libc::EPERM => {
                "you may not open it: join the group that owns it, usually `kvm`"
            }
            _ => "run `flashpan doctor`",
        };
        BootError::new(
            BootFailureKind::Kvm,
            format!("could not open /dev/kvm: {why}; {advice}"),
        )
    })?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(BootError::new(
            BootFailureKind::Kvm,
            format!("/dev/kvm has API version {version}, but only {KVM_API_VERSION} is known"),
        ));
    }
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, n)| *n)
        .collect();
    if missing.is_empty() {
        Ok(kvm)
    } else {
        Err(BootError::new(
            BootFailureKind::Kvm,
            format!(
                "the host's KVM lacks {}; use a newer kernel",
                missing.join(", ")
            ),
        ))
    }
}
