use super::*;
use crate::probe::{RootImage, probe};

fn busybox() -> PathBuf {
    find_busybox()
        .expect("busybox is needed by this test: apt-get install busybox-static")
        .0
}

fn lookup(tree: &Tree, path: &str) -> Option<InodeId> {
    let (parent, name) = split(tree, path).ok()?;
    tree.lookup(parent, name)
}

#[test]
fn the_hosts_busybox_gives_a_root_with_a_shell() {
    let tree = tree(&busybox()).unwrap();
    let program = lookup(&tree, "bin/busybox").unwrap();
    for applet in ["bin/sh", "bin/ls", "bin/mount", "usr/bin/env", "bin/vi"] {
        assert_eq!(lookup(&tree, applet), Some(program), "{applet}");
    }
    assert_eq!(check().unwrap(), busybox());
    for path in ["tmp", "proc", "etc/passwd", "var/run", "root"] {
        assert!(lookup(&tree, path).is_some(), "{path}");
    }
}

#[test]
fn the_image_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let first = image(&cache, &mut |_| {}).unwrap();
    assert!(first.made);
    let second = image(&cache, &mut |_| panic!("nothing to do")).unwrap();
    assert!(!second.made);
    assert_eq!(first.path, second.path);
    assert!(matches!(
        probe(&second.path).unwrap(),
        RootImage::Erofs { .. }
    ));
}

#[test]
fn what_is_not_a_static_busybox_is_told_with_the_package_that_has_one() {
    let error = tree(Path::new("/nonexistent/busybox")).unwrap_err();
    assert!(error.to_string().contains("busybox-static"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("busybox");
    std::fs::write(&script, "#!/bin/sh\n".repeat(10)).unwrap();
    let error = tree(&script).unwrap_err();
    assert!(error.to_string().contains("busybox-static"), "{error}");
    // Static, but no busybox: a part of libc, which knows no --list-full.
    let error = tree(Path::new("/sbin/ldconfig")).unwrap_err();
    assert!(matches!(error, Error::Applets { .. }), "{error}");
}

#[test]
fn an_applet_in_an_odd_place_is_an_error_not_a_panic() {
    let odd = ["nowhere/sh".to_owned()];
    let error = assemble(Vec::new(), &odd).unwrap_err();
    assert!(matches!(error, Error::Tree(_)), "{error}");
}
