//! What the supervisor is told when the guest cannot be set up.

use nix::errno::Errno;
use thiserror::Error;

/// A step of the set-up that did not work.
#[derive(Debug, Error)]
#[error("{what}: {why}")]
pub(crate) struct Failure {
    /// What was being done, on what.
    pub(crate) what: String,
    /// Why it failed and, where it is known, what to do.
    pub(crate) why: String,
    /// The error number; 0 if there is none.
    pub(crate) errno: i32,
}

impl Failure {
    /// A failure that is not an error of the system.
    pub(crate) fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
            errno: 0,
        }
    }

    /// A failed system call.
    pub(crate) fn system(what: impl Into<String>, errno: Errno) -> Self {
        Self {
            what: what.into(),
            why: errno.desc().to_owned(),
            errno: errno_number(errno),
        }
    }
}

/// The number behind `errno`.
pub(crate) fn errno_number(errno: Errno) -> i32 {
    errno as i32
}

/// Names the step of which a system call was part.
pub(crate) trait During<T> {
    /// Turns the error into a [`Failure`] of `what`.
    fn during(self, what: &str) -> Result<T, Failure>;
}

impl<T> During<T> for nix::Result<T> {
    fn during(self, what: &str) -> Result<T, Failure> {
        self.map_err(|errno| Failure::system(what, errno))
    }
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| match error.raw_os_error() {
            Some(number) => Failure::system(what, Errno::from_raw(number)),
            None => Failure::new(what, error.to_string()),
        })
    }
}
