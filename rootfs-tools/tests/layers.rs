//! What layers become when they are flattened and written.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![allow(clippy::panic, clippy::indexing_slicing)]

#[path = "support/archive.rs"]
mod archive;
mod support;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink as make_symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use archive::{
    Item, directory, file, filtered, flattened, gnu_tar, hard_link, image, symlink, tar,
};
use flashpan_rootfs::directory::{Options, Scan};
use flashpan_rootfs::layers;
use flashpan_rootfs::tree::Tree;
use support::{Listing, What, expected, fsck, load, seen};

/// Paths with a letter for what is there, contents, targets.
fn summary(tree: &Tree) -> Vec<String> {
    expected(tree)
        .into_iter()
        .skip(1)
        .map(|(path, seen)| {
            let path = String::from_utf8_lossy(&path).into_owned();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            match seen.what {
                What::Directory => format!("{path}/"),
                What::Regular(bytes) => format!("{path} = {}", text(&bytes)),
                What::Symlink(target) => format!("{path} -> {}", text(&target)),
                What::CharDevice(major, minor) => format!("{path} c {major}:{minor}"),
                What::BlockDevice(major, minor) => format!("{path} b {major}:{minor}"),
                What::Fifo => format!("{path} |"),
                What::Socket => format!("{path} s"),
            }
        })
        .collect()
}

/// A directory with everything that any format of tar can hold.
fn some_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::write(root.join("usr/bin/program"), vec![7; 100_001]).unwrap();
    fs::set_permissions(
        root.join("usr/bin/program"),
        fs::Permissions::from_mode(0o4755),
    )
    .unwrap();
    fs::hard_link(root.join("usr/bin/program"), root.join("usr/link")).unwrap();
    make_symlink("usr/bin", root.join("bin")).unwrap();
    fs::create_dir(root.join("tmp")).unwrap();
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    let fifo = root.join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    directory
}

fn scanned(directory: &Path) -> Listing {
    expected(&Scan::new(directory, &Options::default()).unwrap().tree)
}

/// The same without what a format cannot hold.
fn without_fractions(mut listing: Listing) -> Listing {
    for seen in listing.values_mut() {
        seen.modified.1 = 0;
    }
    listing
}

#[test]
fn every_format_of_gnu_tar_gives_the_directory_it_was_made_of() {
    let directory = some_directory();
    let root = directory.path();
    let same = |options: &[&str], exact: bool| {
        let (image, _) = image(&[gnu_tar(root, options)]);
        fsck(&image);
        let (mut got, mut want) = (seen(&load(&image)), scanned(root));
        if !exact {
            (got, want) = (without_fractions(got), without_fractions(want));
        }
        assert_eq!(got, want, "{options:?}");
    };
    // v7 has no named pipes.
    let fifo = root.join("fifo");
    let aside = tempfile::tempdir_in(root.parent().unwrap()).unwrap();
    fs::rename(&fifo, aside.path().join("fifo")).unwrap();
    same(&["--format=v7"], false);
    fs::rename(aside.path().join("fifo"), &fifo).unwrap();
    same(&["--format=ustar"], false);
    // Long names, and names that are no text.
    let long = "n".repeat(200);
    let deep = root.join(&long).join(&long);
    fs::create_dir_all(&deep).unwrap();
    let raw: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff\xfe\x01");
    make_symlink("t".repeat(300), deep.join(raw)).unwrap();
    // Sparse files of one piece and of many: GNU's first header has room for
    // four, the next for 21.
    for (name, pieces) in [("hole", 0_u64), ("one", 1), ("many", 60)] {
        let file = File::create(root.join(name)).unwrap();
        file.set_len(5 << 20).unwrap();
        for piece in 0..pieces {
            file.write_all_at(&[1; 5000], piece * (80 << 10) + 4096)
                .unwrap();
        }
    }
    same(&["--format=gnu"], false);
    same(&["--format=gnu", "--sparse"], false);
    same(&["--format=pax"], true);
    for version in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={version}");
        same(&["--format=pax", "--sparse", &version], true);
    }
}

