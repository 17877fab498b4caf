//! The root is put together as PID 1 does it, in a mount namespace of the
//! test's own that begins, like a guest, with an almost empty root. Only root
//! can do that, and with loop devices.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use flashpan_protocol::agent::{FsType, RootConfig, Upper};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};

use super::super::{Root, enter};
use crate::{mounts, sys};

/// Block devices over files, and where they are.
struct Disks {
    directory: PathBuf,
    image: String,
    disk: String,
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn attach(file: &Path) -> String {
    run("losetup", &["--find", "--show", file.to_str().unwrap()])
}

impl Disks {
    /// An ext4 root image with `directories`, and an empty ext4 disk.
    fn new(name: &str, directories: &[&str]) -> Self {
        let directory =
            std::env::temp_dir().join(format!("guest-root-{}-{name}", std::process::id()));
        let tree = directory.join("tree");
        for part in directories {
            fs::create_dir_all(tree.join(part)).unwrap();
        }
        fs::write(tree.join("marker"), "of the image").unwrap();
        let (image, disk) = (directory.join("image"), directory.join("disk"));
        for file in [&image, &disk] {
            File::create(file).unwrap().set_len(16 << 20).unwrap();
        }
        run(
            "mkfs.ext4",
            &["-q", "-d", tree.to_str().unwrap(), image.to_str().unwrap()],
        );
        run("mkfs.ext4", &["-q", disk.to_str().unwrap()]);
        let (image, disk) = (attach(&image), attach(&disk));
        Self {
            directory,
            image,
            disk,
        }
    }

    fn config(&self, upper: Upper) -> RootConfig {
        let device = self.image.trim_start_matches("/dev/").to_owned();
        RootConfig {
            device,
            fs_type: FsType::Ext4,
            upper,
        }
    }

    fn upper(&self) -> Upper {
        Upper::Disk(self.disk.trim_start_matches("/dev/").to_owned())
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for device in [&self.image, &self.disk] {
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Runs `work` on a thread whose root is an empty tmpfs with the kernel's file
/// systems, as in the initramfs.
fn in_initramfs<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let inside = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(none, "/mnt", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        chdir("/mnt").unwrap();
        pivot_root(".", ".").unwrap();
        umount2(".", MntFlags::MNT_DETACH).unwrap();
        chdir("/").unwrap();
        mounts::devices().unwrap();
        mounts::kernel_file_systems().unwrap();
        work()
    };
    std::thread::spawn(inside).join().unwrap()
}

#[test]
#[ignore = "needs root and loop devices"]
fn writes_go_to_the_disk_and_no_part_of_the_root_stays_visible() {
    let disks = Disks::new("disk", &["etc", "dev", "proc", "sys"]);
    let config = disks.config(disks.upper());
    let seen = in_initramfs(move || {
        let Root { disk, warnings } = enter(&config, "box", &[], None).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(fs::read_to_string("/marker").unwrap(), "of the image");
        fs::write("/written", "kept").unwrap();
        assert!(fs::metadata("/dev/null").is_ok() && fs::metadata("/proc/self").is_ok());
        assert_eq!(fs::read_to_string("/etc/hostname").unwrap(), "box\n");
        // Up does not lead out of it.
        let inode = |path: &str| fs::metadata(path).unwrap().ino();
        assert_eq!(inode("/"), inode("/.."));
        let thread = fs::read_link("/proc/thread-self").unwrap();
        let mounts = fs::read_to_string(Path::new("/proc").join(thread).join("mounts")).unwrap();
        // Something has it open for writing to the last.
        let _open = File::create("/open").unwrap();
        nix::unistd::sync();
        sys::freeze(disk.unwrap()).unwrap();
        mounts
    });
    let roots: Vec<&str> = seen
        .lines()
        .filter(|line| line.split(' ').nth(1) == Some("/"))
        .collect();
    assert_eq!(roots.len(), 1, "{seen}");
    assert!(roots[0].starts_with("overlay / overlay rw"), "{seen}");
    assert!(
        !seen.contains("ext4") && !seen.contains("/upper "),
        "{seen}"
    );
    // As a VM that ends now leaves it: whole without any repair.
    let state = run("dumpe2fs", &["-h", &disks.disk]);
    assert!(
        state.contains("clean") && !state.contains("needs_recovery"),
        "{state}"
    );
    run("e2fsck", &["-fn", &disks.disk]);
    let content = run("debugfs", &["-R", "cat /upper/written", &disks.disk]);
    assert_eq!(content, "kept");
    // The frozen file system is released with the namespace that holds it.
    run(
        "sh",
        &[
            "-c",
            &format!(
                "d=$(mktemp -d); mount {0} $d; fsfreeze -u $d; umount $d; rmdir $d",
                disks.disk
            ),
        ],
    );
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_writable_root_gets_the_mount_points_that_it_lacks() {
    let disks = Disks::new("lacking", &["etc"]);
    let config = disks.config(Upper::Tmpfs);
    let seen = in_initramfs(move || {
        let root = enter(&config, "box", &[], None).unwrap();
        assert!(root.disk.is_none() && root.warnings.is_empty(), "{root:?}");
        ["/dev/null", "/proc/self", "/sys/kernel"].map(|path| fs::metadata(path).is_ok())
    });
    assert_eq!(seen, [true; 3]);
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_read_only_root_without_mount_points_is_refused_by_name() {
    let disks = Disks::new("read-only", &["dev", "sys"]);
    let config = disks.config(Upper::None);
    let failure = in_initramfs(move || enter(&config, "box", &[], None).map(drop).unwrap_err());
    assert_eq!(failure.what, "mount /proc in the root file system");
    assert!(
        failure
            .why
            .starts_with("the root image has no directory /proc"),
        "{failure}"
    );
}

#[test]
#[ignore = "needs root and loop devices"]
fn what_is_not_a_file_system_or_not_there_is_named() {
    let disks = Disks::new("wrong", &["dev"]);
    // What was a file system.
    fs::write(&disks.image, vec![7; 64 << 10]).unwrap();
    let config = |device: &str| RootConfig {
        device: device.to_owned(),
        fs_type: FsType::Ext4,
        upper: Upper::None,
    };
    let (spoiled, missing) = (disks.config(Upper::None).device, "vdz");
    let configs = [config(&spoiled), config(missing)];
    let failures = in_initramfs(move || {
        configs.map(|c| {
            enter(&c, "box", &[], None)
                .map(drop)
                .unwrap_err()
                .to_string()
        })
    });
    assert!(
        failures[0].contains("(ext4): Invalid argument (it is not a whole"),
        "{failures:?}"
    );
    assert!(
        failures[1].contains("/dev/vdz") && failures[1].contains("no such block device"),
        "{failures:?}"
    );
}
