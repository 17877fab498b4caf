//! What can go wrong with a kernel.

use std::io;
use std::path::{Path, PathBuf};

use crate::download::DownloadError;
use crate::elf::ElfError;
use crate::fragment::FragmentError;
use crate::process::RunError;
use crate::source::SourceError;
use crate::tools::MissingTools;
use crate::verify::Unmet;

/// Why a kernel could not be built, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A fragment is unknown, unreadable or wrong.
    #[error(transparent)]
    Fragment(#[from] FragmentError),
    /// No kernel source, or none that can be built from.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source could not be fetched.
    #[error(transparent)]
    Download(DownloadError),
    /// Programs or headers that a build needs are not installed.
    #[error(transparent)]
    Tools(#[from] MissingTools),
    /// Kconfig dropped or changed options that were asked for.
    #[error("this kernel cannot be what was asked for:{}", lines(.0))]
    Unmet(Vec<Unmet>),
    /// A program that the build runs failed.
    #[error("{step}: {what}{}\nThe whole output is in {}", lines(.tail), .log.display())]
    Step {
        /// What was being done.
        step: &'static str,
        /// Which program failed and how.
        what: String,
        /// The last lines that it printed.
        tail: Vec<String>,
        /// File with all its output.
        log: PathBuf,
    },
    /// A program that the build runs could not write.
    #[error(
        "{step}: the disk is full: {line}\nA build takes 2 GiB in {} while it lasts; \
         XDG_CACHE_HOME names another place", .directory.display()
    )]
    DiskFull {
        /// What was being done.
        step: &'static str,
        /// What the program said.
        line: String,
        /// Where builds work.
        directory: PathBuf,
    },
    /// What was built is not a kernel that can be booted.
    #[error("the kernel that was built is not usable: {0}")]
    Elf(#[from] ElfError),
    /// [`crate::Cancel::cancel`] was called.
    #[error("the build was cancelled")]
    Cancelled,
    /// Neither `XDG_CACHE_HOME` nor `HOME` is set to an absolute path.
    #[error("no cache directory: set XDG_CACHE_HOME or HOME to an absolute path")]
    NoCacheDirectory,
    /// No kernel in the cache is called so.
    #[error("no kernel `{wanted}` in {}; there {known}", .directory.display())]
    NotFound {
        /// Name or beginning of a hash.
        wanted: String,
        /// Where it was looked for.
        directory: PathBuf,
        /// What is there: "are base, base+debug", "is none".
        known: String,
    },
    /// The beginning of a hash fits several kernels.
    #[error("`{wanted}` could be any of {}; give more digits", .candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// Hashes that begin so.
        candidates: Vec<String>,
    },
    /// There is no kernel of this version's base configuration.
    #[error(
        "no kernel with the base configuration of this version is built: run `flashpan kernel build` (about ten minutes, once)"
    )]
    NotBuilt,
    /// A file of the cache could not be read or written.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl From<DownloadError> for Error {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::Cancelled => Self::Cancelled,
            other => Self::Download(other),
        }
    }
}

impl Error {
    /// For `map_err`: what was tried on which path.
    pub(crate) fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// A program of a step that failed; builds work in `directory`.
    pub(crate) fn step(step: &'static str, log: &Path, directory: &Path, error: RunError) -> Self {
        let what = error.to_string();
        let tail = match error {
            RunError::Cancelled => return Self::Cancelled,
            RunError::Start { .. } => Vec::new(),
            RunError::Failed { tail, .. } => tail,
        };
        if let Some(line) = tail.iter().find(|line| line.contains(DISK_FULL)) {
            return Self::DiskFull {
                step,
                line: line.clone(),
                directory: directory.to_owned(),
            };
        }
        Self::Step {
            step,
            what,
            tail,
            log: log.to_owned(),
        }
    }
}

/// What programs of a C library say for ENOSPC, in the locale of builds.
const DISK_FULL: &str = "No space left on device";

fn lines<T: ToString>(items: &[T]) -> String {
    items
        .iter()
        .map(|item| format!("\n  {}", item.to_string()))
        .collect()
}
