//! Files that are the host's own loop devices: mounted, as a rule.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the kernel tells of block devices.
pub(super) const BLOCK_DEVICES: &str = "/sys/block";

/// A loop device that has a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loop {
    /// Such as `/dev/loop0`.
    pub(super) device: String,
    pub(super) read_only: bool,
}

/// The loop device that has the file, by what is said in `devices`. Nobody is
/// asked for rights to look; a file that was renamed since is not recognised.
pub(super) fn of(devices: &Path, file: &Metadata) -> Option<Loop> {
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().into_string().unwrap_or_default();
        if !name.starts_with("loop") {
            continue;
        }
        // Absent while the device has no file.
        let Ok(mut backing) = fs::read(entry.path().join("loop/backing_file")) else {
            continue;
        };
        if backing.last() == Some(&b'\n') {
            backing.pop();
        }
        let backing = PathBuf::from(OsString::from_vec(backing));
        let same = |there: Metadata| (there.dev(), there.ino()) == (file.dev(), file.ino());
        if fs::metadata(backing).is_ok_and(same) {
            let read_only = fs::read(entry.path().join("ro"));
            return Some(Loop {
                device: format!("/dev/{name}"),
                read_only: read_only.is_ok_and(|text| text.starts_with(b"1")),
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_recognised_by_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        let other = dir.path().join("other");
        let link = dir.path().join("link\nto");
        for file in [&disk, &other] {
            fs::write(file, "").unwrap();
        }
        fs::hard_link(&disk, &link).unwrap();
        let devices = dir.path().join("block");
        let device = |name: &str, file: &Path, ro: &str| {
            let there = devices.join(name);
            fs::create_dir_all(there.join("loop")).unwrap();
            let text = [file.as_os_str().as_encoded_bytes(), b"\n"].concat();
            fs::write(there.join("loop/backing_file"), text).unwrap();
            fs::write(there.join("ro"), ro).unwrap();
        };
        let found = || of(&devices, &fs::metadata(&disk).unwrap());
        assert_eq!(found(), None);
        // Without a file, of another file, and no loop device at all.
        fs::create_dir_all(devices.join("loop0")).unwrap();
        device("loop1", &other, "0\n");
        device("vda", &disk, "0\n");
        assert_eq!(found(), None);
        device("loop7", &link, "1\n");
        let wanted = Loop {
            device: "/dev/loop7".to_owned(),
            read_only: true,
        };
        assert_eq!(found(), Some(wanted));
    }
}
