//! A network namespace with a TAP device in it: the guest of everything that is measured,
//! which is Linux's own TCP.
#![allow(unsafe_code)] // A TAP device is made by ioctl(2).

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

/// Name of the device in its namespace.
pub(super) const TAP: &str = "tap0";

/// Length of what precedes a frame of a TAP device with offloads: that of the ring.
const HEADER_LEN: libc::c_int = 12;

type Job = Box<dyn FnOnce() + Send>;

/// See the [module](self). It is gone with the thread that is in it, and with the last
/// descriptor that was opened there.
pub(super) struct Space {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
    path: PathBuf,
}

impl Space {
    /// # Errors
    /// Only root may make one.
    pub(super) fn new() -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (made, is_made) = mpsc::channel();
        let thread = thread::Builder::new().name("guest".to_owned());
        let thread = thread.spawn(move || {
            let unshared = unshare(CloneFlags::CLONE_NEWNET);
            let _ = made.send(unshared.map(|()| gettid()));
            for job in queue {
                job();
            }
        })?;
        let thread_id = (is_made.recv()?)
            .context("make a network namespace, which only root may: run the benchmark as root")?;
        let path = format!("/proc/{}/task/{thread_id}/ns/net", std::process::id());
        let space = Self {
            jobs: Some(jobs),
            thread: Some(thread),
            path: path.into(),
        };
        space.run(|| ip("link set lo up"))??;
        // A new namespace has what the host has, which may pace itself by a clock. This one
        // does not, as what guests have by default, and is allowed in every namespace.
        let control = "/proc/sys/net/ipv4/tcp_congestion_control";
        (space.run(move || std::fs::write(control, "reno"))?)
            .with_context(|| format!("write {control}"))?;
        Ok(space)
    }

    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Does something in it: sockets that are made then belong to it.
    pub(super) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = done.send(job());
        });
        let gone = || anyhow!("the thread of a network namespace has ended");
        (self.jobs.as_ref().ok_or_else(gone)?.send(job)).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs `ip` in the namespace of this thread.
pub(super) fn ip(words: &str) -> Result<()> {
    let output = (Command::new("ip").args(words.split(' ')).output()).context("start ip")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {words}: {}", said.trim());
    }
    Ok(())
}

/// What a TAP device gives and takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frames {
    /// Frames of the link's length, with all checksums.
    Plain,
    /// What virtio-net has: partial checksums and long segments, with a header before each
    /// frame.
    Offloaded,
}

/// Makes the TAP device in the namespace of this thread.
pub(super) fn tap(frames: Frames) -> Result<File> {
    let what = "make a TAP device";
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
    if frames == Frames::Offloaded {
        flags |= libc::IFF_VNET_HDR;
    }
    // SAFETY: all fields of `ifreq` are numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = libc::c_char::try_from(from)?;
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags)?;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which lives.
    let set = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(set, what)?;
    if frames == Frames::Offloaded {
        let len = HEADER_LEN;
        // SAFETY: TUNSETVNETHDRSZ reads an `int`, which lives.
        let set = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
        check(set, "set the header of a TAP device")?;
        let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // SAFETY: TUNSETOFFLOAD takes a number.
        let set = unsafe {
            let offloads = libc::c_ulong::from(offloads);
            libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, offloads)
        };
        check(set, "set the offloads of a TAP device")?;
    }
    Ok(tap)
}

fn check(returned: libc::c_int, what: &'static str) -> Result<()> {
    match returned {
        0.. => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context(what),
    }
}
