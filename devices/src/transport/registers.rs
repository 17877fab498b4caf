//! The register file of virtio-mmio (virtio 1.2 §4.2.2, table 4.1): offsets,
//! names and directions.

/// `MagicValue`, read-only: "virt" in little endian.
pub const MAGIC_VALUE: u64 = 0x000;
/// `Version`, read-only: 2.
pub const VERSION: u64 = 0x004;
/// `DeviceID`, read-only.
pub const DEVICE_ID: u64 = 0x008;
/// `VendorID`, read-only.
pub const VENDOR_ID: u64 = 0x00c;
/// `DeviceFeatures`, read-only: the word chosen by [`DEVICE_FEATURES_SEL`].
pub const DEVICE_FEATURES: u64 = 0x010;
/// `DeviceFeaturesSel`, write-only.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// `DriverFeatures`, write-only: the word chosen by [`DRIVER_FEATURES_SEL`].
pub const DRIVER_FEATURES: u64 = 0x020;
/// `DriverFeaturesSel`, write-only.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// `QueueSel`, write-only: which queue the queue registers speak of.
pub const QUEUE_SEL: u64 = 0x030;
/// `QueueNumMax`, read-only: 0 when the selected queue does not exist.
pub const QUEUE_NUM_MAX: u64 = 0x034;
/// `QueueNum`, write-only.
pub const QUEUE_NUM: u64 = 0x038;
/// `QueueReady`, read and write.
pub const QUEUE_READY: u64 = 0x044;
/// `QueueNotify`, write-only: the index of a queue with new buffers.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// `InterruptStatus`, read-only.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// `InterruptACK`, write-only.
pub const INTERRUPT_ACK: u64 = 0x064;
/// `Status`, read and write; a write of 0 resets.
pub const STATUS: u64 = 0x070;
/// `QueueDescLow`, write-only.
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// `QueueDescHigh`, write-only.
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// `QueueDriverLow`, write-only: the available ring.
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// `QueueDriverHigh`, write-only.
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// `QueueDeviceLow`, write-only: the used ring.
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// `QueueDeviceHigh`, write-only.
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// `SHMSel`, write-only: which shared memory region the `SHM` registers speak of.
pub const SHM_SEL: u64 = 0x0ac;
/// `SHMLenLow`, read-only: all ones when the region does not exist.
pub const SHM_LEN_LOW: u64 = 0x0b0;
/// `SHMLenHigh`, read-only.
pub const SHM_LEN_HIGH: u64 = 0x0b4;
/// `SHMBaseLow`, read-only: all ones when the region does not exist.
pub const SHM_BASE_LOW: u64 = 0x0b8;
/// `SHMBaseHigh`, read-only.
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// `QueueReset`, read and write; only with `VIRTIO_F_RING_RESET`, which is not
/// offered: it reads as zero.
pub const QUEUE_RESET: u64 = 0x0c0;
/// `ConfigGeneration`, read-only.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// Start of the device's configuration space, which takes accesses of any
/// width.
pub const CONFIG: u64 = 0x100;

/// Bytes of guest-physical address space of one device: registers and
/// configuration space.
pub const MMIO_SIZE: u64 = 0x1000;

/// Content of [`MAGIC_VALUE`] (virtio 1.2 §4.2.2.1).
pub const MAGIC: u32 = 0x7472_6976;
/// Content of [`VERSION`]: not a legacy device (virtio 1.2 §4.2.2.1).
pub const MMIO_VERSION: u32 = 2;
/// Content of [`VENDOR_ID`]: "FLSH" in little endian. Drivers ignore it.
pub const VENDOR: u32 = 0x4853_4c46;

/// Who may do what with a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// A write is ignored.
    ReadOnly,
    /// A read gives zero.
    WriteOnly,
    /// Both are meaningful.
    ReadWrite,
}

/// One line of table 4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// Offset from the start of the device, in bytes.
    pub offset: u64,
    /// The name that the standard gives it.
    pub name: &'static str,
    /// Who may do what.
    pub direction: Direction,
}

const fn register(offset: u64, name: &'static str, direction: Direction) -> Register {
    Register {
        offset,
        name,
        direction,
    }
}

/// All registers, by offset.
pub const REGISTERS: [Register; 29] = {
    use Direction::{ReadOnly, ReadWrite, WriteOnly};
    [
        register(MAGIC_VALUE, "MagicValue", ReadOnly),
        register(VERSION, "Version", ReadOnly),
        register(DEVICE_ID, "DeviceID", ReadOnly),
        register(VENDOR_ID, "VendorID", ReadOnly),
        register(DEVICE_FEATURES, "DeviceFeatures", ReadOnly),
        register(DEVICE_FEATURES_SEL, "DeviceFeaturesSel", WriteOnly),
        register(DRIVER_FEATURES, "DriverFeatures", WriteOnly),
        register(DRIVER_FEATURES_SEL, "DriverFeaturesSel", WriteOnly),
        register(QUEUE_SEL, "QueueSel", WriteOnly),
        register(QUEUE_NUM_MAX, "QueueNumMax", ReadOnly),
        register(QUEUE_NUM, "QueueNum", WriteOnly),
        register(QUEUE_READY, "QueueReady", ReadWrite),
        register(QUEUE_NOTIFY, "QueueNotify", WriteOnly),
        register(INTERRUPT_STATUS, "InterruptStatus", ReadOnly),
        register(INTERRUPT_ACK, "InterruptACK", WriteOnly),
        register(STATUS, "Status", ReadWrite),
        register(QUEUE_DESC_LOW, "QueueDescLow", WriteOnly),
        register(QUEUE_DESC_HIGH, "QueueDescHigh", WriteOnly),
        register(QUEUE_DRIVER_LOW, "QueueDriverLow", WriteOnly),
        register(QUEUE_DRIVER_HIGH, "QueueDriverHigh", WriteOnly),
        register(QUEUE_DEVICE_LOW, "QueueDeviceLow", WriteOnly),
        register(QUEUE_DEVICE_HIGH, "QueueDeviceHigh", WriteOnly),
        register(SHM_SEL, "SHMSel", WriteOnly),
        register(SHM_LEN_LOW, "SHMLenLow", ReadOnly),
        register(SHM_LEN_HIGH, "SHMLenHigh", ReadOnly),
        register(SHM_BASE_LOW, "SHMBaseLow", ReadOnly),
        register(SHM_BASE_HIGH, "SHMBaseHigh", ReadOnly),
        register(QUEUE_RESET, "QueueReset", ReadWrite),
        register(CONFIG_GENERATION, "ConfigGeneration", ReadOnly),
    ]
};

/// The name of the register that an access at `offset` belongs to, for
/// statistics of VM exits: `"Config"` for the configuration space, `"unknown"`
/// between registers.
#[must_use]
pub fn register_name(offset: u64) -> &'static str {
    if offset >= CONFIG {
        return "Config";
    }
    REGISTERS
        .iter()
        .find(|register| register.offset == offset & !3)
        .map_or("unknown", |register| register.name)
}