#[test]
fn sparse_files_stay_sparse_in_the_image() {
    let directory = tempfile::tempdir().unwrap();
    let file = File::create(directory.path().join("disk")).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"in the middle", 40 << 20).unwrap();
    for options in [&["--format=pax"][..], &["--format=pax", "--sparse"]] {
        let tar = gnu_tar(directory.path(), options);
        // Through the spool, which finds holes itself, and without it, where
        // only those are known that the archive tells of.
        let gzip = filtered("gzip", &["-1"], &tar);
        let told = options.contains(&"--sparse");
        for (layer, sparse) in [(tar, told), (gzip, true)] {
            let (image, converted) = image(&[layer]);
            assert_eq!(converted.summary.content, 64 << 20);
            let used = image.metadata().unwrap().blocks() * 512;
            assert!(
                used < 1 << 20 || !sparse,
                "{options:?}: {used} bytes on the disk"
            );
            let mut found = [0; 13];
            let start = converted.summary.size - (64 << 20);
            image.read_exact_at(&mut found, start + (40 << 20)).unwrap();
            assert_eq!(found, *b"in the middle");
        }
    }
}

#[test]
fn attributes_and_capabilities_are_kept_and_others_are_not() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    let xattr = |name: &[u8], value: &[u8]| (name.to_vec(), value.to_vec());
    let mut ping = file("ping", "x");
    ping.xattrs = vec![
        xattr(b"security.capability", &capability),
        xattr(b"user.with sign", b"\0\xff\n"),
        xattr(b"trusted.mine", b"1"),
        xattr(b"trusted.overlay.opaque", b"y"),
        xattr(b"user.overlay.opaque", b"y"),
        xattr(b"security.selinux", b"label"),
        xattr(b"com.apple.quarantine", b"1"),
    ];
    let (image, _) = image(&[tar(&[ping])]);
    fsck(&image);
    let listing = seen(&load(&image));
    let xattrs = listing[&b"/ping"[..]].xattrs.clone();
    assert_eq!(
        xattrs.into_iter().collect::<Vec<_>>(),
        [
            xattr(b"security.capability", &capability),
            xattr(b"trusted.mine", b"1"),
            xattr(b"user.with sign", b"\0\xff\n"),
        ]
    );
}

#[test]
fn later_entries_and_upper_layers_win() {
    let tree = flattened(&[
        &[
            directory("a/"),
            file("a/old", "1"),
            file("a/twice", "1"),
            file("a/twice", "2"),
            directory("becomes-file"),
            file("becomes-file/gone", ""),
            file("becomes-directory", ""),
        ],
        &[
            file("./a/old", "3"),
            file("becomes-file", "now"),
            directory("becomes-directory"),
            file("/becomes-directory/inside", "now"),
        ],
    ]);
    assert_eq!(
        summary(&tree),
        [
            "/a/",
            "/a/old = 3",
            "/a/twice = 2",
            "/becomes-directory/",
            "/becomes-directory/inside = now",
            "/becomes-file = now",
        ]
    );
}

#[test]
fn a_directory_again_takes_new_metadata_and_keeps_its_entries() {
    let mut again = directory("d");
    (again.mode, again.owner, again.modified) = (0o2700, (5, 6), (7, 0));
    let mut root = directory("./");
    root.mode = 0o711;
    let tree = flattened(&[&[directory("d"), file("d/f", "")], &[again, root]]);
    let listing = expected(&tree);
    let d = &listing[&b"/d"[..]];
    assert_eq!(
        (d.permissions, d.owner, d.modified),
        (0o2700, (5, 6), (7, 0))
    );
    assert_eq!(listing[&b""[..]].permissions, 0o711);
    assert!(listing.contains_key(&b"/d/f"[..]));
}

#[test]
fn directories_that_are_only_implied_are_roots() {
    let listing = expected(&flattened(&[&[file("a/b/c", "")]]));
    for path in [&b"/a"[..], b"/a/b"] {
        let seen = &listing[path];
        assert_eq!(
            (&seen.what, seen.permissions, seen.owner, seen.modified),
            (&What::Directory, 0o755, (0, 0), (0, 0))
        );
    }
}

