//! What a guest sees of the host's files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::hook::HookPhase;
use super::lenient;
use super::words::words;

/// Where mounts of the host are put in a guest by convention.
pub const DEFAULT_WORKSPACE: &str = "/workspace";

words! {
    /// What is behind a mount.
    pub enum MountType: Memory {
        /// Files in the host's memory; lost at the end.
        Memory = "memory",
        /// A directory or file of the host itself.
        HostFs = "host_fs",
        /// A directory or file of the host; changes are lost at the end and never
        /// reach the host.
        Overlay = "overlay",
    }
}

words! {
    /// What a rule for files does.
    pub enum VfsHookAction: Allow {
        /// Nothing.
        Allow = "allow",
        /// Refuses the operation with `EPERM`.
        Block = "block",
    }
}

words! {
    /// An operation on files.
    pub enum FileOp {
        /// Look at a file.
        Stat = "stat",
        /// List a directory.
        Readdir = "readdir" | "read_dir",
        /// Open a file.
        Open = "open",
        /// Make a file.
        Create = "create",
        /// Make a directory.
        Mkdir = "mkdir",
        /// Change permissions.
        Chmod = "chmod",
        /// Remove a file or an empty directory.
        Remove = "remove",
        /// Remove a directory with all that is in it.
        RemoveAll = "remove_all" | "removeall",
        /// Rename.
        Rename = "rename",
        /// Make a symbolic link.
        Symlink = "symlink",
        /// Read a symbolic link.
        Readlink = "readlink",
        /// Read from a file.
        Read = "read",
        /// Write to a file.
        Write = "write",
        /// Close a file.
        Close = "close",
        /// Write to storage.
        Sync = "sync",
        /// Change a file's size.
        Truncate = "truncate",
    }
}

/// What a guest sees of the host's files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct VfsConfig {
    /// Directory of the guest that all `mounts` are in; set exactly if there are
    /// any. A blank text is nothing.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub workspace: String,
    /// Directories and files of the host by their path in the guest, which is not
    /// in the workspace.
    #[serde(
        default,
        deserialize_with = "lenient::object_map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub direct_mounts: BTreeMap<String, DirectMount>,
    /// Mounts by their path in the guest, which is the workspace or below it.
    #[serde(
        default,
        deserialize_with = "lenient::object_map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub mounts: BTreeMap<String, MountConfig>,
    /// Rules and events for operations below the workspace. Needs `mounts`.
    #[serde(
        default,
        deserialize_with = "lenient::object",
        skip_serializing_if = "Option::is_none"
    )]
    pub interception: Option<VfsInterceptionConfig>,
}

impl VfsConfig {
    /// The workspace, if it is set.
    #[must_use]
    pub fn workspace(&self) -> Option<&str> {
        Some(self.workspace.as_str()).filter(|workspace| !workspace.trim().is_empty())
    }
}

/// A directory or file of the host anywhere in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct DirectMount {
    /// Path on the host.
    #[serde(default, deserialize_with = "lenient::null")]
    pub host_path: String,
    /// Whether the guest cannot write to it. Default false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub readonly: bool,
}

impl DirectMount {
    /// A path of the host.
    pub fn new(host_path: impl Into<String>, readonly: bool) -> Self {
        Self {
            host_path: host_path.into(),
            readonly,
        }
    }
}

/// What is at a path in the workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct MountConfig {
    /// `memory` (the default), `host_fs` or `overlay`.
    #[serde(rename = "type", default, deserialize_with = "lenient::null")]
    pub mount_type: MountType,
    /// Path on the host; for `host_fs` and `overlay` only.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub host_path: String,
    /// Whether the guest cannot write to it. Default false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub readonly: bool,
    /// Not supported.
    #[serde(
        default,
        deserialize_with = "lenient::boxed_object",
        skip_serializing_if = "Option::is_none"
    )]
    pub upper: Option<Box<MountConfig>>,
    /// Not supported.
    #[serde(
        default,
        deserialize_with = "lenient::boxed_object",
        skip_serializing_if = "Option::is_none"
    )]
    pub lower: Option<Box<MountConfig>>,
}

impl MountConfig {
    /// Files in the host's memory.
    #[must_use]
    pub fn memory() -> Self {
        Self::default()
    }

    /// A directory or file of the host itself.
    pub fn host_fs(host_path: impl Into<String>, readonly: bool) -> Self {
        Self {
            mount_type: MountType::HostFs,
            host_path: host_path.into(),
            readonly,
            ..Self::default()
        }
    }

