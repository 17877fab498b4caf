//! Volumes as they are given on a command line.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::code::ErrorCode;
use super::guest_path::{GuestPathError, clean, validate_guest_path_within_workspace};
use super::problem::quoted;
use super::vfs::{MountConfig, MountType};
use crate::text::shown_path;

/// Why a text is no volume.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// It has not two or three parts.
    #[error("expected format host:guest or host:guest:ro")]
    Format,
    /// The host path cannot be made absolute.
    #[error("failed to resolve path {}: {source}", quoted(path))]
    Resolve {
        /// The path.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The host path is not there.
    #[error("host path does not exist: {}", shown_path(.0))]
    HostPathNotFound(PathBuf),
    /// The host path cannot be looked at.
    #[error("cannot look at host path {}: {source}", shown_path(path))]
    HostPath {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The option is unknown.
    #[error("unknown option {} (use 'ro', 'overlay', or 'host_fs')", quoted(.0))]
    Option(String),
    /// The path in the guest cannot be used.
    #[error(transparent)]
    GuestPath(#[from] GuestPathError),
}

impl VolumeError {
    /// The stable name of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Format => ErrorCode::VolumeFormat,
            Self::HostPathNotFound(_) => ErrorCode::HostPathNotFound,
            Self::Resolve { .. } | Self::HostPath { .. } => ErrorCode::HostPathUnusable,
            Self::Option(_) => ErrorCode::VolumeOption,
            Self::GuestPath(error) => error.code(),
        }
    }
}

/// A path of the host that the guest sees in its workspace.
///
/// Read from `host:guest[:option]` by [`VolumeMountSpec::parse`]. Options, in any
/// case: `overlay` (the default), `host_fs`, and `ro` or `readonly` for `host_fs`
/// that the guest cannot write to. Written in the same form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMountSpec {
    /// Absolute path on the host of what exists.
    pub host_path: PathBuf,
    /// Absolute path in the guest.
    pub guest_path: String,
    /// [`MountType::Overlay`] or [`MountType::HostFs`].
    pub mount_type: MountType,
    /// Whether the guest cannot write to it.
    pub readonly: bool,
}

impl VolumeMountSpec {
    /// Reads a volume. A relative host path is taken from the working directory
    /// of this process, a relative path in the guest from the workspace.
    ///
    /// # Errors
    /// [`VolumeError`]: wrong form, unknown option, host path that is not there,
    /// path in the guest that is not in the workspace.
    pub fn parse(spec: &str, workspace: &str) -> Result<Self, VolumeError> {
        let mut parts = spec.split(':');
        let (Some(host), Some(guest), option, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(VolumeError::Format);
        };
        let host_path = existing(host)?;
        let (mount_type, readonly) = match option.map(|text| text.trim().to_ascii_lowercase()) {
            None => (MountType::Overlay, false),
            Some(option) => match option.as_str() {
                "ro" | "readonly" => (MountType::HostFs, true),
                "overlay" => (MountType::Overlay, false),
                "host_fs" => (MountType::HostFs, false),
                _ => return Err(VolumeError::Option(option)),
            },
        };
        let guest_path = match guest.starts_with('/') {
            true => clean(guest),
            false if workspace.is_empty() => clean(guest),
            false => clean(&format!("{workspace}/{guest}")),
        };
        validate_guest_path_within_workspace(&guest_path, workspace)?;
        Ok(Self {
            host_path,
            guest_path,
            mount_type,
            readonly,
        })
    }

    /// The mount for a configuration, or `None` if the host path is not UTF-8.
    #[must_use]
    pub fn mount(&self) -> Option<MountConfig> {
        let host_path = self.host_path.to_str()?;
        Some(match self.mount_type {
            MountType::HostFs => MountConfig::host_fs(host_path, self.readonly),
            _ => MountConfig::overlay(host_path),
        })
    }
}

impl fmt::Display for VolumeMountSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let option = match self.readonly {
            true => "ro",
            false => self.mount_type.as_str(),
        };
        write!(
            f,
            "{}:{}:{option}",
            self.host_path.display(),
            self.guest_path
        )
    }
}

