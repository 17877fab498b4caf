//! From the initramfs to the root file system of the guest.
//!
//! The parts are mounted in the initramfs, put together by overlayfs and
//! detached again: the overlay keeps them alive, and no path leads to them any
//! more. The root then moves over the initramfs, which `pivot_root(2)` cannot
//! leave (it is the kernel's `rootfs`). Nothing in the initramfs is worth
//! freeing: its one file is this running program.

use std::os::fd::OwnedFd;
use std::path::Path;

use flashpan_protocol::agent::{FsType, RootConfig, Upper};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, lstat};
use nix::unistd::{chdir, chroot, mkdir};

use crate::failure::{During, Failure};
use crate::mounts::directory;
use crate::network;

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
/// writable one learns its host name.
pub(crate) fn enter(config: &RootConfig, hostname: &str) -> Result<Root, Failure> {
    directory(NEW_ROOT).during("make the directory /newroot in the initramfs")?;
    let mut disk = None;
    let mut warnings = Vec::new();
    let writable = config.upper != Upper::None;
    if writable {
        mount_image(config, LOWER)?;
        disk = mount_upper(&config.upper)?;
        warnings = network::write_names(Path::new(LOWER), Path::new(UPPER_LAYER), hostname);
        overlay()?;
    } else {
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

/// The path of a block device named by the supervisor.
fn device_path(name: &str, what: impl Fn(&str) -> String) -> Result<String, Failure> {
    if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
        return Err(Failure::new(
            what(name),
            "not the name of a device; want one like vda",
        ));
    }
    Ok(format!("/dev/{name}"))
}

fn mount_failure(what: String, errno: Errno, kind: FsType) -> Failure {
    let mut failure = Failure::system(what, errno);
    let name = kind.name();
    let hint = match errno {
        Errno::EINVAL | Errno::EUCLEAN | Errno::EBADMSG => {
            format!("it is not a whole and undamaged {name} file system")
        }
        Errno::ENODEV => format!("the guest's kernel has no {name}"),
        Errno::ENOENT | Errno::ENXIO | Errno::ENOTBLK => {
            "the VM has no such block device".to_owned()
        }
        Errno::EROFS => {
            format!("its journal must be replayed first; run e2fsck on the {name} image")
        }
        _ => return failure,
    };
    failure.why = format!("{} ({hint})", failure.why);
    failure
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
        Upper::Disk(name) => {
            let what = |device: &str| format!("mount the writable disk {device} (ext4)");
            let device = device_path(name, what)?;
            mount(
                Some(device.as_str()),
                UPPER,
                Some("ext4"),
                MsFlags::empty(),
                None::<&str>,
            )
            .map_err(|errno| mount_failure(what(&device), errno, FsType::Ext4))?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            Some(open(UPPER, flags, Mode::empty()).during("open the writable disk")?)
        }
    };
    for part in [UPPER_LAYER, UPPER_WORK] {
        match mkdir(part, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => {
                return Err(Failure::system(
                    format!("make {part} on the writable disk"),
                    errno,
                ));
            }
        }
    }
    Ok(disk)
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
