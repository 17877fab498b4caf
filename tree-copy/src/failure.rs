//! Why a tree cannot be read or written.

use std::fmt;

use flashpan_protocol::file::FileFailureKind;
use nix::errno::Errno;

/// Something did not work, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The file, relative to the root of the tree, which is empty itself.
    pub path: Vec<u8>,
    /// What was tried, e.g. `write it`; empty if the reason says it all.
    pub what: &'static str,
    /// Why it did not work.
    pub why: Why,
}

/// Why something did not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The kernel says so.
    System(Errno),
    /// It is not done.
    Refused(FileFailureKind, &'static str),
    /// The other side broke the protocol.
    Protocol(&'static str),
}

impl Failure {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self {
            path: Vec::new(),
            what,
            why: Why::System(errno),
        }
    }

    /// Of what was named by whoever asked: without the attempt if there is nothing.
    #[must_use]
    pub fn opening(errno: Errno) -> Self {
        match errno {
            Errno::ENOENT => {
                let why = "there is no such file or directory";
                Self::refused(FileFailureKind::NotFound, why)
            }
            errno => Self::system("open it")(errno),
        }
    }

    /// There is no directory that a tree could go into.
    pub(crate) fn no_directory() -> Self {
        let why = "there is no such directory to put it into";
        Self::refused(FileFailureKind::NotFound, why)
    }

    pub(crate) fn refused(kind: FileFailureKind, why: &'static str) -> Self {
        Self {
            path: Vec::new(),
            what: "",
            why: Why::Refused(kind, why),
        }
    }

    pub(crate) fn protocol(how: &'static str) -> Self {
        Self {
            path: Vec::new(),
            what: "",
            why: Why::Protocol(how),
        }
    }

    /// Adds where it happened.
    pub(crate) fn at<'a>(mut self, names: impl Iterator<Item = &'a [u8]>) -> Self {
        for name in names {
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
        }
        self
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System(errno) => errno.desc(),
            Self::Refused(_, why) | Self::Protocol(why) => why,
        })
    }
}

impl fmt::Display for Failure {
    /// Without the path, in which anything can be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.what.is_empty() {
            f.write_str(self.what)?;
            f.write_str(": ")?;
        }
        self.why.fmt(f)
    }
}

impl std::error::Error for Failure {}
