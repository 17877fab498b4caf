//! Disks with file systems: the one that takes the writes to the root, and those
//! that are mounted below it.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use flashpan_protocol::agent::{FsType, MountConfig};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::mkdir;

use crate::failure::{During, Failure};

/// `discard` gives what is deleted back to the host, whose file has a hole
/// there. A file system with errors goes read-only rather than take the guest
/// down: its programs see `EROFS`.
const WRITABLE: &str = "discard,errors=remount-ro";

/// A file system that is mounted and can be frozen.
pub(crate) type Writable = OwnedFd;

/// Mounts an ext4 file system for writing.
pub(crate) fn mount_writable(device: &str, target: &str) -> Result<Writable, Failure> {
    let what = |device: &str| format!("mount the writable disk {device} (ext4)");
    ext4(device, target, MsFlags::empty(), Some(WRITABLE), what)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(target, flags, Mode::empty()).during("open the writable disk")
}

/// Mounts everything in order, below the root directory of this process.
/// Returns what has to be frozen at the end.
pub(crate) fn mount_all(configs: &[MountConfig]) -> Result<Vec<Writable>, Failure> {
    let mut writable = Vec::new();
    for config in configs {
        mount_point(&config.path)?;
        if config.read_only {
            let what = |device: &str| format!("mount the disk {device} on {}", config.path);
            // `noload`: a journal cannot be replayed on what cannot be written.
            let (flags, options) = (MsFlags::MS_RDONLY, Some("noload"));
            ext4(&config.device, &config.path, flags, options, what)?;
        } else {
            writable.push(mount_writable(&config.device, &config.path)?);
        }
    }
    Ok(writable)
}

fn ext4(
    device: &str,
    target: &str,
    flags: MsFlags,
    options: Option<&str>,
    what: impl Fn(&str) -> String,
) -> Result<(), Failure> {
    let device = device_path(device, &what)?;
    mount(Some(device.as_str()), target, Some("ext4"), flags, options)
        .map_err(|errno| mount_failure(what(&device), errno, FsType::Ext4))
}

/// Makes the directories that lead to `path`. Links are followed: they lead
/// nowhere but to this root.
fn mount_point(path: &str) -> Result<(), Failure> {
    let what = || format!("make the mount point {path}");
    let mut made = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::RootDir => made.push("/"),
            Component::Normal(name) => {
                made.push(name);
                match mkdir(&made, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(Errno::EROFS) if made.is_dir() => {}
                    Err(Errno::EROFS) => {
                        let why = "the root is read-only and has no such directory; add it to the \
                                   image or make the root writable";
                        return Err(Failure::new(what(), why));
                    }
                    Err(errno) => return Err(Failure::system(what(), errno)),
                }
            }
            Component::CurDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(Failure::new(what(), "it has `.` or `..` in it"));
            }
        }
    }
    let long_enough = path.starts_with('/') && made != Path::new("/");
    if long_enough {
        Ok(())
    } else {
        Err(Failure::new(what(), "it is not an absolute path below /"))
    }
}

/// The path of a block device named by the supervisor.
pub(crate) fn device_path(name: &str, what: impl Fn(&str) -> String) -> Result<String, Failure> {
    if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
        return Err(Failure::new(
            what(name),
            "not the name of a device; want one like vda",
        ));
    }
    Ok(format!("/dev/{name}"))
}

/// What `mount(2)` said, with what it means.
pub(crate) fn mount_failure(what: String, errno: Errno, kind: FsType) -> Failure {
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
        Errno::ENOTDIR => "there is something else than a directory".to_owned(),
        _ => return failure,
    };
    failure.why = format!("{} ({hint})", failure.why);
    failure
}
