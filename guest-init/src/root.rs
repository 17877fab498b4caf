//! From the initramfs to the root file system of the guest.
//!
//! The parts are mounted in the initramfs, put together by overlayfs and
//! detached again: the overlay keeps them alive, and no path leads to them any
//! more. The root then moves over the initramfs, which `pivot_root(2)` cannot
//! leave (it is the kernel's `rootfs`). Nothing in the initramfs is worth
//! freeing: its one file is this running program.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;

use flashpan_protocol::agent::{HostEntry, RootConfig, Upper};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, lstat};
use nix::unistd::{chdir, chroot, mkdir};

use crate::disks::{self, device_path, mount_failure};
use crate::failure::{During, Failure};
use crate::mounts::directory;
use crate::network;
use crate::twin::Twin;

const NEW_ROOT: &str = "/newroot";
const LOWER: &str = "/lower";
const UPPER: &str = "/upper";
const UPPER_LAYER: &str = "/upper/upper";
const UPPER_WORK: &str = "/upper/work";

/// Mounted in the initramfs, moved into the root.
const MOVED: [&str; 3] = ["dev", "proc", "sys"];

/// The root file system, entered.
#[derive(Debug)]
pub(crate) struct Root {
    /// A directory on the disk that takes the writes, to freeze it by.
    pub(crate) disk: Option<OwnedFd>,
    /// What went wrong with things that programs can do without.
    pub(crate) warnings: Vec<String>,
}

/// Mounts what `config` describes and makes it the root of this process; a
/// writable one learns its host name, `hosts`, and who resolves names.
pub(crate) fn enter(
    config: &RootConfig,
    hostname: &str,
    hosts: &[HostEntry],
    resolver: Option<Ipv4Addr>,
) -> Result<Root, Failure> {
    directory(NEW_ROOT).during("make the directory /newroot in the initramfs")?;
    let mut disk = None;
    let mut warnings = Vec::new();
    let writable = config.upper != Upper::None;
    network::check_hosts(hosts, writable)?;
    if writable {
        mount_image(config, LOWER)?;
        disk = mount_upper(&config.upper)?;
        let layer = Twin::make(UPPER_LAYER.into(), Path::new(LOWER))
            .during("make /upper/upper on the writable disk")?;
        warnings = network::write_names(
            Path::new(LOWER),
            Path::new(UPPER_LAYER),
            hostname,
            hosts,
            resolver,
        );
        make_mount_points()?;
        layer
            .settle()
            .during("set the times of the root directory")?;
        overlay()?;
    } else {
        if resolver.is_some() {
            let why = "the root file system is read-only";
            warnings.push(format!("write /etc/resolv.conf: {why}"));
        }
        mount_image(config, NEW_ROOT)?;
    }
    for name in MOVED {
        move_into_root(name, writable)?;
    }
    // As switch_root(8) does it.
    chdir(NEW_ROOT).during("enter the root file system")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .during("move the root file system to /")?;
    chroot(".").during("make the root file system the root directory")?;
    chdir("/").during("enter the root directory")?;
    Ok(Root { disk, warnings })
}

fn mount_image(config: &RootConfig, target: &str) -> Result<(), Failure> {
    let kind = config.fs_type;
    let what = |device: &str| format!("mount the root image {device} ({})", kind.name());
    let device = device_path(&config.device, what)?;
    directory(target).during("make a mount point in the initramfs")?;
    let flags = MsFlags::MS_RDONLY;
    mount(
        Some(device.as_str()),
        target,
        Some(kind.name()),
        flags,
        None::<&str>,
    )
    .map_err(|errno| mount_failure(what(&device), errno, kind))
}

fn mount_upper(upper: &Upper) -> Result<Option<OwnedFd>, Failure> {
    directory(UPPER).during("make a mount point in the initramfs")?;
    let disk = match upper {
        Upper::None => return Ok(None),
        Upper::Tmpfs => {
            mount(
                Some("tmpfs"),
                UPPER,
                Some("tmpfs"),
                MsFlags::empty(),
                Some("mode=755"),
            )
            .during("mount a tmpfs for what is written to the root")?;
            None
        }
        Upper::Disk(name) => Some(disks::mount_writable(name, UPPER)?),
    };
    match mkdir(UPPER_WORK, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(disk),
        Err(errno) => Err(errno).during("make /upper/work on the writable disk"),
    }
}

/// Where the image has no directory for a kernel file system, the upper layer gets
/// it: through the overlay it would show in the times of the root directory.
fn make_mount_points() -> Result<(), Failure> {
    for name in MOVED {
        if lstat(format!("{LOWER}/{name}").as_str()) == Err(Errno::ENOENT) {
            let point = format!("{UPPER_LAYER}/{name}");
            match mkdir(point.as_str(), Mode::from_bits_truncate(0o755)) {
                // Whatever an earlier run left there: `move_into_root` looks at it.
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).during(&format!("make {point}")),
            }
        }
    }
    Ok(())
}

fn overlay() -> Result<(), Failure> {
    let options = "lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work";
    mount(
        Some("overlay"),
        NEW_ROOT,
        Some("overlay"),
        MsFlags::empty(),
        Some(options),
    )
    .during("mount overlayfs over the root image")?;
    for part in [LOWER, UPPER] {
        umount2(part, MntFlags::MNT_DETACH).during("detach a part of the root file system")?;
    }
    Ok(())
}

fn move_into_root(name: &str, writable: bool) -> Result<(), Failure> {
    let target = format!("{NEW_ROOT}/{name}");
    let what = || format!("mount /{name} in the root file system");
    let missing = match lstat(target.as_str()) {
        Ok(stat) if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR => {
            false
        }
        // A link would lead out of the root.
        Ok(_) => {
            let why = format!("/{name} is not a directory in the root image");
            return Err(Failure::new(what(), why));
        }
        Err(Errno::ENOENT) => true,
        Err(errno) => return Err(Failure::system(what(), errno)),
    };
    if missing && !writable {
        let why = format!(
            "the root image has no directory /{name} and the root is read-only; add it to the image or make the root writable"
        );
        return Err(Failure::new(what(), why));
    }
    if missing {
        mkdir(target.as_str(), Mode::from_bits_truncate(0o755)).during(&what())?;
    }
    let source = format!("/{name}");
    mount(
        Some(source.as_str()),
        target.as_str(),
        None::<&str>,
        MsFlags::MS_MOVE,
        None::<&str>,
    )
    .during(&what())
}

#[cfg(test)]
mod tests;
