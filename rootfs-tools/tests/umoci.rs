//! What `umoci unpack` extracts is what our image has: same layers, same tree.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![allow(clippy::panic, clippy::indexing_slicing)]

#[path = "support/archive.rs"]
#[allow(dead_code)]
mod archive;
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use archive::{Item, directory, file, filtered, hard_link, image, symlink, tar};
use flashpan_rootfs::directory::{Options, Scan};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use support::{Listing, What, expected, load, seen};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes an OCI layout with one image of these layers (tars).
fn layout(root: &Path, layers: &[Vec<u8>]) {
    let blobs = root.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = hex(&Sha256::digest(bytes));
        fs::write(blobs.join(&digest), bytes).unwrap();
        let size = bytes.len();
        format!(
            "{{\"mediaType\":\"application/vnd.oci.image.{kind}\",\"digest\":\"sha256:{digest}\",\"size\":{size}}}"
        )
    };
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|layer| format!("\"sha256:{}\"", hex(&Sha256::digest(layer))))
        .collect();
    let stored: Vec<_> = layers
        .iter()
        .map(|layer| blob("layer.v1.tar+gzip", &filtered("gzip", &["-1"], layer)))
        .collect();
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{}},\
         \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{}]}}}}",
        diff_ids.join(",")
    );
    let manifest = format!(
        "{{\"schemaVersion\":2,\"config\":{},\"layers\":[{}]}}",
        blob("config.v1+json", config.as_bytes()),
        stored.join(",")
    );
    let manifest = blob("manifest.v1+json", manifest.as_bytes());
    let named = manifest.replacen(
        '{',
        "{\"annotations\":{\"org.opencontainers.image.ref.name\":\"test\"},",
        1,
    );
    fs::write(
        root.join("index.json"),
        format!("{{\"schemaVersion\":2,\"manifests\":[{named}]}}"),
    )
    .unwrap();
    fs::write(
        root.join("oci-layout"),
        "{\"imageLayoutVersion\":\"1.0.0\"}",
    )
    .unwrap();
}

/// What umoci makes of the layers; `None` if it refuses them.
fn unpacked(layers: &[Vec<u8>]) -> Option<Listing> {
    let directory = tempfile::tempdir().unwrap();
    let (image, bundle) = (
        directory.path().join("image"),
        directory.path().join("bundle"),
    );
    layout(&image, layers);
    let mut umoci = Command::new("umoci");
    umoci.arg("unpack");
    if !is_root() {
        umoci.arg("--rootless");
    }
    let mut name = image.into_os_string();
    name.push(":test");
    let output = umoci.arg("--image").arg(name).arg(&bundle).output();
    let output = output.expect("umoci is needed by this test: apt-get install umoci");
    if !output.status.success() {
        return None;
    }
    let scan = Scan::new(&bundle.join("rootfs"), &Options::default()).unwrap();
    Some(expected(&scan.tree))
}

/// No test has an entry from after this (2023).
const LATEST: i64 = 1_700_000_000;

