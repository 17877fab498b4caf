//! Boot phases and the I/O ports by which a guest reports them.
//!
//! A guest marks a phase by writing its code to [`PHASE_PORT`] (one byte, one
//! VM exit) and ends the VM by writing an [`ExitRequest`] to [`EXIT_PORT`]. The
//! ports are part of the public contract: any guest program that may use I/O
//! ports can mark the codes from [`FIRST_USER_CODE`] on for its own purposes.

use serde::{Deserialize, Serialize};

/// I/O port that takes boot phase codes, one byte each.
pub const PHASE_PORT: u16 = 0xf1a0;

/// I/O port that takes an [`ExitRequest`] code, one byte.
pub const EXIT_PORT: u16 = 0xf1a4;

/// First phase code that is free for programs in the guest.
pub const FIRST_USER_CODE: u8 = 0x80;

/// Phase code of [`Phase::KernelEntry`], written by the entry stub.
pub const CODE_KERNEL_ENTRY: u8 = 0x40;
/// Phase code of [`Phase::InitStart`], written by the guest init first of all.
pub const CODE_INIT_START: u8 = 0x41;
/// Phase code of [`Phase::InitReady`], written when the guest is set up.
pub const CODE_INIT_READY: u8 = 0x42;

/// A moment in the life of a VM, in the order in which they normally happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The command line program (or the embedder's call) began.
    ProcessStart,
    /// The VMM process runs its first instruction of `main`.
    VmmSpawned,
    /// Guest memory is mapped and registered with KVM.
    MemoryReady,
    /// Kernel and initramfs are in guest memory, vCPUs are set up.
    KernelLoaded,
    /// The first `KVM_RUN` of vCPU 0 is about to be made.
    FirstRun,
    /// The guest's first instruction: the stub in front of the kernel's entry.
    KernelEntry,
    /// PID 1 of the guest runs its first instruction of `main`.
    InitStart,
    /// The guest's agent has connected to the supervisor.
    AgentConnected,
    /// The guest has its root file system and can run programs.
    InitReady,
    /// The agent has started the command.
    CommandStarted,
    /// The first byte of the command's output has reached the supervisor.
    FirstByte,
    /// The command has ended and its status has reached the supervisor.
    CommandExited,
    /// The VMM has ended.
    Exit,
}

impl Phase {
    /// The phase that a guest marks with `code`, if it is one of ours.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            CODE_KERNEL_ENTRY => Some(Self::KernelEntry),
            CODE_INIT_START => Some(Self::InitStart),
            CODE_INIT_READY => Some(Self::InitReady),
            _ => None,
        }
    }
}

/// What a guest asks for by writing to [`EXIT_PORT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum ExitRequest {
    /// The guest has synced and unmounted; end the VM.
    PowerOff = 0x01,
    /// As power-off, but the guest asked for a restart.
    Reboot = 0x02,
}

impl ExitRequest {
    /// The request that `code` stands for, if any.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0x01 => Some(Self::PowerOff),
            0x02 => Some(Self::Reboot),
            _ => None,
        }
    }

    /// The byte to write to [`EXIT_PORT`].
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::PowerOff => 0x01,
            Self::Reboot => 0x02,
        }
    }
}
