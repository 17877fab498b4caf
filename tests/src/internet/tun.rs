//! Network interfaces whose packets a program sends and takes.
#![allow(unsafe_code)] // Asks the kernel for one, which has no safe function.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use nix::libc::{IFF_NO_PI, IFF_TUN, c_int};

/// `struct ifreq` as TUNSETIFF takes it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

nix::ioctl_write_ptr_bad!(
    set_interface,
    nix::request_code_write!(b'T', 202, size_of::<c_int>()),
    Request
);

/// An interface of this name in the network of the calling thread. It is there for as long
/// as the file is open; each read is a packet, and each write.
///
/// # Errors
/// Without the right to it.
pub(super) fn interface(name: &str) -> io::Result<File> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = Request {
        name: [0; 16],
        flags: u16::try_from(IFF_TUN | IFF_NO_PI).unwrap_or_default(),
        rest: [0; 22],
    };
    // The last byte stays zero.
    for (to, from) in request.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the descriptor is open, and the request is as long as the kernel's, which
    // reads it and writes the name.
    unsafe { set_interface(tun.as_raw_fd(), &raw const request) }?;
    Ok(tun)
}
