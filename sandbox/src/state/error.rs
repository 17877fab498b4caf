//! Why something cannot be done with the VMs on disk.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::api::ErrorCode;
use crate::state::record::{NAME_MAX, Status};

/// Why something cannot be done with the VMs of a user. Every message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateError {
    /// There is no directory for VMs.
    #[error("cannot find the state directory: neither XDG_STATE_HOME nor HOME is an absolute path")]
    NoHome,
    /// It is somebody else's.
    #[error(
        "{} belongs to user {owner}, and this is user {own}; set XDG_STATE_HOME to a directory of your own",
        path.display()
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who asks.
        own: u32,
    },
    /// No VM has that id or name.
    #[error("no VM has the id or name {0:?}; `flashpan ls` lists them")]
    NotFound(String),
    /// Several VMs have ids that begin so.
    #[error("the ids of several VMs begin with {text:?}: {}; write more of it", ids.join(", "))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// Whose ids they are, at most [`crate::state::AMBIGUOUS_LISTED`].
        ids: Vec<String>,
    },
    /// The name cannot be one.
    #[error(
        "invalid name {0:?}: want letters, digits, `_`, `.` and `-`, beginning with a letter or \
         digit, at most {NAME_MAX}, and nothing that looks like the id of a VM"
    )]
    Name(String),
    /// Another VM has that name.
    #[error("the VM {id} has the name {name:?}; rename or remove it, or take another name")]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        id: String,
    },
    /// The VM is in no state for it.
    #[error("the VM {id} is {status}; {advice}")]
    Status {
        /// Which VM.
        id: String,
        /// What it is.
        status: Status,
        /// What to do first.
        advice: &'static str,
    },
    /// Another command changes the list of VMs, for too long.
    #[error(
        "another flashpan command has been changing {} for {seconds} seconds; is it stopped?",
        path.display()
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// How long.
        seconds: u64,
    },
    /// A file is not what it should be.
    #[error("{} is damaged: {why}; `flashpan rm -f` removes the VM", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A newer flashpan wrote it.
    #[error("{} has version {found}, and this program knows {known}; use the newer one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl StateError {
    /// What kind of error it is, by a name that stays the same between versions.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound(_) => ErrorCode::VmNotFound,
            Self::Ambiguous { .. } => ErrorCode::VmAmbiguous,
            Self::Name(_) => ErrorCode::VmNameInvalid,
            Self::NameTaken { .. } => ErrorCode::VmNameTaken,
            Self::Status { status, .. } if !status.is_alive() => ErrorCode::VmNotRunning,
            Self::Status { .. } => ErrorCode::VmRunning,
            Self::NoHome
            | Self::Owner { .. }
            | Self::Busy { .. }
            | Self::Damaged { .. }
            | Self::Newer { .. }
            | Self::Io { .. } => ErrorCode::VmState,
        }
    }
}

/// For mapping an I/O error: `.map_err(failed("read", &path))`.
pub(crate) fn failed<'a, E: Into<io::Error>>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(E) -> StateError + 'a {
    move |source| StateError::Io {
        what,
        path: path.to_owned(),
        source: source.into(),
    }
}
