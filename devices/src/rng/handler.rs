//! Fills one buffer with random bytes.

// `getrandom` has no counterpart in the standard library, and it writes
// straight into guest memory.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::Ordering;

use vm_memory::VolatileSlice;

use super::{MAX_REQUEST_BYTES, metrics::RngMetrics};
use crate::ring::{Chain, RingError};

/// Answers the request in `chain`; returns the number of random bytes.
pub(super) fn answer(chain: &mut Chain<'_>, metrics: &RngMetrics) -> Result<u32, RingError> {
    // "The driver MUST NOT place device-readable buffers into the queue"
    // (virtio 1.2 §5.4.6.1).
    if !chain.readable.is_empty() {
        return Err(RingError::UnexpectedReadable);
    }
    // At least one byte is owed (§5.4.6.2).
    if chain.writable.is_empty() {
        return Err(RingError::ShortRequest);
    }
    let mut done = 0;
    for slice in chain.writable.slices() {
        let wanted = slice.len().min(MAX_REQUEST_BYTES.saturating_sub(done));
        let Ok(target) = slice.subslice(0, wanted) else {
            break;
        };
        let filled = fill(&target);
        done += filled;
        if filled < slice.len() {
            break;
        }
    }
    let done = u32::try_from(done).unwrap_or(u32::MAX);
    metrics.requests.fetch_add(1, Ordering::Relaxed);
    metrics.bytes.fetch_add(done.into(), Ordering::Relaxed);
    Ok(done)
}

/// Returns how many bytes were filled: all, unless the kernel refuses, which
/// it does not once it has booted.
fn fill(target: &VolatileSlice<'_>) -> usize {
    let mut done = 0;
    while let Ok(rest) = target.offset(done)
        && !rest.is_empty()
    {
        let guard = rest.ptr_guard_mut();
        // SAFETY: the pointer and length are those of a volatile slice, which
        // stands for guest memory that is mapped as long as it lives. Nothing
        // in this process has references into guest memory.
        let got = unsafe { libc::getrandom(guard.as_ptr().cast(), guard.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => done += got,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    done
}
