//! Plain, serialisable state of transport and devices.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The own state of a device, by kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {}

/// Why a saved state was not taken over.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The state belongs to another kind of device.
    #[error("the saved state is not that of a {expected} device")]
    WrongDevice {
        /// What it should have been.
        expected: &'static str,
    },
    /// The state contradicts the device or itself.
    #[error("the saved state of the {device} device is not valid: {why}")]
    Invalid {
        /// Which device.
        device: &'static str,
        /// What is wrong.
        why: String,
    },
}