/// Of whom are our processes?
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Both trees, without what umoci takes from the clock and the user.
fn compare(layers: &[Vec<u8>]) -> bool {
    let Some(mut theirs) = unpacked(layers) else {
        return false;
    };
    let (image, _) = image(layers);
    let mut ours = seen(&load(&image));
    let is_root = is_root();
    for (path, our) in &mut ours {
        let Some(their) = theirs.get_mut(path) else {
            continue;
        };
        // Directories that no layer has an entry for, and those in which umoci
        // has made such: their time is that of the clock.
        if their.what == What::Directory && their.modified.0 > LATEST {
            their.modified = our.modified;
        }
        if !is_root {
            their.owner = our.owner;
            their
                .xattrs
                .retain(|name, _| name != b"user.rootlesscontainers");
        }
    }
    let paths = |listing: &Listing| {
        listing
            .keys()
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(paths(&ours), paths(&theirs));
    for (path, our) in &ours {
        assert_eq!(*our, theirs[path], "{}", String::from_utf8_lossy(path));
    }
    true
}

#[test]
fn an_image_as_distributions_make_them() {
    let mut root = directory("./");
    root.modified = (1_500_000_000, 5);
    let mut sudo = file("./usr/bin/sudo", &"program".repeat(5000));
    sudo.mode = 0o4755;
    let mut ping = file("./usr/bin/ping", "ping");
    ping.xattrs = vec![(
        b"security.capability".to_vec(),
        b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
    )];
    let mut tmp = directory("./tmp/");
    tmp.mode = 0o1777;
    let mut mail = directory("./var/mail");
    (mail.mode, mail.owner) = (0o2775, (0, 8));
    let mut old = file("./var/old", "");
    old.modified = (-5, 250_000_000);
    let null = Item {
        device: (1, 3),
        mode: 0o666,
        ..Item::new("./dev/null", b'3')
    };
    let base = [
        root,
        symlink("./bin", "usr/bin"),
        directory("./usr"),
        directory("./usr/bin"),
        sudo,
        ping,
        file("./usr/bin/perl", &"perl".repeat(100_000)),
        hard_link("./usr/bin/perl5.36.0", "./usr/bin/perl"),
        directory("./dev"),
        null,
        tmp,
        directory("./var"),
        mail,
        old,
        directory("./var/cache"),
        file("./var/cache/a", "a"),
        file("./var/cache/b", "b"),
        directory("./etc"),
        file("./etc/passwd", "root"),
        Item::new("./run-fifo", b'6'),
        file(&format!("./etc/{}", "long".repeat(60)), ""),
        Item {
            path: b"./etc/\xff\xfe".to_vec(),
            ..file("", "no text")
        },
    ];
    let second = [
        directory("etc"),
        file("etc/passwd", "root and me"),
        file("etc/.wh.\u{1}", ""),
        directory("var/cache"),
        file("var/cache/.wh..wh..opq", ""),
        file("var/cache/c", "c"),
        file("bin/tool", "through a link"),
        file(".wh.run-fifo", ""),
        file("usr/bin/.wh.perl", ""),
        hard_link("usr/bin/perl-old", "bin/perl5.36.0"),
    ];
    let third = [
        file("tmp", "a file now"),
        directory("bin"),
        file("bin/own", ""),
    ];
    assert!(compare(&[tar(&base)]));
    assert!(compare(&[tar(&base), tar(&second)]));
    assert!(compare(&[tar(&base), tar(&second), tar(&third)]));
}

/// One entry among few names, so that they meet.
fn item() -> impl Strategy<Value = Item> {
    let name = prop::sample::select(vec![
        "a", "b", "c", "a/b", "a/c", "b/a", "b/c", "a/b/c", "c/a/b", "a/../b", "./c/b",
    ]);
    let target = prop::sample::select(vec![
        "a", "b", "c", "/a", "../b", "a/b", "/c/a", "b/../c", "x", "/",
    ]);
    let kind = prop::sample::select(vec![
        "file",
        "file",
        "directory",
        "directory",
        "symlink",
        "link",
        "whiteout",
        "opaque",
    ]);
    (name, target, kind, 0..3_u32).prop_map(|(name, target, kind, mode)| {
        let (parent, last) = name
            .rsplit_once('/')
            .map_or((String::new(), name), |(parent, last)| {
                (format!("{parent}/"), last)
            });
        let mut item = match kind {
            "file" => file(name, &format!("{name} {mode}")),
            "directory" => directory(name),
            "symlink" => symlink(name, target),
            "link" => hard_link(name, target),
            "whiteout" => file(&format!("{parent}.wh.{last}"), ""),
            _ => file(&format!("{parent}.wh..wh..opq"), ""),
        };
        item.mode = [0o755, 0o700, 0o1777][usize::try_from(mode).unwrap()];
        item.modified.0 += i64::from(mode);
        item
    })
}

#[test]
fn any_layers_that_umoci_takes_are_the_same_tree() {
    let mut same = 0;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let layers = prop::collection::vec(prop::collection::vec(item(), 1..8), 1..4);
    let same = std::cell::RefCell::new(&mut same);
    runner
        .run(&layers, |layers| {
            let mut layers = layers;
            layers[0].insert(0, directory("./"));
            let tars: Vec<_> = layers.iter().map(|items| tar(items)).collect();
            if compare(&tars) {
                **same.borrow_mut() += 1;
            }
            Ok(())
        })
        .unwrap();
    let same = same.into_inner();
    assert!(*same > 30, "umoci took only {same} of the layers");
}