    /// A directory or file of the host, which changes do not reach.
    pub fn overlay(host_path: impl Into<String>) -> Self {
        Self {
            mount_type: MountType::Overlay,
            host_path: host_path.into(),
            ..Self::default()
        }
    }
}

/// Rules and events for operations on files below the workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct VfsInterceptionConfig {
    /// Whether each operation is an event. Default false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub emit_events: bool,
    /// The rules.
    #[serde(
        default,
        deserialize_with = "lenient::objects",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub rules: Vec<VfsHookRule>,
}

/// A rule for operations on files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct VfsHookRule {
    /// A name for messages; may be empty.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub name: String,
    /// `before` (the default) or `after` the operation.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub phase: HookPhase,
    /// Operations; empty: all. Opening a file in order to make it is `create`.
    #[serde(
        default,
        deserialize_with = "lenient::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ops: Vec<FileOp>,
    /// Pattern of the path in the guest: `*` and `?` do not match `/`, `[a-z]` and
    /// `[^a-z]` are classes, a backslash takes a meaning away. Empty: all.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "String::is_empty"
    )]
    pub path: String,
    /// `allow` (the default) or `block`.
    #[serde(default, deserialize_with = "lenient::null")]
    pub action: VfsHookAction,
    /// For clients; the host does not look at it.
    #[serde(
        default,
        deserialize_with = "lenient::zero",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout_ms: Option<u32>,
}

/// An ext4 image of the host that the guest mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct DiskMount {
    /// Path of the image on the host.
    #[serde(default, deserialize_with = "lenient::null")]
    pub host_path: String,
    /// Where the guest mounts it: an absolute path of ASCII letters and digits,
    /// `/`, `_`, `.` and `-`, without `..`; not in `/dev`, `/proc`, `/sys` or the
    /// workspace.
    #[serde(default, deserialize_with = "lenient::null")]
    pub guest_mount: String,
    /// Whether the guest cannot write to it. Default false.
    #[serde(
        default,
        deserialize_with = "lenient::null",
        skip_serializing_if = "lenient::is_default"
    )]
    pub readonly: bool,
}

impl DiskMount {
    /// An image of the host at a path of the guest.
    pub fn new(host_path: impl Into<String>, guest_mount: impl Into<String>) -> Self {
        Self {
            host_path: host_path.into(),
            guest_mount: guest_mount.into(),
            readonly: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_names() {
        let json = concat!(
            r#"{"workspace":"/w","direct_mounts":{"/d":{"host_path":"/h","readonly":true}},"#,
            r#""mounts":{"/w":{"type":"memory"},"/w/a":{"type":"host_fs","host_path":"/a","#,
            r#""readonly":true,"upper":{"type":"memory"},"lower":{"type":"overlay"}}},"#,
            r#""interception":{"emit_events":true,"rules":[{"name":"n","phase":"after","#,
            r#""ops":["read","remove_all"],"path":"/w/*","action":"block","timeout_ms":1},"#,
            r#"{"action":"allow"}]}}"#
        );
        let vfs: VfsConfig = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&vfs).unwrap(), json);
        let empty: VfsConfig = serde_json::from_str(r#"{"mounts":null,"workspace":null}"#).unwrap();
        assert_eq!(serde_json::to_string(&empty).unwrap(), "{}");
    }

    #[test]
    fn a_disk_is_what_it_says() {
        let json = r#"{"host_path":"/d.ext4","guest_mount":"/d","readonly":true}"#;
        let mut disk = DiskMount::new("/d.ext4", "/d");
        disk.readonly = true;
        assert_eq!(serde_json::to_string(&disk).unwrap(), json);
        assert_eq!(serde_json::from_str::<DiskMount>(json).unwrap(), disk);
    }

    #[test]
    fn operations_have_other_spellings() {
        for (text, op) in [
            ("read_dir", FileOp::Readdir),
            ("READDIR", FileOp::Readdir),
            ("removeall", FileOp::RemoveAll),
            ("fly", FileOp::Other("fly".to_owned())),
            ("", FileOp::Other(String::new())),
        ] {
            assert_eq!(FileOp::from(text), op);
        }
    }

    #[test]
    fn a_blank_workspace_is_none() {
        let mut vfs = VfsConfig::default();
        assert_eq!(vfs.workspace(), None);
        vfs.workspace = "  ".to_owned();
        assert_eq!(vfs.workspace(), None);
        vfs.workspace = DEFAULT_WORKSPACE.to_owned();
        assert_eq!(vfs.workspace(), Some("/workspace"));
    }
}
