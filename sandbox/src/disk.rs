//! Disks of a VM besides its root image.

use std::fmt;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::rate::RateLimit;

/// Longest path of a mount in the guest, in bytes (`PATH_MAX` without its NUL).
const MAX_GUEST_PATH: usize = 4095;

/// Where the guest's kernel has file systems that programs depend on.
const TAKEN: [&str; 3] = ["/dev", "/proc", "/sys"];

/// What takes the guest's writes to its root.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Upper {
    /// Guest memory; lost at the end.
    #[default]
    Memory,
    /// Nothing: the root is read-only.
    ReadOnly,
    /// An ext4 disk that is thrown away at the end. The guest's flushes are
    /// answered without waiting for the host's storage.
    Scratch(File),
    /// An ext4 disk that outlives the VM.
    Disk(File),
}

/// A disk of a VM by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskRole {
    /// The root image.
    Root,
    /// What takes the writes to the root.
    Upper,
    /// A disk that was added ([`crate::SandboxBuilder::disk`]), counted from 0.
    Added(usize),
}

/// A disk of a VM for whose content the host had no room: the guest's writes to
/// it failed, which looks like a broken disk from inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FullDisk {
    /// Which disk.
    pub role: DiskRole,
    /// How many of the guest's requests failed for that.
    pub failures: u64,
}

/// A disk with an ext4 file system that the guest mounts below its root.
///
/// Whoever opens the file also sees to it that nobody else writes to it
/// meanwhile: `flashpan_rootfs::disk::open` does, with a lock that lasts as long
/// as the file is open anywhere, the VMM included.
#[derive(Debug)]
pub struct Disk {
    pub(crate) file: File,
    pub(crate) guest_path: String,
    pub(crate) read_only: bool,
    pub(crate) rate: Option<RateLimit>,
}

impl Disk {
    /// A disk in `file`, opened for writing, mounted at `guest_path`: an
    /// absolute path, not `/` and not in `/dev`, `/proc` or `/sys`. Directories
    /// that are missing are made.
    pub fn new(file: File, guest_path: impl Into<String>) -> Self {
        Self {
            file,
            guest_path: guest_path.into(),
            read_only: false,
            rate: None,
        }
    }

    /// The guest may not write to it; the file need not be open for writing.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Limits its I/O. Where all disks of the VM are limited
    /// ([`crate::SandboxBuilder::disk_rate`]), it keeps to both.
    #[must_use]
    pub fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.rate = Some(limit);
        self
    }
}

/// Checks the mount points of all disks together.
pub(crate) fn check_guest_paths<'a>(paths: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen: Vec<PathBuf> = Vec::new();
    for path in paths {
        check_guest_path(path).map_err(|why| Error::config("disks", why))?;
        let path: PathBuf = Path::new(path).components().collect();
        if seen.contains(&path) {
            let why = format!(
                "two disks at {}; give each a path of its own",
                path.display()
            );
            return Err(Error::config("disks", why));
        }
        seen.push(path);
    }
    Ok(())
}

fn check_guest_path(path: &str) -> std::result::Result<(), String> {
    let refused = |why: &str| {
        Err(format!(
            "cannot mount a disk at {path:?} in the guest: {why}"
        ))
    };
    if path.len() > MAX_GUEST_PATH {
        return Err(format!(
            "a path in the guest has {} bytes; Linux takes {MAX_GUEST_PATH}",
            path.len()
        ));
    }
    if !path.starts_with('/') {
        return refused("want an absolute path");
    }
    if path.contains('\0') {
        return refused("it has a NUL in it");
    }
    let parsed = Path::new(path);
    // `.` survives only at the beginning of a path, where there is a `/` here.
    if parsed.components().any(|part| part == Component::ParentDir) {
        return refused("it has `..` in it");
    }
    if parsed == Path::new("/") {
        return refused("the root is there; see --rootfs and --image");
    }
    match TAKEN.iter().find(|taken| parsed.starts_with(taken)) {
        Some(taken) => refused(&format!("the guest's kernel has {taken}")),
        None => Ok(()),
    }
}

