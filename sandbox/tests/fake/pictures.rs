//! Trees of files, and what is in them.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use flashpan::CopyOptions;

/// What is in a directory, by name, kind, mode, and content.
pub(crate) fn picture(root: &Path) -> Vec<(PathBuf, u32, i64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content = match meta {
            _ if meta.is_dir() => {
                left.extend(
                    fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
                Vec::new()
            }
            _ if meta.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_vec(),
            _ => fs::read(&path).unwrap(),
        };
        let name = path.strip_prefix(root).unwrap().to_owned();
        all.push((name, meta.mode(), meta.mtime(), content));
    }
    all.sort();
    all
}

/// A tree of everything that is copied.
pub(crate) fn tree(at: &Path) {
    fs::create_dir_all(at.join("deep/down")).unwrap();
    fs::write(at.join("deep/down/long"), vec![b'x'; 300_000]).unwrap();
    fs::write(at.join("deep/empty"), "").unwrap();
    fs::set_permissions(at.join("deep/empty"), PermissionsExt::from_mode(0o751)).unwrap();
    symlink("deep/down/long", at.join("link")).unwrap();
    let odd = std::ffi::OsString::from_vec(b"\xff\n-rf".to_vec());
    fs::write(at.join(odd), "odd").unwrap();
}

/// For whoever runs this, who need not be root.
pub(crate) fn options() -> CopyOptions {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    CopyOptions::new().owner(uid.as_raw(), gid.as_raw())
}
