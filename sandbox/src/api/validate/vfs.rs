//! Checks of `vfs` and `extra_disks`.

use std::collections::BTreeMap;

use super::super::guest_path::{
    clean, is_within, validate_guest_mount, validate_guest_path_within_workspace,
};
use super::super::hook::HookPhase;
use super::super::problem::{FieldPath, ProblemKind, Problems, Warnings, quoted};
use super::super::vfs::{
    DiskMount, FileOp, MountConfig, MountType, VfsConfig, VfsHookAction, VfsInterceptionConfig,
};
use super::MAX_EXTRA_DISKS;
use super::hooks::{check_pattern, check_phase};

/// Longest path in the guest, in bytes (`PATH_MAX` without its NUL).
const MAX_PATH: usize = 4095;

/// Where the guest's kernel has file systems that programs depend on.
const TAKEN: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Actions that clients pass on although only they themselves act on them.
const CLIENT_ACTIONS: [&str; 2] = ["exec_after", "mutate_write"];

pub(super) fn check(vfs: &VfsConfig, problems: &mut Problems) {
    let top = FieldPath::top("vfs");
    let workspace = vfs.workspace();
    let at_workspace = top.field("workspace");
    match (workspace, vfs.mounts.is_empty()) {
        (Some(_), true) => {
            let message = "vfs.workspace requires at least one vfs.mounts entry";
            problems.whole(&at_workspace, ProblemKind::Required, message);
        }
        (None, false) => {
            let message = "vfs.workspace is required when vfs.mounts is set";
            problems.whole(&at_workspace, ProblemKind::Required, message);
        }
        _ => {}
    }
    if vfs.interception.is_some() && vfs.mounts.is_empty() {
        let message = "vfs.interception requires at least one vfs.mounts entry";
        problems.whole(&top.field("interception"), ProblemKind::Required, message);
    }
    if let Some(workspace) = workspace {
        if let Err(why) = validate_guest_mount(workspace) {
            problems.add(&at_workspace, ProblemKind::Malformed, why);
        } else if let Some(why) = not_for_mounts(workspace) {
            problems.add(&at_workspace, ProblemKind::Unsupported, why);
        }
    }
    check_mounts(vfs, &top.field("mounts"), problems);
    let mut seen = BTreeMap::new();
    for (path, mount) in &vfs.direct_mounts {
        let at = top.field("direct_mounts").field(path);
        check_elsewhere(path, &at, Some(vfs), &mut seen, problems);
        check_host_path(&mount.host_path, &at, problems);
    }
    if let Some(interception) = &vfs.interception {
        check_rules(
            interception,
            &top.field("interception").field("rules"),
            problems,
        );
    }
}

fn check_mounts(vfs: &VfsConfig, at: &FieldPath, problems: &mut Problems) {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for (path, mount) in &vfs.mounts {
        let at = at.field(path);
        if let Some(workspace) = vfs.workspace() {
            if let Err(why) = validate_guest_path_within_workspace(path, workspace) {
                let message = format!("{why} ({at})");
                problems.whole(&at, ProblemKind::Malformed, message);
            } else if let Some(first) = seen.insert(clean(path), path) {
                let why = format!("is the same path as {}", quoted(first));
                problems.add(&at, ProblemKind::Duplicate, why);
            }
        }
        if path.len() > MAX_PATH || path.contains('\0') {
            problems.add(&at, ProblemKind::Malformed, path_limits());
        }
        check_mount(mount, &at, problems);
    }
}

fn check_mount(mount: &MountConfig, at: &FieldPath, problems: &mut Problems) {
    match &mount.mount_type {
        MountType::Memory if !mount.host_path.is_empty() => {
            let why = "a memory mount has no host path; set type to host_fs or overlay";
            problems.add(&at.field("host_path"), ProblemKind::Conflict, why);
        }
        MountType::Memory => {}
        MountType::HostFs | MountType::Overlay if mount.host_path.is_empty() => {
            let why = format!("host_path is required for {} mounts", mount.mount_type);
            problems.add(&at.field("host_path"), ProblemKind::Required, why);
        }
        MountType::HostFs | MountType::Overlay => {
            check_host_path(&mount.host_path, at, problems);
        }
        MountType::Other(text) => {
            let why = format!(
                "unknown type {} (use memory, host_fs or overlay)",
                quoted(text)
            );
            problems.add(&at.field("type"), ProblemKind::Unsupported, why);
        }
    }
    if mount.upper.is_some() || mount.lower.is_some() {
        let why = "upper/lower overlay config is not supported; use host_path";
        problems.add(at, ProblemKind::Unsupported, why);
    }
}

fn check_host_path(path: &str, at: &FieldPath, problems: &mut Problems) {
    let at = at.field("host_path");
    if path.is_empty() {
        problems.add(&at, ProblemKind::Required, "is required");
    } else if path.len() > MAX_PATH || path.contains('\0') {
        problems.add(&at, ProblemKind::Malformed, path_limits());
    }
}

