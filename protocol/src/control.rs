//! Supervisor to VMM process, over a `SOCK_SEQPACKET` socket pair.
//!
//! One packet is one postcard message; the kernel keeps the boundaries, and
//! the file descriptors that belong to a message travel with its packet
//! (`SCM_RIGHTS`). The VMM finds its end as descriptor [`CONTROL_FD`].
//!
//! The supervisor speaks first: [`Request::Hello`], answered by
//! [`Event::Hello`]; then [`Request::Boot`]. Everything else follows from what
//! happens. [`Event::Exited`] is the last packet. Either side ends when the
//! other's socket closes.

use std::num::NonZeroU64;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::frame::{FrameError, from_bytes};
use crate::network::{End, Link, NotOpened, Protocol, Refusal, Tuple};
use crate::phase::{ExitRequest, Phase};

/// Version of this protocol; both hellos carry it and must agree.
pub const VERSION: u32 = 6;

/// The descriptor at which the VMM process finds its control socket.
pub const CONTROL_FD: i32 = 3;

/// Longest packet, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// Most file descriptors in one packet.
pub const MAX_FDS: usize = 32;

/// Fewest and most vCPUs of a VM.
pub const VCPUS: std::ops::RangeInclusive<u8> = 1..=32;

/// Most disks of a VM.
pub const MAX_DISKS: usize = 16;

/// Longest disk serial number (virtio 1.2 §5.2.6: `GET_ID` is 20 bytes).
pub const MAX_DISK_ID: usize = 20;

/// From the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first message.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// Build the VM and run it. The descriptors come in this order: kernel,
    /// initramfs (if [`VmSpec::initramfs`]), console pipe (if
    /// [`VmSpec::console`] is not [`Console::Off`]), then one per disk.
    Boot(Box<VmSpec>),
    /// Connect the stream socket that comes with this packet to a port on
    /// which the guest listens. Answered by [`Event::Connected`] or
    /// [`Event::Refused`].
    Connect {
        /// Chosen by the supervisor.
        id: u64,
        /// Port in the guest.
        port: u32,
    },
    /// Let a connection of the guest ([`Event::Incoming`]) be made.
    Accept {
        /// The VMM's number of it.
        id: u64,
    },
    /// Refuse a connection of the guest.
    Reject {
        /// The VMM's number of it.
        id: u64,
    },
    /// Let a flow of the guest ([`Event::FlowAsked`]) be.
    FlowAccept {
        /// The VMM's number of it.
        id: u64,
    },
    /// Refuse a flow of the guest.
    FlowRefuse {
        /// The VMM's number of it.
        id: u64,
        /// What the guest gets instead.
        why: Refusal,
    },
    /// End a flow that was accepted or opened: a connection with a reset.
    FlowClose {
        /// The VMM's number of it.
        id: u64,
    },
    /// Connect the stream socket that comes with this packet to a TCP port of the
    /// guest, at the IPv4 address of its card. Answered by [`Event::FlowOpened`] or
    /// [`Event::FlowNotOpened`].
    FlowOpen {
        /// Chosen by the supervisor.
        id: u64,
        /// Port in the guest.
        port: u16,
    },
    /// Stop the vCPUs between two instructions, and the devices between two
    /// requests. Answered by [`Event::Paused`].
    Pause,
    /// Let them run again. Answered by [`Event::Resumed`].
    Resume,
    /// Ask for [`Event::Stats`].
    Stats,
    /// End the VM now, whatever the guest is doing.
    Kill,
}

