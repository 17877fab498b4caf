//! Mistakes in `vfs` and `extra_disks`.

use super::errors;

#[test]
fn mistakes_in_vfs() {
    let mount =
        |fields: &str| format!(r#"{{"vfs":{{"workspace":"/w","mounts":{{"/w":{{{fields}}}}}}}}}"#);
    let rule = |fields: &str| {
        format!(
            r#"{{"vfs":{{"workspace":"/w","mounts":{{"/w":{{"type":"memory"}}}},
                "interception":{{"rules":[{{{fields}}}]}}}}}}"#
        )
    };
    let direct = |path: &str, fields: &str| {
        format!(
            r#"{{"vfs":{{"workspace":"/w","mounts":{{"/w":{{"type":"memory"}}}},
                "direct_mounts":{{"{path}":{{{fields}}}}}}}}}"#
        )
    };
    let rule_at = "vfs.interception.rules[0]";
    for (json, field, why) in [
        (
            mount(r#""type":"tmpfs""#),
            "vfs.mounts[\"/w\"].type".to_owned(),
            "unknown type",
        ),
        (
            mount(r#""host_path":"/x""#),
            "vfs.mounts[\"/w\"].host_path".into(),
            "no host path",
        ),
        (
            mount(r#""type":"overlay""#),
            "vfs.mounts[\"/w\"].host_path".into(),
            "host_path is required for overlay mounts",
        ),
        (
            mount(r#""type":"host_fs""#),
            "vfs.mounts[\"/w\"].host_path".into(),
            "host_path is required for host_fs mounts",
        ),
        (
            mount(r#""type":"overlay","host_path":"/x","upper":{"type":"memory"}"#),
            "vfs.mounts[\"/w\"]".into(),
            "upper/lower overlay config is not supported; use host_path",
        ),
        (
            r#"{"vfs":{"workspace":"/w","mounts":{"/w":{},"/w/":{}}}}"#.to_owned(),
            "vfs.mounts[\"/w/\"]".into(),
            "same path as \"/w\"",
        ),
        (
            r#"{"vfs":{"workspace":"/proc/x","mounts":{"/proc/x":{}}}}"#.to_owned(),
            "vfs.workspace".into(),
            "kernel has /proc",
        ),
        (
            r#"{"vfs":{"workspace":"/..","mounts":{"/":{}}}}"#.to_owned(),
            "vfs.workspace".into(),
            "is the root",
        ),
        (
            rule(r#""phase":"now""#),
            format!("{rule_at}.phase"),
            "unknown phase",
        ),
        (
            rule(r#""action":"deny""#),
            format!("{rule_at}.action"),
            "unknown action \"deny\"",
        ),
        (
            rule(r#""ops":["read","fly"]"#),
            format!("{rule_at}.ops[1]"),
            "operation \"fly\"",
        ),
        (
            rule(r#""ops":[""]"#),
            format!("{rule_at}.ops[0]"),
            "unknown operation",
        ),
        (
            rule(r#""path":"[a""#),
            format!("{rule_at}.path"),
            "has a `[",
        ),
        (
            rule(r#""phase":"after","action":"block""#),
            format!("{rule_at}.action"),
            "cannot be blocked",
        ),
        (
            direct("/d", ""),
            "vfs.direct_mounts[\"/d\"].host_path".into(),
            "is required",
        ),
        (
            direct("d", r#""host_path":"/x""#),
            "vfs.direct_mounts.d".into(),
            "invalid guest mount path",
        ),
        (
            direct("/w/d", r#""host_path":"/x""#),
            "vfs.direct_mounts[\"/w/d\"]".into(),
            "is in the workspace",
        ),
        (
            direct("/sys", r#""host_path":"/x""#),
            "vfs.direct_mounts[\"/sys\"]".into(),
            "kernel has /sys",
        ),
        (
            direct("/a/../b", r#""host_path":"/x""#),
            "vfs.direct_mounts[\"/a/../b\"]".into(),
            "has `..` in it",
        ),
    ] {
        let found = errors(&json);
        assert_eq!(found.len(), 1, "{json}: {found:?}");
        assert_eq!(found[0].field, field, "{json}");
        let text = &found[0].message;
        assert!(
            text.contains(why) && text.contains(&field),
            "{json}: {text}"
        );
    }
}

#[test]
fn mistakes_in_disks() {
    let disk = |path: &str| format!(r#"{{"host_path":"/x","guest_mount":"{path}"}}"#);
    for (disks, more, field, why) in [
        (
            disk("/"),
            "",
            "extra_disks[0].guest_mount",
            "invalid guest mount path",
        ),
        (disk("//"), "", "extra_disks[0].guest_mount", "is the root"),
        (
            disk("d"),
            "",
            "extra_disks[0].guest_mount",
            "invalid guest mount path",
        ),
        (
            disk("/d/../e"),
            "",
            "extra_disks[0].guest_mount",
            "has `..` in it",
        ),
        (
            disk("/dev/shm"),
            "",
            "extra_disks[0].guest_mount",
            "kernel has /dev",
        ),
        (
            format!("{},{}", disk("/d"), disk("/d/")),
            "",
            "extra_disks[1].guest_mount",
            "same path as that of extra_disks[0].guest_mount",
        ),
        (
            r#"{"guest_mount":"/d"}"#.to_owned(),
            "",
            "extra_disks[0].host_path",
            "is required",
        ),
        (
            disk("/w/d"),
            r#","vfs":{"workspace":"/w","mounts":{"/w":{}}}"#,
            "extra_disks[0].guest_mount",
            "will be shadowed by the VFS mount",
        ),
        (
            disk("/d"),
            r#","vfs":{"direct_mounts":{"/d":{"host_path":"/x"}}}"#,
            "extra_disks[0].guest_mount",
            "same path as that of vfs.direct_mounts[\"/d\"]",
        ),
        (
            vec![disk("/d"); 15].join(","),
            "",
            "extra_disks",
            "15 disks; at most 14 fit",
        ),
    ] {
        let json = format!(r#"{{"extra_disks":[{disks}]{more}}}"#);
        let found = errors(&json);
        assert_eq!(found.len(), 1, "{json}: {found:?}");
        assert_eq!(found[0].field, field, "{json}");
        assert!(
            found[0].message.contains(why),
            "{json}: {}",
            found[0].message
        );
    }
}
