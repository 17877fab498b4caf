//! Paths in the guest.

use std::collections::BTreeMap;

use thiserror::Error;

use super::code::ErrorCode;
use super::problem::quoted;
use super::vfs::MountConfig;

/// Why a path in the guest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GuestPathError {
    /// It is relative or has characters that are not allowed.
    #[error(
        "invalid guest mount path {}: must be absolute and contain only alphanumeric, '/', '_', '.', '-'",
        quoted(.0)
    )]
    Invalid(String),
    /// It is relative.
    #[error("guest path must be absolute: {}", quoted(.0))]
    NotAbsolute(String),
    /// It is not within the workspace.
    #[error(
        "guest path must be within workspace: {} not in {}",
        quoted(path),
        quoted(workspace)
    )]
    Outside {
        /// The path.
        path: String,
        /// The workspace.
        workspace: String,
    },
}

impl GuestPathError {
    /// The stable name of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) => ErrorCode::GuestPathInvalid,
            Self::NotAbsolute(_) => ErrorCode::GuestPathNotAbsolute,
            Self::Outside { .. } => ErrorCode::GuestPathOutside,
        }
    }
}

/// A path without `.`, `..`, empty components and a `/` at the end, by its text
/// alone. `..` does not go above the root; nothing is `.`.
#[must_use]
pub(super) fn clean(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match (part, parts.last()) {
            ("" | ".", _) => {}
            ("..", None | Some(&"..")) if !absolute => parts.push(part),
            ("..", _) => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    match (absolute, parts.join("/")) {
        (true, joined) => format!("/{joined}"),
        (false, joined) if joined.is_empty() => ".".to_owned(),
        (false, joined) => joined,
    }
}

/// Checks that a path can be a mount point: absolute, more than `/`, and made of
/// ASCII letters and digits, `/`, `_`, `.` and `-`.
///
/// # Errors
/// [`GuestPathError::Invalid`].
pub fn validate_guest_mount(path: &str) -> Result<(), GuestPathError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '.' | '-');
    match path.strip_prefix('/') {
        Some(rest) if !rest.is_empty() && rest.chars().all(allowed) => Ok(()),
        _ => Err(GuestPathError::Invalid(path.to_owned())),
    }
}

/// Checks that a path is absolute and is the workspace or below it, by whole
/// components and after both were cleaned.
///
/// # Errors
/// [`GuestPathError::NotAbsolute`] and [`GuestPathError::Outside`].
pub fn validate_guest_path_within_workspace(
    path: &str,
    workspace: &str,
) -> Result<(), GuestPathError> {
    if !path.starts_with('/') {
        return Err(GuestPathError::NotAbsolute(path.to_owned()));
    }
    let (path, workspace) = (clean(path), clean(workspace));
    if is_within(&path, &workspace) {
        return Ok(());
    }
    Err(GuestPathError::Outside { path, workspace })
}

/// Checks every mount point with [`validate_guest_path_within_workspace`].
///
/// # Errors
/// The first one in the order of the paths.
pub fn validate_vfs_mounts_within_workspace(
    mounts: &BTreeMap<String, MountConfig>,
    workspace: &str,
) -> Result<(), GuestPathError> {
    mounts
        .keys()
        .try_for_each(|path| validate_guest_path_within_workspace(path, workspace))
}

/// Whether a clean path is a clean directory or below it.
pub(super) fn is_within(path: &str, directory: &str) -> bool {
    directory == "/" && path.starts_with('/')
        || path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_cleaned_by_their_text() {
        for (path, expected) in [
            ("", "."),
            (".", "."),
            ("/", "/"),
            ("//a//b/", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/../..", "/"),
            ("/..a", "/..a"),
            ("a/../..", ".."),
            ("../../a", "../../a"),
            ("a/..", "."),
        ] {
            assert_eq!(clean(path), expected, "{path:?}");
        }
    }

    #[test]
    fn mount_points_have_plain_characters() {
        for path in ["/a", "/workspace", "/a/b_c.d-E9", "//", "/..", "/a/../b"] {
            assert_eq!(validate_guest_mount(path), Ok(()), "{path}");
        }
        for path in [
            "", "/", "a", "./a", "/a b", "/a\n", "/a,ro", "/ä", "/a=b", "/a$b",
        ] {
            assert_eq!(
                validate_guest_mount(path).unwrap_err().to_string(),
                format!(
                    "invalid guest mount path {path:?}: must be absolute and contain only \
                     alphanumeric, '/', '_', '.', '-'"
                )
            );
        }
    }

    #[test]
    fn a_workspace_contains_itself_and_what_is_below_it() {
        for (path, workspace) in [
            ("/workspace", "/workspace"),
            ("/workspace/", "/workspace"),
            ("/workspace/a", "/workspace/"),
            ("/workspace/a/../b", "/workspace"),
            ("/x/../workspace/a", "/workspace"),
            ("/anything", "/"),
            ("/", "/"),
        ] {
            let result = validate_guest_path_within_workspace(path, workspace);
            assert_eq!(result, Ok(()), "{path} {workspace}");
        }
        for (path, workspace, error) in [
            ("a", "/workspace", r#"guest path must be absolute: "a""#),
            ("", "/workspace", r#"guest path must be absolute: """#),
            (
                "/workspace2",
                "/workspace",
                r#"guest path must be within workspace: "/workspace2" not in "/workspace""#,
            ),
            (
                "/workspace/../etc/",
                "/workspace/",
                r#"guest path must be within workspace: "/etc" not in "/workspace""#,
            ),
            (
                "/a",
                "",
                r#"guest path must be within workspace: "/a" not in ".""#,
            ),
        ] {
            let found = validate_guest_path_within_workspace(path, workspace).unwrap_err();
            assert_eq!(found.to_string(), error);
        }
    }

    #[test]
    fn all_mounts_are_checked() {
        let mounts = |paths: &[&str]| -> BTreeMap<String, MountConfig> {
            let paths = paths.iter();
            paths
                .map(|path| ((*path).to_owned(), MountConfig::memory()))
                .collect()
        };
        let check =
            |paths: &[&str]| validate_vfs_mounts_within_workspace(&mounts(paths), "/workspace");
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&["/workspace", "/workspace/a/b"]), Ok(()));
        let relative = check(&["/workspace", "a"]).unwrap_err();
        assert_eq!(relative.code(), ErrorCode::GuestPathNotAbsolute);
        let outside = check(&["/etc", "/workspace"]).unwrap_err();
        assert_eq!(outside.code(), ErrorCode::GuestPathOutside);
    }

    proptest! {
        #[test]
        fn no_path_is_a_problem(path in any::<String>(), workspace in any::<String>()) {
            let _ = validate_guest_mount(&path);
            let _ = validate_guest_path_within_workspace(&path, &workspace);
        }

        #[test]
        fn a_clean_path_is_clean(path in "[/.a]{0,12}") {
            let once = clean(&path);
            prop_assert_eq!(clean(&once), once);
        }

        #[test]
        fn nothing_escapes(path in "[/.a]{0,12}") {
            if validate_guest_path_within_workspace(&path, "/aa").is_ok() {
                let clean = clean(&path);
                prop_assert!(clean == "/aa" || clean.starts_with("/aa/"));
                prop_assert!(!clean.contains("/../"));
            }
        }
    }
}