/// Checks the disks and that nothing hides them.
pub(super) fn check_disks(disks: &[DiskMount], vfs: Option<&VfsConfig>, problems: &mut Problems) {
    let top = FieldPath::top("extra_disks");
    if disks.len() > MAX_EXTRA_DISKS {
        let why = format!("{} disks; at most {MAX_EXTRA_DISKS} fit", disks.len());
        problems.add(&top, ProblemKind::OutOfRange, why);
        return;
    }
    let mut seen = BTreeMap::new();
    for path in vfs.iter().flat_map(|vfs| vfs.direct_mounts.keys()) {
        let at = FieldPath::top("vfs").field("direct_mounts").field(path);
        seen.insert(clean(path), at);
    }
    for (index, disk) in disks.iter().enumerate() {
        let at = top.index(index);
        check_host_path(&disk.host_path, &at, problems);
        let at = at.field("guest_mount");
        check_elsewhere(&disk.guest_mount, &at, vfs, &mut seen, problems);
    }
}

/// Checks a mount point outside of the workspace.
fn check_elsewhere(
    path: &str,
    at: &FieldPath,
    vfs: Option<&VfsConfig>,
    seen: &mut BTreeMap<String, FieldPath>,
    problems: &mut Problems,
) {
    if let Err(why) = validate_guest_mount(path) {
        problems.add(at, ProblemKind::Malformed, why);
        return;
    }
    if path.split('/').any(|part| part == "..") {
        problems.add(
            at,
            ProblemKind::Malformed,
            format!("{} has `..` in it", quoted(path)),
        );
        return;
    }
    if let Some(why) = not_for_mounts(path) {
        problems.add(at, ProblemKind::Unsupported, why);
        return;
    }
    let path = clean(path);
    let workspace = vfs
        .filter(|vfs| !vfs.mounts.is_empty())
        .and_then(VfsConfig::workspace);
    if let Some(workspace) = workspace.filter(|workspace| is_within(&path, &clean(workspace))) {
        let (path, workspace) = (quoted(&path), quoted(workspace));
        let why =
            format!("{path} is in the workspace {workspace} and will be shadowed by the VFS mount");
        problems.add(at, ProblemKind::Conflict, why);
    }
    if let Some(first) = seen.get(&path) {
        let why = format!("is the same path as that of {first}");
        problems.add(at, ProblemKind::Duplicate, why);
        return;
    }
    seen.insert(path, at.clone());
}

/// Why nothing can be mounted at a path that is written correctly.
fn not_for_mounts(path: &str) -> Option<String> {
    if path.len() > MAX_PATH {
        return Some(path_limits());
    }
    let clean = clean(path);
    if clean == "/" {
        return Some(format!("{} is the root", quoted(path)));
    }
    let taken = TAKEN.iter().find(|taken| is_within(&clean, taken))?;
    Some(format!("{}: the guest's kernel has {taken}", quoted(path)))
}

fn path_limits() -> String {
    format!("has more than {MAX_PATH} bytes or a NUL in it")
}

fn check_rules(interception: &VfsInterceptionConfig, at: &FieldPath, problems: &mut Problems) {
    for (index, rule) in interception.rules.iter().enumerate() {
        let at = at.index(index);
        check_phase(&rule.phase, &at, problems);
        check_pattern(&rule.path, &at, problems);
        for (index, op) in rule.ops.iter().enumerate() {
            if let FileOp::Other(text) = op {
                let why = format!("unknown operation {}", quoted(text));
                problems.add(&at.field("ops").index(index), ProblemKind::Unsupported, why);
            }
        }
        match &rule.action {
            VfsHookAction::Other(text) if !is_for_clients(text) => {
                let why = format!("unknown action {} (use allow or block)", quoted(text));
                problems.add(&at.field("action"), ProblemKind::Unsupported, why);
            }
            VfsHookAction::Block if rule.phase == HookPhase::After => {
                let why = "an operation that is over cannot be blocked; set phase to before";
                problems.add(&at.field("action"), ProblemKind::Conflict, why);
            }
            _ => {}
        }
    }
}

fn is_for_clients(action: &str) -> bool {
    let action = action.trim();
    CLIENT_ACTIONS
        .iter()
        .any(|own| own.eq_ignore_ascii_case(action))
}

pub(super) fn warn(vfs: &VfsConfig, warnings: &mut Warnings) {
    let Some(interception) = &vfs.interception else {
        return;
    };
    let rules = FieldPath::top("vfs").field("interception").field("rules");
    for (index, rule) in interception.rules.iter().enumerate() {
        if let VfsHookAction::Other(text) = &rule.action {
            let at = rules.index(index).field("action");
            let why = format!(
                "{} is an action of clients; it has no effect here",
                quoted(text)
            );
            warnings.add(&at, why);
        }
    }
}
