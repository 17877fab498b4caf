//! Room on disks.

use std::path::Path;

/// Bytes that there are too few of in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooFew {
    pub(crate) needed: u64,
    pub(crate) free: u64,
}

/// Checks that `needed` bytes can be written in `directory`, as far as its file
/// system tells. There may be less room when it comes to writing, of course.
pub(crate) fn check(directory: &Path, needed: u64) -> Result<(), TooFew> {
    let free = free(directory).unwrap_or(u64::MAX);
    match needed > free {
        true => Err(TooFew { needed, free }),
        false => Ok(()),
    }
}

/// Bytes that are free for those without privileges; `None` if that is unknown.
pub(crate) fn free(directory: &Path) -> Option<u64> {
    let of = rustix::fs::statvfs(directory).ok()?;
    // Some file systems do not count.
    (of.f_blocks > 0).then(|| of.f_bavail.saturating_mul(of.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_certainly_does_not_fit_is_told_with_what_there_is() {
        let directory = tempfile::tempdir().unwrap();
        check(directory.path(), 0).unwrap();
        let too_few = check(directory.path(), u64::MAX).unwrap_err();
        assert_eq!(too_few.needed, u64::MAX);
        assert!(too_few.free < u64::MAX);
        // Nothing is refused because nothing is known.
        check(&directory.path().join("none"), u64::MAX).unwrap();
    }
}