fn existing(host: &str) -> Result<PathBuf, VolumeError> {
    let resolve = |source| VolumeError::Resolve {
        path: host.to_owned(),
        source,
    };
    // No path at all is the working directory, as is `.`.
    let path = Path::new(if host.is_empty() { "." } else { host });
    let path: PathBuf = match path.is_absolute() {
        true => path.to_owned(),
        false => std::env::current_dir().map_err(resolve)?.join(path),
    };
    // Without `.` and a `/` at the end; `..` stays, for it may follow a link.
    let path: PathBuf = path.components().collect();
    match std::fs::metadata(&path) {
        Ok(_) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(VolumeError::HostPathNotFound(path))
        }
        Err(source) => Err(VolumeError::HostPath { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(spec: &str) -> Result<VolumeMountSpec, VolumeError> {
        VolumeMountSpec::parse(spec, "/workspace")
    }

    #[test]
    fn accepted() {
        use MountType::{HostFs, Overlay};
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().to_str().unwrap();
        for (rest, guest, mount_type, readonly) in [
            ("src", "/workspace/src", Overlay, false),
            ("./src/", "/workspace/src", Overlay, false),
            ("", "/workspace", Overlay, false),
            ("/workspace/src", "/workspace/src", Overlay, false),
            ("/workspace", "/workspace", Overlay, false),
            ("src:overlay", "/workspace/src", Overlay, false),
            ("src:host_fs", "/workspace/src", HostFs, false),
            ("src:ro", "/workspace/src", HostFs, true),
            ("src:readonly", "/workspace/src", HostFs, true),
            ("src: RO ", "/workspace/src", HostFs, true),
            ("src:Overlay", "/workspace/src", Overlay, false),
        ] {
            let spec = parse(&format!("{host}:{rest}")).unwrap();
            let expected = VolumeMountSpec {
                host_path: host.into(),
                guest_path: guest.to_owned(),
                mount_type,
                readonly,
            };
            assert_eq!(spec, expected, "{rest}");
        }
    }

    #[test]
    fn rejected() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().to_str().unwrap();
        let format = "expected format host:guest or host:guest:ro";
        let unknown = |option: &str| {
            format!("unknown option \"{option}\" (use 'ro', 'overlay', or 'host_fs')")
        };
        let outside = |path: &str| {
            format!("guest path must be within workspace: \"{path}\" not in \"/workspace\"")
        };
        for (spec, error, code) in [
            (host.to_owned(), format.to_owned(), "volume_format"),
            (format!("{host}:a:ro:x"), format.to_owned(), "volume_format"),
            (format!("{host}:a:rw"), unknown("rw"), "volume_option"),
            (format!("{host}:a:"), unknown(""), "volume_option"),
            (
                format!("{host}:/etc"),
                outside("/etc"),
                "guest_path_outside_workspace",
            ),
            (
                format!("{host}:/workspace2"),
                outside("/workspace2"),
                "guest_path_outside_workspace",
            ),
            (
                format!("{host}:../x"),
                outside("/x"),
                "guest_path_outside_workspace",
            ),
            (
                format!("{host}/no:a"),
                format!("host path does not exist: {host}/no"),
                "host_path_not_found",
            ),
        ] {
            let found = parse(&spec).unwrap_err();
            assert_eq!(found.to_string(), error, "{spec}");
            assert_eq!(found.code().as_str(), code, "{spec}");
        }
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let two_lines = parse("/no\nsuch\u{1b}:a").unwrap_err().to_string();
        assert_eq!(two_lines, "host path does not exist: /no such?");
        let below_a_file = parse(&format!("{}/x:a", file.display())).unwrap_err();
        assert_eq!(below_a_file.code(), ErrorCode::HostPathUnusable);
        let no_workspace = VolumeMountSpec::parse(&format!("{host}:a"), "").unwrap_err();
        assert_eq!(
            no_workspace.to_string(),
            "guest path must be absolute: \"a\""
        );
    }

    #[test]
    fn a_single_file_and_a_relative_path_are_fine() {
        // Tests run in the directory of the package.
        let spec = parse("Cargo.toml:Cargo.toml").unwrap();
        assert!(spec.host_path.is_absolute());
        assert_eq!(
            spec.host_path,
            Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")
        );
        assert_eq!(spec.mount_type, MountType::Overlay);
    }

    #[test]
    fn the_root_as_workspace_takes_any_path() {
        let spec = VolumeMountSpec::parse("/:/etc/x", "/").unwrap();
        assert_eq!(spec.guest_path, "/etc/x");
    }

    #[test]
    fn a_volume_becomes_a_mount() {
        let mount = |spec: &str| parse(spec).unwrap().mount().unwrap();
        assert_eq!(mount("/:a:ro"), MountConfig::host_fs("/", true));
        assert_eq!(mount("/:a:host_fs"), MountConfig::host_fs("/", false));
        assert_eq!(mount("/:a"), MountConfig::overlay("/"));
    }

    proptest! {
        #[test]
        fn no_text_is_a_problem(spec in any::<String>(), workspace in any::<String>()) {
            let _ = VolumeMountSpec::parse(&spec, &workspace);
            let _ = VolumeMountSpec::parse(&format!("/:{spec}"), &workspace);
        }

        #[test]
        fn what_is_written_is_read_again(guest in "[a-zA-Z0-9._/-]{0,20}", option in 0..4_usize) {
            let option = ["", ":ro", ":overlay", ":host_fs"][option];
            if let Ok(spec) = parse(&format!("/:{guest}{option}")) {
                prop_assert_eq!(parse(&spec.to_string()).unwrap(), spec);
            }
        }
    }
}
