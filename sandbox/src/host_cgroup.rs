//! A control group of the host for a VMM that may use a fraction of a processor.
//!
//! The guest keeps to the fraction by itself, but only as long as its kernel is its own.
//! Where the host lets this user make control groups (cgroup v2, the controller `cpu`
//! switched on in a group that belongs to them, as systemd does it for the services of a
//! user), the whole VMM is held to it from outside. Nothing is switched on here: that is
//! for the owner of the groups.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where control groups are: alone, or beside those of version 1.
const PLACES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// How the names of groups begin.
const PREFIX: &str = "flashpan-vmm-";

/// Microseconds in which a VMM gets its share.
const PERIOD_US: u64 = 100_000;

/// The group of one VMM. Dropped when that has ended, it is removed.
#[derive(Debug)]
pub(crate) struct HostCgroup {
    directory: PathBuf,
}

impl HostCgroup {
    /// Holds a process to so many thousandths of a processor; `None` where this user may
    /// not.
    pub(crate) fn hold(pid: i32, thousandths: u32) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let root = PLACES.iter().map(Path::new).find(|place| {
            statfs(*place).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
        })?;
        let own = root.join(own);
        // The nearest one that can: a group with processes in it gives no shares to
        // groups below it.
        let above = own.ancestors().take_while(|group| group.starts_with(root));
        above
            .filter(|group| has_cpu(group))
            .find_map(|group| Self::below(group, pid, thousandths).ok())
    }

    fn below(group: &Path, pid: i32, thousandths: u32) -> io::Result<Self> {
        sweep(group);
        let directory = group.join(format!("{PREFIX}{pid}"));
        fs::create_dir(&directory)?;
        let made = Self { directory };
        let quota = u64::from(thousandths).saturating_mul(PERIOD_US / 1000);
        fs::write(
            made.directory.join("cpu.max"),
            format!("{quota} {PERIOD_US}"),
        )?;
        fs::write(made.directory.join("cgroup.procs"), pid.to_string())?;
        Ok(made)
    }
}

impl Drop for HostCgroup {
    fn drop(&mut self) {
        // One that has processes still is found by the next.
        let _ = fs::remove_dir(&self.directory);
    }
}

fn has_cpu(group: &Path) -> bool {
    let controllers = fs::read_to_string(group.join("cgroup.subtree_control"));
    controllers.is_ok_and(|all| all.split_whitespace().any(|name| name == "cpu"))
}

/// Removes what supervisors that were killed left: a group without processes. One that is
/// just being made by another is no longer there for it, which then does without.
fn sweep(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| {
            let pid = name.strip_prefix(PREFIX);
            pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
        });
        if ours {
            // It fails for one with processes in it.
            let _ = fs::remove_dir(entry.path());
        }
    }
}
