//! Why a virtual machine could not be built.

use std::io;

use flashpan_protocol::control::{BootFailure, BootFailureKind};
use thiserror::Error;

/// Why a virtual machine could not be built: a class, and one line that says
/// what was tried, on what, why it failed and what to do.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct BootError {
    /// The class of failure.
    pub kind: BootFailureKind,
    /// The line.
    pub message: String,
}

impl BootError {
    /// An error of a class with its line.
    #[must_use]
    pub fn new(kind: BootFailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// KVM refused `what`.
    pub(crate) fn kvm(what: &str, error: kvm_ioctls::Error) -> Self {
        Self::new(
            BootFailureKind::Kvm,
            format!("KVM could not {what}: {error}"),
        )
    }

    /// The host refused `what`.
    pub(crate) fn host(what: &str, error: &io::Error) -> Self {
        Self::new(BootFailureKind::Host, format!("could not {what}: {error}"))
    }

    /// The caller asked for something impossible.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::new(BootFailureKind::BadRequest, message)
    }
}

impl From<BootError> for BootFailure {
    fn from(error: BootError) -> Self {
        Self {
            kind: error.kind,
            message: error.message,
        }
    }
}
