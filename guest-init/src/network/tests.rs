//! What becomes of `/etc/hostname` and `/etc/hosts`.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use flashpan_protocol::agent::{HostEntry, MAX_HOSTS};

use super::{check_hosts, set_hostname, write_names};

struct Layers {
    root: PathBuf,
    lower: PathBuf,
    upper: PathBuf,
}

fn layers(name: &str) -> Layers {
    let root = std::env::temp_dir().join(format!("guest-names-{}-{name}", std::process::id()));
    let (lower, upper) = (root.join("lower"), root.join("upper"));
    std::fs::create_dir_all(&lower).unwrap();
    std::fs::create_dir_all(&upper).unwrap();
    Layers { root, lower, upper }
}

impl Drop for Layers {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

#[test]
fn the_names_are_in_the_upper_layer_and_etc_looks_as_before() {
    let at = layers("new");
    let etc = at.lower.join("etc");
    std::fs::create_dir(&etc).unwrap();
    std::fs::set_permissions(&etc, std::fs::Permissions::from_mode(0o751)).unwrap();
    assert_eq!(
        write_names(&at.lower, &at.upper, "box", &[], None),
        Vec::<String>::new()
    );
    let read = |file: &str| std::fs::read_to_string(at.upper.join("etc").join(file)).unwrap();
    assert_eq!(read("hostname"), "box\n");
    assert!(read("hosts").starts_with("127.0.0.1\tlocalhost\n"));
    assert!(read("hosts").ends_with("127.0.1.1\tbox\n"));
    let mode = at
        .upper
        .join("etc")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o751);
    assert!(
        std::fs::read_dir(&etc).unwrap().next().is_none(),
        "the image was written to"
    );
}

#[test]
fn a_disk_that_was_used_before_gets_the_new_names() {
    let at = layers("again");
    let etc = at.upper.join("etc");
    std::fs::create_dir(&etc).unwrap();
    std::fs::write(etc.join("hostname"), "a longer name\n").unwrap();
    // A link is replaced, not followed.
    symlink(at.root.join("outside"), etc.join("hosts")).unwrap();
    assert_eq!(
        write_names(&at.lower, &at.upper, "new", &[], None),
        Vec::<String>::new()
    );
    assert_eq!(
        std::fs::read_to_string(etc.join("hostname")).unwrap(),
        "new\n"
    );
    assert!(etc.join("hosts").symlink_metadata().unwrap().is_file());
    assert!(!at.root.join("outside").exists());
}

#[test]
fn an_image_without_a_directory_etc_is_warned_of() {
    let at = layers("link");
    symlink("/elsewhere", at.lower.join("etc")).unwrap();
    let warnings = write_names(&at.lower, &at.upper, "box", &[], None);
    assert_eq!(
        warnings,
        ["write /etc/hostname and /etc/hosts: /etc: not a directory"]
    );
    assert!(!at.upper.join("etc").exists());
}

#[test]
fn host_names_that_would_break_files_are_refused() {
    for name in ["", "a b", "a\nb", "ü", &"x".repeat(65)] {
        let failure = set_hostname(name).unwrap_err();
        assert!(failure.why.starts_with("want 1 to 64"), "{failure}");
    }
}

fn entry(name: &str) -> HostEntry {
    HostEntry {
        name: name.to_owned(),
        address: "2001:db8::1".parse().unwrap(),
    }
}

#[test]
fn lines_of_the_user_come_after_our_own() {
    let at = layers("hosts");
    let more = [
        entry("db.internal"),
        HostEntry {
            address: "10.0.0.7".parse().unwrap(),
            ..entry("müller")
        },
    ];
    write_names(&at.lower, &at.upper, "box", &more, None);
    let hosts = std::fs::read_to_string(at.upper.join("etc/hosts")).unwrap();
    let ours = "127.0.1.1\tbox\n2001:db8::1\tdb.internal\n10.0.0.7\tmüller\n";
    assert!(hosts.ends_with(ours), "{hosts}");
}

#[test]
fn lines_that_would_be_others_are_refused() {
    check_hosts(
        &[entry("a"), entry("a_b-c.d"), entry(&"x".repeat(253))],
        true,
    )
    .unwrap();
    check_hosts(&[], false).unwrap();
    for name in [
        "",
        "a b",
        "a\nb",
        "a\t",
        "#a",
        "a:b",
        "\u{85}",
        &"x".repeat(254),
    ] {
        let refused = check_hosts(&[entry(name)], true).unwrap_err();
        assert!(refused.why.contains("not a host name"), "{refused}");
    }
    let refused = check_hosts(&[entry("a")], false).unwrap_err();
    assert!(refused.why.contains("read-only"), "{refused}");
    let many = vec![entry("a"); MAX_HOSTS + 1];
    assert!(
        check_hosts(&many, true)
            .unwrap_err()
            .why
            .contains("too many")
    );
}
