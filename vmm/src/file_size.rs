//! What becomes of a write past the limit of file sizes (`RLIMIT_FSIZE`).

#![allow(unsafe_code)] // signal(2) has no safe wrapper in std.

/// Has such a write fail (EFBIG), which a guest sees as an I/O error of its disk,
/// instead of ending the process (SIGXFSZ). It counts for all threads and cannot be
/// done in the jail any more when the guest runs.
pub fn let_writes_fail() {
    // SAFETY: nothing of ours runs when an ignored signal comes. It cannot fail:
    // the number is that of a signal that can be ignored.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