#[test]
fn whiteouts_hide_lower_layers_and_only_those() {
    let lower: &[Item] = &[
        file("file", "lower"),
        file("kept", "lower"),
        directory("dir"),
        file("dir/a", "lower"),
        file("dir/sub/b", "lower"),
        directory("opaque"),
        file("opaque/a", "lower"),
        file("opaque/sub/b", "lower"),
    ];
    let wanted = [
        "/dir/",
        "/dir/new = upper",
        "/file = upper",
        "/kept = lower",
        "/opaque/",
        "/opaque/new = upper",
        "/opaque/sub/",
        "/opaque/sub/c = upper",
    ];
    let entries = [
        file("file", "upper"),
        directory("dir"),
        file("dir/new", "upper"),
        directory("opaque"),
        file("opaque/new", "upper"),
        file("opaque/sub/c", "upper"),
    ];
    let whiteouts = [
        file(".wh.file", ""),
        file(".wh.dir", ""),
        file("opaque/.wh..wh..opq", ""),
        file(".wh.never-there", ""),
        file("nor/.wh.this", ""),
        file(".wh..wh.plnk", ""),
        directory(".wh..wh.aufs"),
        file(".wh..wh.orph/12", ""),
    ];
    // Wherever the whiteouts stand.
    let first: Vec<_> = whiteouts.iter().chain(&entries).cloned().collect();
    let last: Vec<_> = entries.iter().chain(&whiteouts).cloned().collect();
    for upper in [first, last] {
        assert_eq!(summary(&flattened(&[lower, &upper])), wanted);
        // A layer's own files are there, whatever it hides below.
        let alone = summary(&flattened(&[&upper]));
        assert!(alone.contains(&"/file = upper".to_owned()), "{alone:?}");
        // And what is hidden once can be hidden and come again.
        let back = summary(&flattened(&[lower, &upper, &[file(".wh.dir", "")], lower]));
        assert!(back.contains(&"/dir/sub/b = lower".to_owned()), "{back:?}");
        assert!(!back.contains(&"/dir/new = upper".to_owned()), "{back:?}");
    }
}

#[test]
fn a_hidden_name_does_not_hide_a_link_to_its_file() {
    let lower: &[Item] = &[file("a", "x")];
    let tree = flattened(&[lower, &[hard_link("b", "a"), file(".wh.a", "")]]);
    assert_eq!(summary(&tree), ["/b = x"]);
    let tree = flattened(&[lower, &[hard_link("b", "a"), file(".wh.b", "")]]);
    assert_eq!(summary(&tree), ["/a = x", "/b = x"]);
}

#[test]
fn hard_links_are_to_what_is_there_by_then() {
    let tree = flattened(&[
        &[
            file("a", "1"),
            hard_link("b", "./a"),
            file("a", "2"),
            hard_link("c", "/a"),
        ],
        &[
            hard_link("d", "b"),
            file("b", "3"),
            symlink("s", "a"),
            hard_link("t", "s"),
        ],
    ]);
    assert_eq!(
        summary(&tree),
        ["/a = 2", "/b = 3", "/c = 2", "/d = 1", "/s -> a", "/t -> a"]
    );
    let listing = expected(&tree);
    assert_eq!(listing[&b"/c"[..]].same_as, b"/a");
    assert_eq!(listing[&b"/t"[..]].same_as, b"/s");
    assert_eq!(listing[&b"/d"[..]].links, 1);
}

#[test]
fn nothing_leads_out_of_the_image() {
    let tree = flattened(&[
        &[
            symlink("up", "../../.."),
            symlink("etc", "/absolute"),
            symlink("via", "etc/../up"),
            symlink("dangling", "x/y"),
            symlink("back", "nowhere/../here"),
        ],
        &[
            file("../../climbed", "1"),
            file("/rooted", "1"),
            file("up/a", "1"),
            file("etc/passwd", "1"),
            file("via/b", "1"),
            file("dangling/c", "1"),
            file("back/d", "1"),
            file("etc/../plain", "1"),
            hard_link("hard", "up/up/up/rooted"),
            file("up/.wh.climbed", ""),
        ],
    ]);
    assert_eq!(
        summary(&tree),
        [
            "/a = 1",
            "/absolute/",
            "/absolute/passwd = 1",
            "/b = 1",
            "/back -> nowhere/../here",
            "/climbed = 1",
            "/dangling -> x/y",
            "/etc -> /absolute",
            "/hard = 1",
            "/here/",
            "/here/d = 1",
            "/plain = 1",
            "/rooted = 1",
            "/up -> ../../..",
            "/via -> etc/../up",
            "/x/",
            "/x/y/",
            "/x/y/c = 1",
        ]
    );
}

#[test]
fn the_same_layers_give_the_same_bytes_however_they_are_stored() {
    let directory = some_directory();
    let lower = gnu_tar(directory.path(), &["--format=pax"]);
    let upper = tar(&[file(".wh.empty", ""), file("new", &"text ".repeat(9000))]);
    let (reference, converted) = image(&[lower.clone(), upper.clone()]);
    fsck(&reference);
    let reference = load(&reference);
    let split = lower.len() / 3;
    let members = [&lower[..split], &lower[split..]].map(|part| filtered("gzip", &[], part));
    let skippable = b"\x5e\x2a\x4d\x18\x05\0\0\0hello".to_vec();
    let frames = [&lower[..split], &lower[split..]].map(|part| filtered("zstd", &["-q"], part));
    for (how, stored) in [
        ("gzip", filtered("gzip", &["-9"], &lower)),
        ("gzip of several members", members.concat()),
        ("zstd", filtered("zstd", &["-q", "-19"], &lower)),
        (
            "zstd of several frames",
            [&skippable[..], &frames[0], &skippable, &frames[1]].concat(),
        ),
    ] {
        let again = image(&[stored, filtered("zstd", &["-q"], &upper)]);
        assert_eq!(again.1, converted, "{how}");
        assert!(load(&again.0) == reference, "{how}: other bytes");
    }
    // Another layer is another image, by its UUID at least.
    let (other, _) = image(&[lower, [&upper[..], &[0; 512]].concat()]);
    assert!(load(&other) != reference);
}