/// From the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The answer to [`Request::Hello`].
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The VMM's process id as it sees it.
        pid: u32,
    },
    /// A phase of the boot was reached; each comes once.
    Phase(Stamp),
    /// A guest program marked a code of its own.
    UserPhase {
        /// The code, from [`crate::phase::FIRST_USER_CODE`] on.
        code: u8,
        /// `CLOCK_MONOTONIC`, nanoseconds.
        at_ns: u64,
    },
    /// The guest connects to a port of the host. Answer with
    /// [`Request::Accept`] or [`Request::Reject`]; the packet carries the
    /// supervisor's end of the stream.
    Incoming {
        /// The VMM's number of it.
        id: u64,
        /// Port on the host.
        port: u32,
    },
    /// The guest accepted [`Request::Connect`].
    Connected {
        /// The supervisor's number of it.
        id: u64,
    },
    /// The guest refused [`Request::Connect`].
    Refused {
        /// The supervisor's number of it.
        id: u64,
    },
    /// The guest wants a flow. Answer with [`Request::FlowAccept`] or
    /// [`Request::FlowRefuse`]; the packet carries the supervisor's end.
    FlowAsked {
        /// The VMM's number of it.
        id: u64,
        /// What it is made of.
        protocol: Protocol,
        /// From whom to whom.
        tuple: Tuple,
    },
    /// A flow that was accepted or opened exists no more, or one that was asked for and
    /// that the guest has given up.
    FlowEnded {
        /// The VMM's number of it.
        id: u64,
        /// How.
        how: End,
    },
    /// The guest has accepted [`Request::FlowOpen`].
    FlowOpened {
        /// The supervisor's number of the request.
        id: u64,
        /// The VMM's number of the flow, for what is said of it from here on.
        flow: u64,
    },
    /// There is no flow for [`Request::FlowOpen`], and its socket is closed.
    FlowNotOpened {
        /// The supervisor's number of the request.
        id: u64,
        /// Why.
        why: NotOpened,
    },
    /// In a flow that was opened the guest sends no more: the end that can be read on its
    /// socket is one in order. Without this, and without [`Event::FlowEnded`] in order, it
    /// is a reset, which a socket pair cannot tell from it.
    FlowFinished {
        /// The VMM's number of the flow.
        id: u64,
    },
    /// vCPUs and devices stand still.
    Paused,
    /// They go on.
    Resumed,
    /// Counters.
    Stats(Box<Stats>),
    /// The VM could not be built; the VMM ends.
    BootFailed(BootFailure),
    /// The VM has ended; the VMM ends.
    Exited(Box<ExitReport>),
}

/// A phase and when it was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Which.
    pub phase: Phase,
    /// `CLOCK_MONOTONIC`, nanoseconds; comparable between processes of a host.
    pub at_ns: u64,
}

/// What VM to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Number of vCPUs; see [`VCPUS`].
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// How the kernel is entered.
    pub boot_protocol: BootProtocol,
    /// Whether an initramfs descriptor comes with the packet.
    pub initramfs: bool,
    /// What the serial port is for.
    pub console: Console,
    /// Extra kernel arguments, for people who try kernels. Never user data.
    pub kernel_args: String,
    /// Disks in order: `vda`, `vdb`, ….
    pub disks: Vec<DiskSpec>,
    /// Whether a virtio-rng device is attached.
    pub rng: bool,
    /// The guest's network card; none if it has none.
    pub network: Option<Link>,
    /// How much passes the network card at most, in each direction: operations are
    /// frames.
    pub network_rate: IoRate,
    /// Whether guest memory is a memfd that other processes can be given.
    pub shared_memory: bool,
}

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootProtocol {
    /// PVH if the kernel has the note, otherwise 64-bit.
    #[default]
    Auto,
    /// The 64-bit entry of the Linux boot protocol.
    Linux64,
    /// The 32-bit entry of the PVH ABI.
    Pvh,
}

/// What the serial port is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Console {
    /// Nothing at all is printed; there is no descriptor.
    Off,
    /// The kernel prints only what ends it (a panic), by its early console.
    #[default]
    Panic,
    /// A full UART with the kernel's log and `/dev/console` on it.
    Full,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Whether the guest may not write to it.
    pub read_only: bool,
    /// Serial number seen by the guest; at most [`MAX_DISK_ID`] bytes.
    pub id: String,
    /// Whether the content is thrown away with the VM: then a flush of the
    /// guest need not reach the host's disk.
    pub volatile: bool,
    /// How much I/O it does at most.
    pub rate: IoRate,
}