/// What a user writes for a disk: `HOST:GUEST[:ro]` or `@VOLUME:GUEST[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskMount {
    /// What is mounted.
    pub source: DiskSource,
    /// Absolute path in the guest.
    pub guest_path: String,
    /// Whether the guest may not write to it.
    pub read_only: bool,
}

/// The file behind a [`DiskMount`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// An ext4 image of the user's.
    File(PathBuf),
    /// A named volume.
    Volume(String),
}

impl FromStr for DiskMount {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            let why = format!(
                "`{text}`: {why}; write HOST_FILE:GUEST_DIR[:ro] or @VOLUME:GUEST_DIR[:ro]"
            );
            Error::config("disk", why)
        };
        let mut parts = text.split(':');
        let (Some(source), Some(guest_path)) = (parts.next(), parts.next()) else {
            return Err(wrong("there is no `:` and no path in the guest"));
        };
        let read_only = match (parts.next(), parts.next()) {
            (None, _) => false,
            (Some("ro" | "readonly"), None) => true,
            (Some("rw"), None) => false,
            (Some(option), None) => return Err(wrong(&format!("unknown option `{option}`"))),
            (Some(_), Some(_)) => return Err(wrong("too many `:`")),
        };
        check_guest_path(guest_path).map_err(|why| wrong(&why))?;
        let source = match source.strip_prefix('@') {
            Some("") => return Err(wrong("the volume has no name")),
            Some(name) => DiskSource::Volume(name.to_owned()),
            None if source.is_empty() => return Err(wrong("there is no file")),
            None => DiskSource::File(source.into()),
        };
        Ok(Self {
            source,
            guest_path: guest_path.to_owned(),
            read_only,
        })
    }
}

impl fmt::Display for DiskMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            DiskSource::File(path) => write!(f, "{}", path.display())?,
            DiskSource::Volume(name) => write!(f, "@{name}")?,
        }
        write!(f, ":{}", self.guest_path)?;
        if self.read_only {
            write!(f, ":ro")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_written_as_they_are_read() {
        for (text, source, read_only) in [
            (
                "disk.ext4:/data",
                DiskSource::File("disk.ext4".into()),
                false,
            ),
            (
                "/a b/c:/data/deep:ro",
                DiskSource::File("/a b/c".into()),
                true,
            ),
            (
                "@cache:/root/.cache",
                DiskSource::Volume("cache".to_owned()),
                false,
            ),
        ] {
            let mount: DiskMount = text.parse().unwrap();
            assert_eq!((&mount.source, mount.read_only), (&source, read_only));
            assert_eq!(mount.to_string(), text);
        }
        let mount: DiskMount = "@v:/x:readonly".parse().unwrap();
        assert_eq!(mount.to_string(), "@v:/x:ro");
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "no path in the guest"),
            ("disk", "no path in the guest"),
            (":/data", "there is no file"),
            ("@:/data", "the volume has no name"),
            ("disk:data", "absolute path"),
            ("disk:", "absolute path"),
            ("disk:/", "the root is there"),
            ("disk://", "the root is there"),
            ("disk:/a/../b", "`..`"),
            ("disk:/proc/x", "the guest's kernel has /proc"),
            ("disk:/dev", "the guest's kernel has /dev"),
            ("disk:/a\0", "NUL"),
            ("disk:/data:rox", "unknown option `rox`"),
            ("disk:/data:ro:ro", "too many"),
        ] {
            let error = text.parse::<DiskMount>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let long = format!("disk:/{}", "x".repeat(5000));
        assert!(long.parse::<DiskMount>().is_err());
    }

    #[test]
    fn two_disks_cannot_be_in_one_place() {
        assert!(check_guest_paths(["/a", "/b"].into_iter()).is_ok());
        let error = check_guest_paths(["/a/b", "/a//b/"].into_iter()).unwrap_err();
        assert!(error.to_string().contains("two disks at /a/b"), "{error}");
        // One inside the other is in order.
        assert!(check_guest_paths(["/a", "/a/b"].into_iter()).is_ok());
    }
}