#[test]
fn what_follows_the_end_is_not_read() {
    let mut bytes = tar(&[file("a", "1")]);
    bytes.extend(tar(&[file("b", "2")]));
    let tree = archive::flatten_with(&[bytes], layers_limits())
        .unwrap()
        .tree;
    assert_eq!(summary(&tree), ["/a = 1"]);
    // And some writers leave the end out.
    let mut bytes = tar(&[file("a", "1")]);
    bytes.truncate(bytes.len() - 1024);
    let tree = archive::flatten_with(&[bytes], layers_limits())
        .unwrap()
        .tree;
    assert_eq!(summary(&tree), ["/a = 1"]);
}

fn layers_limits() -> flashpan_rootfs::layers::Limits {
    flashpan_rootfs::layers::Limits::default()
}

#[test]
fn memory_does_not_grow_with_the_image() {
    if let Some(layer) = std::env::var_os("FLASHPAN_TEST_LAYER") {
        return convert_and_tell_the_peak(layer.as_ref());
    }
    // A layer of 256 MiB that is no hole anywhere, made on the way.
    let directory = tempfile::tempdir().unwrap();
    let layer = directory.path().join("layer.gz");
    let mut make = Command::new("sh");
    make.arg("-c")
        .arg(
            "cd \"$1\" && yes 'not a hole' | head -c 268435456 > big && \
             tar -cf - big | gzip -1 > layer.gz && rm big",
        )
        .arg("sh")
        .arg(directory.path());
    archive::run(&mut make);
    // In a process of its own, whose peak is then its own.
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args([
            "--exact",
            "--nocapture",
            "memory_does_not_grow_with_the_image",
        ])
        .env("FLASHPAN_TEST_LAYER", &layer);
    let output = String::from_utf8(archive::run(&mut child)).unwrap();
    let line = output.lines().find_map(|line| line.split_once("VmHWM:"));
    let peak = line.expect("the child tells its peak").1;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 32 << 10, "{kib} KiB at the peak");
}

/// What the child of the test above does.
fn convert_and_tell_the_peak(path: &Path) {
    use flashpan_rootfs::layers::{Layer, Options, convert};
    let file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let layer = Layer::new("big".into(), file.into(), 0, length).unwrap();
    let cancel = std::sync::atomic::AtomicBool::new(false);
    let directory = path.parent().unwrap();
    let options = Options::new(directory, &cancel);
    let output = tempfile::tempfile_in(directory).unwrap();
    convert(&[layer], &[], &options, &output, &|_| {}).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    println!(
        "{}",
        status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap()
    );
}

/// Whoever can write the file of a layer cannot put other bytes into an image
/// than those that were hashed.
#[test]
fn what_is_hashed_is_what_is_written_whoever_changes_the_file_between() {
    let bytes = tar(&[file("a", &"good".repeat(5000))]);
    let evil = vec![b'!'; 20_000];
    let layer = archive::layer(&bytes);
    let file = File::options()
        .write(true)
        .open(format!("/proc/self/fd/{}", layer.file.as_raw_fd()))
        .unwrap();
    let (spool, cancel) = (std::env::temp_dir(), AtomicBool::new(false));
    let options = layers::Options::new(&spool, &cancel);
    let output = tempfile::tempfile().unwrap();
    let overwrite = |now: layers::Progress| {
        if matches!(now, layers::Progress::Unpacking { done, total, .. } if done == total) {
            // After the header, where the content is.
            file.write_all_at(&evil, layer.offset + 512).unwrap();
        }
    };
    let made = [layer.clone()];
    layers::convert(&made, &[], &options, &output, &overwrite).unwrap();
    let What::Regular(found) = seen(&load(&output))[&b"/a"[..]].what.clone() else {
        panic!("no file")
    };
    assert!(found == "good".repeat(5000).into_bytes());
    let mut now = vec![0; evil.len()];
    layer
        .file
        .read_exact_at(&mut now, layer.offset + 512)
        .unwrap();
    assert!(now == evil, "nothing was overwritten");
}
