//! The VMM process as its supervisor starts it. No KVM is needed.

#![allow(unsafe_code)] // Places a descriptor where the process looks for it.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flashpan_protocol::control::{CONTROL_FD, Event, MAX_PACKET, Request, VERSION, decode, encode};

/// A VMM and our end of its control socket; the type only lends its calls.
fn start() -> (Child, UnixDatagram) {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the pointer is to room for two descriptors.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    assert_eq!(made, 0);
    // SAFETY: the descriptors are new and nobody else's.
    let [ours, theirs] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let number = theirs.as_raw_fd();
    let mut vmm = Command::new(env!("CARGO_BIN_EXE_flashpan-vmm"));
    // SAFETY: both calls are async-signal-safe, and take integers.
    unsafe {
        vmm.pre_exec(move || {
            libc::dup2(number, CONTROL_FD);
            libc::fcntl(CONTROL_FD, libc::F_SETFD, 0);
            Ok(())
        });
    }
    let ours = UnixDatagram::from(ours);
    ours.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    vmm.stderr(Stdio::null());
    (vmm.spawn().unwrap(), ours)
}

/// Whether the kernel has `process` ignore a signal (proc(5)).
fn ignores(process: &Child, signal: libc::c_int) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
    mask & 1 << (signal - 1) != 0
}

/// It could be ended by a guest that writes past the limit of its disk's file.
#[test]
fn a_limit_of_file_sizes_does_not_end_it() {
    let (mut vmm, control) = start();
    let hello = Request::Hello { version: VERSION };
    control.send(&encode(&hello).unwrap()).unwrap();
    let mut packet = vec![0; MAX_PACKET];
    let length = control.recv(&mut packet).unwrap();
    let answer = decode(packet.get(..length).unwrap()).unwrap();
    assert!(matches!(answer, Event::Hello { .. }), "{answer:?}");
    // It is in its jail, and waits for its orders.
    assert!(ignores(&vmm, libc::SIGXFSZ));
    drop(control);
    vmm.wait().unwrap();
}