/// How much I/O a device does at most. Each limit holds by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoRate {
    /// Bytes of data; without a limit if there is none.
    pub bytes: Option<Rate>,
    /// Requests; without a limit if there is none.
    pub operations: Option<Rate>,
}

/// A limit by a bucket of tokens: it is filled steadily, and what is done takes
/// tokens out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Tokens that come in a second.
    pub per_second: NonZeroU64,
    /// Tokens that the bucket holds: what can be done at once after a rest.
    pub burst: NonZeroU64,
}

/// Why a VM could not be built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFailure {
    /// The class of failure.
    pub kind: BootFailureKind,
    /// One line: what was tried, on what, why it failed, what to do.
    pub message: String,
}

/// Classes of [`BootFailure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootFailureKind {
    /// The request breaks a limit or contradicts itself.
    BadRequest,
    /// KVM is missing, forbidden or too old.
    Kvm,
    /// Guest memory could not be had.
    Memory,
    /// The kernel or initramfs file is not usable.
    Kernel,
    /// A disk is not usable.
    Disk,
    /// The host refused something else.
    Host,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Why.
    pub reason: ExitReason,
    /// When, `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
    /// The counters at the end.
    pub stats: Stats,
}

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// The guest asked through the exit port.
    Requested(ExitRequest),
    /// The guest pulled the reset line (keyboard controller): its kernel
    /// restarted, after a panic or by `reboot(2)`.
    Reset,
    /// A fault while delivering a fault: the CPU shut down.
    TripleFault,
    /// KVM could not go on.
    KvmError(String),
    /// A device or thread of the VMM failed.
    VmmError(String),
    /// [`Request::Kill`], or the supervisor went away.
    Killed,
}

/// Counters of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// VM exits that reached the VMM, by reason, most frequent first: at most
    /// 512 entries, the rest summed up as `other`.
    pub exits: Vec<ExitCount>,
    /// Bytes of console output that were dropped because nobody read them.
    pub console_dropped: u64,
    /// Resident memory of the VMM without guest memory, in KiB.
    pub vmm_resident_kib: u64,
    /// Disks for which the host had no room; at most [`MAX_DISKS`].
    pub full_disks: Vec<FullDisk>,
    /// What has passed the network card, if there is one.
    pub network: Option<NetworkUse>,
}

/// What has passed a network card, as the guest sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUse {
    /// Bytes that the guest has received, in frames.
    pub received_bytes: u64,
    /// The frames.
    pub received_frames: u64,
    /// Bytes that the guest has sent, in frames.
    pub sent_bytes: u64,
    /// The frames.
    pub sent_frames: u64,
    /// Flows that it has asked for.
    pub flows_asked: u64,
    /// Flows that it has got.
    pub flows_accepted: u64,
    /// Flows that it was refused.
    pub flows_refused: u64,
    /// Frames that were dropped, for whatever reason.
    pub dropped: u64,
}

/// A disk whose writes failed because the host had no room for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullDisk {
    /// Which of [`VmSpec::disks`].
    pub disk: u8,
    /// How many of the guest's requests failed.
    pub failures: u64,
}

/// How often a VM exit happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCount {
    /// `pio_out`, `mmio_read`, `interrupted`, …; `other` for all that is not
    /// listed.
    pub reason: String,
    /// The device and register, e.g. `blk0 InterruptACK` or `serial THR`.
    pub detail: String,
    /// How many.
    pub count: u64,
}

/// Encodes one packet.
///
/// # Errors
/// [`FrameError::TooLong`] if it would be longer than [`MAX_PACKET`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let packet = postcard::to_stdvec(message)?;
    if packet.len() > MAX_PACKET {
        return Err(FrameError::TooLong {
            len: packet.len(),
            max: MAX_PACKET,
        });
    }
    Ok(packet)
}

/// Decodes one packet.
///
/// # Errors
/// If it is too long or not exactly one message.
pub fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, FrameError> {
    if packet.len() > MAX_PACKET {
        return Err(FrameError::TooLong {
            len: packet.len(),
            max: MAX_PACKET,
        });
    }
    from_bytes(packet)
}
