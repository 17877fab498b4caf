//! The device status machine (virtio 1.2 §2.1, §3.1.1).
//!
//! ```text
//!  0 ──► ACKNOWLEDGE ──► DRIVER ──► FEATURES_OK ──► DRIVER_OK
//!        (each state includes the bits before it; FAILED can be added to any,
//!         after which nothing else can; a write of 0 leads back from any)
//! ```
//!
//! A driver adds one bit at a time, or the first two at once, as some do: nothing
//! lies between them. Everything else is refused, which the driver sees when it
//! reads the status back, as §3.1.1 tells it to.

/// The guest has noticed the device.
pub const ACKNOWLEDGE: u32 = 1;
/// The guest has a driver for the device.
pub const DRIVER: u32 = 2;
/// The driver is ready to drive.
pub const DRIVER_OK: u32 = 4;
/// Feature negotiation is complete.
pub const FEATURES_OK: u32 = 8;
/// The device has given up until it is reset. Set by the device only.
pub const NEEDS_RESET: u32 = 64;
/// The guest has given up on the device.
pub const FAILED: u32 = 128;

const INITIAL: u32 = 0;
const ACKNOWLEDGED: u32 = INITIAL | ACKNOWLEDGE;
const DRIVEN: u32 = ACKNOWLEDGED | DRIVER;
const NEGOTIATED: u32 = DRIVEN | FEATURES_OK;
const LIVE: u32 = NEGOTIATED | DRIVER_OK;

/// Every state without [`FAILED`], and the bits that lead on from it.
const STEPS: [(u32, u32); 6] = [
    (INITIAL, ACKNOWLEDGE),
    (INITIAL, DRIVEN),
    (ACKNOWLEDGED, DRIVER),
    (DRIVEN, FEATURES_OK),
    (NEGOTIATED, DRIVER_OK),
    (LIVE, 0),
];

/// What a write to the status register asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Start over.
    Reset,
    /// The status that is there already.
    Stay,
    /// What is next in order, or [`FAILED`].
    Add(u32),
    /// Against the rules: the status stays as it is.
    Refuse,
}

/// Judges a write of `written` in state `current` (without [`NEEDS_RESET`]).
#[must_use]
pub fn step(current: u32, written: u32) -> Step {
    if written == 0 {
        return Step::Reset;
    }
    if written == current {
        return Step::Stay;
    }
    if written == current | FAILED {
        return Step::Add(FAILED);
    }
    // No step leads on from a state with FAILED.
    STEPS
        .iter()
        .find(|(state, bit)| *state == current && *bit != 0 && written == current | bit)
        .map_or(Step::Refuse, |(_, bit)| Step::Add(*bit))
}

/// Whether a device can be in this state at all: for saved states.
#[must_use]
pub fn is_legal(status: u32) -> bool {
    STEPS.iter().any(|(state, _)| *state == status & !FAILED)
}

/// Whether the driver may accept features now: after it has found a driver
/// for the device, before it has settled on a set (virtio 1.2 §3.1.1 step 4).
#[must_use]
pub fn negotiates(status: u32) -> bool {
    status == DRIVEN
}

/// Whether the driver may set up queues now: after the features, before the
/// device goes live (virtio 1.2 §3.1.1 step 7).
#[must_use]
pub fn configures_queues(status: u32) -> bool {
    status == NEGOTIATED
}

/// Whether the device is live.
#[must_use]
pub fn is_live(status: u32) -> bool {
    status == LIVE
}
