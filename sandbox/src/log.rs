//! What is known of a VM, whether it ever came up or not.

use std::sync::Arc;

use crate::disk::FullDisk;
use crate::shared::Shared;
use crate::timeline::Report;

/// What became known of a VM: while it boots, while it runs, and after its end.
/// It does not keep the VM alive.
#[derive(Debug, Clone)]
pub struct VmLog {
    shared: Arc<Shared>,
}

impl VmLog {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// When which phase was reached so far.
    #[must_use]
    pub fn timeline(&self) -> Report {
        self.shared.timeline().report()
    }

    /// The last console output, at most 64 KiB, as the guest wrote it: not fit
    /// for a terminal.
    #[must_use]
    pub fn console(&self) -> Vec<u8> {
        self.shared.console()
    }

    /// Disks for which the host had no room, as far as the VMM has said: at the
    /// end, and whenever it was asked for its counters.
    #[must_use]
    pub fn full_disks(&self) -> Vec<FullDisk> {
        self.shared.full_disks()
    }

    /// What went wrong in the guest without preventing it from working, one
    /// line each, free of control characters. Each is returned once.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<String> {
        self.shared.take_warnings()
    }
}
