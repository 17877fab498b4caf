//! The kernel's file systems, as programs expect them.
//!
//! They are mounted in the initramfs, while the supervisor still answers, and
//! moved into the root afterwards (see `root`).
//!
//! `/run` and `/tmp` are left as the image has them, as docker does: a tmpfs
//! there would hide what the image has put in, and with a writable root there
//! is no need for one.

use std::os::fd::{AsRawFd, IntoRawFd};

use flashpan_protocol::agent::INIT_LOG;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::{mkdir, symlinkat, write};

use crate::failure::{During, Failure};

/// A file system without a device.
struct Mount {
    kind: &'static str,
    target: &'static str,
    options: &'static str,
    /// Whether programs can do without.
    optional: bool,
}

/// What is mounted besides `/dev`, in this order.
const MOUNTS: [Mount; 6] = [
    Mount {
        kind: "proc",
        target: "/proc",
        options: "",
        optional: false,
    },
    Mount {
        kind: "sysfs",
        target: "/sys",
        options: "",
        optional: false,
    },
    Mount {
        kind: "cgroup2",
        target: "/sys/fs/cgroup",
        options: "",
        optional: true,
    },
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        // Group 5 is `tty` in every distribution.
        options: "gid=5,mode=620,ptmxmode=666",
        optional: false,
    },
    Mount {
        kind: "tmpfs",
        target: "/dev/shm",
        options: "mode=1777",
        optional: true,
    },
    Mount {
        kind: "mqueue",
        target: "/dev/mqueue",
        options: "",
        optional: true,
    },
];

/// Links in `/dev` that programs and shells rely on. `ptmx` is not among them:
/// the device node of devtmpfs finds `/dev/pts` beside itself.
pub(crate) const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
];

/// Where control groups are.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";

/// Mounts `/dev` and makes sure that descriptors 0 to 2 are taken: without a
/// console the kernel starts PID 1 with none, and the next ones to be opened
/// would be mistaken for standard input and output.
pub(crate) fn devices() -> Result<(), Failure> {
    directory("/dev").during("make the directory /dev in the initramfs")?;
    let (source, options) = (Some("dev"), Some("mode=755"));
    match mount(
        source,
        "/dev",
        Some("devtmpfs"),
        MsFlags::MS_NOSUID,
        options,
    ) {
        // The kernel may have done it already (DEVTMPFS_MOUNT).
        Ok(()) | Err(Errno::EBUSY) => {}
        Err(errno) => return Err(Failure::system("mount devtmpfs on /dev", errno)),
    }
    loop {
        let null = open("/dev/null", OFlag::O_RDWR, Mode::empty()).during("open /dev/null")?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        // Kept open for the life of PID 1.
        let _ = null.into_raw_fd();
    }
}

/// Mounts everything else. Returns what went wrong with things that programs
/// can do without.
pub(crate) fn kernel_file_systems() -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for Mount {
        kind,
        target,
        options,
        optional,
    } in &MOUNTS
    {
        // Terminals are devices.
        let flags = if *kind == "devpts" {
            flags - MsFlags::MS_NODEV
        } else {
            flags
        };
        let done = directory(target)
            .and_then(|()| mount(Some(*kind), *target, Some(*kind), flags, Some(*options)));
        match done {
            Ok(()) => {}
            Err(errno) if *optional => {
                warnings.push(format!("mount {kind} on {target}: {}", errno.desc()));
            }
            Err(errno) => {
                return Err(Failure::system(format!("mount {kind} on {target}"), errno));
            }
        }
    }
    for (to, link) in LINKS {
        match symlinkat(to, nix::fcntl::AT_FDCWD, link) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => warnings.push(format!("link {link} to {to}: {}", errno.desc())),
        }
    }
    Ok(warnings)
}

/// Keeps the out-of-memory killer away from this process.
pub(crate) fn never_kill_me() -> nix::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = open("/proc/self/oom_score_adj", flags, Mode::empty())?;
    write(file, b"-1000").map(drop)
}

/// Makes a directory unless it is there.
pub(crate) fn directory(path: &str) -> nix::Result<()> {
    match mkdir(path, Mode::from_bits_truncate(0o755)) {
        // Read-only: whoever uses it finds out whether it is there.
        Ok(()) | Err(Errno::EEXIST | Errno::EROFS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// What is written to `/dev/kmsg`: a priority (0 is the highest, an emergency)
/// and a line that says who speaks, by which the supervisor finds it.
fn log_record(message: &str) -> String {
    format!("<0>{INIT_LOG}{message}\n")
}

/// Tells the kernel's log, and so the console if there is one. Only for what
/// ends the guest: it has the priority of a panic, because the console shows
/// nothing less unless it was asked to (`loglevel=1`).
pub(crate) fn log(message: &str) {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    if let Ok(file) = open("/dev/kmsg", flags, Mode::empty()) {
        let _ = write(file, log_record(message).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::log_record;

    #[test]
    fn last_words_have_a_priority_that_the_console_shows() {
        // The VMM's command line has loglevel=1: only what is below is shown.
        let record = log_record("mount sysfs on /sys: No such device");
        let (priority, text) = record[1..].split_once('>').unwrap();
        assert!(priority.parse::<u32>().unwrap() < 1, "{record}");
        assert_eq!(text, "flashpan-init: mount sysfs on /sys: No such device\n");
    }
}
