//! Socket calls straight from and to guest memory.
//!
//! The standard library has no vectored I/O on memory that another party may
//! change meanwhile, and its `writev` raises SIGPIPE. Neither call here blocks,
//! whatever flags the descriptor carries.
#![allow(unsafe_code)] // sendmsg(2) and recvmsg(2) take raw pointers.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vm_memory::VolatileSlice;

/// `IOV_MAX` of Linux: more buffers than this in one call are refused.
const MAX_IOV: usize = 1024;

/// A pair of sockets for messages that keep their boundaries. Of that type
/// (`SOCK_SEQPACKET`) since one of datagrams could be sent to any other socket of the
/// host by name.
///
/// # Errors
/// If the host has no descriptors left.
pub(crate) fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for the two descriptors.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made both for us.
    let own = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let [ours, theirs] = own;
    Ok((ours, theirs))
}

/// Fills `slices` from `stream`. Zero is the end of the stream. Descriptors
/// passed along (`SCM_RIGHTS`) are dropped, as no room is given for them.
///
/// # Errors
/// `WouldBlock` if nothing is there; otherwise the stream is of no more use.
pub(crate) fn receive(stream: &impl AsRawFd, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<_> = (slices.iter().take(MAX_IOV))
        .map(VolatileSlice::ptr_guard_mut)
        .collect();
    let mut iov: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    let mut message = message(&mut iov);
    retry(|| {
        // SAFETY: `message` names `iov`, and each element of `iov` a range of
        // mapped guest memory that `slices` keeps mapped during the call. Guest
        // memory has no Rust references to it, so that the kernel may write it.
        unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
    })
}

/// Sends from guest memory; answers how much was taken.
///
/// # Errors
/// `WouldBlock` if the stream is full; otherwise the peer reads no more.
pub(crate) fn send(stream: &impl AsRawFd, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<_> = (slices.iter().take(MAX_IOV))
        .map(VolatileSlice::ptr_guard)
        .collect();
    let mut iov: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast_mut().cast(),
            iov_len: guard.len(),
        })
        .collect();
    // SAFETY: each element of `iov` is a range of mapped guest memory that
    // `slices` keeps mapped during the call. The kernel only reads it, and what
    // the guest writes at the same time is the guest's own affair.
    unsafe { send_iov(stream, &mut iov) }
}

/// Sends the two halves of a ring buffer; answers how much was taken.
///
/// # Errors
/// As [`send`].
pub(crate) fn send_halves(stream: &impl AsRawFd, halves: (&[u8], &[u8])) -> io::Result<usize> {
    let iovec = |half: &[u8]| libc::iovec {
        iov_base: half.as_ptr().cast_mut().cast(),
        iov_len: half.len(),
    };
    let mut iov = [iovec(halves.0), iovec(halves.1)];
    // SAFETY: both elements are borrowed slices, and sendmsg(2) only reads.
    unsafe { send_iov(stream, &mut iov) }
}

/// # Safety
/// Every element of `iov` must be readable during the call.
unsafe fn send_iov(stream: &impl AsRawFd, iov: &mut [libc::iovec]) -> io::Result<usize> {
    let message = message(iov);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    retry(|| {
        // SAFETY: `message` names `iov`, whose elements the caller vouches for.
        unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, flags) }
    })
}

/// A message of these buffers, without address and without control data.
fn message(iov: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all fields of `msghdr` are integers and pointers that may be zero.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = iov.as_mut_ptr();
    message.msg_iovlen = iov.len();
    message
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
